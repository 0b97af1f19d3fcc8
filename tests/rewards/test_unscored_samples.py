"""Samples that could not be scored: left out of advantages and means, counted, and too many of them stop the job."""

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from sota_ml_researcher.core.errors import ConfigError
from sota_ml_researcher.core.files import read_json_lines
from sota_ml_researcher.rewards.model_scorers import Judge
from sota_ml_researcher.rewards.probes import Sampled, check_reward, require_usable
from sota_ml_researcher.rewards.problems import Problem
from sota_ml_researcher.rewards.reward_config import RewardPart
from sota_ml_researcher.rewards.scorers import Response, Score, Scorers
from sota_ml_researcher.training.rl.advantages import UNSCORED, scored_advantages
from sota_ml_researcher.training.rl.rollout_log import RewardFailedError, RolloutLog, sample_metrics
from sota_ml_researcher.training.rl.rollouts import PlayedGroup

ROW = Problem(40, ({"role": "user", "content": "say x"},), {"answer": "x"})
BROKEN = Score(0.0, note="line 40: judge: refused", failed=True)


def group(rewards: list[float], unscored: set[int]) -> Any:
    metrics = [{UNSCORED: float(i in unscored)} for i in range(len(rewards))]
    return SimpleNamespace(get_total_rewards=lambda: rewards, metrics_G=metrics)


@pytest.mark.parametrize("kind", ["mean", "grpo"])
def test_an_unscored_sample_has_no_part_in_the_advantages(kind: Any) -> None:
    whole, part = group([1.0, 0.0, 0.5], set()), group([1.0, 0.0, 0.5, 1.0, 1.0], {3, 4})
    expected, found = scored_advantages(whole, kind), scored_advantages(part, kind)
    assert found.tolist() == pytest.approx([*expected.tolist(), 0.0, 0.0])


def test_a_group_with_one_score_or_none_teaches_nothing() -> None:
    for unscored in ({1, 2}, {0, 1, 2}):
        found = scored_advantages(group([1.0, 1.0, 1.0], unscored), "grpo")
        assert found.tolist() == [0.0, 0.0, 0.0]


def played(*scores: Score) -> PlayedGroup:
    return PlayedGroup(ROW, [], [Response(letter, 1) for letter in "ab"], scores)


def test_means_are_of_what_was_scored_and_rollouts_say_the_rest(tmp_path: Path) -> None:
    told: list[str] = []
    groups = [played(Score(1.0, {"judge": 1.0}), BROKEN), played(BROKEN, BROKEN)]
    RolloutLog(tmp_path, 8, told.append).note(0, groups)
    metrics = sample_metrics(groups)
    assert (metrics["reward/mean"], metrics["reward/failed"], metrics["reward/judge"]) == (1.0, 0.75, 1.0)
    assert told == ["line 40: judge: refused"] * 3
    assert [r["reward"] for r in read_json_lines(tmp_path / "rollouts.jsonl")] == [1.0, None, None, None]


def test_a_few_failures_are_borne_and_too_many_stop_the_job(tmp_path: Path) -> None:
    log = RolloutLog(tmp_path, 0, lambda note: None, batch=4)
    good, bad = played(Score(1.0), Score(0.0)), played(BROKEN, BROKEN)
    for step in range(4):
        log.note(step, [good, bad, good, bad])
    with pytest.raises(RewardFailedError, match=r"62% of the samples of the last 8 prompts could .*judge: refused"):
        log.note(4, [bad])


def test_a_reward_that_fails_throughout_the_dry_run_is_refused() -> None:
    async def run() -> Any:
        parts = [RewardPart.model_validate({"type": "exact"})]
        scorers = Scorers(parts, max_tokens=9)
        try:
            sampled = [Sampled(ROW, [(Response("x", 1), BROKEN)] * 4)]
            return await check_reward(scorers, parts, [ROW], group_size=4, sampled=sampled)
        finally:
            await scorers.close()

    report = asyncio.run(run())
    with pytest.raises(ConfigError, match=r"could not be computed for any of the 4 samples: line 40: judge: refused"):
        require_usable(report, force=False)
    require_usable(report, force=True)


class Weights:
    """Stands for sampling weights: says what it is told to, and counts."""

    def __init__(self, said: dict[str, str]) -> None:
        self.said = said
        self.asked = 0

    async def sample(self, prompt: Any, samples: int, params: Any) -> Any:
        self.asked += 1
        text = "".join(map(chr, prompt.to_ints()))
        answer = next(value for key, value in self.said.items() if f"<<<RESPONSE\n{key}\n" in text)
        return [SimpleNamespace(tokens=list(map(ord, answer)))]


class Letters:
    """A renderer of one token a letter."""

    stop: tuple[int, ...] = ()

    def generation_prompt(self, messages: Any) -> list[int]:
        return list(map(ord, messages[-1]["content"]))

    def decode(self, tokens: Any) -> str:
        return "".join(map(chr, tokens))


def test_a_judge_on_the_backend_is_asked_once_per_response_and_may_fail_for_one() -> None:
    weights = Weights({"good": "Fine.\nScore: 9", "odd": "I would rather not", "bad": "Score: 1"})
    model: Any = SimpleNamespace(sampler=None)

    async def sampler() -> Weights:
        return weights

    model.sampler = sampler
    letters: Any = Letters()
    judge = Judge(model, letters, "Be good.", "score", 64)
    responses = [Response(text, 1) for text in ("good", "odd", "good", "bad")]
    scores = asyncio.run(judge.score_group(ROW, responses))
    assert [None if s.failed else s.reward for s in scores] == [0.9, None, 0.9, 0.1]
    assert weights.asked == 3
    asyncio.run(judge.score_group(ROW, responses))
    assert weights.asked == 4  # only what had no verdict
