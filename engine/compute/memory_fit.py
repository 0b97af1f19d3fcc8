# pyright: basic
# Reason: reads transformers' configs and modules, which are untyped.
"""Whether a model fits before its weights are read, and how it is run then; the arithmetic is in `core.memory`."""

from __future__ import annotations

import ctypes
import gc
import logging
from dataclasses import dataclass, replace
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from ...core.memory import (
    BATCH_TOKENS,
    CACHE_TOKENS,
    Batch,
    Fit,
    MatrixSize,
    ModelShape,
    Room,
    estimate,
    fit,
    free_ram,
    gib,
    refusal,
)
from ..interface import LoadOptions
from .backbone import find_sites
from .packed import is_supported

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Running:
    """How a model that fits is run.

    Attributes:
        shape: The model.
        room: What was free before it was loaded.
        fit: The batch that was chosen for sequences of usual length, and the need with it.
    """

    shape: ModelShape
    room: Room
    fit: Fit

    def recomputes(self, tokens: int, length: int) -> bool:
        """Whether a batch of so many tokens, its longest sequence of ``length``, must run its layers twice to fit."""
        if self.fit.batch.checkpointing:
            return True
        return estimate(self.shape, self.room, Batch(tokens, length)).total > self.room.free


def require_fit(name: str, config: Any, device: torch.device, dtype: torch.dtype, options: LoadOptions) -> Running:
    """How the model of a transformers ``config`` is run on a device.

    Raises:
        TooLargeError: If it does not fit, however small its batches.
    """
    extra = options.extra
    shape = shape_of(config)
    if extra.get("implementation", "auto") != "auto":
        shape = replace(shape, packed=False)
    room = room_on(device, dtype, nf4=options.quantize is not None)
    asked = int(extra.get("batch_tokens", BATCH_TOKENS))
    wanted = Batch(asked, min(asked, Batch().length), bool(extra.get("gradient_checkpointing", False)))
    found = fit(shape, room, wanted=wanted, cache_tokens=int(extra.get("cache_tokens", CACHE_TOKENS)))
    if found is None:
        raise refusal(shape, room, name, length=wanted.length)
    logger.info("%s: needs %s; %s GiB are free", name, found.need, gib(room.free))
    changed: list[str] = []
    if found.batch.checkpointing > wanted.checkpointing:
        changed.append("layers run again in the backward pass")
    if found.batch.tokens != wanted.tokens:
        changed.append(f"a batch has at most {found.batch.tokens} tokens instead of {asked}")
    if changed:
        logger.warning("%s: to fit the free memory, %s", name, " and ".join(changed))
    return Running(shape, room, found)


def shape_of(config: Any) -> ModelShape:
    """The shape of the model that a transformers config makes, from its modules without memory."""
    with torch.device("meta"):
        module = AutoModelForCausalLM.from_config(config)
    matrices = [MatrixSize(site.group, site.d_in, site.d_out, site.experts or 1) for site in find_sites(module)]
    shape = ModelShape.of(config.get_text_config().to_dict(), matrices)
    return replace(shape, weights=sum(p.numel() for p in module.parameters()), packed=is_supported(module))


def room_on(device: torch.device, dtype: torch.dtype, *, nf4: bool = False) -> Room:
    """What is free on a device once this process has given back what it does not use."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        free, total = torch.cuda.mem_get_info(device)
    else:
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc keeps what is freed
        if trim is not None:
            trim(0)
        free, total = free_ram()
    return Room(device.type, dtype.itemsize, free, total, nf4)
