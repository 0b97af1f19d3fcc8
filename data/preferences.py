"""Preference pairs ready to train on: rendered once, handed out in batches. Heavy: imports numpy."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..core.errors import DataError
from ..models.chat import ChatRenderer, Rendered
from .preference_rows import Pair, to_pair
from .row_files import Row, at_line, read_rows

_CHUNK = 512
_KEPT_PROBLEMS = 5


@dataclass(frozen=True, slots=True)
class Answer:
    """A prompt with one of its answers: token ids and weights (1 on the answer's tokens), both of shape [T]."""

    tokens: NDArray[np.int32]
    weights: NDArray[np.uint8]

    @property
    def answer_tokens(self) -> int:
        """Number of tokens that are compared."""
        return int(self.weights[1:].sum())


@dataclass(frozen=True, slots=True)
class RenderedPair:
    """The better and the worse answer to one prompt."""

    chosen: Answer
    rejected: Answer


@dataclass(frozen=True, slots=True)
class PreferenceCounts:
    """What a file of pairs holds.

    Attributes:
        rows: Usable pairs.
        tokens: Tokens of both sides of every pair after truncation.
        answer_tokens: Those of the answers.
        truncated: Pairs of which a side was cut.
        chosen_longer: Pairs whose chosen answer has more tokens than the rejected one.
        rejected_longer: Pairs where it is the other way round.
        problems: The first rows that cannot be used, with file and line.
    """

    rows: int
    tokens: int
    answer_tokens: int
    truncated: int
    chosen_longer: int
    rejected_longer: int
    problems: tuple[DataError, ...]


class PreferenceData:
    """All pairs of a file, and the order in which an epoch visits them: a function of ``seed`` and the epoch alone."""

    def __init__(self, pairs: Sequence[RenderedPair], *, batch_size: int, seed: int) -> None:
        self._pairs = list(pairs)
        self._batch_size = batch_size
        self._seed = seed
        self.set_epoch(0)

    @property
    def rows(self) -> int:
        """Number of pairs."""
        return len(self._pairs)

    def __len__(self) -> int:
        return -(-self.rows // self._batch_size)

    def set_epoch(self, epoch: int) -> None:
        """Shuffle for an epoch."""
        self._order = np.random.default_rng([self._seed, epoch]).permutation(self.rows)

    def batch(self, index: int) -> list[RenderedPair]:
        """The pairs of batch ``index`` of the current epoch; the last one may be smaller."""
        chosen = self._order[index * self._batch_size : (index + 1) * self._batch_size]
        return [self._pairs[int(row)] for row in chosen]

    def pairs(self) -> list[RenderedPair]:
        """Every pair, in the order of the file."""
        return list(self._pairs)


def load_preference_data(
    path: Path,
    renderer: ChatRenderer,
    *,
    batch_size: int,
    max_seq_len: int | None,
    seed: int,
    skip_bad_rows: bool = False,
) -> PreferenceData:
    """Read, check, render and cut every pair of a file.

    Raises:
        DataError: For the first row that cannot be used, or if no row can.
    """
    pairs: list[RenderedPair] = []
    for number, outcome in rendered_pairs(path, renderer, max_seq_len):
        if isinstance(outcome, RenderedPair):
            pairs.append(outcome)
        elif not skip_bad_rows:
            raise at_line(path, number, outcome)
    if not pairs:
        raise DataError("no pair can be used", where=str(path), fix="check_dataset names what is wrong with each")
    return PreferenceData(pairs, batch_size=batch_size, seed=seed)


def count_pairs(path: Path, renderer: ChatRenderer, *, max_seq_len: int | None) -> PreferenceCounts:
    """Count pairs and tokens of a file.

    Raises:
        DataError: If the file cannot be read, or not one of its rows can be used.
    """
    rows = tokens = answers = truncated = longer = shorter = 0
    problems: list[DataError] = []
    for number, outcome in rendered_pairs(path, renderer, max_seq_len):
        if isinstance(outcome, DataError):
            if len(problems) < _KEPT_PROBLEMS:
                problems.append(at_line(path, number, outcome))
            continue
        chosen, rejected = outcome.chosen.answer_tokens, outcome.rejected.answer_tokens
        rows, answers = rows + 1, answers + chosen + rejected
        tokens += len(outcome.chosen.tokens) + len(outcome.rejected.tokens)
        longer, shorter = longer + (chosen > rejected), shorter + (chosen < rejected)
        truncated += max_seq_len is not None and max(map(len, _sides(outcome))) >= max_seq_len
    if not rows:
        raise problems[0] if problems else DataError("no pair can be used", where=str(path))
    return PreferenceCounts(rows, tokens, answers, truncated, longer, shorter, tuple(problems))


def _sides(pair: RenderedPair) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    return pair.chosen.tokens, pair.rejected.tokens


def rendered_pairs(
    path: Path, renderer: ChatRenderer, max_seq_len: int | None
) -> Iterator[tuple[int, RenderedPair | DataError]]:
    """Every row of a file with its number: both sides rendered, or why they cannot be."""
    rows = read_rows(path)
    while chunk := list(islice(rows, _CHUNK)):
        parsed = [(row.number, parse_pair(row)) for row in chunk]
        for number, pair in parsed:
            yield number, pair if isinstance(pair, DataError) else _render(renderer, pair, max_seq_len)


def parse_pair(row: Row) -> Pair | DataError:
    """The pair in a row, or why there is none."""
    if row.value is None:
        return row.problem or DataError("unreadable")
    try:
        return to_pair(row.value)
    except DataError as error:
        return error


def _render(renderer: ChatRenderer, pair: Pair, max_seq_len: int | None) -> RenderedPair | DataError:
    try:
        prompt = renderer.generation_prompt(pair.prompt)
        both = renderer.render_many([[*pair.prompt, *pair.chosen], [*pair.prompt, *pair.rejected]])
    except DataError as error:
        return error
    chosen, rejected = (_answer(side, len(prompt), max_seq_len) for side in both)
    if not chosen.answer_tokens or not rejected.answer_tokens:
        return DataError(
            "nothing of an answer is left within max_seq_len", fix="Raise max_seq_len or shorten the prompt"
        )
    if np.array_equal(chosen.tokens, rejected.tokens):
        return DataError("both answers are the same tokens after truncation", fix="Raise max_seq_len")
    return RenderedPair(chosen, rejected)


def _answer(side: Rendered, prompt_tokens: int, max_seq_len: int | None) -> Answer:
    """One side, cut; assistant turns within the prompt are common to both sides and are not compared."""
    tokens = np.asarray(side.tokens, dtype=np.int32)[:max_seq_len]
    weights = np.asarray(side.weights, dtype=np.uint8)[:max_seq_len].copy()
    weights[:prompt_tokens] = 0
    return Answer(tokens, weights)
