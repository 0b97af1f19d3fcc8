"""A run whose numbers are none any more has failed, in the headline and in every comparison."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sota_ml_researcher.analysis.comparison import RunPair, compare
from sota_ml_researcher.analysis.diagnosis import Diagnosis, diagnose
from sota_ml_researcher.analysis.report import verdict
from sota_ml_researcher.analysis.runs import load_run

Record = dict[str, Any]


def sound(n: int = 100) -> list[Record]:
    noise = np.random.default_rng(1).normal(0, 0.02, n)
    return [{"step": i, "loss": 0.9 + 1.3 * math.exp(-i / 20) + float(noise[i]), "grad_norm": 1.0} for i in range(n)]


def diagnosed(folder: Path, rows: list[Record], name: str = "run") -> Diagnosis:
    (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return diagnose(load_run(str(folder / f"{name}.jsonl")))


def changed(since: int, **values: Any) -> list[Record]:
    return [row | (values if row["step"] >= since else {}) for row in sound()]


def validated(nan_since: int) -> list[Record]:
    return [r | {"eval_loss": r["loss"] if r["step"] < nan_since else math.nan} for r in sound() if r["step"] % 5 == 0]


FAILED = {
    "the loss": (changed(60, loss=math.nan), "loss is not a number from step 60 on"),
    "an infinite loss": (changed(60, loss=math.inf), "loss is not a number from step 60 on"),
    "loss zero, gradient nan": (changed(60, loss=0.0, grad_norm=math.nan), "grad_norm is not a number from step 60 on"),
    "loss zero alone": (changed(60, loss=0.0), "loss is exactly 0"),
    "the gradient norm": (changed(60, grad_norm=math.nan), "grad_norm is not a number from step 60 on"),
    "the validation": (validated(60), "eval_loss is not a number from step 60 on"),
    "a loss that repeats": (changed(60, loss=1.234567), "loss is 1.23457 to the last digit from step 60 on"),
    "a loss that ends": (
        [{k: v for k, v in r.items() if k != "loss" or r["step"] < 60} for r in sound()],
        "loss is empty from step 60 on",
    ),
    "the reward's gradient": (
        [r | {"reward": 0.3, "kl": 0.01 if r["step"] < 60 else math.nan} for r in sound()],
        "kl is not a number from step 60 on",
    ),
}


@pytest.mark.parametrize("name", FAILED)
def test_what_is_no_number_any_more_decides_the_headline(name: str, tmp_path: Path) -> None:
    rows, what = FAILED[name]
    found = diagnosed(tmp_path, rows)
    assert f"FAILED: {what}" in verdict(found)
    assert "improved" not in verdict(found)
    first = found.findings[0]
    assert (first.kind, first.level, first.rule) == ("divergence", "error", "diagnosis.broken")
    assert what in first.summary


@pytest.mark.parametrize("loss", [0.0, 0.5])
def test_a_loss_that_is_one_number_throughout_is_no_training(loss: float, tmp_path: Path) -> None:
    found = diagnosed(tmp_path, changed(0, loss=loss))
    assert "FAILED" in verdict(found) or found.findings[0].kind == "flat_from_start"
    assert [f.kind for f in found.findings] == ["flat_from_start"]


def test_single_gradients_left_out_by_loss_scaling_are_no_failure(tmp_path: Path) -> None:
    rows = [r | ({"grad_norm": math.inf} if r["step"] in (0, 40) else {}) for r in sound()]
    found = diagnosed(tmp_path, rows)
    assert found.findings == []
    assert "improved" in verdict(found)


def test_a_loss_that_recovers_is_named_and_the_run_goes_on(tmp_path: Path) -> None:
    found = diagnosed(tmp_path, [r | ({"loss": math.nan} if r["step"] == 50 else {}) for r in sound()])
    assert [(f.kind, f.level) for f in found.findings] == [("divergence", "warn")]
    assert "loss is not a number at 1 of 100 steps" in found.findings[0].summary


def test_a_loss_learned_below_the_last_digit_is_no_failure(tmp_path: Path) -> None:
    rows: list[Record] = [{"step": i, "loss": round(2 * math.exp(-i / 6), 4)} for i in range(100)]
    assert "FAILED" not in verdict(diagnosed(tmp_path, rows))


@pytest.mark.parametrize(
    "rows",
    [
        [{"step": 0, "loss": 2.0}],
        [{"step": i, "eval_loss": 2 - i / 20} for i in range(12)],
        [{"step": 0, "loss": math.nan}],
        [{"step": 9 - i, "loss": 2.0 + i} for i in range(10)],
    ],
    ids=["one step", "validation only", "one nan", "backwards"],
)
def test_logs_with_little_in_them_are_read(rows: list[Record], tmp_path: Path) -> None:
    found = diagnosed(tmp_path, rows)
    assert "None" not in verdict(found) and "nan to" not in verdict(found)


def pair_of(folder: Path, first: list[Record], second: list[Record], metric: str | None = None) -> RunPair:
    for name, rows in (("first", first), ("second", second)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (pair,) = compare([load_run(str(folder / f"{name}.jsonl")) for name in ("first", "second")], metric).pairs
    return pair


@pytest.mark.parametrize("values", [{"loss": math.nan}, {"loss": 0.0, "grad_norm": math.nan}], ids=["nan", "masked"])
def test_a_comparison_calls_a_failed_run_failed_and_says_what_is_left_out(values: Record, tmp_path: Path) -> None:
    pair = pair_of(tmp_path, sound(), changed(50, **values))
    assert pair.word == "failed"
    assert "second: " in pair.reading and "from step 50 on" in pair.reading
    assert "left out: 50 of 100 steps of first (from step 50 on" in pair.left_out
    assert pair_of(tmp_path, changed(50, **values), sound()).word == "the first run failed"
    assert pair_of(tmp_path, changed(50, **values), changed(20, **values)).word == "both failed"


def test_a_run_that_fails_at_once_cannot_be_compared(tmp_path: Path) -> None:
    pair = pair_of(tmp_path, sound(), [r | ({"loss": math.nan} if r["step"] > 0 else {}) for r in sound()], "loss")
    assert (pair.word, pair.difference) == ("failed", None)
    assert pair.reading.endswith("No step can be compared")


def test_a_shorter_run_is_said_to_be_shorter(tmp_path: Path) -> None:
    pair = pair_of(tmp_path, sound(), sound(60))
    assert pair.left_out == "left out: 40 of 100 steps of first (second ends at step 59)"


def test_steps_of_one_run_alone_that_are_no_numbers_are_said(tmp_path: Path) -> None:
    pair = pair_of(tmp_path, sound(), [r | ({"loss": math.nan} if r["step"] == 50 else {}) for r in sound()])
    assert pair.word == "no difference beyond the noise"
    assert "1 of 100 steps of first (loss of second is not a number there)" in pair.left_out
