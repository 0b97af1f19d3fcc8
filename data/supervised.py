"""Rows ready to train on: rendered once, kept as flat arrays, handed out in batches. Heavy: imports numpy."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..core.errors import DataError
from ..models.chat import ChatRenderer, Message, Rendered
from .formats import to_messages
from .row_files import Row, at_line, read_rows

_BATCH = 512
_KEPT_PROBLEMS = 5


@dataclass(frozen=True, slots=True)
class Example:
    """One row: token ids and loss weights (0 or 1), both of shape [T]."""

    tokens: NDArray[np.int32]
    weights: NDArray[np.uint8]


class SftData:
    """All rows of a file, and the order in which an epoch visits them.

    The order depends on ``seed`` and the epoch alone, so a resumed run sees what an undisturbed one would have seen.
    The last batch of an epoch may be smaller: no row is left out.

    Attributes:
        tokens: Tokens of all rows.
        loss_tokens: Those that are trained.
        truncated: Rows cut at ``max_seq_len``.
        skipped: Rows left out because they cannot be used.
    """

    def __init__(
        self, examples: Sequence[Example], *, batch_size: int, seed: int, truncated: int = 0, skipped: int = 0
    ) -> None:
        lengths = [len(e.tokens) for e in examples]
        self._offsets = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
        self._tokens = np.concatenate([e.tokens for e in examples])
        self._weights = np.concatenate([e.weights for e in examples])
        self._batch_size = batch_size
        self._seed = seed
        self.tokens = len(self._tokens)
        self.loss_tokens = int(self._weights.sum())
        self.truncated = truncated
        self.skipped = skipped
        self.set_epoch(0)

    @property
    def rows(self) -> int:
        """Number of rows."""
        return len(self._offsets) - 1

    def __len__(self) -> int:
        return -(-self.rows // self._batch_size)

    def set_epoch(self, epoch: int) -> None:
        """Shuffle for an epoch."""
        self._order = np.random.default_rng([self._seed, epoch]).permutation(self.rows)

    def batch(self, index: int) -> list[Example]:
        """The rows of batch ``index`` of the current epoch."""
        chosen = self._order[index * self._batch_size : (index + 1) * self._batch_size]
        return [self._example(int(row)) for row in chosen]

    def _example(self, row: int) -> Example:
        part = slice(int(self._offsets[row]), int(self._offsets[row + 1]))
        return Example(self._tokens[part], self._weights[part])


def load_sft_data(
    path: Path,
    renderer: ChatRenderer,
    *,
    batch_size: int,
    max_seq_len: int | None,
    seed: int,
    skip_bad_rows: bool = False,
) -> SftData:
    """Read, check, render and cut every row of a file.

    Args:
        path: The data file.
        renderer: Makes tokens of conversations.
        batch_size: Rows per batch.
        max_seq_len: Tokens; longer rows are cut at their end.
        seed: Of the shuffle.
        skip_bad_rows: Leave out rows that cannot be used instead of refusing the file.

    Raises:
        DataError: For the first row that cannot be used, or if no row can.
    """
    examples: list[Example] = []
    truncated = skipped = 0
    for number, outcome in rendered_rows(path, renderer):
        if isinstance(outcome, Rendered):
            example, cut = _example(outcome, max_seq_len)
            truncated += cut
            if example.weights[1:].any():
                examples.append(example)
                continue
            outcome = DataError(
                "nothing to learn is left of this row within max_seq_len", fix="Raise max_seq_len or shorten the prompt"
            )
        if not skip_bad_rows:
            raise at_line(path, number, outcome)
        skipped += 1
    if not examples:
        raise DataError("no row can be used", where=str(path), fix="check_dataset names what is wrong with each")
    return SftData(examples, batch_size=batch_size, seed=seed, truncated=truncated, skipped=skipped)


@dataclass(frozen=True, slots=True)
class TokenCounts:
    """Tokens of a training file.

    Attributes:
        rows: Usable rows.
        tokens: All tokens after truncation, the template's included.
        loss_tokens: Those that are trained.
        truncated: Rows cut at ``max_seq_len``.
        longest: Tokens of the longest row, before truncation.
        exact: False when only the first rows were read and the counts are scaled up by size.
        problems: The first rows that cannot be used, with file and line.
    """

    rows: int
    tokens: int
    loss_tokens: int
    truncated: int
    longest: int
    exact: bool
    problems: tuple[DataError, ...]


def count_tokens(
    path: Path, renderer: ChatRenderer, *, max_seq_len: int | None, sample_rows: int | None = None
) -> TokenCounts:
    """Count the tokens of a file, or of its first ``sample_rows`` rows scaled up to its size.

    Raises:
        DataError: If the file cannot be read, or not one of the rows read can be used.
    """
    rows = tokens = loss = truncated = longest = seen = 0
    problems: list[DataError] = []
    stopped = False
    for number, outcome in rendered_rows(path, renderer):
        seen += 1
        if isinstance(outcome, Rendered):
            example, cut = _example(outcome, max_seq_len)
            rows, truncated, longest = rows + 1, truncated + cut, max(longest, len(outcome.tokens))
            tokens, loss = tokens + len(example.tokens), loss + int(example.weights.sum())
        elif len(problems) < _KEPT_PROBLEMS:
            problems.append(at_line(path, number, outcome))
        if sample_rows is not None and seen >= sample_rows:
            stopped = True
            break
    if not rows:
        raise problems[0] if problems else DataError("no row can be used", where=str(path))
    share = _share_read(path, seen) if stopped else 1.0
    return TokenCounts(
        rows=round(rows / share),
        tokens=round(tokens / share),
        loss_tokens=round(loss / share),
        truncated=round(truncated / share),
        longest=longest,
        exact=share == 1.0,
        problems=tuple(problems),
    )


def _share_read(path: Path, rows: int) -> float:
    """The share of a file that its first ``rows`` rows are, by bytes for text and by count for Parquet."""
    if path.suffix.lower() == ".parquet":
        parquet: Any = importlib.import_module("pyarrow.parquet")

        return min(1.0, rows / max(1, parquet.ParquetFile(path).metadata.num_rows))
    with path.open("rb") as file:
        read = sum(len(line) for line in islice(file, rows))
    return min(1.0, read / path.stat().st_size)


def rendered_rows(path: Path, renderer: ChatRenderer) -> Iterator[tuple[int, Rendered | DataError]]:
    """Every row of a file with its number: rendered, or why it cannot be."""
    rows = read_rows(path)
    while chunk := list(islice(rows, _BATCH)):
        yield from _render_chunk(chunk, renderer)


def _render_chunk(chunk: Sequence[Row], renderer: ChatRenderer) -> Iterator[tuple[int, Rendered | DataError]]:
    parsed = [(row.number, _messages(row)) for row in chunk]
    good = [messages for _, messages in parsed if not isinstance(messages, DataError)]
    try:
        rendered = iter(renderer.render_many(good))
        for number, messages in parsed:
            yield number, messages if isinstance(messages, DataError) else next(rendered)
    except DataError:  # one conversation of the batch is refused: find out which
        for number, messages in parsed:
            yield number, messages if isinstance(messages, DataError) else _render_one(renderer, messages)


def _render_one(renderer: ChatRenderer, messages: Sequence[Message]) -> Rendered | DataError:
    try:
        return renderer.render_many([messages])[0]
    except DataError as error:
        return error


def _messages(row: Row) -> list[Message] | DataError:
    if row.value is None:
        return row.problem or DataError("unreadable")
    try:
        return to_messages(row.value)
    except DataError as error:
        return error


def _example(rendered: Rendered, max_seq_len: int | None) -> tuple[Example, bool]:
    cut = max_seq_len is not None and len(rendered.tokens) > max_seq_len
    tokens = np.asarray(rendered.tokens, dtype=np.int32)[:max_seq_len]
    return Example(tokens, np.asarray(rendered.weights, dtype=np.uint8)[:max_seq_len]), cut
