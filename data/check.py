"""One reading of a training file, as a careful person would do it, and what is wrong with the file.

Rows are streamed: memory grows by about 300 bytes per row (sketches and hashes), not with the text.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar, Unpack

import numpy as np
from numpy.typing import NDArray

from ..core.errors import ConfigError, DataError
from ..core.files import short_digest
from ..models.chat import ChatRenderer, Conversation, Measured, RenderingNote, mask_view, words_of
from ..models.hyperparameters import require_within_context
from .benchmark_overlap import Benchmarks
from .columns import ColumnMap
from .examples import render_each
from .formats import ReadRow, read_row
from .near_duplicates import Sketches, similar_pairs
from .personal_data import personal_kinds
from .preference_check import PairOptions
from .row_files import Row, chunks_of
from .row_findings import DatasetReport, RenderedExample, RowFindings, TokenStatistics
from .shards import bytes_of, digest_of
from .text_checks import answer_problems, text_problems
from .whole_file_checks import SeenRow, WholeFile
from .words import words_in

_BATCH = 1024
_ROUND_TRIP_ROWS = 200
# Some tokenizers need seconds for a row that is longer.
_ROUND_TRIP_TOKENS = 2**16
_EXAMPLE_CHARACTERS = 1200
_SHOWN_SHARDS = 6
# After these notes of a renderer a text that does not come back from its tokens needs no other cause.
_CHANGED_ON_PURPOSE: frozenset[RenderingNote] = frozenset({"last_turn_only", "think_deleted", "rewritten_text"})

T = TypeVar("T")
Progress = Callable[[int, str], None]


class CheckOptions(PairOptions, total=False):
    """What `check_rows` takes besides the file."""

    val_file: Path | None


@dataclass(frozen=True, slots=True)
class CheckedRows:
    """What was found in a training file, and in which rows.

    Attributes:
        report: The counts, with the first lines of each kind.
        rows: For each kind of finding (its id) the numbers of all its rows (see `Row.number`), ascending.
    """

    report: DatasetReport
    rows: Mapping[str, NDArray[np.int64]]


def check_dataset(train_file: Path, **options: Unpack[CheckOptions]) -> DatasetReport:
    """Check every row of a supervised training file: the report of `check_rows`.

    Raises:
        DataError: If the file as a whole cannot be read; bad rows are findings, not errors.
    """
    return check_rows(train_file, **options).report


def check_rows(
    train_file: Path,
    *,
    renderer: ChatRenderer | None = None,
    max_seq_len: int | None = None,
    context: int | None = None,
    val_file: Path | None = None,
    benchmark_files: Sequence[Path] = (),
    columns: ColumnMap | None = None,
    progress: Progress | None = None,
) -> CheckedRows:
    """Check every row of a supervised training file.

    Args:
        train_file: The file, folder or pattern (see `row_files.read_rows`).
        renderer: The model's; without one no tokens are counted.
        max_seq_len: Tokens at which training will cut rows; without it they are cut at the context.
        context: Tokens that the model takes, where that is known.
        val_file: Held-out rows that must not be in the training file.
        benchmark_files: Test sets whose items must not be in the training file (see `benchmark_overlap`).
        columns: Which columns are what, in the training and the validation file.
        progress: Called with the rows read and what is being done, after each batch.

    Raises:
        DataError: If the file as a whole cannot be read; bad rows are findings, not errors.
    """
    began = time.monotonic()
    benchmarks = Benchmarks(benchmark_files) if benchmark_files else None
    check = _Check(renderer, max_seq_len or context, columns, benchmarks)
    try:
        require_within_context(max_seq_len, context)
    except ConfigError as error:
        check.findings.refuse_file("above_context", error)
    for prepared in _ahead(check.prepare, chunks_of(train_file, _BATCH, columns)):
        check.add(prepared)
        if progress is not None:
            progress(check.rows, "rows read")
    if progress is not None:
        progress(check.rows, "looking for near duplicates")
    check.note_file()
    near = check.near_duplicates()
    overlap = check.overlap(val_file) if val_file is not None else None
    findings = check.findings
    report = DatasetReport(
        file=str(train_file),
        sha256=digest_of(train_file),
        bytes=bytes_of(train_file),
        format=check.format,
        renderer=renderer.name if renderer else None,
        ok=check.usable > 0 and not findings.has_errors,
        rows=check.rows,
        usable_rows=check.usable,
        exact_duplicates=findings.count("exact_duplicate"),
        near_duplicates=near,
        overlap_with_val=overlap,
        benchmarks=benchmarks.overlaps() if benchmarks else [],
        tokens=check.token_statistics(),
        findings=findings.listed(),
        example=check.example,
        seconds=round(time.monotonic() - began, 2),
    )
    return CheckedRows(report, findings.rows())


def _ahead(prepare: Callable[[list[Row]], T], chunks: Iterator[list[Row]]) -> Iterator[T]:
    """Prepare each chunk in a thread while the one before it is used: the tokenizer works without the GIL."""
    with ThreadPoolExecutor(1) as pool:
        pending: Future[T] | None = None
        for chunk in chunks:
            following = pool.submit(prepare, chunk)
            if pending is not None:
                yield pending.result()
            pending = following
        if pending is not None:
            yield pending.result()


@dataclass(slots=True)
class _Prepared:
    """A row after reading and rendering: its conversation and perhaps the tokens, or what is wrong with it."""

    line: int
    content: ReadRow | DataError
    not_finite: bool
    measured: Measured | None = None
    place: str = ""


class _Check:
    """What the rows read so far have shown."""

    def __init__(
        self,
        renderer: ChatRenderer | None,
        max_seq_len: int | None,
        columns: ColumnMap | None,
        benchmarks: Benchmarks | None,
    ) -> None:
        self._columns = columns
        self._benchmarks = benchmarks
        self._renderer = renderer
        self._max_seq_len = max_seq_len
        self._seen: dict[bytes, int] = {}
        self._sketches = Sketches()
        self._whole = WholeFile()
        self._sketched_lines: list[int] = []
        self._lengths: list[NDArray[np.int32]] = []
        self._loss = self._loss_cut = self._truncated = 0
        self._shards: dict[str, int] = {}
        self.findings = RowFindings()
        self.format: str | None = None
        self.example: RenderedExample | None = None
        self.rows = self.usable = 0

    def prepare(self, chunk: Sequence[Row]) -> list[_Prepared]:
        """Parse and render some rows. Reads no results of the check, so it can run ahead in a thread."""
        rows = [_Prepared(row.number, row.parsed(read_row), row.not_finite, place=row.place) for row in chunk]
        if self._renderer is not None:
            good = [(row, row.content.conversation) for row in rows if isinstance(row.content, ReadRow)]
            rendered = render_each(self._renderer.measure_many, [conversation for _, conversation in good])
            for (row, _), outcome in zip(good, rendered, strict=True):
                if isinstance(outcome, DataError):
                    row.content = outcome
                else:
                    row.measured = outcome
        return rows

    def add(self, rows: Sequence[_Prepared]) -> None:
        """Take in prepared rows."""
        self.rows += len(rows)
        for row in rows:
            if row.place:
                self._shards.setdefault(row.place.rpartition(":")[0], row.line)
        seen: list[SeenRow] = []
        is_new: list[bool] = []
        noted: list[tuple[_Prepared, ReadRow]] = []
        for row in rows:
            if row.not_finite:
                self.findings.note("not_finite", row.line)
            if isinstance(row.content, DataError):
                self.findings.bad_row(row.line, row.content, row.place)
                continue
            self.usable += 1
            self._note_format(row.line, row.content.form)
            conversation = row.content.conversation
            if row.measured is not None:
                self._note_loss(row.line, row.measured)
                if row.measured.tokens <= _ROUND_TRIP_TOKENS:
                    self._look_closely(row.line, conversation)
            is_new.append(self._is_new(row.line, conversation))
            noted.append((row, row.content))
            seen.append(_seen(row, conversation))
        words = words_in([row.text for row in seen])
        for (row, content), text, longest in zip(noted, seen, words.longest.tolist(), strict=True):
            problems = [*text_problems(text.text), *answer_problems(text.chat.messages)]
            problems += personal_kinds(text.text, longest)
            self.findings.note_all(row.line, content.notes, row.measured.notes if row.measured else (), problems)
        for shared in self._benchmarks.shared(words) if self._benchmarks is not None else ():
            self.findings.note_shared(seen[shared.row].line, shared)
        self._whole.add(seen, words)
        self._lengths.append(np.array([row.tokens for row in seen], dtype=np.int32))
        self._sketches.add(words, np.array(is_new, dtype=np.bool_))
        self._sketched_lines += [row.line for row, new in zip(seen, is_new, strict=True) if new]

    def _note_format(self, line: int, form: str) -> None:
        self.format = self.format or form
        if form != self.format:
            self.findings.note("mixed_formats", line)

    def _is_new(self, line: int, conversation: Conversation) -> bool:
        first = self._seen.setdefault(_digest(conversation), line)
        if first != line:
            self.findings.note("exact_duplicate", line, f"line {line} repeats line {first}")
        return first == line

    def _note_loss(self, line: int, row: Measured) -> None:
        loss = row.trained
        self._loss += loss
        if self._max_seq_len is not None and row.tokens > self._max_seq_len:
            self._truncated += 1
            left = row.trained_within(self._max_seq_len)
            self._loss_cut += loss - left
            self.findings.note("nothing_left" if left == 0 else "truncated", line)

    def _look_closely(self, line: int, conversation: Conversation) -> None:
        renderer = self._renderer
        if renderer is None or self.usable > _ROUND_TRIP_ROWS:
            return
        (row,) = renderer.render_many([conversation])
        text = renderer.text_of(row.tokens)
        changed = any(message["content"].strip() not in text for message in conversation.messages)
        if changed and not row.notes & _CHANGED_ON_PURPOSE:
            self.findings.note("not_round_trip", line)
        if self.example is None:
            view = mask_view(renderer, row)[:_EXAMPLE_CHARACTERS]
            self.example = RenderedExample(line=line, text=view, tokens=len(row.tokens), loss_tokens=sum(row.weights))

    def note_file(self) -> None:
        """Say what only the whole file shows, and how the rows of several files are numbered."""
        self._whole.note(self.findings)
        if self._shards:
            firsts = [f"{name} from {line:,}" for name, line in self._shards.items()]
            more = f" and {len(firsts) - _SHOWN_SHARDS:,} more files" if len(firsts) > _SHOWN_SHARDS else ""
            self.findings.note_numbering(f"{', '.join(firsts[:_SHOWN_SHARDS])}{more}")

    def near_duplicates(self) -> int:
        """Rows that nearly repeat an earlier one (exact repeats are counted apart)."""
        pairs = similar_pairs(self._sketches.rows())
        for pair in pairs:
            first, second = self._sketched_lines[pair.first], self._sketched_lines[pair.second]
            self.findings.note("near_duplicate", second, f"line {second} is {pair.similarity:.0%} like line {first}")
        return len(pairs)

    def overlap(self, val_file: Path) -> int:
        """Training rows that are, exactly or nearly, in the validation file too."""
        held_out = Sketches()
        lines: list[int] = []
        exact: set[int] = set()
        for chunk in chunks_of(val_file, _BATCH, self._columns):
            texts: list[str] = []
            for row in chunk:
                content = row.parsed(read_row)
                if isinstance(content, DataError):
                    continue  # it is the training file that is judged here
                if (line := self._seen.get(_digest(content.conversation))) is not None:
                    exact.add(line)
                    self.findings.note("in_val", line, f"line {line} is line {row.number} of {val_file.name}")
                texts.append(words_of(content.conversation.messages))
                lines.append(row.number)
            held_out.add(words_in(texts))
        ours = self._sketches.rows()
        near: set[int] = set()
        for pair in similar_pairs(np.concatenate([ours, held_out.rows()]), split=len(ours)):
            line, other = self._sketched_lines[pair.first], lines[pair.second - len(ours)]
            if line not in exact:
                near.add(line)
                note = f"line {line} is {pair.similarity:.0%} like line {other} of {val_file.name}"
                self.findings.note("in_val", line, note)
        return len(exact | near)

    def token_statistics(self) -> TokenStatistics | None:
        """Counts and quantiles, or None when there was no tokenizer or no usable row."""
        lengths = np.concatenate(self._lengths) if self._lengths else np.zeros(0, np.int32)
        if self._renderer is None or not len(lengths):
            return None
        p50, p90, p99 = (int(q) for q in np.quantile(lengths, [0.5, 0.9, 0.99], method="inverted_cdf"))
        return TokenStatistics(
            total=int(lengths.sum(dtype=np.int64)),
            loss=self._loss,
            min=int(lengths.min()),
            p50=p50,
            p90=p90,
            p99=p99,
            max=int(lengths.max()),
            mean=round(float(lengths.mean()), 1),
            histogram=_histogram(lengths),
            max_seq_len=self._max_seq_len,
            truncated=self._truncated,
            loss_cut=self._loss_cut,
        )


def _seen(row: _Prepared, conversation: Conversation) -> SeenRow:
    text = words_of(conversation.messages)
    if row.measured is None:
        return SeenRow(row.line, conversation, text)
    return SeenRow(row.line, conversation, text, row.measured.tokens, row.measured.trained)


def _histogram(lengths: NDArray[np.int32]) -> dict[str, int]:
    bounds = np.ceil(np.log2(np.maximum(lengths, 1))).astype(int)
    values, counts = np.unique(bounds, return_counts=True)
    return {str(2 ** int(v)): int(c) for v, c in zip(values, counts, strict=True)}


def _digest(conversation: Conversation) -> bytes:
    """Equal for conversations that are the same in all that a model may see, and in what of them is trained."""
    messages = conversation.messages
    said = "\x1e".join(f"{m['role']}\x1f{m['content']}" for m in messages)
    if conversation.tools or any(len(message) > 2 for message in messages):
        said += "\x1d" + json.dumps([list(conversation.tools), list(messages)], sort_keys=True)
    return short_digest(said)
