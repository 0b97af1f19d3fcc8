r"""Whether a mathematical answer is right: numbers by exact arithmetic, anything symbolic by math-verify.

The answer is what the response commits to: ``\boxed{}``, ``<answer>``, ``####``, "the answer is", the right side of
the last equation, or the whole response. A response that merely contains the right number among others does not count.
"""

from __future__ import annotations

import ast
import importlib
import math
import operator
import re
from collections.abc import Callable, Mapping
from fractions import Fraction
from functools import lru_cache, wraps
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

_TAG = re.compile(r"<answer>(.*?)</answer>", re.DOTALL | re.IGNORECASE)
_HASHES = re.compile(r"####\s*(.+)")
_SENTENCE = re.compile(r"\banswer\s*(?:is|:|=)\s*:?\s*(.+?)(?:\.?\s*$|\.\s|\n)", re.IGNORECASE | re.MULTILINE)
_NUMBER = re.compile(r"[-+]?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?(?:[eE][-+]?\d+)?|[-+]?\.\d+")
_PLAIN = re.compile(rf"({_NUMBER.pattern})(?:\s*/\s*({_NUMBER.pattern}))?")
_FRACTION = re.compile(r"\\[dt]?frac\s*\{([^{}]+)\}\s*\{([^{}]+)\}|\\[dt]?frac\s*(\d)\s*(\d)")
_MIXED = re.compile(r"([-+]?)(\d+)\s+(\d+)\s*/\s*(\d+)")
_UNIT = re.compile(r"[a-zA-Z°µ²³]+(?:\s*/\s*[a-zA-Z]+)?(?:\^?[23])?\.?$")
_LONGEST = 20_000
_DECIMALS = Fraction(1, 10**6)
# Results are remembered for texts of so many characters together, and so many of them: a few tens of megabytes at most.
_SHORT, _KEPT = 300, 16_384
_ROOT = re.compile(r"\\sqrt\s*\{([^{}]*)\}|\\sqrt\s*(\d)")
_CONSTANT = re.compile(r"[\d.+\-*/() ]+")
_OPERATIONS: Mapping[type[ast.AST], Callable[..., float]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.Pow: math.pow,
    ast.USub: operator.neg,
    ast.UAdd: operator.pos,
}


def _remembered(function: Callable[P, T]) -> Callable[P, T]:
    """Remember results for short texts: the samples of a group give the same few answers again and again."""
    kept = lru_cache(maxsize=_KEPT)(function)

    @wraps(function)
    def remembering(*args: P.args, **named: P.kwargs) -> T:
        short = sum(len(str(text)) for text in args) <= _SHORT
        return kept(*args, **named) if short else function(*args, **named)

    return remembering


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
    if len(whole) <= 80 and len(_NUMBER.findall(whole)) > 1 and "," in whole and _value(whole) is None:
        return None
    if len(set(_NUMBER.findall(whole))) == 1 and len(whole) > 24:
        return str(_NUMBER.findall(whole)[0])
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
    if _normal(given) == _normal(gold):
        return True
    if (right is None) != (value is None) and len(given) > 200:
        return False
    return _verified(given, gold)


def _close(one: Fraction, other: Fraction) -> bool:
    """Equal, or equal to six significant digits where a decimal was written."""
    if one == other:
        return True
    exact = one.denominator == 1 and other.denominator == 1
    return not exact and abs(one - other) <= _DECIMALS * max(abs(one), abs(other))


def _measured(text: str) -> tuple[Fraction | None, str, bool]:
    """A text's number, its unit, and whether it is a percentage."""
    cleaned = _normal(text)
    percent = cleaned.endswith("%")
    cleaned = cleaned.rstrip("%").strip()
    value = _value(cleaned)
    if value is not None:
        return value, "", percent
    unit = _UNIT.search(cleaned)
    if unit is None or not cleaned[: unit.start()].strip():
        return None, "", percent
    return _value(cleaned[: unit.start()].strip()), unit.group().rstrip(".").lower(), percent


@_remembered
def _normal(text: str) -> str:
    """A text without what carries no meaning in an answer."""
    text = text.strip().strip("$").replace("\\$", "").replace("\\%", "%").replace("\\!", "").replace("\u2212", "-")
    text = re.sub(r"\\(?:left|right|,|;|:|quad)\b|\\[,;:! ]", "", text)
    text = re.sub(r"\\(?:text|mathrm|textbf|mbox)\s*\{([^{}]*)\}", r" \1", text)
    text = re.sub(r"\^\s*\{?\\circ\}?|\\degree", "°", text)
    text = re.sub(r"(\d)\s*\\[dt]?frac\s*\{(\d+)\}\s*\{(\d+)\}", r"\1 \2/\3", text)
    text = _FRACTION.sub(lambda m: f"({m[1] or m[3]})/({m[2] or m[4]})", text)
    text = re.sub(r"(?<![\w)])\(([-+]?[\d.,]+)\)(?![\w(^])", r"\1", text)
    return re.sub(r"\s+", " ", text).strip().rstrip(".").strip("$€£").strip()


@_remembered
def _value(text: str) -> Fraction | None:
    """The number a text is, exactly, or None if it is not just a number."""
    mixed = _MIXED.fullmatch(text)
    if mixed:
        sign, whole, over, under = mixed.groups()
        if int(under) == 0:
            return None
        value = int(whole) + Fraction(int(over), int(under))
        return -value if sign == "-" else value
    plain = _PLAIN.fullmatch(text)
    if plain is None or len(text) > 60:
        return None
    numerator, denominator = plain.groups()
    if any(_exponent(part) > 50 for part in (numerator, denominator) if part):
        return None
    under = Fraction(denominator.replace(",", "")) if denominator else Fraction(1)
    return Fraction(numerator.replace(",", "")) / under if under else None


def _exponent(number: str) -> int:
    parts = re.split("[eE]", number)
    return abs(int(parts[1])) if len(parts) == 2 else 0


@_remembered
def _verified(given: str, gold: str) -> bool:
    """Symbolic equality. Slow, and it may not end: the caller sees to a time limit."""
    one, other = _constant(given), _constant(gold)
    if one is not None and other is not None and not math.isclose(one, other, rel_tol=float(_DECIMALS)):
        return False  # two plain constants that differ: no algebra makes them equal
    verifier: Any = importlib.import_module("math_verify")
    try:
        return bool(verifier.verify(_parsed(gold), _parsed(given), timeout_seconds=None))
    except Exception:  # whatever a text does to a parser of mathematics, it is not the right answer
        return False


@_remembered
def _parsed(text: str) -> Any:
    verifier: Any = importlib.import_module("math_verify")
    wrapped = text if "$" in text or "\\boxed" in text else f"${text}$"
    return verifier.parse(wrapped, parsing_timeout=None)


@_remembered
def _constant(text: str) -> float | None:
    r"""The value of digits, ``+ - * / ^``, brackets, roots and pi, or None if there is anything else in a text."""
    if "**" in text:
        return None
    plain = _normal(_ROOT.sub(lambda m: f" *(({m[1] or m[2]})^0.5)", text))
    plain = plain.replace("\\pi", f" *{math.pi!r}").replace("\\cdot", "*").replace("\\times", "*")
    plain = plain.replace("{", "(").replace("}", ")")
    # A root or pi that stands first, or after an operator, is multiplied by nothing.
    plain = re.sub(r"(^|[-+*/^(])\s*\*(?=[\d(])", r"\1", plain.strip()).replace("^", "**")
    if _CONSTANT.fullmatch(plain) is None or re.search(r"[\d.)] +[\d.(]|[\d.)]\(|\)[\d.]", plain):
        return None
    try:
        return _computed(ast.parse(plain.strip(), mode="eval").body)
    except (SyntaxError, ValueError, ArithmeticError, KeyError, RecursionError, TypeError):
        return None


def _computed(node: ast.AST) -> float:
    if isinstance(node, ast.Constant):
        return float(str(node.value))
    if isinstance(node, ast.UnaryOp):
        return _OPERATIONS[type(node.op)](_computed(node.operand))
    if isinstance(node, ast.BinOp):
        return _OPERATIONS[type(node.op)](_computed(node.left), _computed(node.right))
    raise ValueError("not arithmetic")
