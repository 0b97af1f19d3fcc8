# pyright: basic
# Reason: torch's FlexAttention is loosely typed, and so are tensor operators.
"""Attention over a whole packed batch in one call, for CUDA: nothing is padded, and no mask is dense.

Torch's FlexAttention (Dong et al. 2024, arXiv 2412.05496) makes a kernel of the question which token sees which, and
walks only the blocks in which some do. `torch.nn.attention.varlen` was looked at and left: it knows neither trees nor
fp32, and has no CPU form to test it by.

Axes: ``N`` packed tokens, ``B`` blocks of them, ``H`` query heads, ``J`` key heads, ``E`` head size.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import product
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from .attention_layout import AttentionSpan, Bucket, Heads, Rotary, attention_span, make_buckets
from .cuda import repeatable
from .packed_attention import Attention
from .packing import PackedTokens

Attend = Callable[..., Tensor]

_BLOCK = 128
# Versions of the compiled kernel: with and without gradients, of one block and of more, for each model's heads.
_MOST_VERSIONS = 64
# Share by which the trial may differ from attention in fp32: sums in another order, and of bf16 two roundings.
_BOUNDS = {torch.float32: 1e-3, torch.bfloat16: 2e-2}

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class FlexMasks:
    """FlexAttention, and the block mask of each window; all layers of a forward pass share them."""

    attend: Attend
    masks: Mapping[int | None, BlockMask]

    def apply(self, q: Tensor, k: Tensor, v: Tensor, heads: Heads) -> Tensor:
        """Of q [1, H, N, E] over k, v [1, J, N, E]: [1, H, N, E]."""
        return self.attend(
            q,
            k,
            v,
            block_mask=self.masks[heads.window],
            scale=heads.scale,
            enable_gqa=heads.group > 1,
            kernel_options={"BACKEND": "TRITON"},  # the same kernel for every length
        )


def flex_bucket(batch: PackedTokens, windows: Collection[int | None], attend: Attend) -> Bucket:
    """All of a packed batch as one bucket."""
    total = sum(batch.lengths)
    masks = {window: block_mask(attention_span(batch, window)) for window in windows}
    return Bucket(0, total, 1, total, flex=FlexMasks(attend, masks))


def block_mask(span: AttentionSpan) -> BlockMask:
    """Which blocks of keys a block of queries sees, in part or all of; made of [N, B], never of [N, N]."""
    first_N, until_N, own_N = (x.int() for x in span)
    total, device = len(first_N), first_N.device
    count = -(-total // _BLOCK)
    place_N = torch.arange(total, device=device)
    start_B = torch.arange(count, device=device) * _BLOCK
    last_B = start_B + _BLOCK - 1
    first, until, own, place = (x[:, None] for x in (first_N, until_N, own_N, place_N))
    some_NB = (first <= last_B) & (until > start_B) & (first < until) | (own <= last_B) & (place >= start_B) & (
        own <= place
    )
    all_NB = (first <= start_B) & (until > last_B) | (own <= start_B) & (place >= last_B)
    padding = (0, 0, 0, count * _BLOCK - total)
    some_BB, all_BB = (F.pad(x, padding).view(count, _BLOCK, count) for x in (some_NB, all_NB))
    some_BB, all_BB = some_BB.any(1), all_BB.all(1)  # a last block that is not full is never seen whole

    def sees(_batch: Tensor, _head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        earlier = (key >= first_N[query]) & (key < until_N[query])
        return earlier | ((key >= own_N[query]) & (key <= query))

    listed = [part for blocks in (some_BB & ~all_BB, all_BB) for part in _listed(blocks)]
    return BlockMask.from_kv_blocks(*listed, BLOCK_SIZE=_BLOCK, mask_mod=sees, seq_lengths=(total, total))


def _listed(blocks_BB: Tensor) -> tuple[Tensor, Tensor]:
    """How many blocks each row has, and which they are, first of all [1, 1, B, B]."""
    order = torch.argsort(blocks_BB.byte(), dim=-1, descending=True, stable=True)
    return blocks_BB.sum(-1, dtype=torch.int32)[None, None], order.int()[None, None].contiguous()


def compiled(heads: Heads, dtype: torch.dtype, device: torch.device) -> Attend | None:
    """FlexAttention for these heads where it works; elsewhere None, and on CUDA a line in the log says why."""
    if device.type != "cuda":
        return None
    found = trouble(_kernel(), heads, dtype, device)
    if found is None:
        return _kernel()
    logger.warning("FlexAttention does not work here (%s): sequences are padded to common lengths instead", found)
    return None


@cache
def _kernel() -> Attend:
    """One for all models: versions are kept and told apart by torch."""
    limits: Any = torch._dynamo.config
    limits.recompile_limit = max(limits.recompile_limit, _MOST_VERSIONS)
    return torch.compile(flex_attention, dynamic=True, fullgraph=True)


def trouble(attend: Attend, heads: Heads, dtype: torch.dtype, device: torch.device) -> str | None:
    """What is wrong with ``attend``: None if output and gradients agree with those of padded sequences in fp32.

    All versions of the kernel that training will need are compiled on the way.
    """
    plain = replace(heads, norm=None, compiled=False)
    tried = product(((90,), (60, 140, 185)), (None, 50))  # one block and more; with a window and without
    try:
        worst = max(_distance(attend, replace(plain, window=window), some, dtype, device) for some, window in tried)
    except Exception as error:  # torch, Triton and the driver raise what they please
        said = str(error).strip().splitlines() or [""]
        return f"{type(error).__name__}: {said[0][:200]}"
    return None if worst <= _BOUNDS[dtype] else f"it is off by {worst:.2g} of the result"


def _distance(
    attend: Attend, heads: Heads, lengths: tuple[int, ...], dtype: torch.dtype, device: torch.device
) -> float:
    """The larger relative distance of output and gradient; infinite for what is not a number.

    The last of the sequences is a tree of two branches.
    """
    positions, half = torch.cat([torch.arange(length) for length in lengths]), lengths[-1] // 3
    positions[-half:] -= half
    branches = torch.zeros_like(positions)
    branches[-2 * half :] = torch.arange(1, 3).repeat_interleave(half)
    rng = torch.Generator().manual_seed(0)
    qkv, grad = (
        torch.randn(sum(lengths), count * heads.size, generator=rng).to(dtype)
        for count in (heads.query + 2 * heads.key, heads.query)
    )
    cos = torch.ones(sum(lengths), 1, heads.size)

    def run(place: torch.device, dtype: torch.dtype, buckets: Sequence[Bucket]) -> list[Tensor]:
        leaf = qkv.to(place, dtype).requires_grad_()
        rotary = Rotary(*(x.to(place, dtype) for x in (cos, torch.zeros_like(cos))))
        out = Attention.apply(leaf, rotary, heads, buckets)
        return [x.float().cpu() for x in (out.detach(), *torch.autograd.grad(out, leaf, grad.to(place, dtype)))]

    batch = PackedTokens(positions.to(device), positions.to(device), lengths, branches.to(device))
    with torch.enable_grad(), repeatable(device):
        ours = run(device, dtype, [flex_bucket(batch, {heads.window}, attend)])
        host = torch.device("cpu")
        theirs = run(host, torch.float32, make_buckets(lengths, host, positions, branches))
    shares = torch.stack([(one - other).norm() / other.norm() for one, other in zip(ours, theirs, strict=True)])
    return float(shares.nan_to_num(nan=float("inf")).max())
