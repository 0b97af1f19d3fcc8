"""From judgments to one score per item: the mean over orders, then over judges; what is missing stays missing."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean
from typing import Any

from ..judges.journal import Judgment
from ..judges.rubric import Rubric
from .evidence import BASELINE, Evidence
from .results import JudgeQuality, MissingCount

# Questions that decide, as opposed to calibration checks.
_DECIDING = frozenset({"pair", "absolute"})


def item_effects(evidence: Evidence, arm: str) -> dict[str, float]:
    """For each scored item the effect of ``arm`` against the baseline: its score, or the difference of scores."""
    if evidence.pairwise:
        return over_judges(pair_scores(evidence.judgments, arm, BASELINE, evidence.orders))
    mine, theirs = (absolute_scores(evidence.judgments, a, evidence.rubric) for a in (arm, BASELINE))
    return over_judges({judge: _differences(mine[judge], theirs.get(judge, {})) for judge in mine})


def _differences(mine: Mapping[str, float | None], theirs: Mapping[str, float | None]) -> dict[str, float | None]:
    pairs = {item: (score, theirs.get(item)) for item, score in mine.items()}
    return {item: None if a is None or b is None else a - b for item, (a, b) in pairs.items()}


def _arm_score(judgment: Judgment, arm: str) -> float | None:
    """1 where the arm won, 0.5 for a tie, 0 where it lost; None when unscored."""
    if judgment.verdict is None:
        return None
    if judgment.verdict == "tie":
        return 0.5
    winner = judgment.first if judgment.verdict == "A" else judgment.second
    return 1.0 if winner == arm else 0.0


def pair_scores(
    judgments: Iterable[Judgment], arm: str, against: str, orders: int
) -> dict[str, dict[str, float | None]]:
    """For each judge and item the arm's score against the other, the mean over orders.

    An item that lacks one order counts as missing: one order alone carries the judge's preference for a place.
    """
    scores: dict[str, dict[str, list[float | None]]] = defaultdict(lambda: defaultdict(list))
    for judgment in judgments:
        if judgment.kind == "pair" and {judgment.first, judgment.second} == {arm, against}:
            scores[judgment.judge][judgment.item].append(_arm_score(judgment, arm))
    return {judge: {i: _mean(s, orders) for i, s in items.items()} for judge, items in scores.items()}


def absolute_scores(judgments: Iterable[Judgment], arm: str, rubric: Rubric) -> dict[str, dict[str, float | None]]:
    """For each judge and item the arm's weighted rubric score, 0 to 1."""
    scores: dict[str, dict[str, float | None]] = defaultdict(dict)
    for judgment in judgments:
        if judgment.kind == "absolute" and judgment.first == arm:
            scores[judgment.judge][judgment.item] = judgment.weighted(rubric)
    return dict(scores)


def over_judges(by_judge: Mapping[str, Mapping[str, float | None]]) -> dict[str, float]:
    """For each item the mean over the judges that scored it; items nobody scored are left out."""
    gathered: dict[str, list[float]] = defaultdict(list)
    for scores in by_judge.values():
        for item, score in scores.items():
            if score is not None:
                gathered[item].append(score)
    return {item: fmean(scores) for item, scores in gathered.items()}


def judge_quality(judgments: Iterable[Judgment], name: str) -> JudgeQuality:
    """One judge's calls, its missing verdicts, and how its verdicts depend on the order."""
    mine = [j for j in judgments if j.judge == name]
    deciding = [j for j in mine if j.kind in _DECIDING]
    compared = [j for j in mine if j.kind == "pair" and j.verdict is not None]
    by_pair: dict[tuple[str, frozenset[str | None]], list[Judgment]] = defaultdict(list)
    for j in compared:
        by_pair[j.item, frozenset((j.first, j.second))].append(j)
    winners = [(_winner(pair[0]), _winner(pair[1])) for pair in by_pair.values() if len(pair) == 2]
    return JudgeQuality(
        name=name,
        models=sorted({j.model for j in mine if j.model}),
        calls=sum(j.attempts for j in mine),
        repaired=sum(j.attempts > 1 and j.unscored is None for j in mine),
        unscored=sum(j.unscored is not None for j in deciding),
        asked=len(deciding),
        pairs_in_both_orders=len(winners),
        consistency=sum(a == b for a, b in winners) / len(winners) if winners else None,
        flips=sum(a != b and "tie" not in (a, b) for a, b in winners),
        first_preferred=sum(j.verdict == "A" for j in compared),
        second_preferred=sum(j.verdict == "B" for j in compared),
    )


def missing_by_arm(judgments: Iterable[Judgment]) -> dict[str, MissingCount]:
    """Judgments without a verdict by the arm shown first, among the questions that decide."""
    by_arm: dict[str, list[bool]] = defaultdict(list)
    for j in judgments:
        if j.kind in _DECIDING:
            by_arm[j.first].append(j.unscored is not None)
    return {arm: MissingCount(missing=sum(lost), asked=len(lost)) for arm, lost in by_arm.items()}


def missing_reasons(judgments: Iterable[Judgment]) -> dict[str, int]:
    """How often each reason for a missing verdict occurred."""
    return dict(Counter(j.unscored.split(":")[0] for j in judgments if j.kind in _DECIDING and j.unscored is not None))


def criterion_scores(judgments: Iterable[Judgment], arms: Sequence[str], rubric: Rubric) -> dict[str, dict[str, float]]:
    """For each criterion the mean score of each arm, on the criterion's own scale."""
    gathered: dict[str, dict[str, list[float]]] = {c.name: defaultdict(list) for c in rubric.criteria}
    for j in judgments:
        if j.unscored is not None or j.kind not in _DECIDING:
            continue
        for name, score in j.scores.items():
            for arm, value in _sides(j, score):
                gathered[name][arm].append(value)
    return {name: {a: fmean(by_arm[a]) for a in arms if by_arm[a]} for name, by_arm in gathered.items()}


def _sides(judgment: Judgment, score: Any) -> list[tuple[str, float]]:
    if judgment.second is None:
        return [(judgment.first, float(score))]
    return [(judgment.first, float(score["A"])), (judgment.second, float(score["B"]))]


def _winner(judgment: Judgment) -> str | None:
    return {"A": judgment.first, "B": judgment.second}.get(judgment.verdict or "", "tie")


def _mean(scores: Sequence[float | None], orders: int) -> float | None:
    present = [s for s in scores if s is not None]
    return fmean(present) if len(present) == orders else None
