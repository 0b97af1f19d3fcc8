from pathlib import Path

import pytest
import yaml
from job_helpers import cancelled, curve, ended, logged, resumed, settings, start, wait_until

from sota_ml_researcher.core.errors import DataError, StorageError
from sota_ml_researcher.jobs import control, run_files
from sota_ml_researcher.jobs.registry import Registry
from sota_ml_researcher.jobs.states import JobState
from sota_ml_researcher.training.sft.config import load_sft_settings
from sota_ml_researcher.training.sft.plan import plan_sft


@pytest.mark.usefixtures("shared_engine")
def test_a_job_trains_keeps_its_best_and_can_be_cancelled_and_resumed(tmp_path: Path, tiny_weights: Path) -> None:
    config = settings(tmp_path, tiny_weights, num_steps=100, eval_every=30)
    whole = start(**config)
    cut = start(**config)  # waits: the embedded engine takes one job at a time
    assert Registry().get(cut.id).state is JobState.QUEUED

    whole = wait_until(whole.id, ended)
    assert whole.state is JobState.SUCCEEDED, whole.error
    losses = curve(whole)
    assert sorted(losses) == list(range(101))
    assert losses[99]["train_mean_nll"] < losses[0]["train_mean_nll"] * 0.8
    counted = logged(whole, "num_loss_tokens", "num_tokens")[0]
    assert 16 < counted["num_loss_tokens"] < counted["num_tokens"]  # a batch has 16 rows
    validated = {step: metrics["test/nll"] for step, metrics in losses.items() if "test/nll" in metrics}
    assert sorted(validated) == [0, 30, 60, 90, 100]
    result = run_files.result(whole.folder)
    assert result is not None
    assert result.final_checkpoint and result.final_checkpoint.paths[1].endswith("/sampler_weights/final")
    assert result.best_checkpoint and result.best_checkpoint.step == min(validated, key=lambda step: validated[step])
    # What the job says of them in the end is what it recorded when it saved them.
    saved = run_files.checkpoints(whole.folder)
    assert result.final_checkpoint in saved and result.best_checkpoint in saved

    cut = cancelled(cut, after=6, of=100)
    assert run_files.checkpoints(cut.folder)[-1].name == f"stopped-{cut.step:06d}"
    assert curve(resumed(cut)) == losses


def test_the_plan_derives_what_was_left_out_and_names_the_rules(tmp_path: Path, tiny_weights: Path) -> None:
    config = settings(tmp_path, tiny_weights)
    for key in ("num_steps", "batch_size", "learning_rate", "checkpoint_every", "eval_every"):
        del config[key]
    plan = plan_sft(load_sft_settings(None, config))
    shown = plan.settings.config
    assert shown.max_seq_len == 512
    assert None not in (shown.batch_size, shown.learning_rate, shown.num_epochs, shown.eval_every)
    assert plan.settings.origins["learning_rate"].rule == "lora.lr.exponent.qwen"
    assert plan.total_steps == -(-120 // (shown.batch_size or 0)) * (shown.num_epochs or 0)


def test_a_run_folder_explains_itself(tmp_path: Path, tiny_weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = start(**settings(tmp_path, tiny_weights, num_steps=2))
    control.cancel(Registry(), job.id, hard=True)
    config = yaml.safe_load((job.folder / run_files.CONFIG).read_text())
    assert config["lora_rank"] == 4
    environment = yaml.safe_load((job.folder / run_files.ENVIRONMENT).read_text())
    assert len(environment["data"][config["train_file"]]["sha256"]) == 64
    assert environment["packages"]["tinker"]


def test_bad_data_is_refused_before_anything_starts(tmp_path: Path, tiny_weights: Path) -> None:
    config = settings(tmp_path, tiny_weights)
    lines = Path(config["train_file"]).read_text().splitlines()
    lines[16] = "{broken"
    Path(config["train_file"]).write_text("\n".join(lines))
    with pytest.raises(DataError, match=r"train\.jsonl:17: not JSON"):
        start(**config)
    assert Registry().find() == []


def test_an_output_folder_that_is_a_file_is_refused(tmp_path: Path, tiny_weights: Path) -> None:
    (tmp_path / "out").write_text("")
    with pytest.raises(StorageError, match="a file, and a folder is needed"):
        start(**settings(tmp_path, tiny_weights, output_dir=str(tmp_path / "out")))
    assert Registry().find() == []


def test_a_full_disk_leaves_a_failed_job_that_says_so(
    tmp_path: Path, tiny_weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, content: str) -> None:
        raise StorageError("the disk is full", where=str(path))

    monkeypatch.setattr("sota_ml_researcher.jobs.create.write_atomically", full)
    with pytest.raises(StorageError, match="the disk is full"):
        start(**settings(tmp_path, tiny_weights))
    (job,) = Registry().find()
    assert job.state is JobState.FAILED
    assert "the disk is full" in job.error
