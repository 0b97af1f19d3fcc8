"""Kill cases of the judge evaluation: `make drill`."""

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
from eval_helpers import sums
from job_helpers import ended, wait_until
from loopback_judges import KEY, MODEL, Judges, serving

from sota_ml_researcher.evals.judge_config import load_judge_settings
from sota_ml_researcher.evals.judge_plan import plan_judge_eval
from sota_ml_researcher.jobs import control
from sota_ml_researcher.jobs.create import start_job
from sota_ml_researcher.jobs.registry import Registry
from sota_ml_researcher.jobs.states import Job, JobState

pytestmark = pytest.mark.drill
UNDER_WAY = 5


def start(config: dict[str, Any]) -> Job:
    plan = plan_judge_eval(load_judge_settings(None, config))
    chosen = plan.settings
    return start_job(
        Registry(), "judge_eval", chosen.config, chosen.origins, files=plan.files, total_steps=plan.total_steps
    )


def judged(job: Job) -> list[str]:
    path = job.folder / "judgments.jsonl"
    text = path.read_text() if path.exists() else ""
    return [json.loads(line)["key"] for line in text.splitlines(keepends=True) if line.endswith("\n")]


def numbers(job: Job) -> Any:
    found = json.loads((job.folder / "metrics.json").read_text())
    return found["comparisons"], found["verdict"]


def test_a_killed_evaluation_repeats_no_call_and_finds_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ANTHROPIC_API_KEY", KEY)
    config = sums(tmp_path, 60) | {"judge_model": MODEL, "parallel_judges": UNDER_WAY}
    with serving(Judges(delay_s=0.05)) as url:
        monkeypatch.setenv("ANTHROPIC_BASE_URL", url)
        whole = wait_until(start(config).id, ended)
        assert whole.state is JobState.SUCCEEDED, whole.error
    judges = Judges(delay_s=0.05)
    with serving(judges) as url:
        monkeypatch.setenv("ANTHROPIC_BASE_URL", url)
        job = wait_until(start(config).id, lambda j: len(judged(j)) >= 50)
        assert job.pid is not None
        os.kill(job.pid, signal.SIGKILL)
        job = wait_until(job.id, ended)
        assert job.state is JobState.INTERRUPTED
        noted = len(judged(job))
        control.resume(Registry(), job.id)
        job = wait_until(job.id, ended)
    assert job.state is JobState.SUCCEEDED, job.error
    assert 50 <= noted < 156
    assert len(judged(job)) == len(set(judged(job))) == 60 * 2 + 36
    # What was under way at the kill has no answer here and is asked again; nothing that was noted is.
    assert sum(count - 1 for count in judges.answered.values()) <= UNDER_WAY
    assert numbers(job) == numbers(whole)
