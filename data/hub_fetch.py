"""From a reference to files on this disk, pinned to a commit: whole files by the hub's cache, or the first rows."""

from __future__ import annotations

import importlib
import json
import re
import shutil
import tempfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from filelock import FileLock

from ..core.errors import DataError, StorageError
from ..core.files import sha256_of, short_digest, storage_errors, sync_folder, write_atomically
from ..core.foreign_text import foreign, named
from .hub_catalog import HubDataset, catalog_folder, hub_api, hub_errors, look_up, references
from .hub_reference import HubReference
from .row_files import looks_like_lines
from .shards import SOURCE, kind_of_file

# What is fetched whole; of more the first rows have to be asked for.
MOST_BYTES = 5 * 10**9
_SHOWN = 12
# Bytes fetched, and of how many.
Fetching = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class Fetched:
    """A part of a data set on this disk.

    Attributes:
        path: The folder with its files.
        reference: What it is, with its commit.
        bytes: Their size.
        files: How many there are.
        note: What to know of it, or nothing.
    """

    path: Path
    reference: HubReference
    bytes: int
    files: int
    note: str

    @property
    def facts(self) -> str:
        """What it is, in half a line."""
        count = f"{self.files} files, " if self.files > 1 else ""
        return f"{self.reference}, {count}{in_bytes(self.bytes)}" + (f" ({self.note})" if self.note else "")


def fetch(reference: HubReference, progress: Fetching | None = None) -> Fetched:
    """The files of one split, fetched unless they are here already.

    Args:
        reference: What is meant; without configuration or split it must have one only.
        progress: Told the bytes fetched, and of how many; not of the first rows, whose bytes nobody knows.

    Raises:
        DataError: If it cannot be had, means several splits, or is larger than `MOST_BYTES`.
        StorageError: If the disk has no room for it.
    """
    dataset = look_up(reference.repository, reference.revision)
    exact, files = _meant(dataset, reference)
    size = sum(dataset.files[file].size for file in files)
    if exact.rows is None and size > MOST_BYTES:
        part = HubReference(exact.repository, exact.config, exact.split, 100_000, reference.revision)
        from .hub_head import has_first_rows

        smaller = "Name one smaller file of it, or try owner/name@refs/convert/parquet"
        raise DataError(
            f"it has {in_bytes(size)}, and no more than {in_bytes(MOST_BYTES)} are fetched whole",
            where=str(reference),
            fix=f"Its first rows: {part}" if has_first_rows(files) else smaller,
        )
    folder = _view(dataset, exact)
    with FileLock(folder.with_name(f".{folder.name}.lock")):
        if not _is_whole(folder):
            with storage_errors(folder):
                for stale in filter(Path.is_dir, folder.parent.iterdir()):  # what a killed fetch left
                    shutil.rmtree(stale, ignore_errors=True)
                _make(folder, dataset, exact, files, progress or (lambda done, of: None))
    there = [file for file in folder.iterdir() if file.name != SOURCE]
    return Fetched(folder, exact, sum(file.stat().st_size for file in there), len(there), dataset.note)


def in_bytes(size: int) -> str:
    """A size for reading: 4.2 GB, 2.3 MB, 17 kB."""
    for unit, name in ((10**9, "GB"), (10**6, "MB")):
        if size >= unit:
            return f"{size / unit:,.1f} {name}"
    return f"{max(1, round(size / 1000))} kB"


def _meant(dataset: HubDataset, reference: HubReference) -> tuple[HubReference, Sequence[str]]:
    """The one split or file that a reference means, and its files."""
    if reference.split in dataset.files and reference.config is None:
        file = str(reference.split)
        return HubReference(dataset.repository, None, file, reference.rows, dataset.commit), [file]
    possible = references(dataset, reference)
    if len(possible) > 1:
        listed = "; ".join(str(_as_written(each, reference)) for each in possible[:_SHOWN])
        more = f"; and {len(possible) - _SHOWN} more" if len(possible) > _SHOWN else ""
        raise DataError(
            f"the data set has {len(possible)} configurations and splits, and one is needed",
            where=str(reference),
            fix=f"Write one of: {foreign(listed + more, 1500)}",
        )
    exact = possible[0]
    layout = dataset.layout()
    files = layout[exact.config or next(iter(layout))][str(exact.split)]
    kinds = {kind_of_file(PurePosixPath(file)): file for file in files}
    if len(kinds) > 1:
        one = HubReference(reference.repository, None, kinds[min(kinds)], reference.rows, reference.revision)
        raise DataError(
            f"its files are of several kinds ({', '.join(sorted(kinds))})",
            where=str(reference),
            fix=f"Name one file, such as {named(one)}",
        )
    return exact, files


def _as_written(exact: HubReference, asked: HubReference) -> HubReference:
    return HubReference(asked.repository, exact.config, exact.split, exact.rows, asked.revision)


def _view(dataset: HubDataset, exact: HubReference) -> Path:
    """The folder of one split; its name is what a job without a name is called."""
    parts = [dataset.repository.split("/")[-1], exact.config, exact.split, f"first-{exact.rows}" if exact.rows else ""]
    name = re.sub(r"[^\w-]+", "-", "-".join(part for part in parts if part))[-120:]
    folder = catalog_folder(dataset.repository) / dataset.commit / short_digest(str(exact)).hex() / name
    with storage_errors(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
    return folder


def _is_whole(folder: Path) -> bool:
    """Whether a split was fetched, and the hub's cache still has its files."""
    return folder.is_dir() and all(file.exists() for file in folder.iterdir())


def _make(folder: Path, dataset: HubDataset, exact: HubReference, files: Sequence[str], progress: Fetching) -> None:
    """Fill a folder aside, and give it its name when it is complete."""
    aside = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
    try:
        if exact.rows is None:
            for position, path in enumerate(_fetched(dataset, files, progress)):
                (aside / _name(files[position], path, position if len(files) > 1 else None)).symlink_to(path)
        else:
            from .hub_head import fetch_first_rows

            with hub_errors(dataset.repository, dataset.commit):
                fetch_first_rows(dataset.repository, dataset.commit, files, exact.rows, aside)
        about = {"reference": str(exact), "repository": dataset.repository, "commit": dataset.commit}
        write_atomically(aside / SOURCE, json.dumps(about) + "\n")
        sync_folder(aside)
        aside.rename(folder)
        sync_folder(folder.parent)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise


def _name(file: str, path: Path, position: int | None) -> str:
    """A shard's name in the folder, numbered where their order would be lost; JSON lines that are called .json."""
    name = re.sub(r"[^\w.-]+", "-", PurePosixPath(file).name)
    if kind_of_file(path) == ".json" and looks_like_lines(path):
        name = re.sub(r"\.json(?=\.|$)", ".jsonl", name, flags=re.IGNORECASE)
    return name if position is None else f"{position:05d}-{name}"


def _fetched(dataset: HubDataset, files: Sequence[str], progress: Fetching) -> list[Path]:
    """The files in the hub's cache, each whole."""
    api = hub_api()
    _require_room(dataset, files)
    whole = sum(dataset.files[file].size for file in files)
    paths: list[Path] = []
    before = 0
    for file in files:
        with hub_errors(dataset.repository, dataset.commit):
            path = _download(api, dataset, file, _bars(lambda done, before=before: progress(before + done, whole)))
        before += dataset.files[file].size
        progress(before, whole)
        paths.append(path)
    return paths


def _download(api: Any, dataset: HubDataset, file: str, bars: type) -> Path:
    try:
        path = Path(
            api.hf_hub_download(dataset.repository, file, repo_type="dataset", revision=dataset.commit, tqdm_class=bars)
        )
    except (OSError, RuntimeError) as error:
        from huggingface_hub import errors

        answered = (errors.HfHubHTTPError, errors.OfflineModeIsEnabled, errors.EntryNotFoundError)
        if getattr(error, "errno", None) is not None or isinstance(error, (*answered, errors.FileMetadataError)):
            raise
        raise DataError(  # what is left comes from the transfer: too few bytes, or a storage behind the hub
            f"the connection was cut while {file} was fetched; nothing of it is kept: {foreign(error, 200)}",
            where=f"{dataset.repository}@{dataset.commit}",
            fix="Try again",
        ) from error
    stated = dataset.files[file].sha256
    if stated is not None and sha256_of(path) != stated:
        with suppress(OSError):
            path.resolve().unlink()
        raise DataError(
            f"{file} is not what the hub says it is: its SHA-256 differs; it was removed",
            where=f"{dataset.repository}@{dataset.commit}",
            fix="Try again",
        )
    return path


def _bars(report: Callable[[int], None]) -> type:
    """What the hub's client takes for a progress bar: it draws nothing, and reports the bytes of one file."""
    base: Any = importlib.import_module("huggingface_hub.utils").tqdm

    def start(bar: Any, *args: Any, **named: Any) -> None:
        bar.bytes = int(named.get("initial") or 0)
        base.__init__(bar, *args, **{**named, "disable": True})

    def update(bar: Any, n: float | None = 1) -> None:
        bar.bytes += int(n or 0)
        report(bar.bytes)

    return type("Bar", (base,), {"__init__": start, "update": update})


def _require_room(dataset: HubDataset, files: Sequence[str]) -> None:
    """Refuse what the disk of the hub's cache has no room for.

    Raises:
        StorageError: Saying how much is missing.
    """
    from huggingface_hub import constants, try_to_load_from_cache

    missing = 0
    for file in files:
        cached = try_to_load_from_cache(dataset.repository, file, repo_type="dataset", revision=dataset.commit)
        missing += 0 if isinstance(cached, str) else dataset.files[file].size
    cache = Path(constants.HF_HUB_CACHE)
    place = next((each for each in (cache, *cache.parents) if each.exists()), cache)
    free = shutil.disk_usage(place).free
    if missing > free:
        raise StorageError(
            f"no space left: {in_bytes(missing)} are to be fetched, and {in_bytes(free)} are free",
            where=str(cache),
            fix="Free some space, or set HF_HOME to a folder on another disk",
        )
