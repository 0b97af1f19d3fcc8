"""Rows that a model behind a service writes, against services on loopback that answer as the real ones do."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from eval_helpers import Context, sums, write_lines
from generation_helpers import (
    WRITER,
    asks_questions,
    documents,
    make,
    planned,
    prompts_file,
    reasons,
    rows,
    text_shown,
)
from job_helpers import ended, resumed, wait_until
from loopback_judges import Asked, Judges
from tool_calls import call

from sota_ml_researcher.core.errors import BackendError, DataError, StorageError
from sota_ml_researcher.data.formats import to_messages
from sota_ml_researcher.data.preference_rows import to_pair
from sota_ml_researcher.evals.controls import load_canaries
from sota_ml_researcher.generation.generation_plan import check_services
from sota_ml_researcher.jobs import control
from sota_ml_researcher.jobs.context import StopReason
from sota_ml_researcher.jobs.registry import Registry
from sota_ml_researcher.judges.rubric import load_rubric


def says(text: str) -> Any:
    return lambda _: text


def test_a_teacher_is_told_its_prompt_and_the_row_is_not(tmp_path: Path, judges: Judges) -> None:
    judges.write = lambda messages: f"Arr, {messages[-1]['content']}" if messages[0]["role"] == "system" else "no"
    told = "Speak like a pirate.\nAlways."
    outcome, context = make(
        tmp_path, recipe="distillation", model=WRITER, prompts=prompts_file(tmp_path, 3), teacher_prompt=told
    )
    assert outcome.finished
    assert all(body["system"][0]["text"] == told for body in judges.bodies)
    made = rows(context)
    assert [row["messages"][-1]["content"] for row in made] == [f"Arr, {n}+{n}=" for n in range(3)]
    assert "pirate" not in json.dumps(made)
    assert made[1]["provenance"] == {
        "recipe": "distillation",
        "model": WRITER,
        "seed": made[1]["provenance"]["seed"],
        "sample": 0,
        "tries": 1,
        "served_model": f"{WRITER}-20261007",
        "sampling": {"max_tokens": 512, "temperature": None},
        "prompt_hash": made[0]["provenance"]["prompt_hash"],
        "source": {"file": "prompts.jsonl", "line": 2},
    }
    assert str(outcome.summary["next"]).startswith("start_sft(overrides={'train_file': '")


def test_a_rows_own_system_turn_comes_after_the_teachers_prompt_and_stays(tmp_path: Path, judges: Judges) -> None:
    judges.write = says("Yes, and here is why.")
    prompts = prompts_file(tmp_path, 1, system="Be brief.")
    _, context = make(tmp_path, recipe="distillation", model="openai:local-judge", prompts=prompts, teacher_prompt="T")
    assert judges.bodies[0]["messages"][0] == {"role": "system", "content": "T\n\nBe brief."}
    assert rows(context)[0]["messages"][0] == {"role": "system", "content": "Be brief."}


def test_only_the_new_answer_of_a_conversation_is_trained(tmp_path: Path, judges: Judges) -> None:
    judges.write = says("It is seven.")
    turns = [("user", "Hi."), ("assistant", "Hello."), ("user", "3+4?"), ("assistant", "8")]
    messages = [{"role": role, "content": content} for role, content in turns]
    prompts = str(write_lines(tmp_path / "chats.jsonl", [{"messages": messages}]))
    _, context = make(tmp_path, recipe="distillation", model=WRITER, prompts=prompts, teacher_prompt="T")
    assert [(m["content"], m.get("trained", True)) for m in to_messages(rows(context)[0])][1:] == [
        ("Hello.", False),
        ("3+4?", True),
        ("It is seven.", True),
    ]
    assert [set(message) for message in judges.bodies[0]["messages"]] == [{"role", "content"}] * 3


def test_thinking_is_left_out_unless_it_is_wanted(tmp_path: Path, judges: Judges) -> None:
    judges.write = says("<think>Hm.</think>\n\nFour.")
    config = {"recipe": "distillation", "model": WRITER, "prompts": prompts_file(tmp_path, 1), "teacher_prompt": "T"}
    _, without = make(tmp_path, Context(tmp_path / "a"), **config)
    _, with_it = make(tmp_path, Context(tmp_path / "b"), **config, keep_thinking=True)
    assert rows(without)[0]["messages"][-1]["content"] == "Four."
    assert rows(with_it)[0]["messages"][-1]["content"] == "<think>Hm.</think>\n\nFour."


def test_a_row_that_spells_a_control_token_is_left_out(tmp_path: Path, judges: Judges) -> None:
    judges.write = lambda messages: "Four.<|im_end|>" if "2+2" in messages[-1]["content"] else "It is <b>fine</b>."
    config = {"recipe": "distillation", "model": WRITER, "prompts": prompts_file(tmp_path, 3), "teacher_prompt": "T"}
    _, context = make(tmp_path, **config)
    assert reasons(context) == ["control"]


def test_questions_rest_on_a_place_in_their_document(tmp_path: Path, judges: Judges) -> None:
    judges.write = asks_questions
    folder = documents(tmp_path, 3)
    outcome, context = make(tmp_path, recipe="questions", model=WRITER, documents=folder)
    assert outcome.finished
    for row in rows(context):
        made = row["provenance"]
        start, end = made["quote"]
        text = (Path(folder) / made["source"]["document"]).read_text()
        assert text[start:end].startswith("The river number")
        assert to_messages(row)[-1]["content"].endswith("km long.")


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        ({"question": "How long is it?", "answer": "700 km", "quote": "The river number 0"}, "not_grounded"),
        ({"question": "How long is it?", "answer": "000 km", "quote": "as everybody knows"}, "no_quote"),
        ({"question": "How long is it?", "answer": "How long is it?", "quote": "The river number 0"}, "copy"),
    ],
)
def test_a_question_whose_answer_does_not_rest_on_its_passage_is_left_out(
    tmp_path: Path, judges: Judges, said: dict[str, str], reason: str
) -> None:
    judges.write = says(json.dumps({"questions": [said]}))
    with pytest.raises(DataError, match=f"no row was made of 1 sources: {reason} 1"):
        make(tmp_path, recipe="questions", model=WRITER, documents=documents(tmp_path, 1))
    assert rows(Context(tmp_path / "run"), "gated.jsonl")[0]["row"]["messages"][0]["content"] == "How long is it?"


def test_an_answer_that_cannot_be_read_is_asked_for_again_and_never_invented(tmp_path: Path, judges: Judges) -> None:
    tried: dict[str, int] = {}

    def unsure(messages: list[dict[str, Any]]) -> str:
        text = text_shown(messages, "text")
        tried[text] = tried.get(text, 0) + 1
        return asks_questions(messages) if "number 0" in text and tried[text] == 2 else '{"questions": "none"}'

    judges.write = unsure
    outcome, context = make(tmp_path, recipe="questions", model=WRITER, documents=documents(tmp_path, 2), tries=2)
    assert sorted(tried.values()) == [2, 2]
    assert [row["provenance"]["tries"] for row in rows(context)] == [2]
    assert reasons(context) == ["unreadable"]
    assert (outcome.summary["unreadable_answers"], outcome.summary["answers"]) == (3, 4)


def test_a_model_that_never_gives_what_is_asked_is_left_early(tmp_path: Path, judges: Judges) -> None:
    judges.write = says("I like trains.")
    config = {"recipe": "questions", "model": WRITER, "documents": documents(tmp_path, 60), "tries": 2}
    with pytest.raises(BackendError, match=r"gave no answer that can be read on the first 2[0-9] sources, in 2 tries"):
        make(tmp_path, **config, parallel_requests=4)
    assert sum(judges.answered.values()) < 60


def rewriting(messages: list[dict[str, Any]]) -> str:
    text = text_shown(messages, "request")
    return (
        json.dumps({"request": f"Say with reasons: {text}"}) if text else f"Since it is so: {messages[-1]['content']}"
    )


def test_halves_of_surrogate_pairs_reach_no_file(tmp_path: Path, judges: Judges) -> None:
    judges.write = lambda _: 'Sure: {"request": "Say it \\ud83d with joy"}'
    config = {"recipe": "rewrites", "model": WRITER, "prompts": prompts_file(tmp_path, 1), "operations": ["deepen"]}
    _, context = make(tmp_path, **config, answers="none")
    assert rows(context)[0]["prompt"] == "Say it ? with joy"


def test_a_request_that_the_service_refuses_is_left_out_and_the_rest_goes_on(tmp_path: Path, judges: Judges) -> None:
    judges.write = lambda messages: f"It is {messages[-1]['content']}"
    judges.faults, judges.fault_statuses = 0.5, (400,)
    config = {"recipe": "distillation", "model": WRITER, "prompts": prompts_file(tmp_path, 20), "teacher_prompt": "T"}
    outcome, context = make(tmp_path, **config)
    assert outcome.finished
    assert set(reasons(context)) == {"not_answered"}
    assert len(rows(context)) + len(reasons(context)) == 20


def test_a_service_that_refuses_every_request_is_left_early(tmp_path: Path, judges: Judges) -> None:
    judges.faults, judges.fault_statuses = 1.0, (400,)
    config = {"recipe": "distillation", "model": WRITER, "prompts": prompts_file(tmp_path, 60), "teacher_prompt": "T"}
    with pytest.raises(BackendError, match=r"none of the first 2\d requests was answered: .*try later"):
        make(tmp_path, **config, parallel_requests=2)


def test_each_operation_makes_a_row_with_a_new_answer(tmp_path: Path, judges: Judges) -> None:
    judges.write = lambda messages: rewriting(messages).replace("reasons", messages[-1]["content"][:14])
    operations = ("deepen", "mutate")
    outcome, context = make(
        tmp_path, recipe="rewrites", model=WRITER, prompts=prompts_file(tmp_path, 2), operations=operations
    )
    made = rows(context) + rows(context, "gated.jsonl")
    assert sorted(row["provenance"]["operation"] for row in made) == ["deepen", "deepen", "mutate", "mutate"]
    assert outcome.summary["answers"] == 8
    assert all(to_messages(row)[-1]["content"].startswith("Since it is so: Say with") for row in rows(context))


def test_a_paraphrase_keeps_the_answer_of_its_row(tmp_path: Path, judges: Judges) -> None:
    judges.write = rewriting
    prompts = prompts_file(tmp_path, 1)
    _, context = make(
        tmp_path, recipe="rewrites", model=WRITER, prompts=prompts, operations=["paraphrase"], answers="source"
    )
    assert [m["content"] for m in rows(context)[0]["messages"]] == ["Say with reasons: 0+0=", "0"]
    assert sum(judges.answered.values()) == 1


def test_a_rewrite_that_changes_nothing_is_a_copy(tmp_path: Path, judges: Judges) -> None:
    judges.write = lambda messages: json.dumps({"request": text_shown(messages, "request").upper() + " "})
    with pytest.raises(DataError, match="no row was made of 4 sources: copy 4"):
        make(tmp_path, recipe="rewrites", model=WRITER, prompts=prompts_file(tmp_path, 1))


def longer_wins(asked: Asked) -> dict[str, Any]:
    a, b = len(asked.a), len(asked.b or "")
    return {"reason": "", "verdict": "tie" if a == b else "A" if a > b else "B", "quality": (5, 1)}


def test_preferences_are_pairs_that_dpo_reads(tmp_path: Path, judges: Judges) -> None:
    judges.write, judges.answer = lambda _: "very " * (sum(judges.answered.values()) % 5) + "good", longer_wins
    outcome, context = make(
        tmp_path,
        recipe="preferences",
        model="openai:local-judge",
        prompts=prompts_file(tmp_path, 4),
        judge_model=WRITER,
        samples_per_prompt=3,
        parallel_requests=1,
    )
    pairs = [to_pair(row) for row in rows(context)]
    assert len(pairs) > 1
    assert all(len(pair.chosen_text) > len(pair.rejected_text) for pair in pairs)
    assert str(outcome.summary["next"]).startswith("start_dpo(")
    assert any("the chosen answer is the longer one in 100%" in message for _, message in context.alerts)


def test_a_judge_that_prefers_a_place_makes_no_pair(tmp_path: Path, judges: Judges) -> None:
    judges.write = lambda _: "very " * sum(judges.answered.values()) + "good"
    judges.answer = lambda asked: {"reason": "", "verdict": "A", "quality": (5, 1)}
    config = {"recipe": "preferences", "model": "openai:local-judge", "prompts": prompts_file(tmp_path, 2)}
    with pytest.raises(DataError, match="no row was made of 2 sources: judge_tie 2"):
        make(tmp_path, **config, judge_model=WRITER, samples_per_prompt=2)


def test_a_model_that_always_answers_the_same_makes_no_pair(tmp_path: Path, judges: Judges) -> None:
    judges.write = says("good")
    config = {"recipe": "preferences", "model": "openai:local-judge", "prompts": prompts_file(tmp_path, 2)}
    with pytest.raises(DataError, match="same_samples 2"):
        make(tmp_path, **config, judge_model=WRITER, samples_per_prompt=2)


def test_a_judge_that_never_gives_a_verdict_ends_the_job_early(tmp_path: Path, judges: Judges) -> None:
    judges.write = lambda messages: f"It is {messages[-1]['content']}"
    judges.answer = lambda _: "I would rather not."
    config = {"recipe": "distillation", "model": "openai:local-judge", "teacher_prompt": "T", "judge_model": WRITER}
    with pytest.raises(BackendError, match=r"gave no readable verdict on its first 2[0-9] questions"):
        make(tmp_path, **config, prompts=prompts_file(tmp_path, 80), parallel_requests=2)


def test_rows_below_the_threshold_are_left_out_with_their_score(tmp_path: Path, judges: Judges) -> None:
    judges.write = lambda messages: f"It is {messages[-1]['content']}"
    judges.answer = lambda asked: {"reason": "", "quality": (5 if "1" in asked.request else 2, None)}
    _, context = make(
        tmp_path,
        recipe="distillation",
        model="openai:local-judge",
        teacher_prompt="T",
        prompts=prompts_file(tmp_path, 3),
        judge_model=WRITER,
    )
    assert [row["provenance"]["score"] for row in rows(context)] == [1.0]
    left_out = rows(context, "gated.jsonl")
    assert [(row["reason"], row["provenance"]["score"]) for row in left_out] == [("judge_below_threshold", 0.25)] * 2


def test_an_eval_kit_is_what_run_judge_eval_reads(tmp_path: Path, judges: Judges) -> None:
    criterion = {"name": "right", "question": "Is the sum right?", "weight": 2, "anchors": {"1": "no", "5": "yes"}}

    def propose(messages: list[dict[str, Any]]) -> str:
        if text_shown(messages, "rows"):
            return json.dumps({"instructions": "Sums.", "criteria": [criterion]})
        return json.dumps({"mistake": "one too many", "answer": f"{text_shown(messages, 'answer')}1 it is"})

    judges.write = propose
    outcome, context = make(
        tmp_path, recipe="eval_kit", model=WRITER, prompts=prompts_file(tmp_path, 9), num_canaries=4
    )
    rubric = load_rubric(context.folder / "rubric.yaml")
    canaries = load_canaries(context.folder / "canaries.jsonl")
    assert [c.name for c in rubric.criteria] == ["right"]
    assert len(canaries) == 6
    assert {row["provenance"]["canary"] for row in rows(context, "canaries.jsonl")} == {
        "wrong",
        "injection",
        "other_answer",
    }
    assert all(c.good == str(c.item.reference) and c.good != c.bad for c in canaries)
    assert "run_judge_eval(overrides={'rubric': '" in str(outcome.summary["next"])
    kit = {name: str(context.folder / f"{name}.{end}") for name, end in (("rubric", "yaml"), ("canaries", "jsonl"))}
    failed, text, _ = call("run_judge_eval", overrides=sums(tmp_path, 3) | {"judge_model": WRITER} | kit)
    assert not failed, text
    assert "21 judge calls" in text  # 6 pairs, 6 canaries twice, 3 controls


def test_a_wrong_answer_that_holds_the_right_one_is_no_canary(tmp_path: Path, judges: Judges) -> None:
    judges.write = lambda messages: json.dumps({"answer": f"not {text_shown(messages, 'answer')}, I think"})
    config = {
        "recipe": "eval_kit",
        "model": WRITER,
        "prompts": prompts_file(tmp_path, 3),
        "num_canaries": 2,
        "tries": 1,
    }
    outcome, context = make(tmp_path, **config)
    assert sorted(reasons(context)) == ["holds_good_answer", "holds_good_answer", "unreadable"]
    assert outcome.summary["files"] == [str(context.folder / "canaries.jsonl")]


PRICED = {"model_price": {"input": 0.0, "output": 1000.0}, "max_response_tokens": 100}


def test_a_cap_holds_whatever_is_under_way_and_a_resume_pays_for_nothing_twice(tmp_path: Path, judges: Judges) -> None:
    judges.write = lambda messages: f"It is {messages[-1]['content']}"
    judges.delay_s = 0.02
    config = {"recipe": "distillation", "model": WRITER, "prompts": prompts_file(tmp_path, 12), "teacher_prompt": "T"}
    # An answer takes 90 tokens of 100, $0.09.
    outcome, context = make(tmp_path, **config, **PRICED, max_cost_usd=0.5)
    assert (outcome.finished, outcome.stopped_for) == (False, StopReason.BUDGET)
    assert context.judges_usd == pytest.approx(0.45)
    assert sum(judges.answered.values()) == 5
    assert any("could cost $0.1 and pass the cap of $0.5 ($0.45 spent)" in message for _, message in context.alerts)
    file = context.folder / "config.yaml"
    file.write_text(file.read_text().replace("max_cost_usd: 0.5", "max_cost_usd: 5"))
    outcome, context = make(tmp_path)
    assert outcome.finished
    assert (sum(judges.answered.values()), max(judges.answered.values())) == (12, 1)
    assert len(rows(context)) == 12


def test_what_a_service_failed_on_is_asked_again_by_a_resume_and_nothing_else(tmp_path: Path, judges: Judges) -> None:
    judges.write = lambda messages: f"It is {messages[-1]['content']}"
    config = {"recipe": "distillation", "model": WRITER, "prompts": prompts_file(tmp_path, 6), "teacher_prompt": "T"}
    judges.faults, judges.fault_statuses, judges.retry_after_s = 1.0, (529,), 0.01
    outcome, context = make(tmp_path, **config)  # the service is overloaded three times for each, and then answers
    assert outcome.finished
    assert (len(rows(context)), max(judges.answered.values())) == (6, 1)
    stopped = Context(tmp_path / "second", stop_at=2)
    outcome, _ = make(tmp_path, stopped, **config, seed=1, parallel_requests=1)
    assert (outcome.finished, outcome.stopped_for, outcome.step) == (False, "cancel", 2)
    outcome, resumed = make(tmp_path, Context(tmp_path / "second"))
    assert outcome.finished
    assert len(rows(resumed)) == 6


def test_a_second_end_of_the_same_job_finds_its_own_file_and_no_other(tmp_path: Path, judges: Judges) -> None:
    judges.write = lambda messages: f"It is {messages[-1]['content']}"
    config = {"recipe": "distillation", "model": WRITER, "prompts": prompts_file(tmp_path, 3), "teacher_prompt": "T"}
    file = tmp_path / "made.jsonl"
    make(tmp_path, **config, output_file=str(file))
    written = file.read_bytes()
    outcome, _ = make(tmp_path)  # as after a kill between the rows and the result
    assert outcome.finished
    file.write_text("another's\n")
    with pytest.raises(StorageError, match="has come to exist, and is not overwritten"):
        make(tmp_path)
    assert file.read_text() == "another's\n"
    assert (tmp_path / "run" / "rows.jsonl").read_bytes() == written
    assert max(judges.answered.values()) == 1


def test_services_are_looked_up_before_anything_is_spent(
    tmp_path: Path, judges: Judges, monkeypatch: pytest.MonkeyPatch
) -> None:
    import anyio

    config = {"recipe": "distillation", "prompts": prompts_file(tmp_path, 1), "teacher_prompt": "T"}
    for model, message in (("claude-haiku-5-4", "model: Anthropic has no model"), ("openai:x", "no model 'x'")):
        with pytest.raises(Exception, match=message):
            anyio.run(check_services, planned(**config, model=model).settings.config)
    monkeypatch.delenv("ANTHROPIC_API_KEY")
    with pytest.raises(BackendError, match="model: ANTHROPIC_API_KEY is not set"):
        anyio.run(check_services, planned(**config, model=WRITER).settings.config)
    assert not judges.answered


def test_a_worker_killed_half_way_leaves_rows_that_a_resume_completes(tmp_path: Path, judges: Judges) -> None:
    judges.write, judges.answer = asks_questions, lambda _: {"reason": "", "quality": (5, None)}
    judges.delay_s, under_way = 0.1, 3
    config = {"recipe": "questions", "model": WRITER, "documents": documents(tmp_path, 40), "judge_model": WRITER}
    config |= {"parallel_requests": under_way, "max_cost_usd": 50.0}
    _, text, offered = call("start_generation", overrides=config)
    assert "Cost: $" in text
    _, text, content = call("start_generation", overrides=config, plan_id=offered["plan_id"])
    wait_until(content["job_id"], lambda job: job.step >= 5)
    control.cancel(Registry(), content["job_id"], hard=True)
    killed = wait_until(content["job_id"], ended)
    assert killed.step < 40
    done = resumed(killed)
    # Only what was under way at the kill is asked again.
    assert sum(count - 1 for count in judges.answered.values()) <= under_way
    assert max(judges.answered.values()) <= 2
    context = Context(done.folder)
    made = [row["provenance"]["source"]["document"] for row in rows(context)]
    assert len(made) + len(reasons(context)) == 40
    assert len(set(made)) == len(made)
    assert done.cost_usd == pytest.approx(json.loads((done.folder / "result.json").read_text())["spent_usd"], rel=0.01)
