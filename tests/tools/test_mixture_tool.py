"""Several sources in one run, through a real client: what the plan shows of each, what is refused, and a resume."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from job_helpers import curve, ended, resumed, wait_until
from tool_calls import call

from sota_ml_researcher.backends.estimate import CostEstimate
from sota_ml_researcher.backends.meter import Usage
from sota_ml_researcher.core.files import sha256_of
from sota_ml_researcher.data.mixtures import Mix
from sota_ml_researcher.jobs import control, run_files
from sota_ml_researcher.jobs.registry import Registry
from sota_ml_researcher.jobs.states import JobState
from sota_ml_researcher.training.plan import contributions
from sota_ml_researcher.training.sft.config import load_sft_settings


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture
def task(tmp_path: Path) -> str:
    return write(tmp_path / "task.jsonl", [{"question": f"q{i}", "answer": f"a{i}"} for i in range(90)])


@pytest.fixture
def chat(tmp_path: Path) -> str:
    turns = [{"role": "user", "content": "hi {}"}, {"role": "assistant", "content": "hello {}"}]
    rows = [{"messages": json.loads(json.dumps(turns).replace("{}", str(i)))} for i in range(400)]
    return write(tmp_path / "chat.jsonl", rows)


def mixed(task: str, chat: str, **amounts: tuple[Any, Any]) -> list[dict[str, Any]]:
    first, second = ({key: pair[i] for key, pair in amounts.items()} for i in range(2))
    return [
        {"path": task, "columns": {"prompt": "question", "completion": "answer"}, **first},
        {"path": chat, "name": "general chat", **second},
    ]


def planned(tool: str = "start_sft", **overrides: Any) -> tuple[str, dict[str, Any]]:
    failed, text, content = call(tool, overrides={"base_model": "demo", **overrides}, validate_only=True)
    assert not failed, text
    return text, content


def refused(tool: str = "start_sft", **overrides: Any) -> str:
    failed, text, _ = call(tool, overrides={"base_model": "demo", **overrides}, validate_only=True)
    assert failed, text
    return text


def test_the_plan_shows_what_each_source_gives(task: str, chat: str) -> None:
    files = mixed(task, chat, weight=(0.9, 0.1))
    text, content = planned(train_file=files, num_steps=50, batch_size=10)
    first, second = content["details"]["sources"]
    assert (first["name"], second["name"]) == ("task", "general chat")
    assert first["rows_in_run"] + second["rows_in_run"] == 500
    assert first["share_of_rows"] == pytest.approx(0.9, abs=0.02)
    assert first["epochs"] == pytest.approx(first["rows_in_run"] / 90, abs=1e-4)
    assert content["rows"] == 100
    assert first["tokens"] + second["tokens"] == pytest.approx(content["tokens_to_train"], rel=0.05)
    assert f"Rows of the run: task {first['rows_in_run']}" in text
    assert "general chat" in text


def test_the_cost_is_divided_by_tokens(task: str, chat: str) -> None:
    config = load_sft_settings(None, {"base_model": "demo", "train_file": [task, chat]}).config
    cost = CostEstimate(1.0, 6.0, 9.0, Usage(), "2026-11-01", None, "")
    shown = contributions(config, Mix((10, 5), (10, 5)), [100, 200], rows=15, cost=cost)
    assert [source["cost_usd"] for source in shown] == [2.0, 4.0]
    free = contributions(config, Mix((10, 5), (10, 5)), [100, 200], rows=15, cost=replace(cost, expected=None))
    assert [source["cost_usd"] for source in free] == [None, None]


def test_whole_sources_are_counted_exactly(task: str, chat: str) -> None:
    files = mixed(task, chat, epochs=(2, 1))
    _, content = planned(train_file=files, num_epochs=1, batch_size=10)
    assert content["rows"] == 2 * 90 + 400
    assert content["details"]["counts_exact"]
    assert sum(source["tokens"] for source in content["details"]["sources"]) == content["tokens_to_train"]
    assert [source["epochs"] for source in content["details"]["sources"]] == [2, 1]


def test_a_list_of_one_is_the_file_itself(task: str) -> None:
    columns = {"prompt": "question", "completion": "answer"}
    _, one = planned(train_file=task, columns=columns)
    _, listed = planned(train_file=[task], columns=columns)
    same = ("rows", "total_steps", "tokens_to_train", "capacity_ratio", "cost")
    assert [one[key] for key in same] == [listed[key] for key in same]


def test_pairs_and_prompts_are_mixed_too(tmp_path: Path) -> None:
    pairs = [
        write(tmp_path / f"p{i}.jsonl", [{"prompt": f"{i} {j}", "chosen": "a", "rejected": "b"} for j in range(20)])
        for i in range(2)
    ]
    files = [{"path": path, "weight": i + 1} for i, path in enumerate(pairs)]
    _, content = planned("start_dpo", train_file=files, num_steps=4, batch_size=5)
    assert [source["rows_in_run"] for source in content["details"]["sources"]] == [
        round(source["epochs"] * 20) for source in content["details"]["sources"]
    ]
    prompts = [
        write(tmp_path / f"r{i}.jsonl", [{"prompt": f"{i} {j}", "answer": str(j)} for j in range(9)]) for i in range(2)
    ]
    _, content = planned(
        "start_grpo", train_file=prompts, reward_type="exact", max_response_tokens=8, num_steps=6, batch_size=3
    )
    assert content["rows"] == 18
    assert [source["rows_in_run"] for source in content["details"]["sources"]] == [9, 9]


def test_bad_sources_are_refused_by_name(tmp_path: Path, task: str, chat: str) -> None:
    (tmp_path / "empty.jsonl").write_text("")
    bad = write(tmp_path / "bad.jsonl", [{"prompt": "q", "completion": ""}] * 3)
    assert "empty.jsonl: the file is empty" in refused(train_file=[chat, str(tmp_path / "empty.jsonl")])
    for skip in (False, True):
        said = refused(train_file=[chat, bad], skip_bad_rows=skip)
        assert "bad.jsonl:1: <untrusted-data-" in said
        assert 'not one of 3 rows can be used, the first: "completion" is empty' in said
    assert "chat.jsonl is in two sources" in refused(train_file=[chat, {"path": chat, "name": "again"}])
    assert "no such file: nowhere.jsonl" in refused(train_file=[chat, "nowhere.jsonl"])
    assert "columns: {prompt: question, completion: answer}" in refused(train_file=[chat, task])


def test_held_out_rows_that_are_trained_are_refused(tmp_path: Path, task: str, chat: str) -> None:
    copy = tmp_path / "copy.jsonl"
    copy.write_bytes(Path(chat).read_bytes())
    for val_file in (chat, str(copy), str(tmp_path / "c*.jsonl")):
        assert "chat.jsonl is trained" in refused(train_file=mixed(task, chat), val_file=val_file)
        assert "chat.jsonl is trained" in refused(train_file=chat, val_file=val_file)


@pytest.mark.usefixtures("shared_engine")
def test_a_killed_run_sees_the_mixture_that_an_undisturbed_one_sees(task: str, chat: str, tiny_weights: Path) -> None:
    changes = {"base_model": str(tiny_weights), "train_file": mixed(task, chat, weight=(0.7, 0.3)), "num_steps": 40}
    changes |= {"batch_size": 6, "lora_rank": 4, "learning_rate": 1e-2, "checkpoint_every": 4, "seed": 5}
    jobs: list[str] = []
    for _ in range(2):
        failed, text, content = call("start_sft", overrides=changes)
        assert not failed, text
        jobs.append(content["job_id"])
    whole = wait_until(jobs[0], ended)
    assert whole.state is JobState.SUCCEEDED, whole.error
    wait_until(jobs[1], lambda job: job.step >= 9)
    control.cancel(Registry(), jobs[1], hard=True)
    killed = wait_until(jobs[1], ended)
    assert killed.step < 40
    assert curve(resumed(killed)) == curve(whole)
    config = yaml.safe_load((whole.folder / run_files.CONFIG).read_text())
    assert [source["name"] for source in config["train_file"]] == ["task", "general chat"]
    data = json.loads((whole.folder / run_files.ENVIRONMENT).read_text())["data"]
    assert {path: facts["sha256"] for path, facts in data.items()} == {
        path: sha256_of(Path(path)) for path in (task, chat)
    }
