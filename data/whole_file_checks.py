"""What only the whole file shows of a row: an answer that many prompts share, an end unlike its peers, its length."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias, cast

import numpy as np
from numpy.typing import NDArray

from ..doctrine.rules import number, rule
from ..models.chat import Conversation, is_trained
from .languages import LANGUAGES, UNKNOWN, LanguageDetector
from .row_findings import RowFindings
from .words import Words

_LONG_ANSWER = 40
_PROSE = 200
_LEAST_LINE = 40
_LEAST_PEERS = 50
_ENDS = frozenset(".!?…。！？:)]}\"'”’»`*>|」』）")
# The end of a letter, and of a list on one line.
_CLOSING = re.compile(r"(?i)\b(?:sincerely|regards|yours|respect|wishes|love|cheers|faithfully|truly)\b| - ")
_CLOSING_CHARACTERS = 60
_MANY = 50
_LEAST_CAP = 32
_LEAST_SPREAD = 0.5
_OTHER, _CLOSED, _OPEN = 0, 1, 2


_ROW = np.dtype(
    [
        ("line", "i8"),
        ("prompt", "i8"),
        ("answer", "i8"),
        ("characters", "i4"),
        ("tokens", "i4"),
        ("trained", "i4"),
        ("is_long_alone", "?"),
        ("end", "i1"),
        ("language", "i1"),
    ]
)
Rows: TypeAlias = NDArray[np.void]
Found: TypeAlias = Iterator[tuple[str, NDArray[np.bool_], str]]


@dataclass(frozen=True, slots=True)
class SeenRow:
    """A usable row: its number, conversation, words as one text, and its tokens, all and trained (0 if not counted)."""

    line: int
    chat: Conversation
    text: str
    tokens: int = 0
    trained: int = 0


class WholeFile:
    """What is kept of each row until the end of the file: about 40 bytes."""

    def __init__(self) -> None:
        self._languages = LanguageDetector()
        self._blocks: list[Rows] = []

    def add(self, rows: Sequence[SeenRow], words: Words) -> None:
        """Take in some rows, and the words of all of them."""
        if rows:
            languages = self._languages.detect([row.text for row in rows], words).tolist()
            block = [_row(row, language) for row, language in zip(rows, languages, strict=True)]
            self._blocks.append(np.array(block, dtype=_ROW))

    def note(self, findings: RowFindings) -> None:
        """Say which rows stand out."""
        if not self._blocks:
            return
        rows = np.concatenate(self._blocks)
        for kind, found, example in _found(rows):
            for line in rows["line"][found].tolist():
                findings.note(kind, line)
            if example:
                findings.explain(kind, example)


def _row(row: SeenRow, language: int) -> tuple[int, ...]:
    """What a row is remembered by, in the order of `_ROW`."""
    asked = answer = ""
    answers = 0
    for message in row.chat.messages:
        if is_trained(message):
            answer = message["content"] or answer
            answers += 1
        elif message["role"] == "user":
            asked = message["content"]
    said = answer.strip()
    sizes = (len(row.text), row.tokens, row.trained)
    return (row.line, hash(asked), hash(said), *sizes, answers == 1 and len(said) >= _LONG_ANSWER, _end(said), language)


def _end(said: str) -> int:
    """Whether a long answer of prose ends its last sentence."""
    if len(said) < _PROSE:
        return _OTHER
    if said[-1] in _ENDS:
        return _CLOSED
    if not said[-1].islower() or said.count(". ") < 2 or "```" in said:
        return _OTHER
    line = said[said.rfind("\n") + 1 :]
    last = line[max(line.rfind(mark) for mark in ".!?") + 1 :]  # the sentence that may be cut
    is_prose = len(line) >= _LEAST_LINE and line[0].isalpha() and line.count(" ") >= 6
    is_cut = last.rpartition(" ")[2][:1].islower() and not _CLOSING.search(last[-_CLOSING_CHARACTERS:])
    return _OPEN if is_prose and is_cut else _OTHER


def _found(rows: Rows) -> Found:
    """Each kind that is there: which rows have it, and a detail."""
    yield from _one_answer(rows)
    peers = number_in("data.cut_answer", "peers")
    closed, opened = np.count_nonzero(rows["end"] == _CLOSED), rows["end"] == _OPEN
    if opened.any() and closed >= _LEAST_PEERS and closed >= peers * (closed + np.count_nonzero(opened)):
        yield "cut_sentence", opened, f"{closed:,} other long answers end a sentence"
    yield from _cap(rows)
    yield from _lengths(rows)
    yield from _strangers(rows)


def _one_answer(rows: Rows) -> Found:
    order = np.lexsort((rows["prompt"], rows["answer"]))
    answers, prompts = rows["answer"][order], rows["prompt"][order]
    is_new = np.ones(len(order), dtype=np.bool_)
    is_new[1:] = (answers[1:] != answers[:-1]) | (prompts[1:] != prompts[:-1])
    values, prompts_of = np.unique(answers[is_new], return_counts=True)
    least = max(number_in("data.one_answer", "least_rows"), number_in("data.one_answer", "share") * is_new.sum())
    common = values[prompts_of >= least]
    found = np.isin(rows["answer"], common) & (rows["is_long_alone"])
    if is_new.sum() >= _MANY:
        most = values[prompts_of >= number_in("data.one_answer", "short_share") * is_new.sum()]
        found |= np.isin(rows["answer"], most)
    if found.any():
        yield "one_answer", found, ""


def _cap(rows: Rows) -> Found:
    """Many answers of exactly the greatest length: a sampler's limit on tokens cut them."""
    cap = int(rows["trained"].max())
    at_cap = rows["trained"] == cap
    near = np.count_nonzero((rows["trained"] >= 0.9 * cap) & ~at_cap) / max(1.0, 0.1 * cap)
    least = max(number_in("data.cut_answer", "cap_rows"), number_in("data.cut_answer", "cap_share") * len(at_cap))
    is_pile = np.count_nonzero(at_cap) >= max(least, 5 * near)
    if cap >= _LEAST_CAP and is_pile and np.median(rows["trained"]) < 0.8 * cap:
        yield "answer_cap", at_cap, f"{cap:,} trained tokens each"


def _lengths(rows: Rows) -> Found:
    sizes, unit = (rows["tokens"], "tokens") if rows["tokens"].any() else (rows["characters"], "characters")
    if len(sizes) < _MANY:
        return
    logs = np.log2(np.maximum(sizes, 1))
    low, high = np.quantile(logs, [0.25, 0.75])
    fence = number("data.length_outlier") * max(high - low, _LEAST_SPREAD)
    found = (logs > high + fence) | (logs < low - fence)
    if found.any():
        middle = int(np.median(sizes))
        share = sizes[found].sum() / sizes.sum()
        yield "length_outlier", found, f"{share:.0%} of all {unit}; the median row has {middle:,}"


def _strangers(rows: Rows) -> Found:
    known = rows["language"] != UNKNOWN
    counts = np.bincount(rows["language"][known], minlength=len(LANGUAGES))
    total, most = int(counts.sum()), int(counts.argmax())
    others = total - int(counts[most])
    if (
        others
        and total >= number_in("data.language", "least_rows")
        and others <= number_in("data.language", "others") * total
    ):
        counts[most] = 0
        named = ", ".join(f"{LANGUAGES[i]} {counts[i]:,}" for i in np.argsort(-counts)[:3] if counts[i])
        yield "other_language", known & (rows["language"] != most), f"most are {LANGUAGES[most]}; {named}"


def number_in(rule_id: str, key: str) -> float:
    """A number of a rule that has several."""
    return float(cast("Mapping[str, Any]", rule(rule_id).value)[key])
