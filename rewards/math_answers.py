r"""Whether a mathematical answer is right: quantities and plain algebra exactly, anything else by math-verify.

What a response commits to is found by `answer_extraction`. What would take forever to work out, such as a tower of
powers, is not worked out: unless it is written as the right answer is, it is wrong.
"""

from __future__ import annotations

import ast
import importlib
import math
import re
import signal
import threading
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from fractions import Fraction
from typing import Any, NamedTuple

from .answer_extraction import answer_in, gold_in, unwrapped
from .math_algebra import PI, BeyondAlgebraError, Quotient, quotient_of, same
from .quantities import Quantity, exact_value, quantity, remembered

# Relative difference up to which two numbers count as one where a decimal was written.
DECIMALS = Fraction(1, 10**6)
_FRACTION = re.compile(r"\\[dt]?frac\s*\{([^{}]+)\}\s*\{([^{}]+)\}|\\[dt]?frac\s*(\d)\s*(\d)")
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


@remembered
def normal(text: str) -> str:
    """A text without what carries no meaning in an answer."""
    text = re.sub(r"\s*\\!\s*", "", unwrapped(text).strip("$").replace("\\$", "").replace("\\%", "%"))
    text = text.replace("\u2212", "-")
    text = re.sub(r"\\(?:left|right|,|;|:|quad)\b|\\[,;:! ]|~|\{,\}", lambda m: "," if m[0] == "{,}" else "", text)
    text = re.sub(r"\\(?:text|mathrm|textbf|mathbf|mbox|textit|operatorname)\s*\{([^{}]*)\}", r" \1", text)
    text = re.sub(r"\^\s*\{?\\circ\}?|\\degree", "°", text)
    text = re.sub(r"(\d)\s*\\[dt]?frac\s*(?:\{(\d+)\}\s*\{(\d+)\}|(\d)\s*(\d))", _mixed_number, text)
    text = _FRACTION.sub(lambda m: f"({m[1] or m[3]})/({m[2] or m[4]})", text)
    text = re.sub(r"(?<![\w)])\(([-+]?[\d.,]+)\)(?![\w(^!])", r"\1", text)
    return re.sub(r"\s+", " ", text).strip().rstrip(".").strip("$€£").strip()


def _mixed_number(match: re.Match[str]) -> str:
    return f"{match[1]} {match[2] or match[4]}/{match[3] or match[5]}"


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


# A choice by its letter, alone or with its text: "B", "(B)", "B.", "B: Paris", "Option B".
_CHOICE = re.compile(r"(?:option|choice)?\s*(?:\(([A-J])\)|([A-J])(?:$|[.):]))", re.IGNORECASE)
# "x = 5" or "3 + 2 = 5", where the other side only says what it is.
_NAMED = re.compile(
    r"(?:([a-zA-Z](?:_\{?\w+\}?|'|\([a-zA-Z]\))?|[A-Za-z]{2,}[A-Za-z ]*)|[^=<>a-zA-Z\\]*)\s*=\s*([^=<>]+)"
)
# Characters of an answer that is worked out; digits of a number in it.
_LONGEST_EXPRESSION, _LONGEST_NUMBER = 2_000, 500
# Beyond these a factorial, a binomial coefficient or a power of numbers is not worked out.
_LARGEST_FACTORIAL, _LARGEST_EXPONENT = 1_000, 20_000
_BRACKETS = re.compile(r"\\?[({\[](.*?)\\?[)}\]]")
_SMALL_FACTORIAL = re.compile(r"\(\d{1,3}\)!$")
_POWER = re.compile(r"(?:\^|\*\*)\s*(\{|\(|[-+]?\d+)")
# Processor seconds for the verifier.
_VERIFY_S, _AGAIN_S = 2.0, 0.2
# How deep brackets may stand in each other.
_DEEPEST_BRACKETS = 40


def is_right(response: str, gold: str) -> bool:
    """Whether a response's answer equals the right one, numerically or symbolically."""
    wanted = gold_in(gold)
    answer = answer_in(response)
    if answer is None:
        # A bare list commits to nothing, unless a list is what was asked for.
        return _plain_text(response) == _plain_text(wanted) != ""
    if not answer.strip():
        return False
    if _plain_text(answer) == _plain_text(wanted):
        return True
    chosen = _chosen(answer, wanted)
    if chosen is not None:
        return chosen
    answer, wanted = _without_name(answer, wanted), _without_name(wanted, answer)
    value, right = quantity(normal(answer)), quantity(normal(wanted))
    if value is not None and right is not None:
        return value.fits(right) and _same_number(value, right)
    if (value is None) != (right is None) and (len(answer) > 200 or _items(answer) != _items(wanted)):
        return False
    return _verified(answer, wanted)


def _unbracketed(text: str) -> str:
    match = _BRACKETS.fullmatch(text)
    return match[1] if match else text


def _items(text: str) -> int:
    """How many things a text lists, which is one for a sentence; the verifier would take one of them for all."""
    if len(re.findall(r"(?<!\\)\b[A-Za-z]{3,}", text)) > 2:
        return 1
    inner, depth, items = _unbracketed(normal(text)), 0, 1
    for character in inner:
        depth += (character in "{([") - (character in "])}")
        items += character == "," and depth == 0
    return items


@remembered
def _plain_text(text: str) -> str:
    """A text for comparison to the letter: white space counts between digits only, and case not at all."""
    return re.sub(r"(?<!\d)\s+|\s+(?!\d)", "", normal(text)).casefold()


def _chosen(answer: str, gold: str) -> bool | None:
    """Whether the right one of several choices was taken; None where the right answer is no choice's letter."""
    wanted = _CHOICE.match(normal(gold))
    if wanted is None or (wanted.end() < len(normal(gold)) and normal(gold)[wanted.end() - 1].isalpha()):
        return None
    given = _CHOICE.match(normal(answer))
    if given is None:
        return None
    return (given[1] or given[2]).upper() == (wanted[1] or wanted[2]).upper()


def _without_name(text: str, other: str) -> str:
    """What a text says that a letter is, where the other one names none."""
    named = _NAMED.fullmatch(normal(text))
    if named is None or "=" in other or (named[1] is None and quantity(named[2].strip()) is None):
        return text
    return named[2].strip()


def _same_number(one: Quantity, other: Quantity) -> bool:
    """Equal in value; where one alone is a percentage, its sign may also have been left out of the other."""
    if _close(one.value, other.value):
        return True
    if one.percent == other.percent:
        return False
    percentage, number = (one, other) if one.percent else (other, one)
    return _close(percentage.value / 100, number.value)


def _close(one: Fraction, other: Fraction) -> bool:
    """Equal, or equal to six significant digits where a decimal was written."""
    if one == other:
        return True
    exact = one.denominator == 1 and other.denominator == 1
    return not exact and abs(one - other) <= DECIMALS * max(abs(one), abs(other))


@remembered
def _verified(answer: str, gold: str) -> bool:
    if any(len(text) > _LONGEST_EXPRESSION or endless(text) for text in (answer, gold)):
        return False
    settled = plainly_equal(answer, gold)
    return proved(answer, gold) if settled is None else settled


def endless(text: str) -> bool:
    """Whether working an expression out would take forever, as of ``10^{10^{10}}`` or ``1000000000!``."""
    if re.search(rf"\d{{{_LONGEST_NUMBER}}}", text) or _depth(text) > _DEEPEST_BRACKETS:
        return True
    plain = re.sub(r"(?<=\d),(?=\d{3})|[\s$]|\\left|\\right|\\[,!;:]", "", text)
    # What a factorial is of: a number, or brackets, which are taken to be large if no letter is in them.
    for match in re.finditer(r"(\d+)!|([)}\]!])!", plain):
        if match[2] is None:
            if int(match[1]) > _LARGEST_FACTORIAL:
                return True
        elif not re.search(r"[a-zA-Z]", plain[: match.start()]) and not re.search(
            r"\(\d{1,3}\)!$", plain[: match.end()]
        ):
            return True
    binomials = re.findall(r"\\[dt]?binom\{?(\d+)", plain)
    return any(int(n) > _LARGEST_FACTORIAL for n in binomials) or any(map(_large, _exponents(plain)))


def _depth(text: str) -> int:
    """How deep brackets stand in each other."""
    deepest = depth = 0
    for character in text:
        depth += (character in "{([") - (character in "])}")
        deepest = max(deepest, depth)
    return deepest


def _exponents(text: str) -> Generator[str]:
    """Every exponent in an expression, those of towers with all that stands on them."""
    for match in _POWER.finditer(text):
        if match[1] not in "{(":
            end = match.end()
        else:
            depth, end = 1, match.end()
            while depth and end < len(text):
                depth += (text[end] in "{(") - (text[end] in "})")
                end += 1
        if text[end : end + 1] == "^" or text[end : end + 2] == "**":
            yield f"{match[1]}^"
        yield text[match.start(1) : end]


def _large(exponent: str) -> bool:
    """Whether an exponent is a number beyond what is worked out; one with a letter in it is no number."""
    if re.search(r"[a-zA-Z]", re.sub(r"\\(?:cdot|times|[dt]?frac|sqrt|pi)", "", exponent)):
        return False
    found = computed(exponent.strip("{}"))
    return abs(found.value) > _LARGEST_EXPONENT if found else "^" in exponent or "**" in exponent or "!" in exponent


class _EndlessError(BaseException):
    """The verifier has had its time; no handler of its own catches this."""


@contextmanager
def _bounded() -> Generator[None]:
    """Processor time for the verifier, where signals can be had: then `_EndlessError`."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def over(*_: object) -> None:
        raise _EndlessError

    before = signal.signal(signal.SIGPROF, over)
    # Again and again: what is raised in a destructor or a callback goes no further.
    signal.setitimer(signal.ITIMER_PROF, _VERIFY_S, _AGAIN_S)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def proved(answer: str, gold: str) -> bool:
    """Symbolic equality by math-verify, which catches what its parser raises; False where it comes to no end."""
    verifier: Any = importlib.import_module("math_verify")
    try:
        with _bounded():
            return bool(verifier.verify(_parsed(gold), _parsed(answer), timeout_seconds=None))
    except _EndlessError:
        return False


@remembered
def _parsed(text: str) -> Any:
    verifier: Any = importlib.import_module("math_verify")
    wrapped = text if "$" in text or "\\boxed" in text else f"${text}$"
    return verifier.parse(wrapped, parsing_timeout=None)
