"""Tests of the judge itself, run in every evaluation: pairs with a known answer, and an answer beside itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any, cast

from sota_ml_researcher.core.errors import DataError
from sota_ml_researcher.doctrine.rules import rule
from sota_ml_researcher.evals.test_set import EvalItem, conversation
from sota_ml_researcher.training.data_files import at_line, read_rows


@dataclass(frozen=True, slots=True)
class Canary:
    """A prompt with an answer that is beyond doubt better than the other."""

    item: EvalItem
    good: str
    bad: str


@dataclass(frozen=True, slots=True)
class ControlResult:
    """How one judge did on the tests of itself.

    Attributes:
        judge: Its name.
        canaries_right: Canary questions answered right (each pair in both orders).
        canaries: Canary questions asked and readable.
        unreadable: Control and canary questions without a readable verdict.
        same_first: Identical answers where it preferred the first.
        same_second: Identical answers where it preferred the second.
        same_tie: Identical answers it called a tie.
        lean_p_value: Of preferring first and second equally often; None without a preference.
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
    problems: tuple[str, ...]


def load_canaries(path: Path | None) -> list[Canary]:
    """The canary pairs: the shipped ones, or a file's, with ``prompt``, ``good``, ``bad`` and perhaps ``reference``.

    Raises:
        DataError: If a row lacks one of the three, with its line.
    """
    if path is None:
        return _shipped()
    found: list[Canary] = []
    for row in read_rows(path):
        if row.value is None:
            raise row.problem or DataError("not a readable row", where=f"{path.name}:{row.number}")
        try:
            found.append(_canary(dict(row.value), row.number))
        except DataError as error:
            raise at_line(path, row.number, error) from error
    return found


def control_count(items: int) -> int:
    """How many prompts the A/A control takes."""
    return min(items, int(cast("int", rule("judge.control.size").value)))


def check_judge(judge: str, canary_scores: Sequence[float | None], same_choices: Sequence[str | None]) -> ControlResult:
    """Judge the judge.

    Args:
        judge: Its name.
        canary_scores: 1 where it chose the good answer, 0.5 a tie, 0 the bad one, None unreadable.
        same_choices: What it chose between an answer and itself: ``A``, ``B``, ``tie`` or None.
    """
    from sota_ml_researcher.evals.statistics_tests import sign_test

    read = [s for s in canary_scores if s is not None]
    right = sum(s == 1.0 for s in read)
    first, second, tie = (sum(c == which for c in same_choices) for which in ("A", "B", "tie"))
    unreadable = len(canary_scores) - len(read) + sum(c is None for c in same_choices)
    p_value = sign_test([1.0] * first + [-1.0] * second).p_value
    problems: list[str] = []
    wanted = float(cast("float", rule("judge.canary.pass").value))
    if not read:
        problems.append("it gave no readable verdict on any pair with a known answer")
    elif right / len(read) < wanted:
        problems.append(
            f"it was right on {right} of {len(read)} pairs with a known answer, and {wanted:.0%} is the least"
        )
    if p_value is not None and p_value < float(cast("float", rule("judge.control.lean").value)):
        side, count = ("first", first) if first > second else ("second", second)
        problems.append(
            f"between an answer and itself it chose the {side} {count} of {first + second} times (p {p_value:.2g})"
        )
    return ControlResult(judge, right, len(read), unreadable, first, second, tie, p_value, tuple(problems))


def _shipped() -> list[Canary]:
    import yaml

    text = (files("sota_ml_researcher.evals") / "canaries.yaml").read_text(encoding="utf-8")
    return [_canary(row, n) for n, row in enumerate(cast("list[dict[str, Any]]", yaml.safe_load(text)), start=1)]


def _canary(row: dict[str, Any], number: int) -> Canary:
    for key in ("good", "bad"):
        if not isinstance(row.get(key), str):
            raise DataError(f'"{key}" is missing or not text', fix='A canary has "prompt", "good" and "bad"')
    messages, _ = conversation(row)
    reference = str(row.get("reference") or row["good"])
    item = EvalItem(f"canary-{number}", tuple(messages), reference, None, None, number)
    return Canary(item, row["good"], row["bad"])
