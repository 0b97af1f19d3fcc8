# pyright: basic
# Reason: torch tensors across the interface's numpy seam.
"""One LoRA adapter in training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sota_ml_researcher.engine.custom_loss import CustomLoss
from sota_ml_researcher.engine.forward_cache import ForwardCache
from sota_ml_researcher.engine.interface import (
    AdamSettings,
    LoraSpec,
    LossResult,
    RequestRejectedError,
    Tensors,
    TrainItem,
)
from sota_ml_researcher.engine.lora import LoraLayout, LoraWeights, optimizer_tensors
from sota_ml_researcher.engine.model_parts import Backbone
from sota_ml_researcher.engine.model_pass import Objective, loss_pass, memory_errors
from sota_ml_researcher.engine.optimizer import AdamState, adamw_step, check_settings
from sota_ml_researcher.engine.packing import Limits, check_items, check_loss


class TrainedAdapter:
    """fp32 masters, the gradient accumulated since the last step, and AdamW's moments, each one flat vector."""

    def __init__(
        self, backbone: Backbone, layout: LoraLayout, limits: Limits, budget_tokens: int, forwards: ForwardCache
    ) -> None:
        self._backbone = backbone
        self._layout = layout
        self._limits = limits
        self._budget_tokens = budget_tokens
        self._forwards = forwards
        self._weights_P = layout.initial().to(backbone.device)
        self._grad_P: Tensor | None = None
        self._adam = AdamState.zeros(self._weights_P)

    @property
    def spec(self) -> LoraSpec:
        """How it was made."""
        return self._layout.spec

    @property
    def nbytes(self) -> int:
        """Bytes of memory it holds: weights, gradient and two moments."""
        return 4 * 4 * self._layout.size

    def forward_backward(
        self,
        data: Sequence[TrainItem],
        loss: str | CustomLoss,
        config: Mapping[str, float] | None,
        *,
        backward: bool,
    ) -> LossResult:
        """Compute the loss; with ``backward`` add its gradient to what is already accumulated.

        Args:
            data: Sequences with the loss's inputs.
            loss: A built-in loss's name, or a compiled server-side custom loss.
            config: The built-in loss's settings.
            backward: Whether to accumulate the gradient.

        Raises:
            RequestRejectedError: If the data, the loss or its config is wrong (nothing is accumulated then).
            OutOfMemoryError: If it does not fit (nothing is accumulated then).
        """
        objective = Objective(loss, check_loss(loss, config))
        check_items(data, loss, self._limits)
        with memory_errors("this request"):
            result, grad_P = loss_pass(
                self._backbone,
                self._layout,
                self._weights_P,
                data,
                objective,
                budget_tokens=self._budget_tokens,
                backward=backward,
                cache=self._forwards,
                owner=self,
            )
        if grad_P is not None:
            self._grad_P = grad_P if self._grad_P is None else self._grad_P.add_(grad_P)
        return result

    def optim_step(self, settings: AdamSettings) -> dict[str, float]:
        """Apply the accumulated gradient and clear it.

        Raises:
            RequestRejectedError: If a setting is out of range (the gradient is kept), or the gradient is not finite
                (it is dropped and the weights stay).
        """
        check_settings(settings)
        self._forwards.forget(self)
        grad_P = torch.zeros_like(self._weights_P) if self._grad_P is None else self._grad_P
        self._grad_P = None
        return {"grad_norm": adamw_step(self._weights_P, grad_P, self._adam, settings)}

    def weights(self) -> LoraWeights:
        """A frozen snapshot of the current weights."""
        return LoraWeights(self._layout, self._weights_P.clone(), self._backbone.dtype)

    def export_weights(self) -> dict[str, NDArray[np.float32]]:
        """LoRA tensors under PEFT's names."""
        return self._layout.export(self._weights_P)

    def export_optimizer(self) -> dict[str, NDArray[np.float32]]:
        """AdamW moments of shape [P] and the step, exact (a step count stays exact in fp32 below 2^24)."""
        return {
            "exp_avg": self._adam.mean_P.cpu().numpy().copy(),
            "exp_avg_sq": self._adam.square_P.cpu().numpy().copy(),
            "step": np.array([self._adam.step], dtype=np.float32),
        }

    def load(self, weights: Tensors, optimizer: Tensors | None) -> None:
        """Replace weights, and moments too where given (else they are reset); the accumulated gradient is dropped.

        Raises:
            RequestRejectedError: If a tensor is missing, surplus or of another shape (nothing is changed then).
        """
        flat_P = self._layout.read(weights)
        adam = AdamState.zeros(flat_P)
        if optimizer is not None:
            adam = AdamState(*optimizer_tensors(optimizer, self._layout.size))
        if not bool(torch.isfinite(flat_P).all()):
            raise RequestRejectedError("the checkpoint holds nan or infinite weights")
        device = self._backbone.device
        self._forwards.forget(self)
        self._weights_P = flat_P.to(device)
        self._adam = AdamState(adam.mean_P.to(device), adam.square_P.to(device), adam.step)
        self._grad_P = None
