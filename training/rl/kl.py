# pyright: basic
# Reason: tensor arithmetic on the cookbook's data.
"""How far a policy is from its reference: the loop's penalty, and an estimate of the KL to watch beside it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ...doctrine.rules import rule


def kl_estimates(policy: Tensor, reference: Tensor) -> dict[str, float]:
    """Estimates of KL(policy || reference) in nats a token, from log-probabilities of tokens the policy sampled.

    With d = log ref - log p: k1 is the mean of -d, k2 half the mean of d^2, k3 the mean of exp(d) - 1 - d (Schulman,
    2020).
    """
    d = reference - policy
    return {
        "kl/k1": float((-d).mean()),
        "kl/k2": float(0.5 * d.square().mean()),
        "kl/k3": float((torch.expm1(d) - d).mean()),
    }


class _Kept:
    """A reference client that keeps what it answered, in the order of asking."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner
        self.answers: list[Any] = []

    async def compute_logprobs_async(self, sequence: Any) -> Any:
        place = len(self.answers)
        self.answers.append(None)
        self.answers[place] = await self._inner.compute_logprobs_async(sequence)
        return self.answers[place]


def kl_penalty_with_estimate(original: Callable[..., Any]) -> Callable[..., Any]:
    """The loop's penalty (k1, in the advantages), which also logs the estimate of rule ``rl.kl_estimator``."""

    async def penalty(data: Sequence[Any], reference: Any, coefficient: float, discount: float) -> dict[str, float]:
        kept = _Kept(reference)
        metrics = await original(data, kept, coefficient, discount)
        masks = [datum.loss_fn_inputs["mask"].to_torch() > 0 for datum in data]
        policy = [d.loss_fn_inputs["logprobs"].to_torch()[mask] for d, mask in zip(data, masks, strict=True)]
        answers = [torch.tensor(a[1:])[mask] for a, mask in zip(kept.answers, masks, strict=True)]
        estimates = kl_estimates(torch.cat(policy), torch.cat(answers))
        wanted = f"kl/{rule('rl.kl_estimator').value}"
        return {**metrics, "kl/k1": estimates["kl/k1"], wanted: estimates[wanted]}

    return penalty
