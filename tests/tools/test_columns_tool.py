"""From a file with other columns to a started run, through a real client: a refusal, then the columns it names."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from job_helpers import ended, wait_until
from tool_calls import call

from sota_ml_researcher.core.files import sha256_of
from sota_ml_researcher.jobs import run_files
from sota_ml_researcher.jobs.registry import Registry

SHAPES: dict[str, tuple[str, dict[str, Any]]] = {
    "gsm8k": ("start_sft", {"question": "What is {}+1?", "answer": "It is more.\n#### {}"}),
    "sharegpt": (
        "start_sft",
        {"dialog": [{"speaker": "Customer", "text": "hi {}"}, {"speaker": "Agent", "text": "hello"}]},
    ),
    "ultrafeedback": (
        "start_dpo",
        {
            "instruction": "Say {}",
            "completions": [{"response": "{}", "overall_score": 9.0}, {"response": "no", "overall_score": 2.5}],
        },
    ),
    "math": ("start_grpo", {"problem": "{}+1?", "solution": r"\boxed{{{}}}"}),
}


def rows(row: dict[str, Any], count: int = 12) -> str:
    texts = [json.dumps(row).replace("{}", str(i)) for i in range(count)]
    return "".join(text + "\n" for text in texts)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_refusal_names_the_columns_that_then_work(tmp_path: Path, shape: str) -> None:
    tool, row = SHAPES[shape]
    file = tmp_path / "train.jsonl"
    file.write_text(rows(row))
    settings: dict[str, Any] = {"base_model": "demo", "train_file": str(file)}
    settings |= {"reward_type": "math", "max_response_tokens": 16, "force": True} if tool == "start_grpo" else {}
    failed, text, _ = call(tool, overrides=settings, validate_only=True)
    assert failed
    block = text.partition("columns: ")[2].partition("</untrusted")[0]
    columns = yaml.safe_load(block)
    failed, text, _ = call(tool, overrides={**settings, "columns": columns}, validate_only=True)
    assert not failed, text
    if tool != "start_grpo":
        failed, text, content = call("check_dataset", train_file=str(file))
        assert content["columns"] == columns
        assert block in text.replace("\\n", "\n")
        assert "Line 1 under it:\n<untrusted-data-" in text
        assert content["report"] is None
        failed, text, content = call("check_dataset", train_file=str(file), columns=columns, base_model="demo")
        assert content["report"]["usable_rows"] == 12
        assert "columns" in content["next"]


def test_hh_rlhf_needs_no_columns(tmp_path: Path) -> None:
    said = "\n\nHuman: hi {}\n\nAssistant: "
    (tmp_path / "train.jsonl").write_text(rows({"chosen": said + "hello", "rejected": said + "go away"}))
    settings = {"base_model": "demo", "train_file": str(tmp_path / "train.jsonl")}
    failed, text, _ = call("start_dpo", overrides=settings, validate_only=True)
    assert not failed, text


def test_the_capacity_of_mapped_rows_is_counted(tmp_path: Path) -> None:
    (tmp_path / "sheet.csv").write_text("Customer question;Our reply\n" + "Where?;Here.\n" * 9)
    file = str(tmp_path / "sheet.csv")
    failed, text, _ = call("validate_capacity", base_model="demo", train_file=file)
    assert failed
    assert "columns: {prompt: Customer question, completion: Our reply}" in text
    columns = {"prompt": "Customer question", "completion": "Our reply"}
    failed, text, content = call("validate_capacity", base_model="demo", train_file=file, columns=columns)
    assert not failed, text
    assert content["loss_tokens"] > 0


@pytest.mark.usefixtures("shared_engine")
def test_a_run_on_compressed_shards_keeps_its_columns_and_hashes(tmp_path: Path, tiny_weights: Path) -> None:
    shards = [tmp_path / "data" / f"part-{i}.jsonl.gz" for i in range(2)]
    shards[0].parent.mkdir()
    for shard in shards:
        shard.write_bytes(gzip.compress(rows(SHAPES["gsm8k"][1], 6).encode()))
    columns = {"prompt": "question", "completion": "answer"}
    changes = {"base_model": str(tiny_weights), "train_file": str(tmp_path / "data"), "columns": columns}
    changes |= {"num_steps": 3, "batch_size": 5, "lora_rank": 4}
    held_out = tmp_path / "val.jsonl"
    held_out.write_text(rows(SHAPES["gsm8k"][1], 3))
    failed, text, content = call("start_sft", overrides={**changes, "val_file": str(held_out)})
    assert not failed, text
    job = wait_until(content["job_id"], ended)
    assert run_files.result(job.folder) is not None, job.error
    assert Registry().get(job.id).state == "succeeded"
    config = yaml.safe_load((job.folder / run_files.CONFIG).read_text())
    assert config["columns"] == columns
    data = json.loads((job.folder / run_files.ENVIRONMENT).read_text())["data"]
    assert data[config["train_file"]]["files"] == {str(shard): sha256_of(shard) for shard in shards}
    assert list(data) == [config["train_file"], config["val_file"]]
