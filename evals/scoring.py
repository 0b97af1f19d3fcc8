"""From judgments to one score per item: the mean over orders, then over judges; what is missing stays missing."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from ..judges.journal import Judgment
from ..judges.rubric import Rubric
from .evidence import BASELINE, Evidence


@dataclass(frozen=True, slots=True)
class Consistency:
    """One judge asked in both orders.

    Attributes:
        pairs: Pairs with a readable verdict in both.
        same: Those with the same winner (or a tie) twice.
        flips: Those where the winner changed with the order.
        first_wins: Verdicts for the answer shown first.
        second_wins: Verdicts for the answer shown second.
    """

    pairs: int
    same: int
    flips: int
    first_wins: int
    second_wins: int

    @property
    def rate(self) -> float | None:
        """Share of pairs with the same verdict in both orders; None without any."""
        return self.same / self.pairs if self.pairs else None


@dataclass(frozen=True, slots=True)
class Missing:
    """Judgments without a verdict.

    Attributes:
        by_arm: For each arm (missing, asked), counted by the arm shown first.
        by_judge: For each judge (missing, asked).
        reasons: How often each reason occurred.
    """

    by_arm: Mapping[str, tuple[int, int]]
    by_judge: Mapping[str, tuple[int, int]]
    reasons: Mapping[str, int]


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


def consistency(judgments: Iterable[Judgment], judge: str) -> Consistency:
    """How one judge's verdicts depend on the order."""
    by_pair: dict[tuple[str, frozenset[str]], list[Judgment]] = defaultdict(list)
    first = second = 0
    for j in judgments:
        if j.judge != judge or j.kind != "pair" or j.verdict is None or j.second is None:
            continue
        by_pair[j.item, frozenset((j.first, j.second))].append(j)
        first, second = first + (j.verdict == "A"), second + (j.verdict == "B")
    both = [pair for pair in by_pair.values() if len(pair) == 2]
    winners = [[_winner(j) for j in pair] for pair in both]
    same = sum(a == b for a, b in winners)
    flips = sum(a != b and "tie" not in (a, b) for a, b in winners)
    return Consistency(len(both), same, flips, first, second)


def missing(judgments: Sequence[Judgment]) -> Missing:
    """Count what has no verdict, among the questions that decide (not the tests of the judge)."""
    by_arm: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    by_judge: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    reasons: dict[str, int] = defaultdict(int)
    for j in judgments:
        if j.kind not in {"pair", "absolute"}:
            continue
        for counts in (by_arm[j.first], by_judge[j.judge]):
            counts[0] += j.unscored is not None
            counts[1] += 1
        if j.unscored is not None:
            reasons[j.unscored.split(":")[0]] += 1
    return Missing(
        {k: (v[0], v[1]) for k, v in by_arm.items()}, {k: (v[0], v[1]) for k, v in by_judge.items()}, dict(reasons)
    )


def criterion_scores(judgments: Iterable[Judgment], arms: Sequence[str], rubric: Rubric) -> dict[str, dict[str, float]]:
    """For each criterion the mean score of each arm, on the criterion's own scale."""
    gathered: dict[str, dict[str, list[float]]] = {c.name: defaultdict(list) for c in rubric.criteria}
    for j in judgments:
        if j.unscored is not None or j.kind not in {"pair", "absolute"}:
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
