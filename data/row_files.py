"""Reading rows from the files people have, one at a time, each with its place for an error message."""

from __future__ import annotations

import codecs
import csv
import importlib
import io
import itertools
import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO, TextIO, TypeVar, cast

from ..core.errors import DataError
from ..core.extras import not_installed
from ..core.files import storage_errors
from .columns import ColumnMap, RowMapper
from .shards import hub_facts, kind_of_file, opened, shards

T = TypeVar("T")
_TABLE_BATCH = 1024
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
        number: Its line (.jsonl, .csv) or position (others), from 1; of several files, its position in all of them.
        value: Its content, or None when it cannot be read.
        problem: Why it cannot be read, or None.
        size: Its bytes in the file; 0 where they are not known.
        not_finite: Whether it holds NaN or Infinity, which are not JSON and which Python writes all the same.
        place: The file and line of a row of several files, or nothing.
    """

    number: int
    value: Mapping[str, Any] | None
    problem: DataError | None = None
    size: int = 0
    not_finite: bool = False
    place: str = ""

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
            return self.placed(error)

    def placed(self, outcome: T | DataError) -> T | DataError:
        """The same outcome; an error names the file of a row of several."""
        if isinstance(outcome, DataError) and self.place:
            return DataError(outcome.problem, where=self.place, fix=outcome.fix)
        return outcome


def read_rows(path: Path, columns: ColumnMap | None = None) -> Iterator[Row]:
    """Yield every row, readable or not, in order, of a file, or of the files of a folder or pattern (see `shards`).

    Files are .jsonl, .json, .csv, .tsv, .parquet, .arrow or .feather, text ones also compressed. Rows are streamed,
    except for a .json array, which is read into memory at once.

    Args:
        path: The file, folder or pattern.
        columns: Which columns are what (see `columns.RowMapper`); None takes each row as it is.

    Raises:
        DataError: If a file as a whole cannot be used: missing, empty, cut, of an unknown kind.
        StorageError: If the system refuses to read it.
    """
    files = shards(path)
    mapper = RowMapper(columns) if columns else None
    number, several = 0, files != (path,)
    for file in files:
        for row in _rows_of(file):
            number += 1
            if several:
                row = replace(row, number=number, place=f"{file.name}:{row.number}")
            yield row if mapper is None else _mapped(row, mapper)
    if number == 0:
        raise DataError("the file has no rows", where=str(path))


def _mapped(row: Row, mapper: RowMapper) -> Row:
    if row.value is None:
        return row
    try:
        return replace(row, value=mapper(row.value))
    except DataError as error:
        return replace(row, value=None, problem=error)


def _rows_of(path: Path) -> Iterator[Row]:
    if not path.exists():
        hub = hub_facts(path.parent)
        fix = f"It left the cache of the hub: check_dataset of {hub['reference']} fetches it again" if hub else ""
        raise DataError("no such file", where=str(path), fix=fix or "Check the path")
    if not path.is_file():  # a pipe would wait for ever, a device never end
        raise DataError("this is a pipe or a device; a data file is needed", where=str(path))
    reader = _READERS.get(kind_of_file(path))
    if reader is None:
        raise DataError(
            f"files of kind '{path.suffix or 'no extension'}' are not read here",
            where=str(path),
            fix=f"Use one of {', '.join(_READERS)}",
        )
    with storage_errors(path):
        if path.stat().st_size == 0:
            raise DataError("the file is empty", where=str(path))
        yield from reader(path)


def at_line(path: Path, number: int, error: DataError) -> DataError:
    """The same error with its file and line, unless it names them."""
    return DataError(error.problem, where=error.where or f"{path.name}:{number}", fix=error.fix)


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


def none_usable(path: Path, problems: Sequence[DataError], rows: int) -> DataError:
    """What to say of a file of so many rows of which not one can be used."""
    if not problems:
        return DataError("no row can be used", where=str(path))
    first = problems[0]
    return (
        first
        if rows == 1
        else DataError(
            f"not one of {rows:,} rows can be used, the first: {first.problem}", where=first.where, fix=first.fix
        )
    )


def chunks_of(path: Path, rows: int, columns: ColumnMap | None = None) -> Iterator[list[Row]]:
    """The rows of a file in chunks of so many, and of not much more than `_CHUNK_BYTES`.

    Raises:
        DataError: As `read_rows`.
    """
    chunk: list[Row] = []
    size = 0
    for row in read_rows(path, columns):
        chunk.append(row)
        size += row.size
        if len(chunk) >= rows or size >= _CHUNK_BYTES:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk


def _jsonl(path: Path) -> Iterator[Row]:
    with opened(path) as file:
        _require_lines(path, file.read(_HEAD_BYTES))
    with opened(path) as file:
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
    if head.startswith((b"PAR1", b"ARROW1")):
        raise DataError("the file is Parquet or Arrow, not JSON lines", where=path.name, fix="Rename it")
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


def looks_like_lines(path: Path) -> bool:
    """Whether a file called .json holds one object per line, as many on the hub do."""
    with opened(path) as file:
        line = file.readline(MOST_ROW_BYTES).removeprefix(codecs.BOM_UTF8)
        more = bool(file.readline(_HEAD_BYTES).strip())
    if not more or not line.startswith(b"{"):
        return False
    try:
        json.loads(line)
    except (ValueError, RecursionError):
        return False
    return True


def _rest_of_line(file: BinaryIO) -> int:
    """Read to the end of the line without keeping it; its bytes."""
    size = 0
    while part := file.readline(_SKIPPED_BYTES):
        size += len(part)
        if part.endswith(b"\n"):
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
        cut = "" if raw.endswith(b"\n") else "; the file ends within this line, so it may be cut"
        return _bad(path, number, f"not JSON: {error}{cut}", "Each line must be one complete JSON object")
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
    with opened(path) as file:
        raw = file.read(_MOST_ARRAY_BYTES + 1)
    if len(raw) > _MOST_ARRAY_BYTES:
        raise DataError(
            f"a .json array of more than {_MOST_ARRAY_BYTES / 1e6:,.0f} MB would be read into memory whole",
            where=path.name,
            fix="Write one row per line, as .jsonl, which is streamed: jq -c '.[]' FILE",
        )
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
    mean = len(raw) // max(1, len(rows))
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
        with opened(path) as raw, io.TextIOWrapper(raw, encoding="utf-8-sig", newline="") as file:
            lines = _bounded_lines(path, file)
            first = next(lines, "")
            reader = csv.reader(itertools.chain([first], lines), delimiter=delimiter(first), strict=True)
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


def _bounded_lines(path: Path, file: TextIO) -> Iterator[str]:
    """The lines of a text file, none of them longer than a row may be."""
    number = 0
    while line := file.readline(MOST_ROW_BYTES + 1):
        number += 1
        if len(line) > MOST_ROW_BYTES:
            raise DataError(
                f"a line of more than {MOST_ROW_BYTES // 2**20} MiB", where=f"{path.name}:{number}", fix="Split it"
            )
        yield line


def delimiter(header: str) -> str:
    """What stands between the fields: spreadsheets write semicolons where the comma is the decimal sign."""
    return "," if "," in header else next((mark for mark in ";\t" if mark in header), ",")


def _table(path: Path) -> Iterator[Row]:
    try:
        pyarrow: Any = importlib.import_module("pyarrow")
        parquet: Any = importlib.import_module("pyarrow.parquet")
    except ImportError as error:
        raise not_installed(["pyarrow"], by=f"reading {path.suffix}") from error
    is_parquet = path.suffix.lower() == ".parquet"
    try:
        batches = parquet.ParquetFile(path).iter_batches(_TABLE_BATCH) if is_parquet else _arrow_batches(path, pyarrow)
        number = 0
        for batch in batches:
            for value in batch.to_pylist():
                number += 1
                yield Row(number, _without_nulls(value))
    except (pyarrow.ArrowException, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        kind = "Parquet" if is_parquet else "Arrow"
        raise DataError(f"not a readable {kind} file, or one that was cut: {error}", where=str(path)) from error


def _arrow_batches(path: Path, pyarrow: Any) -> Iterator[Any]:
    """The batches of an Arrow file in either of its formats, in slices: a batch may hold the whole file."""
    ipc: Any = importlib.import_module("pyarrow.ipc")
    with path.open("rb") as file:
        head = file.read(6)
        mark = b"\xff" * 4 if head.startswith(b"\xff" * 4) else b""  # before version 0.15 there was none
        file.seek(max(0, path.stat().st_size - 8))
        ended = file.read().endswith(mark + bytes(4))
    if head.startswith(b"FEA1"):
        raise DataError("Feather version 1 is not read", where=path.name, fix="Write it as Parquet or Feather 2")
    with pyarrow.memory_map(str(path)) as source:
        if head == b"ARROW1":
            reader = ipc.open_file(source)
            batches = (reader.get_batch(i) for i in range(reader.num_record_batches))
        elif ended:
            batches = ipc.open_stream(source)
        else:  # a stream that is cut between two batches reads like a complete one
            raise DataError("not a readable Arrow file, or one that was cut: it has no end", where=path.name)
        for batch in batches:
            for start in range(0, batch.num_rows, _TABLE_BATCH):
                yield batch.slice(start, _TABLE_BATCH)


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
    ".tsv": _csv,
    ".parquet": _table,
    ".arrow": _table,
    ".feather": _table,
}
