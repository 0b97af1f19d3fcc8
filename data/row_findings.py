"""Problems found in data, gathered by kind with the first lines of each."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

from pydantic import BaseModel

from ..core.errors import DataError

Severity = Literal["error", "warn", "info"]
# Enough to find the pattern; the count says how many there are in all.
SHOWN_LINES = 10


class Finding(BaseModel):
    """One kind of problem: how many rows have it, which lines, and what to do."""

    kind: str
    severity: Severity
    count: int
    lines: list[int]
    message: str
    fix: str
    rule: str | None = None


class TokenStatistics(BaseModel):
    """Tokens as the model will see them, chat template included.

    Attributes:
        total: All tokens.
        loss: Those that are trained (the assistant's words).
        histogram: Rows by length: the key is the bucket's upper bound in tokens (a power of two).
        truncated: Rows longer than ``max_seq_len``.
        loss_cut: Trained tokens that truncation removes.
    """

    total: int
    loss: int
    min: int
    p50: int
    p90: int
    p99: int
    max: int
    mean: float
    histogram: dict[str, int]
    max_seq_len: int | None
    truncated: int
    loss_cut: int


class RenderedExample(BaseModel):
    """The first usable row as the model sees it; what is trained stands between ⟦ and ⟧."""

    line: int
    text: str
    tokens: int
    loss_tokens: int


class DatasetReport(BaseModel):
    """Everything found in a training file. ``ok`` means that training on it can start."""

    file: str
    sha256: str
    bytes: int
    format: str | None
    renderer: str | None
    ok: bool
    rows: int
    usable_rows: int
    exact_duplicates: int
    near_duplicates: int
    overlap_with_val: int | None
    tokens: TokenStatistics | None
    findings: list[Finding]
    example: RenderedExample | None
    seconds: float


_LONGEST_MESSAGE = 300


@dataclass(frozen=True, slots=True)
class _Kind:
    severity: Severity
    message: str
    fix: str
    rule: str | None = None


_KINDS = {
    "exact_duplicate": _Kind("warn", "rows repeat an earlier row exactly", "Remove the repeats", "data.duplicates"),
    "near_duplicate": _Kind("warn", "rows nearly repeat an earlier row", "Keep one of each", "data.duplicates"),
    "in_val": _Kind(
        "warn", "rows are in the validation file too: its loss will look too good", "Remove them", "data.leakage"
    ),
    "truncated": _Kind("warn", "rows are cut at max_seq_len", "Raise max_seq_len or split them", "data.truncation"),
    "nothing_left": _Kind(
        "error", "rows lose all trained tokens at max_seq_len", "Raise max_seq_len or shorten the prompts"
    ),
    "mixed_formats": _Kind("info", "rows have another shape than the first row", "Harmless if it is meant"),
    "last_turn_only": _Kind(
        "info",
        "conversations are trained on their last answer only: the template rewrites earlier ones",
        "Split them into one row an answer to train on all",
    ),
    "replacement_character": _Kind("warn", "rows hold U+FFFD: text was lost in decoding", "Decode the source again"),
    "mojibake": _Kind("warn", "rows look like UTF-8 read as Latin-1", "Decode the source as UTF-8"),
    "control_character": _Kind("warn", "rows hold control characters", "Strip them"),
    "not_round_trip": _Kind(
        "warn", "rows do not come back from their tokens unchanged", "The tokenizer does not know their characters"
    ),
}
_REPLACEMENT = "�"
_MOJIBAKE = re.compile(r"Ã[\x80-\xBF©¨ª«¬®¯°±²³´µ¶·¸¹º»¼½¾¿¡¢£¤¥¦§]|â€[™œ\x9d“”¢¦˜]|Â[ ©®°±·»«]")
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")


def text_problems(text: str) -> Iterator[str]:
    """The kinds of encoding damage in a text."""
    if text.isascii():
        if _CONTROL.search(text):
            yield "control_character"
        return
    if _REPLACEMENT in text:
        yield "replacement_character"
    if _MOJIBAKE.search(text):
        yield "mojibake"
    if _CONTROL.search(text):
        yield "control_character"


@dataclass(slots=True)
class _Group:
    count: int = 0
    lines: list[int] = field(default_factory=list[int])
    examples: list[str] = field(default_factory=list[str])


class Findings:
    """Counts by kind; memory does not grow with their number."""

    def __init__(self) -> None:
        self._groups: dict[str, _Group] = {}
        self._bad: dict[str, tuple[DataError, _Group]] = {}

    @property
    def has_errors(self) -> bool:
        """Whether anything found forbids training."""
        return bool(self._bad) or any(_KINDS[kind].severity == "error" for kind in self._groups)

    def note(self, kind: str, line: int, example: str = "") -> None:
        """One more row with a known kind of problem."""
        _add(self._groups.setdefault(kind, _Group()), line, example)

    def bad_row(self, line: int, error: DataError) -> None:
        """One more row that cannot be used."""
        key = re.sub(r"\d+|'[^']*'|\([^)]*\)", "", error.problem)
        _add(self._bad.setdefault(key, (error, _Group()))[1], line, error.problem)

    def count(self, kind: str) -> int:
        """Rows with a kind of problem."""
        return self._groups[kind].count if kind in self._groups else 0

    def listed(self) -> list[Finding]:
        """All findings, the gravest first."""
        found = [_bad_finding(error, group) for error, group in self._bad.values()]
        found += [_finding(kind, group) for kind, group in self._groups.items()]
        order: dict[Severity, int] = {"error": 0, "warn": 1, "info": 2}
        return sorted(found, key=lambda f: (order[f.severity], -f.count))[:20]


def _add(group: _Group, line: int, example: str) -> None:
    group.count += 1
    if len(group.lines) < SHOWN_LINES:
        group.lines.append(line)
        if example:
            group.examples.append(example)


def _bad_finding(error: DataError, group: _Group) -> Finding:
    return Finding(
        kind="bad_row",
        severity="error",
        count=group.count,
        lines=group.lines,
        message=f"line {group.lines[0]}: {error.problem}"[:_LONGEST_MESSAGE],
        fix=error.fix or "Mend or remove these rows, or set skip_bad_rows: true",
    )


def _finding(kind: str, group: _Group) -> Finding:
    known = _KINDS[kind]
    details = f" ({'; '.join(group.examples[:3])})" if group.examples else ""
    return Finding(
        kind=kind,
        severity=known.severity,
        count=group.count,
        lines=group.lines,
        message=f"{group.count:,} {known.message}{details}"[:_LONGEST_MESSAGE],
        fix=known.fix,
        rule=known.rule,
    )
