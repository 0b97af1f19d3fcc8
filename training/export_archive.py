"""The adapter of a checkpoint from a server that hands it out as an archive, as Tinker servers did before SDK 0.38."""

from __future__ import annotations

import io
import tarfile
import zlib
from pathlib import Path
from urllib.parse import urljoin, urlsplit

from ..core.errors import BackendError
from ..core.files import storage_errors
from ..core.foreign_text import named

_TIMEOUT_S = 300.0
_FILES = ("adapter_config.json", "adapter_model.safetensors")
_MOST_BYTES = 20_000_000_000


def fetch_archive(base_url: str, api_key: str, checkpoint: str, folder: Path) -> None:
    """Put the two files of an adapter into ``folder``.

    Args:
        base_url: The server.
        api_key: Its key, which goes nowhere else.
        checkpoint: A ``tinker://`` path; weights to sample from were saved under the state's name.
        folder: Made if it is not there.

    Raises:
        BackendError: If the server does not answer, refuses, or sends something else.
        StorageError: If a file cannot be written.
    """
    import httpx2

    run, _, name = checkpoint.removeprefix("tinker://").split("/", 2)
    url = f"{base_url}/api/v1/training_runs/{run}/checkpoints/{name}/archive"
    headers = {"X-API-Key": api_key}
    try:
        with httpx2.Client(timeout=_TIMEOUT_S, headers=headers) as client:
            answer = client.get(url)
            if answer.is_redirect:
                there = urljoin(url, answer.headers["location"])
                if urlsplit(there).netloc != urlsplit(base_url).netloc:
                    raise BackendError(
                        f"it sends on to {named(there)} for the archive", where=checkpoint, fix="Fetch it from there"
                    )
                answer = client.get(there)
    except httpx2.HTTPError as error:
        raise BackendError(f"the archive did not come ({type(error).__name__})", where=checkpoint) from error
    if answer.status_code != 200:
        raise BackendError(f"the server has no archive of it ({answer.status_code})", where=checkpoint)
    try:
        with tarfile.open(fileobj=io.BytesIO(answer.content)) as archive:
            _unpack(archive, folder)
    except (tarfile.TarError, EOFError, zlib.error) as error:
        raise BackendError("what came is no archive", where=checkpoint) from error


def _unpack(archive: tarfile.TarFile, folder: Path) -> None:
    """Write the files that are wanted, by their names alone: where else an archive points to does not matter."""
    with storage_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        for member in archive.getmembers():
            name = Path(member.name).name
            content = archive.extractfile(member) if member.isfile() and name in _FILES else None
            if content is None:
                continue
            if member.size > _MOST_BYTES:
                raise tarfile.TarError("too large")
            with content, (folder / name).open("wb") as file:
                while block := content.read(1 << 20):
                    file.write(block)
    if missing := [name for name in _FILES if not (folder / name).is_file()]:
        raise tarfile.TarError(f"without {missing[0]}")
