import json
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from sota_ml_researcher.core.files import append_json_line, write_json_lines
from sota_ml_researcher.jobs import run_files
from sota_ml_researcher.jobs.costs import superseded
from sota_ml_researcher.jobs.create import start_job
from sota_ml_researcher.jobs.registry import Registry
from sota_ml_researcher.training.sft.config import load_sft_settings


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


@pytest.mark.skipif(os.name != "posix", reason="modes are POSIX's")
def test_what_a_job_writes_is_for_its_owner_alone(own_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: dict[str, Any] = {}

    class Process:
        pid = os.getpid()

        def __init__(self, command: list[str], **options: Any) -> None:
            started.update(options)

    monkeypatch.setattr("sota_ml_researcher.jobs.processes.subprocess", SimpleNamespace(Popen=Process, DEVNULL=-3))
    settings = load_sft_settings(None, {"base_model": "demo", "train_file": "demo:sft_train"})
    job = start_job(Registry(), "sft", settings.config, settings.origins, files=[], total_steps=1)
    append_json_line(job.folder / run_files.ALERTS, {"time": 0.0, "level": "info", "step": None, "message": "m"})
    assert started["umask"] == 0o077
    assert job.folder.stat().st_mode & 0o777 == 0o700
    files = [*job.folder.iterdir(), *own_home.glob("jobs.db*")]
    assert {path.name for path in files} >= {"README", "config.yaml", "environment.json", "log.txt", "jobs.db"}
    assert {path.stat().st_mode & 0o777 for path in files} == {0o600}


@pytest.mark.parametrize(
    ("kind", "there", "absent"), [("sft", "checkpoints.jsonl", "rollouts"), ("benchmark", "inspect", "checkpoints")]
)
def test_a_run_folder_says_what_its_kind_of_job_writes(kind: str, there: str, absent: str) -> None:
    text = run_files.readme(kind)
    assert there in text and "config.yaml" in text
    assert absent not in text


def test_records_of_a_run_are_read_into_what_they_mean(tmp_path: Path) -> None:
    records = [
        {"name": "000004", "batch": 4, "state_path": "tinker://a/weights/4", "sampler_path": "tinker://a/sampler/4"},
        {"name": "best-000002", "step": 2, "test/nll": 1.0, "best_state_path": "tinker://a/weights/b"},
        {"name": "resume-000004", "state_path": "tinker://a/weights/4", "next_step": 4, "batch": 4},
    ]
    write_json_lines(tmp_path / run_files.CHECKPOINTS, records)
    saved, best, resumed = run_files.checkpoints(tmp_path)
    assert saved.paths == ("tinker://a/weights/4", "tinker://a/sampler/4")
    assert (best.best, best.step, best.state_path, saved.best) == (True, 2, "tinker://a/weights/b", False)
    assert (resumed.step, resumed.sampler_path) == (4, None)
    result = {"final_checkpoint": records[0], "best_checkpoint": {"step": 2, "state_path": "b"}, "wall_s": 2.5, "x": 1}
    (tmp_path / run_files.RESULT).write_text(json.dumps(result))
    read = run_files.result(tmp_path)
    assert read is not None and read.final_checkpoint == saved
    assert read.best_checkpoint is not None and (read.best_checkpoint.best, read.best_checkpoint.step) == (True, 2)
    assert (read.wall_s, read.tokens_trained, read.numbers["x"]) == (2.5, None, 1)


def test_what_a_job_goes_on_from_and_its_best_are_never_superseded(tmp_path: Path) -> None:
    def saved(name: str, **more: Any) -> dict[str, Any]:
        return {"name": name, "sampler_path": f"tinker://a/sampler_weights/{name}", **more}

    def resumable(step: int) -> dict[str, Any]:
        return saved(f"{step:06d}", next_step=step, state_path=f"tinker://a/weights/{step:06d}")

    best = [saved(f"best-{step}", step=step, best_state_path=f"tinker://a/weights/best-{step}") for step in (3, 8)]
    job: Any = SimpleNamespace(folder=tmp_path)
    assert superseded(job) == []
    write_json_lines(tmp_path / run_files.CHECKPOINTS, [resumable(5), best[0], resumable(10), best[1]])
    assert superseded(job) == [
        "tinker://a/weights/000005",
        "tinker://a/sampler_weights/000005",
        "tinker://a/weights/best-3",
        "tinker://a/sampler_weights/best-3",
    ]
