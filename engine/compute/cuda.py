# pyright: basic
# Reason: torch's device interfaces are loosely typed.
"""NVIDIA GPUs: whether one can be used, which, and how a run on it comes out the same twice.

One engine computes on one GPU. What is said here was checked on a CPU with torch's answers replaced, not on cards.
"""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch

from ...core.errors import ConfigError

_WHERE = "--device"
_ON_CPU = "--device cpu runs without"
_Result = TypeVar("_Result")

logger = logging.getLogger(__name__)


def choose_gpu(asked: str) -> torch.device:
    """The GPU meant by ``cuda`` or ``cuda:N``, made the current one of this thread.

    Raises:
        ConfigError: If there is none, it is not there, or this torch and its driver cannot use it.
    """
    # cuBLAS reads this once, when it starts; without it sums may be added up in another order the next time.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    if not torch.cuda.is_available():
        raise _not_available()
    count = torch.cuda.device_count()
    _, _, number = asked.partition(":")
    index = int(number or 0)
    if index >= count:
        here = "cuda:0 is the only GPU" if count == 1 else f"the GPUs are cuda:0 to cuda:{count - 1}"
        raise ConfigError(f"there is no {asked}: {here} here", where=_WHERE, fix="Choose one of these")
    name = f"cuda:{index}"
    try:
        card, capability = torch.cuda.get_device_name(index), torch.cuda.get_device_capability(index)
        _check_built_for(card, capability)
        torch.cuda.set_device(index)
        torch.ones(1, device=name).add_(1).cpu()  # the first kernel: this is where a driver that does not fit is found
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(
            f"the GPU {name} does not work with torch {torch.__version__}: {_first_line(error)}",
            where=_WHERE,
            fix=f"See that nvidia-smi lists it, free and without errors, and update its driver; {_ON_CPU}",
        ) from error
    # Sums of a bf16 product that is cut into parts stay in fp32.
    torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False
    if count > 1:
        logger.info(
            "%d GPUs here, and one engine computes on one: %s (%s). --device cuda:N takes another; "
            "for more, start an engine on each, or use a cluster (docs/clusters.md)",
            count,
            name,
            card,
        )
    return torch.device(name if number else "cuda")


def _not_available() -> ConfigError:
    """Why torch finds no GPU."""
    built, hidden = torch.version.cuda, os.environ.get("CUDA_VISIBLE_DEVICES")
    if built is None:
        what, fix = (
            f"this torch ({torch.__version__}) was built without CUDA",
            "Install a build with CUDA (docs/install.md)",
        )
    elif hidden is not None and hidden.strip() in ("", "-1"):
        what, fix = f"CUDA_VISIBLE_DEVICES={hidden.strip()!r} hides every GPU", "Unset it, or name a GPU in it"
    elif has_driver():
        what = f"torch {torch.__version__} finds no GPU, though an NVIDIA driver is here: it does not fit CUDA {built}"
        fix = "Update the driver, or install a torch built for an older CUDA"
    else:
        what, fix = "no NVIDIA GPU and no driver of one is here", "Use --device auto"
    return ConfigError(what, where=_WHERE, fix=f"{fix}; {_ON_CPU}")


def has_driver() -> bool:
    """Whether an NVIDIA driver is on this machine, whatever torch makes of it."""
    return any(Path("/dev").glob("nvidia[0-9]*")) or shutil.which("nvidia-smi") is not None


def _check_built_for(card: str, capability: tuple[int, int]) -> None:
    """Refuse a card that this torch has no kernels for.

    Binary code (``sm_``) runs on cards of its own generation from its number up; ``compute_`` on every later one.
    """
    built = [name for name in torch.cuda.get_arch_list() if name.startswith(("sm_", "compute_"))]
    numbers = [(name.startswith("compute"), int("".join(filter(str.isdigit, name)))) for name in built]
    has = capability[0] * 10 + capability[1]
    if not built or any(number <= has and (later or number // 10 == capability[0]) for later, number in numbers):
        return
    raise ConfigError(
        f"torch {torch.__version__} has no kernels for {card} (compute capability {capability[0]}.{capability[1]}): "
        f"it was built for {', '.join(built)}",
        where=_WHERE,
        fix=f"Install a torch built for that card (pytorch.org lists them by CUDA version); {_ON_CPU}",
    )


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)[:200]


@contextmanager
def repeatable(device: torch.device) -> Iterator[None]:
    """Let torch take only operations on CUDA that add up in a fixed order; those that have none raise."""
    if device.type != "cuda":
        yield
        return
    memory: Any = torch.utils.deterministic
    before, fill = torch.are_deterministic_algorithms_enabled(), memory.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)
    memory.fill_uninitialized_memory = False  # slow, and only for finding errors
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)
        memory.fill_uninitialized_memory = fill


class Repeatably:
    """Runs functions under ``repeatable``; as they are once one needed an operation that has no fixed order."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._holds = device.type == "cuda"

    def __call__(self, function: Callable[[], _Result]) -> _Result:
        """``function()``, which is begun again if torch refuses."""
        if self._holds:
            try:
                with repeatable(self._device):
                    return function()
            except RuntimeError as error:
                if "determinis" not in str(error):
                    raise
                self._holds = False
                logger.warning("Training is not repeatable to the last bit on this GPU: %s", _first_line(error))
        return function()
