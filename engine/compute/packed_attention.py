# pyright: basic
# Reason: autograd functions over torch's loosely typed operators.
"""Causal attention over packed sequences: each sees itself alone, and nothing but attention is ever padded.

Queries, keys and values come out of the packed form, and go back into it, by ``CompiledHeads`` (``kernels.c``) or
``TorchHeads`` (torch's operations); ``split`` chooses. Attention of the padded heads in between is written once. On
CUDA a batch that is trained on is one bucket without padding (`flex`).

Axes: ``N`` packed tokens, ``S`` sequences of one bucket, ``T`` its longest length, ``H`` query heads, ``J`` key heads,
``G`` query heads per key head, ``E`` head size.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ...core.memory import KEPT_LENGTHS, PLAIN_LENGTH
from . import kernels
from .attention_layout import AttentionSpan, Bucket, Heads, Rotary
from .packed_layers import rms_norm, rms_norm_backward


class CompiledHeads:
    """Heads of qkv [N, (H + 2J) E], by the compiled kernels."""

    def __init__(self, qkv: Tensor, rotary: Rotary, heads: Heads) -> None:
        self.qkv, self.heads = qkv, heads
        self._rotary = rotary

    def padded(self, bucket: Bucket) -> tuple[Tensor, Tensor, Tensor]:
        """Normed, rotated q [S, H, T, E], and k, v [S, J, T, E] of a bucket."""
        return kernels.split_heads(self.qkv, self._rotary, self.heads, bucket)

    def keys_values(self) -> tuple[Tensor, Tensor]:
        """Normed, rotated keys and plain values [N, J, E]."""
        _, k, v = self.padded(_whole(self.qkv))
        return k[0].transpose(0, 1), v[0].transpose(0, 1)

    def weights(self, q: Tensor, k: Tensor, bucket: Bucket) -> Tensor:
        """softmax(scale q k^T) [S J, G T, T] over what each query sees, of folded q and k."""
        scores = torch.bmm(q, k.transpose(1, 2))
        kernels.softmax_causal(scores, self.heads, bucket)
        return scores

    def grad_scores(self, grad: Tensor, weights: Tensor) -> Tensor:
        """Gradient w.r.t. q k^T from that w.r.t. the weights P: scale P (g - rowsum(P g)). ``grad`` is overwritten."""
        kernels.softmax_backward(grad, weights, self.heads.scale)
        return grad

    def unpad(self, x: Tensor, bucket: Bucket, out: Tensor) -> None:
        """Write a bucket's [S, H, T, E] to ``out`` [N, H E]."""
        kernels.pack_heads(x.contiguous(), self.heads, bucket, out)

    def pad_grad(self, grad: Tensor, bucket: Bucket) -> Tensor:
        """A bucket of ``grad`` [N, H E] as [S, H, T, E]. Padding is zero: it must not leak into real keys."""
        return kernels.pad_heads(grad, self.heads, bucket)

    def merge(self, pieces: Iterable[tuple[Bucket, Sequence[Tensor]]]) -> Tensor:
        """Gradient w.r.t. qkv, from those of each bucket w.r.t. what ``padded`` returned."""
        out = torch.empty_like(self.qkv)
        for bucket, grads in pieces:
            q, k, v = (each.contiguous() for each in grads)
            kernels.merge_heads((q, k, v), self.qkv, self._rotary, self.heads, bucket, out)
        return out


class TorchHeads:
    """As ``CompiledHeads``, by torch's operations, on every device."""

    def __init__(self, qkv: Tensor, rotary: Rotary, heads: Heads) -> None:
        self.qkv, self.heads = qkv, heads
        self._rotary = rotary
        self._q, self._k, self._v, self._root = queries_keys(qkv, rotary, heads)

    def padded(self, bucket: Bucket) -> tuple[Tensor, Tensor, Tensor]:
        """Normed, rotated q [S, H, T, E], and k, v [S, J, T, E] of a bucket."""
        return _pad(self._q, bucket), _pad(self._k, bucket), _pad(self._v, bucket)

    def keys_values(self) -> tuple[Tensor, Tensor]:
        """Normed, rotated keys and plain values [N, J, E]."""
        return self._k, self._v

    def weights(self, q: Tensor, k: Tensor, bucket: Bucket) -> Tensor:
        """softmax(scale q k^T + mask) [S J, G T, T] of folded q and k."""
        if bucket.tree is not None:
            scores = torch.bmm(q * self.heads.scale, k.transpose(1, 2))
            by_sequence = scores.view(bucket.count, self.heads.query, bucket.length, bucket.length)
            by_sequence += _tree_mask(bucket.tree, self.heads, q)
            return torch.softmax(scores, dim=-1)
        mask = _mask(bucket, self.heads, q).repeat(self.heads.group, 1)
        return torch.softmax(torch.baddbmm(mask, q, k.transpose(1, 2), alpha=self.heads.scale), dim=-1)

    def grad_scores(self, grad: Tensor, weights: Tensor) -> Tensor:
        """Gradient w.r.t. q k^T from that w.r.t. the weights P: scale P (g - rowsum(P g))."""
        return torch.ops.aten._softmax_backward_data(grad, weights, -1, weights.dtype).mul_(self.heads.scale)

    def unpad(self, x: Tensor, bucket: Bucket, out: Tensor) -> None:
        """Write a bucket's [S, H, T, E] to ``out`` [N, H E]."""
        _unpad(x, bucket, out.view(self._q.shape))

    def pad_grad(self, grad: Tensor, bucket: Bucket) -> Tensor:
        """A bucket of ``grad`` [N, H E] as [S, H, T, E]. Padding is zero: it must not leak into real keys."""
        part = grad.view(self._q.shape)[bucket.start : bucket.stop]
        if bucket.real is not None:
            padded = part.new_zeros((bucket.count * bucket.length, *part.shape[1:]))
            padded[bucket.real] = part
            part = padded
        return part.view(bucket.count, bucket.length, *part.shape[1:]).transpose(1, 2)

    def merge(self, pieces: Iterable[tuple[Bucket, Sequence[Tensor]]]) -> Tensor:
        """Gradient w.r.t. qkv, from those of each bucket w.r.t. what ``padded`` returned."""
        both, v = (part.new_empty(part.shape) for part in _split(self.qkv, self.heads))
        for bucket, grads in pieces:
            for grad, out in zip(grads, (both[:, : self.heads.query], both[:, self.heads.query :], v), strict=True):
                _unpad(grad, bucket, out)
        both = rotate(both, self._rotary.cos, -self._rotary.sin)
        if self.heads.norm is not None and self._root is not None:
            both = rms_norm_backward(both, _split(self.qkv, self.heads)[0], self._root, self.heads.norm)
        return torch.cat([both, v], dim=1).view(self.qkv.shape)


def split(qkv: Tensor, rotary: Rotary, heads: Heads) -> CompiledHeads | TorchHeads:
    """The heads of qkv [N, (H + 2J) E], by whichever implementation the model was loaded with."""
    return CompiledHeads(qkv, rotary, heads) if heads.compiled else TorchHeads(qkv, rotary, heads)


def attention(
    parts: CompiledHeads | TorchHeads, buckets: Sequence[Bucket], kept: list[Tensor | None] | None = None
) -> Tensor:
    """Attention, each sequence by itself: [N, H E].

    The weights of each bucket are added to ``kept`` where they are about as small as q, else None.
    """
    heads = parts.heads
    out = parts.qkv.new_empty((len(parts.qkv), heads.query * heads.size))
    for bucket in buckets:
        q, k, v = parts.padded(bucket)
        weights = None
        if _is_plain(bucket, parts):
            weights = parts.weights(_folded(q, heads), k.flatten(0, 1), bucket)
            result = _unfolded(torch.bmm(weights, v.flatten(0, 1)), bucket, heads)
        else:
            result = fused(q, k, v, bucket, heads)
        if kept is not None:
            kept.append(weights if bucket.length <= KEPT_LENGTHS * heads.size else None)
        parts.unpad(result, bucket, out)
    return out


def attention_backward(
    grad: Tensor, parts: CompiledHeads | TorchHeads, buckets: Sequence[Bucket], kept: Sequence[Tensor | None]
) -> Tensor:
    """Gradient w.r.t. qkv from that w.r.t. what ``attention`` returned."""
    grad = grad.contiguous()

    def piece(bucket: Bucket, weights: Tensor | None) -> tuple[Bucket, Sequence[Tensor]]:
        backward = _plain_backward if _is_plain(bucket, parts) else _fused_backward
        return bucket, backward(parts.padded(bucket), parts.pad_grad(grad, bucket), weights, bucket, parts)

    return parts.merge(map(piece, buckets, kept))


class Attention(torch.autograd.Function):
    """Attention from qkv [N, (H + 2J) E] to [N, H E]. Keeps qkv, and the weights of short sequences."""

    @staticmethod
    def forward(ctx: Any, qkv: Tensor, rotary: Rotary, heads: Heads, buckets: Sequence[Bucket]) -> Tensor:
        """Returns [N, H E]."""
        kept: list[Tensor | None] = []
        out = attention(split(qkv, rotary, heads), buckets, kept)
        ctx.save_for_backward(qkv, *rotary, *kept)
        ctx.heads, ctx.buckets = heads, buckets
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        """Gradient w.r.t. qkv."""
        qkv, cos, sin, *kept = ctx.saved_tensors
        return attention_backward(grad, split(qkv, Rotary(cos, sin), ctx.heads), ctx.buckets, kept), None, None, None


def attention_by_rows(qkv: Tensor, rotary: Rotary, heads: Heads, span: AttentionSpan) -> Tensor:
    """From qkv [N, (H + 2J) E] to [N, H E], each token's the same to the last bit whatever is packed with it."""
    q, k, v = kernels.split_heads(qkv, rotary, heads, _whole(qkv))
    return kernels.attend_rows(q, k, v, heads, span)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary position embedding over the last axis in two halves. Its transpose, for gradients, negates ``sin``."""
    half = x.shape[-1] // 2
    result = x * cos
    result[..., :half].addcmul_(x[..., half:], sin[..., :half], value=-1.0)
    result[..., half:].addcmul_(x[..., :half], sin[..., half:])
    return result


def queries_keys(qkv: Tensor, rotary: Rotary, heads: Heads) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Split qkv [N, (H + 2J) E] into normed, rotated q [N, H, E] and k, v [N, J, E]; and the norm's root, if any.

    Queries and keys lie side by side, so that norm and rotation take both at once.
    """
    both, v = _split(qkv, heads)
    root = None
    if heads.norm is not None:
        both, root = rms_norm(both, heads.norm, heads.eps)
    both = rotate(both, *rotary)
    return both[:, : heads.query], both[:, heads.query :], v, root


def _split(qkv: Tensor, heads: Heads) -> tuple[Tensor, Tensor]:
    """Views of queries and keys [N, H + J, E], and of values [N, J, E]."""
    every = qkv.view(len(qkv), heads.query + 2 * heads.key, heads.size)
    return every[:, : heads.query + heads.key], every[:, heads.query + heads.key :]


def _whole(qkv: Tensor) -> Bucket:
    """All tokens as one sequence."""
    return Bucket(0, len(qkv), 1, len(qkv))


def _pad(x: Tensor, bucket: Bucket) -> Tensor:
    """[N, heads, E] -> [S, heads, T, E]."""
    part = x[bucket.start : bucket.stop]
    if bucket.places is not None:
        part = part[bucket.places]
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
    """Additive mask [T, T]: 0 where a query sees a key, -inf where not."""
    step = torch.arange(bucket.length, device=like.device)
    behind = step[:, None] - step
    hidden = (behind < 0) if heads.window is None else (behind < 0) | (behind >= heads.window)
    return like.new_zeros(hidden.shape).masked_fill_(hidden, float("-inf"))


def _tree_mask(tree: tuple[Tensor, Tensor], heads: Heads, like: Tensor) -> Tensor:
    """Additive mask [S, 1, T, T]: a token sees what came before it on the prefix and on its own branch."""
    position_ST, branch_ST = tree
    step = torch.arange(position_ST.shape[1], device=like.device)
    apart = (branch_ST[:, None] != 0) & (branch_ST[:, None] != branch_ST[:, :, None])
    hidden = apart | (step > step[:, None])
    if heads.window is not None:
        hidden |= position_ST[:, :, None] - position_ST[:, None] >= heads.window
    return like.new_zeros(hidden.shape).masked_fill_(hidden, float("-inf")).unsqueeze(1)


def _is_plain(bucket: Bucket, parts: CompiledHeads | TorchHeads) -> bool:
    """Whether attention is two matrix products with the weights between them, or torch's fused kernel."""
    has_mask = bucket.length <= PLAIN_LENGTH or (bucket.tree is not None and not parts.heads.compiled)
    return bucket.flex is None and parts.qkv.device.type == "cpu" and has_mask


def _plain_backward(
    padded: Sequence[Tensor], grad: Tensor, weights: Tensor | None, bucket: Bucket, parts: CompiledHeads | TorchHeads
) -> tuple[Tensor, Tensor, Tensor]:
    """With P the weights and O = P v: dv = P^T dO, dS = P (dP - rowsum(P dP)), dq = scale dS k, dk = scale dS^T q."""
    heads = parts.heads
    q, (k, v) = _folded(padded[0], heads), (x.flatten(0, 1) for x in padded[1:])
    grad = _folded(grad, heads)
    weights = parts.weights(q, k, bucket) if weights is None else weights
    grad_v = torch.bmm(weights.transpose(1, 2), grad)
    grad_scores = parts.grad_scores(torch.bmm(grad, v.transpose(1, 2)), weights)
    grad_q, grad_k = torch.bmm(grad_scores, k), torch.bmm(grad_scores.transpose(1, 2), q)
    shape = (bucket.count, heads.key, bucket.length, heads.size)
    return _unfolded(grad_q, bucket, heads), grad_k.view(shape), grad_v.view(shape)


def fused(q: Tensor, k: Tensor, v: Tensor, bucket: Bucket, heads: Heads) -> Tensor:
    """Torch's fused kernels on [S, heads, T, E]: memory linear in length.

    Keys and values are repeated by hand for ``scaled_dot_product_attention``: where it shares them itself
    (``enable_gqa``) it gives other gradients on a CPU, and on CUDA in fp32 or with a mask memory quadratic in length.
    """
    if bucket.flex is not None:
        return bucket.flex.apply(q, k, v, heads)
    windowed = heads.window is not None and heads.window < bucket.length
    k, v = (x.repeat_interleave(heads.group, dim=1) for x in (k, v))
    mask = _mask(bucket, heads, q) if windowed else None
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=not windowed, scale=heads.scale)


def _fused_backward(
    padded: Sequence[Tensor], grad: Tensor, _weights: Tensor | None, bucket: Bucket, parts: CompiledHeads | TorchHeads
) -> tuple[Tensor, ...]:
    """Gradients w.r.t. q, k, v [S, heads, T, E] of what ``fused`` computes.

    It is computed again: to keep the heads of every layer would cost more in memory than this costs in time.
    """
    with torch.enable_grad():
        q, k, v = leaves = [x.detach().requires_grad_() for x in padded]
        out = fused(q, k, v, bucket, parts.heads)
    return torch.autograd.grad(out, leaves, grad)
