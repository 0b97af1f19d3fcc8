"""From a judge's answers to the tests of itself to how it did."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from sota_ml_researcher.evals.calls import Call
from sota_ml_researcher.evals.controls import ControlResult, check_pairs, check_scores
from sota_ml_researcher.evals.judge_prompt import Prompter
from sota_ml_researcher.evals.judgments import Judgment
from sota_ml_researcher.evals.rubric import Rubric

_GOOD_FIRST = {"A": 1.0, "tie": 0.5, "B": 0.0}


def control_result(
    judge: str, tests: Sequence[Call], judged: Mapping[str, Judgment], prompter: Prompter
) -> ControlResult:
    """How a judge did on the tests of itself."""
    canaries = [judged[c.key] for c in tests if c.kind == "canary"]
    controls = [c for c in tests if c.kind == "control"]
    if prompter.mode == "absolute":
        twice = _scored_twice(controls, judged, prompter.rubric)
        return check_scores(judge, _scored_canaries(canaries, prompter.rubric), twice)
    return check_pairs(judge, [_chosen(j) for j in canaries], [judged[c.key].verdict for c in controls])


def _chosen(canary: Judgment) -> float | None:
    if canary.verdict is None:
        return None
    score = _GOOD_FIRST[canary.verdict]
    return score if canary.first == "good" else 1.0 - score


def _scored_canaries(canaries: Iterable[Judgment], rubric: Rubric) -> list[float | None]:
    by_item: dict[str, dict[str, float | None]] = {}
    for judgment in canaries:
        by_item.setdefault(judgment.item, {})[judgment.first] = _score(judgment, rubric)
    scores: list[float | None] = []
    for sides in by_item.values():
        good, bad = sides["good"], sides["bad"]
        scores.append(None if good is None or bad is None else 1.0 if good > bad else 0.5 if good == bad else 0.0)
    return scores


def _scored_twice(
    controls: Iterable[Call], judged: Mapping[str, Judgment], rubric: Rubric
) -> list[tuple[float | None, float | None]]:
    by_item: dict[str, dict[bool, float | None]] = {}
    for call in controls:
        by_item.setdefault(call.item.id, {})[call.again] = _score(judged[call.key], rubric)
    return [(scores[False], scores[True]) for scores in by_item.values()]


def _score(judgment: Judgment, rubric: Rubric) -> float | None:
    return None if judgment.unscored else rubric.weighted(judgment.scores)
