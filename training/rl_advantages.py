# pyright: basic
# Reason: tensor arithmetic and the cookbook's trajectory groups.
"""Advantages of the samples of a group. Axis suffix G: samples of one group."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from sota_ml_researcher.training.rl_config import Advantage

# As in TRL: keeps a group whose rewards hardly differ from dividing by nothing.
_EPSILON = 1e-4


def group_advantages(rewards: Sequence[float], kind: Advantage) -> Tensor:
    """Advantages of one group, shape [G].

    ``mean``: r - mean(r) (Liu et al. 2025, arXiv 2503.20783: no division by the deviation). ``grpo``: that, divided
    by the sample deviation (n - 1) plus 1e-4 (DeepSeekMath, arXiv 2402.03300, section 4.1.2; the constant as in TRL).
    """
    rewards_G = torch.tensor(rewards, dtype=torch.float32)
    centred_G = rewards_G - rewards_G.mean()
    return centred_G if kind == "mean" else centred_G / (rewards_G.std() + _EPSILON)


def advantages_of(kind: Advantage) -> Callable[[list[Any]], list[Tensor]]:
    """The loop's ``compute_advantages`` with the job's choice."""
    return lambda groups: [group_advantages(group.get_total_rewards(), kind) for group in groups]
