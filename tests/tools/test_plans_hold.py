"""What a job would refuse at its start is refused, or counted, when it is planned; nothing starts then."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
from eval_helpers import write_lines
from tool_calls import call

from sota_ml_researcher.evals.benchmark.benchmark_config import load_benchmark_settings
from sota_ml_researcher.evals.benchmark.benchmark_job import _target
from sota_ml_researcher.evals.benchmark.benchmark_plan import plan_benchmark
from sota_ml_researcher.evals.responses import read_responses
from sota_ml_researcher.evals.test_set import final_answer, load_items, unread_keys
from sota_ml_researcher.jobs.processes import start_time_of
from sota_ml_researcher.jobs.registry import Registry
from sota_ml_researcher.jobs.states import JobState

GOOD = {"prompt": "a", "completion": "b"}
PAIR = {"prompt": "a", "chosen": "b", "rejected": "c"}
LONG = "word " * 600  # more than the 512 tokens of the demo model
PROBLEM = {"prompt": "say 1", "answer": "1"}
GSM8K = {"question": "How many?", "answer": "48/2 = <<48/2=24>>24 and 1,056 more.\n#### 1,080"}


def files(folder: Path, **rows: list[dict[str, Any]]) -> dict[str, str]:
    return {key: str(write_lines(folder / f"{key}.jsonl", lines)) for key, lines in rows.items()}


def refused(tool: str, **overrides: Any) -> str:
    failed, text, _ = call(tool, overrides=overrides, validate_only=True)
    assert failed
    assert "unexpected" not in text
    assert Registry().find() == []
    return text


@pytest.mark.parametrize(
    ("tool", "train", "val", "more", "message"),
    [
        ("start_sft", [GOOD], [{"prompt": "a"}, GOOD], {}, "val_file.jsonl:1"),
        ("start_dpo", [PAIR], [PAIR, {"prompt": "a"}], {}, "val_file.jsonl:2"),
        ("start_grpo", [PROBLEM], [{"prompt": "a"}], {"reward_type": "exact"}, "val_file.jsonl:1"),
        ("start_sft", [GOOD], [GOOD], {"max_seq_len": 4096}, "max_seq_len: 4,096 is above the 512 tokens"),
        ("start_dpo", [PAIR], [PAIR], {"max_seq_len": 513}, "Set max_seq_len to 512 or less, or leave it out"),
        ("start_sft", [GOOD, {**GOOD, "prompt": LONG}], [GOOD], {}, "nothing to learn is left of this row"),
        ("start_sft", [GOOD], [{**GOOD, "prompt": LONG}, GOOD], {}, "val_file.jsonl:1"),
        (
            "start_sft",
            [GOOD],
            [GOOD, GOOD],
            {"output_dir": "/dev/null/x"},
            "/dev/null is a file, and a folder",
        ),
        ("start_sft", [GOOD], [GOOD], {"load_checkpoint": "sft-000000"}, "there is no job 'sft-000000'"),
        ("start_sft", [GOOD], [GOOD], {"renderer": "no_such"}, "no_such"),
        (
            "start_grpo",
            [PROBLEM],
            [{"prompt": LONG, "answer": "1"}],
            {"reward_type": "exact"},
            "that is more than the model's context of 512",
        ),
    ],
)
def test_training_that_cannot_start_is_no_plan(
    tmp_path: Path, tool: str, train: list[Any], val: list[Any], more: dict[str, Any], message: str
) -> None:
    assert message in refused(tool, base_model="demo", **files(tmp_path, train_file=train, val_file=val), **more)


@pytest.mark.parametrize(
    ("tool", "row", "unit", "more"),
    [
        ("start_sft", GOOD, "rows", {}),
        ("start_dpo", PAIR, "pairs", {}),
        ("start_grpo", PROBLEM, "prompts", {"reward_type": "exact", "max_response_tokens": 8}),
    ],
)
def test_the_plan_counts_the_rows_it_leaves_out(
    tmp_path: Path, tool: str, row: dict[str, Any], unit: str, more: dict[str, Any]
) -> None:
    rows = [{**row, "prompt": f"say {n}"} for n in range(4)] + [{"x": n} for n in range(200)]
    overrides = {"base_model": "demo", "skip_bad_rows": True, **files(tmp_path, train_file=rows), **more}
    failed, text, content = call(tool, overrides=overrides, validate_only=True)
    assert not failed, text
    assert content["rows"] == 4
    assert f"200 of 204 {unit} cannot be used and will be left out" in text


def test_a_benchmark_of_worked_solutions_is_warned_of_and_fits_the_context(tmp_path: Path) -> None:
    task = files(tmp_path, task=[GSM8K])["task"]
    overrides = {"finetuned_model": "demo", "task": task, "scorer": "exact"}
    failed, text, content = call("run_benchmark", overrides=overrides, validate_only=True)
    assert not failed, text
    assert text.startswith("Plan only, nothing was started.")
    assert "1 of 1 references are worked solutions that end in '#### answer'" in text
    config = content["plan"]["config"]
    assert config["max_response_tokens"] < 512
    assert "answers may have" in text
    failed, text, _ = call("run_benchmark", overrides=overrides | {"scorer": "math"}, validate_only=True)
    assert not failed, text
    assert "worked solutions" not in text
    assert "with max_response_tokens 2048 an answer does not fit" in refused(
        "run_benchmark", **overrides, max_response_tokens=2048
    )


@pytest.mark.parametrize(
    ("reference", "answer"), [(GSM8K["answer"], "1,080"), ("72", "72"), ("a #### b #### -5 ", "-5"), ("", "")]
)
def test_math_compares_with_what_stands_after_the_marks(reference: str, answer: str) -> None:
    assert final_answer(reference) == answer
    assert _target(reference, "math") == answer
    assert _target(reference, "exact") == reference


def test_prompts_of_unknown_length_are_left_half_of_the_context(tmp_path: Path) -> None:
    (tmp_path / "task.py").write_text("")
    plan = plan_benchmark(load_benchmark_settings(None, {"finetuned_model": "demo", "task": str(tmp_path / "task.py")}))
    assert plan.settings.config.max_response_tokens == 256


def test_an_evaluation_is_held_to_the_context_too(tmp_path: Path) -> None:
    test_set = files(tmp_path, test_set=[{"prompt": LONG, "reference": "x"}])["test_set"]
    arms = {"test_set": test_set, "baseline_model": "demo", "finetuned_model": "demo", "judge_model": "check:exact"}
    assert "Leave the prompt out or shorten it" in refused("run_judge_eval", **arms)


def test_keys_that_are_not_read_are_named_with_their_counts(tmp_path: Path) -> None:
    rows = [
        {"prompt": "P", "messages": [{"role": "user", "content": f"M {n}"}], "reference": "x", "level": 3}
        for n in range(2)
    ]
    path = write_lines(tmp_path / "t.jsonl", [*rows, {"prompt": "Q", "reference": "x", "answer": "y", "system": 3}])
    notes = unread_keys(path)
    assert "2 of 3 rows have both messages and prompt: messages is used, prompt is not read" in notes
    assert "1 of 3 rows have both reference and answer: reference is used, answer is not read" in notes
    assert any("level (2)" in note and "system (1)" in note for note in notes)
    assert load_items(path, None, 0)[0].prompt_text == "M 0"


def test_an_instruction_is_judged_with_its_input(tmp_path: Path) -> None:
    rows = [{"instruction": "Add.", "input": "1 and 2", "output": "3"}, {"instruction": "Hello", "output": "x"}]
    path = write_lines(tmp_path / "t.jsonl", rows)
    assert [(i.prompt_text, i.reference) for i in load_items(path, None, 0)] == [
        ("Add.\n\n1 and 2", "3"),
        ("Hello", "x"),
    ]
    assert unread_keys(path) == []


@pytest.mark.parametrize("key", ["instruction", "prompt", "question", "query", "problem", "anything"])
def test_responses_in_another_order_are_matched_by_prompt(tmp_path: Path, key: str) -> None:
    items = load_items(write_lines(tmp_path / "t.jsonl", [{"prompt": f"word {n}"} for n in range(9)]), None, 0)
    rows = [{key: f"word {n}", "output": f"answer {n}", "generator": "m"} for n in reversed(range(9))]
    path = tmp_path / "r.json"
    path.write_text(json.dumps(rows))
    assert [r.text for r in read_responses(path, items)] == [f"answer {n}" for n in range(9)]


def test_a_prompt_counts_more_than_an_id_of_another_numbering(tmp_path: Path) -> None:
    items = load_items(write_lines(tmp_path / "t.jsonl", [{"prompt": f"word {n}"} for n in range(3)]), None, 0)
    path = write_lines(tmp_path / "r.jsonl", [{"id": n, "prompt": f"word {n}", "response": str(n)} for n in range(3)])
    assert [r.text for r in read_responses(path, items)] == ["0", "1", "2"]


def test_a_system_turn_of_the_test_set_hides_no_match(tmp_path: Path) -> None:
    items = load_items(write_lines(tmp_path / "t.jsonl", [{"prompt": "a", "system": "s"}, {"prompt": "b"}]), None, 0)
    path = write_lines(tmp_path / "r.jsonl", [{"prompt": "b", "response": "B"}, {"prompt": "a", "response": "A"}])
    assert [r.text for r in read_responses(path, items)] == ["A", "B"]


def test_a_queued_job_says_for_what_it_waits_and_a_parked_one_holds_no_place(tmp_path: Path) -> None:
    registry = Registry()
    made = [
        registry.create(kind="judge_eval", name="a", backend="embedded", base_model="demo", runs=tmp_path)
        for _ in range(2)
    ]
    first, second = (job.id for job in made)
    for job_id in (first, second):
        registry.set_process(job_id, os.getpid(), start_time_of(os.getpid()))
    lives = {"limit": 1, "alive": lambda pid, started: True}
    assert registry.claim(first, os.getpid(), **lives)
    assert not registry.claim(second, os.getpid(), **lives)
    _, text, content = call("get_job", job_id=second)
    assert f"a place on backend embedded (1 at a time, ML_RESEARCHER_MAX_JOBS_EMBEDDED), after {first}" in text
    assert content["waiting"]
    assert "No sign of life" not in text
    (made[0].folder / "parked").write_text("")
    _, text, _ = call("wait_for_job", job_id=first, timeout_s=50)
    assert f"It waits for the assistant's verdicts: submit_verdicts(job_id='{first}')." in text
    assert "No sign of life" not in text
    assert registry.claim(second, os.getpid(), **lives)


@pytest.mark.parametrize(("cause", "resumable"), [("ConfigError", False), ("RequestRefusedError", False), ("", True)])
def test_resume_is_offered_where_it_can_help(tmp_path: Path, cause: str, resumable: bool) -> None:
    registry = Registry()
    job = registry.create(kind="benchmark", name="a", backend="embedded", base_model="demo", runs=tmp_path)
    write_lines(job.folder / "alerts.jsonl", [{"time": 1, "level": "error", "step": 0, "message": "m", "cause": cause}])
    registry.move(job.id, [JobState.QUEUED], JobState.FAILED, error="m")
    following = call("get_job", job_id=job.id)[2]["next"]
    assert ("start again with run_benchmark" in following) != resumable
    assert (f"resume_job(job_id='{job.id}') goes on" in following) == resumable
