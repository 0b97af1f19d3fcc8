# pyright: basic
# Reason: tensor arithmetic on torch's loosely typed operators.
"""Log-probabilities from hidden states, a block of rows at a time, so that fp32 [N, V] logits never exist at once.

The backward pass is written by hand: only the rows whose log-probability matters to the loss take part, which is where
supervised data with masked prompts saves half of the work.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise, starmap

import torch
import torch.nn.functional as F
from torch import Tensor

from ...core.memory import ACCELERATOR_LOGITS_BLOCK, KEPT_LOGITS, LOGITS_BLOCK, LOGITS_ROWS
from . import kernels
from .backbone import ActiveLora, Head, LoraPair
from .packed_layers import pack, pair_blocks
from .row_blocks import MOST_WIDE, REFERENCE, RowBlocks, zero_sums

# Most elements of a matrix made up for a trial; larger ones are tried as they are.
_MADE_UP = 1 << 25


@dataclass(frozen=True, slots=True)
class Scores:
    """Log p [M] in fp32 of the asked (row, target) pairs, and what the backward pass reads.

    ``normalizer_N`` is each row's log sum exp in fp32; None where the backward pass computes a softmax instead.
    """

    hidden_ND: Tensor
    rows_M: Tensor
    targets_M: Tensor
    logprobs_M: Tensor
    raw_NV: Tensor | None
    normalizer_N: Tensor | None


@dataclass(frozen=True, slots=True)
class HeadGradient:
    """Gradients of a loss by the hidden states [N, D] and by the unembedding's LoRA pair, where it has one."""

    hidden_ND: Tensor
    a: Tensor | None
    b: Tensor | None


@dataclass(frozen=True, slots=True)
class LoraHead:
    """The frozen unembedding with the LoRA pair that is active on it.

    With ``blocks``, which are for sampling, no row's logits depend on which others are computed with it.
    """

    head: Head
    pair: LoraPair | None = None
    scaling: float = 1.0
    blocks: RowBlocks | None = None

    @classmethod
    def of(cls, head: Head, lora: ActiveLora | None, blocks: RowBlocks | None = None) -> LoraHead:
        """With the pair that ``lora`` has for it, if any."""
        if lora is None:
            return cls(head, blocks=blocks)
        return cls(head, lora.pairs.get(head.name), lora.scaling, blocks)

    def agreeing(self, blocks: RowBlocks) -> RowBlocks | None:
        """Those of ``blocks`` at which a row's logits are the same wherever it stands."""
        tried, x = replace(self, pair=None, blocks=None), self._trial_rows()
        found = blocks.within(MOST_WIDE).agreeing(tried.logits, x)
        if self.head.weight_VD.numel() <= _MADE_UP:
            vocabulary, inner = self.head.weight_VD.shape
            x, weight = zero_sums(REFERENCE, inner, vocabulary, self.head.weight_VD)
            bias = None if self.head.bias_V is None else torch.zeros_like(self.head.bias_V)
            packed = None if self.head.packed is None else pack(weight)
            tried = replace(tried, head=replace(self.head, weight_VD=weight, bias_V=bias, packed=packed))
            found = found and found.agreeing(tried.logits, x)
        if self.pair is None or found is None:
            return found
        return pair_blocks(self.pair.a, len(self.pair.b), found)

    def _trial_rows(self) -> Tensor:
        rng = torch.Generator().manual_seed(0)
        return torch.randn(REFERENCE, self.head.weight_VD.shape[1], generator=rng).to(self.head.weight_VD)

    @property
    def block_rows(self) -> int:
        """Rows to compute logits of at a time."""
        weight = self.head.weight_VD
        width = weight.shape[0] * (weight.element_size() if self._is_compiled() else 4)
        size = LOGITS_BLOCK if weight.device.type == "cpu" else ACCELERATOR_LOGITS_BLOCK
        return max(LOGITS_ROWS, size // width)

    def _is_compiled(self) -> bool:
        """Whether compiled loops take the raw logits as they are."""
        return self.head.scale == 1.0 and self.head.softcap is None and kernels.usable(self.head.weight_VD)

    def _raw(self, hidden_ND: Tensor, out: Tensor | None = None) -> Tensor:
        """Logits [N, V] before what the model does to them."""
        head = self.head
        if out is None and head.packed is not None:
            raw = torch.ops.mkldnn._linear_pointwise(hidden_ND, head.packed, head.bias_V, "none", [], "")
        elif out is None or head.bias_V is not None:
            raw = F.linear(hidden_ND, head.weight_VD, head.bias_V)
            raw = raw if out is None else out.copy_(raw)
        else:
            raw = torch.mm(hidden_ND, head.weight_VD.t(), out=out)
        if self.pair is not None:
            raw.addmm_(hidden_ND @ self.pair.a.t(), self.pair.b.t(), alpha=self.scaling)
        return raw

    def logits(self, hidden_ND: Tensor) -> Tensor:
        """Logits [N, V], in compute dtype or fp32."""
        return self._whole(hidden_ND) if self.blocks is None else self.blocks.apply(self._whole, hidden_ND)

    def _whole(self, hidden_ND: Tensor) -> Tensor:
        return _post(self._raw(hidden_ND), self.head)

    @torch.no_grad()
    def score(self, hidden_ND: Tensor, rows_M: Tensor, targets_M: Tensor, *, keep: bool) -> Scores:
        """Log p of ``targets_M`` at ``rows_M``; ``keep`` if a backward pass will follow."""
        order_M = torch.argsort(rows_M, stable=True)
        sorted_rows_M, sorted_targets_M = rows_M[order_M], targets_M[order_M]
        vocabulary = self.head.weight_VD.shape[0]
        logprobs_M = hidden_ND.new_empty(len(rows_M), dtype=torch.float32)
        keep = keep and len(hidden_ND) * vocabulary * hidden_ND.element_size() <= KEPT_LOGITS
        kept = hidden_ND.new_empty((len(hidden_ND), vocabulary)) if keep else None
        normalizer_N = hidden_ND.new_empty(len(hidden_ND), dtype=torch.float32) if self._is_compiled() else None
        size = self.block_rows
        edges = torch.arange(0, len(hidden_ND) + size, size, device=rows_M.device)
        bounds = torch.searchsorted(sorted_rows_M, edges).tolist()
        for block, start in enumerate(range(0, len(hidden_ND), size)):
            out = None if kept is None else kept[start : start + size]
            hidden = hidden_ND[start : start + size]
            raw = self._raw(hidden, out) if self.blocks is None else self.logits(hidden)
            first, last = bounds[block], bounds[block + 1]
            chosen = sorted_rows_M[first:last] - start, sorted_targets_M[first:last]
            if normalizer_N is not None:
                sums_R = normalizer_N[start : start + size] = kernels.log_sum_exp(raw)
                logprobs_M[first:last] = raw[chosen].float() - sums_R[chosen[0]]
            else:
                logits = raw if self.blocks is not None else _post(raw, self.head)
                logprobs_M[first:last] = torch.log_softmax(logits, dim=-1, dtype=torch.float32)[chosen]
        logprobs_M = torch.empty_like(logprobs_M).index_copy_(0, order_M, logprobs_M)
        return Scores(hidden_ND, rows_M, targets_M, logprobs_M, kept, normalizer_N)

    @torch.no_grad()
    def backward(self, scores: Scores, grad_M: Tensor) -> HeadGradient:
        """Gradients from d(loss)/d(logprobs) [M]: d logits = onehot(target) g - softmax * sum(g), row by row."""
        pair, hidden_ND = self.pair, scores.hidden_ND
        grad_hidden_ND = torch.zeros_like(hidden_ND)
        grad_a = None if pair is None else torch.zeros_like(pair.a, dtype=torch.float32)
        grad_b = None if pair is None else torch.zeros_like(pair.b, dtype=torch.float32)
        alive, rows_W, targets_W, grad_W = _alive_rows(scores, grad_M)
        first_W = torch.searchsorted(rows_W, torch.arange(len(alive) + 1, device=rows_W.device))
        size = self.block_rows
        bounds = [*first_W[:-1:size].tolist(), len(rows_W)]
        for start, inside in zip(range(0, len(alive), size), starmap(slice, pairwise(bounds)), strict=True):
            block = alive[start : start + size]
            first_R = first_W[start : start + len(block) + 1]
            hidden = hidden_ND[block]
            raw, rows, sums = scores.raw_NV, block, scores.normalizer_N
            if raw is None:
                raw, rows = self._raw(hidden), torch.arange(len(block), device=block.device)
                sums = None if sums is None else sums[block]
            if sums is not None:
                pairs = first_R - inside.start, targets_W[inside], grad_W[inside]
                grad = kernels.logits_backward(raw, rows, sums, *pairs)
            else:
                pairs = rows_W[inside] - start, targets_W[inside], grad_W[inside]
                grad = _logits_gradient(raw[rows], *pairs, self.head).to(hidden.dtype)
            grad_hidden = grad @ self.head.weight_VD
            if pair is not None and grad_a is not None and grad_b is not None:
                through_b = grad @ pair.b
                grad_hidden.addmm_(through_b, pair.a, alpha=self.scaling)
                grad_a.add_(through_b.t() @ hidden, alpha=self.scaling)
                grad_b.add_(grad.t() @ (hidden @ pair.a.t()), alpha=self.scaling)
            grad_hidden_ND[block] = grad_hidden
        return HeadGradient(grad_hidden_ND, grad_a, grad_b)


def _post(raw: Tensor, head: Head) -> Tensor:
    """What the model does to its logits; in fp32 if it does anything."""
    if head.scale != 1.0:
        raw = raw.float() * head.scale
    if head.softcap is not None:
        raw = torch.tanh(raw.float() / head.softcap) * head.softcap
    return raw


def _alive_rows(scores: Scores, grad_M: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Rows that any gradient reaches, and their pairs in order of rows, which are renumbered among them."""
    order_M = torch.argsort(scores.rows_M, stable=True)
    rows_M, targets_M, grad_M = scores.rows_M[order_M], scores.targets_M[order_M], grad_M[order_M]
    alive_N = torch.zeros(len(scores.hidden_ND), dtype=torch.bool, device=rows_M.device)
    alive_N[rows_M[grad_M != 0]] = True
    place_N = torch.cumsum(alive_N, 0) - 1
    wanted = alive_N[rows_M]
    return alive_N.nonzero().squeeze(-1), place_N[rows_M[wanted]], targets_M[wanted], grad_M[wanted]


def _logits_gradient(raw: Tensor, rows: Tensor, targets: Tensor, grad: Tensor, head: Head) -> Tensor:
    """Gradient [R, V] w.r.t. the raw logits, in fp32."""
    logits = _post(raw, head)
    total = grad.new_zeros(len(raw)).index_add_(0, rows, grad)
    result = torch.softmax(logits, dim=-1, dtype=torch.float32).mul_(-total.unsqueeze(-1))
    result.index_put_((rows, targets), grad, accumulate=True)
    if head.softcap is not None:
        result.mul_(1.0 - (logits / head.softcap).square())
    return result.mul_(head.scale) if head.scale != 1.0 else result
