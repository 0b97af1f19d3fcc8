"""RLAIF with judges behind services, which here are on loopback and answer as the real ones do."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from loopback_judges import MODEL, Asked, Judges
from tool_calls import call

from sota_ml_researcher.core.errors import BackendError, ConfigError
from sota_ml_researcher.core.files import read_json_lines
from sota_ml_researcher.jobs.registry import Registry
from sota_ml_researcher.jobs.states import ACTIVE, JobState
from sota_ml_researcher.judges import anthropic_judge
from sota_ml_researcher.judges.journal import JUDGMENTS
from sota_ml_researcher.judges.judge_catalog import price_of
from sota_ml_researcher.rewards.judge_scorer import ServiceJudge, check_service_judges
from sota_ml_researcher.rewards.problems import Problem
from sota_ml_researcher.rewards.reward_config import RewardPart
from sota_ml_researcher.rewards.scorers import Response, Score
from sota_ml_researcher.templates.catalog import template_path
from sota_ml_researcher.training.rl.config import load_rl_settings

RUBRIC = "Is the word in small letters?"


def small_letters(asked: Asked) -> dict[str, Any]:
    return {"reason": "looked", "quality": (10 if asked.a.islower() else 2, None)}


@pytest.fixture
def judges(judges: Judges) -> Judges:
    judges.answer = small_letters
    return judges


def part(**changes: Any) -> RewardPart:
    return RewardPart.model_validate({"type": "judge", "rubric": RUBRIC, "judge_model": MODEL, **changes})


def problem(line: int = 3) -> Problem:
    return Problem(line, ({"role": "user", "content": f"say w{line}"},), {"answer": "w"})


def asked(folder: Path, reward: RewardPart, *texts: str, line: int = 3) -> tuple[list[Score], float]:
    """The scores of some responses, and what the judge has cost by then."""
    costs = [0.0]

    async def run() -> list[Score]:
        judge = ServiceJudge(reward, folder, costs.append)
        try:
            return await judge.score_group(problem(line), [Response(text, 3) for text in texts])
        finally:
            await judge.close()

    return asyncio.run(run()), costs[-1]


@pytest.mark.parametrize(
    "reward",
    [part(), part(judge_model="openai:local-judge", judge_price={"input": 1.0, "output": 5.0})],
    ids=["anthropic", "openai"],
)
def test_a_response_is_scored_paid_once_and_never_asked_again(
    tmp_path: Path, judges: Judges, reward: RewardPart
) -> None:
    scores, cost = asked(tmp_path, reward, "abc", "ABC", "abc", "ABC")
    assert [score.reward for score in scores] == [1.0, 0.2, 1.0, 0.2]
    assert not any(score.failed for score in scores)
    assert sum(judges.answered.values()) == 2
    price = price_of(MODEL) if reward.judge_price is None else None
    each = price.cost(700, 90) if price else (700 * 1.0 + 90 * 5.0) / 1e6
    assert cost == pytest.approx(2 * each)
    again, total = asked(tmp_path, reward, "ABC", "new")
    assert [score.reward for score in again] == [0.2, 1.0]
    assert sum(judges.answered.values()) == 3
    assert total == pytest.approx(3 * each)


def test_two_rewards_with_one_judge_count_each_call_once(tmp_path: Path, judges: Judges) -> None:
    rewards = part(), part(rubric="Is it short?")
    first = sum(asked(tmp_path, reward, "abc", "ABC")[1] for reward in rewards)
    again = sum(asked(tmp_path, reward, "abc")[1] for reward in rewards)
    price = price_of(MODEL)
    assert price is not None and sum(judges.answered.values()) == 4
    assert [first, again] == pytest.approx([4 * price.cost(700, 90)] * 2)


@pytest.mark.parametrize("model", [MODEL, "openai:local-judge"])
@pytest.mark.parametrize(
    ("status", "message"),
    [
        (401, r"the key was refused \(401\). Check (ANTHROPIC|OPENAI)_API_KEY"),
        (402, r"billing is blocked \(402\). Top up"),
        (403, r"this key may not do that \(403\). Check what (ANTHROPIC|OPENAI)_API_KEY is allowed to do"),
    ],
)
def test_a_refusal_says_whether_key_credit_or_permission_is_missing(
    tmp_path: Path, judges: Judges, model: str, status: int, message: str
) -> None:
    judges.faults, judges.fault_statuses = 1.0, (status,)
    with pytest.raises(BackendError, match=message):
        asked(tmp_path, part(judge_model=model), "abc")


def test_the_judge_sees_the_rubric_the_prompt_the_answer_and_the_reference(tmp_path: Path, judges: Judges) -> None:
    asked(tmp_path, part(), "abc")
    body = json.dumps(judges.bodies[0])
    assert all(text in body for text in (RUBRIC, "say w3", "abc"))
    tool = judges.bodies[0]["tools"][0]["input_schema"]
    assert "quality" in json.dumps(tool)


def test_a_response_without_a_verdict_has_no_score(tmp_path: Path, judges: Judges) -> None:
    judges.answer = lambda asked: None if asked.a == "bad" else small_letters(asked)
    scores, _ = asked(tmp_path, part(), "abc", "bad")
    assert [score.failed for score in scores] == [False, True]
    assert scores[1].note == "line 3: judge: refused"


def test_a_service_that_is_down_stops_the_job_instead_of_scoring_nothing(
    tmp_path: Path, judges: Judges, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(anthropic_judge, "MAX_RETRIES", 0)
    judges.faults = 1.0
    with pytest.raises(BackendError, match=r"20 calls of claude-haiku-5-5 in a row have failed, .*status (429|529)"):
        asked(tmp_path, part(), *(f"text {n}" for n in range(24)))
    # What failed for a time is asked again once the service is back.
    judges.faults = 0.0
    scores, _ = asked(tmp_path, part(), "text 1")
    assert [score.failed for score in scores] == [False]


@pytest.mark.parametrize(
    ("changes", "environment", "message"),
    [
        ({}, {"ANTHROPIC_API_KEY": "sk-ant-wrong-secret"}, r"the key was refused \(401\)"),
        ({"judge_model": "claude-haiku-9-9"}, {}, "claude-haiku-9-9"),
        ({"judge_model": "openai:nobody"}, {}, "the endpoint has no model 'nobody'"),
    ],
)
def test_a_judge_that_cannot_be_asked_is_found_before_the_job(
    judges: Judges, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], environment: dict[str, str], message: str
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises((BackendError, ConfigError), match=message) as error:
        asyncio.run(check_service_judges([part(**changes)]))
    assert "secret" not in str(error.value)


def test_probabilities_cannot_be_had_from_a_service() -> None:
    with pytest.raises(ValueError, match="yes_no reads probabilities, which claude-haiku-5-5 does not"):
        part(judge_style="yes_no")
    assert part().style == "score"
    assert part(judge_model=None).style == "yes_no"
    assert part(judge_model=None, rubric="Good prose.").style == "score"


@pytest.mark.parametrize(
    ("model", "changes", "message"),
    [
        ("claud-haiku", {}, "claud-haiku: no such model"),
        (
            "demo-judge",
            {"base_model": "Qwen/Qwen3-8B", "backend": "tinker"},
            "the judge demo-judge is a folder on this machine, and backend tinker cannot see it",
        ),
    ],
)
def test_a_judge_that_cannot_be_there_stops_the_plan(model: str, changes: dict[str, Any], message: str) -> None:
    failed, text, _ = call("start_grpo", config=str(template_path("rlaif")), overrides={**with_judge(model), **changes})
    assert failed
    assert message in text


# Through the tools


def with_judge(model: str) -> dict[str, Any]:
    """The RLAIF template with nothing but another judge."""
    rewards = load_rl_settings(template_path("rlaif"), None).config.model_dump(mode="json")["rewards"]
    return {"rewards": [{**r, "judge_model": model} if r["type"] == "judge" else r for r in rewards]}


def test_the_template_with_claude_as_judge_shows_its_cost_and_waits_for_a_yes(judges: Judges) -> None:
    failed, text, content = call("start_grpo", config=str(template_path("rlaif")), overrides=with_judge(MODEL))
    assert not failed, text
    assert content["state"] == "planned"
    assert content["plan_id"]
    assert content["cost"]["expected"] > 0
    assert "judge calls at most" in text
    assert judges.answered.total() == 0


def test_a_judge_that_may_cost_money_is_not_asked_without_a_plan(tmp_path: Path, judges: Judges) -> None:
    config = tmp_path / "rl.yaml"
    text = template_path("rlaif").read_text()
    assert "judge_model: demo-judge" in text
    config.write_text(text.replace("judge_model: demo-judge", f"judge_model: {MODEL}"))
    failed, text, _ = call("check_dataset", train_file="demo:say_train", reward_config=str(config), base_model="demo")
    assert failed
    assert f"the judge {MODEL} may cost money, so that only a job asks it. start_grpo shows its cost first" in text
    assert judges.answered.total() == 0


def test_a_wrong_key_is_told_with_the_plan(judges: Judges, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANTHROPIC_API_KEY", "sk-ant-wrong-secret")
    failed, text, _ = call("start_grpo", config=str(template_path("rlaif")), overrides=with_judge(MODEL))
    assert failed
    assert "the key was refused (401)" in text
    assert "secret" not in text


@pytest.mark.usefixtures("shared_engine")
def test_a_job_learns_from_claude_and_counts_what_it_paid(tmp_path: Path, tiny_weights: Path, judges: Judges) -> None:
    judges.answer = lambda asked: None if "q" in asked.a else small_letters(asked)
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps({"prompt": f"say {n}"}) + "\n" for n in range(8)))
    rewards = [{"type": "judge", "rubric": RUBRIC, "judge_model": MODEL}, {"type": "length", "target_tokens": 2}]
    overrides = {"base_model": str(tiny_weights), "train_file": str(data), "rewards": rewards, "kl_coef": 0.01}
    overrides |= {"group_size": 4, "batch_size": 2, "max_response_tokens": 4, "num_steps": 2, "lora_rank": 4}
    overrides |= {"max_cost_usd": 5.0}
    failed, text, content = call("start_grpo", overrides=overrides)
    assert not failed, text
    failed, text, content = call("start_grpo", overrides=overrides, plan_id=content["plan_id"])
    assert not failed, text
    shown: dict[str, Any] = {"state": "queued"}
    while shown["state"] in {state.value for state in ACTIVE}:
        _, text, shown = call("wait_for_job", job_id=content["job_id"], timeout_s=20)
    assert shown["state"] == "succeeded", text
    job = Registry().get(content["job_id"])
    assert job.state is JobState.SUCCEEDED
    judged = list(read_json_lines(job.folder / JUDGMENTS))
    assert len({j["key"] for j in judged}) == len(judged) > 8
    price = price_of(MODEL)
    assert price is not None and job.cost_usd is not None
    usage = [j["usage"] for j in judged]
    paid = sum(price.cost(u["input_tokens"], u["output_tokens"]) for u in usage)
    assert job.cost_usd == pytest.approx(paid)
    records = [r for r in read_json_lines(job.folder / "metrics.jsonl") if "reward/mean" in r]
    assert {"reward/judge", "reward/length", "reward/failed"} <= set(records[0])
    rollouts = list(read_json_lines(job.folder / "rollouts.jsonl"))
    assert all((r["reward"] is None) == ("q" in r["response"]) for r in rollouts)
