"""From a path to open files: a folder or a pattern stands for its shards, and compressed files read as plain ones."""

from __future__ import annotations

import bz2
import glob
import gzip
import hashlib
import importlib
import io
import json
import lzma
import re
import zlib
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path, PurePath
from typing import Any, BinaryIO, cast

from ..core.errors import DataError
from ..core.extras import not_installed
from ..core.files import sha256_of

KINDS = (".jsonl", ".json", ".csv", ".tsv", ".parquet", ".arrow", ".feather")
# In a folder that was fetched: what of the hub it holds.
SOURCE = ".ml-researcher-source.json"
_COMPRESSED = frozenset({".gz", ".zst", ".zstd", ".xz", ".bz2"})
# Beside the shards of a data set that `datasets` saved.
_ABOUT_THE_DATA = frozenset({"dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json"})
_SPLIT = re.compile(r"(train|test|validation|valid|val|dev|eval)(?=[-_.])", re.IGNORECASE)
_SHOWN = 4


def kind_of_file(path: PurePath) -> str:
    """The extension that says how a file is read, ``.jsonl`` of ``train.jsonl.gz`` too."""
    suffix = path.suffix.lower()
    return PurePath(path.stem).suffix.lower() if suffix in _COMPRESSED else suffix


def shards(path: Path) -> tuple[Path, ...]:
    """The files that a path stands for, sorted by name: itself, those of a folder, or those that a pattern matches.

    Raises:
        DataError: If a folder or pattern has no data files, has files of several kinds, or of several splits.
    """
    if path.is_dir():
        there = [each for each in path.iterdir() if not each.is_dir() and each.name[0] not in "._"]
        files = sorted(f for f in there if kind_of_file(f) in KINDS and f.name not in _ABOUT_THE_DATA)
    elif path.exists() or not glob.has_magic(str(path)):
        return (path,)
    else:
        files = sorted(found for found in map(Path, glob.glob(str(path))) if not found.is_dir())  # noqa: PTH207
    if not files:
        raise DataError(
            "there are no data files in this folder" if path.is_dir() else "no file matches this pattern",
            where=str(path),
            fix=_folders_in(path) or f"Files end in {', '.join(KINDS)}, compressed or not",
        )
    for what, found in (
        ("kinds", {kind_of_file(f) or f.name for f in files}),
        ("splits", {m[1].lower() for f in files if (m := _SPLIT.match(f.name))}),
    ):
        if len(found) > 1:
            raise DataError(
                f"it holds files of several {what} ({', '.join(sorted(found)[:_SHOWN])})",
                where=str(path),
                fix="Name those you mean with a pattern, such as folder/train-*.parquet",
            )
    return tuple(files)


def _folders_in(path: Path) -> str:
    names = sorted(each.name for each in path.iterdir() if each.is_dir()) if path.is_dir() else []
    return f"Name one of the folders in it: {', '.join(names[:_SHOWN])}" if names else ""


def bytes_of(path: Path) -> int:
    """Bytes of the files that a path stands for."""
    return sum(shard.stat().st_size for shard in shards(path))


def digest_of(path: Path) -> str:
    """The SHA-256 of a file; of several, that of the lines which ``sha256sum`` prints for them in their folder."""
    files = shards(path)
    if files == (path,):
        return sha256_of(path)
    return hashlib.sha256("".join(f"{sha256_of(f)}  {f.name}\n" for f in files).encode()).hexdigest()


def facts_of(path: Path) -> dict[str, Any]:
    """What a run keeps of its data: ``sha256``, ``bytes``, and for several files the SHA-256 of each by its path.

    Of a data set of the hub also ``hub``: its reference, repository and commit.
    """
    files = shards(path)
    facts: dict[str, Any] = {"sha256": digest_of(path), "bytes": bytes_of(path)}
    if hub := hub_facts(path):
        facts["hub"] = hub
    return facts if files == (path,) else {**facts, "files": {str(f): sha256_of(f) for f in files}}


def hub_facts(folder: Path) -> dict[str, str]:
    """The reference, repository and commit of what lies in a folder, if it was fetched from the hub; else nothing."""
    about = folder / SOURCE
    return json.loads(about.read_bytes()) if about.is_file() else {}


def _zstd(file: BinaryIO) -> BinaryIO:
    try:
        pyarrow: Any = importlib.import_module("pyarrow")
    except ImportError as error:
        raise not_installed(["pyarrow"], by="reading zstd") from error
    # Unlike most, this reader says when the file ends before its content does.
    return cast("BinaryIO", io.BufferedReader(pyarrow.CompressedInputStream(file, "zstd")))


_OPENERS: dict[bytes, Callable[[BinaryIO], BinaryIO]] = {
    b"\x1f\x8b": lambda file: cast("BinaryIO", gzip.GzipFile(fileobj=file)),
    b"BZh": lambda file: cast("BinaryIO", bz2.BZ2File(file)),
    b"\xfd7zXZ\x00": lambda file: cast("BinaryIO", lzma.LZMAFile(file)),  # noqa: SIM115
    b"\x28\xb5\x2f\xfd": _zstd,
}


def is_compressed(path: Path) -> bool:
    """Whether a file's first bytes say that it is gzip, bzip2, xz or zstd."""
    with path.open("rb") as file:
        return file.read(6).startswith(tuple(_OPENERS))


@contextmanager
def opened(path: Path) -> Generator[BinaryIO]:
    """A file's bytes, decompressed where its first bytes (not its name) say that it is compressed.

    Raises:
        DataError: If it is an archive, or its compressed content is cut or damaged.
    """
    with path.open("rb") as raw, decompressed(raw, path.name) as file:
        yield file


@contextmanager
def decompressed(raw: BinaryIO, name: str) -> Generator[BinaryIO]:
    """The same for a file that is open at its beginning; ``name`` is for errors.

    Raises:
        DataError: As `opened`.
    """
    head = raw.read(6)
    raw.seek(0)
    if head.startswith((b"PK\x03\x04", b"7z\xbc\xaf")):
        raise DataError("the file is an archive", where=name, fix="Unpack it, and name the file or folder")
    opener = next((opener for magic, opener in _OPENERS.items() if head.startswith(magic)), None)
    if opener is None:
        yield raw
        return
    try:
        with opener(raw) as file:
            yield file
    except (EOFError, OSError, zlib.error, lzma.LZMAError) as error:
        if isinstance(error, OSError) and (error.errno is not None or hasattr(error, "response")):
            raise
        raise DataError("the compressed file is cut or damaged", where=name, fix="Fetch or write it again") from error
