# pyright: basic
# Reason: tensor arithmetic on torch's loosely typed operators.
"""Drawing tokens from logits, each row with its own temperature, cuts and random numbers.

Axes: ``B`` rows, ``V`` vocabulary, ``K`` candidates, ``S`` strips of the vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from . import kernels

_BLOCK = 256
_STRIP = 128


class RandomRow:
    """A row's own stream of uniform numbers: the same for a seed whatever else is in the batch."""

    def __init__(self, seed: int | None, sample: int) -> None:
        entropy = None if seed is None else [seed & 0xFFFF_FFFF_FFFF_FFFF, sample]
        self._generator = np.random.Generator(np.random.Philox(np.random.SeedSequence(entropy)))
        self._block = np.empty(0)
        self._next = 0

    def uniform(self) -> float:
        """The next number in [0, 1)."""
        if self._next == len(self._block):
            self._block = self._generator.random(_BLOCK)
            self._next = 0
        self._next += 1
        return float(self._block[self._next - 1])


def uniforms(rows: Sequence[RandomRow], device: torch.device) -> Tensor:
    """The next number of each row, [B]."""
    kind = torch.float64 if device.type == "cpu" else torch.float32
    return torch.tensor([row.uniform() for row in rows], dtype=kind, device=device)


@dataclass(frozen=True, slots=True)
class Cuts:
    """How each row is sampled: temperature [B] (0 is greedy), ``top_p`` [B] (1 is off), ``top_k`` [B] (V is off).

    ``cut_K`` are the rows where either is on; ``plain`` if there are none and every temperature is 1.
    """

    temperature_B: Tensor
    top_p_B: Tensor
    top_k_B: Tensor
    cut_K: Tensor
    plain: bool

    @classmethod
    def of(
        cls,
        temperatures: Sequence[float],
        top_ps: Sequence[float],
        top_ks: Sequence[int],
        vocabulary: int,
        device: torch.device,
    ) -> Cuts:
        """From settings per row; ``top_k`` of -1 or 0 means no cut."""
        ks = [k if 0 < k < vocabulary else vocabulary for k in top_ks]
        cut = [row for row, (p, k) in enumerate(zip(top_ps, ks, strict=True)) if p < 1.0 or k < vocabulary]
        plain = not cut and all(t == 1.0 for t in temperatures)
        return cls(
            torch.tensor(temperatures, dtype=torch.float32, device=device),
            torch.tensor(top_ps, device=device),
            torch.tensor(ks, device=device),
            torch.tensor(cut, dtype=torch.long, device=device),
            plain,
        )

    def of_cut(self) -> Cuts:
        """Those of the rows that are cut."""
        chosen = self.temperature_B[self.cut_K], self.top_p_B[self.cut_K], self.top_k_B[self.cut_K]
        return Cuts(*chosen, torch.arange(len(self.cut_K), device=self.cut_K.device), plain=False)


def choose(logits_BV: Tensor, cuts: Cuts, uniform_B: Tensor) -> tuple[Tensor, Tensor]:
    """Draw one token per row by inverting the cumulative distribution at ``uniform_B``.

    Returns:
        Tokens [B] and their log-probabilities [B] under the untempered, uncut distribution.
    """
    if not kernels.usable(logits_BV):
        return _choose_by_torch(logits_BV, cuts, uniform_B)
    tokens_B, logprobs_B = kernels.choose(logits_BV, cuts.temperature_B, uniform_B.double())
    cut_K = cuts.cut_K
    # The loops take no cuts, and round otherwise: a row must not know what the others ask for.
    if len(cut_K):
        tokens_B[cut_K], logprobs_B[cut_K] = _choose_by_torch(logits_BV[cut_K], cuts.of_cut(), uniform_B[cut_K])
    return tokens_B, logprobs_B


def _choose_by_torch(logits_BV: Tensor, cuts: Cuts, uniform_B: Tensor) -> tuple[Tensor, Tensor]:
    logits_BV = logits_BV.float()
    tokens_B = _tempered(logits_BV, cuts, uniform_B)
    chosen_B = logits_BV.gather(1, tokens_B.unsqueeze(-1)).squeeze(-1)
    return tokens_B, chosen_B - torch.logsumexp(logits_BV, dim=-1)


def _tempered(logits_BV: Tensor, cuts: Cuts, uniform_B: Tensor) -> Tensor:
    if cuts.plain:
        return _invert(torch.softmax(logits_BV, dim=-1), uniform_B)
    greedy_B = cuts.temperature_B == 0
    safe_B = torch.where(greedy_B, torch.ones_like(cuts.temperature_B), cuts.temperature_B)
    weights_BV = torch.softmax(logits_BV / safe_B.unsqueeze(-1), dim=-1)
    if len(cuts.cut_K):
        weights_BV[cuts.cut_K] = _cut(weights_BV[cuts.cut_K], cuts.top_p_B[cuts.cut_K], cuts.top_k_B[cuts.cut_K])
    drawn_B = _invert(weights_BV, uniform_B)
    return torch.where(greedy_B, logits_BV.argmax(dim=-1), drawn_B)


def _cut(weights_BV: Tensor, top_p_B: Tensor, top_k_B: Tensor) -> Tensor:
    """Zero all but the ``top_k`` likeliest tokens and, of those, all beyond the nucleus of mass ``top_p``.

    Holtzman et al. 2020, arXiv 1904.09751: the nucleus is the smallest set whose mass reaches p. It is taken of the
    distribution that top-k left, renormalised. The likeliest token always stays.
    """
    ordered_BV, order_BV = weights_BV.sort(dim=-1, descending=True, stable=True)
    rank_V = torch.arange(weights_BV.shape[1], device=weights_BV.device)
    ordered_BV = ordered_BV.masked_fill(rank_V >= top_k_B.unsqueeze(-1), 0.0)
    before_BV = ordered_BV.cumsum(dim=-1) - ordered_BV
    total_B1 = ordered_BV.sum(dim=-1, keepdim=True)
    outside_BV = (before_BV >= top_p_B.unsqueeze(-1) * total_B1) & (rank_V > 0)
    return torch.zeros_like(weights_BV).scatter_(1, order_BV, ordered_BV.masked_fill(outside_BV, 0.0))


def _strip_sums(weights_BV: Tensor) -> Tensor:
    """Sums of strips of ``_STRIP`` neighbours [B, S], the last one perhaps shorter."""
    whole = weights_BV.shape[1] // _STRIP * _STRIP
    sums_BS = weights_BV[:, :whole].unflatten(1, (-1, _STRIP)).sum(dim=-1) if whole else weights_BV[:, :0]
    return torch.cat([sums_BS, weights_BV[:, whole:].sum(dim=-1, keepdim=True)], dim=-1)


def _invert(weights_BV: Tensor, uniform_B: Tensor) -> Tensor:
    """The token at which the running sum passes ``uniform_B`` of the total: first the strip, then the token in it.

    A running sum over a whole vocabulary is the slowest part of sampling: this adds up one strip per row.
    """
    sums_BS = _strip_sums(weights_BV)
    passed_BS = _running(sums_BS)
    total_B = passed_BS[:, -1]
    target_B1 = torch.minimum(uniform_B.to(total_B) * total_B, _below(total_B)).unsqueeze(-1)
    strip_B1 = torch.searchsorted(passed_BS, target_B1, right=True)
    before_B1 = passed_BS.gather(1, strip_B1) - sums_BS.gather(1, strip_B1)
    place_BK = strip_B1 * _STRIP + torch.arange(_STRIP, device=weights_BV.device)
    inside_BK = place_BK < weights_BV.shape[1]
    strip_BK = weights_BV.gather(1, place_BK.clamp_max(weights_BV.shape[1] - 1)) * inside_BK
    running_BK = _running(strip_BK)
    # The strip's own running sum may round to less than its sum, and nothing of weight 0 may be drawn.
    left_B1 = torch.minimum((target_B1 - before_B1).clamp_min(0.0), _below(running_BK[:, -1:]))
    return (strip_B1 * _STRIP + torch.searchsorted(running_BK, left_B1, right=True)).squeeze(-1)


def _running(x_BK: Tensor) -> Tensor:
    """Running sums over the last axis; on CUDA torch adds up a single row in no fixed order: it gets another."""
    alone = x_BK.is_cuda and len(x_BK) == 1
    return x_BK.expand(2, -1).cumsum(dim=-1)[:1] if alone else x_BK.cumsum(dim=-1)


def _below(x: Tensor) -> Tensor:
    return torch.nextafter(x, torch.zeros_like(x))
