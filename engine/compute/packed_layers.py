# pyright: basic
# Reason: autograd functions over torch's loosely typed operators.
"""The parts of a Llama-like layer with hand-written backward passes.

The base weights are frozen, so no gradient of theirs is computed; what can be recomputed by a cheap elementwise
pass is not kept. Axes: ``N`` packed tokens, ``D`` hidden size, ``I`` intermediate size, ``R`` LoRA rank.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from . import kernels
from .backbone import ActiveLora, LoraPair
from .row_blocks import REFERENCE, RowBlocks, zero_sums


@dataclass(frozen=True, slots=True)
class Linear:
    """A frozen matrix [sum of widths, d_in] that stands for one or more adapted matrices stacked by rows.

    ``packed`` are it and its transpose in the order in which oneDNN reads them, in place of ``weight``: a product then
    need not reorder them every time, which with few rows costs more than the product.
    """

    weight: Tensor | None
    bias: Tensor | None
    names: tuple[str, ...]
    widths: tuple[int, ...]
    packed: tuple[Tensor, Tensor] | None = None
    d_in: int = 0

    def zeroing(self, x_rows: int) -> tuple[Linear, Tensor]:
        """Another of the same shape and kind, and x [x_rows, d_in] whose product with it is rounding alone."""
        held = self.packed[0] if self.packed is not None else self.weight
        assert held is not None
        like = torch.empty(0, dtype=held.dtype, device=held.device)
        x, weight = zero_sums(x_rows, self.d_in, sum(self.widths), like)
        bias = None if self.bias is None else torch.zeros_like(self.bias)
        if self.packed is None:
            return replace(self, weight=weight, bias=bias), x
        packed = pack(weight)
        return replace(self, bias=bias, packed=(packed, packed)), x

    def apply(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """The product: x W^T + bias (+ residual)."""
        if self.packed is not None:
            if residual is None:
                return torch.ops.mkldnn._linear_pointwise(x, self.packed[0], self.bias, "none", [], "")
            return torch.ops.mkldnn._linear_pointwise.binary(x, residual, self.packed[0], self.bias, "add")
        weight = self.weight
        assert weight is not None
        if residual is None:
            return F.linear(x, weight, self.bias)
        y = torch.addmm(residual, x, weight.t())
        return y if self.bias is None else y.add_(self.bias)

    def transposed(self, grad: Tensor) -> Tensor:
        """The gradient w.r.t. x: grad W."""
        if self.packed is not None:
            return torch.ops.mkldnn._linear_pointwise(grad, self.packed[1], None, "none", [], "")
        assert self.weight is not None
        return grad @ self.weight


def can_pack() -> bool:
    """Whether this build of torch has the operators; they are not part of its public interface."""
    operators = ("_reorder_linear_weight", "_linear_pointwise")
    return torch.backends.mkldnn.is_available() and all(hasattr(torch.ops.mkldnn, name) for name in operators)


def layer_blocks(linear: Linear, lora: ActiveLora | None, blocks: RowBlocks) -> RowBlocks | None:
    """Those of ``blocks`` at which products with ``linear`` and its pairs give a row the same wherever it stands."""
    zeroing, x = linear.zeroing(REFERENCE)
    nothing = x.new_zeros((REFERENCE, sum(linear.widths)))
    found = blocks.agreeing(zeroing.apply, x)
    found = found and found.agreeing(zeroing.apply, x, nothing)
    active = Lora.of(linear, lora)
    if not active.pairs or found is None or lora is None:
        return found
    if active.forward is None:
        assert active.a is not None
        return pair_blocks(active.a, sum(linear.widths), found)
    first = zero_sums(REFERENCE, linear.d_in, len(active.pairs[0].a), x)[1]
    pairs = {name: LoraPair(first, torch.ones_like(lora.pairs[name].b)) for name in linear.names if name in lora.pairs}
    tried = Lora.of(zeroing, ActiveLora(pairs, 1.0))
    return found.agreeing(lambda rows: lora_forward(rows, zeroing, tried)[0], x)


def pair_blocks(a: Tensor, outputs: int, blocks: RowBlocks) -> RowBlocks | None:
    """As ``layer_blocks``, for torch's products with an A of this shape [kR, d_in] and a B [outputs, kR]."""
    ranks, inner = a.shape
    x, first = zero_sums(REFERENCE, inner, ranks, a)
    low, second = zero_sums(REFERENCE, ranks, outputs, a)
    found = blocks.agreeing(lambda rows: rows @ first.t(), x)
    nothing = x.new_zeros((REFERENCE, outputs))
    return found and found.agreeing(lambda rows, total: torch.addmm(total, rows, second.t()), low, nothing)


def pack(weight: Tensor) -> Tensor:
    """A bf16 matrix on a CPU in oneDNN's own order; products with it are the same to the last bit."""
    return torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), None)


@dataclass(frozen=True, slots=True)
class Lora:
    """The pairs of one ``Linear``, and stacked: A [kR, d_in], and B [sum of widths, kR] with zeros off its blocks.

    One product with the stacked matrices is cheaper than one for each pair: ranks are small, and the cost is the call.
    ``spans`` are the rows of ``Linear`` that each pair adds to; ``forward`` and ``backward`` are what
    ``kernels.lora_add`` takes, None where it cannot.
    """

    pairs: tuple[LoraPair, ...]
    spans: tuple[slice, ...]
    scaling: float
    a: Tensor | None
    b: Tensor | None
    forward: kernels.LowRank | None = None
    backward: kernels.LowRank | None = None

    @classmethod
    def of(cls, linear: Linear, lora: ActiveLora | None) -> Lora:
        """The active pairs of ``linear``; none if ``lora`` is None."""
        if lora is None:
            return _NO_LORA
        if linear.names not in lora.stacked:
            lora.stacked[linear.names] = cls._stack(linear, lora)
        return lora.stacked[linear.names]

    @classmethod
    def _stack(cls, linear: Linear, lora: ActiveLora) -> Lora:
        blocks = [block for block, name in enumerate(linear.names) if name in lora.pairs]
        if not blocks:
            return _NO_LORA
        ends = list(accumulate(linear.widths))
        spans = tuple(slice(ends[block] - linear.widths[block], ends[block]) for block in blocks)
        pairs = tuple(lora.pairs[linear.names[block]] for block in blocks)
        with torch.no_grad():
            a = torch.cat([pair.a.detach() for pair in pairs])
            compiled = kernels.takes_lora(a, spans)
            forward = _forward_factors(a, pairs, spans, sum(linear.widths)) if compiled else None
            if forward is not None and not any(pair.a.requires_grad for pair in pairs):
                return cls(pairs, spans, lora.scaling, a, None, forward)
            b_t = _stacked_b(pairs, spans, sum(linear.widths))
            backward = _backward_factors(a, b_t, forward) if forward is not None else None
            return cls(pairs, spans, lora.scaling, a, b_t.t(), forward, backward)

    def tensors(self) -> list[Tensor]:
        """A, B, A, B ... for autograd."""
        return [tensor for pair in self.pairs for tensor in pair]


_NO_LORA = Lora((), (), 1.0, None, None)


def _stacked_b(pairs: tuple[LoraPair, ...], spans: tuple[slice, ...], width: int) -> Tensor:
    """All B transposed, [kR, sum of widths], zero off their blocks."""
    rank = pairs[0].a.shape[0]
    stacked = pairs[0].b.new_zeros((rank * len(pairs), width))
    for index, (span, pair) in enumerate(zip(spans, pairs, strict=True)):
        stacked[index * rank : (index + 1) * rank, span] = pair.b.t()
    return stacked


def _forward_factors(a: Tensor, pairs: tuple[LoraPair, ...], spans: tuple[slice, ...], width: int) -> kernels.LowRank:
    """What ``lora_add`` takes from x to y."""
    rank = pairs[0].a.shape[0]
    b = pairs[0].b.new_zeros((rank // 2, width, 2))
    for span, pair in zip(spans, pairs, strict=True):
        b[:, span] = pair.b.view(-1, rank // 2, 2).transpose(0, 1)
    columns = torch.tensor([[span.start, span.stop] for span in spans])
    return kernels.LowRank(a.contiguous(), torch.tensor([[0, a.shape[1]]]), b, columns)


def _backward_factors(a: Tensor, b_t: Tensor, forward: kernels.LowRank) -> kernels.LowRank:
    """What ``lora_add`` takes from the gradient w.r.t. y to that w.r.t. x."""
    ranks, d_in = a.shape
    return kernels.LowRank(b_t, forward.out, a.view(ranks // 2, 2, d_in).transpose(1, 2).contiguous(), forward.into)


def lora_forward(x: Tensor, linear: Linear, lora: Lora, residual: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
    """Y = x W^T + bias (+ residual) with ``scaling (x A^T) B^T`` added to each adapted block; also x A^T [N, kR]."""
    y = linear.apply(x, residual)
    if lora.forward is not None:
        return y, kernels.lora_add(x, lora.forward, lora.scaling, y)
    if lora.a is None or lora.b is None:
        return y, None
    low = x @ lora.a.t()
    return y.addmm_(low, lora.b.t(), alpha=lora.scaling), low


def lora_backward(
    grad: Tensor, x: Tensor, low: Tensor | None, linear: Linear, lora: Lora, *, want_x: bool
) -> tuple[Tensor | None, list[Tensor]]:
    """Gradients w.r.t. x (if wanted) and A, B, A, B ...; ``low`` is what ``lora_forward`` returned."""
    grad_x = linear.transposed(grad) if want_x else None
    if low is None or lora.a is None or lora.b is None:
        return grad_x, []
    return grad_x, lora_gradients(grad, x, low, grad_through(grad, lora, grad_x), lora)


def lora_gradients(grad: Tensor, x: Tensor, low: Tensor | None, grad_low: Tensor | None, lora: Lora) -> list[Tensor]:
    """Gradients w.r.t. A, B, A, B ... from x A^T and grad B [N, kR]."""
    if low is None or grad_low is None:
        return []
    grad_a = (grad_low.t() @ x).mul_(lora.scaling)
    rank = lora.pairs[0].a.shape[0]
    grads: list[Tensor] = []
    for index, span in enumerate(lora.spans):
        piece = slice(index * rank, (index + 1) * rank)
        # Block by block: stacked, most of the product would be of one pair's ranks with another's columns.
        grad_b = (low[:, piece].t() @ grad[:, span]).mul_(lora.scaling)
        grads += [grad_a[piece], grad_b.t()]
    return grads


def grad_through(grad: Tensor, lora: Lora, grad_x: Tensor | None) -> Tensor:
    """Add scaling (grad B) A to ``grad_x`` in place, if there is one; returns grad B [N, kR]."""
    assert lora.a is not None
    assert lora.b is not None
    if grad_x is not None and lora.backward is not None:
        return kernels.lora_add(grad.contiguous(), lora.backward, lora.scaling, grad_x)
    grad_low = grad @ lora.b
    if grad_x is not None:
        grad_x.addmm_(grad_low, lora.a, alpha=lora.scaling)
    return grad_low


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Root-mean-square norm over the last axis and its fp32 reciprocal root [.., 1]. Zhang and Sennrich 2019."""
    if x.dim() == 2 and kernels.usable(x):
        return kernels.rms_norm(x, weight, eps)
    wide = x.float()
    root = torch.rsqrt(wide.square().mean(dim=-1, keepdim=True).add_(eps))
    return (wide * root).to(x.dtype).mul_(weight), root


def rms_norm_backward(grad: Tensor, x: Tensor, root: Tensor, weight: Tensor) -> Tensor:
    """Gradient w.r.t. x: root (g w) - x root^3 mean(g w x)."""
    if x.dim() == 2 and kernels.usable(x):
        return kernels.rms_backward(grad.contiguous(), x, root, weight)
    wide = (grad * weight).float()
    values = x.float()
    drag = (wide * values).mean(dim=-1, keepdim=True).mul_(root.pow(3))
    return wide.mul_(root).sub_(values.mul_(drag)).to(grad.dtype)


class NormedLinear(torch.autograd.Function):
    """y = (rms_norm(x) W^T + bias) with LoRA. Keeps x and the norm's root, not the normalised x."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, norm: Tensor, eps: float, linear: Linear, lora: Lora, *_pairs: Tensor) -> Tensor:
        """Returns [N, sum of widths]."""
        normed, root = rms_norm(x, norm, eps)
        y, low = lora_forward(normed, linear, lora)
        ctx.save_for_backward(x, root, low, norm)
        ctx.linear, ctx.lora = linear, lora
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        """Gradients w.r.t. x and the pairs."""
        x, root, low, norm = ctx.saved_tensors
        want_x = ctx.needs_input_grad[0]
        normed = kernels.rms_again(x, norm, root) if kernels.usable(x) else (x.float() * root).to(x.dtype).mul_(norm)
        grad_normed, grads = lora_backward(grad, normed, low, ctx.linear, ctx.lora, want_x=want_x)
        grad_x = rms_norm_backward(grad_normed, x, root, norm) if grad_normed is not None else None
        return (grad_x, None, None, None, None, *grads)


class ResidualLinear(torch.autograd.Function):
    """y = residual + x W^T + bias with LoRA."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, residual: Tensor, linear: Linear, lora: Lora, *_pairs: Tensor) -> Tensor:
        """Returns [N, D]."""
        y, low = lora_forward(x, linear, lora, residual)
        ctx.save_for_backward(x, low)
        ctx.linear, ctx.lora = linear, lora
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        """Gradients w.r.t. x, the residual and the pairs."""
        x, low = ctx.saved_tensors
        grad_x, grads = lora_backward(grad, x, low, ctx.linear, ctx.lora, want_x=ctx.needs_input_grad[0])
        return (grad_x, grad if ctx.needs_input_grad[1] else None, None, None, *grads)


def gated(gate_up: Tensor, activation: str) -> Tensor:
    """act(gate) * up, both halves of ``gate_up`` [N, 2I]. Shazeer 2020, arXiv 2002.05202."""
    if kernels.usable(gate_up):
        return kernels.gated(gate_up, activation)
    gate, up = gate_up.chunk(2, dim=-1)
    return (F.silu(gate) if activation == "silu" else F.gelu(gate, approximate="tanh")).mul_(up)


def _gated_backward(grad: Tensor, gate_up: Tensor, activation: str) -> tuple[Tensor, Tensor]:
    """Gradient w.r.t. ``gate_up`` [N, 2I], and act(gate) * up again."""
    if kernels.usable(gate_up):
        return kernels.gated_backward(grad, gate_up, activation)
    gate, up = gate_up.chunk(2, dim=-1)
    result = torch.empty_like(gate_up)
    grad_gate, grad_up = result.chunk(2, dim=-1)
    if activation == "silu":
        activated = F.silu(gate)
        grad_gate.copy_(torch.ops.aten.silu_backward(grad * up, gate))
    else:
        activated = F.gelu(gate, approximate="tanh")
        grad_gate.copy_(torch.ops.aten.gelu_backward(grad * up, gate, approximate="tanh"))
    torch.mul(grad, activated, out=grad_up)
    return result, activated.mul_(up)


class GatedDown(torch.autograd.Function):
    """y = residual + (act(gate) * up) W^T + bias with LoRA. Keeps gate and up, not their product."""

    @staticmethod
    def forward(
        ctx: Any, gate_up: Tensor, residual: Tensor, activation: str, linear: Linear, lora: Lora, *_pairs: Tensor
    ) -> Tensor:
        """Returns [N, D]."""
        y, low = lora_forward(gated(gate_up, activation), linear, lora, residual)
        ctx.save_for_backward(gate_up, low)
        ctx.linear, ctx.lora, ctx.activation = linear, lora, activation
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        """Gradients w.r.t. gate and up, the residual and the pairs."""
        gate_up, low = ctx.saved_tensors
        want_x = ctx.needs_input_grad[0]
        if not want_x:
            inner = gated(gate_up, ctx.activation)
            grads = lora_backward(grad, inner, low, ctx.linear, ctx.lora, want_x=False)[1]
            return (None, grad, None, None, None, *grads)
        grad_inner = ctx.linear.transposed(grad)
        grad_low = None if low is None else grad_through(grad, ctx.lora, grad_inner)
        grad_gate_up, inner = _gated_backward(grad_inner, gate_up, ctx.activation)
        grads = lora_gradients(grad, inner, low, grad_low, ctx.lora)
        return (grad_gate_up, grad if ctx.needs_input_grad[1] else None, None, None, None, *grads)


class Recomputed(torch.autograd.Function):
    """A part of the model that keeps its input alone, and runs again in the backward pass. Chen et al. 2016.

    ``run`` is a function of x; ``pairs`` are all leaves in it that want a gradient.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, run: Callable[[Tensor], Tensor], *pairs: Tensor) -> Tensor:
        """Returns run(x)."""
        ctx.save_for_backward(x)
        ctx.run, ctx.pairs = run, pairs
        return run(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        """Gradients w.r.t. x and the pairs."""
        (x,) = ctx.saved_tensors
        want_x = ctx.needs_input_grad[0]
        with torch.enable_grad():
            leaf = x.detach().requires_grad_(want_x)
            y = ctx.run(leaf)
        grads = torch.autograd.grad(y, [leaf, *ctx.pairs] if want_x else ctx.pairs, grad)
        return (grads[0], None, *grads[1:]) if want_x else (None, None, *grads)
