r"""Mathematical answers as texts: what they say, what number they are, and whether plain arithmetic settles equality.

A verifier of symbolic equality takes tens of milliseconds a pair. Most wrong answers differ from the right one in a
number, which arithmetic sees at once: only what it cannot settle has to go to the verifier.
"""

from __future__ import annotations

import ast
import math
import re
from collections.abc import Callable, Mapping
from fractions import Fraction
from functools import lru_cache, wraps
from typing import NamedTuple, ParamSpec, TypeVar

from sota_ml_researcher.training.reward_algebra import PI, BeyondAlgebraError, Quotient, quotient_of, same

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


class Computed(NamedTuple):
    """An expression's value where each of its variables has a fixed value of its own."""

    value: float
    variables: frozenset[str]


@remembered
def computed(text: str) -> Computed | None:
    r"""The value of an expression of digits, ``+ - * / ^``, brackets, roots, pi and single letters; None for others.

    Sines, cosines, tangents and natural logarithms may be in it too. Other logarithms differ in what base is meant.
    """
    found = _expression(text)
    if found is None:
        return None
    values = {letter: _some_number(letter) for letter in found.variables} | {PI: math.pi}
    try:
        return Computed(_value_of(found.node, values), found.variables)
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
    found = None if _CALL.search(text) else _expression(text)
    if found is None:
        return None
    try:
        return quotient_of(found.node)
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
    found = _LIST.fullmatch(normal(text))
    if found is None or (found[2].count(",") > 1 and _THOUSANDS.search(found[2])):
        return None
    values = [exact_value(part.strip()) for part in found[2].split(",")]
    numbers = tuple(value for value in values if value is not None)
    if len(numbers) < len(values):
        return None
    return found[1] + found[3], tuple(sorted(set(numbers))) if found[1] == "\\{" else numbers
