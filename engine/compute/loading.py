# pyright: basic
# Reason: drives transformers' and torch's untyped loading interfaces.
"""From a path or hub id to a module on a device: which device, which dtype, and clear errors on the way.

CUDA and MPS paths (bf16, nf4 through bitsandbytes, gradient checkpointing) follow the libraries' documentation; they
are not exercised by the tests of this repository, which run on CPU.
"""

from __future__ import annotations

import ctypes
import platform
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from transformers.utils.logging import disable_progress_bar

from ...core.errors import ConfigError, MissingDependencyError, ModelError
from ..interface import LoadOptions

_DTYPES = {"float32": torch.float32, "fp32": torch.float32, "bfloat16": torch.bfloat16, "bf16": torch.bfloat16}
# Option numbers of glibc's mallopt(3), from malloc.h.
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -2, -3, -8
_DEVICES = ("auto", "cpu", "cuda", "mps")


@dataclass(frozen=True, slots=True)
class Loaded:
    """What came out of a checkpoint folder or hub id."""

    module: Any
    tokenizer: Any
    config: Any
    device: torch.device
    dtype: torch.dtype


def load_pretrained(path_or_id: str, options: LoadOptions) -> Loaded:
    """Load weights and tokenizer, frozen.

    Raises:
        ConfigError: If an option is unknown or impossible on this machine.
        ModelError: If there is no such model, it is not a causal LM, or it has no tokenizer.
        MissingDependencyError: If quantisation is asked for without bitsandbytes.
    """
    device = choose_device(options.device)
    dtype = choose_dtype(options.dtype, device)
    extra = _quantisation(options.quantize, device, dtype)
    config = _config(path_or_id)
    tokenizer = _tokenizer(path_or_id)
    disable_progress_bar()
    fix = "Check that the folder holds a causal language model's config.json and safetensors files"
    with _model_error("the model's weights cannot be loaded", path_or_id, fix):
        module = AutoModelForCausalLM.from_pretrained(path_or_id, dtype=dtype, **extra)
    if not extra:
        module = module.to(device)  # type: ignore[arg-type]  # the stub of a decorated method
    return Loaded(module.eval().requires_grad_(False), tokenizer, config, device, dtype)


def choose_device(asked: str) -> torch.device:
    """``auto`` prefers CUDA, then MPS, then CPU.

    Raises:
        ConfigError: If the device is unknown or not here.
    """
    kind = asked.split(":", 1)[0]
    if kind not in _DEVICES:
        raise ConfigError(f"unknown device {asked!r}", where="--device", fix=f"Choose among {', '.join(_DEVICES)}")
    here = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if kind == "auto":
        return torch.device(next(name for name in ("cuda", "mps", "cpu") if here[name]))
    if not here[kind]:
        raise ConfigError(f"device {asked!r} is not available here", where="--device", fix="Use --device auto")
    return torch.device(asked)


def choose_dtype(asked: str, device: torch.device) -> torch.dtype:
    """``auto`` is bf16 where the hardware multiplies it natively, else fp32.

    On a CPU with avx512_bf16 or AMX a bf16 matrix product ran 4.3 times as fast as fp32 (874 against 203 GFLOP/s, two
    EPYC cores); without those instructions bf16 is emulated and slower.

    Raises:
        ConfigError: If the dtype is unknown.
    """
    if asked != "auto":
        if asked not in _DTYPES:
            raise ConfigError(f"unknown dtype {asked!r}", where="--dtype", fix=f"Choose auto or {', '.join(_DTYPES)}")
        return _DTYPES[asked]
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float32
    if device.type == "mps":
        return torch.float32
    return torch.bfloat16 if cpu_has_bf16() else torch.float32


def cpu_has_bf16() -> bool:
    """Whether this CPU has bf16 matrix instructions."""
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def tune_allocator() -> bool:
    """Keep freed memory in the process instead of handing it back to the kernel at every step.

    By default glibc maps each large tensor afresh, and the page faults took a sixth of a training step (0.53 s against
    0.44 s on two cores; a norm over 2048 x 512 went from 2.5 ms to 0.26 ms). One arena, because memory freed by one
    thread is otherwise of no use to the next. Elsewhere than on glibc this does nothing.

    Returns:
        Whether the allocator took the settings.
    """
    if sys.platform != "linux" or platform.libc_ver()[0] != "glibc":
        return False
    library = ctypes.CDLL(None)
    settings = {_M_MMAP_THRESHOLD: 32 << 20, _M_TRIM_THRESHOLD: 1 << 30, _M_TOP_PAD: 64 << 20, _M_ARENA_MAX: 1}
    return all(library.mallopt(option, value) == 1 for option, value in settings.items())


def set_threads(threads: int | None) -> int:
    """Fix torch's thread count; repeatable results need it constant.

    Raises:
        ConfigError: If it is below 1.
    """
    if threads is not None and threads < 1:
        raise ConfigError(f"threads must be at least 1, got {threads}", where="--threads")
    if threads is not None:
        torch.set_num_threads(threads)
    return torch.get_num_threads()


def _quantisation(quantize: str | None, device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
    if quantize is None:
        return {}
    if quantize != "nf4":
        raise ConfigError(f"unknown quantisation {quantize!r}", where="--quantize", fix="Only nf4 is known")
    if device.type != "cuda":
        raise ConfigError(
            "nf4 quantisation needs a CUDA device", where="--quantize", fix="Leave it out on this machine"
        )
    try:
        import bitsandbytes  # type: ignore[import-not-found]  # noqa: F401
    except ImportError as error:
        raise MissingDependencyError("nf4 needs bitsandbytes", fix="pip install bitsandbytes") from error
    from transformers import BitsAndBytesConfig

    quantisation = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype
    )
    return {"quantization_config": quantisation, "device_map": {"": device.index or 0}}


def _config(path_or_id: str) -> Any:
    if Path(path_or_id).is_file():
        raise ModelError("this is a file, and a model folder or hub id is needed", where=path_or_id)
    fix = "Give a folder with config.json and weights, or a hub id while the hub can be reached"
    with _model_error("no such model", path_or_id, fix):
        return AutoConfig.from_pretrained(path_or_id)


def _tokenizer(path_or_id: str) -> Any:
    fix = "Save one beside the weights with tokenizer.save_pretrained(folder)"
    with _model_error("the model has no usable tokenizer", path_or_id, fix):
        return AutoTokenizer.from_pretrained(path_or_id)


@contextmanager
def _model_error(what: str, where: str, fix: str) -> Iterator[None]:
    """Say in one line what transformers could not do.

    Raises:
        ModelError: If what runs inside fails in one of the ways in which a model folder can be broken.
    """
    try:
        yield
    except (OSError, ValueError, RuntimeError, KeyError, TypeError, AttributeError) as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise ModelError(f"{what} ({lines[0][:200]})", where=where, fix=fix) from error
