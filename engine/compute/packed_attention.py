"""Causal attention over packed sequences: each sees itself alone, and nothing but attention is ever padded.

Axes: ``N`` packed tokens, ``S`` sequences of one bucket, ``T`` its longest length, ``H`` query heads, ``J`` key heads,
``G`` query heads a key head, ``E`` head size.
"""
# pyright: basic
# Reason: autograd functions over torch's loosely typed operators.
# Reason: calls of compiled kernels on torch's data pointers.

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from . import kernels
from .packed_layers import rms_norm, rms_norm_backward
from .packing import PackedTokens


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
            folded_q, folded_grad = (_model_packed_fused_folded(each, bucket, heads) for each in (q, grad_out))
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
    scores = torch.bmm(_model_packed_fused_folded(q, bucket, heads), k.flatten(0, 1).transpose(1, 2))
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


def _model_packed_fused_folded(x: Tensor, bucket: Bucket, heads: Heads) -> Tensor:
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


_WASTE = 1.3
# Below this length two plain matrix products beat torch's fused kernel on a CPU (3 times, at 128 tokens in bf16).
PLAIN_LENGTH = 1024
# Weights of sequences up to this many head sizes long are kept for the backward pass: per token they are then at most
# four times as large as a query.
KEPT_LENGTHS = 4


@dataclass(frozen=True, slots=True)
class Heads:
    """Shape of one layer's attention; ``norm`` [H + J, E] is the factor of each query and key head, if it has any."""

    query: int
    key: int
    size: int
    scale: float
    window: int | None = None
    norm: Tensor | None = None
    eps: float = 1e-6

    @property
    def group(self) -> int:
        """Query heads that share a key head."""
        return self.query // self.key


@dataclass(frozen=True, slots=True)
class Bucket:
    """Sequences of similar length: tokens ``start`` to ``stop`` of the packed batch, seen as [S, T] with padding.

    ``places`` [S * T] maps into the bucket's tokens (padding points at token 0) and ``real`` [n] back out of the
    padded form; both are None where all lengths are equal. Trees of sequences bring the position and the branch of
    each token, [S, T].
    """

    start: int
    stop: int
    count: int
    length: int
    places: Tensor | None
    real: Tensor | None
    tree: tuple[Tensor, Tensor] | None = None


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
        return Bucket(start, start + total, len(lengths), longest, None, None)
    sizes = torch.tensor(lengths, device=device)
    first_S = sizes.cumsum(0) - sizes
    step_T = torch.arange(longest, device=device)
    inside_ST = step_T < sizes[:, None]
    places = torch.where(inside_ST, first_S[:, None] + step_T, 0).reshape(-1)
    return Bucket(start, start + total, len(lengths), longest, places, inside_ST.reshape(-1).nonzero().squeeze(-1))


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary position embedding over the last axis in two halves. Su et al. 2021, arXiv 2104.09864.

    ``cos`` and ``sin`` are [N, 1, E] with both halves equal. The transpose (for gradients) is a negated ``sin``.
    """
    half = x.shape[-1] // 2
    result = x * cos
    result[..., :half].addcmul_(x[..., half:], sin[..., :half], value=-1.0)
    result[..., half:].addcmul_(x[..., :half], sin[..., half:])
    return result


def queries_keys(qkv: Tensor, heads: Heads, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Split qkv [N, (H + 2J) E] into normed, rotated q [N, H, E] and k, v [N, J, E]; and the norm's root, if any.

    Queries and keys lie side by side, so that norm and rotation take both at once.
    """
    both, v = _split(qkv, heads)
    root = None
    if heads.norm is not None:
        both, root = rms_norm(both, heads.norm, heads.eps)
    both = rotate(both, cos, sin)
    return both[:, : heads.query], both[:, heads.query :], v, root


def _split(qkv: Tensor, heads: Heads) -> tuple[Tensor, Tensor]:
    """Views of queries and keys [N, H + J, E], and of values [N, J, E]."""
    every = qkv.view(len(qkv), heads.query + 2 * heads.key, heads.size)
    return every[:, : heads.query + heads.key], every[:, heads.query + heads.key :]


def _pad(x: Tensor, bucket: Bucket) -> Tensor:
    """[N, heads, E] -> [S, heads, T, E]."""
    part = x[bucket.start : bucket.stop]
    if bucket.places is not None:
        part = part[bucket.places]
    return part.view(bucket.count, bucket.length, *x.shape[1:]).transpose(1, 2)


def _pad_zero(x: Tensor, bucket: Bucket) -> Tensor:
    """As ``_pad``, with zeros for padding: gradients of padding must not leak into real keys."""
    part = x[bucket.start : bucket.stop]
    if bucket.real is not None:
        padded = x.new_zeros((bucket.count * bucket.length, *x.shape[1:]))
        padded[bucket.real] = part
        part = padded
    return part.view(bucket.count, bucket.length, *x.shape[1:]).transpose(1, 2)


def _unpad(x: Tensor, bucket: Bucket, out: Tensor) -> None:
    """[S, heads, T, E] into ``out`` [N, heads, E]."""
    flat = x.transpose(1, 2).reshape(bucket.count * bucket.length, *out.shape[1:])
    out[bucket.start : bucket.stop] = flat if bucket.real is None else flat[bucket.real]


def _folded(x: Tensor, heads: Heads) -> Tensor:
    """[S, H, T, E] -> [S J, G T, E]: the queries that share a key head lie under one another."""
    count, _, length, size = x.shape
    return x.reshape(count * heads.key, heads.group * length, size)


def _unfolded(x: Tensor, bucket: Bucket, heads: Heads) -> Tensor:
    return x.view(bucket.count, heads.query, bucket.length, heads.size)


def _mask(bucket: Bucket, heads: Heads, like: Tensor) -> Tensor:
    """Additive mask [G T, T]: 0 where a query sees a key, -inf where not."""
    step = torch.arange(bucket.length, device=like.device)
    behind = step[:, None] - step
    hidden = (behind < 0) if heads.window is None else (behind < 0) | (behind >= heads.window)
    mask = like.new_zeros((bucket.length, bucket.length)).masked_fill_(hidden, float("-inf"))
    return mask.repeat(heads.group, 1)


def _tree_mask(tree: tuple[Tensor, Tensor], heads: Heads, like: Tensor) -> Tensor:
    """Additive mask [S, 1, T, T]: a token sees what came before it on the prefix and on its own branch."""
    position_ST, branch_ST = tree
    step = torch.arange(position_ST.shape[1], device=like.device)
    apart = (branch_ST[:, None] != 0) & (branch_ST[:, None] != branch_ST[:, :, None])
    hidden = apart | (step > step[:, None])
    if heads.window is not None:
        hidden |= position_ST[:, :, None] - position_ST[:, None] >= heads.window
    return like.new_zeros(hidden.shape).masked_fill_(hidden, float("-inf")).unsqueeze(1)


def _probabilities(q: Tensor, k: Tensor, bucket: Bucket, heads: Heads) -> Tensor:
    """softmax(scale q k^T + mask) [S J, G T, T] of folded q and k."""
    if bucket.tree is not None:
        scores = torch.bmm(q * heads.scale, k.transpose(1, 2))
        by_sequence = scores.view(bucket.count, heads.query, bucket.length, bucket.length)
        by_sequence += _tree_mask(bucket.tree, heads, q)
        return torch.softmax(scores, dim=-1)
    mask = _mask(bucket, heads, q)
    return torch.softmax(torch.baddbmm(mask, q, k.transpose(1, 2), alpha=heads.scale), dim=-1)


def _is_plain(bucket: Bucket, like: Tensor) -> bool:
    return like.device.type == "cpu" and (bucket.length <= PLAIN_LENGTH or bucket.tree is not None)


def fused(q: Tensor, k: Tensor, v: Tensor, bucket: Bucket, heads: Heads) -> Tensor:
    """Torch's own kernel on [S, heads, T, E]: memory linear in length."""
    windowed = heads.window is not None and heads.window < bucket.length
    k, v = (x.repeat_interleave(heads.group, dim=1) for x in (k, v))
    mask = _mask(bucket, heads, q)[: bucket.length] if windowed else None
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=not windowed, scale=heads.scale)


def attend(
    q: Tensor, k: Tensor, v: Tensor, heads: Heads, buckets: Sequence[Bucket], kept: list[Tensor | None] | None = None
) -> Tensor:
    """Attention of rotated q [N, H, E] over k, v [N, J, E], each sequence by itself; [N, H, E].

    Weights of each bucket are added to ``kept`` where they are about as small as q; else None.
    """
    out = q.new_empty(q.shape)
    for bucket in buckets:
        padded = [_pad(x, bucket) for x in (q, k, v)]
        if _is_plain(bucket, q):
            folded_k, folded_v = (x.flatten(0, 1) for x in padded[1:])
            weights = _probabilities(_folded(padded[0], heads), folded_k, bucket, heads)
            result = _unfolded(torch.bmm(weights, folded_v), bucket, heads)
            if kept is not None:
                kept.append(weights if bucket.length <= KEPT_LENGTHS * heads.size else None)
        else:
            if kept is not None:
                kept.append(None)
            result = fused(padded[0], padded[1], padded[2], bucket, heads)
        _unpad(result, bucket, out)
    return out


class Attention(torch.autograd.Function):
    """Attention from qkv [N, (H + 2J) E] to [N, H E]. Keeps qkv, and the weights of short sequences."""

    @staticmethod
    def forward(ctx: Any, qkv: Tensor, cos: Tensor, sin: Tensor, heads: Heads, buckets: Sequence[Bucket]) -> Tensor:
        """Returns [N, H E]."""
        pass

        kept: list[Tensor | None] = []
        if usable(qkv, heads):
            out = attention(qkv, cos, sin, heads, buckets, kept)
        else:
            q, k, v, _ = queries_keys(qkv, heads, cos, sin)
            out = attend(q, k, v, heads, buckets, kept)
        ctx.save_for_backward(qkv, cos, sin, *kept)
        ctx.heads, ctx.buckets = heads, buckets
        return out.view(len(qkv), -1)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:  # type: ignore[override]
        """Gradient by qkv."""
        qkv, cos, sin, *kept = ctx.saved_tensors
        heads: Heads = ctx.heads
        pass

        if usable(qkv, heads):
            result = attention_backward(grad, qkv, cos, sin, heads, ctx.buckets, kept)
            return result, None, None, None, None
        q, k, v, root = queries_keys(qkv, heads, cos, sin)
        grad_out = grad.view(q.shape)
        result = torch.empty_like(qkv)
        raw_both, _ = _split(qkv, heads)
        out_both, grad_v = _split(result, heads)
        grad_both = qkv.new_empty(raw_both.shape)
        outs = (grad_both[:, : heads.query], grad_both[:, heads.query :], grad_v)
        for bucket, weights in zip(ctx.buckets, kept, strict=True):
            padded = [_pad(x, bucket) for x in (q, k, v)]
            grad_padded = _pad_zero(grad_out, bucket)
            if _is_plain(bucket, qkv):
                pieces = _plain_backward(padded, grad_padded, bucket, heads, weights)
            else:
                pieces = fused_backward(padded, grad_padded, bucket, heads)
            for piece, out in zip(pieces, outs, strict=True):
                _unpad(piece, bucket, out)
        grad_both = rotate(grad_both, cos, -sin)
        if heads.norm is not None and root is not None:
            grad_both = rms_norm_backward(grad_both, raw_both, root, heads.norm)
        out_both.copy_(grad_both)
        return result, None, None, None, None


def _plain_backward(
    padded: Sequence[Tensor], grad: Tensor, bucket: Bucket, heads: Heads, weights: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """With P the weights and O = P v: dv = P^T dO, dS = P (dP - rowsum(P dP)), dq = scale dS k, dk = scale dS^T q."""
    q, (k, v) = _folded(padded[0], heads), (x.flatten(0, 1) for x in padded[1:])
    grad = _folded(grad, heads)
    weights = _probabilities(q, k, bucket, heads) if weights is None else weights
    grad_v = torch.bmm(weights.transpose(1, 2), grad)
    grad_weights = torch.bmm(grad, v.transpose(1, 2))
    grad_scores = torch.ops.aten._softmax_backward_data(grad_weights, weights, -1, weights.dtype).mul_(heads.scale)
    grad_q = torch.bmm(grad_scores, k)
    grad_k = torch.bmm(grad_scores.transpose(1, 2), q)
    shape = (bucket.count, heads.key, bucket.length, heads.size)
    return _unfolded(grad_q, bucket, heads), grad_k.view(shape), grad_v.view(shape)


def fused_backward(
    padded: Sequence[Tensor], grad: Tensor, bucket: Bucket, heads: Heads
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients by q, k, v [S, heads, T, E] of what ``fused`` computes."""
    with torch.enable_grad():
        leaves = [x.detach().requires_grad_() for x in padded]
        q, k, v = leaves
        out = fused(q, k, v, bucket, heads)
    grad_q, grad_k, grad_v = torch.autograd.grad(out, leaves, grad)
    return grad_q, grad_k, grad_v
