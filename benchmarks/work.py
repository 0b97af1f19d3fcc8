"""The work that both sides of the benchmark do, and how its cost is reported."""

from __future__ import annotations

import resource
import statistics
import subprocess
import time
from collections.abc import Callable, Sequence
from typing import Any

RANK = 16
BATCH = 16
LENGTH = 128
GROUPS, GROUP, GRPO_TOKENS = 4, 8, 32
PROMPTS, PROMPT_TOKENS, SAMPLES, SAMPLE_TOKENS = 16, 32, 8, 64


def _rng() -> Any:
    import numpy as np

    return np.random.default_rng(0)


def sft_batches(steps: int, *, ragged: bool) -> list[list[list[int]]]:
    """Token ids of ``BATCH`` sequences per step: 128 tokens long, or 32 to 256."""
    rng = _rng()
    return [
        [rng.integers(3, 600, int(rng.integers(32, 257)) if ragged else LENGTH).tolist() for _ in range(BATCH)]
        for _ in range(steps)
    ]


def pair_batches(steps: int) -> list[list[dict[str, list[int]]]]:
    """Preference pairs: a prompt of 32 tokens and two answers of 64."""
    rng = _rng()
    sizes = {"prompt": 32, "chosen": 64, "rejected": 64}
    return [
        [{key: rng.integers(300, 600, size).tolist() for key, size in sizes.items()} for _ in range(BATCH)]
        for _ in range(steps)
    ]


def sample_prompts() -> list[list[int]]:
    """Prompts for the sampling comparison."""
    rng = _rng()
    return [rng.integers(3, 600, PROMPT_TOKENS).tolist() for _ in range(PROMPTS)]


class Meter:
    """Wall and CPU seconds of each step, over this process and perhaps another.

    Compare CPU seconds on a machine that others use too: they do not grow while a process waits for a core.
    """

    def __init__(self, other_pid: int | None = None, compute_s: Callable[[], float] | None = None) -> None:
        """Measure this process, and ``other_pid``; ``compute_s`` tells the seconds the engine has computed so far."""
        import psutil

        self._processes = [psutil.Process(), *([psutil.Process(other_pid)] if other_pid else [])]
        self.wall_s: list[float] = []
        self.cpu_s: list[float] = []
        self._compute_s = compute_s
        self.computed_s = 0.0
        self._began = (0.0, 0.0)

    def _now(self) -> tuple[float, float]:
        times = [process.cpu_times() for process in self._processes]
        return time.perf_counter(), sum(one.user + one.system for one in times)

    def start(self) -> None:
        """A step begins."""
        self._began = self._now()

    def stop(self) -> None:
        """It is done."""
        wall, cpu = self._now()
        self.wall_s.append(wall - self._began[0])
        self.cpu_s.append(cpu - self._began[1])

    def run(self, jobs: Sequence[Callable[[], None]]) -> None:
        """Time each of ``jobs``."""
        before = self._compute_s() if self._compute_s else 0.0
        for job in jobs:
            self.start()
            job()
            self.stop()
        self.computed_s = self._compute_s() - before if self._compute_s else 0.0


def peak_mb(device: str, pid: int | None = None) -> float:
    """Peak memory in MiB of this process, or of another: on a GPU what its allocator or driver holds there."""
    if device != "cuda":
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    if pid is None:
        import torch

        return torch.cuda.max_memory_reserved() / 2**20
    query = ["nvidia-smi", "--query-compute-apps=pid,used_memory", "--format=csv,noheader,nounits"]
    lines = subprocess.run(query, capture_output=True, text=True, check=True).stdout.splitlines()
    held = {int(one): float(used) for one, _, used in (line.partition(",") for line in lines)}
    # In a container the driver may name another process id: then what all processes hold.
    return held.get(pid, sum(held.values()))


def summary(who: str, method: str, meter: Meter, tokens: float, peak: float) -> dict[str, Any]:
    """One result: the median step without the first, tokens per second, and peak memory in MiB."""
    seconds = statistics.median(meter.wall_s[1:])
    return {
        "who": who,
        "work": method,
        "s_per_step": round(seconds, 4),
        "cpu_s_per_step": round(statistics.median(meter.cpu_s[1:]), 3),
        "tokens_per_step": round(tokens),
        "tokens_per_s": round(tokens / seconds),
        "peak_mb": round(peak),
    }
