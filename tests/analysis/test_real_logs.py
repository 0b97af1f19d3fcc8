"""Real runs of the demo model with planted faults: what is said of them, and that no sentence is refuted by its log."""

import json
import re
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from analysis_real_logs import LOGS, Told, faulty, real_table, sound, told

import sota_ml_researcher.core.paths as anchor
from sota_ml_researcher.doctrine.rules import rule

DOCS = Path(anchor.__file__).parents[1] / "docs" / "analysis.md"


@cache
def logs() -> list[Told]:
    return told()


def test_there_are_enough_runs_of_every_kind() -> None:
    assert len(faulty(logs())) >= 40
    assert len(sound(logs())) >= 60
    assert {t.real.method for t in sound(logs())} == {"sft", "lora", "dpo", "rl"}


@pytest.mark.parametrize("held_out", [False, True])
def test_faults_that_can_be_told_are_named(held_out: bool) -> None:
    tellable = [t for t in faulty(logs(), held_out=held_out) if not t.cannot]
    missed = [(t.real.name, sorted(t.kinds)) for t in tellable if not t.right]
    assert len(missed) <= 0.15 * len(tellable), missed


@pytest.mark.parametrize("held_out", [False, True, None])
def test_healthy_runs_raise_no_alarm(held_out: bool | None) -> None:
    healthy = sound(logs(), held_out=held_out)
    alarms = [(t.real.name, sorted(t.kinds)) for t in healthy if not t.right]
    # Of a half alone one run is the twentieth that may alarm.
    assert len(alarms) <= max(0.05 * len(healthy), 0 if held_out is None else 1), alarms


def test_the_docs_and_the_rule_hold_what_is_measured() -> None:
    assert real_table(logs()) in DOCS.read_text(encoding="utf-8"), "run: python scripts/make_analysis_table.py"
    value: Any = rule("diagnosis.reliability").value
    tellable = [t for t in faulty(logs(), held_out=True) if not t.cannot]
    assert value["recall"] == pytest.approx(sum(t.right for t in tellable) / len(tellable), abs=0.005)
    assert value["faults"] == len(tellable)


# --- sentences, read back by other code than that which made them -------------------------------------------------


def records(folder: Path) -> list[dict[str, Any]]:
    state = folder / "trainer_state.json"
    if state.exists():
        return json.loads(state.read_text())["log_history"]
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def points(folder: Path, *names: str) -> tuple[np.ndarray, np.ndarray]:
    found = [(r["step"], r[name]) for r in records(folder) for name in names if name in r]
    finite = [(s, v) for s, v in found if np.isfinite(v)]
    return np.array([s for s, _ in finite]), np.array([v for _, v in finite])


LOSS = ("loss", "train_mean_nll", "dpo_loss")
HELD_OUT = ("eval_loss", "test/nll", "test/dpo_loss")
NUMBER = r"(-?[\d.]+(?:e[+-]?\d+)?)"


def close(said: str, value: float) -> bool:
    return abs(float(said) - value) <= 0.006 * abs(value) + 1e-9


def jump_is_there(folder: Path, m: re.Match[str]) -> bool:
    steps, values = points(folder, *LOSS)
    floor, step, last = float(m[3]), int(m[2]), int(m[4])
    part = values[(steps >= step) & (steps <= last)]
    medians = [float(np.median(part[max(0, i - 2) : i + 3])) for i in range(len(part))]
    before = values[steps < step][-6:]
    return min(medians) >= floor * 0.99 and float(np.median(before)) < floor


def lowest_is_there(folder: Path, m: re.Match[str]) -> bool:
    steps, values = points(folder, *HELD_OUT)
    return int(steps[np.argmin(values)]) == int(m[1]) and close(m[2], float(values.min()))


def begin_is_there(folder: Path, m: re.Match[str]) -> bool:
    _, values = points(folder, *LOSS)
    return (
        close(m[1], float(values[0])) and abs(float(m[2]) - float(np.median(values[-3:]))) < 0.25 * float(m[2]) + 0.05
    )


def accuracy_is_there(folder: Path, m: re.Match[str]) -> bool:
    steps, values = points(folder, "rewards/accuracies", "accuracy")
    return float(values[steps >= int(m[1])].min()) >= float(m[2]) / 100 - 0.006


def spread_is_there(folder: Path, m: re.Match[str]) -> bool:
    _, values = points(folder, *LOSS)
    return close(m[1], float(values.min())) and close(m[2], float(values.max()))


SENTENCES = {
    rf"^The loss jumps from {NUMBER} to \S+ at step (\d+) and stays above {NUMBER} \(medians of five\) until "
    r"step (\d+)": jump_is_there,
    rf"^Overfitting: the held-out loss is lowest at step (\d+) \({NUMBER}\)": lowest_is_there,
    rf"^The loss began at {NUMBER} and ends at {NUMBER}": begin_is_there,
    r"^Pair accuracy is \S+ in the median from step (\d+) on \(at least (\d+)%\)": accuracy_is_there,
    rf"between {NUMBER} and {NUMBER} throughout": spread_is_there,
}


def test_no_sentence_is_refuted_by_its_log() -> None:
    read: list[str] = []
    for t in logs():
        for finding in t.diagnosis.findings:
            assert finding.borne_out
            for pattern, holds in SENTENCES.items():
                if (m := re.search(pattern, finding.summary)) is not None:
                    assert holds(t.real.folder, m), (t.real.name, finding.summary)
                    read.append(pattern)
    assert set(read) == set(SENTENCES), "every kind of sentence is met"


def test_logs_are_small() -> None:
    assert sum(file.stat().st_size for file in LOGS.rglob("*") if file.is_file()) < 3_000_000
