"""Synthetic runs with a known fault, and healthy ones, as the common programs would log them.

Every number is drawn: length, start, noise (Student's t with 5 degrees of freedom, wider at a higher level), decay,
schedule, cadence of validation, pace, and where and how strongly the fault shows. What is drawn is not shown to the
program: it reads files.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import yaml

Array = Any
RANK_1 = {"base_model": "demo", "backend": "embedded"}


@dataclass
class Synthetic:
    """A run being made: columns over steps, sparse columns, settings, and how it is to be logged."""

    rng: np.random.Generator
    n: int
    columns: dict[str, Array] = field(default_factory=dict)
    sparse: dict[str, tuple[Array, Array]] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    planned: int | None = None
    style: str = "jsonl"
    twice: bool = False

    @property
    def t(self) -> Array:
        return np.arange(self.n) / self.n

    def noise(self, size: float, level: Array | float = 1.0) -> Array:
        return size * np.asarray(level) * self.rng.standard_t(5, self.n) / 1.29

    def rows(self) -> list[dict[str, Any]]:
        rows = [{"step": i, **{k: float(v[i]) for k, v in self.columns.items()}} for i in range(self.n)]
        for name, (steps, values) in self.sparse.items():
            for step, value in zip(steps, values, strict=True):
                if step < self.n:
                    rows[int(step)][name] = float(value)
                else:
                    rows.append({"step": int(step), name: float(value)})
        return rows

    def write(self, folder: Path) -> Path:
        """Write the run as one of yesterday; returns what to analyse."""
        written = self._write(folder)
        yesterday = time.time() - 86_400
        for file in folder.iterdir():
            os.utime(file, (yesterday, yesterday))
        return written

    def _write(self, folder: Path) -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        rows = self.rows()
        if self.config:
            (folder / "config.yaml").write_text(yaml.safe_dump(self.config))
        if self.style == "trl":
            return _write_trainer_state(folder, rows, self.planned or self.n)
        if self.style == "csv":
            return _write_csv(folder, rows)
        text = "".join(json.dumps(row) + "\n" for row in rows)
        if self.twice:
            text += "".join(
                json.dumps(row | {"train_mean_nll": row.get("train_mean_nll", 1.0) * 1.1}) + "\n" for row in rows
            )
        (folder / "metrics.jsonl").write_text(text)
        return folder


TRL_NAMES = {
    "train_mean_nll": "loss",
    "dpo_loss": "loss",
    "test/nll": "eval_loss",
    "grad_norm": "grad_norm",
    "margin": "rewards/margins",
    "accuracy": "rewards/accuracies",
    "test/accuracy": "eval_rewards/accuracies",
    "chosen_logprob": "logps/chosen",
    "env/all/reward/total": "reward",
    "optim/entropy": "entropy",
    "env/all/ac_tokens_per_turn": "completions/mean_length",
    "learning_rate": "learning_rate",
    "time/total": "step_time",
    "frac_constant": "frac_reward_zero_std",
    "optim/kl_sample_train_v1": "sampling/sampling_logp_difference/mean",
    "frac_truncated": "completions/clipped_ratio",
}


def _write_trainer_state(folder: Path, rows: list[dict[str, Any]], planned: int) -> Path:
    history: list[dict[str, Any]] = []
    for row in rows:
        named = {TRL_NAMES[k]: v for k, v in row.items() if k in TRL_NAMES}
        held_out = {k: v for k, v in named.items() if k.startswith("eval_")}
        step = {"step": row["step"] + 1, "epoch": row["step"] / len(rows)}
        if len(named) > len(held_out):
            history.append({k: v for k, v in named.items() if k not in held_out} | step)
        if held_out:
            history.append(held_out | step)
    state = {"log_history": history, "global_step": history[-1]["step"], "max_steps": planned}
    (folder / "trainer_state.json").write_text(json.dumps(state))
    return folder


def _write_csv(folder: Path, rows: list[dict[str, Any]]) -> Path:
    names = list(dict.fromkeys(k for row in rows for k in row))
    lines = [",".join(names)] + [",".join(str(row.get(name, "")) for name in names) for row in rows]
    (folder / "metrics.csv").write_text("\n".join(lines) + "\n")
    return folder


# --- healthy runs -------------------------------------------------------------------------------------------------


def _pace(run: Synthetic) -> None:
    usual = run.rng.uniform(0.2, 30)
    pace = usual * np.exp(run.rng.normal(0, run.rng.uniform(0.02, 0.15), run.n))
    every = int(run.rng.integers(15, 60))
    pace[::every] *= run.rng.uniform(1.5, 4)  # checkpoints and validations
    run.columns["time/total"] = pace
    run.columns["num_tokens"] = np.maximum(1, run.rng.normal(2000, 200, run.n)).round()
    run.columns["num_loss_tokens"] = (run.columns["num_tokens"] * 0.6).round()


def _schedule(run: Synthetic) -> None:
    peak = float(run.rng.choice([1e-4, 2e-4, 5e-4]))
    shape = run.rng.choice(["linear", "cosine", "constant"])
    t = run.t
    decay = {"linear": 1 - t, "cosine": 0.5 * (1 + np.cos(np.pi * t)), "constant": np.ones(run.n)}[str(shape)]
    run.columns["learning_rate"] = peak * decay
    run.config |= {"learning_rate": peak, "lr_schedule": str(shape)}


def fall(run: Synthetic, *, tau: float | None = None) -> Array:
    """A healthy loss: from 1.2 .. 3 nats down to 0.3 .. 0.85 of it, as an exponential or a power law."""
    start = run.rng.uniform(1.2, 3.0)
    end = start * run.rng.uniform(0.3, 0.85)
    if tau is None and run.rng.random() < 0.5:
        curve = (1 + run.t * run.rng.uniform(8, 40)) ** -run.rng.uniform(0.4, 1.0)
    else:
        curve = np.exp(-run.t / (tau or run.rng.uniform(0.12, 0.3)))
    return end + (start - end) * curve


def healthy_sft(rng: np.random.Generator) -> Synthetic:
    run = Synthetic(rng, int(rng.integers(60, 900)), style=str(rng.choice(["jsonl", "jsonl", "trl", "csv"])))
    loss = fall(run)
    run.columns["train_mean_nll"] = np.maximum(0.01, loss + run.noise(rng.uniform(0.01, 0.06), loss))
    if rng.random() < 0.8:
        _add_validation(run, loss * rng.uniform(0.97, 1.1))
    if rng.random() < 0.6:
        base = rng.uniform(0.3, 5)
        run.columns["grad_norm"] = base * (0.6 + 0.4 * np.exp(-run.t * 5)) * np.exp(rng.normal(0, 0.25, run.n))
    _schedule(run)
    _pace(run)
    run.planned = run.n
    run.config |= {"batch_size": 16, "num_epochs": 1}
    return run


def _add_validation(run: Synthetic, level: Array) -> None:
    every = max(1, run.n // int(run.rng.integers(5, 21)))
    steps = np.arange(0, run.n, every)
    values = level[steps] + run.rng.normal(0, run.rng.uniform(0.001, 0.006), len(steps))
    run.sparse["test/nll"] = (steps, values)


def healthy_dpo(rng: np.random.Generator) -> Synthetic:
    run = Synthetic(rng, int(rng.integers(60, 500)), style=str(rng.choice(["jsonl", "trl"])))
    tau, top = rng.uniform(0.15, 0.5), rng.uniform(0.6, 2.5)
    grown = 1 - np.exp(-run.t / tau)
    margin = top * grown
    run.columns["margin"] = margin + run.noise(0.05, 0.3 + margin)
    run.columns["dpo_loss"] = np.log1p(np.exp(-margin)) * 0.9 + 0.1 * np.log(2) + run.noise(0.015)
    run.columns["dpo_loss"][0] = np.log(2)
    high = rng.uniform(0.65, 0.9)
    run.columns["accuracy"] = np.clip(0.5 + (high - 0.5) * grown + run.noise(0.05), 0, 1)
    chosen = rng.uniform(-0.5, 4) * grown
    run.columns["chosen_logprob"] = -rng.uniform(80, 300) + chosen + run.noise(0.3)
    run.config["beta"] = 0.1
    if rng.random() < 0.7:
        every = max(1, run.n // int(rng.integers(6, 15)))
        steps = np.arange(0, run.n, every)
        run.sparse["test/accuracy"] = (steps, 0.5 + (high - 0.53) * grown[steps] + rng.normal(0, 0.008, len(steps)))
    _schedule(run)
    _pace(run)
    run.planned = run.n
    return run


def healthy_rl(rng: np.random.Generator) -> Synthetic:
    run = Synthetic(rng, int(rng.integers(60, 400)), style=str(rng.choice(["jsonl", "trl"])))
    low, high = rng.uniform(0.1, 0.4), rng.uniform(0.55, 0.9)
    grown = 1 - np.exp(-run.t / rng.uniform(0.2, 0.6))
    run.columns["env/all/reward/total"] = low + (high - low) * grown + run.noise(rng.uniform(0.02, 0.05))
    first = rng.uniform(0.4, 1.5)
    run.columns["optim/entropy"] = first * (1 - rng.uniform(0.2, 0.6) * grown) * np.exp(rng.normal(0, 0.04, run.n))
    run.columns["optim/kl_sample_train_v1"] = np.abs(rng.uniform(0.0005, 0.004) * np.exp(rng.normal(0, 0.3, run.n)))
    run.columns["env/all/ac_tokens_per_turn"] = (
        rng.uniform(100, 600) * (1 + rng.uniform(-0.15, 0.5) * grown) * np.exp(rng.normal(0, 0.04, run.n))
    )
    run.columns["frac_constant"] = np.clip(rng.uniform(0.2, 0.55) + run.noise(0.06), 0, 1)
    run.columns["frac_truncated"] = np.clip(rng.uniform(0.0, 0.05) + run.noise(0.005), 0, 1)
    if rng.random() < 0.5:
        every = max(1, run.n // 10)
        steps = np.arange(0, run.n, every)
        held_out = low + (high - low) * 0.85 * grown[steps] + rng.normal(0, 0.01, len(steps))
        run.sparse["test/env/all/reward/total"] = (steps, held_out)
    run.config["group_size"] = 16
    _pace(run)
    run.planned = run.n
    if run.style != "trl":
        run.columns["frac_reward_zero_std"] = run.columns.pop("frac_constant")
    return run


HEALTHY: Mapping[str, Callable[[np.random.Generator], Synthetic]] = {
    "sft": healthy_sft,
    "dpo": healthy_dpo,
    "rl": healthy_rl,
}


# --- faults: each takes a healthy run and spoils it ----------------------------------------------------------------


def _of(run: Synthetic, name: str) -> Array:
    return run.columns[name]


def divergence(run: Synthetic) -> None:
    loss, n = _of(run, "train_mean_nll"), run.n
    at = int(n * run.rng.uniform(0.3, 0.75))
    top = loss[0] * run.rng.uniform(1.1, 3)
    loss[at:] += (top - loss[at:]) * (1 - np.exp(-np.arange(n - at) / (0.05 * n)))
    run.sparse.pop("test/nll", None)


def divergence_to_nan(run: Synthetic) -> None:
    _of(run, "train_mean_nll")[int(run.n * run.rng.uniform(0.2, 0.9)) :] = np.nan


def spikes(run: Synthetic) -> None:
    loss = _of(run, "train_mean_nll")
    for at in run.rng.choice(np.arange(run.n // 8, run.n - 8), int(run.rng.integers(1, 6)), replace=False):
        loss[at] += loss[at] * run.rng.uniform(0.9, 3)


def plateau(run: Synthetic) -> None:
    loss = fall(run, tau=run.rng.uniform(0.03, 0.06))
    run.columns["train_mean_nll"] = loss + run.noise(run.rng.uniform(0.005, 0.02), loss)
    run.sparse.pop("test/nll", None)


def under_capacity(run: Synthetic) -> None:
    plateau(run)
    run.config |= {**RANK_1, "lora_rank": 1, "num_epochs": 1, "batch_size": 16}
    run.columns["num_loss_tokens"] = np.full(run.n, 100_000.0)
    run.style = "jsonl"


def overfitting(run: Synthetic) -> None:
    every = max(1, run.n // int(run.rng.integers(8, 21)))
    steps = np.arange(0, run.n, every)
    loss = fall(run)
    run.columns["train_mean_nll"] = np.maximum(0.02, loss + run.noise(0.03, loss))
    turn = run.rng.uniform(0.3, 0.7)
    late = np.maximum(0, run.t - turn) / (1 - turn)
    level = loss + run.rng.uniform(0.3, 1.0) * loss[-1] * late
    run.sparse["test/nll"] = (steps, level[steps] + run.rng.normal(0, 0.005, len(steps)))


def lr_too_high_rise(run: Synthetic) -> None:
    loss = _of(run, "train_mean_nll")
    at = run.rng.uniform(0.05, 0.12)
    loss += loss[0] * run.rng.uniform(0.3, 1.0) * np.exp(-(((run.t - at) / 0.04) ** 2))
    run.sparse.pop("test/nll", None)


def lr_too_high_gradient(run: Synthetic) -> None:
    run.columns["grad_norm"] = (
        run.rng.uniform(0.3, 2) * np.exp(run.t * run.rng.uniform(1.8, 3.5)) * np.exp(run.rng.normal(0, 0.2, run.n))
    )


def lr_too_low(run: Synthetic) -> None:
    run.n = max(run.n, 120)
    fresh = Synthetic(run.rng, run.n)
    start = run.rng.uniform(1.5, 3)
    drop = start * run.rng.uniform(0.12, 0.35)
    loss = start - drop * fresh.t
    run.columns = {"train_mean_nll": loss + fresh.noise(run.rng.uniform(0.005, 0.02), loss)}
    run.sparse.clear()
    run.planned = run.n


def flat_from_start(run: Synthetic) -> None:
    level = run.rng.uniform(1.5, 4)
    run.columns["train_mean_nll"] = level + run.noise(run.rng.uniform(0.01, 0.05), level)
    run.sparse.pop("test/nll", None)


def data_shift(run: Synthetic) -> None:
    at = int(run.n * run.rng.uniform(0.4, 0.7))
    loss = _of(run, "train_mean_nll")
    loss[at:] += loss[at] * run.rng.uniform(0.25, 0.45)
    run.sparse.pop("test/nll", None)


def data_epochs(run: Synthetic) -> None:
    epochs = int(run.rng.integers(2, 5))
    run.n = max(run.n, 150) // epochs * epochs
    fresh = Synthetic(run.rng, run.n)
    size = run.n // epochs
    drop = run.rng.uniform(0.2, 0.35)
    level = run.rng.uniform(1.2, 2.5) * (1 - drop) ** (np.arange(run.n) // size)
    loss = level * (1 + 0.15 * np.exp(-np.arange(run.n) / (0.1 * size)))
    run.columns = {"train_mean_nll": loss + fresh.noise(0.02, loss)}
    run.config |= {"num_epochs": epochs}
    run.sparse.clear()
    run.style, run.planned = "jsonl", run.n


def data_known_already(run: Synthetic) -> None:
    level = run.rng.uniform(0.005, 0.03)
    run.columns["train_mean_nll"] = level * (0.7 + 0.3 * np.exp(-run.t * 8)) * np.exp(run.rng.normal(0, 0.1, run.n))
    run.sparse.pop("test/nll", None)


def data_broken_template(run: Synthetic) -> None:
    start = run.rng.uniform(11, 14)
    loss = 2 + (start - 2) * np.exp(-run.t / 0.15)
    run.columns["train_mean_nll"] = loss + run.noise(0.03, loss)
    run.sparse.pop("test/nll", None)


def data_leakage(run: Synthetic) -> None:
    loss = fall(run)
    run.columns["train_mean_nll"] = loss + run.noise(0.03, loss)
    _add_validation(run, loss * run.rng.uniform(0.3, 0.65))


def displacement(run: Synthetic) -> None:
    grown = 1 - np.exp(-run.t / 0.4)
    run.columns["chosen_logprob"] = -150 - run.rng.uniform(5, 40) * grown + run.noise(0.3)


def margin_without_accuracy(run: Synthetic) -> None:
    run.columns["accuracy"] = np.clip(0.5 + run.noise(0.05), 0, 1)
    steps = np.arange(0, run.n, max(1, run.n // 10))
    run.sparse["test/accuracy"] = (steps, 0.5 + run.rng.normal(0, 0.01, len(steps)))


def surface_mark(run: Synthetic) -> None:
    run.columns["accuracy"] = np.clip(1 - 0.5 * np.exp(-run.t / run.rng.uniform(0.01, 0.03)), 0, 1)
    steps = np.arange(0, run.n, max(1, run.n // 10))
    run.sparse["test/accuracy"] = (steps, np.clip(1 - 0.5 * np.exp(-run.t[steps] / 0.02), 0, 1))


def wrong_reference(run: Synthetic) -> None:
    run.columns["dpo_loss"] += run.rng.choice([-1, 1]) * run.rng.uniform(0.08, 0.3)


def overoptimization(run: Synthetic) -> None:
    steps = np.arange(0, run.n, max(1, run.n // int(run.rng.integers(10, 20))))
    t = run.t[steps]
    turn = run.rng.uniform(0.3, 0.6)
    rise = np.minimum(1, t / turn) - run.rng.uniform(0.35, 0.8) * np.maximum(0, t - turn) / (1 - turn)
    run.sparse["test/accuracy"] = (
        steps,
        0.5 + run.rng.uniform(0.2, 0.35) * rise + run.rng.normal(0, 0.006, len(steps)),
    )


def entropy_collapse(run: Synthetic) -> None:
    run.columns["optim/entropy"] = run.rng.uniform(0.4, 1.5) * np.exp(-run.t / run.rng.uniform(0.08, 0.25)) + 0.002


def constant_groups(run: Synthetic) -> None:
    name = "frac_constant" if "frac_constant" in run.columns else "frac_reward_zero_std"
    run.columns[name] = np.clip(run.rng.uniform(0.87, 0.97) + run.noise(0.03), 0, 1)


def length_drift(run: Synthetic) -> None:
    run.columns["env/all/reward/total"] = run.rng.uniform(0.2, 0.5) + run.noise(0.03)
    run.columns["env/all/ac_tokens_per_turn"] = (
        run.rng.uniform(100, 600) * (1 + run.rng.uniform(0.8, 3) * run.t) * np.exp(run.rng.normal(0, 0.04, run.n))
    )
    run.sparse.clear()


def reward_hacking(run: Synthetic) -> None:
    steps = np.arange(0, run.n, max(1, run.n // 12))
    t = run.t[steps]
    turn = run.rng.uniform(0.3, 0.6)
    judged = 0.3 + 0.25 * np.minimum(1, t / turn) - run.rng.uniform(0.15, 0.4) * np.maximum(0, t - turn) / (1 - turn)
    run.sparse["test/env/all/reward/total"] = (steps, judged + run.rng.normal(0, 0.01, len(steps)))
    run.style = "jsonl"
    if "frac_constant" in run.columns:
        run.columns["frac_reward_zero_std"] = run.columns.pop("frac_constant")


def sampler_drift(run: Synthetic) -> None:
    grown = 0.003 * np.exp(run.t * run.rng.uniform(2.5, 4.5))
    run.columns["optim/kl_sample_train_v1"] = grown * np.exp(run.rng.normal(0, 0.2, run.n))


def reward_collapse(run: Synthetic) -> None:
    reward = run.columns["env/all/reward/total"]
    at = int(run.n * run.rng.uniform(0.4, 0.75))
    low = run.rng.uniform(0, 0.08)
    reward[at:] = low + (reward[at:] - low) * np.exp(-np.arange(run.n - at) / (0.04 * run.n))
    run.sparse.clear()


def reward_flat(run: Synthetic) -> None:
    run.columns["env/all/reward/total"] = run.rng.uniform(0.05, 0.3) + run.noise(0.03)
    run.columns["env/all/ac_tokens_per_turn"] = run.rng.uniform(100, 600) * np.exp(run.rng.normal(0, 0.04, run.n))
    run.sparse.clear()


def truncated(run: Synthetic) -> None:
    run.columns["frac_truncated"] = np.clip(run.rng.uniform(0.15, 0.6) + run.noise(0.02), 0, 1)


def throughput(run: Synthetic) -> None:
    at = int(run.n * run.rng.uniform(0.3, 0.8))
    run.columns["time/total"][at:] *= run.rng.uniform(2, 5)


def unfinished(run: Synthetic) -> None:
    run.planned = int(run.n * run.rng.uniform(1.3, 3))
    run.style = "trl"


def mixed_runs(run: Synthetic) -> None:
    run.style, run.twice = "jsonl", True


# The fault's name: the kind of finding that must be among those found, the healthy run it spoils, and the spoiling.
FAULTS: Mapping[str, tuple[str, str, Callable[[Synthetic], None]]] = {
    "divergence": ("divergence", "sft", divergence),
    "divergence to nan": ("divergence", "sft", divergence_to_nan),
    "spikes": ("spikes", "sft", spikes),
    "plateau": ("plateau", "sft", plateau),
    "under-capacity": ("under_capacity", "sft", under_capacity),
    "overfitting": ("overfitting", "sft", overfitting),
    "rate too high: early rise": ("lr_too_high", "sft", lr_too_high_rise),
    "rate too high: gradient grows": ("lr_too_high", "sft", lr_too_high_gradient),
    "rate too low": ("lr_too_low", "sft", lr_too_low),
    "flat from the start": ("flat_from_start", "sft", flat_from_start),
    "data: another kind of rows begins": ("data_problem", "sft", data_shift),
    "data: drops at epoch starts": ("data_problem", "sft", data_epochs),
    "data: answers known already": ("data_problem", "sft", data_known_already),
    "data: broken template": ("data_problem", "sft", data_broken_template),
    "data: leakage": ("data_problem", "sft", data_leakage),
    "DPO displacement": ("displacement", "dpo", displacement),
    "DPO margin without accuracy": ("margin_without_accuracy", "dpo", margin_without_accuracy),
    "DPO surface mark": ("surface_mark", "dpo", surface_mark),
    "DPO wrong reference": ("wrong_reference", "dpo", wrong_reference),
    "DPO over-optimisation": ("overoptimization", "dpo", overoptimization),
    "RL entropy collapse": ("entropy_collapse", "rl", entropy_collapse),
    "RL constant groups": ("constant_groups", "rl", constant_groups),
    "RL length drift": ("length_drift", "rl", length_drift),
    "RL reward hacking": ("reward_hacking", "rl", reward_hacking),
    "RL sampler drift": ("sampler_drift", "rl", sampler_drift),
    "RL reward collapse": ("reward_collapse", "rl", reward_collapse),
    "RL reward flat": ("reward_flat", "rl", reward_flat),
    "RL cut answers": ("truncated", "rl", truncated),
    "throughput drop": ("throughput", "sft", throughput),
    "unfinished": ("unfinished", "sft", unfinished),
    "mixed runs": ("mixed_runs", "sft", mixed_runs),
}


def faulty(name: str, seed: int) -> Synthetic:
    """A run with the named fault."""
    _, base, spoil = FAULTS[name]
    run = HEALTHY[base](np.random.default_rng([seed, sum(name.encode())]))
    spoil(run)
    return run


def healthy(kind: str, seed: int) -> Synthetic:
    """A run with nothing to find."""
    return HEALTHY[kind](np.random.default_rng([seed, 7]))
