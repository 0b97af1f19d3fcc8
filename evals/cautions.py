"""What a reader must know before believing a result: each sentence stands in the verdict as "Careful: ..."."""

from __future__ import annotations

from statistics import NormalDist

from ..doctrine.rules import number
from .evidence import BASELINE, TUNED, Evidence
from .human_check import borne_out_by_labels
from .results import BETTER, NONE, WORSE, ArmComparison, EvalResult, JudgeQuality, side_of
from .scoring import item_effects
from .surface_cues import surface_cues

_FEWEST_UNITS = 6  # with five, the exact test of five wins has p 0.06


def cautions(evidence: Evidence, result: EvalResult) -> list[str]:
    """The sentences, what weighs most first."""
    by_model = any(judge.kind != "check" for judge in evidence.config.judges)
    found = _too_few(result)
    if by_model:
        found += _surface(evidence)
    found += _length(result.main)
    for judge in result.judges:
        found += _order(judge)
    found += _disagreeing_tests(result.main, evidence.null)
    found += _judges_apart(result.main, evidence.null)
    found += [
        f"{name} judges a model of its own family, which it may prefer (judge.self_preference)"
        for name in evidence.config.judges_of_own_family
    ]
    if not evidence.config.position_debias:
        found.append("each pair was asked in one order only: a preference for a place adds noise")
    found += _people(result, by_model=by_model)
    empty = {arm: sum(not r.text.strip() for r in rs) for arm, rs in evidence.answers.items()}
    return found + [
        f"{count} {'answer' if count == 1 else 'answers'} of {arm} {'is' if count == 1 else 'are'} empty"
        for arm, count in empty.items()
        if count
    ]


def _too_few(result: EvalResult) -> list[str]:
    main = result.main
    units = main.independent_units
    if main.mean is None or units is None:
        return []
    what = "clusters" if result.clusters is not None else "prompts"
    if units == 1:
        one = "all prompts are one cluster" if main.scored > 1 else "one prompt has no interval"
        return [f"{one}: nothing can be concluded"]
    if units < _FEWEST_UNITS:
        return [f"only {units} {what}: not even {units} wins of {units} can be told from chance, {_FEWEST_UNITS} could"]
    if what == "clusters" and units < 10:
        return [f"only {units} clusters: the interval rests on few independent units"]
    return []


def _surface(evidence: Evidence) -> list[str]:
    effects = item_effects(evidence, TUNED)
    mine, theirs = evidence.answers[TUNED], evidence.answers[BASELINE]
    scored = [
        (index, effects[item.id] - evidence.null) for index, item in enumerate(evidence.items) if item.id in effects
    ]
    return surface_cues([effect for _, effect in scored], [(mine[i].text, theirs[i].text) for i, _ in scored])


def _length(main: ArmComparison) -> list[str]:
    length = main.length
    if length is None or length.interval is None or main.mean is None:
        return []
    flipped = side_of(length.interval, 0.5) != side_of(main.interval, 0.5)
    matters = length.slope_p_value is not None and length.slope_p_value < 0.05
    if not matters or (abs(length.rate - main.mean) <= number("judge.length_gap") and not flipped):
        return []
    return [
        f"at equal length the win rate is {length.rate:.3f} ({length.interval.low:.3f} to "
        f"{length.interval.high:.3f}), not {main.mean:.3f}: length is part of the result"
    ]


def _order(judge: JudgeQuality) -> list[str]:
    found: list[str] = []
    rate, first, second = judge.consistency, judge.first_preferred, judge.second_preferred
    if rate is not None and rate < 2 / 3:
        found.append(f"{judge.name} gave the same verdict in both orders in only {rate:.0%} of the pairs")
    if first + second and _lean_z(first, second) > NormalDist().inv_cdf(1 - number("judge.control.lean") / 2):
        place = "first" if first > second else "second"
        found.append(f"{judge.name} chose the answer shown {place} {max(first, second)} of {first + second} times")
    return found


def _lean_z(first: int, second: int) -> float:
    """A z-value of choosing both places equally often, as if the two verdicts on one pair always fell together."""
    return abs(first - second) / (2 * (first + second)) ** 0.5


def _disagreeing_tests(main: ArmComparison, null: float) -> list[str]:
    side, p = side_of(main.interval, null), main.sign_test_p_value
    if main.verdict in {BETTER, WORSE, NONE} or not side or p is None:
        return []
    return [f"the interval alone would say {side}, and the exact sign test (p {p:.2g}) does not agree"]


def _judges_apart(main: ArmComparison, null: float) -> list[str]:
    sides = {j.judge: side for j in main.by_judge if (side := side_of(j.interval, null))}
    if len(set(sides.values())) < 2:
        return []
    return ["the judges contradict each other: " + ", ".join(f"{name} says {side}" for name, side in sides.items())]


def _people(result: EvalResult, *, by_model: bool) -> list[str]:
    human, verdict = result.main.human, result.verdict
    if verdict not in {BETTER, WORSE}:
        return []
    if human is None:
        if not by_model:
            return []
        return ["no human_labels: a taste of the judge's own, for a style or for its own family, would not show here"]
    if human.corrected_share_of_decided is None and borne_out_by_labels(human, verdict):
        return ["the labels bear the verdict out, and are too one-sided to show the judge's errors"]
    return []
