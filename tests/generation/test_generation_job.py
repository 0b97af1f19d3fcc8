"""Generation jobs on the real embedded engine, with the demo model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from eval_helpers import Context
from generation_helpers import documents, make, prompts_file, reasons, rows
from job_helpers import ended, resumed, wait_until
from tiny_models import write_tiny_weights
from tool_calls import call

from sota_ml_researcher.core.errors import BackendError
from sota_ml_researcher.data.preference_rows import to_pair
from sota_ml_researcher.jobs import control
from sota_ml_researcher.jobs.context import StopReason
from sota_ml_researcher.jobs.registry import Registry
from sota_ml_researcher.jobs.states import Job, JobState
from sota_ml_researcher.tools.job_view import next_step, summary, view

RANKED = {"recipe": "preferences", "model": "demo", "prompts": "demo:say_train", "judge_model": "check:exact"}
RANKED |= {"max_response_tokens": 12, "temperature": 1.0}
TAUGHT = {"recipe": "distillation", "model": "demo", "prompts": "demo:say_train", "teacher_prompt": "Speak up."}
TAUGHT |= {"max_response_tokens": 8}


def started(**overrides: Any) -> Job:
    failed, text, content = call("start_generation", overrides=overrides)
    assert not failed, text
    return Registry().get(content["job_id"])


def tiny_model_with_room(folder: Path) -> Path:
    """Random weights, and a context that holds the longest of our requests."""
    model = write_tiny_weights(folder / "model")
    settings = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**settings, "max_position_embeddings": 8192}))
    return model


def made_of(job: Job) -> bytes:
    return (job.folder / "rows.jsonl").read_bytes()


@pytest.mark.usefixtures("shared_engine")
def test_the_template_makes_pairs_that_start_dpo_takes() -> None:
    failed, text, content = call("start_generation", config="template://generation", overrides={"num_samples": 12})
    assert not failed, text
    assert "12 sources, 48 answers, 144 questions to check:exact." in text
    job = wait_until(content["job_id"], ended)
    assert job.state is JobState.SUCCEEDED, job.error
    file = job.folder / "rows.jsonl"
    pairs = [to_pair(json.loads(line)) for line in file.read_text().splitlines()]
    assert pairs and all(pair.chosen_text in pair.prompt[-1]["content"] for pair in pairs)
    assert f"start_dpo(overrides={{'train_file': '{file}'" in next_step(job)
    seen = summary(view(job))
    assert f"{len(pairs)} rows of 12 sources in rows.jsonl." in seen
    assert f"rows/made {len(pairs)}" in seen
    failed, text, _ = call("start_dpo", overrides={"base_model": "demo", "train_file": str(file)}, validate_only=True)
    assert not failed, text
    failed, text, _ = call("check_dataset", train_file=str(file))
    assert not failed, text
    assert "provenance" not in text


@pytest.mark.usefixtures("shared_engine")
def test_the_same_config_gives_the_same_bytes_whatever_runs_beside_it(tmp_path: Path) -> None:
    contexts = [
        make(tmp_path, Context(tmp_path / str(n)), **RANKED, num_samples=10, parallel_requests=n)[1] for n in (1, 7)
    ]
    contexts.append(make(tmp_path, Context(tmp_path / "other"), **RANKED, num_samples=10, seed=1)[1])
    for name in ("rows.jsonl", "gated.jsonl"):
        first, second, other = [(context.folder / name).read_bytes() for context in contexts]
        assert first == second != other


@pytest.mark.usefixtures("shared_engine")
def test_a_killed_job_goes_on_and_pays_for_nothing_twice(tmp_path: Path) -> None:
    whole = wait_until(started(**RANKED, num_samples=60).id, ended)
    job = started(**RANKED, num_samples=60, parallel_requests=2)
    wait_until(job.id, lambda j: j.step >= 3)
    control.cancel(Registry(), job.id, hard=True)
    killed = wait_until(job.id, ended)
    before = len(rows(Context(job.folder), "answers.jsonl"))
    assert killed.state is JobState.CANCELLED
    assert 0 < before < 60
    done = resumed(killed)
    assert made_of(done) == made_of(whole)
    for name in ("answers.jsonl", "judgments.jsonl"):
        keys = [record["key"] for record in rows(Context(job.folder), name)]
        assert len(keys) == len(set(keys))
    assert len(rows(Context(job.folder), "answers.jsonl")) == 60


@pytest.mark.usefixtures("shared_engine")
def test_a_cancelled_job_can_be_resumed(tmp_path: Path) -> None:
    job = started(**TAUGHT, num_samples=80, parallel_requests=1)
    wait_until(job.id, lambda j: j.step >= 2)
    control.cancel(Registry(), job.id)
    stopped = wait_until(job.id, ended)
    assert stopped.state is JobState.CANCELLED
    assert stopped.step < 80
    assert "resume_job" in next_step(stopped)
    done = resumed(stopped)
    assert len(rows(Context(done.folder))) + len(reasons(Context(done.folder))) == 80


@pytest.mark.usefixtures("shared_engine")
def test_the_rows_of_a_teacher_can_be_trained_on(tmp_path: Path) -> None:
    file = tmp_path / "made" / "rows.jsonl"
    outcome, context = make(tmp_path, **TAUGHT, num_samples=30, output_file=str(file))
    assert outcome.finished
    assert file.read_bytes() == (context.folder / "rows.jsonl").read_bytes()
    assert "Speak up" not in file.read_text()
    assert [len(row["messages"]) for row in rows(context)] == [2] * len(rows(context))
    failed, text, _ = call(
        "start_sft", overrides={"base_model": "demo", "train_file": str(file), "num_steps": 2}, validate_only=True
    )
    assert not failed, text
    assert "provenance" not in text


@pytest.mark.usefixtures("shared_engine")
def test_a_model_that_cannot_follow_is_left_with_what_it_said(tmp_path: Path) -> None:
    model = tiny_model_with_room(tmp_path)
    config = {"recipe": "questions", "model": str(model), "max_response_tokens": 8, "passage_chars": 200}
    with pytest.raises(BackendError, match=r"gave no answer that can be read on the first \d+"):
        make(tmp_path, **config, documents=documents(tmp_path, 25))
    said = rows(Context(tmp_path / "run"), "answers.jsonl")
    assert len(said) >= 60
    assert len({answer["seed"] for record in said for answer in record["answers"]}) == len(said)


@pytest.mark.usefixtures("shared_engine")
def test_a_judge_on_the_backend_that_gives_no_verdict_ends_the_job(tmp_path: Path) -> None:
    model = f"tinker:{tiny_model_with_room(tmp_path)}"
    with pytest.raises(BackendError, match=r"gave no readable verdict on its first \d+ questions"):
        make(tmp_path, **TAUGHT, num_samples=40, judge_model=model, judge_max_tokens=64)


@pytest.mark.usefixtures("shared_engine")
def test_a_cap_on_a_backend_with_prices_holds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = tmp_path / "prices.yaml"
    table.write_text("backends: {embedded: {models: {demo: {prefill: 0, sample: 1000}}}}\n")
    monkeypatch.setenv("ML_RESEARCHER_PRICES", str(table))
    config = {**TAUGHT, "prompts": prompts_file(tmp_path, 40), "max_cost_usd": 0.05}
    failed, text, content = call("start_generation", overrides=config)
    assert "plan_id" in text, text
    failed, text, content = call("start_generation", overrides=config, plan_id=content["plan_id"])
    assert not failed, text
    job = wait_until(content["job_id"], ended)
    assert job.state is JobState.INTERRUPTED
    assert "its money was spent" in job.error
    assert job.cost_usd is not None
    assert 0 < job.cost_usd <= 0.05
    control.resume(Registry(), job.id, max_cost_usd=5.0)
    done = wait_until(job.id, ended)
    assert done.state is JobState.SUCCEEDED, done.error
    assert len(rows(Context(done.folder), "answers.jsonl")) == 40


def test_a_plan_starts_nothing_and_shows_every_setting(tmp_path: Path) -> None:
    failed, text, content = call("start_generation", overrides={**TAUGHT, "num_samples": 3}, validate_only=True)
    assert not failed
    assert "Plan only, nothing was started. Recipe distillation, written by demo." in text
    assert content["plan"]["config"]["temperature"] == 0.7
    assert content["plan"]["cost"]["expected"] == 0.0
    assert Registry().find() == []


def test_a_config_of_another_kind_is_refused(tmp_path: Path) -> None:
    failed, text, _ = call("start_generation", config="template://sft")
    assert failed
    assert StopReason.BUDGET not in text
    assert "unknown key" in text
