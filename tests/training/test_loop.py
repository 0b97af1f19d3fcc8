"""What the training loop does around the steps, with the embedded engine."""

from pathlib import Path
from typing import Any

import pytest
from job_helpers import ended, settings, start, wait_until

from sota_ml_researcher.jobs import run_files
from sota_ml_researcher.jobs.context import StopReason
from sota_ml_researcher.jobs.job_results import checkpoint_path
from sota_ml_researcher.jobs.states import JobState
from sota_ml_researcher.training.loop import Run


@pytest.mark.usefixtures("shared_engine")
def test_weights_of_another_chat_format_are_said_to_be_so(tmp_path: Path, tiny_weights: Path) -> None:
    config = settings(tmp_path, tiny_weights, num_steps=2, eval_every=0)
    first = wait_until(start(**config).id, ended)
    again = config | {"load_checkpoint": checkpoint_path(first, "state_path")}
    same, other = start(**again), start(**again, renderer="role_colon")
    for job, warned in ((same, False), (other, True)):
        job = wait_until(job.id, ended)
        assert job.state is JobState.SUCCEEDED, job.error
        assert any("trained with renderer chat_template" in a.message for a in run_files.alerts(job.folder)) is warned


@pytest.mark.parametrize(
    ("reason", "gives_up"), [(None, False), (StopReason.BUDGET, False), (StopReason.CANCEL, True), ("signal", True)]
)
def test_a_spent_budget_lets_the_step_under_way_finish(reason: str | None, gives_up: bool) -> None:
    class Context:
        def stop_requested(self) -> str | None:
            return reason

    context: Any = Context()
    run = Run(context, context, context, "chat_template", 1)
    assert (run.must_stop(), run.must_give_up()) == (reason is not None, gives_up)
