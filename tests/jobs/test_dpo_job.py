"""DPO jobs end to end on the tiny model: a cancelled and resumed run equals an undisturbed one."""

from pathlib import Path

import pytest
from job_helpers import cancelled, ended, logged, resumed, start_dpo, wait_until

from sota_ml_researcher.jobs import run_files
from sota_ml_researcher.jobs.states import Job, JobState


def curve(job: Job) -> dict[int, dict[str, float]]:
    return logged(job, "dpo_loss", "accuracy", "chosen_logprob", "rejected_logprob", "test/dpo_loss", "test/accuracy")


@pytest.mark.usefixtures("shared_engine")
def test_a_dpo_job_learns_and_a_cancelled_one_goes_on_as_if_nothing_had_happened(
    tmp_path: Path, tiny_weights: Path
) -> None:
    long = {"num_steps": 100, "checkpoint_every": 20, "eval_every": 25}  # a worker looks for a cancel twice a second
    whole = wait_until(start_dpo(tmp_path, tiny_weights, **long).id, ended)
    assert whole.state is JobState.SUCCEEDED, whole.error
    losses = curve(whole)
    assert sorted(losses) == list(range(101))
    assert losses[0]["dpo_loss"] == pytest.approx(0.693147, abs=1e-6)  # ln 2: policy and reference are the same
    assert losses[0]["test/accuracy"] == 0.5
    late = [losses[step]["dpo_loss"] for step in range(80, 100)]
    assert sum(late) / len(late) < 0.6  # a single batch hangs on rounding
    result = run_files.result(whole.folder)
    assert result is not None and result.best_checkpoint is not None
    assert result.numbers["first_test/accuracy"] == 0.5
    assert str(result.best_checkpoint.sampler_path).startswith("tinker://")

    cut = cancelled(start_dpo(tmp_path, tiny_weights, **long), after=3, of=100)
    measured = (cut.folder / "reference.jsonl").read_text()
    assert curve(resumed(cut)) == losses
    assert (cut.folder / "reference.jsonl").read_text() == measured  # the reference was not measured again


@pytest.mark.slow
@pytest.mark.usefixtures("shared_engine")
@pytest.mark.parametrize("loss", ["ipo", "dpo_norm"])
def test_the_other_losses_train_too(tmp_path: Path, tiny_weights: Path, loss: str) -> None:
    job = wait_until(start_dpo(tmp_path, tiny_weights, loss=loss, beta=0.5).id, ended)
    assert job.state is JobState.SUCCEEDED, job.error
    losses = curve(job)
    assert losses[13]["dpo_loss"] < losses[0]["dpo_loss"]
