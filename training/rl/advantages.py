# pyright: basic
# Reason: tensor arithmetic and the cookbook's trajectory groups.
"""Advantages of the samples of a group, and the penalty that holds a policy to its reference.

Axis suffix G: samples of one group.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import tinker
import torch
from tinker_cookbook.rl.types import TrajectoryGroup
from torch import Tensor

from ...backends.sampling_client import Sampler
from ...doctrine.rules import rule
from ..client import whole_sequence
from .config import Advantage

# As in TRL: keeps a group whose rewards hardly differ from dividing by nothing.
_EPSILON = 1e-4
# In a trajectory's metrics: 1 where its reward is not known.
UNSCORED = "unscored"


def group_advantages(rewards: Sequence[float], kind: Advantage) -> Tensor:
    """Advantages of one group, shape [G].

    ``mean``: r - mean(r) (Liu et al. 2025, arXiv 2503.20783: no division by the deviation). ``grpo``: that, divided
    by the sample deviation (n - 1) plus 1e-4 (DeepSeekMath, arXiv 2402.03300, section 4.1.2; the constant as in TRL).
    """
    rewards_G = torch.tensor(rewards, dtype=torch.float32)
    centred_G = rewards_G - rewards_G.mean()
    if kind == "mean" or len(rewards) < 2:
        return centred_G
    return centred_G / (rewards_G.std() + _EPSILON)


def scored_advantages(group: TrajectoryGroup, kind: Advantage) -> Tensor:
    """`group_advantages` of the samples that were scored, shape [G]; the others have no part in it, and get 0."""
    rewards_G = group.get_total_rewards()
    scored = [i for i, metrics in enumerate(group.metrics_G) if not metrics.get(UNSCORED)]
    advantages_G = torch.zeros(len(rewards_G), dtype=torch.float32)
    if scored:
        advantages_G[scored] = group_advantages([rewards_G[i] for i in scored], kind)
    return advantages_G


def kl_estimates(policy: Tensor, reference: Tensor) -> dict[str, float]:
    """Estimates of KL(policy || reference) in nats per token, from log-probabilities of tokens the policy sampled.

    With d = log ref - log p: k1 is the mean of -d, k2 half the mean of d^2, k3 the mean of exp(d) - 1 - d (Schulman,
    2020).
    """
    d = reference - policy
    return {
        "kl/k1": float((-d).mean()),
        "kl/k2": float(0.5 * d.square().mean()),
        "kl/k3": float((torch.expm1(d) - d).mean()),
    }


async def penalize_kl(data: Sequence[tinker.Datum], reference: Sampler, coefficient: float) -> dict[str, float]:
    """Move the advantages of ``data``, in place, against the drift from a reference.

    Each sampled token's advantage gains coefficient x (mean of log p - log ref, less its own): the k1 penalty, with the
    mean as its baseline, as in the cookbook.

    Returns:
        The mean as ``kl_policy_base`` and ``kl/k1``, and the estimate of rule ``rl.kl_estimator``.
    """
    answers = await asyncio.gather(*[reference.logprobs(whole_sequence(datum)) for datum in data])
    masks = [datum.loss_fn_inputs["mask"].to_torch() > 0 for datum in data]
    policies = [datum.loss_fn_inputs["logprobs"].to_torch() for datum in data]
    references = [torch.tensor(answer[1:], dtype=torch.float32) for answer in answers]
    drifts = [(p - r) * mask for p, r, mask in zip(policies, references, masks, strict=True)]
    mean = sum(drift.sum() for drift in drifts) / sum(mask.sum() for mask in masks)
    for datum, drift, mask in zip(data, drifts, masks, strict=True):
        moved = datum.loss_fn_inputs["advantages"].to_torch() + coefficient * mask * (mean - drift)
        datum.loss_fn_inputs["advantages"] = tinker.TensorData.from_torch(moved)
    sampled = [torch.cat([x[m] for x, m in zip(each, masks, strict=True)]) for each in (policies, references)]
    estimates = kl_estimates(*sampled)
    wanted = f"kl/{rule('rl.kl_estimator').value}"
    return {"kl_policy_base": float(mean), "kl/k1": estimates["kl/k1"], wanted: estimates[wanted]}
