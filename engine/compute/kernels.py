# pyright: basic
# Reason: ctypes over torch's data pointers.
"""Fused CPU loops, compiled once from ``kernels.c`` where the engine runs and kept in the user's cache.

Without a C compiler, or where it cannot build them, the engine computes the same with torch's operations, slower;
``ML_RESEARCHER_KERNELS=off`` asks for that. Both round in different places, so that last bits differ between the two.

Axes as in ``kernels.c``. The functions check nothing: callers ask ``usable``, ``fits`` and ``takes_lora`` first.
"""

from __future__ import annotations

import ctypes
import hashlib
import logging
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

VARIABLE = "ML_RESEARCHER_KERNELS"
# What the arrays of kernels.c on the stack hold.
_MOST_HEAD, _MOST_GROUP = 512, 64
_COMPILERS = ("cc", "gcc", "clang")
_FLAGS = ("-O3", "-march=native", "-fopenmp", "-fPIC", "-shared", "-fno-math-errno", "-fno-trapping-math")
_TIMEOUT_S = 120
_ACTIVATIONS = {"silu": 0, "gelu": 1}
_SUFFIXES = {torch.bfloat16: "bf16", torch.float32: "f32"}
# Arguments of each kernel: i an int64, f a float, p a pointer.
_SIGNATURES = {
    "rms_norm": "iippfpp",
    "rms_again": "iipppp",
    "rms_backward": "iippppp",
    "gated": "iiipp",
    "gated_backward": "iiipppp",
    "split_heads": "iiipiiippfppppp",
    "merge_heads": "iiipiiipppppfppp",
    "pack_heads": "iiipiipp",
    "pad_heads": "iiipiipp",
    "softmax_causal": "iiiifippp",
    "softmax_backward": "iifpp",
    "log_sum_exp": "iipp",
    "logits_backward": "iippppppp",
    "choose": "iippppp",
    "attend_rows": "iiiipppfpppp",
    "decode": "iiiippfppfippippppiippp",
}
_LORA_SIGNATURE = "iiiiipippppfpp"
# What ``lora_add`` has room for on the stack.
_MOST_LOW = 1024
_TYPES = {"i": ctypes.c_int64, "f": ctypes.c_float, "p": ctypes.c_void_p}

logger = logging.getLogger(__name__)


def usable(x: Tensor) -> bool:
    """Whether ``x`` is of a kind that the kernels take, and they are there."""
    return x.device.type == "cpu" and x.dtype in _SUFFIXES and x.is_contiguous() and library() is not None


def fits(head_size: int, group: int) -> bool:
    """Whether heads of this size, so many query heads a key head, can be computed here."""
    return head_size % 16 == 0 and head_size <= _MOST_HEAD and group <= _MOST_GROUP


@cache
def library() -> ctypes.CDLL | None:
    """The compiled kernels, or None with the reason in the log."""
    if os.environ.get(VARIABLE, "").lower() in ("off", "0", "no"):
        return None
    try:
        found = ctypes.CDLL(str(_built()))
    except _NoKernelsError as error:
        logger.info("Computing with torch's operations alone: %s", error)
        return None
    except OSError as error:
        logger.warning("The compiled kernels cannot be loaded (%s): computing with torch's operations alone", error)
        return None
    for name, kinds in _SIGNATURES.items():
        for suffix in _SUFFIXES.values():
            function = getattr(found, f"{name}_{suffix}")
            function.argtypes, function.restype = [_TYPES[kind] for kind in kinds], None
    if found.has_lora_add():
        found.lora_add_bf16.argtypes, found.lora_add_bf16.restype = [_TYPES[kind] for kind in _LORA_SIGNATURE], None
    return found


def takes_lora(a: Tensor, spans: Sequence[slice]) -> bool:
    """Whether ``lora_add`` takes pairs stacked to A [kR, d_in] that add to these columns, and their way back."""
    found = library()
    return (
        found is not None
        and a.dtype == torch.bfloat16
        and usable(a)
        and bool(found.has_lora_add())
        and a.shape[0] // len(spans) % 2 == 0
        and a.shape[0] <= _MOST_LOW
        and a.shape[1] % 32 == 0
        and all(span.start % 32 == 0 and span.stop % 32 == 0 for span in spans)
    )


class _NoKernelsError(Exception):
    """Why there are none."""


def _built() -> Path:
    """The shared object for these sources, this compiler and this processor; compiled if it is not there."""
    if sys.platform != "linux":
        raise _NoKernelsError(f"the kernels are built on Linux only, and this is {sys.platform}")
    compiler = next((path for name in (os.environ.get("CC"), *_COMPILERS) if name and (path := shutil.which(name))), "")
    if not compiler:
        raise _NoKernelsError("no C compiler (cc, gcc or clang) is installed")
    here = Path(__file__).parent
    sources = [(here / name).read_bytes() for name in ("kernels.c", "kernels_typed.h")]
    flags = [*_FLAGS, *(["-mprefer-vector-width=512"] if platform.machine() in ("x86_64", "AMD64") else [])]
    version = _run([compiler, "--version"])
    digest = hashlib.sha256(b"\0".join([*sources, " ".join(flags).encode(), version, _processor()])).hexdigest()
    folder = _folder()
    target = folder / f"kernels-{digest[:24]}.so"
    if not target.is_file():
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            fresh = Path(scratch) / target.name
            _run([compiler, *flags, "-o", str(fresh), str(here / "kernels.c"), "-lm"])
            fresh.replace(target)
    return target


def _folder() -> Path:
    """A folder that nobody else can write to: what lies in it is run."""
    from platformdirs import user_cache_path

    folder = user_cache_path("ml-researcher", appauthor=False) / "kernels"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        facts = folder.stat()
    except OSError as error:
        raise _NoKernelsError(f"the cache folder cannot be used ({error.strerror}: {folder})") from error
    if facts.st_uid != os.getuid() or facts.st_mode & 0o022 or not os.access(folder, os.W_OK):
        raise _NoKernelsError(f"the cache folder {folder} is not writable by you alone")
    return folder


def _processor() -> bytes:
    """What ``-march=native`` depends on."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return platform.processor().encode()
    wanted = ("model name", "flags", "Features", "CPU part")
    return "\n".join(sorted({line for line in lines if line.startswith(wanted)})).encode()


def _run(command: Sequence[str]) -> bytes:
    try:
        done = subprocess.run(command, capture_output=True, timeout=_TIMEOUT_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise _NoKernelsError(f"{command[0]} could not be run ({type(error).__name__})") from error
    if done.returncode:
        last = done.stderr.decode(errors="replace").strip().splitlines()[-1:] or ["no message"]
        raise _NoKernelsError(f"{command[0]} failed ({last[0]})")
    return done.stdout


def call(name: str, dtype: torch.dtype, *arguments: Tensor | float | None) -> None:
    """Run a kernel for elements of ``dtype``; tensors must be contiguous, and None is a null pointer."""
    _function(name, dtype)(*[each.data_ptr() if isinstance(each, Tensor) else each for each in arguments])


@cache
def _function(name: str, dtype: torch.dtype) -> Any:
    return getattr(library(), f"{name}_{_SUFFIXES[dtype]}")


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Of x [N, D]: root-mean-square norm times ``weight``, and the fp32 reciprocal root [N, 1]."""
    y, root = torch.empty_like(x), x.new_empty((x.shape[0], 1), dtype=torch.float32)
    call("rms_norm", x.dtype, *x.shape, x, weight, eps, y, root)
    return y, root


def rms_again(x: Tensor, weight: Tensor, root: Tensor) -> Tensor:
    """The norm again, from its root."""
    y = torch.empty_like(x)
    call("rms_again", x.dtype, *x.shape, x, weight, root, y)
    return y


def rms_backward(grad: Tensor, x: Tensor, root: Tensor, weight: Tensor) -> Tensor:
    """Gradient by x [N, D]."""
    out = torch.empty_like(x)
    call("rms_backward", x.dtype, *x.shape, grad, x, weight, root, out)
    return out


def gated(gate_up: Tensor, activation: str) -> Tensor:
    """act(gate) * up of [N, 2I]."""
    n, width = gate_up.shape[0], gate_up.shape[1] // 2
    y = gate_up.new_empty((n, width))
    call("gated", y.dtype, n, width, _ACTIVATIONS[activation], gate_up, y)
    return y


def gated_backward(grad: Tensor, gate_up: Tensor, activation: str) -> tuple[Tensor, Tensor]:
    """Gradient by gate_up [N, 2I], and act(gate) * up again."""
    n, width = grad.shape
    out, y = torch.empty_like(gate_up), torch.empty_like(grad)
    call("gated_backward", y.dtype, n, width, _ACTIVATIONS[activation], grad, gate_up, out, y)
    return out, y


def log_sum_exp(logits: Tensor) -> Tensor:
    """Of logits [N, V], fp32 [N]."""
    out = logits.new_empty(len(logits), dtype=torch.float32)
    call("log_sum_exp", logits.dtype, *logits.shape, logits, out)
    return out


def logits_backward(logits: Tensor, rows: Tensor, lse: Tensor, first: Tensor, targets: Tensor, grads: Tensor) -> Tensor:
    """Gradient [R, V] by ``rows`` [R] of the logits, from d(loss)/d(log p) of (row, target) pairs sorted by row.

    Pairs of row r of the result are ``first[r]`` to ``first[r + 1]``; ``lse`` is what ``log_sum_exp`` gave.
    """
    out = logits.new_empty((len(rows), logits.shape[1]))
    call("logits_backward", logits.dtype, *out.shape, rows, logits, lse, first, targets, grads, out)
    return out


def choose(logits: Tensor, temperatures: Tensor, uniform: Tensor) -> tuple[Tensor, Tensor]:
    """One token [B] a row of logits [B, V], and its log-probability [B] at temperature 1.

    ``temperatures`` [B] in fp32 (0 is greedy), ``uniform`` [B] in fp64.
    """
    tokens = torch.empty(len(logits), dtype=torch.int64)
    logprobs = torch.empty(len(logits), dtype=torch.float32)
    call("choose", logits.dtype, *logits.shape, logits, temperatures, uniform, tokens, logprobs)
    return tokens, logprobs


class Thin(NamedTuple):
    """Two thin matrices for ``lora_add``: A [ranks, d_in] and B as [R / 2, d_out, 2], pairs of ranks side by side.

    Each of as many equal runs of ranks as ``into`` [.., 2] has rows reads those columns of x, and each of as many as
    ``out`` has rows adds to those of y.
    """

    a: Tensor
    into: Tensor
    b: Tensor
    out: Tensor


def lora_add(x: Tensor, thin: Thin, scaling: float, y: Tensor) -> Tensor:
    """Add ``scaling`` (x A^T) B^T to y [N, d_out] in place; returns x A^T [N, ranks]."""
    n, ranks = x.shape[0], thin.a.shape[0]
    low = x.new_empty((n, ranks))
    shape = (n, x.shape[1], y.shape[1], ranks)
    spans = (thin.into.shape[0], thin.into, thin.out.shape[0], thin.out)
    call("lora_add", x.dtype, *shape, *spans, x, thin.a, thin.b, scaling, y, low)
    return low
