# pyright: basic
# Reason: tensor arithmetic on torch's loosely typed operators.
"""AdamW over one flat vector of parameters, bit for bit the same on the same input."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..interface import AdamSettings, RequestRejectedError


@dataclass(slots=True)
class AdamState:
    """First and second moments of shape [P] in fp32, and the number of steps taken."""

    mean_P: Tensor
    square_P: Tensor
    step: int = 0

    @classmethod
    def zeros(cls, like_P: Tensor) -> AdamState:
        """The state before the first step."""
        return cls(torch.zeros_like(like_P), torch.zeros_like(like_P))


def check_settings(settings: AdamSettings) -> None:
    """Refuse settings that would destroy the weights.

    Raises:
        RequestRejectedError: Naming the setting.
    """
    ranges = {
        "learning_rate": (0.0, math.inf),
        "beta1": (0.0, 1.0),
        "beta2": (0.0, 1.0),
        "eps": (0.0, math.inf),
        "weight_decay": (0.0, math.inf),
    }
    for name, (low, high) in ranges.items():
        value = getattr(settings, name)
        if not (math.isfinite(value) and low <= value < high):
            raise RequestRejectedError(f"adam_params.{name} must be at least {low:g} and below {high:g}, got {value}")
    if math.isnan(settings.grad_clip_norm):
        raise RequestRejectedError("adam_params.grad_clip_norm is nan")


def adamw_step(weights_P: Tensor, grad_P: Tensor, state: AdamState, settings: AdamSettings, scratch_P: Tensor) -> float:
    """One decoupled-weight-decay Adam step in place, as ``torch.optim.AdamW`` takes it.

    Loshchilov and Hutter 2019, arXiv 1711.05101, algorithm 2; clipping by global norm comes first. Nothing is
    allocated, so that no step is half taken: ``scratch_P`` is overwritten, and the gradient too where it is clipped.

    Returns:
        The gradient's norm before clipping.

    Raises:
        RequestRejectedError: If the gradient is not finite; weights and moments are then untouched.
    """
    norm = float(torch.linalg.vector_norm(grad_P))
    if not math.isfinite(norm):
        raise RequestRejectedError(
            "the accumulated gradient is not finite; it was thrown away and the weights are unchanged. "
            "Lower the learning rate, or look for extreme logprobs and advantages"
        )
    if 0.0 < settings.grad_clip_norm < norm:
        grad_P.mul_(settings.grad_clip_norm / norm)
    state.step += 1
    correction1 = 1.0 - settings.beta1**state.step
    correction2 = 1.0 - settings.beta2**state.step
    if settings.weight_decay:
        weights_P.mul_(1.0 - settings.learning_rate * settings.weight_decay)
    state.mean_P.lerp_(grad_P, 1.0 - settings.beta1)
    state.square_P.mul_(settings.beta2).addcmul_(grad_P, grad_P, value=1.0 - settings.beta2)
    torch.sqrt(state.square_P, out=scratch_P).div_(math.sqrt(correction2)).add_(settings.eps)
    weights_P.addcdiv_(state.mean_P, scratch_P, value=-settings.learning_rate / correction1)
    return norm
