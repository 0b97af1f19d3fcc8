"""What a curve is taken for, and what it is not."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sota_ml_researcher.analysis.diagnosis import diagnose
from sota_ml_researcher.analysis.findings import Claim, RunFinding
from sota_ml_researcher.analysis.findings_rate import restarts
from sota_ml_researcher.analysis.runs import Run, load_run
from sota_ml_researcher.analysis.series import Series, sudden_rise

RNG = np.random.default_rng(11)


def series(values: Any, name: str = "loss") -> Series:
    values = np.asarray(values, np.float64)
    steps = np.arange(len(values))
    return Series(name, steps, values, steps + 1)


def fall(n: int = 150, *, start: float = 5.0, end: float = 0.05, tau: float = 0.15) -> Any:
    level = end + (start - end) * np.exp(-np.arange(n) / (tau * n))
    return level * (1 + 0.04 * np.random.default_rng(n).standard_normal(n))


def found(folder: Path, **columns: Any) -> list[RunFinding]:
    n = max(len(c) for c in columns.values())
    names = {"val": "eval_loss", "accuracy": "rewards/accuracies", "margin": "rewards/margins", "lr": "learning_rate"}
    rows = [{"step": i} | {names.get(k, k): float(c[i]) for k, c in columns.items()} for i in range(n)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return diagnose(load_run(str(folder))).findings


def test_a_jump_that_stays_is_found_at_its_step() -> None:
    values = fall()
    values[76:] += 3.0
    jump = sudden_rise(series(values))
    assert jump is not None
    assert jump.at == 76
    assert jump.floor > jump.before


@pytest.mark.parametrize(
    "spoil",
    [
        lambda v: v.__setitem__(slice(60, 64), v[60:64] + 3.0),  # a hump
        lambda v: v.__setitem__(slice(130, 150), v[130:150] + 0.007),  # a step in a loss near zero
        lambda v: v.__setitem__(slice(70, 100), v[70:100] + 3 * (1 - np.exp(-np.arange(30) / 8))),  # a climb
        lambda v: None,
    ],
    ids=["hump", "near zero", "climb", "sound"],
)
def test_what_is_no_jump(spoil: Any) -> None:
    values = fall()
    spoil(values)
    assert sudden_rise(series(values)) is None


def test_a_schedule_that_begins_again_explains_a_rise(tmp_path: Path) -> None:
    half = np.exp(-np.arange(75) / 20)
    loss = np.concatenate([0.5 + 3 * half, 0.5 + 2.2 * half]) * (1 + 0.02 * RNG.standard_normal(150))
    rate = np.concatenate([1e-3 * np.linspace(1, 0.02, 75)] * 2)
    assert found(tmp_path, loss=loss, lr=rate) == []
    assert restarts(load_run(str(tmp_path))) == [75]
    assert any(f.kind == "data_problem" for f in found(tmp_path, loss=loss, lr=np.full(150, 1e-3)))


def test_labels_that_change_places_are_named_first_and_nothing_false_beside_them(tmp_path: Path) -> None:
    accuracy = np.where(np.arange(100) < 6, 0.5, 1.0)
    accuracy[51:58] = 0.0
    loss = np.where(np.arange(100) < 6, 0.69, 0.01) + 0.001 * RNG.random(100)
    loss[51:62] = np.linspace(5, 2.5, 11)
    kinds = found(tmp_path, loss=loss, accuracy=accuracy, margin=-np.log(np.maximum(loss, 1e-3)))
    assert kinds[0].kind == "data_problem"
    assert "at step 51" in kinds[0].summary and "chosen and rejected change places" in kinds[0].summary
    assert all(f.summary.startswith("Until step 50: ") for f in kinds[1:])
    assert not {f.kind for f in kinds} & {"overfitting", "plateau", "spikes", "margin_without_accuracy"}


def test_other_data_are_the_cause_and_overfitting_is_not_said_where_the_training_loss_rises(tmp_path: Path) -> None:
    loss = fall(end=0.5)
    loss[76:] = 2.6 + 1.6 * np.exp(-np.arange(74) / 10) + 0.05 * RNG.standard_normal(74)
    val = np.where(np.arange(150) < 76, loss, 5.5)
    assert [f.kind for f in found(tmp_path, loss=loss, val=val)] == ["data_problem"]


def test_a_rate_far_too_low_falls_evenly_under_a_decaying_schedule(tmp_path: Path) -> None:
    rate = 1e-6 * (1 - np.arange(150) / 150)
    loss = 5 - 0.5 * np.cumsum(rate) / np.sum(rate) + 0.05 * RNG.standard_normal(150)
    (finding,) = found(tmp_path, loss=loss, lr=rate, grad_norm=40 + RNG.standard_normal(150))
    assert finding.kind == "lr_too_low"
    assert "1e-06" in finding.summary and "learning_rate: 1e-06, 3e-06, 9e-06" in finding.next_experiment


def test_a_rate_far_too_high_stands_until_it_comes_down(tmp_path: Path) -> None:
    rate = 0.1 * np.cos(np.arange(150) / 150 * math.pi / 2) ** 2
    loss = np.where(np.arange(150) < 10, 5.0, 3.0) - np.clip((np.arange(150) - 85) / 40, 0, 1) * 0.6
    (finding,) = found(tmp_path, loss=loss + 0.05 * RNG.standard_normal(150), lr=rate)
    assert finding.kind == "lr_too_high"
    assert "0.1" in finding.summary and "stands at" in finding.summary


def test_what_one_curve_cannot_tell_is_said_so(tmp_path: Path) -> None:
    loss = 2.35 + 3.5 * np.exp(-np.arange(200) / 8) + 0.04 * RNG.standard_normal(200)
    gradient = 1.2 + 50 * np.exp(-np.arange(200) / 4)
    (finding,) = found(tmp_path, loss=loss, lr=np.full(200, 1e-3), grad_norm=gradient)
    assert finding.kind == "not_learned"
    assert "cannot tell" in finding.summary and "shuffled labels" in finding.summary
    assert "learning_rate: 0.001, 0.00033, 0.00011" in finding.next_experiment


def test_rows_learned_by_heart_without_a_rise_of_the_held_out_loss_are_told(tmp_path: Path) -> None:
    loss = fall(end=0.15, start=3.0)
    val = 2.0 + 1.0 * np.exp(-np.arange(150) / 12)
    (finding,) = found(tmp_path, loss=loss, val=val)
    assert finding.kind == "overfitting"


@pytest.mark.parametrize("validations", [12, 100])
def test_healthy_runs_with_frequent_validation_raise_no_alarm(validations: int) -> None:
    alarms: list[tuple[int, list[str]]] = []
    for seed in range(100):
        rng = np.random.default_rng([seed, validations])
        t = np.arange(100) / 100
        level = rng.uniform(0.3, 1) + 1.5 * (1 + t * rng.uniform(6, 15)) ** -0.7
        noise = rng.uniform(0.01, 0.05)
        train = series(level * (1 + noise * rng.standard_normal(100)))
        at = np.arange(0, 100, 100 // validations)
        val = level[at] * (1.03 + noise * rng.uniform(0.1, 1) * rng.standard_normal(len(at)))
        metrics = {
            "train_loss": train,
            "val_loss": Series("eval_loss", at, val, at),
            "lr": series(1e-4 * (1 - t), "lr"),
        }
        findings = diagnose(Run("r", Path("r"), "sft", metrics)).findings
        if kinds := [f.kind for f in findings if f.level != "note"]:
            alarms.append((seed, kinds))
    assert len(alarms) <= 5, alarms


def test_a_claim_is_asked_of_every_point() -> None:
    values = [1.0, 0.2, 0.9, 1.0, 1.0]
    assert Claim(series(values), 2, low=0.9).holds()
    assert not Claim(series(values), 0, low=0.9).holds()
    assert Claim(series(values), 0, low=0.9, width=3).holds()
    assert not Claim(series(values), 9).holds(), "nothing can be said of no point"


def test_causes_come_before_what_they_bring_about(tmp_path: Path) -> None:
    loss = fall(end=0.4)
    loss[[40, 90]] *= 4
    val = np.where(np.arange(150) < 60, 1.0 - np.arange(150) / 100, 0.4 + (np.arange(150) - 60) / 50)
    kinds = [f.kind for f in found(tmp_path, loss=loss, val=val)]
    assert kinds.index("overfitting") < kinds.index("spikes")
