"""Calibration checks of a judge, run in every evaluation: pairs with a known answer, and an answer against itself."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from statistics import fmean
from typing import Any, cast

from ..core.errors import DataError
from ..doctrine.rules import integer, number
from ..judges.asking import Call
from ..judges.journal import Judgment
from ..judges.prompt import EvalItem, Prompter
from ..judges.rubric import Rubric
from .test_set import conversation, read_each

_GOOD_FIRST = {"A": 1.0, "tie": 0.5, "B": 0.0}


@dataclass(frozen=True, slots=True)
class Canary:
    """A prompt with two answers, one of which is beyond doubt better: it shows whether a judge can tell."""

    item: EvalItem
    good: str
    bad: str


@dataclass(frozen=True, slots=True)
class ControlResult:
    """How one judge did on its calibration checks.

    Attributes:
        judge: Its name.
        canaries_right: Canary questions answered right (each pair in both orders).
        canaries: Canary questions asked and readable.
        unreadable: Control and canary questions without a readable verdict.
        same_first: Identical answers where it preferred the first; in absolute mode, scored the first time higher.
        same_second: The same for the second.
        same_tie: Identical answers it called a tie, or scored alike both times.
        lean_p_value: Of preferring first and second equally often; None without a preference.
        repeat_difference: Mean distance of the two scores of one answer, scores from 0 to 1; None in pairwise mode.
        problems: Why it failed; empty when it passed.
    """

    judge: str
    canaries_right: int
    canaries: int
    unreadable: int
    same_first: int
    same_second: int
    same_tie: int
    lean_p_value: float | None
    repeat_difference: float | None
    problems: tuple[str, ...]


def load_canaries(file: str | Path | None) -> list[Canary]:
    """The canary pairs: the shipped ones, or a file's, with ``prompt``, ``good``, ``bad`` and perhaps ``reference``.

    Raises:
        DataError: If a row lacks one of the three, with its line.
    """
    if file is not None:
        return read_each(Path(file), _canary)
    import yaml

    text = (files("sota_ml_researcher.evals") / "canaries.yaml").read_text(encoding="utf-8")
    return [_canary(row, n) for n, row in enumerate(cast("list[dict[str, Any]]", yaml.safe_load(text)), start=1)]


def _canary(row: Mapping[str, Any], line: int) -> Canary:
    for key in ("good", "bad"):
        if not isinstance(row.get(key), str):
            raise DataError(f'"{key}" is missing or not text', fix='A canary has "prompt", "good" and "bad"')
    messages, _ = conversation(row)
    reference = str(row.get("reference") or row["good"])
    return Canary(EvalItem(f"canary-{line}", tuple(messages), reference, None, None, line), row["good"], row["bad"])


def control_count(items: int) -> int:
    """How many prompts the A/A control takes."""
    return min(items, integer("judge.control.size"))


def control_result(
    judge: str, tests: Sequence[Call], judged: Mapping[str, Judgment], prompter: Prompter
) -> ControlResult:
    """How a judge did on its calibration checks.

    Args:
        judge: Its name.
        tests: The questions of the checks.
        judged: Its judgments by the key of the question.
        prompter: What asked them.
    """
    canaries = [judged[c.key] for c in tests if c.kind == "canary"]
    controls = [c for c in tests if c.kind == "control"]
    if prompter.mode == "absolute":
        twice = _scored_twice(controls, judged, prompter.rubric)
        return check_scores(judge, _scored_canaries(canaries, prompter.rubric), twice)
    return check_pairs(judge, [_chosen(j) for j in canaries], [judged[c.key].verdict for c in controls])


def check_pairs(judge: str, canary_scores: Sequence[float | None], same_choices: Sequence[str | None]) -> ControlResult:
    """Check a judge that compares.

    Args:
        judge: Its name.
        canary_scores: 1 where it chose the good answer, 0.5 a tie, 0 the bad one, None unreadable.
        same_choices: What it chose between an answer and itself: ``A``, ``B``, ``tie`` or None.
    """
    first, second, tie = (sum(c == which for c in same_choices) for which in ("A", "B", "tie"))
    right, read, problems = _canaries(canary_scores)
    p_value, side, count = _lean(first, second)
    if side:
        problems.append(
            f"between an answer and itself it chose the {side} {count} of {first + second} times (p {p_value:.2g})"
        )
    unreadable = len(canary_scores) - read + sum(c is None for c in same_choices)
    return ControlResult(judge, right, read, unreadable, first, second, tie, p_value, None, tuple(problems))


def check_scores(
    judge: str, canary_scores: Sequence[float | None], twice: Sequence[tuple[float | None, float | None]]
) -> ControlResult:
    """Check a judge that scores answers one by one.

    Args:
        judge: Its name.
        canary_scores: 1 where it scored the good answer higher, 0.5 alike, 0 the bad one, None unreadable.
        twice: The two scores of one answer, 0 to 1; None where one is unreadable.
    """
    both = [(a, b) for a, b in twice if a is not None and b is not None]
    first, second, alike = sum(a > b for a, b in both), sum(a < b for a, b in both), sum(a == b for a, b in both)
    difference = fmean(abs(a - b) for a, b in both) if both else None
    right, read, problems = _canaries(canary_scores)
    p_value, side, count = _lean(first, second)
    if side:
        problems.append(f"of {len(both)} answers scored twice {count} scored higher the {side} time (p {p_value:.2g})")
    limit = number("judge.control.repeat")
    if difference is not None and difference > limit:
        problems.append(
            f"{len(both)} answers scored twice differ by {difference:.2f} on average (scores 0 to 1), "
            f"and {limit:g} is the most (judge.control.repeat)"
        )
    unreadable = len(canary_scores) - read + sum(a is None or b is None for a, b in twice)
    return ControlResult(judge, right, read, unreadable, first, second, alike, p_value, difference, tuple(problems))


def _canaries(scores: Sequence[float | None]) -> tuple[int, int, list[str]]:
    """How many are right, how many could be read, and what is wrong with that."""
    read = [s for s in scores if s is not None]
    right = sum(s == 1.0 for s in read)
    wanted = number("judge.canary.pass")
    if not read:
        return 0, 0, ["it gave no readable verdict on any pair with a known answer"]
    if right / len(read) >= wanted:
        return right, len(read), []
    problem = f"it was right on {right} of {len(read)} pairs with a known answer, and {wanted:.0%} is the least"
    return right, len(read), [problem]


def _lean(first: int, second: int) -> tuple[float | None, str, int]:
    """The p-value of no preference for a place; the preferred place if it is below the limit, and how often it won."""
    from .statistics.hypothesis_tests import sign_test

    p_value = sign_test([1.0] * first + [-1.0] * second).p_value
    if p_value is None or p_value >= number("judge.control.lean"):
        return p_value, "", 0
    return (p_value, "first", first) if first > second else (p_value, "second", second)


def _chosen(canary: Judgment) -> float | None:
    if canary.verdict is None:
        return None
    score = _GOOD_FIRST[canary.verdict]
    return score if canary.first == "good" else 1.0 - score


def _scored_canaries(canaries: Iterable[Judgment], rubric: Rubric) -> list[float | None]:
    by_item: dict[str, dict[str, float | None]] = {}
    for judgment in canaries:
        by_item.setdefault(judgment.item, {})[judgment.first] = judgment.weighted(rubric)
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
        by_item.setdefault(call.item.id, {})[call.again] = judged[call.key].weighted(rubric)
    return [(scores[False], scores[True]) for scores in by_item.values()]
