# pyright: basic
# Reason: torch autograd over loosely typed tensors.
"""One forward pass over training data, and the backward pass of its loss.

The last forward-only pass is kept with its activations: a loss that the client computes
(`TrainingClient.forward_backward_custom`) asks for log-probabilities first and for the gradient of their weighted sum
next, and a third of that work would be the same forward pass again.
"""

from __future__ import annotations

import hashlib
import math
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..interface import FloatArray, LossResult, TrainItem
from .backbone import ActiveLora, Backbone
from .custom_loss import CustomLoss
from .head import LoraHead, Scores
from .lora import LoraLayout
from .losses import LOSSES, TARGETS, LossInputs
from .packing import PackedLoss, PackedTokens, pack_loss, pack_trees, plan_batches
from .prefix_trees import plan_trees

# As much as this is kept until the adapter's next request; one packed batch of a small model takes less.
_MOST_BYTES = 1 << 30


@dataclass(frozen=True, slots=True)
class Objective:
    """A checked loss with its settings."""

    loss: str | CustomLoss
    settings: Mapping[str, float]

    def value(
        self, logprobs_M: Tensor, inputs: LossInputs, items: Sequence[TrainItem], metrics: dict[str, float]
    ) -> Tensor:
        """The loss of one packed batch, a scalar; a custom loss adds its own metrics to ``metrics``."""
        if not isinstance(self.loss, CustomLoss):
            return LOSSES[self.loss].function(logprobs_M, inputs, self.settings)
        # Custom losses are small graphs: they run on the CPU, datum by datum.
        shapes = [item.loss_inputs[TARGETS].shape for item in items]
        parts = torch.split(logprobs_M.cpu(), [math.prod(shape) for shape in shapes])
        total = torch.zeros(())
        for item, shape, flat in zip(items, shapes, parts, strict=True):
            tensors = {key: torch.as_tensor(value) for key, value in item.loss_inputs.items()}
            value, measured = self.loss.run(flat.view(shape), tensors)
            total = total + value
            for key, number in measured.items():
                metrics[key] = metrics.get(key, 0.0) + number
        return total


@dataclass(frozen=True, slots=True)
class _Forward:
    """One packed batch: the leaves that collect gradients, the hidden states with their graph, and their scores."""

    lora: ActiveLora
    hidden_ND: Tensor
    scores: Scores


class ForwardCache:
    """Batches of one adapter's last forward pass, each to be used once."""

    def __init__(self) -> None:
        self._owner: weakref.ref[object] | None = None
        self._kept: dict[bytes, _Forward] = {}
        self._bytes = 0

    def begin(self, owner: object) -> None:
        """Forget what is kept; what comes is of ``owner``, and goes with it."""
        self._clear()
        self._owner = weakref.ref(owner, self._clear)

    def forget(self, owner: object) -> None:
        """The weights of ``owner`` are about to change."""
        if self._is_of(owner):
            self._clear()

    def _clear(self, _gone: object = None) -> None:
        self._owner, self._kept, self._bytes = None, {}, 0

    def _is_of(self, owner: object) -> bool:
        return self._owner is not None and self._owner() is owner

    def put(self, key: bytes, forward: _Forward, nbytes: int) -> None:
        """Keep a batch, if there is room."""
        if self._bytes + nbytes <= _MOST_BYTES:
            self._bytes += nbytes
            self._kept[key] = forward

    def take(self, owner: object, key: bytes) -> _Forward | None:
        """The batch with this key, if it is of ``owner``."""
        return self._kept.pop(key, None) if self._is_of(owner) else None


class LossPass:
    """Forward and backward passes of one adapter.

    Args:
        backbone: The base model.
        layout: Where the adapter's pairs lie in its flat vector [P].
        budget_tokens: Most tokens of one packed batch.
        cache: Shared by all adapters of the base model.
    """

    def __init__(self, backbone: Backbone, layout: LoraLayout, budget_tokens: int, cache: ForwardCache) -> None:
        self._backbone = backbone
        self._layout = layout
        self._budget_tokens = budget_tokens
        self._cache = cache

    def forget(self) -> None:
        """Drop the kept forward pass: the weights are about to change."""
        self._cache.forget(self)

    def run(
        self, flat_P: Tensor, items: Sequence[TrainItem], objective: Objective, *, backward: bool
    ) -> tuple[LossResult, Tensor | None]:
        """Run checked ``items`` in packed batches with the weights ``flat_P``.

        Returns:
            The result in the order of ``items``, and with ``backward`` the gradient [P] in fp32 of the summed loss.
        """
        grad_P = torch.zeros_like(flat_P) if backward else None
        outputs: list[dict[str, FloatArray]] = [{} for _ in items]
        metrics: dict[str, float] = {"loss:sum": 0.0}
        backbone = self._backbone
        lora = self._layout.active(flat_P, backbone.dtype, grad=True)
        if not backward:
            self._cache.begin(self)
        sequences = [item.tokens_T for item in items]
        longest_tree = min(backbone.longest_tree, self._budget_tokens)
        trees = plan_trees(sequences, backbone.head.weight_VD.shape[1], longest_tree)
        for chosen in plan_batches([tree.length for tree in trees], self._budget_tokens):
            batch = [trees[place] for place in chosen]
            members = [member for tree in batch for member in tree.members]
            data = [items[index] for index in members]
            tokens, places = pack_trees(sequences, batch, backbone.device)
            packed = pack_loss(data, places, backbone.device, with_inputs=not isinstance(objective.loss, CustomLoss))
            forward = self._forward(lora, tokens, packed, _batch_key(data), keep=not backward)
            logprobs_M = forward.scores.logprobs_M
            leaf_M = logprobs_M.detach().requires_grad_(backward)
            with torch.set_grad_enabled(backward):
                loss = objective.value(leaf_M, packed.inputs, data, metrics)
            metrics["loss:sum"] += float(loss.detach())
            if grad_P is not None and loss.requires_grad:
                (grad_logprobs_M,) = torch.autograd.grad(loss, leaf_M, allow_unused=True)
                self._backward(forward, grad_logprobs_M, grad_P)
            for index, values in zip(members, _unpacked(logprobs_M, packed), strict=True):
                outputs[index] = {"logprobs": values}
        for name in metrics:
            if name.endswith(":mean"):
                metrics[name] /= len(items)
        return LossResult(outputs, metrics), grad_P

    def _forward(
        self, lora: ActiveLora, tokens: PackedTokens, packed: PackedLoss, key: bytes, *, keep: bool
    ) -> _Forward:
        """The forward pass of a batch: with ``keep`` computed and kept, else the kept one if it is there."""
        kept = None if keep else self._cache.take(self, key)
        if kept is not None:
            return kept
        with _counted_bytes() as size:
            with torch.enable_grad():
                hidden_ND = self._backbone.hidden(tokens, lora)
            head = LoraHead.of(self._backbone.head, lora)
            scores = head.score(hidden_ND.detach(), packed.rows_M, packed.targets_M, keep=True)
            forward = _Forward(lora, hidden_ND, scores)
        if keep:
            self._cache.put(key, forward, size[0])
        return forward

    def _backward(self, forward: _Forward, grad_logprobs_M: Tensor | None, grad_P: Tensor) -> None:
        """Add the gradient w.r.t. the adapter's weights to ``grad_P``."""
        if grad_logprobs_M is None or not bool((grad_logprobs_M != 0).any()):
            return
        head = LoraHead.of(self._backbone.head, forward.lora)
        gradient = head.backward(forward.scores, grad_logprobs_M)
        if forward.hidden_ND.requires_grad:
            forward.hidden_ND.backward(gradient.hidden_ND)
        for part, view in self._layout.views(grad_P):
            if part.site.name == head.head.name:
                grad = gradient.a if part.side == "A" else gradient.b
            else:
                pair = forward.lora.pairs[part.site.name]
                leaf = pair.a if part.side == "A" else pair.b
                grad, leaf.grad = leaf.grad, None
            if grad is not None:
                view.add_(grad.view(part.shape))


def _unpacked(logprobs_M: Tensor, packed: PackedLoss) -> list[FloatArray]:
    """The log-probabilities of each datum, in the shape of its targets."""
    flat = logprobs_M.cpu().numpy()
    bounds = np.cumsum([math.prod(shape) for shape in packed.shapes])[:-1]
    return [piece.reshape(shape).copy() for piece, shape in zip(np.split(flat, bounds), packed.shapes, strict=True)]


def _batch_key(items: Sequence[TrainItem]) -> bytes:
    """What a forward pass depends on besides the weights: tokens and targets, in order."""
    digest = hashlib.blake2b(digest_size=16)
    for item in items:
        targets = item.loss_inputs[TARGETS]
        digest.update(repr((len(item.tokens_T), targets.shape, targets.dtype.str)).encode())
        digest.update(item.tokens_T.tobytes())
        digest.update(targets.tobytes())
    return digest.digest()


@contextmanager
def _counted_bytes() -> Iterator[list[int]]:
    """Bytes that autograd saves inside, as the one element of a list."""
    total = [0]

    def count(tensor: Tensor) -> Tensor:
        total[0] += tensor.nbytes
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        yield total
