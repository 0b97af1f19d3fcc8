"""RL jobs end to end on the tiny model, and the promised numbers on the demo model (slow)."""

import json
from pathlib import Path
from typing import Any

import pytest
from job_helpers import cancelled, ended, logged, resumed, start_rl, tiny_rl, wait_until

from sota_ml_researcher.jobs import run_files
from sota_ml_researcher.jobs.states import Job, JobState
from sota_ml_researcher.templates.catalog import template_path


def curve(job: Job) -> dict[int, dict[str, float]]:
    return logged(job, "reward/mean", "reward/constant_groups", "response/tokens", "test/reward", "optim/entropy")


@pytest.mark.usefixtures("shared_engine")
def test_an_rl_job_runs_and_a_cancelled_one_goes_on_as_if_nothing_had_happened(
    tmp_path: Path, tiny_weights: Path
) -> None:
    config = tiny_rl(tmp_path, tiny_weights, num_steps=40)
    whole = wait_until(start_rl(None, **config).id, ended)
    assert whole.state is JobState.SUCCEEDED, whole.error
    steps = curve(whole)
    assert sorted(steps) == list(range(41))
    assert {"reward/mean", "test/reward"} <= set(steps[0])
    rollouts = [json.loads(line) for line in (whole.folder / "rollouts.jsonl").read_text().splitlines()]
    assert {r["step"] for r in rollouts} == set(range(40))
    assert set(rollouts[0]["parts"]) == {"length", "regex"}
    assert len({r["response"] for r in rollouts}) > 3  # samples of a group differ
    assert json.loads((whole.folder / "reward_check.json").read_text())["samples"] == 32

    cut = cancelled(start_rl(None, **config), after=2, of=40)
    assert curve(resumed(cut)) == steps


@pytest.mark.slow
@pytest.mark.usefixtures("shared_engine")
def test_a_constant_reward_is_refused_by_the_job_itself(tmp_path: Path, tiny_weights: Path) -> None:
    config = tiny_rl(tmp_path, tiny_weights, rewards=[{"type": "regex", "pattern": "never this"}], num_steps=1)
    job = wait_until(start_rl(None, **config).id, ended)
    assert job.state is JobState.FAILED
    assert "was 0 for all 32 samples of the untrained model" in job.error


@pytest.mark.slow
@pytest.mark.usefixtures("shared_engine")
@pytest.mark.parametrize(
    ("template", "changes", "least"),
    [("grpo", {}, 0.8), ("ppo", {}, 0.7), ("ppo", {"loss_fn": "cispo", "clip_ratio": None}, 0.7)],
)
def test_rl_lifts_the_reward_of_the_demo_model(template: str, changes: dict[str, Any], least: float) -> None:
    job = wait_until(start_rl(template_path(template), **changes).id, ended)
    assert job.state is JobState.SUCCEEDED, job.error
    records = [r for r in run_files.recent_metrics(job.folder, limit=1000) if "reward/mean" in r]
    assert records[0]["reward/mean"] <= 0.3
    assert sum(r["reward/mean"] for r in records[-4:]) / 4 >= least


@pytest.mark.slow
@pytest.mark.usefixtures("shared_engine")
@pytest.mark.parametrize(
    "changes",
    [
        {"loss_fn": "gspo", "num_substeps": 2},
        {"loss_fn": "dro", "advantage": "grpo"},
        {"kl_coef": 0.1, "overlong_buffer_tokens": 2},
        {"max_steps_off_policy": 2},
    ],
)
def test_every_variant_runs_to_its_end(tmp_path: Path, tiny_weights: Path, changes: dict[str, Any]) -> None:
    job = wait_until(start_rl(None, **tiny_rl(tmp_path, tiny_weights, **changes)).id, ended)
    assert job.state is JobState.SUCCEEDED, job.error
    records = run_files.recent_metrics(job.folder, limit=100)
    if "kl_coef" in changes:
        assert {"kl/k1", "kl/k3", "reward/overlong"} <= set(records[0])
    if "max_steps_off_policy" in changes:  # six steps, a checkpoint before every second
        assert [r["sampling_client/step_mean"] for r in records if "reward/mean" in r] == [0, 0, 2, 2, 4, 4]


@pytest.mark.slow
@pytest.mark.usefixtures("shared_engine")
def test_the_rlaif_template_teaches_what_its_rubric_says() -> None:
    job = wait_until(start_rl(template_path("rlaif")).id, ended)
    assert job.state is JobState.SUCCEEDED, job.error
    records = [r for r in run_files.recent_metrics(job.folder, limit=1000) if "reward/judge" in r]

    def last(name: str) -> float:
        return sum(r[name] for r in records[-4:]) / 4

    assert last("reward/judge") >= records[0]["reward/judge"] + 0.25
    # The judge looks at the letters' size more than at the word; the pull to the base model keeps the word.
    assert records[0]["reward/exact"] <= 0.4
    assert last("reward/exact") >= 1.4 * records[0]["reward/exact"]
