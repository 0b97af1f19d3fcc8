"""A data file that does harm, through every door: `check_dataset`, `validate_only` and a job."""

import json
from pathlib import Path
from typing import Any

import hostile_rows
import pytest
import yaml
from hostile_rows import CANARY
from job_helpers import ended, start_rl, tiny_rl, wait_until
from tool_calls import call

from sota_ml_researcher.jobs.states import JobState
from sota_ml_researcher.rewards.sandbox.modes import isolation

pytestmark = pytest.mark.skipif(isolation().mode is None, reason="no isolation here")
# Tests that come to no verdict take their time: not all of them are needed here.
NAMES = (
    "environment",
    "replaces the scorer",
    "loops",
    "exits",
    "floods",
    "forks",
    "writes outside",
    "reads the home folder",
)
# Each hostile row stands before an honest one, whose own solution passes whatever came before it.
FAIL = [2 * i + 1 for i, name in enumerate(NAMES) if name in (*hostile_rows.NO_VERDICT, "environment")]


@pytest.fixture
def target(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("TINKER_API_KEY", "ANTHROPIC_API_KEY", "HF_TOKEN"):
        monkeypatch.setenv(name, CANARY)
    folder = tmp_path / "open"
    folder.mkdir()
    folder.chmod(0o777)
    (folder / "secret.txt").write_text(CANARY)
    return folder


def config(folder: Path, target: Path, model: Path) -> dict[str, Any]:
    every = hostile_rows.rows(target)
    path = hostile_rows.write(folder / "rows.jsonl", {name: every[name] for name in NAMES})
    rewards = [{"type": "code", "timeout_s": 1.0}, {"type": "length", "target_tokens": 2, "weight": 0.5}]
    changes = {"train_file": str(path), "val_file": None, "rewards": rewards, "group_size": 2, "batch_size": 8}
    return tiny_rl(
        folder, model, **{**changes, "num_steps": 2, "checkpoint_every": 0, "eval_every": 0, "keep_rollouts": 99}
    )


def test_a_hostile_data_file_does_nothing_when_it_is_checked_or_planned(
    tmp_path: Path, target: Path, tiny_weights: Path
) -> None:
    given = config(tmp_path, target, tiny_weights)
    file = tmp_path / "rl.yaml"
    file.write_text(yaml.safe_dump(json.loads(json.dumps(given))))
    failed, text, content = call("check_dataset", train_file=given["train_file"], reward_config=str(file))
    assert not failed, text
    assert hostile_rows.traces_outside(target) == []
    assert CANARY not in text + json.dumps(content)
    assert content["report"]["references_checked"] == 2 * len(NAMES)
    assert content["report"]["references_failed"] == FAIL
    failed, text, content = call("start_grpo", config=str(file), validate_only=True)
    assert not failed, text
    assert hostile_rows.traces_outside(target) == []
    assert CANARY not in text + json.dumps(content)


@pytest.mark.usefixtures("shared_engine")
def test_a_hostile_data_file_does_nothing_in_a_job_and_its_honest_rows_are_scored(
    tmp_path: Path, target: Path, tiny_weights: Path
) -> None:
    given = config(tmp_path, target, tiny_weights)
    job = wait_until(start_rl(None, **given, force=True).id, ended)
    assert job.state is JobState.SUCCEEDED, job.error
    assert hostile_rows.traces_outside(target) == []
    kept = [path.read_text(errors="replace") for path in job.folder.rglob("*") if path.is_file()]
    assert not [text for text in kept if CANARY in text]
    # In the worker, the rows' own solutions made all the tests run.
    report = json.loads((job.folder / "reward_check.json").read_text())
    assert report["references_failed"] == FAIL
    rollouts = [json.loads(line) for line in (job.folder / "rollouts.jsonl").read_text().splitlines()]
    # The tiny model cannot write the program: a score would be another row's doing.
    assert len(rollouts) == 2 * 8 * 2
    assert {rollout["parts"]["code"] for rollout in rollouts if rollout["line"] % 2 == 0} == {0.0}


def test_where_no_sandbox_works_the_file_is_refused_before_anything_runs(
    tmp_path: Path, target: Path, tiny_weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sota_ml_researcher.rewards.sandbox import modes

    monkeypatch.setattr(modes, "isolation", lambda: modes.Isolation(None, "tried for a test"))
    given = config(tmp_path, target, tiny_weights)
    file = tmp_path / "rl.yaml"
    file.write_text(yaml.safe_dump(json.loads(json.dumps(given))))
    for tool, arguments in (
        ("check_dataset", {"train_file": given["train_file"], "reward_config": str(file)}),
        ("start_grpo", {"config": str(file), "validate_only": True}),
    ):
        failed, text, _ = call(tool, **arguments)
        assert failed
        assert "code cannot be isolated on this machine (tried for a test)" in text
        assert "allow_unsandboxed: true, and the data file itself runs as you" in text
    Path(given["train_file"]).write_text(json.dumps({"prompt": "double", "tests": hostile_rows.HONEST}) + "\n")
    changes = {"allow_unsandboxed": True}
    failed, text, content = call("start_grpo", config=str(file), overrides=changes, validate_only=True)
    assert not failed, text
    assert any("the data file itself runs as you" in warning for warning in content["warnings"])
