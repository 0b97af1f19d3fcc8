"""What `check_dataset` and the plans say of a file, through a real client."""

import json
from pathlib import Path
from typing import Any

import pytest
from tool_calls import call


def row(prompt: str, completion: str = "a") -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": prompt}, {"role": "assistant", "content": completion}]}


def write(path: Path, *rows: Any) -> str:
    path.write_text("".join(json.dumps(each) + "\n" for each in rows))
    return str(path)


BAD = {"messages": [{"role": "user", "content": "no answer"}]}


def test_a_model_that_was_given_is_not_asked_for(tmp_path: Path) -> None:
    file = write(tmp_path / "t.jsonl", BAD)
    _, text, _ = call("check_dataset", train_file=file, base_model="demo")
    assert "No tokens were counted: no row can be used." in text
    _, text, _ = call("check_dataset", train_file=file)
    assert "No tokens were counted: give base_model for that." in text
    assert "None" not in text


@pytest.mark.parametrize("argument", [{"max_seq_len": 64}, {"renderer": "qwen3"}])
def test_an_argument_that_counts_tokens_wants_a_model(tmp_path: Path, argument: dict[str, Any]) -> None:
    failed, text, _ = call("check_dataset", train_file=write(tmp_path / "t.jsonl", row("q")), **argument)
    assert failed
    assert "base_model is missing" in text


def test_no_argument_is_dropped_when_a_reward_is_tried(tmp_path: Path) -> None:
    from sota_ml_researcher.templates.catalog import template_path

    asked = {"train_file": "demo:say_train", "reward_config": str(template_path("grpo"))}
    for argument in (
        {"max_seq_len": 64},
        {"renderer": "qwen3"},
        {"val_file": "demo:say_val"},
        {"benchmark_files": ["x"]},
    ):
        failed, text, _ = call("check_dataset", **asked, **argument)
        assert failed
        assert next(iter(argument)) in text


@pytest.mark.parametrize("kind", ["supervised", "preferences"])
def test_a_length_above_the_models_context_is_refused_before_the_start(tmp_path: Path, kind: str) -> None:
    pair = {"prompt": "q", "chosen": "a", "rejected": "b"}
    tool, rows = ("start_sft", [row("q")]) if kind == "supervised" else ("start_dpo", [pair])
    file = write(tmp_path / "t.jsonl", *rows)
    problem = "100,000 is above the"
    _, text, content = call("check_dataset", train_file=file, base_model="demo", max_seq_len=100_000)
    assert problem in text
    assert content["report"]["ok"] is False
    settings = {"base_model": "demo", "train_file": file, "max_seq_len": 100_000}
    failed, text, _ = call(tool, overrides=settings, validate_only=True)
    assert failed
    assert problem in text


def test_a_plan_says_how_many_rows_it_leaves_out(tmp_path: Path) -> None:
    file = write(tmp_path / "t.jsonl", *[row(f"reverse a{c}", f"{c}a") for c in "ghij"], *[BAD] * 200)
    settings = {"base_model": "demo", "train_file": file, "skip_bad_rows": True, "num_steps": 3, "batch_size": 2}
    failed, text, _ = call("start_sft", overrides=settings, validate_only=True)
    assert not failed, text
    assert "200 of 204 rows cannot be used and will be left out, the first: " in text
    assert "t.jsonl:5" in text


def test_a_plan_names_what_its_rows_lose(tmp_path: Path) -> None:
    rows = [{**row(f"q{i}"), "loss_mask": [1]} for i in range(4)]
    settings = {"base_model": "demo", "train_file": write(tmp_path / "t.jsonl", *rows), "num_steps": 2}
    failed, text, _ = call("start_sft", overrides=settings, validate_only=True)
    assert not failed, text
    assert '"loss_mask" is not read (4 rows, first line 1)' in text


def test_a_benchmark_in_the_rows_and_a_rule_for_each_finding_are_named(tmp_path: Path) -> None:
    question = "A farmer has seventeen sheep and all but nine of them run away. How many sheep are left?"
    bench = write(tmp_path / "bench.jsonl", {"question": question, "answer": "9"})
    file = write(tmp_path / "t.jsonl", row("count"), row(question, "nan"))
    failed, text, content = call("check_dataset", train_file=file, benchmark_files=[bench])
    assert not failed, text
    assert "bench.jsonl: 1 of its 1 items are in the rows." in text
    assert "(data.leakage.ngram)" in text
    assert "(data.template_echo)" in text
    assert content["report"]["benchmarks"][0]["found"] == 1
    failed, text, _ = call("check_dataset", train_file=file, benchmark_files=[str(tmp_path / "absent.jsonl")])
    assert failed
    assert "benchmark_files[0]: no such file" in text


def test_findings_of_pairs_have_their_rows_and_rules(tmp_path: Path) -> None:
    pair = {"prompt": "Which?", "chosen": "This one.", "rejected": "That one."}
    leak = {**pair, "prompt": "Mail maria.lopez@uni-lisboa.pt"}
    _, text, content = call("check_dataset", train_file=write(tmp_path / "t.jsonl", pair, pair, leak))
    found = {each["kind"]: (each["lines"], each["rule"]) for each in content["report"]["findings"]}
    assert found == {"repeated_pair": ([2], "data.duplicates"), "email_address": ([3], "data.personal")}
    assert "lopez" not in text
