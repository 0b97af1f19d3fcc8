"""Reading rows from the files people have, one at a time, each with its place for an error message."""

from __future__ import annotations

import codecs
import csv
import importlib
import json
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO, TypeVar, cast

from ..core.errors import DataError
from ..core.extras import not_installed
from ..core.files import storage_errors

T = TypeVar("T")
_PARQUET_BATCH = 1024
# About half a million tokens, which no run here trains in one row: more is a file without line breaks, or rubbish.
MOST_ROW_BYTES = 2 * 2**20
_CHUNK_BYTES = 2**24
_SKIPPED_BYTES = 2**22
# A .json array takes about six times its size in memory.
_MOST_ARRAY_BYTES = 128 * 2**20
_HEAD_BYTES = 2**16


@dataclass(frozen=True, slots=True)
class Row:
    """A row of a file, readable or not.

    Attributes:
        number: Its line (.jsonl, .csv) or position (.json, .parquet), from 1.
        value: Its content, or None when it cannot be read.
        problem: Why it cannot be read, or None.
        size: Its bytes in the file; 0 where they are not known.
        not_finite: Whether it holds NaN or Infinity, which are not JSON and which Python writes all the same.
    """

    number: int
    value: Mapping[str, Any] | None
    problem: DataError | None = None
    size: int = 0
    not_finite: bool = False

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
    if not path.is_file():  # a pipe would wait for ever, a device never end
        raise DataError("this is a pipe or a device; a data file is needed", where=str(path))
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


def chunks_of(path: Path, rows: int) -> Iterator[list[Row]]:
    """The rows of a file in chunks of so many, and of not much more than `_CHUNK_BYTES`.

    Raises:
        DataError: As `read_rows`.
    """
    chunk: list[Row] = []
    size = 0
    for row in read_rows(path):
        chunk.append(row)
        size += row.size
        if len(chunk) >= rows or size >= _CHUNK_BYTES:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk


def _jsonl(path: Path) -> Iterator[Row]:
    with path.open("rb") as file:
        _require_lines(path, file.read(_HEAD_BYTES))
        file.seek(0)
        number = 0
        while raw := file.readline(MOST_ROW_BYTES + 1):
            number += 1
            if len(raw) > MOST_ROW_BYTES and not raw.endswith(b"\n"):
                yield _too_long(path, number, len(raw) + _rest_of_line(file))
            elif raw.strip():
                yield _json_row(path, number, raw.removeprefix(codecs.BOM_UTF8) if number == 1 else raw)


def _require_lines(path: Path, head: bytes) -> None:
    """Refuse what is no JSON lines at all, by its first bytes.

    Raises:
        DataError: Saying what it is instead.
    """
    if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise DataError("the file is UTF-16", where=path.name, fix="Save it as UTF-8")
    if head.startswith((b"\x1f\x8b", b"PK\x03\x04", b"\x28\xb5\x2f\xfd", b"PAR1")):
        raise DataError("the file is compressed or Parquet, not JSON lines", where=path.name, fix="Unpack or rename it")
    first = head.removeprefix(codecs.BOM_UTF8).lstrip()
    line, ended, rest = first.partition(b"\n")
    if ended and line.startswith(b"{") and line.rstrip().endswith((b"{", b"[", b",", b":")):
        raise DataError(
            "a JSON object is spread over several lines",
            where=path.name,
            fix='A .jsonl file holds one object per line: jq -c . FILE, or json.dumps(row) + "\\n" for each row',
        )
    if line.startswith(b"[") and (not line.rstrip().endswith(b"]") or not rest.strip()):
        raise DataError(
            "the file is one JSON array, not one object per line",
            where=path.name,
            fix="Name it .json, or write each row on a line of its own: jq -c '.[]' FILE",
        )


def _rest_of_line(file: BinaryIO) -> int:
    """Read to the end of the line without keeping it; its bytes."""
    size = 0
    while part := file.read(_SKIPPED_BYTES):
        end = part.find(b"\n") + 1
        size += end or len(part)
        if end:
            file.seek(end - len(part), os.SEEK_CUR)
            break
    return size


def _too_long(path: Path, number: int, size: int) -> Row:
    problem = f"{size / 1e6:,.1f} MB in one row; rows above {MOST_ROW_BYTES // 2**20} MiB are not read"
    return _bad(path, number, problem, "Split it, or check that each row ends its line")


def _json_row(path: Path, number: int, raw: bytes) -> Row:
    try:
        value: object = json.loads(raw)
    except UnicodeDecodeError as error:
        return _bad(path, number, f"not UTF-8 (byte {error.start + 1} of the line)", "Save the file as UTF-8")
    except ValueError as error:
        return _bad(path, number, f"not JSON: {error}", "Each line must be one complete JSON object")
    except RecursionError:
        return _bad(path, number, "not usable JSON: nested too deeply", "Each line must be one JSON object")
    row = _object_row(path, number, value, len(raw))
    return replace(row, not_finite=True) if (b"NaN" in raw or b"Infinity" in raw) and _holds_nan(raw) else row


def _holds_nan(raw: bytes | str) -> bool:
    found: list[str] = []
    json.loads(raw, parse_constant=found.append)
    return bool(found)


def _object_row(path: Path, number: int, value: object, size: int = 0) -> Row:
    if not isinstance(value, dict):
        return _bad(path, number, f"{_JSON_KINDS[type(value).__name__]}, and an object is needed", "Write {...}")
    return Row(number, cast("dict[str, Any]", value), size=size)


_JSON_KINDS = {"list": "a JSON list", "str": "a JSON text", "int": "a number", "float": "a number"} | {
    "bool": "true or false",
    "NoneType": "null",
}


def _bad(path: Path, number: int, problem: str, fix: str) -> Row:
    return Row(number, None, DataError(problem, where=f"{path.name}:{number}", fix=fix))


def _json(path: Path) -> Iterator[Row]:
    size = path.stat().st_size
    if size > _MOST_ARRAY_BYTES:
        raise DataError(
            f"a .json array of {size / 1e6:,.0f} MB would be read into memory whole",
            where=path.name,
            fix="Write one row per line, as .jsonl, which is streamed: jq -c '.[]' FILE",
        )
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
    except RecursionError as error:
        raise DataError(
            "not usable JSON: nested too deeply", where=path.name, fix="A .json file holds one array of rows"
        ) from error
    if isinstance(content, dict):
        values = cast("dict[str, object]", content).values()
        lists = [cast("list[object]", v) for v in values if isinstance(v, list)]
        content = lists[0] if len(lists) == 1 else cast("object", content)
    if not isinstance(content, list):
        raise DataError("a .json file must hold one array of rows", where=path.name)
    rows = cast("list[object]", content)
    mean = size // max(1, len(rows))
    not_finite = (b"NaN" in raw or b"Infinity" in raw) and _holds_nan(raw.decode("utf-8-sig"))
    for number, value in enumerate(rows, start=1):
        row = _object_row(path, number, value, mean)
        yield replace(row, not_finite=True) if not_finite and _has_nan(value) else row


def _has_nan(value: object) -> bool:
    """Whether a number in a JSON value is not finite."""
    pending = [value]
    while pending:
        value = pending.pop()
        if isinstance(value, float) and not math.isfinite(value):
            return True
        if isinstance(value, dict):
            pending += cast("dict[str, object]", value).values()
        elif isinstance(value, list):
            pending += cast("list[object]", value)
    return False


def _csv(path: Path) -> Iterator[Row]:
    csv.field_size_limit(MOST_ROW_BYTES)
    line = 1
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, strict=True)
            header = next(reader, list[str]())
            if repeated := [name for name in header if header.count(name) > 1]:
                raise DataError(f"two columns have the name '{repeated[0]}'", where=f"{path.name}:1", fix="Rename one")
            line = reader.line_num + 1
            for record in reader:
                if record and len(record) != len(header):
                    problem = f"{len(record)} fields, and the header has {len(header)}"
                    yield _bad(
                        path, line, f"not as many fields as the header has: {problem}", "Quote fields with commas"
                    )
                elif record:
                    yield Row(line, dict(zip(header, record, strict=True)), size=sum(map(len, record)))
                line = reader.line_num + 1
    except UnicodeDecodeError as error:
        raise DataError(
            "not UTF-8", where=f"{path.name}: after line {line - 1}", fix="Save the file as UTF-8"
        ) from error
    except csv.Error as error:
        fix = "Look for a quote that is not closed in the record that begins on this line"
        raise DataError(f"not CSV: {error}", where=f"{path.name}:{line}", fix=fix) from error


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
                yield Row(number, _without_nulls(value))
    except pyarrow.ArrowException as error:
        raise DataError(f"not a readable Parquet file: {error}", where=str(path)) from error


def _without_nulls(value: Any) -> Any:
    """A Parquet value without the nulls of its structs: a column pads each row with the keys that only others have."""
    if isinstance(value, dict):
        fields = cast("dict[str, Any]", value)
        return {k: _without_nulls(v) for k, v in fields.items() if v is not None}
    return [_without_nulls(v) for v in cast("list[Any]", value)] if isinstance(value, list) else value


_READERS: Mapping[str, Callable[[Path], Iterator[Row]]] = {
    ".jsonl": _jsonl,
    ".json": _json,
    ".csv": _csv,
    ".parquet": _parquet,
}
