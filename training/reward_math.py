r"""Whether a mathematical answer is right: numbers and plain algebra exactly, anything else by math-verify.

The answer is what the response commits to: ``\boxed{}``, ``<answer>``, ``####``, "the answer is", the right side of
the last equation, or the whole response. A response that merely contains the right number among others does not count.
"""

from __future__ import annotations

import importlib
import re
from fractions import Fraction
from typing import Any

from sota_ml_researcher.training.reward_arithmetic import (
    DECIMALS,
    NUMBER,
    exact_value,
    normal,
    plainly_equal,
    remembered,
)

_TAG = re.compile(r"<answer>(.*?)</answer>", re.DOTALL | re.IGNORECASE)
_HASHES = re.compile(r"####\s*(.+)")
_SENTENCE = re.compile(r"\banswer\s*(?:is|:|=)\s*:?\s*(.+?)(?:\.?\s*$|\.\s|\n)", re.IGNORECASE | re.MULTILINE)
_UNIT = re.compile(r"[a-zA-Z°µ²³]+(?:\s*/\s*[a-zA-Z]+)?(?:\^?[23])?\.?$")
_LONGEST = 20_000


def answer_in(response: str) -> str | None:
    """What a response commits to, or None if it commits to nothing."""
    text = response[-_LONGEST:]
    boxed = _last_boxed(text)
    if boxed is not None:
        return boxed
    for pattern in (_TAG, _HASHES, _SENTENCE):
        found = pattern.findall(text)
        if found:
            return str(found[-1]).strip()
    whole = text.strip()
    if "=" in whole and "\n" not in whole:
        return whole.rsplit("=", 1)[1].strip()
    if len(whole) <= 80 and len(NUMBER.findall(whole)) > 1 and "," in whole and exact_value(whole) is None:
        return None
    if len(set(NUMBER.findall(whole))) == 1 and len(whole) > 24:
        return str(NUMBER.findall(whole)[0])
    return whole or None


def _last_boxed(text: str) -> str | None:
    start = max(text.rfind("\\boxed"), text.rfind("\\fbox"))
    if start < 0:
        return None
    opening = text.find("{", start)
    if opening < 0:
        return text[start:].split(" ", 1)[-1].split("$")[0].strip() or None
    depth = 0
    for position in range(opening, len(text)):
        depth += (text[position] == "{") - (text[position] == "}")
        if depth == 0:
            return text[opening + 1 : position].strip()
    return None


def is_right(response: str, gold: str) -> bool:
    """Whether a response's answer equals the right one, numerically or symbolically."""
    given = answer_in(response)
    if given is None or not given.strip():
        return False
    right, unit, percent = _measured(gold)
    value, given_unit, given_percent = _measured(given)
    if right is not None and value is not None:
        if unit and given_unit and unit != given_unit:
            return False
        scales = {Fraction(1), Fraction(1, 100)} if percent != given_percent else {Fraction(1)}
        return any(_close(value * scale, right) or _close(value, right * scale) for scale in scales)
    if normal(given) == normal(gold):
        return True
    if (right is None) != (value is None) and len(given) > 200:
        return False
    return _verified(given, gold)


def _close(one: Fraction, other: Fraction) -> bool:
    """Equal, or equal to six significant digits where a decimal was written."""
    if one == other:
        return True
    exact = one.denominator == 1 and other.denominator == 1
    return not exact and abs(one - other) <= DECIMALS * max(abs(one), abs(other))


def _measured(text: str) -> tuple[Fraction | None, str, bool]:
    """A text's number, its unit, and whether it is a percentage."""
    cleaned = normal(text)
    percent = cleaned.endswith("%")
    cleaned = cleaned.rstrip("%").strip()
    value = exact_value(cleaned)
    if value is not None:
        return value, "", percent
    unit = _UNIT.search(cleaned)
    if unit is None or not cleaned[: unit.start()].strip():
        return None, "", percent
    return exact_value(cleaned[: unit.start()].strip()), unit.group().rstrip(".").lower(), percent


@remembered
def _verified(given: str, gold: str) -> bool:
    settled = plainly_equal(given, gold)
    return proved(given, gold) if settled is None else settled


def proved(given: str, gold: str) -> bool:
    """Symbolic equality by math-verify. Slow, and it may not end: the caller sees to a time limit."""
    verifier: Any = importlib.import_module("math_verify")
    try:
        return bool(verifier.verify(_parsed(gold), _parsed(given), timeout_seconds=None))
    except Exception:  # whatever a text does to a parser of mathematics, it is not the right answer
        return False


@remembered
def _parsed(text: str) -> Any:
    verifier: Any = importlib.import_module("math_verify")
    wrapped = text if "$" in text or "\\boxed" in text else f"${text}$"
    return verifier.parse(wrapped, parsing_timeout=None)
