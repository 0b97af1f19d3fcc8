"""Reading rows from the files people have, one at a time, each with its place for an error message."""

from __future__ import annotations

import csv
import importlib
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, cast

from ..core.errors import DataError
from ..core.extras import not_installed
from ..core.files import storage_errors

T = TypeVar("T")
_PARQUET_BATCH = 1024


@dataclass(frozen=True, slots=True)
class Row:
    """A row of a file, readable or not.

    Attributes:
        number: Its line (.jsonl, .csv) or position (.json, .parquet), from 1.
        value: Its content, or None when it cannot be read.
        problem: Why it cannot be read, or None.
    """

    number: int
    value: Mapping[str, Any] | None
    problem: DataError | None = None

    def content(self) -> Mapping[str, Any]:
        """Its content.

        Raises:
            DataError: If it cannot be read.
        """
        if self.value is None:
            raise self.problem or DataError("unreadable")
        return self.value

    def parsed(self, parse: Callable[[Mapping[str, Any]], T]) -> T | DataError:
        """What ``parse`` makes of the content, or why it cannot."""
        try:
            return parse(self.content())
        except DataError as error:
            return error


def read_rows(path: Path) -> Iterator[Row]:
    """Yield every row of a .jsonl, .json, .csv or .parquet file, readable or not, in order.

    Rows are streamed, except for a .json array, which is read into memory at once.

    Raises:
        DataError: If the file as a whole cannot be used: missing, a folder, empty, of an unknown kind.
        StorageError: If the system refuses to read it.
    """
    if path.is_dir():
        raise DataError("this is a folder; a data file is needed", where=str(path))
    if not path.exists():
        raise DataError("no such file", where=str(path), fix="Check the path")
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        raise DataError(
            f"files of kind '{path.suffix or 'no extension'}' are not read here",
            where=str(path),
            fix=f"Use one of {', '.join(_READERS)}",
        )
    with storage_errors(path):
        if path.stat().st_size == 0:
            raise DataError("the file is empty", where=str(path))
        any_row = False
        for row in reader(path):
            any_row = True
            yield row
        if not any_row:
            raise DataError("the file has no rows", where=str(path))


def at_line(path: Path, number: int, error: DataError) -> DataError:
    """The same error with its file and line."""
    return DataError(error.problem, where=f"{path.name}:{number}", fix=error.fix)


def usable_rows(path: Path, outcomes: Iterable[tuple[int, T | DataError]], *, skip_bad_rows: bool) -> Iterator[T]:
    """What the usable rows of a file were made into.

    Args:
        path: The file, for errors.
        outcomes: For each row its number and the result, or why there is none.
        skip_bad_rows: Leave out rows that cannot be used instead of refusing the file.

    Raises:
        DataError: For the first row that cannot be used, or if no row can.
    """
    usable = 0
    for number, outcome in outcomes:
        if not isinstance(outcome, DataError):
            usable += 1
            yield outcome
        elif not skip_bad_rows:
            raise at_line(path, number, outcome)
    if not usable:
        raise DataError("no row can be used", where=str(path), fix="check_dataset names what is wrong with each")


def _jsonl(path: Path) -> Iterator[Row]:
    with path.open("rb") as file:
        for number, raw in enumerate(file, start=1):
            if raw.strip():
                yield _json_row(path, number, raw.removeprefix(b"\xef\xbb\xbf") if number == 1 else raw)


def _json_row(path: Path, number: int, raw: bytes) -> Row:
    try:
        value: object = json.loads(raw)
    except UnicodeDecodeError as error:
        return _bad(path, number, f"not UTF-8 (byte {error.start + 1} of the line)", "Save the file as UTF-8")
    except ValueError as error:
        return _bad(path, number, f"not JSON: {error}", "Each line must be one complete JSON object")
    except RecursionError:
        return _bad(path, number, "not usable JSON: nested too deeply", "Each line must be one JSON object")
    return _object_row(path, number, value)


def _object_row(path: Path, number: int, value: object) -> Row:
    if not isinstance(value, dict):
        return _bad(path, number, f"a JSON {type(value).__name__}, and an object is needed", "Write {...} on each line")
    return Row(number, cast("dict[str, Any]", value))


def _bad(path: Path, number: int, problem: str, fix: str) -> Row:
    return Row(number, None, DataError(problem, where=f"{path.name}:{number}", fix=fix))


def _json(path: Path) -> Iterator[Row]:
    raw = path.read_bytes()
    try:
        content: object = json.loads(raw.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        raise DataError("not UTF-8", where=f"{path.name}:{line}", fix="Save the file as UTF-8") from error
    except json.JSONDecodeError as error:
        raise DataError(
            f"not JSON: {error.msg}",
            where=f"{path.name}:{error.lineno}",
            fix="A .json file holds one array of rows; one row per line is .jsonl",
        ) from error
    if isinstance(content, dict):
        values = cast("dict[str, object]", content).values()
        lists = [cast("list[object]", v) for v in values if isinstance(v, list)]
        content = lists[0] if len(lists) == 1 else cast("object", content)
    if not isinstance(content, list):
        raise DataError("a .json file must hold one array of rows", where=path.name)
    for number, value in enumerate(cast("list[object]", content), start=1):
        yield _object_row(path, number, value)


def _csv(path: Path) -> Iterator[Row]:
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
    number = 0
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            for number, record in enumerate(csv.DictReader(file, strict=True), start=1):
                if None in record or None in record.values():
                    yield _bad(path, number + 1, "not as many fields as the header has", "Quote fields with commas")
                else:
                    yield Row(number + 1, record)
    except UnicodeDecodeError as error:
        where = f"{path.name}: after row {number}"
        raise DataError("not UTF-8", where=where, fix="Save the file as UTF-8") from error
    except csv.Error as error:
        raise DataError(f"not CSV: {error}", where=f"{path.name}: after row {number}") from error


def _parquet(path: Path) -> Iterator[Row]:
    try:
        pyarrow: Any = importlib.import_module("pyarrow")
        parquet: Any = importlib.import_module("pyarrow.parquet")
    except ImportError as error:
        raise not_installed(["pyarrow"], by="reading .parquet") from error
    try:
        table: Any = parquet.ParquetFile(path)
        number = 0
        for batch in table.iter_batches(batch_size=_PARQUET_BATCH):
            for value in batch.to_pylist():
                number += 1
                yield Row(number, {k: v for k, v in value.items() if v is not None})
    except pyarrow.ArrowException as error:
        raise DataError(f"not a readable Parquet file: {error}", where=str(path)) from error


_READERS: Mapping[str, Callable[[Path], Iterator[Row]]] = {
    ".jsonl": _jsonl,
    ".json": _json,
    ".csv": _csv,
    ".parquet": _parquet,
}
