"""What a person sees at a terminal of a job and its checkpoints."""

from pathlib import Path

import pytest
from job_helpers import ended, settings, start, start_dpo, wait_until

from sota_ml_researcher.jobs import run_files
from sota_ml_researcher.server import terminal

pytestmark = pytest.mark.usefixtures("shared_engine")


def test_a_job_is_shown_with_the_metrics_of_its_method(
    tmp_path: Path, tiny_weights: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    job = wait_until(start_dpo(tmp_path, tiny_weights, num_steps=2, eval_every=0).id, ended)
    assert terminal.show_job(job.id) == 0
    shown = capsys.readouterr().out
    assert "dpo_loss" in shown and "margin" in shown
    assert "train_mean_nll" not in shown


def test_checkpoints_are_listed_and_all_but_the_latest_and_the_best_are_deleted(
    tmp_path: Path, tiny_weights: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    job = wait_until(start(**settings(tmp_path, tiny_weights, num_steps=7, checkpoint_every=3)).id, ended)
    saved = run_files.checkpoints(job.folder)
    kept = {path for checkpoint in saved if checkpoint.best or checkpoint.name == "final" for path in checkpoint.paths}
    others = {path for checkpoint in saved for path in checkpoint.paths} - kept

    def listed() -> set[str]:
        assert terminal.list_checkpoints("embedded", None) == 0
        shown = capsys.readouterr().out
        assert "$0 per month" in shown
        return {path for path in kept | others if path in shown}

    assert len(others) == 4 and listed() == kept | others
    for really in (False, True):
        assert terminal.delete_checkpoints("embedded", None, paths=None, keep_best=job.id, really=really) == 0
        assert ("4 checkpoints would be deleted" in capsys.readouterr().out) is not really
        assert listed() == (kept if really else kept | others)
