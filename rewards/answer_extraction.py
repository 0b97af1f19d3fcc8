r"""What a response to a mathematical question commits to: the part of it that is compared with the right answer.

In this order: the last ``\boxed{}``, ``<answer>``, a line of ``####`` that holds an answer (and is no heading), what
follows "the answer is", a formula at the end, the right side of the last equation, a number that stands alone on the
last line, or the whole response. Thinking is left out. A response that merely contains the right number among others
commits to nothing.
"""

from __future__ import annotations

import re

from .response_text import after_thinking

NUMBER = re.compile(r"[-+]?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?(?:[eE][-+]?\d+)?|[-+]?\.\d+")
_LONGEST = 20_000
_TAG = re.compile(r"<answer>(.*?)</answer>", re.DOTALL | re.IGNORECASE)
_HASHES = re.compile(r"^.*?####[ \t]*(.+)$", re.MULTILINE)
# Whether a line of #### may be an answer although more follows it: it begins as a value does, or is one letter.
_VALUE = re.compile(r"[-+.(\[{$€£\\*]*\s*(?:\d|\\[a-zA-Z{(]|[A-Za-z]\b(?![ ']))")
_SENTENCE = re.compile(
    r"\banswer\b[*_\"']*(?:\s+(?:to|of|for)\b[^.\n:]{0,80}?)?\s*(?:\bis\b|[:=])[:\s*_]*"
    r"(?:(?:therefore|thus|simply|just|exactly|equal\s+to|option|choice)\b[:\s]*)*"
    r"(\$[^$\n]+\$|\\\([^\n]+?\\\)|\*\*[^*\n]+\*\*|.+?)"
    r"(?:\.?[*_]*\s*$|[.!][*_]*\s|\n)",
    re.IGNORECASE | re.MULTILINE,
)
# Words after which a sentence says no more of the answer itself.
_REASON = re.compile(r",?\s+(?:because|since|as|so|which|where|when)\s.*|[;,]\s+[a-z].*", re.DOTALL)
_FORMULA = re.compile(r"\$\$(.+?)\$\$|\$(.+?)\$|\\\((.+?)\\\)|\\\[(.+?)\\\]", re.DOTALL)
_WRAPPED = re.compile(
    r"\*\*(.+)\*\*|__(.+)__|\*(.+)\*|`(.+)`|\\\((.+)\\\)|\\\[(.+)\\\]|\$\$(.+)\$\$|\$([^$]+)\$", re.DOTALL
)
_BARE_LIST = re.compile(r"[\s\d,.;+-]*(?:\band\b|\bor\b)?[\s\d,.;+-]*")
_WORD = re.compile(r"[A-Za-z]{2,}")
_BOX = re.compile(r"\\[fb][a-z]*\s*\{")
_BETWEEN = re.compile(r"(?:[\s$,;]|\\quad|\\(?:text|mathrm)\{\s*(?:and|or)\s*\}|\b(?:and|or)\b|\\[()\[\]])*")
# What comes before an equals sign and is no part of an equation: words, or arithmetic without a letter.
_WORDS = re.compile(r"(?:\\(?:text|mathrm)\{[^{}]*\}|[A-Za-z]{2,}|[^A-Za-z=])*")
# A backslash and the letter n, where a file has written a line end so; not the beginning of a command such as \neq.
_WRITTEN_LINE_END = re.compile(r"\\n(?![a-zA-Z])")


def answer_in(response: str) -> str | None:
    """What a response commits to, or None if it commits to nothing."""
    text = _WRITTEN_LINE_END.sub("\n", after_thinking(response))[-_LONGEST:]
    boxed = last_boxed(text)
    if boxed is not None:
        return boxed
    answer = _marked(text) or _unmarked(text.strip())
    return unwrapped(answer) or None if answer else None


def gold_in(gold: str) -> str:
    r"""The right answer in what a data set gives for it: after ``####``, or in a ``\boxed{}``, or all of it."""
    if "####" in gold:
        return gold.rsplit("####", 1)[1].strip()
    return last_boxed(gold) or gold.strip()


def last_boxed(text: str) -> str | None:
    r"""What the last ``\boxed{}`` holds; of several with nothing but an "and" between them, what all hold."""
    found, upto = list[str](), len(text)
    while (start := max(text.rfind("\\boxed", 0, upto), text.rfind("\\fbox", 0, upto))) >= 0:
        held, end = _held(text, start)
        if found and (held is None or end > upto or not _BETWEEN.fullmatch(text[end:upto])):
            break
        if held is None:
            return None
        found.insert(0, held)
        upto = start
    return ", ".join(found) if found else None


def _held(text: str, start: int) -> tuple[str | None, int]:
    """What the box that begins at ``start`` holds, and where it ends; None where it is empty or never ends."""
    opening = _BOX.match(text, start)
    if opening is None:
        said = text[start:].split(" ", 1)[-1].split("$")[0]
        return said.strip() or None, len(text)
    depth = 0
    for position in range(opening.end() - 1, len(text)):
        if text[position - 1] != "\\":
            depth += (text[position] == "{") - (text[position] == "}")
        if depth == 0:
            return text[opening.end() : position].strip(), position + 1
    return None, len(text)


def unwrapped(text: str) -> str:
    """A text without the marks of emphasis and of formulas around the whole of it."""
    text = text.strip()
    for _ in range(4):
        match = _WRAPPED.fullmatch(text.rstrip(".").strip())
        inner = next(filter(None, match.groups())) if match else ""
        if not inner or any(mark in inner for mark in ("**", "$$", "\\(", "\\[")):
            return text
        text = inner.strip()
    return text


def _marked(text: str) -> str | None:
    """What stands where answers are marked."""
    tags = _TAG.findall(text)
    if tags:
        return str(tags[-1]).strip()
    lines = [match for match in _HASHES.finditer(text) if _is_answer(match, text)]
    if lines:
        return str(lines[-1][1]).strip()
    said = [match[1] for match in _SENTENCE.finditer(text)]
    while said and (again := _SENTENCE.search(f"{said[-1]}\n")):  # "Final answer: the answer is 5"
        said.append(again[1])
    return _committed(_REASON.sub("", unwrapped(said[-1]))) if said else None


def _committed(said: str) -> str:
    """What an answer in a sentence comes to: where it is prose with one number in it, the number."""
    numbers = set(NUMBER.findall(said))
    is_prose = len(_WORD.findall(said)) > 2 and "\\" not in said
    return numbers.pop() if len(numbers) == 1 and is_prose else said


def _is_answer(match: re.Match[str], text: str) -> bool:
    """Whether a line of #### is an answer rather than a heading: it is the last line, or begins as a value does."""
    return not text[match.end() :].strip() or _VALUE.match(match[1]) is not None


def _unmarked(text: str) -> str | None:
    """The answer of a response that marks none."""
    formulas = list(_FORMULA.finditer(text))
    if formulas and not text[formulas[-1].end() :].strip(" .\n*"):
        return _right_side(next(filter(None, formulas[-1].groups())))
    if "=" in text and "\n" not in text:
        return _right_side(text)
    last = unwrapped(text.rsplit("\n", 1)[-1])
    if "\n" in text and (NUMBER.fullmatch(last.rstrip(".").strip("$€£% ")) or re.fullmatch(r"\(?[A-J]\)?\.?", last)):
        return last
    numbers = NUMBER.findall(text)
    if len(text) <= 80 and len(numbers) > 1 and "," in text and _BARE_LIST.fullmatch(text):
        return None
    if len(set(numbers)) == 1 and len(text) > 24 and "\\" not in text:
        return str(numbers[0])
    return unwrapped(text)


def _right_side(formula: str) -> str:
    r"""What a chain such as ``3 + 4 = 7`` comes to; an equation between expressions with letters stays what it is."""
    sides, depth = [""], 0
    for i, character in enumerate(formula):
        depth += (character in "{(") - (character in "})")
        if character == "," and depth == 0 and not formula[i + 1 : i + 2].isdigit():
            return formula.strip()
        if character == "=" and depth == 0 and formula[i - 1 : i] not in tuple("<>!:\\"):
            sides.append("")
        else:
            sides[-1] += character
    return sides[-1].strip() if len(sides) != 2 or _WORDS.fullmatch(sides[0]) else formula.strip()
