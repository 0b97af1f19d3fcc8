"""What a made row must pass: rules that a program can tell."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..data.formats import repeats
from ..data.near_duplicates import Sketches, similar_pairs
from ..data.words import words_in
from ..doctrine.rules import number
from ..judges.prompt import EvalItem
from .generation_config import GateRule
from .model_answers import Written

_REFUSAL = re.compile(
    r"(?:i'?m sorry|i am sorry|sorry[,.!]|i apologi[sz]e|(?:but )?i (?:cannot|can't|can not|won't|am unable to|"
    r"am not able to|must decline)|i'm (?:unable|not able) to|as an? (?:ai|artificial intelligence|large language)\b)",
    re.IGNORECASE,
)
# Two prompts may well have the answer "yes"; that two have the same sentence is no coincidence.
_LEAST_WORDS_OF_ONE_ANSWER = 8
_SPACE = re.compile(r"\s+")
_WORDS = re.compile(r"\w+")


@dataclass(frozen=True, slots=True)
class Task:
    """One source that rows are made of.

    Attributes:
        number: Its place among all, from 0.
        item: Its prompt, and its answer where it has one; of a passage, the passage.
        source: Where it stands: file and line, or document and range of characters.
        operation: What is done to it, where a recipe has several.
    """

    number: int
    item: EvalItem
    source: Mapping[str, Any]
    operation: str = ""


@dataclass(frozen=True, slots=True)
class Draft:
    """A row as it was made, before it has passed the gate.

    Attributes:
        row: Its content, as the next step reads it.
        prompt: Its prompt as text; the same prompt twice is a duplicate.
        answer: Its answer, or the answers of which the better was chosen.
        written: The model's answer it comes from; None where a rule made it.
        judged: What a judge is shown as the request, or None where nothing is left to judge.
        copied_from: What it must not repeat.
        fault: Why the recipe itself cannot use it, or None.
        facts: What its provenance holds besides what all have.
    """

    row: Mapping[str, Any]
    prompt: str
    answer: str
    written: Written | None
    judged: EvalItem | None = None
    copied_from: str = ""
    fault: str | None = None
    facts: Mapping[str, Any] = field(default_factory=dict[str, Any])


def fault_of(draft: Draft, rules: Sequence[GateRule]) -> str | None:
    """What its recipe says against a draft, or the first rule that it breaks by itself."""
    if draft.fault is not None:
        return draft.fault
    written = draft.written
    broken: Mapping[GateRule, bool] = {
        "empty": not draft.answer.strip(),
        "cut": written is not None and written.is_cut,
        "control": written is not None and written.control,
        "refusal": written is not None and is_refusal(written),
        "copy": is_copy(draft.copied_from, draft.answer),
    }
    return next((rule for rule in rules if broken.get(rule)), None)


def is_refusal(written: Written) -> bool:
    """Whether an answer refuses, by the service's word or by how it begins."""
    return written.stop_reason == "refusal" or bool(_REFUSAL.match(written.answer.replace("’", "'")))


def is_copy(source: str, answer: str) -> bool:
    """Whether an answer is its source again, or begins with it and goes on."""
    return bool(source) and (plain(source) == plain(answer) or repeats(source, answer))


def plain(text: str) -> str:
    """A text without case and runs of white space, for comparing."""
    return _SPACE.sub(" ", text).strip().casefold()


def repeated(drafts: Sequence[Draft], rules: Sequence[GateRule], *, by_prompt: bool) -> dict[int, str]:
    """The drafts, by position, that an earlier one makes superfluous, and the rule that says so.

    Args:
        drafts: Those that have passed so far, in their order.
        rules: The rules that hold.
        by_prompt: Compare prompts, near ones too (`data.near_duplicates`), for recipes that make them; else rows.
    """
    found: dict[int, str] = {}
    seen: set[bytes] = set()
    answered: dict[bytes, str] = {}
    for at, draft in enumerate(drafts):
        same = _digest(draft.prompt if by_prompt else f"{draft.prompt}\0{draft.answer}")
        if "duplicate" in rules and same in seen:
            found[at] = "duplicate"
        elif "one_answer" in rules and _says_as_another(draft, answered):
            found[at] = "one_answer"
        seen.add(same)
    if by_prompt and "duplicate" in rules:
        found |= dict.fromkeys(_near([d.prompt for d in drafts], found), "duplicate")
    return found


def _says_as_another(draft: Draft, answered: dict[bytes, str]) -> bool:
    if len(_WORDS.findall(draft.answer)) < _LEAST_WORDS_OF_ONE_ANSWER:
        return False
    first = answered.setdefault(_digest(draft.answer), plain(draft.prompt))
    return first != plain(draft.prompt)


def _near(prompts: Sequence[str], gone: Mapping[int, str]) -> Iterable[int]:
    """Positions of prompts that are nearly an earlier one which stays."""
    kept = [at for at in range(len(prompts)) if at not in gone]
    sketches = Sketches()
    sketches.add(words_in([prompts[at] for at in kept]))
    dropped: set[int] = set()
    for pair in similar_pairs(sketches.rows()):
        if pair.first not in dropped:
            dropped.add(pair.second)
    return [kept[at] for at in sorted(dropped)]


def _digest(text: str) -> bytes:
    return hashlib.blake2b(plain(text).encode("utf-8", "replace"), digest_size=12).digest()


def quoted_range(passage: str, quote: str) -> tuple[int, int] | None:
    """Where a quote stands in a passage, white space and case aside; None where it does not."""
    words = quote.split()
    if not words:
        return None
    found = re.search(r"\s+".join(map(re.escape, words)), passage, re.IGNORECASE)
    return found.span() if found else None


def is_grounded(passage: str, answer: str) -> bool:
    """Whether an answer can rest on a passage: its numbers stand there, and enough of its longer words."""
    there = set(_WORDS.findall(passage.casefold()))
    words = _WORDS.findall(answer.casefold())
    if not all(word in there for word in words if word.isdigit()):
        return False
    telling = [word for word in words if len(word) > 3]
    return not telling or sum(word in there for word in telling) / len(telling) >= number("data.made.grounded")
