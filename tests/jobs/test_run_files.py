import json
from pathlib import Path

import pytest

from sota_ml_researcher.jobs import run_files


def write_metrics(folder: Path, steps: int, tail: str = "") -> None:
    lines = [json.dumps({"step": s, "train_mean_nll": 1 / (s + 1), "note": "é" * (s % 50)}) for s in range(steps)]
    (folder / run_files.METRICS).write_text("\n".join(lines) + "\n" + tail, encoding="utf-8")


@pytest.mark.parametrize("steps", [1, 2, 1000, 5000])
@pytest.mark.parametrize("tail", ["", '{"step": 99999, "half'])
def test_lines_read_backwards_are_the_lines_read_forwards(tmp_path: Path, steps: int, tail: str) -> None:
    write_metrics(tmp_path, steps, tail)
    path = tmp_path / run_files.METRICS
    forwards = path.read_bytes().split(b"\n")[:-1]
    assert list(run_files.lines_backwards(path)) == forwards[::-1]


def test_only_steps_after_the_given_one_are_returned_in_order(tmp_path: Path) -> None:
    write_metrics(tmp_path, 5000)
    assert [r["step"] for r in run_files.recent_metrics(tmp_path, since_step=4996)] == [4997, 4998, 4999]
    assert [r["step"] for r in run_files.recent_metrics(tmp_path, limit=2)] == [4998, 4999]
    assert run_files.recent_metrics(tmp_path, since_step=4999) == []


def test_a_folder_without_files_has_nothing_to_show(tmp_path: Path) -> None:
    assert run_files.recent_metrics(tmp_path) == []
    assert run_files.alerts(tmp_path) == []
    assert run_files.checkpoints(tmp_path) == []
    assert run_files.result(tmp_path) is None


def test_the_latest_value_of_each_metric_survives_gaps_and_nans() -> None:
    records = [{"step": 1, "a": 1.0, "b": 2.0}, {"step": 2, "a": float("nan"), "c": True}]
    assert run_files.latest_values(records) == {"a": 1.0, "b": 2.0}
