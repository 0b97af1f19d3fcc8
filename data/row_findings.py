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
BAD_ROW = "bad_row"
_LONGEST_MESSAGE = 300
_MOST_KINDS = 20


class RowFinding(BaseModel):
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
    findings: list[RowFinding]
    example: RenderedExample | None
    seconds: float


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
    "mixed_formats": _Kind("info", "rows have another format than the first row", "Harmless if intended"),
    "last_turn_only": _Kind(
        "info",
        "conversations are trained on their last answer only: the template rewrites earlier ones",
        "Split them into one row per answer to train on all",
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
    if not text.isascii():
        if _REPLACEMENT in text:
            yield "replacement_character"
        if _MOJIBAKE.search(text):
            yield "mojibake"
    if _CONTROL.search(text):
        yield "control_character"


@dataclass(slots=True)
class _Group:
    """The rows that have one kind of problem."""

    name: str
    kind: _Kind
    count: int = 0
    lines: list[int] = field(default_factory=list[int])
    examples: list[str] = field(default_factory=list[str])

    def add(self, line: int, example: str = "") -> None:
        self.count += 1
        if len(self.lines) < SHOWN_LINES:
            self.lines.append(line)
            self.examples += [example] if example else []

    def finding(self) -> RowFinding:
        details = f" ({'; '.join(self.examples[:3])})" if self.examples else ""
        message = self.kind.message if self.name == BAD_ROW else f"{self.count:,} {self.kind.message}{details}"
        return RowFinding(
            kind=self.name,
            severity=self.kind.severity,
            count=self.count,
            lines=self.lines,
            message=message[:_LONGEST_MESSAGE],
            fix=self.kind.fix,
            rule=self.kind.rule,
        )


class RowFindings:
    """Counts by kind; memory does not grow with the number of rows."""

    def __init__(self) -> None:
        self._groups: dict[str, _Group] = {}

    @property
    def has_errors(self) -> bool:
        """Whether any of the problems forbids training."""
        return any(group.kind.severity == "error" for group in self._groups.values())

    def note(self, kind: str, line: int, example: str = "") -> None:
        """Count a row with a known kind of problem."""
        self._groups.setdefault(kind, _Group(kind, _KINDS[kind])).add(line, example)

    def bad_row(self, line: int, error: DataError) -> None:
        """Count a row that cannot be used; errors that differ in numbers and names alone are one kind."""
        pattern = BAD_ROW + re.sub(r"\d+|'[^']*'|\([^)]*\)", "", error.problem)
        fix = error.fix or "Correct or remove these rows, or set skip_bad_rows: true"
        kind = _Kind("error", f"line {line}: {error.problem}", fix)
        self._groups.setdefault(pattern, _Group(BAD_ROW, kind)).add(line)

    def count(self, kind: str) -> int:
        """Rows with a known kind of problem."""
        return self._groups[kind].count if kind in self._groups else 0

    def listed(self) -> list[RowFinding]:
        """The kinds of problems, the gravest first, then the most frequent."""
        order: dict[Severity, int] = {"error": 0, "warn": 1, "info": 2}
        findings = [group.finding() for group in self._groups.values()]
        return sorted(findings, key=lambda f: (order[f.severity], -f.count))[:_MOST_KINDS]
