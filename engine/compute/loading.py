# pyright: basic
# Reason: drives transformers' and torch's untyped loading interfaces.
"""From a path or hub id to a module on a device: which device, which dtype, and clear errors on the way.

What is particular to CUDA and MPS (bf16 there, nf4 through bitsandbytes, the compiled kernel of FlexAttention) follows
the libraries' documentation and has never run: the tests of this repository run on CPU.
"""

from __future__ import annotations

import ctypes
import logging
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
from ...core.memory import TooLargeError
from ..interface import LoadOptions
from .cuda import choose_gpu, has_driver
from .memory_fit import Running, require_fit

_DTYPES = {"float32": torch.float32, "fp32": torch.float32, "bfloat16": torch.bfloat16, "bf16": torch.bfloat16}
# Option numbers of glibc's mallopt(3), from malloc.h.
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -2, -3, -8
_DEVICES = ("auto", "cpu", "cuda", "mps")

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Loaded:
    """What came out of a checkpoint folder or hub id; ``stored_dtype`` is what its config says of the weights.

    ``running`` is how it is run in the memory there is.
    """

    module: Any
    tokenizer: Any
    config: Any
    device: torch.device
    dtype: torch.dtype
    stored_dtype: str
    running: Running


def load_pretrained(path_or_id: str, options: LoadOptions) -> Loaded:
    """Load weights and tokenizer, frozen.

    Raises:
        ConfigError: If an option is unknown or impossible on this machine.
        ModelError: If there is no such model, it is not a causal LM, it has no tokenizer, or it does not fit.
        MissingDependencyError: If quantisation is asked for without bitsandbytes.
    """
    device = choose_device(options.device)
    dtype = choose_dtype(options.dtype, device)
    extra = _quantisation(options.quantize, device, dtype)
    config = _config(path_or_id)
    tokenizer = _tokenizer(path_or_id)
    with _model_error("its config.json cannot be used", path_or_id, "Check the file, or save the model again"):
        running = require_fit(path_or_id, config, device, dtype, options)
    disable_progress_bar()
    module = _weights(path_or_id, dtype, extra)
    if not extra:
        module = module.to(device)
    stored = str(getattr(config.get_text_config(), "dtype", None) or "unknown").removeprefix("torch.")
    _say_dtype(path_or_id, options, dtype, stored)
    return Loaded(module.eval().requires_grad_(False), tokenizer, config, device, dtype, stored, running)


def _say_dtype(name: str, options: LoadOptions, dtype: torch.dtype, stored: str) -> None:
    taken = str(dtype).removeprefix("torch.")
    chosen = "chosen for this hardware" if options.dtype == "auto" else "as asked"
    logger.info("%s: stored in %s, computed in %s (%s)", name, stored, taken, chosen)
    if (stored, taken) == ("float32", "bfloat16"):
        logger.warning("%s: a float32 model in bfloat16 loses precision; --dtype float32 keeps it, slower", name)


def choose_device(asked: str) -> torch.device:
    """``auto`` prefers CUDA, then MPS, then CPU; a GPU that it passes over is named in the log, with the reason.

    Raises:
        ConfigError: If the device is unknown, not here or not usable.
    """
    kind, _, number = asked.partition(":")
    if asked not in _DEVICES and not (kind == "cuda" and number.isdecimal()):
        raise ConfigError(
            f"unknown device {asked!r}", where="--device", fix=f"Choose among {', '.join(_DEVICES)}, cuda:N"
        )
    if kind == "cuda":
        return choose_gpu(asked)
    has_mps = torch.backends.mps.is_available()
    if asked == "mps" and not has_mps:
        raise ConfigError("device 'mps' is not available here", where="--device", fix="Use --device auto")
    if asked == "auto" and (torch.cuda.is_available() or has_driver()):
        try:
            return choose_gpu("cuda")
        except ConfigError as error:
            logger.warning("The GPU is not used: %s", error)
    return torch.device(asked if asked != "auto" else "mps" if has_mps else "cpu")


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
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float32
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
    path = Path(path_or_id)
    if path.is_file():
        raise ModelError("this is a file, and a model folder or hub id is needed", where=path_or_id)
    if path.is_dir() and not (path / "config.json").is_file():
        raise ModelError("this folder has no config.json", where=path_or_id, fix="Give a Hugging Face model folder")
    if path.is_dir():
        what, fix = "its config.json cannot be used", "Check the file, or save the model again"
    else:
        what, fix = "no such model", "Give a folder with config.json and weights, or a hub id while the hub is in reach"
    with _model_error(what, path_or_id, fix):
        return AutoConfig.from_pretrained(path_or_id)


def _tokenizer(path_or_id: str) -> Any:
    fix = "Save one beside the weights with tokenizer.save_pretrained(folder)"
    with _model_error("the model has no usable tokenizer", path_or_id, fix):
        tokenizer = AutoTokenizer.from_pretrained(path_or_id)
        vocabulary = tokenizer.get_vocab()
    # Where a folder has no tokenizer's files, transformers makes one that knows no words.
    if len(vocabulary) <= len(tokenizer.all_special_tokens):
        raise ModelError("the model has no tokenizer files", where=path_or_id, fix=fix)
    return tokenizer


def _weights(path_or_id: str, dtype: torch.dtype, extra: dict[str, Any]) -> Any:
    fix = "Copy or download the model's weight files again, and see that config.json is of this model"
    with _model_error("the model's weights are missing, cut or of another shape", path_or_id, fix):
        load: Any = AutoModelForCausalLM.from_pretrained
        module, info = load(path_or_id, dtype=dtype, output_loading_info=True, **extra)
    # Transformers fills what is missing with random numbers.
    missing = sorted(info["missing_keys"])
    if missing:
        raise ModelError(f"the weight files have no {missing[0]} ({len(missing)} missing)", where=path_or_id, fix=fix)
    return module


@contextmanager
def _model_error(what: str, where: str, fix: str) -> Iterator[None]:
    """Say in one line what transformers could not do.

    Raises:
        ModelError: If what runs inside fails: the libraries let through whatever a broken file makes of them.
    """
    try:
        yield
    except (MemoryError, torch.OutOfMemoryError) as error:
        raise ModelError(
            "the model does not fit this machine's memory", where=where, fix="Take a smaller one"
        ) from error
    except TooLargeError:
        raise
    except Exception as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
        said = " ".join(lines[:2]) if lines[0].endswith(":") else lines[0]
        raise ModelError(f"{what} ({_shortened(said)})", where=where, fix=fix) from error


def _shortened(text: str, most: int = 240) -> str:
    """The beginning of a long text, whole words."""
    return text if len(text) <= most else f"{text[:most].rsplit(' ', 1)[0]} ..."
