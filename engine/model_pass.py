# pyright: basic
# Reason: torch autograd over loosely typed tensors.
"""One loss over many sequences: forward, loss, and by hand the way back to the LoRA gradients."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sota_ml_researcher.engine.custom_loss import CustomLoss
from sota_ml_researcher.engine.forward_cache import Forward, ForwardCache, batch_key, counted_bytes
from sota_ml_researcher.engine.interface import FloatArray, LossResult, OutOfMemoryError, TrainItem
from sota_ml_researcher.engine.lora import LoraLayout
from sota_ml_researcher.engine.losses import LOSSES, TARGETS
from sota_ml_researcher.engine.model_head import head_backward, score
from sota_ml_researcher.engine.model_parts import ActiveLora, Backbone
from sota_ml_researcher.engine.packing import PackedLoss, PackedTokens, pack_loss, pack_trees, plan_batches
from sota_ml_researcher.engine.prefixes import plan_trees


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
