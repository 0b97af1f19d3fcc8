"""Answers scored one by one, with judges on loopback."""

import json
import random
from pathlib import Path
from typing import Any

import pytest
from eval_helpers import comparison, evaluate, is_test, lines, metrics, sums
from loopback_judges import MODEL, Asked, Judges, honest

from sota_ml_researcher.evals.judge_job import JudgeFailedError


def test_absolute_mode_scores_each_answer_alone(tmp_path: Path, judges: Judges) -> None:
    config = sums(tmp_path, 20, base_right=0.5) | {"judge_model": MODEL, "mode": "absolute"}
    _, context = evaluate(tmp_path, config)
    found = comparison(context)
    assert found["mean"] == pytest.approx(0.5)  # half of the baseline's answers score 0, all others 1
    assert found["verdict"] == "better"
    assert len(lines(context)) == 20 * 2 + 8 * 2 + 20 * 2
    assert metrics(context)["criteria"]["correctness"] == {"baseline": 3.0, "tuned": 5.0}
    twice = [b["messages"][0]["content"] for b in judges.bodies[16 : 16 + 40]]
    assert len(set(twice)) == 40  # the same answer, and not the same request
    assert "an answer scored twice: 20 of 20 alike" in (context.folder / "verdict.txt").read_text()


def test_scores_that_drift_fail_the_evaluation(tmp_path: Path, judges: Judges) -> None:
    seen: set[tuple[str, str]] = set()

    def kinder_the_second_time(asked: Asked) -> dict[str, Any]:
        known = (asked.request, asked.a) in seen
        seen.add((asked.request, asked.a))
        return honest(asked) if is_test(asked) else {"reason": "", "quality": (4 if known else 3, None)}

    judges.answer = kinder_the_second_time
    config = sums(tmp_path, 25) | {"judge_model": MODEL, "mode": "absolute", "parallel_judges": 1}
    with pytest.raises(JudgeFailedError, match=r"answers scored twice 20 scored higher the second time.*differ by"):
        evaluate(tmp_path, config)
    assert len(judges.answered) == 16 + 40  # the answers that count were never paid for
    controls = json.loads((tmp_path / "run" / "controls.json").read_text())
    assert controls[0]["repeat_difference"] == pytest.approx(0.25)  # a step of the five-point scale


def test_scores_drawn_at_random_fail_the_evaluation(tmp_path: Path, judges: Judges) -> None:
    chance = random.Random(0)

    def anything(asked: Asked) -> dict[str, Any]:
        return honest(asked) if is_test(asked) else {"reason": "", "quality": (chance.randint(1, 5), None)}

    judges.answer = anything
    with pytest.raises(JudgeFailedError, match=r"20 answers scored twice differ by 0\.\d+ on average"):
        evaluate(tmp_path, sums(tmp_path, 25) | {"judge_model": MODEL, "mode": "absolute"})


def test_one_score_for_every_answer_fails_the_canaries(tmp_path: Path, judges: Judges) -> None:
    judges.answer = lambda asked: {"reason": "fine", "quality": (5, None)}
    with pytest.raises(JudgeFailedError, match="it was right on 0 of 8 pairs with a known answer"):
        evaluate(tmp_path, sums(tmp_path, 5) | {"judge_model": MODEL, "mode": "absolute"})


def test_absolute_mode_can_be_worse(tmp_path: Path) -> None:
    config = sums(tmp_path, 20, base_right=1.0, tuned_right=0.5) | {"mode": "absolute"}
    _, context = evaluate(tmp_path, config)
    assert comparison(context)["verdict"] == "worse"
