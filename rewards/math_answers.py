r"""Whether a mathematical answer is right: numbers and plain algebra exactly, anything else by math-verify.

The answer is what the response commits to: ``\boxed{}``, ``<answer>``, ``####``, "the answer is", the right side of
the last equation, or the whole response. A response that merely contains the right number among others does not count.
"""

from __future__ import annotations

import ast
import importlib
import math
import re
from collections.abc import Callable, Mapping
from fractions import Fraction
from functools import lru_cache, wraps
from typing import Any, NamedTuple, ParamSpec, TypeVar

from .math_algebra import PI, BeyondAlgebraError, Quotient, quotient_of, same

P = ParamSpec("P")
T = TypeVar("T")
NUMBER = re.compile(r"[-+]?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?(?:[eE][-+]?\d+)?|[-+]?\.\d+")
# Relative difference up to which two numbers count as one where a decimal was written.
DECIMALS = Fraction(1, 10**6)
_PLAIN = re.compile(rf"({NUMBER.pattern})(?:\s*/\s*({NUMBER.pattern}))?")
_FRACTION = re.compile(r"\\[dt]?frac\s*\{([^{}]+)\}\s*\{([^{}]+)\}|\\[dt]?frac\s*(\d)\s*(\d)")
_MIXED = re.compile(r"([-+]?)(\d+)\s+(\d+)\s*/\s*(\d+)")
_ROOT = re.compile(r"\\sqrt\s*\{([^{}]*)\}|\\sqrt\s*(\d)")
# Single letters that are variables; e and i are numbers, and a letter beside another is a word or a unit.
_VARIABLE = re.compile(r"(?<![A-Za-z\\])[a-df-hj-zA-Z](?![A-Za-z])")
# What an expression is made of once it is written as Python writes it; a name is a variable or pi.
_FUNCTIONS: Mapping[str, tuple[str, Callable[[float], float]]] = {
    "σ": ("sin", math.sin),
    "κ": ("cos", math.cos),
    "τ": ("tan", math.tan),
    "λ": ("ln", math.log),
}
_FUNCTION_NAMES = "".join(_FUNCTIONS)
_ARITHMETIC = re.compile(rf"[\d.+\-*/() a-df-hj-zA-Z{PI}{_FUNCTION_NAMES}]+")
# A number or letter after a function, without brackets, if nothing follows that may belong to it too.
_BARE_ARGUMENT = re.compile(rf"([{_FUNCTION_NAMES}])\s*(\d+|[a-df-hj-zA-Z])(?!\s*[\w.(^\\*/])")
_DEFINITION = re.compile(r"([a-zA-Z](?:\([a-zA-Z]\))?)\s*=([^=<>]+)")
# How deep roots may stand in each other.
_DEEPEST = 4
_PI = re.compile(rf"\\pi|{PI}")
# Letters that name functions more often than numbers: before a bracket they say nothing about a product.
_CALL = re.compile(r"(?<![A-Za-z\\])[fghFGHP]\s*\(")
_LIST = re.compile(r"(\\\{|[\[(])(.+,.+)(\\\}|[\])])")
_THOUSANDS = re.compile(r"\d,\d{3}(?!\d)")
_OPERATIONS: Mapping[type[ast.AST], Callable[..., float]] = {
    ast.Add: float.__add__,
    ast.Sub: float.__sub__,
    ast.Mult: float.__mul__,
    ast.Div: float.__truediv__,
    ast.Pow: math.pow,
    ast.USub: float.__neg__,
    ast.UAdd: float.__pos__,
}
# Results are remembered for texts of so many characters together, and so many of them: tens of megabytes at most.
_SHORT, _KEPT = 300, 16_384


def remembered(function: Callable[P, T]) -> Callable[P, T]:
    """Remember results for short texts: the samples of a group give the same few answers again and again."""
    kept = lru_cache(maxsize=_KEPT)(function)

    @wraps(function)
    def remembering(*args: P.args, **named: P.kwargs) -> T:
        short = sum(len(str(text)) for text in args) <= _SHORT
        return kept(*args, **named) if short else function(*args, **named)

    return remembering


@remembered
def normal(text: str) -> str:
    """A text without what carries no meaning in an answer."""
    text = text.strip().strip("$").replace("\\$", "").replace("\\%", "%").replace("\\!", "").replace("\u2212", "-")
    text = re.sub(r"\\(?:left|right|,|;|:|quad)\b|\\[,;:! ]", "", text)
    text = re.sub(r"\\(?:text|mathrm|textbf|mbox)\s*\{([^{}]*)\}", r" \1", text)
    text = re.sub(r"\^\s*\{?\\circ\}?|\\degree", "°", text)
    text = re.sub(r"(\d)\s*\\[dt]?frac\s*\{(\d+)\}\s*\{(\d+)\}", r"\1 \2/\3", text)
    text = _FRACTION.sub(lambda m: f"({m[1] or m[3]})/({m[2] or m[4]})", text)
    text = re.sub(r"(?<![\w)])\(([-+]?[\d.,]+)\)(?![\w(^])", r"\1", text)
    return re.sub(r"\s+", " ", text).strip().rstrip(".").strip("$€£").strip()


@remembered
def exact_value(text: str) -> Fraction | None:
    """The number a text is, exactly, or None if it is not just a number."""
    mixed = _MIXED.fullmatch(text)
    if mixed:
        sign, units, over, under = mixed.groups()
        if int(under) == 0:
            return None
        value = int(units) + Fraction(int(over), int(under))
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


class Computed(NamedTuple):
    """An expression's value where each of its variables has a fixed value of its own."""

    value: float
    variables: frozenset[str]


@remembered
def computed(text: str) -> Computed | None:
    r"""The value of an expression of digits, ``+ - * / ^``, brackets, roots, pi and single letters; None for others.

    Sines, cosines, tangents and natural logarithms may be in it too. Other logarithms differ in what base is meant.
    """
    expression = _expression(text)
    if expression is None:
        return None
    values = {letter: _some_number(letter) for letter in expression.variables} | {PI: math.pi}
    try:
        return Computed(_value_of(expression.node, values), expression.variables)
    except (ValueError, ArithmeticError, KeyError, RecursionError, TypeError):
        return None


class _Expression(NamedTuple):
    """An expression in Python's syntax, and the letters in it."""

    node: ast.expr
    variables: frozenset[str]


@remembered
def _expression(text: str) -> _Expression | None:
    if "**" in text or any(name in text for name in _FUNCTION_NAMES):
        return None
    plain = text
    for _ in range(_DEEPEST):
        plain = _ROOT.sub(lambda m: f" *(({m[1] or m[2]})^0.5)", plain)
    plain = _PI.sub(f" *{PI}", normal(plain)).replace("\\cdot", "*").replace("\\times", "*")
    for name, (written, _) in _FUNCTIONS.items():
        plain = re.sub(rf"\\{written}(?![a-zA-Z])", f" *{name}", plain)
    plain = _BARE_ARGUMENT.sub(r"\1(\2)", plain)
    variables = frozenset(_VARIABLE.findall(plain))
    plain = _VARIABLE.sub(r" *\g<0>", plain).replace("{", "(").replace("}", ")")
    # What is multiplied by nothing, because it stands first or after an operator; and what stands before a bracket.
    plain = re.sub(rf"(^|[-+*/^(])\s*\*(?=[\da-zA-Z{PI}{_FUNCTION_NAMES}(])", r"\1", plain.strip())
    plain = re.sub(rf"(?<=[\da-zA-Z{PI}.)])\(", "*(", plain).replace("^", "**")
    if _ARITHMETIC.fullmatch(plain) is None or re.search(r"\d[a-zA-Z]", plain):
        return None
    try:
        return _Expression(ast.parse(plain, mode="eval").body, variables)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None


@remembered
def _quotient(text: str) -> Quotient | None:
    """What an expression is exactly, or None where that is too hard to say."""
    expression = None if _CALL.search(text) else _expression(text)
    if expression is None:
        return None
    try:
        return quotient_of(expression.node)
    except (BeyondAlgebraError, RecursionError):
        return None


def _some_number(letter: str) -> float:
    """A value for a variable that no exercise would have."""
    return 0.5 + math.modf(math.sqrt(ord(letter)) * math.pi)[0]


def _value_of(node: ast.AST, values: Mapping[str, float]) -> float:
    if isinstance(node, ast.Constant):
        return float(str(node.value))
    if isinstance(node, ast.Name):
        return values[node.id]
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and len(node.args) == 1 and not node.keywords:
        return _FUNCTIONS[node.func.id][1](_value_of(node.args[0], values))
    if isinstance(node, ast.UnaryOp):
        return _OPERATIONS[type(node.op)](_value_of(node.operand, values))
    if isinstance(node, ast.BinOp):
        return _OPERATIONS[type(node.op)](_value_of(node.left, values), _value_of(node.right, values))
    raise ValueError("not arithmetic")


def plainly_equal(one: str, other: str) -> bool | None:
    """Whether two answers are equal where arithmetic settles it, else None.

    Expressions that differ in value are different; those that agree in it are equal if exact algebra says so, and left
    open otherwise. Intervals, tuples and sets of plain numbers are settled either way. Where both say what one letter
    or function is, what it is decides.
    """
    definitions = _DEFINITION.fullmatch(one.strip()), _DEFINITION.fullmatch(other.strip())
    if definitions[0] and definitions[1]:
        if definitions[0][1] != definitions[1][1] or any(d[1][0] in d[2] for d in definitions if d):
            return None
        return plainly_equal(definitions[0][2], definitions[1][2])
    lists = _numbers(one), _numbers(other)
    if lists[0] is not None and lists[1] is not None:
        return lists[0] == lists[1] if lists[0][0] == lists[1][0] else None
    here, there = computed(one), computed(other)
    if here is None or there is None or here.variables != there.variables:
        return None
    if not math.isclose(here.value, there.value, rel_tol=float(DECIMALS)):
        return False
    forms = _quotient(one), _quotient(other)
    try:
        return True if forms[0] is not None and forms[1] is not None and same(forms[0], forms[1]) else None
    except BeyondAlgebraError:
        return None


@remembered
def _numbers(text: str) -> tuple[str, tuple[Fraction, ...]] | None:
    """The brackets of an interval, a tuple or a set and its numbers, a set's in order; None for anything else."""
    match = _LIST.fullmatch(normal(text))
    if match is None or (match[2].count(",") > 1 and _THOUSANDS.search(match[2])):
        return None
    values = [exact_value(part.strip()) for part in match[2].split(",")]
    numbers = tuple(value for value in values if value is not None)
    if len(numbers) < len(values):
        return None
    return match[1] + match[3], tuple(sorted(set(numbers))) if match[1] == "\\{" else numbers


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
        answers = pattern.findall(text)
        if answers:
            return str(answers[-1]).strip()
    text = text.strip()
    if "=" in text and "\n" not in text:
        return text.rsplit("=", 1)[1].strip()
    if len(text) <= 80 and len(NUMBER.findall(text)) > 1 and "," in text and exact_value(text) is None:
        return None
    if len(set(NUMBER.findall(text))) == 1 and len(text) > 24:
        return str(NUMBER.findall(text)[0])
    return text or None


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
    answer = answer_in(response)
    if answer is None or not answer.strip():
        return False
    right, unit, percent = _measured(gold)
    value, their_unit, their_percent = _measured(answer)
    if right is not None and value is not None:
        if unit and their_unit and unit != their_unit:
            return False
        scales = {Fraction(1), Fraction(1, 100)} if percent != their_percent else {Fraction(1)}
        return any(_close(value * scale, right) or _close(value, right * scale) for scale in scales)
    if normal(answer) == normal(gold):
        return True
    if (right is None) != (value is None) and len(answer) > 200:
        return False
    return _verified(answer, gold)


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
def _verified(answer: str, gold: str) -> bool:
    settled = plainly_equal(answer, gold)
    return proved(answer, gold) if settled is None else settled


def proved(answer: str, gold: str) -> bool:
    """Symbolic equality by math-verify. Slow, and it may not end: the caller sets a time limit."""
    verifier: Any = importlib.import_module("math_verify")
    try:
        return bool(verifier.verify(_parsed(gold), _parsed(answer), timeout_seconds=None))
    except Exception:  # whatever a text does to a parser of mathematics, it is not the right answer
        return False


@remembered
def _parsed(text: str) -> Any:
    verifier: Any = importlib.import_module("math_verify")
    wrapped = text if "$" in text or "\\boxed" in text else f"${text}$"
    return verifier.parse(wrapped, parsing_timeout=None)
