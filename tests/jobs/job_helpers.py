"""Starting real jobs on the tiny model, and looking at what they left."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sota_ml_researcher.jobs import run_files, watch
from sota_ml_researcher.jobs.registry import Registry
from sota_ml_researcher.jobs.start import start_sft_job
from sota_ml_researcher.jobs.states import ACTIVE, Job
from sota_ml_researcher.training.sft_config import load_sft_settings
from sota_ml_researcher.training.sft_plan import plan_sft

PATIENCE_S = 90.0


def write_sums(path: Path, count: int, seed: int) -> Path:
    rng = random.Random(seed)
    pairs = [(rng.randint(0, 99), rng.randint(0, 99)) for _ in range(count)]
    rows = [{"prompt": f"{a} plus {b}?", "completion": str(a + b)} for a, b in pairs]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def settings(folder: Path, model: Path, **changes: Any) -> dict[str, Any]:
    base = {
        "base_model": str(model),
        "train_file": str(write_sums(folder / "train.jsonl", 120, 1)),
        "val_file": str(write_sums(folder / "val.jsonl", 8, 2)),
        "num_steps": 24,
        "batch_size": 16,
        "lora_rank": 4,
        "learning_rate": 1e-2,
        "checkpoint_every": 5,
        "eval_every": 7,
    }
    return base | changes


def start(**config: Any) -> Job:
    return start_sft_job(Registry(), plan_sft(load_sft_settings(None, config)))


def wait_until(job_id: str, condition: Callable[[Job], bool]) -> Job:
    deadline = time.monotonic() + PATIENCE_S
    while True:
        job = watch.look(Registry(), job_id)
        if condition(job):
            return job
        assert time.monotonic() < deadline, f"{job.state} at step {job.step}: {job.error}"
        time.sleep(0.02)


def ended(job: Job) -> bool:
    return job.state not in ACTIVE


def curve(job: Job) -> dict[int, tuple[float | None, float | None]]:
    records = run_files.recent_metrics(job.folder, limit=10_000)
    assert len({r["step"] for r in records}) == len(records), "a step is logged twice"
    return {r["step"]: (r.get("train_mean_nll"), r.get("test/nll")) for r in records}
