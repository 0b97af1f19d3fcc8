"""Labelled synthetic runs for a blind check of the diagnosis: written without looking at the detectors' thresholds.

Each scenario is a function of a random generator; it returns columns by the quantity's short name. A `Dialect` then
writes them as one of the logs people have: ours and the cookbook's JSON lines, TRL's trainer_state.json, CSV.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

Column = NDArray[np.float64]
Columns = dict[str, Column]


@dataclass(frozen=True)
class Scenario:
    """A kind of run: what is wrong with it (any of these findings names it; empty: healthy), and who logs it."""

    name: str
    family: str
    faults: frozenset[str]
    make: Callable[[Generator], Columns]
    dialects: tuple[str, ...] = ("ours", "trl", "csv")


def decay(rng: Generator, steps: int, *, start: float, floor: float) -> Column:
    """A power law towards a floor that it is still far from at the end."""
    t = np.arange(steps)
    speed = steps * rng.uniform(0.05, 0.12)
    return floor + (start - floor) * (1 + t / speed) ** -rng.uniform(0.5, 0.9)


def linear_rate(steps: int, peak: float, warmup: float = 0.03) -> Column:
    t = (np.arange(steps) + 1) / steps
    return peak * np.minimum(1, t / warmup) * np.clip((1 - t) / (1 - warmup), 0, 1)


def times(rng: Generator, steps: int, base: float = 1.5) -> Column:
    """Seconds a step, with the odd slow one that every machine has."""
    usual = base * np.exp(0.08 * rng.standard_normal(steps))
    return np.where(rng.random(steps) < 0.01, usual * 3, usual)


def norms(rng: Generator, steps: int) -> Column:
    t = np.arange(steps) / steps
    return (0.4 + 1.2 * np.exp(-t * 8)) * np.exp(0.2 * rng.standard_normal(steps))


def sparse(values: Column, every: int) -> Column:
    """Only every so many steps a value, and at the last: a validation."""
    kept = np.full(len(values), np.nan)
    kept[::every] = values[::every]
    kept[-1] = values[-1]
    return kept


def sft(rng: Generator, *, noise: float | None = None, steps: int | None = None) -> Columns:
    """A sound supervised run."""
    n = steps or int(rng.integers(150, 1500))
    level = decay(rng, n, start=rng.uniform(1.6, 3.0), floor=rng.uniform(0.5, 1.0))
    loss = level * (1 + (noise or rng.uniform(0.02, 0.12)) * rng.standard_normal(n))
    # One fixed set of rows, so its noise is that of the weights alone.
    held_out = level * rng.uniform(1.01, 1.08) + 0.004 * rng.standard_normal(n)
    return {
        "loss": loss,
        "val": sparse(held_out, max(1, n // 12)),
        "lr": linear_rate(n, 10 ** rng.uniform(-4.3, -3.3)),
        "grad_norm": norms(rng, n),
        "time": times(rng, n),
        "tokens": 8000 * np.exp(0.15 * rng.standard_normal(n)),
    }


def noisy_sft(rng: Generator) -> Columns:
    return sft(rng, noise=0.25)


def short_sft(rng: Generator) -> Columns:
    return sft(rng, steps=int(rng.integers(30, 70)))


def long_sft(rng: Generator) -> Columns:
    return sft(rng, steps=int(rng.integers(4000, 9000)))


def bare_sft(rng: Generator) -> Columns:
    """Nothing but a loss."""
    return {"loss": sft(rng)["loss"]}


def two_epochs(rng: Generator) -> Columns:
    """A slight step at the second epoch is no fault: rows seen once are a little easier."""
    run = sft(rng, steps=int(rng.integers(300, 900)))
    half = len(run["loss"]) // 2
    run["loss"][half:] *= 0.985
    run["epoch"] = (np.arange(len(run["loss"])) >= half).astype(np.float64)
    return run


def diverging(rng: Generator) -> Columns:
    run = sft(rng)
    n = len(run["loss"])
    at = int(n * rng.uniform(0.2, 0.6))
    ramp = np.clip(np.arange(n - at) / max(5, n * 0.05), 0, 1)
    run["loss"][at:] += ramp * rng.uniform(3, 6)
    run["grad_norm"][at:] *= 1 + 15 * ramp
    run["val"] += np.where(np.arange(n) >= at, 4.0, 0)
    return run


def not_a_number(rng: Generator) -> Columns:
    run = sft(rng)
    run["loss"][int(len(run["loss"]) * rng.uniform(0.4, 0.9)) :] = np.nan
    return run


def spiky(rng: Generator) -> Columns:
    run = sft(rng, noise=0.04)
    n = len(run["loss"])
    for at in rng.choice(np.arange(n // 5, n - 5), size=5, replace=False):
        run["loss"][at] *= rng.uniform(2.5, 4.5)
        run["grad_norm"][at] *= 12
    return run


def flat(rng: Generator) -> Columns:
    run = sft(rng)
    n = len(run["loss"])
    run["loss"] = rng.uniform(1.8, 2.6) * (1 + 0.03 * rng.standard_normal(n))
    run["val"] = sparse(np.full(n, 2.2) + 0.004 * rng.standard_normal(n), max(1, n // 12))
    run["lr"] = linear_rate(n, 1e-8)
    return run


def overfitting(rng: Generator) -> Columns:
    run = sft(rng, steps=int(rng.integers(300, 1200)), noise=0.04)
    n = len(run["loss"])
    t = np.arange(n) / n
    turn = rng.uniform(0.25, 0.5)
    best = rng.uniform(1.0, 1.5)
    held_out = best + 1.2 * np.clip(turn - t, 0, 1) ** 2 + rng.uniform(0.5, 1.0) * np.clip(t - turn, 0, 1)
    run["val"] = sparse(held_out + 0.006 * rng.standard_normal(n), n // 15)
    run["loss"] = (1.8 * np.exp(-2.2 * t) + 0.15) * (1 + 0.04 * rng.standard_normal(n))
    return run


def unruly(rng: Generator) -> Columns:
    """The rate is too high: an early rise, noise and a gradient norm that keep growing, no fall to speak of."""
    run = sft(rng, steps=int(rng.integers(300, 900)))
    n = len(run["loss"])
    t = np.arange(n) / n
    run["loss"] = (1.9 + 0.7 * np.exp(-(((t - 0.1) / 0.06) ** 2)) - 0.15 * t) * (
        1 + (0.03 + 0.12 * t) * rng.standard_normal(n)
    )
    run["grad_norm"] = (0.5 + 9 * t) * np.exp(0.3 * rng.standard_normal(n))
    run["lr"] = np.full(n, 5e-3)
    run.pop("val")
    return run


def straight_fall(rng: Generator) -> Columns:
    """The rate is too low: the loss falls in a straight line to the end."""
    n = int(rng.integers(300, 900))
    t = np.arange(n) / n
    run = sft(rng, steps=n)
    run["loss"] = (2.4 - 0.45 * t) * (1 + 0.02 * rng.standard_normal(n))
    run["lr"] = np.full(n, 1e-6)
    run["val"] = sparse(2.45 - 0.45 * t, n // 12)
    return run


def plateau(rng: Generator) -> Columns:
    """All the learning in the first eighth, at a constant rate."""
    n = int(rng.integers(500, 1500))
    run = sft(rng, steps=n)
    t = np.arange(n) / n
    run["loss"] = (1.3 + 1.1 * np.exp(-t * 40)) * (1 + 0.03 * rng.standard_normal(n))
    run["val"] = sparse(1.32 + 1.1 * np.exp(-t * 40), n // 12)
    run["lr"] = np.full(n, 1e-4)
    return run


def learned_by_heart(rng: Generator) -> Columns:
    """Falls in steps at the start of each epoch."""
    n = int(rng.integers(80, 200)) * 4
    run = sft(rng, steps=n)
    epoch = np.floor(np.arange(n) / (n / 4))
    run["loss"] = np.array([1.6, 1.05, 0.6, 0.3])[epoch.astype(int)] * (1 + 0.05 * rng.standard_normal(n))
    run["epoch"] = epoch
    run.pop("val")
    return run


def broken_template(rng: Generator) -> Columns:
    run = sft(rng)
    run["loss"] = run["loss"] + 11 * np.exp(-np.arange(len(run["loss"])) / 30)
    return run


def easy_held_out(rng: Generator) -> Columns:
    """Validation far below training: rows are shared."""
    run = sft(rng, steps=int(rng.integers(300, 900)), noise=0.04)
    run["val"] = run["val"] * rng.uniform(0.4, 0.6)
    return run


def slow_down(rng: Generator) -> Columns:
    run = sft(rng, steps=int(rng.integers(300, 900)))
    at = int(len(run["time"]) * rng.uniform(0.3, 0.7))
    run["time"][at:] *= rng.uniform(2.5, 5)
    return run


def dpo(rng: Generator) -> Columns:
    """A sound preference run: margin and accuracy climb, the chosen answers stay likely."""
    n = int(rng.integers(120, 600))
    t = np.arange(n) / n
    margin = rng.uniform(0.8, 2.0) * (1 - np.exp(-3 * t)) + 0.12 * rng.standard_normal(n) * np.minimum(1, 10 * t)
    margin[0] = 0
    accuracy = 0.5 + rng.uniform(0.2, 0.3) * (1 - np.exp(-4 * t)) + 0.05 * rng.standard_normal(n)
    chosen = 0.15 * (1 - np.exp(-3 * t)) + 0.03 * rng.standard_normal(n) * np.minimum(1, 10 * t)
    loss = np.log1p(np.exp(-margin)) * (1 + 0.02 * rng.standard_normal(n))
    loss[0] = np.log(2)
    held_out = np.clip(0.5 + 0.22 * (1 - np.exp(-4 * t)), 0, 1) + 0.008 * rng.standard_normal(n)
    return {
        "loss": loss,
        "margin": margin,
        "accuracy": np.clip(accuracy, 0, 1),
        "chosen_reward": chosen,
        "chosen_logprob": -120 + chosen / 0.1,
        "val_accuracy": sparse(held_out, max(1, n // 10)),
        "lr": linear_rate(n, 1e-5),
        "time": times(rng, n),
    }


def displaced(rng: Generator) -> Columns:
    run = dpo(rng)
    t = np.arange(len(run["loss"])) / len(run["loss"])
    run["chosen_reward"] = -rng.uniform(2, 4) * t**0.7 + 0.05 * rng.standard_normal(len(t)) * np.minimum(1, 10 * t)
    run["chosen_logprob"] = -120 + run["chosen_reward"] / 0.1
    run["margin"] = run["margin"] * 2
    return run


def fitted_pairs(rng: Generator) -> Columns:
    """The margin climbs, the held-out accuracy stays at chance."""
    run = dpo(rng)
    n = len(run["loss"])
    run["val_accuracy"] = sparse(0.5 + 0.012 * rng.standard_normal(n), max(1, n // 10))
    run["accuracy"] = np.clip(0.53 + 0.06 * rng.standard_normal(n), 0, 1)
    run["margin"] = run["margin"] * 2
    return run


def other_reference(rng: Generator) -> Columns:
    run = dpo(rng)
    run["margin"] = run["margin"] + 0.9
    run["loss"] = np.log1p(np.exp(-run["margin"])) + 0.01 * rng.standard_normal(len(run["loss"]))
    run["chosen_reward"] = run["chosen_reward"] + 0.5
    return run


def surface(rng: Generator) -> Columns:
    run = dpo(rng)
    n = len(run["loss"])
    t = np.arange(n)
    run["accuracy"] = np.where(t < 6, 0.7 + 0.04 * t, 1.0)
    run["margin"] = 9 * (1 - np.exp(-t / (n / 8)))
    run["loss"] = np.log1p(np.exp(-run["margin"]))
    run["val_accuracy"] = sparse(np.where(t < 6, 0.6, 1.0), max(1, n // 10))
    return run


def rl(rng: Generator) -> Columns:
    """A sound run on a verifiable reward."""
    n = int(rng.integers(60, 300))
    t = np.arange(n) / n
    start, gain = rng.uniform(0.1, 0.35), rng.uniform(0.25, 0.5)
    reward = start + gain * (1 - np.exp(-3 * t))
    return {
        "reward": np.clip(reward + 0.04 * rng.standard_normal(n), 0, 1),
        "val_reward": sparse(np.clip(reward + 0.015 * rng.standard_normal(n), 0, 1), max(1, n // 10)),
        "entropy": (0.9 - 0.35 * t) * np.exp(0.05 * rng.standard_normal(n)),
        "kl": 6e-4 * np.exp(0.4 * rng.standard_normal(n)),
        "constant": np.clip(rng.uniform(0.15, 0.4) + 0.05 * rng.standard_normal(n), 0, 1),
        "length": (240 + 25 * t) * np.exp(0.05 * rng.standard_normal(n)),
        "lr": np.full(n, 4e-5),
        "time": times(rng, n, 20),
    }


def long_answers_that_pay(rng: Generator) -> Columns:
    """Answers grow because thinking pays: the held-out reward grows along."""
    run = rl(rng)
    t = np.arange(len(run["length"])) / len(run["length"])
    run["length"] = run["length"] * (1 + 0.5 * t)
    return run


def collapsed(rng: Generator) -> Columns:
    run = rl(rng)
    n = len(run["entropy"])
    t = np.arange(n) / n
    run["entropy"] = (0.9 * np.exp(-t * 14) + 0.008) * np.exp(0.05 * rng.standard_normal(n))
    run["reward"] = np.clip(0.3 + 0.08 * (1 - np.exp(-20 * t)) + 0.03 * rng.standard_normal(n), 0, 1)
    run["val_reward"] = sparse(np.full(n, 0.35), max(1, n // 10))
    return run


def constant_groups(rng: Generator) -> Columns:
    run = rl(rng)
    n = len(run["reward"])
    run["constant"] = np.clip(0.92 + 0.03 * rng.standard_normal(n), 0, 1)
    run["reward"] = np.clip(0.03 + 0.015 * rng.standard_normal(n), 0, 1)
    run["val_reward"] = sparse(np.clip(0.03 + 0.01 * rng.standard_normal(n), 0, 1), max(1, n // 10))
    return run


def swelling(rng: Generator) -> Columns:
    run = rl(rng)
    n = len(run["reward"])
    t = np.arange(n) / n
    run["length"] = 240 * (1 + 2.2 * t) * np.exp(0.05 * rng.standard_normal(n))
    run["reward"] = np.clip(0.4 + 0.04 * rng.standard_normal(n), 0, 1)
    run["val_reward"] = sparse(np.clip(0.4 + 0.015 * rng.standard_normal(n), 0, 1), max(1, n // 10))
    return run


def gamed(rng: Generator) -> Columns:
    run = rl(rng)
    n = len(run["reward"])
    t = np.arange(n) / n
    run["val_reward"] = sparse(0.4 + 0.15 * np.minimum(t, 0.3) / 0.3 - 0.45 * np.clip(t - 0.3, 0, 1), max(1, n // 12))
    run["length"] = run["length"] * (1 + 0.8 * t)
    return run


def mismatched(rng: Generator) -> Columns:
    run = rl(rng)
    t = np.arange(len(run["kl"])) / len(run["kl"])
    run["kl"] = (0.002 + 0.06 * t) * np.exp(0.3 * rng.standard_normal(len(t)))
    return run


def falling_reward(rng: Generator) -> Columns:
    run = rl(rng)
    n = len(run["reward"])
    t = np.arange(n) / n
    level = 0.3 + 0.35 * np.minimum(t / 0.4, 1) - 0.6 * np.clip((t - 0.5) / 0.3, 0, 1)
    run["reward"] = np.clip(level + 0.03 * rng.standard_normal(n), 0, 1)
    run["val_reward"] = sparse(np.clip(level, 0, 1), max(1, n // 10))
    return run


def _is(*kinds: str) -> frozenset[str]:
    return frozenset(kinds)


HEALTHY = (
    Scenario("sound", "sft", _is(), sft),
    Scenario("sound, noisy", "sft", _is(), noisy_sft),
    Scenario("sound, short", "sft", _is(), short_sft),
    Scenario("sound, long", "sft", _is(), long_sft),
    Scenario("sound, loss alone", "sft", _is(), bare_sft),
    Scenario("sound, two epochs", "sft", _is(), two_epochs),
    Scenario("sound", "dpo", _is(), dpo),
    Scenario("sound", "rl", _is(), rl, ("ours", "cookbook", "trl")),
    Scenario("sound, longer answers", "rl", _is(), long_answers_that_pay, ("ours", "cookbook", "trl")),
)
FAULTY = (
    Scenario("divergence", "sft", _is("divergence"), diverging),
    Scenario("nan", "sft", _is("divergence"), not_a_number),
    Scenario("spikes", "sft", _is("spikes"), spiky),
    Scenario("flat from the start", "sft", _is("flat_from_start"), flat),
    Scenario("overfitting", "sft", _is("overfitting"), overfitting),
    Scenario("rate too high", "sft", _is("lr_too_high", "divergence"), unruly),
    Scenario("rate too low", "sft", _is("lr_too_low"), straight_fall),
    Scenario("plateau", "sft", _is("plateau", "under_capacity"), plateau),
    Scenario("rows learned by heart", "sft", _is("data_problem", "overfitting"), learned_by_heart),
    Scenario("broken template", "sft", _is("data_problem"), broken_template),
    Scenario("leaked validation", "sft", _is("data_problem"), easy_held_out),
    Scenario("slowdown", "sft", _is("throughput"), slow_down, ("ours", "csv")),
    Scenario("displacement", "dpo", _is("displacement"), displaced),
    Scenario("margin without accuracy", "dpo", _is("margin_without_accuracy"), fitted_pairs),
    Scenario("another reference", "dpo", _is("wrong_reference"), other_reference),
    Scenario("surface mark", "dpo", _is("surface_mark"), surface),
    Scenario("entropy collapse", "rl", _is("entropy_collapse"), collapsed, ("ours", "cookbook", "trl")),
    Scenario("constant groups", "rl", _is("constant_groups", "reward_flat"), constant_groups, ("ours", "trl")),
    Scenario("length drift", "rl", _is("length_drift"), swelling, ("ours", "cookbook", "trl")),
    Scenario("reward hacking", "rl", _is("reward_hacking"), gamed, ("ours", "cookbook", "trl")),
    Scenario("sampler mismatch", "rl", _is("sampler_drift"), mismatched, ("ours", "cookbook")),
    Scenario("reward collapse", "rl", _is("reward_collapse"), falling_reward, ("ours", "cookbook", "trl")),
)

_RL_COOKBOOK = {
    "reward": "env/all/reward/total",
    "val_reward": "test/env/all/reward/total",
    "entropy": "optim/entropy",
    "kl": "optim/kl_sample_train_v1",
    "length": "env/all/ac_tokens_per_turn",
    "lr": "optim/lr",
    "time": "time/total",
}
# What each program calls our short names. The names of our own GRPO runs are those of the worker.
NAMES: Mapping[tuple[str, str], Mapping[str, str]] = {
    ("ours", "sft"): {
        "loss": "train_mean_nll",
        "val": "test/nll",
        "lr": "learning_rate",
        "grad_norm": "grad_norm",
        "tokens": "num_tokens",
        "epoch": "epoch",
        "time": "time/finish_batch",
    },
    ("ours", "dpo"): {
        "loss": "dpo_loss",
        "margin": "margin",
        "accuracy": "accuracy",
        "chosen_reward": "chosen_reward",
        "chosen_logprob": "chosen_logratio",
        "val_accuracy": "test/accuracy",
        "lr": "learning_rate",
        "time": "time/total",
    },
    ("ours", "rl"): {
        **_RL_COOKBOOK,
        "reward": "reward/mean",
        "val_reward": "test/reward",
        "constant": "reward/constant_groups",
        "length": "response/tokens",
    },
    ("cookbook", "rl"): _RL_COOKBOOK,
    ("trl", "sft"): {
        "loss": "loss",
        "val": "eval_loss",
        "lr": "learning_rate",
        "grad_norm": "grad_norm",
        "epoch": "epoch",
    },
    ("trl", "dpo"): {
        "loss": "loss",
        "margin": "rewards/margins",
        "accuracy": "rewards/accuracies",
        "chosen_reward": "rewards/chosen",
        "chosen_logprob": "logps/chosen",
        "val_accuracy": "eval_rewards/accuracies",
        "lr": "learning_rate",
    },
    ("trl", "rl"): {
        "reward": "reward",
        "val_reward": "eval_reward",
        "entropy": "entropy",
        "constant": "frac_reward_zero_std",
        "length": "completions/mean_length",
        "time": "step_time",
        "lr": "learning_rate",
    },
    ("csv", "sft"): {"loss": "train_loss", "val": "val_loss", "lr": "lr", "time": "step_time", "epoch": "epoch"},
    ("csv", "dpo"): {
        "loss": "loss",
        "margin": "rewards/margins",
        "accuracy": "rewards/accuracies",
        "chosen_reward": "rewards/chosen",
        "val_accuracy": "eval_rewards/accuracies",
    },
}


def write_run(folder: Path, scenario: Scenario, dialect: str, seed: int) -> Path:
    """One run of this kind in this dialect; the same seed writes the same bytes."""
    columns = scenario.make(np.random.default_rng([seed, sum(map(ord, scenario.family + scenario.name))]))
    names = NAMES[dialect, scenario.family]
    named = {names[short]: values for short, values in columns.items() if short in names}
    folder.mkdir(parents=True)
    if dialect == "trl":
        return _trainer_state(folder, named)
    if dialect == "csv":
        return _table(folder, named)
    if scenario.family == "sft" and "time/finish_batch" in named:
        named["time/submit_batch"] = 0.1 * named["time/finish_batch"]
    rows = [{"step": step, **_row(named, step)} for step in range(_length(named))]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def _length(columns: Columns) -> int:
    return max(len(values) for values in columns.values())


def _row(columns: Columns, step: int) -> dict[str, float]:
    """What is logged at a step: a validation only where there was one, a loss always, nan or not."""
    validations = ("test", "eval", "val")
    return {
        name: float(values[step])
        for name, values in columns.items()
        if not (name.startswith(validations) and np.isnan(values[step]))
    }


def _trainer_state(folder: Path, columns: Columns) -> Path:
    history: list[dict[str, float]] = []
    for step in range(_length(columns)):
        row = _row(columns, step)
        train = {name: value for name, value in row.items() if not name.startswith("eval")}
        held_out = {name: value for name, value in row.items() if name.startswith("eval")}
        history += [{**part, "step": step + 1} for part in (train, held_out) if part]
    steps = _length(columns)
    state = {"global_step": steps, "max_steps": steps, "logging_steps": 1, "log_history": history}
    (folder / "trainer_state.json").write_text(json.dumps(state))
    return folder


def _table(folder: Path, columns: Columns) -> Path:
    with (folder / "metrics.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, ["step", *columns])
        writer.writeheader()
        writer.writerows({"step": step, **_row(columns, step)} for step in range(_length(columns)))
    return folder
