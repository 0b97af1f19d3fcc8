"""Starting real jobs on the tiny model, and looking at what they left."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sota_ml_researcher.jobs import control, run_files
from sota_ml_researcher.jobs.create import start_job
from sota_ml_researcher.jobs.registry import Registry
from sota_ml_researcher.jobs.states import ACTIVE, Job, JobState
from sota_ml_researcher.training.dpo.config import load_dpo_settings
from sota_ml_researcher.training.dpo.plan import plan_dpo
from sota_ml_researcher.training.rl.config import load_rl_settings
from sota_ml_researcher.training.rl.plan import plan_rl
from sota_ml_researcher.training.sft.config import load_sft_settings
from sota_ml_researcher.training.sft.plan import plan_sft

# A guard against waiting for ever, not a measure of speed: what is slow on a busy machine still passes.
PATIENCE_S = 600.0


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


def start_planned(kind: str, plan: Any) -> Job:
    config, origins = plan.settings.config, plan.settings.origins
    return start_job(Registry(), kind, config, origins, files=plan.files, total_steps=plan.total_steps)


def start(config_file: Path | None = None, **config: Any) -> Job:
    return start_planned("sft", plan_sft(load_sft_settings(config_file, config)))


def wait_until(job_id: str, condition: Callable[[Job], bool]) -> Job:
    deadline = time.monotonic() + PATIENCE_S
    while True:
        job = control.look(Registry(), job_id)
        if condition(job):
            return job
        assert time.monotonic() < deadline, f"{job.state} at step {job.step}: {job.error}"
        time.sleep(0.02)


def ended(job: Job) -> bool:
    return job.state not in ACTIVE


def logged(job: Job, *names: str) -> dict[int, dict[str, float]]:
    """These metrics by step, where they were logged."""
    records = run_files.recent_metrics(job.folder, limit=10_000)
    assert len({r["step"] for r in records}) == len(records), "a step is logged twice"
    return {r["step"]: {name: r[name] for name in names if name in r} for r in records}


def curve(job: Job) -> dict[int, dict[str, float]]:
    return logged(job, "train_mean_nll", "test/nll")


def cancelled(job: Job, *, after: int, of: int) -> Job:
    """The job, cancelled once it has taken ``after`` of its ``of`` steps."""
    wait_until(job.id, lambda j: j.step >= after)
    control.cancel(Registry(), job.id)
    job = wait_until(job.id, ended)
    assert job.state is JobState.CANCELLED
    assert after <= job.step < of
    return job


def resumed(job: Job) -> Job:
    """The job after its second attempt, which succeeds."""
    control.resume(Registry(), job.id)
    job = wait_until(job.id, ended)
    assert (job.state, job.attempt) == (JobState.SUCCEEDED, 2), job.error
    return job


def write_pairs(path: Path, count: int, seed: int) -> Path:
    rng = random.Random(seed)
    numbers = [rng.randint(10, 99) for _ in range(count)]
    rows = [{"prompt": f"say {n}", "chosen": f"{n}", "rejected": f"{n + 1}"} for n in numbers]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def dpo_settings(folder: Path, model: Path, rows: int = 40, **changes: Any) -> dict[str, Any]:
    return {
        "base_model": str(model),
        "train_file": str(write_pairs(folder / "train.jsonl", rows, 1)),
        "val_file": str(write_pairs(folder / "val.jsonl", 8, 2)),
        "num_steps": 14,
        "batch_size": 8,
        "lora_rank": 4,
        "learning_rate": 2e-2,
        "checkpoint_every": 4,
        "eval_every": 5,
        **changes,
    }


def start_dpo(folder: Path, model: Path, **changes: Any) -> Job:
    return start_planned("dpo", plan_dpo(load_dpo_settings(None, dpo_settings(folder, model, **changes))))


def start_rl(config_file: Path | None, **config: Any) -> Job:
    return start_planned("grpo", plan_rl(load_rl_settings(config_file, config)))


def tiny_rl(folder: Path, model: Path, rows: int = 12, **changes: Any) -> dict[str, Any]:
    path = folder / "prompts.jsonl"
    path.write_text("".join(json.dumps({"prompt": f"say {n}", "answer": str(n)}) + "\n" for n in range(rows)))
    return {
        "base_model": str(model),
        "train_file": str(path),
        "val_file": str(path),
        # The tiny model has learnt nothing: it is rewarded for short responses, which it gives by chance.
        "rewards": [{"type": "length", "target_tokens": 2}, {"type": "regex", "pattern": ".*[a-m].*", "weight": 0.5}],
        "group_size": 4,
        "batch_size": 3,
        "max_response_tokens": 6,
        "num_steps": 6,
        "lora_rank": 4,
        "learning_rate": 1e-3,
        "checkpoint_every": 2,
        "eval_every": 3,
        **changes,
    }
