# pyright: basic
# Reason: calls of compiled kernels on torch's data pointers.
"""Attention with all but its matrix products in compiled loops (``engine.kernels``). Axes as in ``kernels.c``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from sota_ml_researcher.engine import kernels
from sota_ml_researcher.engine.model_packed_attention import (
    KEPT_LENGTHS,
    PLAIN_LENGTH,
    Bucket,
    Heads,
    fused,
    fused_backward,
)
from sota_ml_researcher.engine.packing import PackedTokens


def usable(qkv: Tensor, heads: Heads) -> bool:
    """Whether the kernels take this layer's queries, keys and values."""
    return kernels.usable(qkv) and kernels.fits(heads.size, heads.group)


def attention(
    qkv: Tensor,
    cos: Tensor,
    sin: Tensor,
    heads: Heads,
    buckets: Sequence[Bucket],
    kept: list[Tensor | None] | None = None,
) -> Tensor:
    """From qkv [N, (H + 2J) E] to [N, H E]; weights of short sequences are added to ``kept``, else None."""
    out = qkv.new_empty((len(qkv), heads.query * heads.size))
    for bucket in buckets:
        q, k, v = split_heads(qkv, cos, sin, heads, bucket)
        weights = None
        if bucket.length <= PLAIN_LENGTH:
            weights = _weights(q, k, bucket, heads)
            result = torch.bmm(weights, v.flatten(0, 1))
        else:
            result = fused(q, k, v, bucket, heads).contiguous()
        if kept is not None:
            kept.append(weights if bucket.length <= KEPT_LENGTHS * heads.size else None)
        _pack_heads(result, bucket, heads, out)
    return out


def attention_backward(
    grad: Tensor,
    qkv: Tensor,
    cos: Tensor,
    sin: Tensor,
    heads: Heads,
    buckets: Sequence[Bucket],
    kept: Sequence[Tensor | None],
) -> Tensor:
    """Gradient by qkv; the formulas are those of ``model_packed_attention``."""
    out = torch.empty_like(qkv)
    grad = grad.contiguous()
    for bucket, known in zip(buckets, kept, strict=True):
        q, k, v = split_heads(qkv, cos, sin, heads, bucket)
        grad_out = _pad_heads(grad, bucket, heads)
        if bucket.length > PLAIN_LENGTH:
            grads = [each.contiguous() for each in fused_backward((q, k, v), grad_out, bucket, heads)]
        else:
            weights = _weights(q, k, bucket, heads) if known is None else known
            folded_q, folded_grad = (_folded(each, bucket, heads) for each in (q, grad_out))
            slope = torch.bmm(folded_grad, v.flatten(0, 1).transpose(1, 2))
            grad_v = torch.bmm(weights.transpose(1, 2), folded_grad)
            rows = slope.shape[0] * slope.shape[1]
            kernels.call("softmax_backward", slope.dtype, rows, bucket.length, heads.scale, weights, slope)
            grads = [torch.bmm(slope, k.flatten(0, 1)), torch.bmm(slope.transpose(1, 2), folded_q), grad_v]
        kernels.call(
            "merge_heads",
            qkv.dtype,
            bucket.stop - bucket.start,
            bucket.length,
            bucket.start,
            bucket.real,
            heads.query,
            heads.key,
            heads.size,
            *(each.contiguous() for each in grads),
            qkv,
            heads.norm,
            heads.eps,
            cos,
            sin,
            out,
        )
    return out


class Sight(NamedTuple):
    """What each packed token sees: tokens ``first_N`` to ``until_N``, and ``own_N`` to itself."""

    first_N: Tensor
    until_N: Tensor
    own_N: Tensor


def make_sight(batch: PackedTokens, window: int | None) -> Sight:
    """On a prefix and alone: what came before. On a branch: the prefix, and the branch so far."""
    positions_N, branches_N = batch.positions_N, batch.branches_N
    place_N = torch.arange(len(positions_N))
    sizes = torch.tensor(batch.lengths)
    start_N = (sizes.cumsum(0) - sizes).repeat_interleave(sizes)
    own_N = place_N.clone() + 1
    until_N = place_N + 1
    if branches_N is not None:
        tree_N = torch.arange(len(sizes)).repeat_interleave(sizes)
        prefix_N = torch.bincount(tree_N, (branches_N == 0).double(), len(sizes)).long()[tree_N]
        on_branch = branches_N > 0
        until_N = torch.where(on_branch, start_N + prefix_N, until_N)
        own_N = torch.where(on_branch, place_N - (positions_N - prefix_N), own_N)
    first_N = start_N
    if window is not None:
        first_N = torch.maximum(start_N, start_N + positions_N - window + 1).minimum(until_N)
        own_N = torch.maximum(own_N, place_N - window + 1)
    return Sight(first_N, until_N, own_N)


def attention_by_rows(qkv: Tensor, cos: Tensor, sin: Tensor, heads: Heads, sight: Sight) -> Tensor:
    """From qkv [N, (H + 2J) E] to [N, H E], each token's the same to the last bit whatever is packed with it."""
    q, k, v = split_heads(qkv, cos, sin, heads, Bucket(0, len(qkv), 1, len(qkv), None, None))
    out = qkv.new_empty((len(qkv), heads.query * heads.size))
    shape = (len(qkv), heads.query, heads.key, heads.size)
    kernels.call("attend_rows", qkv.dtype, *shape, q, k, v, heads.scale, *sight, out)
    return out


def keys_values(qkv: Tensor, cos: Tensor, sin: Tensor, heads: Heads) -> tuple[Tensor, Tensor]:
    """Normed, rotated keys and plain values [N, J, E] of packed tokens."""
    _, k, v = split_heads(qkv, cos, sin, heads, Bucket(0, len(qkv), 1, len(qkv), None, None))
    return k[0].transpose(0, 1), v[0].transpose(0, 1)


def split_heads(qkv: Tensor, cos: Tensor, sin: Tensor, heads: Heads, bucket: Bucket) -> tuple[Tensor, Tensor, Tensor]:
    """Normed, rotated q [S, H, L, E], and k, v [S, J, L, E] of a bucket; padding repeats its first token."""
    q = qkv.new_empty((bucket.count, heads.query, bucket.length, heads.size))
    k, v = (qkv.new_empty((bucket.count, heads.key, bucket.length, heads.size)) for _ in range(2))
    kernels.call(
        "split_heads",
        qkv.dtype,
        bucket.count,
        bucket.length,
        bucket.start,
        bucket.places,
        heads.query,
        heads.key,
        heads.size,
        qkv,
        heads.norm,
        heads.eps,
        cos,
        sin,
        q,
        k,
        v,
    )
    return q, k, v


def _weights(q: Tensor, k: Tensor, bucket: Bucket, heads: Heads) -> Tensor:
    """softmax(scale q k^T) [S J, G L, L] over what each query sees."""
    scores = torch.bmm(_folded(q, bucket, heads), k.flatten(0, 1).transpose(1, 2))
    position, branch = bucket.tree or (None, None)
    kernels.call(
        "softmax_causal",
        scores.dtype,
        len(scores),
        heads.group,
        bucket.length,
        heads.key,
        heads.scale,
        heads.window or 0,
        position,
        branch,
        scores,
    )
    return scores


def _folded(x: Tensor, bucket: Bucket, heads: Heads) -> Tensor:
    """[S, H, L, E] -> [S J, G L, E]."""
    return x.view(bucket.count * heads.key, heads.group * bucket.length, heads.size)


def _pack_heads(x: Tensor, bucket: Bucket, heads: Heads, out: Tensor) -> None:
    tokens = bucket.stop - bucket.start
    shape = (tokens, bucket.length, bucket.start, bucket.real, heads.query, heads.size)
    kernels.call("pack_heads", x.dtype, *shape, x, out)


def _pad_heads(x: Tensor, bucket: Bucket, heads: Heads) -> Tensor:
    """[N, H E] -> [S, H, L, E] with zeros for padding, whose gradients must not leak into real keys."""
    out = x.new_empty((bucket.count, heads.query, bucket.length, heads.size))
    shape = (bucket.count, bucket.length, bucket.start, bucket.places, heads.query, heads.size)
    kernels.call("pad_heads", x.dtype, *shape, x, out)
    return out
