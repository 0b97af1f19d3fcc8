# pyright: basic
# Reason: turns numpy input into torch tensors; the typing of both is loose at that seam.
"""Checking training data, and packing it without padding.

Axes: ``N`` tokens of all sequences one after the other, ``M`` scored (position, target) pairs of all sequences,
``T`` tokens of one sequence, ``K`` targets of one position. One target per position makes M equal to N.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..interface import RequestRejectedError, TrainItem
from .custom_loss import CustomLoss
from .losses import LOSSES, TARGETS, LossDefinition, LossInputs
from .prefix_trees import Tree, lay_out


@dataclass(frozen=True, slots=True)
class ModelLimits:
    """What a model can take: token ids below ``vocabulary`` and at most ``context`` positions."""

    vocabulary: int
    context: int


@dataclass(frozen=True, slots=True)
class PackedTokens:
    """Sequences, or trees of them (`prefix_trees`), laid end to end. ``lengths`` sums to N.

    Positions restart at 0 in each sequence. ``branches_N`` says which branch of its tree a token is on, 0 being what
    all share; it is None where every sequence stands alone. With ``rowwise`` no gradient is wanted, and what a sequence
    gets must not depend on what it shares or what else is packed.
    """

    tokens_N: Tensor
    positions_N: Tensor
    lengths: tuple[int, ...]
    branches_N: Tensor | None = None
    rowwise: bool = False


@dataclass(frozen=True, slots=True)
class PackedLoss:
    """The scored pairs of one packed batch: where, which token, and the loss's other tensors."""

    rows_M: Tensor
    targets_M: Tensor
    inputs: LossInputs
    shapes: tuple[tuple[int, ...], ...]


def check_loss(loss: str | CustomLoss, config: Mapping[str, float] | None) -> dict[str, float]:
    """The loss's settings with defaults filled in.

    Raises:
        RequestRejectedError: If the loss is unknown, or a setting is unknown or not a finite number.
    """
    if isinstance(loss, CustomLoss):
        return {}
    if loss not in LOSSES:
        raise RequestRejectedError(f"unknown loss {loss!r}; this engine has {', '.join(LOSSES)} and custom losses")
    defaults, config = LOSSES[loss].config, config or {}
    for key, value in config.items():
        if key not in defaults:
            takes = ", ".join(defaults) or "no settings"
            raise RequestRejectedError(f"loss {loss!r} has no setting {key!r}; it takes {takes}")
        if isinstance(value, bool) or not isinstance(value, int | float) or not np.isfinite(value):
            raise RequestRejectedError(f"loss {loss!r}: {key} must be a finite number, got {value!r}")
    settings = {**defaults, **{key: float(value) for key, value in config.items()}}
    if settings.get("clip_low_threshold", 0.0) > settings.get("clip_high_threshold", np.inf):
        raise RequestRejectedError(f"loss {loss!r}: clip_low_threshold is above clip_high_threshold")
    return settings


def check_items(data: Sequence[TrainItem], loss: str | CustomLoss, limits: ModelLimits) -> None:
    """Refuse data that could not be trained on, naming the datum and the key.

    Raises:
        RequestRejectedError: If there are no data, or one is empty, too long, outside the vocabulary, not finite,
            or has keys or shapes the loss does not take.
    """
    if not data:
        raise RequestRejectedError("no data: a request needs at least one datum")
    for index, item in enumerate(data):
        where = f"datum[{index}]"
        check_tokens(item.tokens_T, limits, where)
        _check_targets(item, limits, where)
        if isinstance(loss, CustomLoss):
            loss.check_inputs(item.loss_inputs, where)
        else:
            _check_loss_inputs(item, loss, LOSSES[loss], where)


def check_tokens(tokens_T: NDArray[Any], limits: ModelLimits, where: str) -> None:
    """Refuse an empty, overlong or out-of-vocabulary sequence.

    Raises:
        RequestRejectedError: Naming ``where`` and the first bad position.
    """
    if tokens_T.ndim != 1 or len(tokens_T) == 0:
        raise RequestRejectedError(f"{where}: the sequence of tokens is empty or not one-dimensional")
    if len(tokens_T) > limits.context:
        raise RequestRejectedError(
            f"{where}: {len(tokens_T)} tokens do not fit the model's context window of {limits.context}"
        )
    _check_vocabulary(tokens_T, limits, f"{where}: token")


def _check_vocabulary(tokens: NDArray[Any], limits: ModelLimits, what: str) -> None:
    bad = np.flatnonzero((tokens < 0) | (tokens >= limits.vocabulary))
    if len(bad):
        raise RequestRejectedError(
            f"{what} {int(tokens.reshape(-1)[bad[0]])} at position {int(bad[0])} is outside the vocabulary of "
            f"{limits.vocabulary}"
        )


def _check_targets(item: TrainItem, limits: ModelLimits, where: str) -> None:
    targets = item.loss_inputs.get(TARGETS)
    if targets is None:
        raise RequestRejectedError(f"{where}: loss_fn_inputs has no {TARGETS!r}")
    if targets.ndim not in (1, 2) or targets.shape[0] != len(item.tokens_T) or targets.size == 0:
        raise RequestRejectedError(
            f"{where}: {TARGETS} has shape {targets.shape}, but there are {len(item.tokens_T)} input tokens"
        )
    if targets.dtype.kind not in "iu":
        raise RequestRejectedError(f"{where}: {TARGETS} must be whole numbers, got {targets.dtype}")
    _check_vocabulary(targets, limits, f"{where}: target token")


def _check_loss_inputs(item: TrainItem, name: str, definition: LossDefinition, where: str) -> None:
    shape = item.loss_inputs[TARGETS].shape
    missing = [key for key in definition.required if key not in item.loss_inputs]
    if missing:
        raise RequestRejectedError(f"{where}: loss {name!r} needs {', '.join(missing)} in loss_fn_inputs")
    for key, value in item.loss_inputs.items():
        if key not in definition.inputs:
            takes = ", ".join(definition.inputs)
            raise RequestRejectedError(f"{where}: loss {name!r} does not take {key!r}; it takes {takes}")
        if value.shape != shape:
            raise RequestRejectedError(f"{where}: {key} has shape {value.shape}, but {TARGETS} has {shape}")
        if not np.isfinite(value).all():
            raise RequestRejectedError(f"{where}: {key} holds nan or infinite values")


def plan_batches(lengths: Sequence[int], budget_tokens: int) -> list[list[int]]:
    """Indices of the sequences of each packed batch: neighbours in length, at most ``budget_tokens`` per batch.

    A sequence longer than the budget gets a batch of its own. Sorting makes attention pad little.
    """
    order = sorted(range(len(lengths)), key=lambda index: (lengths[index], index))
    batches: list[list[int]] = []
    room = 0
    for index in order:
        if not batches or lengths[index] > room:
            batches.append([])
            room = budget_tokens
        batches[-1].append(index)
        room -= lengths[index]
    return batches


def pack_trees(
    sequences: Sequence[NDArray[Any]], trees: Sequence[Tree], device: torch.device
) -> tuple[PackedTokens, list[NDArray[np.int64]]]:
    """Lay trees end to end on ``device``; also the packed places of each member's tokens, in the trees' order."""
    tokens, positions, branches, places = lay_out(sequences, trees)
    branches_N = torch.from_numpy(branches).to(device) if any(tree.prefix for tree in trees) else None
    packed = PackedTokens(
        torch.from_numpy(tokens).to(device),
        torch.from_numpy(positions).to(device),
        tuple(tree.length for tree in trees),
        branches_N,
    )
    return packed, places


def pack_loss(
    items: Sequence[TrainItem],
    places: Sequence[NDArray[np.int64]],
    device: torch.device,
    *,
    with_inputs: bool = True,
) -> PackedLoss:
    """Flatten the targets and, ``with_inputs``, all other loss inputs of ``items``, which then are of one shape.

    ``places`` are the packed places of each item's tokens.
    """
    targets = [item.loss_inputs[TARGETS] for item in items]
    rows = [np.repeat(place, target.size // len(place)) for place, target in zip(places, targets, strict=True)]
    owner = [np.full(target.size, index, dtype=np.int64) for index, target in enumerate(targets)]
    keys = sorted({key for item in items for key in item.loss_inputs if key != TARGETS}) if with_inputs else []
    tensors = {key: _flat_floats([_value(item, key) for item in items], device) for key in keys}
    return PackedLoss(
        rows_M=_flat_integers(rows, device),
        targets_M=_flat_integers([target.reshape(-1) for target in targets], device),
        inputs=LossInputs(tensors, _flat_integers(owner, device), len(items)),
        shapes=tuple(target.shape for target in targets),
    )


def _value(item: TrainItem, key: str) -> NDArray[Any]:
    if key in item.loss_inputs:
        return item.loss_inputs[key]
    if key != "weights":
        raise RequestRejectedError(f"either every datum or none must bring {key!r}")
    return np.ones(item.loss_inputs[TARGETS].shape, dtype=np.float32)


def _flat_integers(arrays: Sequence[NDArray[Any]], device: torch.device) -> Tensor:
    return torch.from_numpy(np.concatenate(arrays).astype(np.int64, copy=False)).to(device)


def _flat_floats(arrays: Sequence[NDArray[Any]], device: torch.device) -> Tensor:
    flat = np.concatenate([np.asarray(array, dtype=np.float32).reshape(-1) for array in arrays])
    return torch.from_numpy(flat).to(device)
