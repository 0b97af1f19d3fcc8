"""What training reads: rendered rows cut to length, and the order in which an epoch visits them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from ..core.errors import DataError
from ..models.chat import Chat, Rendered
from .mixtures import Mix, pass_order

T = TypeVar("T")
RowT = TypeVar("RowT")
# Rows that are rendered in one call of the tokenizer.
CHUNK_ROWS = 512
# Rows that a count names when they cannot be used.
KEPT_PROBLEMS = 5


@dataclass(frozen=True, slots=True)
class Example:
    """Token ids and loss weights (0 or 1), both of shape [T]; and how many rows this one counts for."""

    tokens: NDArray[np.int32]
    weights: NDArray[np.uint8]
    row_weight: float = 1.0

    @classmethod
    def of(cls, rendered: Rendered, max_seq_len: int | None) -> Example:
        """The first ``max_seq_len`` tokens of a rendered conversation."""
        tokens = np.array(rendered.tokens[:max_seq_len], dtype=np.int32)
        return cls(tokens, np.array(rendered.weights[:max_seq_len], dtype=np.uint8), rendered.row_weight)

    @property
    def trained_tokens(self) -> int:
        """Tokens that are predicted and carry loss; nothing predicts the first token."""
        return int(self.weights[1:].sum())


class Batches(ABC, Generic[RowT]):
    """Rows in batches, shuffled anew for each pass (epoch); the last batch of one may be smaller.

    Content and order depend on ``seed`` and the step alone, so a resumed run sees what an undisturbed one would have
    seen.

    Attributes:
        rows: Rows of a pass.
    """

    def __init__(self, mix: Mix, *, batch_size: int, seed: int) -> None:
        self.rows = mix.rows
        self._mix = mix
        self._batch_size = batch_size
        self._seed = seed

    def __len__(self) -> int:
        """Batches in a pass."""
        return -(-self.rows // self._batch_size)

    def batch(self, step: int) -> list[RowT]:
        """The rows of a step, counted from the start of the first pass."""
        return [self.row(int(i)) for i in self._order(step)]

    def visited(self, steps: int) -> list[RowT]:
        """Each row that the first ``steps`` steps see, once, in the order of the sources."""
        seen = np.unique(np.concatenate([self._order(step) for step in range(steps)])) if steps else ()
        return [self.row(int(i)) for i in seen]

    def _order(self, step: int) -> NDArray[np.int64]:
        number, index = divmod(step, len(self))
        order = pass_order(self._mix, self._seed, number)
        return order[index * self._batch_size : (index + 1) * self._batch_size]

    @abstractmethod
    def row(self, index: int) -> RowT:
        """A row by its place among all usable ones."""


class MixedBatches(Batches[RowT]):
    """The rows of several files, mixed."""

    def __init__(self, parts: Sequence[Batches[RowT]], mix: Mix, *, batch_size: int, seed: int) -> None:
        super().__init__(mix, batch_size=batch_size, seed=seed)
        self._parts = parts
        self._starts = np.cumsum((0, *mix.sizes))

    def row(self, index: int) -> RowT:
        """A row by its place among the usable ones of all files."""
        part = int(np.searchsorted(self._starts, index, side="right")) - 1
        return self._parts[part].row(index - int(self._starts[part]))


def render_each(render: Callable[[Sequence[Chat]], Sequence[T]], conversations: Sequence[Chat]) -> list[T | DataError]:
    """What a renderer makes of each conversation, or why it cannot; all in one call unless one of them is refused.

    Args:
        render: Its `render_many` or `measure_many`.
        conversations: What it is to read.
    """
    try:
        return [*render(conversations)]
    except DataError as error:
        if len(conversations) == 1:
            return [error]
        return [outcome for conversation in conversations for outcome in render_each(render, [conversation])]
