# pyright: basic
# Reason: tensor arithmetic on torch's loosely typed operators.
"""What causal attention over packed sequences looks at: the shape of its heads, and which tokens see which.

Axes: ``N`` packed tokens, ``S`` sequences of one bucket, ``T`` its longest length, ``E`` head size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from .packing import PackedTokens

if TYPE_CHECKING:
    from .flex import FlexMasks

_WASTE = 1.3


class Rotary(NamedTuple):
    """Cosines and sines [N, 1, E] of each token's rotation, both halves equal. Su et al. 2021, arXiv 2104.09864."""

    cos: Tensor
    sin: Tensor


@dataclass(frozen=True, slots=True)
class Heads:
    """Shape of one layer's attention; ``norm`` [H + J, E] is the factor of each query and key head, if it has any.

    ``compiled`` says whether the compiled kernels compute it, or torch's operations; it is decided once, at loading.
    """

    query: int
    key: int
    size: int
    scale: float
    window: int | None = None
    norm: Tensor | None = None
    eps: float = 1e-6
    compiled: bool = False

    @property
    def group(self) -> int:
        """Query heads per key head."""
        return self.query // self.key


@dataclass(frozen=True, slots=True)
class Bucket:
    """Sequences of similar length: tokens ``start`` to ``stop`` of the packed batch, seen as [S, T] with padding.

    ``places`` [S * T] maps into the bucket's tokens (padding points at token 0) and ``real`` [n] back out of the
    padded form; both are None where all lengths are equal. Trees of sequences bring the position and the branch of
    each token, [S, T]. With ``flex`` it is a whole packed batch seen as one sequence, and the masks say who sees whom.
    """

    start: int
    stop: int
    count: int
    length: int
    places: Tensor | None = None
    real: Tensor | None = None
    tree: tuple[Tensor, Tensor] | None = None
    flex: FlexMasks | None = None


def make_buckets(
    lengths: Sequence[int],
    device: torch.device,
    positions_N: Tensor | None = None,
    branches_N: Tensor | None = None,
    *,
    apart: bool = False,
) -> list[Bucket]:
    """Cut a batch into runs of neighbours whose padding stays below 30%; with branches the runs are of trees.

    With ``apart`` each sequence is a run of its own: torch's products on a CPU round by how many go together.
    """
    buckets: list[Bucket] = []
    first = start = 0
    for last in range(1, len(lengths) + 1):
        run = lengths[first : last + 1]
        if apart or last == len(lengths) or max(run) * len(run) > _WASTE * sum(run):
            buckets.append(_bucket(lengths[first:last], start, device))
            start += sum(lengths[first:last])
            first = last
    if positions_N is None or branches_N is None:
        return buckets
    return [replace(bucket, tree=(_rows(positions_N, bucket), _rows(branches_N, bucket))) for bucket in buckets]


def _rows(x: Tensor, bucket: Bucket) -> Tensor:
    """[N] -> [S, T]; padding repeats the bucket's first token, which comes last and is never seen."""
    part = x[bucket.start : bucket.stop]
    return (part if bucket.places is None else part[bucket.places]).view(bucket.count, bucket.length)


def _bucket(lengths: Sequence[int], start: int, device: torch.device) -> Bucket:
    longest, total = max(lengths), sum(lengths)
    if longest * len(lengths) == total:
        return Bucket(start, start + total, len(lengths), longest)
    sizes = torch.tensor(lengths, device=device)
    first_S = sizes.cumsum(0) - sizes
    step_T = torch.arange(longest, device=device)
    inside_ST = step_T < sizes[:, None]
    places = torch.where(inside_ST, first_S[:, None] + step_T, 0).reshape(-1)
    return Bucket(start, start + total, len(lengths), longest, places, inside_ST.reshape(-1).nonzero().squeeze(-1))


class AttentionSpan(NamedTuple):
    """What each packed token sees: tokens ``first_N`` to ``until_N``, and ``own_N`` to itself."""

    first_N: Tensor
    until_N: Tensor
    own_N: Tensor


def attention_span(batch: PackedTokens, window: int | None) -> AttentionSpan:
    """On a prefix and alone: what came before. On a branch: the prefix, and the branch so far."""
    positions_N, branches_N = batch.positions_N, batch.branches_N
    total, device = len(positions_N), positions_N.device
    place_N = torch.arange(total, device=device)
    sizes = torch.tensor(batch.lengths, device=device)
    start_N = (sizes.cumsum(0) - sizes).repeat_interleave(sizes, output_size=total)
    own_N = place_N.clone() + 1
    until_N = place_N + 1
    if branches_N is not None:
        tree_N = torch.arange(len(sizes), device=device).repeat_interleave(sizes, output_size=total)
        prefix_N = torch.zeros_like(sizes).index_add_(0, tree_N, (branches_N == 0).long())[tree_N]
        on_branch = branches_N > 0
        until_N = torch.where(on_branch, start_N + prefix_N, until_N)
        own_N = torch.where(on_branch, place_N - (positions_N - prefix_N), own_N)
    first_N = start_N
    if window is not None:
        first_N = torch.maximum(start_N, start_N + positions_N - window + 1).minimum(until_N)
        own_N = torch.maximum(own_N, place_N - window + 1)
    return AttentionSpan(first_N, until_N, own_N)
