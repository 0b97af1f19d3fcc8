"""Problems found in data, gathered by kind with the first lines of each."""

from __future__ import annotations

import re
from array import array
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel

from ..core.errors import DataError, ResearcherError
from ..models.chat import RenderingNote
from .benchmark_overlap import BenchmarkOverlap, Shared
from .finding_kinds import BAD_ROW, KINDS, FindingKind, Severity
from .row_turns import Note

# Enough to find the pattern; the count says how many there are in all.
SHOWN_LINES = 10
_SHOWN_EXAMPLES = 3
_LONGEST_MESSAGE = 400
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
    benchmarks: list[BenchmarkOverlap]
    tokens: TokenStatistics | None
    findings: list[RowFinding]
    example: RenderedExample | None
    seconds: float


# Keys that other programs read, and what they would change; here nothing reads them.
_MEANING = {
    **dict.fromkeys(("weight", "sample_weight", "loss_weight", "loss_scale"), "how much a row counts; all count alike"),
    **dict.fromkeys(
        ("mask", "loss_mask", "labels", "train", "trainable", "train_on_turn", "train_on_inputs"),
        "what is trained; all answers are, except turns with weight 0",
    ),
    **dict.fromkeys(("messages", "conversations", "conversation"), "a second conversation"),
    **dict.fromkeys(("chosen", "rejected"), "a preference; start_dpo reads it"),
    **dict.fromkeys(("history",), "the turns before"),
    **dict.fromkeys(("context", "documents", "input"), "what the model reads"),
    **dict.fromkeys(("prompt", "question", "instruction"), "another prompt"),
    **dict.fromkeys(("completion", "response", "output"), "another answer"),
    **dict.fromkeys(("reasoning_content", "reasoning", "thinking"), "the reasoning before the answer"),
    **dict.fromkeys(("tool_calls", "function_call"), "a call of a tool"),
    "chat_template_kwargs": "how the chat template writes the row",
}
# A file whose rows each have keys of their own must not fill the report.
_MOST_PATHS = 200
_SHOWN_PATHS = 8
_SAID_LINES = 3
_CONTROL_NOTES: frozenset[str] = frozenset({"control_text", "control_tokens", "control_in_answer"})


@dataclass(slots=True)
class _Group:
    """The rows that have one kind of problem."""

    name: str
    kind: FindingKind
    lines: array[int] = field(default_factory=lambda: array("q"))
    examples: list[str] = field(default_factory=list[str])

    def add(self, line: int, example: str = "") -> None:
        self.lines.append(line)
        if example and len(self.examples) < _SHOWN_EXAMPLES:
            self.examples.append(example)

    def finding(self) -> RowFinding:
        lines = sorted(set(self.lines))
        count = len(lines)
        details = f" ({'; '.join(self.examples)})" if self.examples else ""
        message = self.kind.message if self.name == BAD_ROW else f"{self.kind.sentence(count)}{details}"
        return RowFinding(
            kind=self.name,
            severity=self.kind.severity,
            count=count,
            lines=lines[:SHOWN_LINES],
            message=message if len(message) <= _LONGEST_MESSAGE else message[: _LONGEST_MESSAGE - 1] + "…",
            fix=self.kind.fix,
            rule=self.kind.rule,
        )


@dataclass(slots=True)
class _Unread:
    """A key that nothing reads: in how many rows, and the first of them."""

    rows: int
    first: int


class RowFindings:
    """The rows of each kind of problem; 8 bytes for each row that has one."""

    def __init__(self) -> None:
        self._groups: dict[str, _Group] = {}
        self._unread: dict[str, _Unread] = {}
        self._of_file: list[RowFinding] = []

    @property
    def has_errors(self) -> bool:
        """Whether any of the problems forbids training."""
        return any(finding.severity == "error" for finding in self.listed())

    def refuse_file(self, kind: str, error: ResearcherError) -> None:
        """Note what forbids training on the file as a whole."""
        self._of_file.append(
            RowFinding(kind=kind, severity="error", count=1, lines=[], message=error.problem, fix=error.fix)
        )

    def note_numbering(self, firsts: str) -> None:
        """Note where each of several files begins in the count of rows."""
        message = f"rows are counted through all files: {firsts}"
        self._of_file.append(
            RowFinding(kind="several_files", severity="info", count=1, lines=[], message=message, fix="Nothing to do")
        )

    def note(self, kind: str, line: int, example: str = "") -> None:
        """Count a row with a known kind of problem."""
        self._groups.setdefault(kind, _Group(kind, KINDS[kind])).add(line, example)

    def note_shared(self, line: int, shared: Shared) -> None:
        """Count a row that holds an item of a benchmark."""
        self.note("in_benchmark", line, f"line {line} has {shared.share:.0%} of {shared.file}:{shared.line}")

    def explain(self, kind: str, detail: str) -> None:
        """Add a detail to what is said of a kind that has rows."""
        self._groups[kind].examples.append(detail)

    def note_all(
        self, line: int, read: Iterable[Note], rendered: Iterable[RenderingNote] = (), problems: Iterable[str] = ()
    ) -> None:
        """Count a row with what its reading, its rendering and its text show, each kind and key once."""
        noted = set[str](rendered)
        # The markers are this model's own where the renderer found them; its note says what becomes of them.
        kinds = noted.union(each for each in problems if each != "chat_marker" or not noted & _CONTROL_NOTES)
        for kind, detail in set(read) if read else ():
            if kind == "unread_key":
                self._note_unread(detail, line)
            else:
                kinds.add(kind)
        for kind in kinds:
            self.note(kind, line)

    def _note_unread(self, path: str, line: int) -> None:
        if path in self._unread:
            self._unread[path].rows += 1
        elif len(self._unread) < _MOST_PATHS:
            self._unread[path] = _Unread(1, line)

    def bad_row(self, line: int, error: DataError, place: str = "") -> None:
        """Count a row that cannot be used (``place``: its file and line); errors alike but for numbers are one kind."""
        pattern = BAD_ROW + re.sub(r"\d+|'[^']*'|\([^)]*\)", "", error.problem)
        fix = error.fix or "Correct or remove these rows, or set skip_bad_rows: true"
        kind = FindingKind("error", f"{place or f'line {line}'}: {error.problem}", fix)
        self._groups.setdefault(pattern, _Group(BAD_ROW, kind)).add(line)

    def count(self, kind: str) -> int:
        """Rows with a known kind of problem."""
        return len(set(self._groups[kind].lines)) if kind in self._groups else 0

    def rows(self) -> Mapping[str, NDArray[np.int64]]:
        """Every row that has a finding: for each kind the numbers of its rows, ascending, each once."""
        lines: dict[str, list[int]] = {}
        for group in self._groups.values():
            lines.setdefault(group.name, []).extend(group.lines)
        return {kind: np.unique(np.array(found, dtype=np.int64)) for kind, found in lines.items()}

    def listed(self) -> list[RowFinding]:
        """The kinds of problems, the gravest first, then the most frequent."""
        order: dict[Severity, int] = {"error": 0, "warn": 1, "info": 2}
        counted = (group.finding() for group in self._groups.values())
        findings = [*self._of_file, *counted, *self._unread_findings()]
        return sorted(findings, key=lambda f: (order[f.severity], -f.count))[:_MOST_KINDS]

    def sentences(self) -> tuple[str, ...]:
        """What a plan should say of the rows that are trained: how they were read and rendered, without bad rows."""
        return tuple(
            f"{f.message}{_at(f)}. {f.fix}" for f in self.listed() if f.kind != BAD_ROW and f.severity != "error"
        )

    def _unread_findings(self) -> Iterator[RowFinding]:
        """One finding for each key that would change what is trained elsewhere, and one for all the others."""
        harmless: list[tuple[str, _Unread]] = []
        for path, seen in self._unread.items():
            meaning = _MEANING.get(path.rpartition(".")[2])
            if meaning is None:
                harmless.append((path, seen))
                continue
            yield RowFinding(
                kind="unread_key",
                severity="warn",
                count=seen.rows,
                lines=[seen.first],
                message=f'"{path}" is not read ({_times(seen)}): elsewhere it says {meaning}',
                fix="Remove it if it does not matter; else put it where it is read",
            )
        if harmless:
            harmless.sort(key=lambda item: -item[1].rows)
            shown = ", ".join(f'"{path[:60]}" ({_times(seen)})' for path, seen in harmless[:_SHOWN_PATHS])
            more = f" and {len(harmless) - _SHOWN_PATHS} more" if len(harmless) > _SHOWN_PATHS else ""
            yield RowFinding(
                kind="unread_key",
                severity="info",
                count=max(seen.rows for _, seen in harmless),
                lines=[min(seen.first for _, seen in harmless)],
                message=f"keys that are not read: {shown}{more}",
                fix="Nothing to do unless the model should see them",
            )


def _at(finding: RowFinding) -> str:
    """The first lines of a finding that does not name any itself."""
    if finding.kind == "unread_key" or not finding.lines:
        return ""
    more = " ..." if finding.count > _SAID_LINES else ""
    return f" (line{'s' if finding.count > 1 else ''} {', '.join(map(str, finding.lines[:_SAID_LINES]))}{more})"


def _times(seen: _Unread) -> str:
    return f"{seen.rows:,} row{'s' if seen.rows != 1 else ''}, first line {seen.first}"
