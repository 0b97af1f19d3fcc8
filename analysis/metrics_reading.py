"""Reading metrics as they were logged: our runs and tinker-cookbook (JSON lines), TRL (trainer_state.json), CSV.

A file is read in blocks and only the quantities of `metric_names` are kept, so a log of a million lines costs a second
or two and little memory. Columns are kept under their known names. A last line still being written, nan, broken lines,
numbers written as text and steps out of order are tolerated.
"""
# pyright: basic
# reason: pyarrow has no types

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..core.errors import DataError
from ..core.files import storage_errors
from .metric_names import RUN_NAMES, STEP_NAMES, known_name

_BLOCK = 4 << 20
_PARSE_BLOCK = 1 << 20
_LONGEST_LINE = 64 << 20
_LARGEST_STATE = 512 << 20
# Texts that stand for no value.
_EMPTY = frozenset({"", "null", "none", "na", "n/a", "-"})
# JSON has no nan, but Python writes it, and arrow refuses it: this number stands in for it.
_STAND_IN = b"3.2e38"
_HUGE = 3e38
_NOT_NUMBERS = {b"NaN": (b": NaN", b":NaN"), b"Infinity": (b": Infinity", b":Infinity", b": -Infinity", b":-Infinity")}


@dataclass(slots=True)
class RawMetrics:
    """Columns as logged. Rows count from 0 in the order of the file; a value that is not a number is kept as nan.

    Attributes:
        path: The file.
        columns: For each name the rows that have it, and its values (all but counts in single precision).
        lines: For each row its line in the file (JSON lines and CSV), or its place in the history.
        owners: For each row the run it says it belongs to; empty where no row says so.
        notes: What was odd about the file, for people.
        facts: What the file says about the run besides its metrics.
    """

    path: Path
    columns: dict[str, tuple[np.ndarray, np.ndarray]] = field(default_factory=dict)
    lines: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))
    owners: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)


def _precision(name: str) -> Any:
    """Half the memory where seven digits are enough; counts may have more."""
    return np.float64 if name in STEP_NAMES or "tokens" in name else np.float32


def number_in(text: str, decimal: str = ".") -> tuple[float | None, float | None]:
    """A number written as text, and the total where the text is ``10/1000``; None where there is none.

    An infinity is nan here: both only say that there is no number.
    """
    text = text.strip()
    part, slash, total = text.partition("/")
    if slash:
        return number_in(part)[0], number_in(total)[0]
    if decimal == ",":
        text = text.replace(",", ".")
    try:
        value = float(text)
    except ValueError:
        return None, None
    return (value if abs(value) < _HUGE else math.nan), None


class _Columns:
    """Columns being collected, block by block."""

    planned: float | None = None

    def __init__(self, extra: Iterable[str]) -> None:
        self.extra = frozenset(extra)
        self.parts: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {}
        self.lines: list[np.ndarray] = []
        self.owners: list[str] = []
        self.rows = 0
        self.types: dict[str, Any] = {}
        self.seen: dict[str, str] = {}  # columns and the names they are kept under; empty: not kept
        self.charts: dict[str, None] = {}
        self.texts: dict[str, tuple[int, str]] = {}  # for each name how many values are no number, and the first

    def kept_as(self, column: str) -> str:
        """The name a column is kept under; empty where it is not kept."""
        if column not in self.seen:
            name, run = (column, "") if column in self.extra else known_name(column)
            if run and name:
                self.charts[run] = None
            # Of two columns with one known name the first is kept: of the charts of several runs the first run's.
            if name != column and name in self.seen.values():
                name = ""
            self.seen[column] = name
        return self.seen[column]

    def learn(self, records: list[tuple[int, Mapping[str, Any]]]) -> None:
        """Remember the type of each name, for arrow."""
        import pyarrow as pa

        for _, record in records:
            for name in record.keys() - self.types.keys():
                value = record[name]
                plain = value is None or (isinstance(value, int | float) and not isinstance(value, bool))
                try:
                    self.types[name] = pa.float64() if plain else pa.infer_type([value])
                except (pa.ArrowInvalid, pa.ArrowTypeError):
                    self.types[name] = pa.string()

    def add_records(self, records: list[tuple[int, Mapping[str, Any]]]) -> None:
        """Rows given as (line, values)."""
        by_name: dict[str, tuple[list[int], list[float]]] = {}
        for offset, (_, record) in enumerate(records):
            for column, value in record.items():
                if (name := self.kept_as(column)) and (number := self._number(name, value)) is not None:
                    rows, values = by_name.setdefault(name, ([], []))
                    rows.append(self.rows + offset)
                    values.append(number)
        for name, (rows, values) in by_name.items():
            self.parts.setdefault(name, []).append((np.array(rows, np.uint32), np.array(values, _precision(name))))
        if self.owners or any(name in r for _, r in records[:1] for name in RUN_NAMES):
            self.owners += [str(next((r[n] for n in RUN_NAMES if n in r), "")) for _, r in records]
        self._advance(np.array([line for line, _ in records], np.int64))

    def _number(self, name: str, value: Any) -> float | None:
        if isinstance(value, str) and name not in RUN_NAMES:
            return self._from_text(name, value)
        if isinstance(value, bool) or not isinstance(value, int | float):
            return None
        return float(value) if abs(value) < _HUGE else math.nan

    def _from_text(self, name: str, text: str, decimal: str = ".") -> float | None:
        number, total = number_in(text, decimal)
        if total is not None:
            self.planned = total
        if number is None and text.strip().lower() not in _EMPTY:
            count, first = self.texts.get(name, (0, text))
            self.texts[name] = (count + 1, first)
        return number

    def add_table(self, table: Any, lines: np.ndarray, *, decimal: str = ".") -> None:
        """Rows given as an arrow table."""
        import pyarrow as pa

        for column_name, column in zip(table.column_names, table.columns, strict=True):
            name = self.kept_as(column_name)
            if column_name in RUN_NAMES and not (self.owners and len(self.owners) != self.rows):
                self.owners += [str(v) for v in column.to_pylist()]
            if not name or column.null_count == len(column):
                continue
            if pa.types.is_string(column.type) and name not in RUN_NAMES:
                column = self._numbers(name, column, decimal)
            if not pa.types.is_floating(column.type) or column.null_count == len(column):
                continue
            if column.null_count:
                valid = np.asarray(column.is_valid())
                numbers = np.asarray(column.fill_null(0.0))[valid].astype(_precision(name))
                rows = (np.flatnonzero(valid) + self.rows).astype(np.uint32)
            else:
                numbers = np.asarray(column).astype(_precision(name))
                rows = np.arange(self.rows, self.rows + len(numbers), dtype=np.uint32)
            numbers[~(np.abs(numbers) < _HUGE)] = np.nan
            self.parts.setdefault(name, []).append((rows, numbers))
        self._advance(lines)

    def _numbers(self, name: str, column: Any, decimal: str) -> Any:
        """A column of texts as numbers; what is no number is null."""
        import pyarrow as pa

        texts = column.to_pylist()
        return pa.array(
            [None if text is None else self._from_text(name, text, decimal) for text in texts], pa.float64()
        )

    def _advance(self, lines: np.ndarray) -> None:
        self.lines.append(lines)
        self.rows += len(lines)

    def into(self, raw: RawMetrics) -> RawMetrics:
        """Put everything collected into ``raw``."""
        for name in list(self.parts):
            parts = self.parts.pop(name)  # a column at a time: the parts of the next are still needed
            raw.columns[name] = (np.concatenate([r for r, _ in parts]), np.concatenate([v for _, v in parts]))
        raw.lines = np.concatenate(self.lines) if self.lines else raw.lines
        raw.owners = self.owners if len(self.owners) == self.rows else []
        if self.planned is not None:
            raw.facts.setdefault("max_steps", int(self.planned))
        raw.notes += [
            f"{name}: {count} text{'s that are' if count > 1 else ' that is'} no number ({first[:30]!r}), left out"
            for name, (count, first) in self.texts.items()
        ]
        return raw


def read_metrics(path: Path, *, extra: Iterable[str] = ()) -> RawMetrics:
    """Read one file of metrics by its ending.

    Args:
        path: A ``.jsonl``, ``.json`` (a trainer_state.json) or ``.csv`` file.
        extra: Names to keep besides the known ones.

    Raises:
        DataError: If the file holds no metrics that can be read.
        StorageError: If it cannot be opened.
    """
    readers = {".jsonl": _read_jsonl, ".json": _read_trainer_state, ".csv": _read_csv}
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise DataError(f"cannot read '{path.suffix}' files", where=str(path), fix="Give .jsonl, .json or .csv")
    raw, columns = RawMetrics(path), _Columns(extra)
    with storage_errors(path):
        reader(path, raw, columns)
    columns.into(raw)
    if len(columns.charts) > 1:
        raw.notes.append(f"curves of {len(columns.charts)} runs: only '{next(iter(columns.charts))}' is read")
    if not raw.columns.keys() - set(STEP_NAMES):
        seen = ", ".join(list(columns.seen)[:12])
        problem = (
            f"no known metric in this file, which has {seen}" if seen else "the file is empty: no step is logged yet"
        )
        if columns.texts:
            problem = "; ".join(
                f"the values of {name} are text ({first[:30]!r})" for name, (_, first) in columns.texts.items()
            )
        raise DataError(
            problem,
            where=str(path),
            fix="It needs a step and a loss, margin or reward; docs/analysis.md lists the names that are known",
        )
    return raw


def _read_jsonl(path: Path, raw: RawMetrics, columns: _Columns) -> None:
    broken: list[int] = []
    line = 1
    for block, complete in _blocks(path):
        if line == 1:
            # The first lines teach the names and types of the rest.
            head = block.split(b"\n", 64)[:64]
            columns.learn([(0, record) for text in head if (record := _parsed_line(text)) is not None])
        if not complete and block.strip() and not _parsed_line(block.strip()):
            raw.notes.append(f"line {line} is still being written: left out")
            break
        line = _add_block(block, line, columns, broken)
    if not broken:
        return
    if len(broken) > columns.rows:
        if columns.rows == 0 and path.stat().st_size <= _LARGEST_STATE and _is_json(path):
            raw.notes.clear()
            _read_trainer_state(path, raw, columns)
            return
        raise DataError("this is not a file of JSON lines", where=f"{path}:{broken[0]}", fix="One object per line")
    lines = ", ".join(str(n) for n in broken[:3]) + (", …" if len(broken) > 3 else "")
    raw.notes.append(f"{len(broken)} broken lines left out (line {lines})")


def _is_json(path: Path) -> bool:
    """Whether the file is one JSON value after all: an array of records, or a trainer's state, printed over lines."""
    try:
        json.loads(path.read_bytes())
    except (ValueError, RecursionError):
        return False
    return True


def _blocks(path: Path) -> Iterator[tuple[bytes, bool]]:
    """The file in blocks that end with a line; what follows the last newline comes last, marked as not complete."""
    rest = b""
    with path.open("rb") as file:
        while chunk := file.read(_BLOCK):
            cut = chunk.rfind(b"\n") + 1
            if cut:
                yield rest + chunk[:cut], True
                rest = chunk[cut:]
            else:
                rest += chunk
            if len(rest) > _LONGEST_LINE:
                raise DataError("a line is longer than 64 MB", where=str(path), fix="One JSON object per line")
    if rest:
        yield rest, False


def _add_block(block: bytes, line: int, columns: _Columns, broken: list[int]) -> int:
    """Parse one block; returns the number of the line after it."""
    count = block.count(b"\n") + (not block.endswith(b"\n"))
    table = _arrow_table(block, columns.types) if columns.types else None
    if table is not None and table.num_rows == count:
        columns.add_table(table, np.arange(line, line + count, dtype=np.int64))
        return line + count
    records: list[tuple[int, Mapping[str, Any]]] = []
    for number, text in enumerate(block.split(b"\n"), line):
        if not text.strip():
            continue
        record = _parsed_line(text)
        if record is None:
            broken.append(number)
        else:
            records.append((number, record))
    columns.learn(records)
    columns.add_records(records)
    return line + count


def _arrow_table(block: bytes, types: Mapping[str, Any]) -> Any:
    """The block through arrow's parser, or None where it holds more than objects of the known types."""
    import pyarrow as pa
    from pyarrow import json as arrow_json

    for word, texts in _NOT_NUMBERS.items():
        for text in texts if word in block else ():
            block = block.replace(text, b": " + _STAND_IN)
    # Names not seen before are an error here: such a block is read line by line, which learns them.
    parse = arrow_json.ParseOptions(explicit_schema=pa.schema(list(types.items())), unexpected_field_behavior="error")
    options = arrow_json.ReadOptions(block_size=_PARSE_BLOCK)
    try:
        return arrow_json.read_json(io.BytesIO(block), read_options=options, parse_options=parse)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, pa.ArrowKeyError):
        return None


def _parsed_line(text: bytes) -> dict[str, Any] | None:
    try:
        record = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return record if isinstance(record, dict) else None


def _read_trainer_state(path: Path, raw: RawMetrics, columns: _Columns) -> None:
    if path.stat().st_size > _LARGEST_STATE:
        raise DataError("larger than 512 MB", where=str(path), fix="Export the metrics as CSV or JSON lines")
    try:
        state: Any = json.loads(path.read_bytes())
    except ValueError as error:
        raise DataError(
            f"not valid JSON ({error})", where=str(path), fix="It may be half-written: take an earlier checkpoint's"
        ) from error
    history = state.get("log_history") if isinstance(state, dict) else state
    if not isinstance(history, list):
        raise DataError("no log_history in it", where=str(path), fix="Give a trainer_state.json of transformers or TRL")
    # The closing record of a run holds its averages, not values of its last step.
    rows: list[tuple[int, Mapping[str, Any]]] = [
        (i, r) for i, r in enumerate(history, 1) if isinstance(r, dict) and "train_runtime" not in r
    ]
    columns.add_records(rows)
    if isinstance(state, dict):
        raw.facts = {k: state[k] for k in ("max_steps", "global_step", "num_train_epochs", "best_metric") if k in state}


@dataclass(frozen=True, slots=True)
class _Dialect:
    """How a table is written: its columns, what parts them, and the lines before the first row."""

    columns: tuple[str, ...]
    delimiter: str
    encoding: str
    lines: int


def _dialect(path: Path, columns: _Columns) -> _Dialect:
    """What parts the columns: of the usual marks the one that yields most known names."""
    with path.open("rb") as file:
        start = file.read(1 << 16)
    encoding = "utf-16" if start[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8"
    # Blank lines, comments and Excel's line "sep=;" come before the names in some files.
    before = 0
    for line in (lines := start.decode("utf-8-sig" if encoding == "utf-8" else encoding, "replace").splitlines()):
        if line.strip() and not line.startswith(("#", "sep=")):
            break
        before += 1
    head = lines[before] if before < len(lines) else ""
    best: tuple[int, int, list[str], str] = (-1, 0, [], ",")
    for delimiter in (",", ";", "\t", "|"):
        names = [name.strip() for name in next(csv.reader([head], delimiter=delimiter, skipinitialspace=True), [])]
        known = sum(name in columns.extra or bool(known_name(name)[0]) for name in names)
        if (known, len(names)) > best[:2]:
            best = (known, len(names), names, delimiter)
    names = best[2]
    if names and all(number_in(name, ",")[0] is not None for name in names if name):
        raise DataError(
            "the first line holds numbers, not the names of the columns",
            where=f"{path}:{before + 1}",
            fix="Put a line of names first, such as step,loss",
        )
    return _Dialect(tuple(names), best[3], encoding, before + 1)


def _read_csv(path: Path, raw: RawMetrics, columns: _Columns) -> None:
    import pyarrow as pa

    dialect = _dialect(path, columns)
    # Columns are told apart by their place: two may have one name.
    places = {f"{i}": name for i, name in enumerate(dialect.columns)}
    wanted = [i for i, name in places.items() if columns.kept_as(name)]
    runs = [i for i, name in places.items() if name in RUN_NAMES][:1]
    skipped: list[int] = []
    try:
        # Almost always all are numbers with a point; a table with others is read as text.
        table = _csv_table(path, dialect, wanted, runs, pa.float64(), skipped)
    except pa.ArrowInvalid:
        skipped.clear()
        try:
            table = _csv_table(path, dialect, wanted, runs, pa.string(), skipped)
        except (pa.ArrowInvalid, pa.ArrowKeyError) as error:
            message = str(error).splitlines()[0]
            raise DataError(f"cannot be read as CSV ({message})", where=str(path), fix="One row a line") from error
    table = table.rename_columns([places[i] for i in table.column_names])
    first = dialect.lines + 1
    decimal = "," if dialect.delimiter != "," else "."
    columns.add_table(table, np.arange(first, first + table.num_rows, dtype=np.int64), decimal=decimal)
    if skipped:
        raw.notes.append(f"{len(skipped)} rows with another number of cells left out")


def _csv_table(path: Path, dialect: _Dialect, wanted: list[str], runs: list[str], kind: Any, skipped: list[int]) -> Any:
    from pyarrow import csv as arrow_csv

    def skip(row: Any) -> str:
        skipped.append(row.number or 0)
        return "skip"

    return arrow_csv.read_csv(
        path,
        read_options=arrow_csv.ReadOptions(
            column_names=[f"{i}" for i in range(len(dialect.columns))],
            skip_rows=dialect.lines,
            encoding=dialect.encoding,
        ),
        parse_options=arrow_csv.ParseOptions(delimiter=dialect.delimiter, invalid_row_handler=skip),
        convert_options=arrow_csv.ConvertOptions(
            include_columns=wanted + [i for i in runs if i not in wanted],
            column_types=dict.fromkeys(wanted, kind),
            null_values=["", "null", "None", "NA", "N/A"],
            strings_can_be_null=True,
            quoted_strings_can_be_null=True,
        ),
    )
