from pathlib import Path
from typing import Any

import pytest
from generation_helpers import WRITER, documents, planned, prompts_file

from sota_ml_researcher.core.errors import ConfigError, DataError, ModelError, StorageError

TEACHER = {"recipe": "distillation", "model": "demo", "teacher_prompt": "T"}


@pytest.fixture
def prompts(tmp_path: Path) -> str:
    return prompts_file(tmp_path, 10)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"teacher_prompt": None}, "needs teacher_prompt or teacher_prompt_file, and neither is given"),
        ({"teacher_prompt": " "}, "teacher_prompt is empty"),
        ({"teacher_prompt_file": "x.md"}, "and both are given"),
        ({"documents": "x"}, "documents belongs to recipe questions, and this one is distillation"),
        ({"samples_per_prompt": 3}, "samples_per_prompt belongs to recipe preferences"),
        ({"recipe": "preferences", "teacher_prompt": None}, "recipe preferences needs judge_model"),
        ({"recipe": "questions", "teacher_prompt": None}, "prompts belongs to recipe distillation and rewrites"),
        ({"recipe": "rewrites", "teacher_prompt": None, "answers": "source"}, "operations: .paraphrase. only"),
        ({"recipe": "magic"}, "recipe"),
        ({"rubric": "r.yaml"}, "rubric belongs to a judge, and judge_model names none"),
        ({"judge_model": "assistant"}, "an assistant does not judge made rows"),
        ({"judge_model": "gpt"}, "'gpt' names no judge"),
        ({"model": "check:exact"}, "'check:exact' judges and does not write"),
        ({"model": "openai:"}, "'openai:' names no model"),
        ({"model": WRITER, "renderer": "qwen3"}, "renderer belongs to a model of a backend"),
        ({"model_price": {"input": 1, "output": 1}}, "belong to a service, and model names none"),
        ({"model": "claude-opus-4-7", "temperature": 0.5}, "claude-opus-4-7 takes no temperature"),
        ({"gate": ["cut"]}, "the rule empty cannot be left out"),
        ({"backend": "cluster"}, "cluster needs base_url"),
        ({"base_model": "Qwen/Qwen3-8B"}, "model is demo, of the base model demo"),
        ({"max_cost_usd": 5}, "neither the model nor the judge has a price, so a cap means nothing"),
        ({"model": "openai:x", "model_base_url": "https://example.com", "max_cost_usd": 5}, "the price of openai:x is"),
        ({"model": WRITER, "max_cost_usd": 1e-4}, "one row could cost .*, and the cap is .0.0001: none would be"),
        ({"max_response_tokens": 4000}, "an answer does not fit"),
        ({"api_key": "sk"}, "this key is no longer used. Remove it: keys come from the environment"),
        ({"num_sample": 1}, "Did you mean 'num_samples'"),
    ],
)
def test_what_cannot_work_is_said_in_a_sentence(prompts: str, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        planned(**{**TEACHER, "prompts": prompts, **changes})


def test_an_unknown_model_and_a_missing_file_are_refused(prompts: str) -> None:
    with pytest.raises(ModelError, match="demmo: no such model"):
        planned(**{**TEACHER, "prompts": prompts, "model": "demmo"})
    with pytest.raises(ConfigError, match="prompts: no such file"):
        planned(**TEACHER, prompts="/nowhere.jsonl")
    with pytest.raises(ConfigError, match="teacher_prompt_file: no such file"):
        planned(**{**TEACHER, "prompts": prompts, "teacher_prompt": None, "teacher_prompt_file": "nowhere.md"})


def test_nothing_that_exists_is_overwritten(prompts: str, tmp_path: Path) -> None:
    config = {**TEACHER, "prompts": prompts}
    (tmp_path / "there.jsonl").write_text("mine\n")
    with pytest.raises(StorageError, match=r"there\.jsonl exists, and is not overwritten"):
        planned(**config, output_file=str(tmp_path / "there.jsonl"))
    with pytest.raises(StorageError, match="is a file, and a folder is needed"):
        planned(**config, output_file=str(tmp_path / "there.jsonl" / "new.jsonl"))
    with pytest.raises(ConfigError, match=r"rows are written as .jsonl, not '.csv'"):
        planned(**config, output_file=str(tmp_path / "new.csv"))
    assert (tmp_path / "there.jsonl").read_text() == "mine\n"


def test_a_row_without_a_prompt_or_an_answer_is_named(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text('{"prompt": "a", "answer": "b"}\n{"text": "x"}\n')
    with pytest.raises(DataError, match=r"rows\.jsonl:2: no prompt in this row"):
        planned(**TEACHER, prompts=str(file))
    file.write_text('{"prompt": "a", "answer": "b"}\n{"prompt": "x"}\n')
    ranked = {"recipe": "preferences", "model": "demo", "prompts": str(file), "judge_model": "check:exact"}
    half = tmp_path / "half.jsonl"
    half.write_text('{"prompt": "a \\ud83d b"}\n')
    with pytest.raises(DataError, match=r"half\.jsonl:1: "):
        planned(**TEACHER, prompts=str(half))
    for config in (ranked, {**TEACHER, "prompts": str(file), "judge_model": "check:exact"}):
        with pytest.raises(DataError, match=r"rows\.jsonl:2: check:exact needs a reference, and this row has none"):
            planned(**config)
    rewrites = {"recipe": "rewrites", "model": "demo", "prompts": str(file)}
    with pytest.raises(ConfigError, match="check:exact compares with references, and made prompts have none"):
        planned(**rewrites, judge_model="check:exact")
    with pytest.raises(ConfigError, match="answers: none leaves no answer to judge: leave judge_model out"):
        planned(**rewrites, answers="none", judge_model="tinker:demo")
    with pytest.raises(DataError, match=r"rows\.jsonl:2: this row has no answer, and a canary's good answer"):
        planned(recipe="eval_kit", model="demo", prompts=str(file))


def test_a_passage_that_is_too_long_for_the_model_says_how_to_shorten_it(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("Some words about it. " * 200)
    asked = {"recipe": "questions", "model": "demo", "documents": str(tmp_path), "max_response_tokens": 300}
    with pytest.raises(ConfigError, match=r"Lower passage_chars \(now 2,000\)"):
        planned(**asked)
    with pytest.raises(ConfigError, match="Use a model with a longer context"):
        planned(**asked, passage_chars=200)


def test_a_plan_counts_answers_verdicts_and_dollars(prompts: str, tmp_path: Path) -> None:
    ranked = {"recipe": "preferences", "model": WRITER, "prompts": prompts, "judge_model": "claude-sonnet-5-5"}
    plan = planned(**ranked, samples_per_prompt=3, num_samples=5)
    assert (plan.tasks, plan.answers, plan.judge_calls) == (5, 15, 30)
    assert plan.bills_elsewhere
    low, expected, high = plan.cost.low, plan.cost.expected, plan.cost.high
    assert low is not None and expected is not None and high is not None
    assert 0 < low < expected < high
    assert any("takes no seed" in warning for warning in plan.warnings)
    assert any("judge.self_preference" in warning for warning in plan.warnings)
    asked = planned(recipe="questions", model=WRITER, documents=documents(tmp_path, 2), questions_per_passage=4)
    assert (asked.tasks, asked.answers, asked.judge_calls) == (2, 2, 0)
    assert [file.name for file in asked.files] == ["0.md", "1.md"]


def test_sampling_on_a_backend_costs_what_the_table_says(
    prompts: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = tmp_path / "prices.yaml"
    table.write_text("backends: {embedded: {models: {demo: {prefill: 1000, sample: 2000}, other: {train: 1}}}}\n")
    monkeypatch.setenv("ML_RESEARCHER_PRICES", str(table))
    plan = planned(**TEACHER, prompts=prompts, max_cost_usd=5, max_response_tokens=100)
    usage = plan.cost.usage
    assert usage.sample == 10 * 100 / 2
    assert plan.cost.expected == pytest.approx(usage.prefill * 1e-3 + usage.sample * 2e-3)
    assert (plan.sampled_models, plan.bills_elsewhere) == (("demo",), False)
    ranked = {"recipe": "preferences", "model": "demo", "prompts": prompts, "max_response_tokens": 100}
    pairs = planned(**ranked, judge_model="check:exact", samples_per_prompt=2)
    assert pairs.cost.usage.sample == 2 * usage.sample  # of two samples each, and the prompt is told once
    table.write_text("backends: {embedded: {models: {other: {train: 1}}}}\n")
    unknown = planned(**TEACHER, prompts=prompts)
    assert unknown.cost.expected is None
    assert "no price of demo here (add it to prices.yaml)" in unknown.cost.note


def test_the_same_settings_draw_the_same_rows(prompts: str) -> None:
    plans = [planned(**TEACHER, prompts=prompts, num_samples=4, seed=seed) for seed in (0, 0, 1)]
    assert [plan.tasks for plan in plans] == [4, 4, 4]
    assert plans[0].settings.config.run_name == "distillation-prompts"
    assert plans[0].settings.config == plans[1].settings.config
