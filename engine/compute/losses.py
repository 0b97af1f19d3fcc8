# pyright: basic
# Reason: tensor arithmetic; torch's operators are typed too loosely for strict mode to help.
"""The platform's losses as functions of target log-probabilities, all summed over tokens, none averaged.

Legend: p is the model being trained, q the policy that sampled, A the advantage, r = p/q the ratio, M the number
of scored (position, target) pairs of all sequences together. Formulas: Tinker's documentation, "Loss functions".
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

import torch
from torch import Tensor

TARGETS = "target_tokens"


@dataclass(frozen=True, slots=True)
class LossInputs:
    """What a loss reads besides the model: one flat tensor [M] per key, and the datum [M] that each pair is of."""

    tensors: Mapping[str, Tensor]
    owner_M: Tensor
    owners: int


LossFunction = Callable[[Tensor, LossInputs, Mapping[str, float]], Tensor]


@dataclass(frozen=True, slots=True)
class LossDefinition:
    """A built-in loss: its function, the tensors it needs, those it also takes, and its settings' defaults."""

    function: LossFunction
    required: tuple[str, ...]
    optional: tuple[str, ...] = ()
    config: Mapping[str, float] = field(default_factory=lambda: MappingProxyType({}))

    @property
    def inputs(self) -> tuple[str, ...]:
        """Every key a datum may carry, targets first."""
        return (TARGETS, *self.required, *self.optional)


def cross_entropy(logprobs_M: Tensor, inputs: LossInputs, _config: Mapping[str, float]) -> Tensor:
    """-sum(w log p). Returns a scalar in nats, weighted; ``weights`` default to 1."""
    weights_M = inputs.tensors.get("weights")
    return -(logprobs_M if weights_M is None else logprobs_M * weights_M).sum()


def importance_sampling(logprobs_M: Tensor, inputs: LossInputs, _config: Mapping[str, float]) -> Tensor:
    """-sum(r A): the policy gradient, corrected for having sampled from q."""
    ratio_M = torch.exp(logprobs_M - inputs.tensors["logprobs"])
    return -(ratio_M * inputs.tensors["advantages"]).sum()


def ppo(logprobs_M: Tensor, inputs: LossInputs, config: Mapping[str, float]) -> Tensor:
    """-sum(min(r A, clip(r, low, high) A)). Schulman et al. 2017, arXiv 1707.06347, eq. 7, token by token."""
    ratio_M = torch.exp(logprobs_M - inputs.tensors["logprobs"])
    return _clipped_objective(ratio_M, inputs, config)


def cispo(logprobs_M: Tensor, inputs: LossInputs, config: Mapping[str, float]) -> Tensor:
    """-sum(sg(clip(r, low, high)) log p A). MiniMax-M1, arXiv 2506.13585, eq. 4: clips the weight, keeps the gradient.

    The default bounds are one-sided (0 to 4), as on the platform.
    """
    ratio_M = torch.exp(logprobs_M.detach() - inputs.tensors["logprobs"])
    return -(_clip(ratio_M, inputs, config) * logprobs_M * inputs.tensors["advantages"]).sum()


def dro(logprobs_M: Tensor, inputs: LossInputs, config: Mapping[str, float]) -> Tensor:
    """-sum(A log p - beta/2 (log p - log q)^2). Richemond et al. 2024, arXiv 2405.19107."""
    drift_M = logprobs_M - inputs.tensors["logprobs"]
    return -(logprobs_M * inputs.tensors["advantages"] - 0.5 * config["beta"] * drift_M.square()).sum()


def gspo(logprobs_M: Tensor, inputs: LossInputs, config: Mapping[str, float]) -> Tensor:
    """PPO's clipped objective with one ratio per sequence. Zheng et al. 2025, arXiv 2507.18071, eqs. 13 and 14.

    s = exp(mean over the pairs that ``sequence_ratio_mask`` marks of (log p - log q)); every token carries the value
    of s with the gradient of its own log p (GSPO-token). The default bounds are the paper's (3e-4 and 4e-4).
    """
    marked_M = (inputs.tensors["sequence_ratio_mask"] != 0).to(logprobs_M.dtype)
    drift_M = (logprobs_M.detach() - inputs.tensors["logprobs"]) * marked_M
    zeros = logprobs_M.new_zeros(inputs.owners)
    total = zeros.index_add(0, inputs.owner_M, drift_M)
    count = zeros.index_add(0, inputs.owner_M, marked_M).clamp_min(1.0)
    ratio_M = torch.exp((total / count)[inputs.owner_M] + logprobs_M - logprobs_M.detach())
    return _clipped_objective(ratio_M, inputs, config)


def _clipped_objective(ratio_M: Tensor, inputs: LossInputs, config: Mapping[str, float]) -> Tensor:
    advantages_M = inputs.tensors["advantages"]
    return -torch.minimum(ratio_M * advantages_M, _clip(ratio_M, inputs, config) * advantages_M).sum()


def _clip(ratio_M: Tensor, inputs: LossInputs, config: Mapping[str, float]) -> Tensor:
    """Clip to the datum's own thresholds where it brings them, else to the config's."""
    low = inputs.tensors.get("clip_low_threshold", config["clip_low_threshold"])
    high = inputs.tensors.get("clip_high_threshold", config["clip_high_threshold"])
    floor = torch.as_tensor(low, dtype=ratio_M.dtype, device=ratio_M.device)
    ceiling = torch.as_tensor(high, dtype=ratio_M.dtype, device=ratio_M.device)
    return torch.minimum(torch.maximum(ratio_M, floor), ceiling)


_POLICY_INPUTS = ("logprobs", "advantages")
_CLIP_INPUTS = ("clip_low_threshold", "clip_high_threshold")


def _clip_defaults(low: float, high: float) -> Mapping[str, float]:
    return MappingProxyType({"clip_low_threshold": low, "clip_high_threshold": high})


LOSSES: Mapping[str, LossDefinition] = MappingProxyType(
    {
        "cross_entropy": LossDefinition(cross_entropy, (), ("weights",)),
        "importance_sampling": LossDefinition(importance_sampling, _POLICY_INPUTS),
        "ppo": LossDefinition(ppo, _POLICY_INPUTS, _CLIP_INPUTS, _clip_defaults(0.8, 1.2)),
        "cispo": LossDefinition(cispo, _POLICY_INPUTS, _CLIP_INPUTS, _clip_defaults(0.0, 4.0)),
        "dro": LossDefinition(dro, _POLICY_INPUTS, (), MappingProxyType({"beta": 0.05})),
        "gspo": LossDefinition(
            gspo, (*_POLICY_INPUTS, "sequence_ratio_mask"), _CLIP_INPUTS, _clip_defaults(1 - 3e-4, 1 + 4e-4)
        ),
    }
)
