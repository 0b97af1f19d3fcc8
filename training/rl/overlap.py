"""What a run needs whose sampling and training overlap. Heavy: imports the cookbook.

The cookbook's asynchronous loop ends when its data do. Groups that are dropped (one reward throughout, or sampled too
many steps ago) use data up, so that a run of twenty steps would end after fourteen. Here the last batch goes on with
further prompts for as long as steps are missing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import cast

from tinker_cookbook.rl.types import EnvGroupBuilder, RLDataset

# At most so many times the run's own groups are sampled for what was dropped: a reward that is constant by now would
# otherwise be sampled for ever.
_SPARE = 2


class OverlappingData(RLDataset):
    """The prompts of a run, and more of them until its steps are taken."""

    def __init__(self, inner: RLDataset, done: Callable[[], bool]) -> None:
        """Wrap ``inner``, whose batches may be asked for beyond its length; ``done`` says when no more are needed."""
        self._inner = inner
        self._done = done

    def get_batch(self, index: int) -> Sequence[EnvGroupBuilder]:
        """The groups of a batch; the loop goes through them one by one, waiting for room, so the last may be long."""
        batch = self._inner.get_batch(index)
        if index < len(self) - 1:
            return batch
        return cast("Sequence[EnvGroupBuilder]", _Lasting(batch, self._more()))

    def _more(self) -> Iterator[EnvGroupBuilder]:
        for index in range(len(self), (1 + _SPARE) * len(self)):
            for group in self._inner.get_batch(index):
                if self._done():
                    return
                yield group

    def __len__(self) -> int:
        return len(self._inner)


class _Lasting:
    """Some groups and then others, made when they are asked for."""

    def __init__(self, first: Sequence[EnvGroupBuilder], then: Iterator[EnvGroupBuilder]) -> None:
        self._first = first
        self._then = then

    def __iter__(self) -> Iterator[EnvGroupBuilder]:
        yield from self._first
        yield from self._then
