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
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .attention_layout import AttentionSpan, Bucket, Heads, Rotary

VARIABLE = "ML_RESEARCHER_KERNELS"
# What the arrays of kernels.c on the stack hold.
_MOST_HEAD, _MOST_GROUP = 512, 64
_COMPILERS = ("cc", "gcc", "clang")
_FLAGS = ("-O3", "-march=native", "-fopenmp", "-fPIC", "-shared", "-fno-math-errno", "-fno-trapping-math")
_TIMEOUT_S = 120
_HERE = Path(__file__).parent
_ACTIVATIONS = {"silu": 0, "gelu": 1}
_SUFFIXES = {torch.bfloat16: "bf16", torch.float32: "f32"}
# What ``lora_add`` has room for on the stack.
_MOST_LOW = 1024
_TYPES = {"i64": ctypes.c_int64, "f32": ctypes.c_float}

logger = logging.getLogger(__name__)


def usable(x: Tensor) -> bool:
    """Whether ``x`` is of a kind that the kernels take, and they are there."""
    return x.device.type == "cpu" and x.dtype in _SUFFIXES and x.is_contiguous() and library() is not None


def fits(head_size: int, group: int) -> bool:
    """Whether heads of this size, with ``group`` query heads per key head, can be computed here."""
    return head_size % 16 == 0 and head_size <= _MOST_HEAD and group <= _MOST_GROUP


@cache
def library() -> ctypes.CDLL | None:
    """The compiled kernels, or None with the reason in the log."""
    if os.environ.get(VARIABLE, "").lower() in ("off", "0", "no"):
        return None
    try:
        loaded = ctypes.CDLL(str(_built()))
    except _NoKernelsError as error:
        logger.info("Computing with torch's operations alone: %s", error)
        return None
    except OSError as error:
        logger.warning("The compiled kernels cannot be loaded (%s): computing with torch's operations alone", error)
        return None
    _declare(loaded)
    return loaded


def _declare(loaded: ctypes.CDLL) -> None:
    """Give every kernel the argument types of its prototype in the C sources."""
    main, typed = (source.decode() for source in _sources())
    kernels = re.findall(r"^void NAME\((\w+)\)\(([^)]*)\)", typed, re.MULTILINE)
    prototypes = {f"{name}_{suffix}": arguments for name, arguments in kernels for suffix in _SUFFIXES.values()}
    if loaded.has_lora_add():
        prototypes |= dict(re.findall(r"^void (\w+)\(([^)]*)\)", main, re.MULTILINE))
    for name, arguments in prototypes.items():
        function = getattr(loaded, name)
        function.restype = None
        function.argtypes = [
            ctypes.c_void_p if "*" in argument else _TYPES[argument.split()[0]] for argument in arguments.split(",")
        ]


def takes_lora(a: Tensor, spans: Sequence[slice]) -> bool:
    """Whether ``lora_add`` takes pairs stacked to A [kR, d_in] that add to these columns, forward and backward."""
    loaded = library()
    return (
        loaded is not None
        and a.dtype == torch.bfloat16
        and usable(a)
        and bool(loaded.has_lora_add())
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
    flags = [*_FLAGS, *(["-mprefer-vector-width=512"] if platform.machine() in ("x86_64", "AMD64") else [])]
    version = _run([compiler, "--version"])
    digest = hashlib.sha256(b"\0".join([*_sources(), " ".join(flags).encode(), version, _processor()])).hexdigest()
    folder = _folder()
    target = folder / f"kernels-{digest[:24]}.so"
    if not target.is_file():
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            fresh = Path(scratch) / target.name
            _run([compiler, *flags, "-o", str(fresh), str(_HERE / "kernels.c"), "-lm"])
            fresh.replace(target)
    return target


def _sources() -> list[bytes]:
    return [(_HERE / name).read_bytes() for name in ("kernels.c", "kernels_typed.h")]


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


def _call(name: str, dtype: torch.dtype, *arguments: Tensor | float | None) -> None:
    """Run a kernel for elements of ``dtype``; tensors must be contiguous, and None is a null pointer."""
    _function(name, dtype)(*[each.data_ptr() if isinstance(each, Tensor) else each for each in arguments])


@cache
def _function(name: str, dtype: torch.dtype) -> Any:
    return getattr(library(), f"{name}_{_SUFFIXES[dtype]}")


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Of x [N, D]: root-mean-square norm times ``weight``, and the fp32 reciprocal root [N, 1]."""
    y, root = torch.empty_like(x), x.new_empty((x.shape[0], 1), dtype=torch.float32)
    _call("rms_norm", x.dtype, *x.shape, x, weight, eps, y, root)
    return y, root


def rms_again(x: Tensor, weight: Tensor, root: Tensor) -> Tensor:
    """The norm again, from its root."""
    y = torch.empty_like(x)
    _call("rms_again", x.dtype, *x.shape, x, weight, root, y)
    return y


def rms_backward(grad: Tensor, x: Tensor, root: Tensor, weight: Tensor) -> Tensor:
    """Gradient w.r.t. x [N, D]."""
    out = torch.empty_like(x)
    _call("rms_backward", x.dtype, *x.shape, grad, x, weight, root, out)
    return out


def gated(gate_up: Tensor, activation: str) -> Tensor:
    """act(gate) * up of [N, 2I]."""
    n, width = gate_up.shape[0], gate_up.shape[1] // 2
    y = gate_up.new_empty((n, width))
    _call("gated", y.dtype, n, width, _ACTIVATIONS[activation], gate_up, y)
    return y


def gated_backward(grad: Tensor, gate_up: Tensor, activation: str) -> tuple[Tensor, Tensor]:
    """Gradient w.r.t. gate_up [N, 2I], and act(gate) * up again."""
    n, width = grad.shape
    out, y = torch.empty_like(gate_up), torch.empty_like(grad)
    _call("gated_backward", y.dtype, n, width, _ACTIVATIONS[activation], grad, gate_up, out, y)
    return out, y


def log_sum_exp(logits: Tensor) -> Tensor:
    """Of logits [N, V], fp32 [N]."""
    out = logits.new_empty(len(logits), dtype=torch.float32)
    _call("log_sum_exp", logits.dtype, *logits.shape, logits, out)
    return out


def logits_backward(logits: Tensor, rows: Tensor, lse: Tensor, first: Tensor, targets: Tensor, grads: Tensor) -> Tensor:
    """Gradient [R, V] w.r.t. ``rows`` [R] of the logits, from d(loss)/d(log p) of (row, target) pairs sorted by row.

    Pairs of row r of the result are ``first[r]`` to ``first[r + 1]``; ``lse`` is what ``log_sum_exp`` gave.
    """
    out = logits.new_empty((len(rows), logits.shape[1]))
    _call("logits_backward", logits.dtype, *out.shape, rows, logits, lse, first, targets, grads, out)
    return out


def choose(logits: Tensor, temperatures: Tensor, uniform: Tensor) -> tuple[Tensor, Tensor]:
    """One token [B] a row of logits [B, V], and its log-probability [B] at temperature 1.

    ``temperatures`` [B] in fp32 (0 is greedy), ``uniform`` [B] in fp64.
    """
    tokens = torch.empty(len(logits), dtype=torch.int64)
    logprobs = torch.empty(len(logits), dtype=torch.float32)
    _call("choose", logits.dtype, *logits.shape, logits, temperatures, uniform, tokens, logprobs)
    return tokens, logprobs


class LowRank(NamedTuple):
    """Two low-rank factors for ``lora_add``: A [ranks, d_in] and B as [R / 2, d_out, 2], pairs of ranks side by side.

    Each of as many equal runs of ranks as ``into`` [.., 2] has rows reads those columns of x, and each of as many as
    ``out`` has rows adds to those of y.
    """

    a: Tensor
    into: Tensor
    b: Tensor
    out: Tensor


def lora_add(x: Tensor, factors: LowRank, scaling: float, y: Tensor) -> Tensor:
    """Add ``scaling`` (x A^T) B^T to y [N, d_out] in place; returns x A^T [N, ranks]."""
    n, ranks = x.shape[0], factors.a.shape[0]
    low = x.new_empty((n, ranks))
    shape = (n, x.shape[1], y.shape[1], ranks)
    columns = (factors.into.shape[0], factors.into, factors.out.shape[0], factors.out)
    _call("lora_add", x.dtype, *shape, *columns, x, factors.a, factors.b, scaling, y, low)
    return low


def split_heads(qkv: Tensor, rotary: Rotary, heads: Heads, bucket: Bucket) -> tuple[Tensor, Tensor, Tensor]:
    """Normed, rotated q [S, H, T, E], and k, v [S, J, T, E] of a bucket; padding repeats its first token."""
    q = qkv.new_empty((bucket.count, heads.query, bucket.length, heads.size))
    k, v = (qkv.new_empty((bucket.count, heads.key, bucket.length, heads.size)) for _ in range(2))
    shape = (bucket.count, bucket.length, bucket.start, bucket.places, heads.query, heads.key, heads.size)
    _call("split_heads", qkv.dtype, *shape, qkv, heads.norm, heads.eps, *rotary, q, k, v)
    return q, k, v


def merge_heads(
    grads: tuple[Tensor, Tensor, Tensor], qkv: Tensor, rotary: Rotary, heads: Heads, bucket: Bucket, out: Tensor
) -> None:
    """The gradient w.r.t. qkv of a bucket, written to ``out`` [N, (H + 2J) E], from those w.r.t. q, k, v."""
    shape = (bucket.stop - bucket.start, bucket.length, bucket.start, bucket.real, heads.query, heads.key, heads.size)
    _call("merge_heads", qkv.dtype, *shape, *grads, qkv, heads.norm, heads.eps, *rotary, out)


def pack_heads(x: Tensor, heads: Heads, bucket: Bucket, out: Tensor) -> None:
    """Write a bucket's [S, H, T, E] without its padding to ``out`` [N, H E]."""
    tokens = bucket.stop - bucket.start
    _call("pack_heads", x.dtype, tokens, bucket.length, bucket.start, bucket.real, heads.query, heads.size, x, out)


def pad_heads(x: Tensor, heads: Heads, bucket: Bucket) -> Tensor:
    """A bucket of x [N, H E] as [S, H, T, E], with zeros for padding."""
    out = x.new_empty((bucket.count, heads.query, bucket.length, heads.size))
    shape = (bucket.count, bucket.length, bucket.start, bucket.places, heads.query, heads.size)
    _call("pad_heads", x.dtype, *shape, x, out)
    return out


def softmax_causal(scores: Tensor, heads: Heads, bucket: Bucket) -> None:
    """In place: scores q k^T [S J, G T, T] to attention weights over what each query sees."""
    shape = (len(scores), heads.group, bucket.length, heads.key)
    position, branch = bucket.tree or (None, None)
    _call("softmax_causal", scores.dtype, *shape, heads.scale, heads.window or 0, position, branch, scores)


def softmax_backward(grad: Tensor, weights: Tensor, scale: float) -> None:
    """In place: ``grad`` [S J, G T, T] w.r.t. the weights to the gradient w.r.t. the scores before scaling."""
    rows, length = grad.shape[0] * grad.shape[1], grad.shape[2]
    _call("softmax_backward", grad.dtype, rows, length, scale, weights, grad)


def attend_rows(q: Tensor, k: Tensor, v: Tensor, heads: Heads, span: AttentionSpan) -> Tensor:
    """Attention of q [H, N, E] over k, v [J, N, E], one query at a time: [N, H E]."""
    tokens = q.shape[-2]
    out = q.new_empty((tokens, heads.query * heads.size))
    shape = (tokens, heads.query, heads.key, heads.size)
    _call("attend_rows", q.dtype, *shape, q, k, v, heads.scale, *span, out)
    return out


@dataclass(slots=True)
class LayerCache:
    """Keys and values of one layer: of the prompts [C, J, P, E], and of each row's tail [B, J, T, E]."""

    prompt_keys: Tensor
    prompt_values: Tensor
    tail_keys: Tensor
    tail_values: Tensor


class DecodeRows(NamedTuple):
    """Of each row [B]: its prompt, that prompt's length, the first place of its tail, and its position."""

    owner_B: Tensor
    length_B: Tensor
    joined_B: Tensor
    positions_B: Tensor


def decode(qkv: Tensor, rotary: Rotary, heads: Heads, cache: LayerCache, rows: DecodeRows, written: int) -> Tensor:
    """Store k and v of qkv [B, (H + 2J) E] as place ``written`` - 1 of the tails, and attend: [B, H E]."""
    out = qkv.new_empty((len(qkv), heads.query * heads.size))
    shape = (len(qkv), heads.query, heads.key, heads.size)
    prompts = (cache.prompt_keys, cache.prompt_values, cache.prompt_keys.shape[2], rows.owner_B, rows.length_B)
    tails = (cache.tail_keys, cache.tail_values, cache.tail_keys.shape[2], written, rows.joined_B, rows.positions_B)
    scores = (heads.scale, heads.window or 0)
    _call("decode", qkv.dtype, *shape, qkv, heads.norm, heads.eps, *rotary, *scores, *prompts, *tails, out)
    return out
