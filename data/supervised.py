"""Supervised rows ready to train on: rendered once, kept as flat arrays, handed out in batches."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ..core.errors import DataError
from ..models.chat import ChatRenderer, Rendered
from .columns import ColumnMap
from .examples import CHUNK_ROWS, KEPT_PROBLEMS, Batches, Example, render_each
from .formats import ReadRow, read_row
from .mixtures import Mix
from .row_files import at_line, chunks_of, none_usable, read_rows, usable_rows
from .row_findings import RowFindings
from .shards import is_compressed, shards

# A line without an end must not be read into memory whole.
_LINE_PART_BYTES = 2**20
_LINES = (".jsonl", ".csv", ".tsv")


class SftData(Batches[Example]):
    """All rows of a file.

    Attributes:
        rows: Number of rows.
        tokens: Tokens of all rows.
        loss_tokens: Those that are trained.
        truncated: Rows cut at ``max_seq_len``.
        skipped: Rows left out because they cannot be used.
    """

    def __init__(
        self, examples: Sequence[Example], *, batch_size: int, seed: int, truncated: int = 0, skipped: int = 0
    ) -> None:
        super().__init__(Mix.whole(len(examples)), batch_size=batch_size, seed=seed)
        self._offsets = np.cumsum([0, *(len(e.tokens) for e in examples)], dtype=np.int64)
        self._tokens = np.concatenate([e.tokens for e in examples])
        self._weights = np.concatenate([e.weights for e in examples])
        self._row_weights = np.array([e.row_weight for e in examples])
        self.tokens = len(self._tokens)
        self.loss_tokens = int(self._weights.sum())
        self.truncated = truncated
        self.skipped = skipped

    def row(self, index: int) -> Example:
        """A row by its place among the usable ones of the file."""
        part = slice(int(self._offsets[index]), int(self._offsets[index + 1]))
        return Example(self._tokens[part], self._weights[part], float(self._row_weights[index]))


def load_sft_data(
    path: Path,
    renderer: ChatRenderer,
    *,
    batch_size: int,
    max_seq_len: int | None,
    seed: int,
    skip_bad_rows: bool = False,
    columns: ColumnMap | None = None,
) -> SftData:
    """Read, check, render and cut every row of a file.

    Args:
        path: The data file.
        renderer: Makes tokens of conversations.
        batch_size: Rows per batch.
        max_seq_len: Tokens; longer rows are cut at their end.
        seed: Of the shuffle.
        skip_bad_rows: Leave out rows that cannot be used instead of refusing the file.
        columns: Which columns are what.

    Raises:
        DataError: For the first row that cannot be used, or if no row can.
    """
    read = truncated = 0

    def cut() -> Iterator[tuple[int, Example | DataError]]:
        nonlocal read, truncated
        for number, outcome in rendered_rows(path, renderer, columns=columns):
            read += 1
            if isinstance(outcome, Rendered):
                example = Example.of(outcome, max_seq_len)
                truncated += len(example.tokens) < len(outcome.tokens)
                outcome = example if example.trained_tokens else _NOTHING_LEFT
            yield number, outcome

    examples = list(usable_rows(path, cut(), skip_bad_rows=skip_bad_rows))
    skipped = read - len(examples)
    return SftData(examples, batch_size=batch_size, seed=seed, truncated=truncated, skipped=skipped)


_NOTHING_LEFT = DataError(
    "nothing to learn is left of this row within max_seq_len", fix="Raise max_seq_len or shorten the prompt"
)


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
        unusable: How many rows cannot be used.
        notes: What to know of how the rows read were read and rendered: keys that nothing reads, text that is lost.
    """

    rows: int
    tokens: int
    loss_tokens: int
    truncated: int
    longest: int
    exact: bool
    problems: tuple[DataError, ...]
    unusable: int = 0
    notes: tuple[str, ...] = ()


def count_tokens(
    path: Path,
    renderer: ChatRenderer,
    *,
    max_seq_len: int | None,
    sample_rows: int | None = None,
    columns: ColumnMap | None = None,
) -> TokenCounts:
    """Count the tokens of a file, or of its first ``sample_rows`` rows scaled up to its size.

    Raises:
        DataError: If the file cannot be read, or not one of the rows read can be used.
    """
    rows = tokens = loss = truncated = longest = seen = number = 0
    problems: list[DataError] = []
    stopped = False
    findings = RowFindings()
    for number, outcome in rendered_rows(path, renderer, findings, columns):
        seen += 1
        example = Example.of(outcome, max_seq_len) if isinstance(outcome, Rendered) else None
        if example is not None and not example.trained_tokens:
            outcome = _NOTHING_LEFT
        if example is not None and isinstance(outcome, Rendered):
            rows, longest = rows + 1, max(longest, len(outcome.tokens))
            truncated += len(example.tokens) < len(outcome.tokens)
            tokens, loss = tokens + len(example.tokens), loss + int(example.weights.sum())
        elif isinstance(outcome, DataError) and len(problems) < KEPT_PROBLEMS:
            problems.append(at_line(path, number, outcome))
        if sample_rows is not None and seen >= sample_rows:
            stopped = True
            break
    if not rows:
        raise none_usable(path, problems, seen)
    share = _share_read(path, seen, number) if stopped else 1.0
    return TokenCounts(
        rows=round(rows / share),
        tokens=round(tokens / share),
        loss_tokens=round(loss / share),
        truncated=round(truncated / share),
        longest=longest,
        exact=share == 1.0,
        problems=tuple(problems),
        unusable=round((seen - rows) / share),
        notes=findings.sentences(),
    )


def mixed_counts(counts: Sequence[TokenCounts], mix: Mix, names: Sequence[str]) -> TokenCounts:
    """The counts of a pass over several files: expected ones where it takes a part of a file."""
    if len(counts) == 1 and mix.taken == mix.sizes:
        return counts[0]
    return TokenCounts(
        rows=mix.rows,
        tokens=mix.per_pass([each.tokens for each in counts]),
        loss_tokens=mix.per_pass([each.loss_tokens for each in counts]),
        truncated=mix.per_pass([each.truncated for each in counts]),
        longest=max(each.longest for each in counts),
        exact=all(each.exact for each in counts) and all(share.is_integer() for share in mix.shares),
        problems=tuple(problem for each in counts for problem in each.problems),
        unusable=sum(each.unusable for each in counts),
        notes=tuple(f"{name}: {note}" for name, each in zip(names, counts, strict=True) for note in each.notes),
    )


def _share_read(path: Path, rows: int, last: int) -> float:
    """The share of a file that its first rows are: for plain text by the bytes up to the ``last`` row's line."""
    files = shards(path)
    if all(file.suffix.lower() == ".parquet" for file in files):
        parquet: Any = importlib.import_module("pyarrow.parquet")

        return min(1.0, rows / max(1, sum(parquet.ParquetFile(file).metadata.num_rows for file in files)))
    if files != (path,) or path.suffix.lower() not in _LINES or is_compressed(path):
        return rows / sum(1 for _ in read_rows(path))
    read = 0
    with path.open("rb") as file:
        while last and (part := file.readline(_LINE_PART_BYTES)):
            read += len(part)
            last -= part.endswith(b"\n")
    return min(1.0, read / path.stat().st_size)


def rendered_rows(
    path: Path, renderer: ChatRenderer, findings: RowFindings | None = None, columns: ColumnMap | None = None
) -> Iterator[tuple[int, Rendered | DataError]]:
    """Every row of a file with its number: rendered, or why it cannot be; what was noted of it goes to ``findings``."""
    for chunk in chunks_of(path, CHUNK_ROWS, columns):
        read = [row.parsed(read_row) for row in chunk]
        rendered = iter(render_each(renderer.render_many, [r.conversation for r in read if isinstance(r, ReadRow)]))
        for row, content in zip(chunk, read, strict=True):
            outcome = content if isinstance(content, DataError) else next(rendered)
            if isinstance(content, ReadRow) and content.weight != 1.0 and isinstance(outcome, Rendered):
                outcome = replace(outcome, row_weight=content.weight)
            if findings is not None and isinstance(content, ReadRow) and isinstance(outcome, Rendered):
                findings.note_all(row.number, content.notes, outcome.notes)
            yield row.number, row.placed(outcome)
