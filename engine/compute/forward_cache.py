# pyright: basic
# Reason: holds torch tensors with their autograd graphs.
"""The last forward-only pass with its activations, so that a backward pass over the same data need not repeat it.

A loss that the client computes (`TrainingClient.forward_backward_custom`) asks for log-probabilities first and for the
gradient of their weighted sum next. A third of that work would be the same forward pass again.
"""

from __future__ import annotations

import hashlib
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from ..interface import TrainItem
from .backbone import ActiveLora
from .head import ScoredHead
from .losses import TARGETS

# As much as this is kept until the adapter's next request; one packed batch of a small model takes less.
_MOST_BYTES = 1 << 30


@dataclass(frozen=True, slots=True)
class Forward:
    """One packed batch: the leaves that collect gradients, the hidden states with their graph, and what was scored."""

    lora: ActiveLora
    hidden_ND: Tensor
    seen: ScoredHead


class ForwardCache:
    """Batches of one adapter's last forward pass, each to be used once."""

    def __init__(self) -> None:
        self._owner: weakref.ref[object] | None = None
        self._kept: dict[bytes, Forward] = {}
        self._bytes = 0

    def begin(self, owner: object) -> None:
        """Forget what is kept; what comes is of ``owner``, and goes with it."""
        self._clear()
        self._owner = weakref.ref(owner, self._clear)

    def forget(self, owner: object) -> None:
        """The weights of ``owner`` are about to change."""
        if self._is_of(owner):
            self._clear()

    def _clear(self, _gone: object = None) -> None:
        self._owner, self._kept, self._bytes = None, {}, 0

    def _is_of(self, owner: object) -> bool:
        return self._owner is not None and self._owner() is owner

    def put(self, key: bytes, forward: Forward, nbytes: int) -> None:
        """Keep a batch, if there is room."""
        if self._bytes + nbytes <= _MOST_BYTES:
            self._bytes += nbytes
            self._kept[key] = forward

    def take(self, owner: object, key: bytes) -> Forward | None:
        """The batch with this key, if it is of ``owner``."""
        return self._kept.pop(key, None) if self._is_of(owner) else None


def batch_key(items: Sequence[TrainItem]) -> bytes:
    """What a forward pass depends on besides the weights: tokens and targets, in order."""
    digest = hashlib.blake2b(digest_size=16)
    for item in items:
        targets = item.loss_inputs[TARGETS]
        digest.update(repr((len(item.tokens_T), targets.shape, targets.dtype.str)).encode())
        digest.update(item.tokens_T.tobytes())
        digest.update(targets.tobytes())
    return digest.digest()


@contextmanager
def counted_bytes() -> Iterator[list[int]]:
    """Bytes that autograd saves inside, as the one element of a list."""
    total = [0]

    def count(tensor: Tensor) -> Tensor:
        total[0] += tensor.nbytes
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        yield total
