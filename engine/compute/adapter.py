"""One LoRA adapter in training."""
# pyright: basic
# Reason: torch tensors across the interface's numpy seam.

from __future__ import annotations

import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..interface import (
    AdamSettings,
    Adapter,
    LoraSpec,
    LossResult,
    OutOfMemoryError,
    RequestRejectedError,
    Tensors,
    TrainItem,
)
from .backbone import Backbone
from .cuda import Repeatably
from .custom_loss import CustomLoss
from .lora import LoraLayout, LoraWeights, optimizer_tensors
from .loss_pass import ForwardCache, LossPass, Objective
from .optimizer import AdamState, adamw_step, check_settings
from .packing import ModelLimits, check_items, check_loss


@contextmanager
def memory_errors(doing: str) -> Iterator[None]:
    """Turn torch's and Python's ways of running out of memory into one error.

    Raises:
        OutOfMemoryError: If what runs inside did not fit.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        is_memory = isinstance(error, MemoryError | torch.OutOfMemoryError)
        if not is_memory and "not enough memory" not in str(error) and "can't allocate memory" not in str(error):
            raise
        traceback.clear_frames(error.__traceback__)  # their tensors would stay as long as the error does
        if torch.cuda.is_initialized():
            torch.cuda.empty_cache()  # what is free but in pieces, for the next request
        raise OutOfMemoryError(f"{doing} does not fit this machine's memory; send less at a time") from error


class TrainedAdapter(Adapter):
    """fp32 masters, the gradient accumulated since the last step, and AdamW's moments, each one flat vector [P]."""

    def __init__(
        self, backbone: Backbone, layout: LoraLayout, limits: ModelLimits, budget_tokens: int, forwards: ForwardCache
    ) -> None:
        self.spec: LoraSpec = layout.spec
        self.nbytes = 4 * 4 * layout.size  # weights, gradient and two moments
        self._backbone = backbone
        self._layout = layout
        self._limits = limits
        self._repeatably = Repeatably(backbone.device)
        self._pass = LossPass(backbone, layout, budget_tokens, forwards)
        self._weights_P = layout.initial().to(backbone.device)
        self._grad_P: Tensor | None = None
        self._adam = AdamState.zeros(self._weights_P)

    def forward_backward(
        self,
        data: Sequence[TrainItem],
        loss: str | CustomLoss,
        config: Mapping[str, float] | None,
        *,
        backward: bool,
    ) -> LossResult:
        """See ``Adapter.forward_backward``."""
        objective = Objective(loss, check_loss(loss, config))
        with memory_errors("this request"):
            check_items(data, loss, self._limits)
            result, grad_P = self._repeatably(
                lambda: self._pass.run(self._weights_P, data, objective, backward=backward)
            )
        if grad_P is not None:
            self._grad_P = grad_P if self._grad_P is None else self._grad_P.add_(grad_P)
        return result

    def optim_step(self, settings: AdamSettings) -> dict[str, float]:
        """See ``Adapter.optim_step``."""
        check_settings(settings)
        self._pass.forget()
        with memory_errors("this optimizer step"):
            grad_P = torch.zeros_like(self._weights_P) if self._grad_P is None else self._grad_P
            scratch_P = torch.empty_like(self._weights_P)
        self._grad_P = None
        return {"grad_norm": adamw_step(self._weights_P, grad_P, self._adam, settings, scratch_P)}

    def weights(self) -> LoraWeights:
        """See ``Adapter.weights``."""
        return LoraWeights(self._layout, self._weights_P.clone(), self._backbone.dtype)

    def export_weights(self) -> dict[str, NDArray[np.float32]]:
        """See ``Adapter.export_weights``."""
        return self._layout.export(self._weights_P)

    def export_optimizer(self) -> dict[str, NDArray[np.float32]]:
        """AdamW moments of shape [P] and the step, exact (a step count stays exact in fp32 below 2^24)."""
        return {
            "exp_avg": self._adam.mean_P.cpu().numpy().copy(),
            "exp_avg_sq": self._adam.square_P.cpu().numpy().copy(),
            "step": np.array([self._adam.step], dtype=np.float32),
        }

    def load(self, weights: Tensors, optimizer: Tensors | None) -> None:
        """See ``Adapter.load``; the accumulated gradient is dropped."""
        flat_P = self._layout.read(weights)
        adam = AdamState.zeros(flat_P)
        if optimizer is not None:
            adam = AdamState(*optimizer_tensors(optimizer, self._layout.size))
        if not bool(torch.isfinite(flat_P).all()):
            raise RequestRejectedError("the checkpoint holds nan or infinite weights")
        device = self._backbone.device
        self._pass.forget()
        self._weights_P = flat_P.to(device)
        self._adam = AdamState(adam.mean_P.to(device), adam.square_P.to(device), adam.step)
        self._grad_P = None
