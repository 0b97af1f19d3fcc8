"""Logs of real training runs with planted faults (``scripts/make_training_logs.py``), and what is right to say of each.

Whether a fault can be told at all is decided here by what was planted and what the run did, never by what is found.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sota_ml_researcher.analysis.diagnosis import Diagnosis, diagnose
from sota_ml_researcher.analysis.runs import Run, load_run

LOGS = Path(__file__).parents[1] / "analysis" / "logs"
# Thresholds were set on runs with lower seeds.
FIRST_HELD_OUT = 1000
# A healthy DPO run may say that a mark on the surface tells the pairs apart: case does, in those runs.
TRUE_OF_HEALTHY = frozenset({"surface_mark"})
RATE_HIGH = frozenset({"lr_too_high", "not_learned", "divergence", "reward_collapse", "entropy_collapse"})
RATE_LOW = frozenset({"lr_too_low", "flat_from_start", "reward_flat", "not_learned"})
LABELS = frozenset({"not_learned", "data_problem", "overfitting", "lr_too_high"})
# For each fault the findings that name it (or say that it is one of two that one curve cannot tell apart).
NAMED_BY: Mapping[str, frozenset[str]] = {
    **dict.fromkeys(("lr_x10", "lr_x30", "lr_x100"), RATE_HIGH),
    **dict.fromkeys(("lr_d10", "lr_d30", "lr_d100", "lr_d1000"), RATE_LOW),
    **dict.fromkeys(("labels_shuffled", "labels_random"), LABELS),
    **dict.fromkeys(
        ("labels_shuffled_halfway", "labels_swapped_halfway", "other_data", "harder_data"), frozenset({"data_problem"})
    ),
    **dict.fromkeys(("duplicates", "tiny_data"), frozenset({"overfitting", "data_problem", "margin_without_accuracy"})),
    **dict.fromkeys(("nan_filtered", "nan_raw"), frozenset({"divergence"})),
    "mask_empty": frozenset({"flat_from_start", "divergence"}),
    "mask_end_only": frozenset({"data_problem"}),
    "mask_everything": frozenset({"data_problem", "not_learned"}),
    "wrong_reference": frozenset({"wrong_reference"}),
    "reward_zero": frozenset({"constant_groups", "reward_flat"}),
    "reward_random": frozenset({"reward_flat"}),
}


@dataclass(frozen=True)
class RealRun:
    """A log with what was planted in it and how its run was set."""

    folder: Path
    source: str
    method: str
    fault: str
    seed: int
    settings: Mapping[str, Any]

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def held_out(self) -> bool:
        return self.seed >= FIRST_HELD_OUT

    def load(self) -> Run:
        run = load_run(str(self.folder))
        run.quiet_s = 1e6  # the log was written when it was checked out
        return run


def real_runs(base: Path = LOGS) -> Iterator[RealRun]:
    for file in sorted(base.glob("*/planted.json")):
        planted = json.loads(file.read_text())
        yield RealRun(file.parent, settings=planted["settings"], **planted["run"])


def learned(real: RealRun, run: Run) -> bool:
    """Whether the run learned its task, by its own numbers."""
    loss = run.series.get("train_loss")
    if real.method == "rl":
        reward = run.series["reward"]
        return float(np.mean(reward.part(0.8, 1.0)) - np.mean(reward.part(0.0, 0.2))) > 0.15
    if real.method == "dpo":
        accuracies = [run.series[q] for q in ("accuracy", "val_accuracy") if q in run.series]
        return all(len(a) > 0 and float(np.mean(a.part(0.7, 1.0))) > 0.75 for a in accuracies)
    curves = [run.series[q] for q in ("train_loss", "val_loss") if q in run.series]
    return loss is not None and all(
        len(c) > 0 and float(np.median(c.part(0.85, 1.0))) < 0.3 * float(loss.values[0]) for c in curves
    )


def _levels_off(run: Run) -> bool:
    """Whether under 42% of the loss's fall lies in the second half of the run, counted by learning rate."""
    loss, rate = run.series.get("val_loss") or run.series.get("train_loss"), run.series.get("lr")
    if loss is None or rate is None or len(loss) < 8:
        return False
    passed = np.interp(loss.steps, rate.steps, np.cumsum(rate.values) / np.sum(rate.values))
    first, end = float(np.median(loss.values[: max(1, len(loss) // 10)])), float(np.median(loss.values[-3:]))
    middle = float(np.median(loss.values[np.abs(passed - 0.5) < 0.08])) if np.any(np.abs(passed - 0.5) < 0.08) else end
    return (middle - end) < 0.42 * (first - end)


@dataclass(frozen=True)
class _Facts:
    """What of a run decides whether its fault can be told."""

    records: int
    validations: int
    learned: bool
    levels_off: bool
    log_every: int
    restarts: bool
    told_apart: bool
    first_loss: float


_JUMPS = frozenset({"labels_shuffled_halfway", "labels_swapped_halfway", "other_data", "harder_data"})
_BY_HEART = frozenset({"duplicates", "tiny_data"})
# Which faults cannot be told, where, and why; the first that fits counts.
_UNTOLD: Sequence[tuple[frozenset[str], Callable[[_Facts], bool], str]] = (
    (frozenset({"nan_filtered", "nan_raw", "mask_empty"}), lambda _: True, ""),
    (
        frozenset({"lr_d10"}),
        lambda _: True,
        "a rate ten times too low is a run that learns more slowly, as one on a harder task does",
    ),
    (
        frozenset({"mask_end_only"}),
        lambda f: f.first_loss >= 0.05,
        "a loss on the end token alone falls to nothing, as on an easy task",
    ),
    (
        frozenset({"mask_everything"}),
        lambda _: True,
        "a loss on prompts too is another loss, whose right level nobody knows",
    ),
    (
        frozenset({"wrong_reference"}),
        lambda f: f.log_every > 1,
        "the first step, which alone shows the reference, is hidden in a mean",
    ),
    (_BY_HEART, lambda f: f.validations < 6, "without validation, rows learned by heart are rows learned"),
    (
        _BY_HEART | {"lr_x10", "lr_x30", "lr_d30"},
        lambda f: f.learned,
        "the run learned its task all the same",
    ),
    (
        frozenset({"lr_d30", "lr_d100"}),
        lambda f: f.levels_off,
        "the loss levels off, as at a right rate on a harder task",
    ),
    (
        frozenset({"labels_swapped_halfway"}),
        lambda f: not f.told_apart,
        "the pairs were exchanged before the first ones were told apart",
    ),
    (_JUMPS, lambda f: f.restarts, "the jump lies where the schedule begins again, which explains it"),
    (_JUMPS, lambda f: f.records < 24, "fewer than 24 records show no jump"),
    (frozenset(NAMED_BY), lambda f: f.records < 12, "fewer than 12 records have no shape"),
)


def cannot_tell(real: RealRun, run: Run) -> str:
    """Why a planted fault cannot be told from this log; empty where it can."""
    facts = _Facts(
        records=max((len(run.series[q]) for q in ("train_loss", "reward") if q in run.series), default=0),
        validations=len(run.series["val_loss"]) if "val_loss" in run.series else 0,
        learned=learned(real, run),
        levels_off=_levels_off(run),
        log_every=real.settings["log_every"],
        first_loss=float(np.median(run.series["train_loss"].values[:3])) if run.get("train_loss") else 0.0,
        restarts=real.settings["schedule"] == "cosine_with_restarts",
        told_apart="accuracy" not in run.series or float(np.mean(run.series["accuracy"].part(0.25, 0.4))) >= 0.85,
    )
    return next((why for faults, holds, why in _UNTOLD if real.fault in faults and holds(facts)), "")


@dataclass(frozen=True)
class Told:
    """One log with what was found in it."""

    real: RealRun
    diagnosis: Diagnosis
    cannot: str
    learned: bool

    @property
    def kinds(self) -> frozenset[str]:
        """Findings beyond notes."""
        return frozenset(f.kind for f in self.diagnosis.findings if f.level != "note")

    @property
    def right(self) -> bool:
        """Whether the fault is named; of a healthy run whether nothing is."""
        if self.real.fault == "healthy":
            return not self.kinds - TRUE_OF_HEALTHY
        return bool(self.kinds & NAMED_BY[self.real.fault])


def told(base: Path = LOGS) -> list[Told]:
    """Every log, read."""
    found: list[Told] = []
    for real in real_runs(base):
        run = real.load()
        cannot = "" if real.fault == "healthy" else cannot_tell(real, run)
        found.append(Told(real, diagnose(run), cannot, learned(real, run)))
    return found


def real_table(logs: list[Told]) -> str:
    """What was planted, how often it can be told and is named, by runs that set thresholds and runs that did not."""
    lines = [
        "| planted | method | runs that set thresholds | named | other runs | named |",
        "|---|---|---|---|---|---|",
    ]
    planted = sorted({(t.real.fault, t.real.method) for t in logs if t.real.fault != "healthy"})
    for fault, method in planted:
        cells: list[str] = []
        for held_out in (False, True):
            own = [t for t in faulty(logs, held_out=held_out) if (t.real.fault, t.real.method) == (fault, method)]
            tellable = [t for t in own if not t.cannot]
            cells += [_counted(len(tellable), len(own)), str(sum(t.right for t in tellable)) if tellable else "-"]
        lines.append(f"| {fault} | {method} | {' | '.join(cells)} |")
    cells = []
    for held_out in (False, True):
        tellable = [t for t in faulty(logs, held_out=held_out) if not t.cannot]
        right = sum(t.right for t in tellable)
        cells += [str(len(tellable)), f"{right} ({right / max(1, len(tellable)):.0%})"]
    lines += [f"| **all that can be told** | | {' | '.join(cells)} |", ""]
    lines += [
        "| healthy | runs that set thresholds | with an alarm | other runs | with an alarm |",
        "|---|---|---|---|---|",
    ]
    for method in (*sorted({t.real.method for t in sound(logs)}), ""):
        cells = []
        for held_out in (False, True):
            own = [t for t in sound(logs, held_out=held_out) if method in ("", t.real.method)]
            cells += [str(len(own)), str(sum(not t.right for t in own))]
        lines.append(f"| {method or '**all**'} | {' | '.join(cells)} |")
    lines += ["", "What cannot be told from its log, and why:", ""]
    reasons: dict[str, list[str]] = {}
    for t in faulty(logs):
        if t.cannot:
            reasons.setdefault(t.cannot, []).append(f"{t.real.fault} ({t.real.method})")
    for reason, names in sorted(reasons.items()):
        counted = ", ".join(f"{name} {names.count(name)}" for name in sorted(set(names)))
        lines.append(f"- {reason[0].upper()}{reason[1:]}: {counted}.")
    return "\n".join(lines)


def _counted(tellable: int, runs: int) -> str:
    return str(runs) if tellable == runs else f"{tellable} of {runs}"


def faulty(logs: list[Told], *, held_out: bool | None = None) -> list[Told]:
    """Runs with a planted fault."""
    return [t for t in logs if t.real.fault != "healthy" and held_out in (None, t.real.held_out)]


def sound(logs: list[Told], *, held_out: bool | None = None) -> list[Told]:
    """Healthy runs; a run that did not learn its task is none, whatever was meant."""
    return [t for t in logs if t.real.fault == "healthy" and t.learned and held_out in (None, t.real.held_out)]
