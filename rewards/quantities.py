r"""Numbers as people write them, exactly, with their units.

Thousands may be set off by commas or spaces; fractions, mixed numbers, powers of ten, repeating decimals, percentages
and small numbers in words are read.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from fractions import Fraction
from functools import lru_cache, wraps
from typing import NamedTuple, ParamSpec, TypeVar

from .answer_extraction import NUMBER

P = ParamSpec("P")
T = TypeVar("T")
# Results are remembered for texts of so many characters together, and so many of them: tens of megabytes at most.
_SHORT, _KEPT = 300, 16_384
# Characters of a number that is read, and its largest exponent.
_LONGEST, _EXPONENT = 60, 400
_SPACED = re.compile(r"[-+]?\d{1,3}(?: \d{3})+(?:\.\d+)?")
_PLAIN = re.compile(rf"({NUMBER.pattern})(?:\s*/\s*({NUMBER.pattern}))?")
_BRACKETED = re.compile(r"([-+]?)\s*\(([-+]?[\d,.]+)\)\s*/\s*\(([-+]?[\d,.]+)\)")
_MIXED = re.compile(r"([-+]?)(\d+)(?:\s+|\s*\+\s*)\(?(\d+)\)?\s*/\s*\(?(\d+)\)?")
_SCIENTIFIC = re.compile(rf"({NUMBER.pattern})\s*(?:\\times|\\cdot|[×·*x])\s*10\s*\^\s*\{{?\s*([-+]?\d+)\s*\}}?")
_POWER_OF_TEN = re.compile(r"([-+]?)10\s*\^\s*\{?\s*([-+]?\d+)\s*\}?")
_REPEATING = re.compile(r"([-+]?)(\d*)\.(\d*)\\overline\s*\{(\d+)\}")
_UNIT = re.compile(r"\s*\(?((?:[a-zA-Z°µμ²³]+\.?(?:\^\{?-?\d\}?)?(?:\s*/\s*|\s+|(?=\))|$))+)\)?")
_WORDS = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen"
).split()
_TENS = "twenty thirty forty fifty sixty seventy eighty ninety".split()
_IN_WORDS = {word: value for value, word in enumerate(_WORDS)} | {w: 10 * n for n, w in enumerate(_TENS, 2)}
_SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻", "0123456789-")
# One word for what is written in several ways. Plurals are seen to apart.
_ALIKE = {
    alias: unit
    for unit, aliases in {
        "°": "degree deg",
        "meter": "m metre",
        "centimeter": "cm centimetre",
        "millimeter": "mm millimetre",
        "kilometer": "km kilometre",
        "foot": "ft feet",
        "inch": "in",
        "mile": "mi",
        "yard": "yd",
        "gram": "g",
        "kilogram": "kg",
        "milligram": "mg",
        "pound": "lb",
        "ounce": "oz",
        "liter": "l litre",
        "milliliter": "ml millilitre",
        "second": "s sec",
        "minute": "min",
        "hour": "h hr",
        "dollar": "usd buck",
        "square": "sq",
        "cubic": "cu",
    }.items()
    for alias in aliases.split()
}
# Words of a unit without which it is another one.
_ESSENTIAL = frozenset({"square", "cubic", "per", "²", "³"})


def remembered(function: Callable[P, T]) -> Callable[P, T]:
    """Remember results for short texts: the samples of a group give the same few answers again and again."""
    kept = lru_cache(maxsize=_KEPT)(function)

    @wraps(function)
    def remembering(*args: P.args, **named: P.kwargs) -> T:
        short = sum(len(str(text)) for text in args) <= _SHORT
        return kept(*args, **named) if short else function(*args, **named)

    return remembering


class Quantity(NamedTuple):
    """A number, the words of its unit, and whether it is a percentage."""

    value: Fraction
    unit: frozenset[str]
    percent: bool

    def fits(self, other: Quantity) -> bool:
        """Whether the units do not speak against each other: one may be left out, or say less than the other."""
        if not self.unit or not other.unit:
            return True
        differ = self.unit ^ other.unit
        return not differ & _ESSENTIAL and (self.unit <= other.unit or other.unit <= self.unit)


@remembered
def exact_value(text: str) -> Fraction | None:
    """The number a text is, exactly, or None if it is not just a number."""
    if len(text) > _LONGEST:
        return None
    if _SPACED.fullmatch(text):
        return Fraction(text.replace(" ", ""))
    for pattern, read in _READINGS:
        match = pattern.fullmatch(text)
        if match:
            return read(match)
    return None


def _mixed(match: re.Match[str]) -> Fraction | None:
    sign, units, over, under = match.groups()
    if int(under) == 0:
        return None
    value = int(units) + Fraction(int(over), int(under))
    return -value if sign == "-" else value


def _quotient(match: re.Match[str]) -> Fraction | None:
    numerator, denominator = match.groups()
    if any(_exponent(part) > _EXPONENT for part in (numerator, denominator) if part):
        return None
    under = _fraction(denominator) if denominator else Fraction(1)
    return _fraction(numerator) / under if under else None


def _bracketed(match: re.Match[str]) -> Fraction | None:
    sign, over, under = match.groups()
    try:
        value = _fraction(over) / _fraction(under)
    except (ValueError, ZeroDivisionError):
        return None
    return -value if sign == "-" else value


def _scientific(match: re.Match[str]) -> Fraction | None:
    exponent = int(match[2])
    if abs(exponent) > _EXPONENT or _exponent(match[1]) > _EXPONENT:
        return None
    return _fraction(match[1]) * Fraction(10) ** exponent


def _power_of_ten(match: re.Match[str]) -> Fraction | None:
    exponent = int(match[2])
    if abs(exponent) > _EXPONENT:
        return None
    return (-1 if match[1] == "-" else 1) * Fraction(10) ** exponent


def _repeating(match: re.Match[str]) -> Fraction:
    sign, units, fixed, again = match.groups()
    shift, period = 10 ** len(fixed), 10 ** len(again) - 1
    value = Fraction(int(units or "0") * shift + int(fixed or "0"), shift) + Fraction(int(again), shift * period)
    return -value if sign == "-" else value


_READINGS: tuple[tuple[re.Pattern[str], Callable[[re.Match[str]], Fraction | None]], ...] = (
    (_MIXED, _mixed),
    (_PLAIN, _quotient),
    (_BRACKETED, _bracketed),
    (_SCIENTIFIC, _scientific),
    (_POWER_OF_TEN, _power_of_ten),
    (_REPEATING, _repeating),
)


def _fraction(number: str) -> Fraction:
    return Fraction(number.replace(",", ""))


def _exponent(number: str) -> int:
    parts = re.split("[eE]", number)
    return abs(int(parts[1])) if len(parts) == 2 else 0


@remembered
def quantity(text: str) -> Quantity | None:
    """The number that a text is, with its unit, or None if it is anything else."""
    text = text.translate(_SUPERSCRIPTS) if "10" in text else text
    text, percents = re.subn(r"\s*(?:%|\bper\s?cent\b)", "", text)
    text = text.strip()
    value = exact_value(text) if percents < 2 else None
    if value is None:
        value = _in_words(text)
    if value is not None:
        return Quantity(value, frozenset(), percents == 1)
    # The longest beginning that is a number; what follows must be a unit.
    for end in range(min(len(text), _LONGEST), 0, -1):
        if not text[end - 1].isdigit() and text[end - 1] not in ")}":
            continue
        value = exact_value(text[:end].strip())
        unit = _UNIT.fullmatch(text, end)
        if value is not None:
            return Quantity(value, _unit(unit[1]), percents == 1) if unit and percents < 2 else None
    return None


def _in_words(text: str) -> Fraction | None:
    parts = text.lower().replace("-", " ").split()
    if not 1 <= len(parts) <= 2 or not all(part in _IN_WORDS for part in parts):
        return None
    values = [_IN_WORDS[part] for part in parts]
    if len(values) == 1:
        return Fraction(values[0])
    return Fraction(sum(values)) if values[0] >= 20 and 0 < values[1] < 10 else None


def _unit(text: str) -> frozenset[str]:
    text = re.sub(r"\bin total\b", " ", text, flags=re.IGNORECASE)
    text = re.sub(r"\^\{?2\}?", "² ", text.replace("²", "² ").replace("/", " per "))
    text = re.sub(r"\^\{?3\}?", "³ ", text).replace("³", " ³ ").replace("²", " ² ").replace("°", " ° ")
    words = {_singular(word.rstrip(".").lower()) for word in text.split()}
    words = {{"square": "²", "cubic": "³"}.get(word, word) for word in words}
    return frozenset(words - {"of", "the", "a", "total"})


def _singular(word: str) -> str:
    if word in _ALIKE:
        return _ALIKE[word]
    for plural, singular in (("ies", "y"), ("ches", "ch"), ("shes", "sh"), ("xes", "x"), ("sses", "ss"), ("s", "")):
        if word.endswith(plural) and len(word) > len(plural) + 1 and not word.endswith("ss"):
            word = word.removesuffix(plural) + singular
            break
    return _ALIKE.get(word, word)
