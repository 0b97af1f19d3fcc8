"""Reading a whole training file once, as a careful person would, and saying what is wrong with it.

Streams: memory grows by about 300 bytes a row (sketches and hashes), not with the text. Heavy: imports numpy.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from ..core.errors import DataError
from ..core.files import sha256_of
from ..models.chat import ChatRenderer, Message, Rendered, mask_view
from .formats import SftFormat, detect_format, to_messages
from .near_duplicates import Sketches, similar_pairs
from .row_files import Row, read_rows
from .row_findings import DatasetReport, Findings, RenderedExample, TokenStatistics, text_problems

_BATCH = 1024
_ROUND_TRIP_ROWS = 200
_EXAMPLE_CHARACTERS = 1200

T = TypeVar("T")
Progress = Callable[[int, str], None]


class CheckCancelledError(Exception):
    """The caller no longer wants the answer."""


def check_dataset(
    train_file: Path,
    *,
    renderer: ChatRenderer | None = None,
    max_seq_len: int | None = None,
    val_file: Path | None = None,
    progress: Progress | None = None,
    cancelled: Callable[[], bool] | None = None,
) -> DatasetReport:
    """Check every row of a supervised training file.

    Args:
        train_file: .jsonl, .json, .csv or .parquet.
        renderer: The model's; without one no tokens are counted.
        max_seq_len: Tokens at which training will cut rows.
        val_file: Held-out rows that must not be in the training file.
        progress: Told (rows read, what is being done) after each batch.
        cancelled: Asked after each batch.

    Raises:
        DataError: If the file as a whole cannot be read; bad rows are findings, not errors.
        CheckCancelledError: If ``cancelled`` said so.
    """
    began = time.monotonic()
    check = _Check(renderer, max_seq_len)
    for prepared in _ahead(check.prepare, _chunks(train_file)):
        if cancelled is not None and cancelled():
            raise CheckCancelledError
        check.add(prepared)
        if progress is not None:
            progress(check.rows, "rows read")
    if progress is not None:
        progress(check.rows, "looking for near duplicates")
    near = check.near_duplicates()
    overlap = check.overlap(val_file) if val_file is not None else None
    findings = check.findings
    return DatasetReport(
        file=str(train_file),
        sha256=sha256_of(train_file),
        bytes=train_file.stat().st_size,
        format=check.format,
        renderer=renderer.name if renderer else None,
        ok=check.usable > 0 and not findings.has_errors,
        rows=check.rows,
        usable_rows=check.usable,
        exact_duplicates=findings.count("exact_duplicate"),
        near_duplicates=near,
        overlap_with_val=overlap,
        tokens=check.token_statistics(),
        findings=findings.listed(),
        example=check.example,
        seconds=round(time.monotonic() - began, 2),
    )


def _chunks(path: Path) -> Iterator[list[Row]]:
    rows = read_rows(path)
    while chunk := list(islice(rows, _BATCH)):
        yield chunk


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


def text_of(messages: Sequence[Message]) -> str:
    """The words of a conversation, for comparing rows with each other."""
    return "\n".join(message["content"] for message in messages)


@dataclass(frozen=True, slots=True)
class _Prepared:
    """A row after parsing and rendering: either an error, or a conversation and perhaps its tokens."""

    line: int
    form: SftFormat | None
    messages: list[Message] | None
    error: DataError | None = None
    rendered: Rendered | None = None

    def with_rendered(self, rendered: Rendered | DataError) -> _Prepared:
        if isinstance(rendered, DataError):
            return _Prepared(self.line, self.form, None, rendered)
        return _Prepared(self.line, self.form, self.messages, None, rendered)


def _parse(row: Row) -> _Prepared:
    form = None
    try:
        if row.value is None:
            raise row.problem or DataError("unreadable")
        form = detect_format(row.value)
        return _Prepared(row.number, form, to_messages(row.value, form))
    except DataError as error:
        return _Prepared(row.number, form, None, error)


def _render(renderer: ChatRenderer, conversations: Sequence[Sequence[Message]]) -> Sequence[Rendered | DataError]:
    try:
        return renderer.render_many(conversations)
    except DataError:  # one of them is refused: find out which
        return [_render_one(renderer, messages) for messages in conversations]


class _Check:
    """What has been seen so far."""

    def __init__(self, renderer: ChatRenderer | None, max_seq_len: int | None) -> None:
        self._renderer = renderer
        self._max_seq_len = max_seq_len
        self._seen: dict[bytes, int] = {}
        self._sketches = Sketches()
        self._sketched_lines: list[int] = []
        self._lengths: list[NDArray[np.int32]] = []
        self._loss = self._loss_cut = self._truncated = 0
        self.findings = Findings()
        self.format: str | None = None
        self.example: RenderedExample | None = None
        self.rows = self.usable = 0

    def prepare(self, chunk: Sequence[Row]) -> list[_Prepared]:
        """Parse and render some rows; touches nothing of the check, so it can run ahead in a thread."""
        parsed = [_parse(row) for row in chunk]
        if self._renderer is None:
            return parsed
        good = [row.messages for row in parsed if row.messages is not None]
        rendered = iter(_render(self._renderer, good))
        return [row if row.messages is None else row.with_rendered(next(rendered)) for row in parsed]

    def add(self, rows: Sequence[_Prepared]) -> None:
        """Take in prepared rows."""
        self.rows += len(rows)
        fresh: list[str] = []
        lengths: list[int] = []
        for row in rows:
            self._note_format(row)
            if row.error is not None or row.messages is None:
                self.findings.bad_row(row.line, row.error or DataError("unreadable"))
                continue
            self.usable += 1
            text = text_of(row.messages)
            for problem in text_problems(text):
                self.findings.note(problem, row.line)
            if row.rendered is not None:
                lengths.append(len(row.rendered.tokens))
                self._note_loss(row.line, row.rendered)
                self._look_closely(row.line, row.messages, row.rendered)
            if self._is_new(row.line, row.messages):
                fresh.append(text)
                self._sketched_lines.append(row.line)
        self._lengths.append(np.asarray(lengths, dtype=np.int32))
        self._sketches.add(fresh)

    def _note_format(self, row: _Prepared) -> None:
        if row.form is not None and self.format is None:
            self.format = row.form
        elif row.form is not None and row.form != self.format:
            self.findings.note("mixed_formats", row.line)

    def _is_new(self, line: int, messages: Sequence[Message]) -> bool:
        first = self._seen.setdefault(_digest(messages), line)
        if first != line:
            self.findings.note("exact_duplicate", line, f"line {line} repeats line {first}")
        return first == line

    def _note_loss(self, line: int, row: Rendered) -> None:
        loss = sum(row.weights)
        self._loss += loss
        if row.last_turn_only:
            self.findings.note("last_turn_only", line)
        if self._max_seq_len is not None and len(row.tokens) > self._max_seq_len:
            self._truncated += 1
            left = sum(row.weights[: self._max_seq_len])
            self._loss_cut += loss - left
            self.findings.note("nothing_left" if left == 0 else "truncated", line)

    def _look_closely(self, line: int, messages: Sequence[Message], row: Rendered) -> None:
        renderer = self._renderer
        if renderer is None or self.usable > _ROUND_TRIP_ROWS:
            return
        text = renderer.text_of(row.tokens)
        if any(message["content"].strip() not in text for message in messages):
            self.findings.note("not_round_trip", line)
        if self.example is None:
            shown = mask_view(renderer, row)[:_EXAMPLE_CHARACTERS]
            self.example = RenderedExample(line=line, text=shown, tokens=len(row.tokens), loss_tokens=sum(row.weights))

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
        for chunk in _chunks(val_file):
            texts: list[str] = []
            for row in chunk:
                messages = _quietly(row)
                if messages is None:
                    continue
                if (line := self._seen.get(_digest(messages))) is not None:
                    exact.add(line)
                    self.findings.note("in_val", line, f"line {line} is line {row.number} of {val_file.name}")
                texts.append(text_of(messages))
                lines.append(row.number)
            held_out.add(texts)
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
        if not len(lengths):
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


def _histogram(lengths: NDArray[np.int32]) -> dict[str, int]:
    bounds = np.ceil(np.log2(np.maximum(lengths, 1))).astype(int)
    values, counts = np.unique(bounds, return_counts=True)
    return {str(2 ** int(v)): int(c) for v, c in zip(values, counts, strict=True)}


def _digest(messages: Sequence[Message]) -> bytes:
    whole = "\x1e".join(f"{m['role']}\x1f{m['content']}" for m in messages)
    return hashlib.blake2b(whole.encode(), digest_size=12).digest()


def _render_one(renderer: ChatRenderer, messages: Sequence[Message]) -> Rendered | DataError:
    try:
        return renderer.render_many([messages])[0]
    except DataError as error:
        return error


def _quietly(row: Row) -> list[Message] | None:
    """A held-out row, or None: it is the training file that is being judged here."""
    try:
        return None if row.value is None else to_messages(row.value)
    except DataError:
        return None
