import json
from pathlib import Path

import pytest
from job_helpers import ended, settings, wait_until

from sota_ml_researcher.backends.meter import Usage, read_usage
from sota_ml_researcher.backends.prices import PRICES_VARIABLE
from sota_ml_researcher.core.errors import JobError
from sota_ml_researcher.jobs import control, run_files
from sota_ml_researcher.jobs.registry import Registry
from sota_ml_researcher.jobs.states import JobState
from sota_ml_researcher.tools.start import start_sft

pytestmark = pytest.mark.usefixtures("shared_engine")


@pytest.fixture
def priced(tmp_path: Path, tiny_weights: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The engine charges for the tiny model."""
    table = {"backends": {"embedded": {"models": {str(tiny_weights): {"train": 10.0, "prefill": 5.0, "sample": 20.0}}}}}
    path = tmp_path / "prices.yaml"
    path.write_text(json.dumps(table))
    monkeypatch.setenv(PRICES_VARIABLE, str(path))
    return path


def test_a_job_is_planned_confirmed_metered_stopped_at_its_cap_and_resumed(
    priced: Path, tmp_path: Path, tiny_weights: Path
) -> None:
    config = settings(tmp_path, tiny_weights, num_steps=40, checkpoint_every=0)
    plan = start_sft(overrides=config).structured_content
    assert plan is not None
    assert plan["job_id"] is None and Registry().find() == []
    expected = plan["cost"]["expected"]
    config["max_cost_usd"] = cap = expected / 2
    plan = start_sft(overrides=config).structured_content
    assert plan is not None
    with pytest.raises(JobError, match="are not those of plan"):
        start_sft(overrides={**config, "num_steps": 41}, plan_id=plan["plan_id"])
    started = start_sft(overrides=config, plan_id=plan["plan_id"]).structured_content
    assert started is not None
    with pytest.raises(JobError, match="no open plan"):
        start_sft(overrides=config, plan_id=plan["plan_id"])

    job = wait_until(started["job_id"], ended)
    assert job.state is JobState.INTERRUPTED, job.error
    assert job.cost_usd is not None and 0.5 * cap < job.cost_usd <= cap
    assert 0 < job.step < 40
    levels = [alert.level for alert in run_files.alerts(job.folder)]
    assert levels.count("warn") == 2
    with pytest.raises(JobError, match="cap must be above"):
        control.resume(Registry(), job.id, max_cost_usd=job.cost_usd / 2)

    control.resume(Registry(), job.id, max_cost_usd=10 * expected)
    job = wait_until(job.id, ended)
    assert job.state is JobState.SUCCEEDED, job.error
    assert job.step == 40
    assert Registry().spent_this_month() == pytest.approx(job.cost_usd)


def test_the_expected_cost_is_within_a_hundredth_of_the_metered_one(
    priced: Path, tmp_path: Path, tiny_weights: Path
) -> None:
    config = settings(tmp_path, tiny_weights, num_steps=None, num_epochs=2)
    plan = start_sft(overrides=config).structured_content
    assert plan is not None
    started = start_sft(overrides=config, plan_id=plan["plan_id"]).structured_content
    assert started is not None
    job = wait_until(started["job_id"], ended)
    assert job.state is JobState.SUCCEEDED, job.error
    assert read_usage(job.folder) == Usage(**plan["cost"]["usage"])
    assert job.cost_usd == pytest.approx(plan["cost"]["expected"], rel=0.01)
    assert read_usage(job.folder).train == plan["tokens_to_train"]


def test_the_monthly_cap_stops_a_job_without_a_cap_of_its_own(
    priced: Path, tmp_path: Path, tiny_weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ML_RESEARCHER_MONTHLY_CAP_USD", "0.01")
    config = settings(tmp_path, tiny_weights, num_steps=200, val_file=None)
    plan = start_sft(overrides=config).structured_content
    assert plan is not None
    started = start_sft(overrides=config, plan_id=plan["plan_id"]).structured_content
    assert started is not None
    job = wait_until(started["job_id"], ended)
    assert job.state is JobState.INTERRUPTED
    assert job.step < 200
    assert any("all jobs of this month" in alert.message for alert in run_files.alerts(job.folder))
