"""One LoRA adapter in training."""
# pyright: basic
# Reason: torch tensors across the interface's numpy seam.
# Reason: torch autograd over loosely typed tensors.

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..interface import (
    AdamSettings,
    FloatArray,
    LoraSpec,
    LossResult,
    OutOfMemoryError,
    RequestRejectedError,
    Tensors,
    TrainItem,
)
from .backbone import ActiveLora, Backbone
from .custom_loss import CustomLoss
from .forward_cache import Forward, ForwardCache, batch_key, counted_bytes
from .head import head_backward, score
from .lora import LoraLayout, LoraWeights, optimizer_tensors
from .losses import LOSSES, TARGETS
from .optimizer import AdamState, adamw_step, check_settings
from .packing import Limits, PackedLoss, PackedTokens, check_items, check_loss, pack_loss, pack_trees, plan_batches
from .prefix_trees import plan_trees


@dataclass(frozen=True, slots=True)
class Objective:
    """A checked loss with its settings."""

    loss: str | CustomLoss
    settings: Mapping[str, float]


@contextmanager
def memory_errors(doing: str) -> Iterator[None]:
    """Turn torch's and Python's ways of running out of memory into one error.

    Raises:
        OutOfMemoryError: If what runs inside did not fit.
    """
    try:
        yield
    except (MemoryError, torch.OutOfMemoryError) as error:
        raise OutOfMemoryError(f"{doing} does not fit this machine's memory; send less at a time") from error
    except RuntimeError as error:
        if "not enough memory" not in str(error) and "can't allocate memory" not in str(error):
            raise
        raise OutOfMemoryError(f"{doing} does not fit this machine's memory; send less at a time") from error
    finally:
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def loss_pass(
    backbone: Backbone,
    layout: LoraLayout,
    flat_P: Tensor,
    items: Sequence[TrainItem],
    objective: Objective,
    *,
    budget_tokens: int,
    backward: bool,
    cache: ForwardCache,
    owner: object,
) -> tuple[LossResult, Tensor | None]:
    """Run checked ``items`` in packed batches. A forward pass is kept in ``cache`` for a backward pass of ``owner``.

    Returns:
        The result in the order of ``items``, and with ``backward`` the gradient [P] in fp32 of the summed loss.
    """
    grad_P = torch.zeros_like(flat_P) if backward else None
    outputs: list[dict[str, FloatArray]] = [{} for _ in items]
    metrics: dict[str, float] = {"loss:sum": 0.0}
    lora = layout.active(flat_P, backbone.dtype, grad=True)
    if not backward:
        cache.begin(owner)
    sequences = [item.tokens_T for item in items]
    trees = plan_trees(sequences, backbone.head.weight_VD.shape[1], backbone.longest_tree)
    for chosen in plan_batches([tree.length for tree in trees], budget_tokens):
        batch = [trees[place] for place in chosen]
        members = [member for tree in batch for member in tree.members]
        found = [items[index] for index in members]
        packed, places = pack_trees(sequences, batch, backbone.device)
        scored = pack_loss(found, places, backbone.device, with_inputs=not isinstance(objective.loss, CustomLoss))
        key = batch_key(found)
        forward = cache.take(owner, key) if backward else None
        if forward is None:
            with counted_bytes() as size:
                forward = _forward(backbone, lora, packed, scored)
            if not backward:
                cache.put(key, forward, size[0])
        logprobs = _run_batch(backbone, layout, forward, found, scored, objective, metrics, grad_P)
        for index, values in zip(members, logprobs, strict=True):
            outputs[index] = {"logprobs": values}
    for name in metrics:
        if name.endswith(":mean"):
            metrics[name] /= len(items)
    return LossResult(outputs, metrics), grad_P


def _forward(backbone: Backbone, lora: ActiveLora, tokens: PackedTokens, packed: PackedLoss) -> Forward:
    pair = lora.pairs.get(backbone.head.name)
    with torch.enable_grad():
        hidden_ND = backbone.hidden(tokens, lora)
    frozen_ND = hidden_ND.detach()
    seen = score(frozen_ND, packed.rows_M, packed.targets_M, backbone.head, pair, lora.scaling, keep=True)
    return Forward(lora, hidden_ND, seen)


def _run_batch(
    backbone: Backbone,
    layout: LoraLayout,
    forward: Forward,
    items: Sequence[TrainItem],
    packed: PackedLoss,
    objective: Objective,
    metrics: dict[str, float],
    grad_P: Tensor | None,
) -> list[FloatArray]:
    lora, hidden_ND, seen = forward.lora, forward.hidden_ND, forward.seen
    slope_M = _loss_slope(seen.logprobs_M, packed, items, objective, metrics, wanted=grad_P is not None)
    if grad_P is not None and slope_M is not None and bool((slope_M != 0).any()):
        head, pair = backbone.head, lora.pairs.get(backbone.head.name)
        frozen_ND = hidden_ND.detach()
        gradient = head_backward(seen, frozen_ND, packed.rows_M, packed.targets_M, slope_M, head, pair, lora.scaling)
        if hidden_ND.requires_grad:
            hidden_ND.backward(gradient.hidden_ND)
        _collect(layout, lora, grad_P, {"A": gradient.a, "B": gradient.b}, head.name)
    return _split(seen.logprobs_M, packed.shapes)


def _collect(
    layout: LoraLayout, lora: ActiveLora, grad_P: Tensor, head: Mapping[str, Tensor | None], head_name: str
) -> None:
    """Move the gradients that the leaves gathered into the flat vector."""
    for part, view in layout.views(grad_P):
        if part.site.name == head_name:
            found = head[part.side]
        else:
            pair = lora.pairs[part.site.name]
            leaf = pair.a if part.side == "A" else pair.b
            found, leaf.grad = leaf.grad, None
        if found is not None:
            view.add_(found.view(part.shape))


def _loss_slope(
    logprobs_M: Tensor,
    scored: PackedLoss,
    items: Sequence[TrainItem],
    objective: Objective,
    metrics: dict[str, float],
    *,
    wanted: bool,
) -> Tensor | None:
    """Add the loss to ``metrics``; return d(loss)/d(logprobs) [M] if ``wanted``."""
    leaf_M = logprobs_M.detach().requires_grad_(wanted)
    with torch.set_grad_enabled(wanted):
        if isinstance(objective.loss, CustomLoss):
            loss = _custom(leaf_M, items, objective.loss, metrics)
        else:
            loss = LOSSES[objective.loss].function(leaf_M, scored.inputs, objective.settings)
    metrics["loss:sum"] += float(loss.detach())
    if not wanted or not loss.requires_grad:
        return None
    (slope_M,) = torch.autograd.grad(loss, leaf_M, allow_unused=True)
    return slope_M


def _custom(leaf_M: Tensor, items: Sequence[TrainItem], loss: CustomLoss, metrics: dict[str, float]) -> Tensor:
    """Custom losses are small graphs: they run on the CPU, datum by datum."""
    shapes = [item.loss_inputs[TARGETS].shape for item in items]
    total = torch.zeros(())
    for item, shape, flat in zip(
        items, shapes, torch.split(leaf_M.cpu(), [math.prod(shape) for shape in shapes]), strict=True
    ):
        inputs = {key: torch.as_tensor(value) for key, value in item.loss_inputs.items()}
        value, measured = loss.run(flat.view(shape), inputs)
        total = total + value
        for key, number in measured.items():
            metrics[key] = metrics.get(key, 0.0) + number
    return total


def _split(logprobs_M: Tensor, shapes: Sequence[tuple[int, ...]]) -> list[FloatArray]:
    flat = logprobs_M.cpu().numpy()
    bounds = np.cumsum([int(np.prod(shape)) for shape in shapes])[:-1]
    return [piece.reshape(shape).copy() for piece, shape in zip(np.split(flat, bounds), shapes, strict=True)]


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
