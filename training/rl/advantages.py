# pyright: basic
# Reason: tensor arithmetic and the cookbook's trajectory groups.
"""Advantages of the samples of a group. Axis suffix G: samples of one group."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

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


def advantages_of(kind: Advantage) -> Callable[[list[Any]], list[Tensor]]:
    """The loop's ``compute_advantages`` with the job's choice.

    Samples that could not be scored (`UNSCORED` in their metrics) have no part in it, and advantage 0.
    """
    return lambda groups: [_of_group(group, kind) for group in groups]


def _of_group(group: Any, kind: Advantage) -> Tensor:
    rewards_G = group.get_total_rewards()
    scored = [i for i, metrics in enumerate(group.metrics_G) if not metrics.get(UNSCORED)]
    found_G = torch.zeros(len(rewards_G), dtype=torch.float32)
    if scored:
        found_G[scored] = group_advantages([rewards_G[i] for i in scored], kind)
    return found_G
