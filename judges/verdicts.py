"""The schema of a verdict, and reading an answer by it. No verdict is ever guessed from prose."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, cast

from .rubric import Rubric

TOOL = "record_verdict"
Choice = Literal["A", "B", "tie"]
CHOICES: tuple[Choice, ...] = ("A", "B", "tie")
_MAX_REASON = 4000


class UnreadableVerdictError(ValueError):
    """The answer does not fit the schema; the message tells the judge what to correct."""


@dataclass(frozen=True, slots=True)
class PairVerdict:
    """Which of two answers is better.

    Attributes:
        choice: ``A``, ``B`` or ``tie``.
        scores: For each criterion the scores of A and of B.
        reason: The judge's reason, given first.
    """

    choice: Choice
    scores: Mapping[str, tuple[float, float]]
    reason: str


@dataclass(frozen=True, slots=True)
class AbsoluteVerdict:
    """A score for one answer by each criterion, on the criterion's own scale, and the reason."""

    scores: Mapping[str, float]
    reason: str


def verdict_schema(rubric: Rubric, *, pairwise: bool) -> dict[str, Any]:
    """JSON schema of a verdict; the reason comes first, so that scores and choice follow from it."""
    scales = {c.name: {"type": "integer", "description": f"{c.low} to {c.high}"} for c in rubric.criteria}
    if not pairwise:
        reason = {"type": "string", "description": "Two or three sentences on the answer"}
        return _object({"reason": reason, "scores": _object(scales)})
    return _object(
        {
            "reason": {"type": "string", "description": "Two or three sentences that compare the answers"},
            "scores": _object({name: _object({"A": scale, "B": scale}) for name, scale in scales.items()}),
            "verdict": {"type": "string", "enum": list(CHOICES), "description": "The better answer, or tie"},
        }
    )


def read_pair(arguments: Mapping[str, Any], rubric: Rubric) -> PairVerdict:
    """A pairwise verdict from a judge's structured answer.

    Raises:
        UnreadableVerdictError: If something is missing or off the scale.
    """
    choice = arguments.get("verdict")
    if choice not in CHOICES:
        raise UnreadableVerdictError(f'"verdict" must be one of A, B, tie; it was {choice!r:.40}')
    by_name = _mapping(arguments, "scores")
    scores: dict[str, tuple[float, float]] = {}
    for criterion in rubric.criteria:
        both = _mapping(by_name, criterion.name)
        first, second = (_score(both, side, criterion.name, criterion.low, criterion.high) for side in ("A", "B"))
        scores[criterion.name] = (first, second)
    return PairVerdict(choice, scores, _reason(arguments))


def read_absolute(arguments: Mapping[str, Any], rubric: Rubric) -> AbsoluteVerdict:
    """A verdict on one answer from a judge's structured answer.

    Raises:
        UnreadableVerdictError: If something is missing or off the scale.
    """
    by_name = _mapping(arguments, "scores")
    scores = {c.name: _score(by_name, c.name, "scores", c.low, c.high) for c in rubric.criteria}
    return AbsoluteVerdict(scores, _reason(arguments))


def last_json_object(text: str) -> dict[str, Any]:
    """The last complete JSON object in a text, for judges that have no tools.

    Raises:
        UnreadableVerdictError: If there is none.
    """
    decoder = json.JSONDecoder()
    last: dict[str, Any] | None = None
    position = text.find("{")
    while position != -1:
        try:
            value, end = decoder.raw_decode(text, position)
        except (ValueError, RecursionError):
            position = text.find("{", position + 1)
            continue
        last = cast("dict[str, Any]", value) if isinstance(value, dict) else last
        position = text.find("{", end)
    if last is None:
        raise UnreadableVerdictError("there was no JSON object in the answer")
    return last


def _object(properties: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": dict(properties),
        "required": list(properties),
        "additionalProperties": False,
    }


def _mapping(parent: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    value = parent.get(key)
    if isinstance(value, str):  # some models write a nested object as text
        try:
            value = json.loads(value)
        except ValueError:
            value = None
    if not isinstance(value, Mapping):
        raise UnreadableVerdictError(f'"{key}" must be an object')
    return cast("Mapping[str, Any]", value)


def _score(scores: Mapping[str, Any], key: str, what: str, low: int, high: int) -> float:
    value = scores.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise UnreadableVerdictError(f'the score "{key}" of "{what}" must be a number from {low} to {high}')
    return float(value)


def _reason(arguments: Mapping[str, Any]) -> str:
    return str(arguments.get("reason") or "")[:_MAX_REASON]
