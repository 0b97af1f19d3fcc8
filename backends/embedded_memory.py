"""Whether a model fits where the embedded engine would load it, asked before a job starts, without loading torch.

Device and precision are those that the engine chooses by itself (`engine.compute.loading`), as the GPU's driver and the
processor's flags tell them. What the engine of this state folder holds already counts as free, for it makes room for a
model that needs it. The engine looks again when it loads.
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from ..core.errors import ModelError
from ..core.memory import Batch, Fit, ModelShape, Room, fit, free_ram, gib, refusal
from ..models.configs import ModelConfig
from ..models.lora_params import model_shape
from .embedded import engine_status, loaded_models

_QUERY_S = 10.0
_COMMAND = "`ml-researcher engine --model FOLDER` (as backend: cluster) with"


@dataclass(frozen=True, slots=True)
class EmbeddedMemory:
    """What a model needs on this machine, and how it would be run; ``fit`` is None where that is not known.

    Attributes:
        room: What is free.
        fit: The batch that fits, and the need with it.
        note: Why the need is not known, or empty.
    """

    room: Room
    fit: Fit | None
    note: str = ""

    @property
    def text(self) -> str:
        """The estimate in a sentence."""
        if self.fit is None:
            return f"Memory: not known ({self.note})"
        batch = self.fit.batch
        again = ", layers run again in the backward pass" if batch.checkpointing else ""
        return (
            f"Memory: about {self.fit.need}, {gib(self.room.free)} free ({self.room.device}); batches of "
            f"{batch.tokens:,} tokens{again}"
        )

    @property
    def facts(self) -> dict[str, Any]:
        """The same for programs, in bytes."""
        facts: dict[str, Any] = {"device": self.room.device, "free": self.room.free, "note": self.note}
        if self.fit is None:
            return facts
        need, batch = self.fit.need, self.fit.batch
        chosen = {"batch_tokens": batch.tokens, "gradient_checkpointing": batch.checkpointing}
        return {**facts, **asdict(need), "total": need.total, **chosen}


def embedded_memory(model: ModelConfig, *, rank: int, length: int) -> EmbeddedMemory:
    """What training ``model`` by sequences of up to ``length`` tokens needs on the embedded engine here.

    Raises:
        TooLargeError: If it does not fit; with the numbers and the nearest choice that does.
    """
    room = embedded_room()
    try:
        shape: ModelShape = model_shape(model)
    except ModelError as error:
        return EmbeddedMemory(room, None, error.problem)
    found = fit(shape, room, rank=rank, wanted=Batch(length=length))
    if found is None:
        raise refusal(shape, room, model.name, rank=rank, length=length, command=_COMMAND)
    return EmbeddedMemory(room, found)


def embedded_room() -> Room:
    """What the embedded engine finds free here, with what it holds itself."""
    gpu = _gpu()
    if gpu is not None:
        held = sum(int(loaded.get("weights_bytes", 0)) for loaded in loaded_models().values())
        return Room("cuda", 2, min(gpu[1], gpu[0] + held), gpu[1])
    free, total = free_ram()
    status = engine_status()
    free = min(total, free + (status.memory_bytes if status else 0))
    if sys.platform == "darwin" and platform.machine() == "arm64":
        return Room("mps", 4, free, total)
    return Room("cpu", 2 if cpu_has_bf16() else 4, free, total)


def cpu_has_bf16() -> bool:
    """Whether the processor multiplies bfloat16 itself."""
    cpuinfo = Path("/proc/cpuinfo")
    flags = cpuinfo.read_text(encoding="utf-8").split() if cpuinfo.exists() else []
    return not {"avx512_bf16", "amx_tile"}.isdisjoint(flags)


def _gpu(environment: Mapping[str, str] = os.environ) -> tuple[int, int] | None:
    """Free and all bytes of the first GPU that the engine may use; None where it computes on the processor."""
    first = environment.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0].strip()
    try:
        if first in {"", "-1"} or version("torch").endswith("+cpu"):
            return None
    except PackageNotFoundError:
        return None
    query = ["nvidia-smi", "-i", first, "--query-gpu=memory.free,memory.total", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, timeout=_QUERY_S, check=True)
        free, total = (int(part) << 20 for part in done.stdout.split(","))
    except (OSError, ValueError, subprocess.SubprocessError):  # no driver, no such GPU, or one that does not tell
        return None
    return free, total
