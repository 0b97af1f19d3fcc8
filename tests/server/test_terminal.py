"""What a person sees at a terminal of a finished job and its checkpoints."""

from pathlib import Path

import pytest
from job_helpers import ended, settings, start, start_dpo, wait_until
from terminal_calls import json_of, typed

from sota_ml_researcher.jobs import run_files
from sota_ml_researcher.server import doctor

pytestmark = pytest.mark.usefixtures("shared_engine")


def test_a_job_is_shown_with_the_metrics_of_its_method(tmp_path: Path, tiny_weights: Path) -> None:
    job = wait_until(start_dpo(tmp_path, tiny_weights, num_steps=2, eval_every=0).id, ended)
    shown = typed("jobs", job.id).stdout
    assert "dpo_loss" in shown and "margin" in shown
    assert "train_mean_nll" not in shown


def test_checkpoints_are_listed_and_all_but_the_latest_and_the_best_are_deleted(
    tmp_path: Path, tiny_weights: Path
) -> None:
    job = wait_until(start(**settings(tmp_path, tiny_weights, num_steps=7, checkpoint_every=3)).id, ended)
    saved = run_files.checkpoints(job.folder)
    kept = {path for checkpoint in saved if checkpoint.best or checkpoint.name == "final" for path in checkpoint.paths}
    others = {path for checkpoint in saved for path in checkpoint.paths} - kept

    def listed() -> set[str]:
        shown = typed("checkpoints").stdout
        assert "$0 per month" in shown
        return {line.split()[-1] for line in shown.splitlines() if f"  {job.id}  " in line}

    assert len(others) == 4 and listed() == kept | others
    assert "4 checkpoints would be deleted" in typed("checkpoints", "--keep-best", job.id).stdout
    assert listed() == kept | others
    deleted = json_of("checkpoints", "--keep-best", job.id, "--yes")
    assert (set(deleted["checkpoints"]), deleted["deleted"]) == (others, True)
    assert listed() == kept
    gone = sorted(others)[0]
    for words in ([], ["--yes"]):
        result = typed("checkpoints", "--delete", gone, *words)
        assert result.exit_code == 1 and result.stdout.startswith("0 checkpoints")
        assert result.stderr == f"ml-researcher: embedded stores no checkpoint {gone}\n"


def test_doctor_shows_the_whole_command_that_fixes_a_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command = f"uvx --from 'sota-ml-researcher[all] @ file:///{'a' * 120}.whl' ml-researcher serve"
    monkeypatch.setattr(doctor, "_CHECKS", (lambda: doctor.Check("training", False, "missing: torch", command),))
    assert doctor.run_doctor() == 1
    assert f"training: {command}\n" in capsys.readouterr().out
