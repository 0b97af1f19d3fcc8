"""The first rows of files on the hub, streamed: of a text file exactly its first bytes, of Parquet its batches."""

from __future__ import annotations

import csv
import importlib
import io
import itertools
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

from ..core.errors import DataError
from ..core.extras import not_installed
from ..core.foreign_text import foreign
from .hub_catalog import hub_api
from .row_files import MOST_ROW_BYTES, delimiter
from .shards import decompressed, kind_of_file

_BLOCK = 2**20
_BATCH = 1024


def fetch_first_rows(repository: str, commit: str, files: Sequence[str], rows: int, folder: Path) -> None:
    """Write the first ``rows`` rows of these files into a folder, each file's under its own name.

    Raises:
        DataError: If a file is of a kind that can only be read whole.
    """
    api = hub_api()
    hub: Any = importlib.import_module("huggingface_hub")
    remote = hub.HfFileSystem(endpoint=api.endpoint, token=api.token, skip_instance_cache=True)
    left = rows
    for position, file in enumerate(files):
        if left <= 0:
            return
        write = _HEADS.get(kind_of_file(PurePosixPath(file)))
        if write is None:
            raise DataError(
                f"of {PurePosixPath(file).suffix} files no part can be fetched",
                where=f"{repository}@{commit}",
                fix=f"Of {', '.join(_HEADS)} it can; leave out [:{rows}]",
            )
        name = re.sub(r"[^\w.-]+", "-", PurePosixPath(file).name)
        target = folder / (name if len(files) == 1 else f"{position:05d}-{name}")
        address = f"datasets/{repository}@{commit}/{file}"
        with io.BufferedReader(remote.open(address, "rb", block_size=_BLOCK)) as source:
            left -= write(source, target, left)


def _lines(source: BinaryIO, target: Path, rows: int) -> int:
    count = 0
    with decompressed(source, target.name) as text, target.open("wb") as out:
        while count < rows and (line := text.readline(MOST_ROW_BYTES + 1)):
            if len(line) > MOST_ROW_BYTES:
                raise DataError("a row is longer than rows may be", where=f"{target.name}:{count + 1}")
            out.write(line)
            count += bool(line.strip())
    return count


def _records(source: BinaryIO, target: Path, rows: int) -> int:
    """The header and so many records of a CSV; a record may go over several lines."""
    count = 0
    csv.field_size_limit(MOST_ROW_BYTES)
    with decompressed(source, target.name) as text, target.open("wb") as out:

        def lines() -> Iterator[str]:
            while line := text.readline(MOST_ROW_BYTES + 1):
                out.write(line)
                yield line.decode("utf-8", "replace")

        read = lines()
        first = next(read, "")
        records = csv.reader(itertools.chain([first], read), delimiter=delimiter(first))
        try:
            next(records, None)
            while count < rows and next(records, None) is not None:
                count += 1
        except csv.Error as error:
            raise DataError(f"not CSV: {error}", where=target.name) from error
    return count


def _batches(source: BinaryIO, target: Path, rows: int) -> int:
    try:
        pyarrow: Any = importlib.import_module("pyarrow")
        parquet: Any = importlib.import_module("pyarrow.parquet")
    except ImportError as error:
        raise not_installed(["pyarrow"], by="reading .parquet") from error
    count = 0
    try:
        file = parquet.ParquetFile(source)
        with parquet.ParquetWriter(target, file.schema_arrow) as out:
            for batch in file.iter_batches(min(rows, _BATCH)):
                part = batch.slice(0, rows - count)
                out.write_batch(part)
                count += part.num_rows
                if count >= rows:
                    break
    except pyarrow.ArrowException as error:
        raise DataError(f"not a readable Parquet file: {foreign(error)}", where=target.name) from error
    return count


def has_first_rows(files: Sequence[str]) -> bool:
    """Whether the first rows of these files can be fetched without the rest."""
    return all(kind_of_file(PurePosixPath(file)) in _HEADS for file in files)


_HEADS: dict[str, Callable[[BinaryIO, Path, int], int]] = {
    ".jsonl": _lines,
    ".csv": _records,
    ".tsv": _records,
    ".parquet": _batches,
}
