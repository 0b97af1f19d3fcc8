"""Problems found in data, gathered by kind with the first lines of each."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Literal

from pydantic import BaseModel

from ..core.errors import DataError, ResearcherError
from ..models.chat import RenderingNote
from .row_turns import Note

Severity = Literal["error", "warn", "info"]
# Enough to find the pattern; the count says how many there are in all.
SHOWN_LINES = 10
BAD_ROW = "bad_row"
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
        "conversations are trained on their last answer only: the chat template rewrites earlier ones as history",
        "Split them into one row per answer to train on all",
    ),
    "no_end_token": _Kind(
        "warn",
        "rows train no token that ends the answer: the chat template writes none, and the model will not learn to stop",
        "Use a template that ends each turn with a special token, or name a renderer",
    ),
    "other_end_token": _Kind(
        "info",
        "rows end answers with a token at which generation_config.json does not stop: other programs will go on there",
        "Add its id to eos_token_id in the exported model",
    ),
    "think_deleted": _Kind(
        "warn",
        "answers lose their <think>...</think>: the chat template deletes it, and the trained text lacks it",
        "Use a template or renderer that keeps the reasoning, or remove it from the data",
    ),
    "no_thinking": _Kind(
        "warn",
        "answers have no reasoning, though the generation prompt opens <think>: the model learns to close it at once",
        "Begin them with <think>...</think>, or use a model or renderer that does not think",
    ),
    "reasoning_dropped": _Kind(
        "warn",
        "rows lose the reasoning of an answer: the chat template does not write it",
        "Use a template or renderer that does, or write it into the content as <think>...</think>",
    ),
    "tools_dropped": _Kind(
        "warn",
        "rows declare tools that the chat template does not write: the model never sees them",
        "Use a model or renderer with tools, or describe them in the system turn",
    ),
    "rewritten_text": _Kind(
        "warn",
        "rows have a text that the chat template leaves out or writes otherwise",
        "Compare a row with its rendered form; some templates take no system turn, or escape what tools say",
    ),
    "control_text": _Kind(
        "warn",
        "rows spell a control token of the model in a prompt: it is kept as text, and ends no turn",
        "Remove it if it is a leftover of another chat format",
    ),
    "control_tokens": _Kind(
        "warn",
        "rows spell a control token of the model in a prompt: with this renderer it is a real one and can forge a turn",
        "Remove it from the text",
    ),
    "control_in_answer": _Kind(
        "warn",
        "answers spell a control token of the model, which is trained as a real one",
        "Remove it: the template writes what ends a turn",
    ),
    "not_finite": _Kind(
        "warn", "rows hold NaN or Infinity, which is not JSON: other programs refuse them", "Write null or a number"
    ),
    "prompt_cut": _Kind(
        "warn", "pairs repeat the prompt at the head of both answers: it is cut off there", "Remove it from the answers"
    ),
    "prompt_repeated": _Kind(
        "warn",
        "answers begin with their own prompt, which is trained too",
        "Remove it from the answers if that is a mistake",
    ),
    "prompt_weight": _Kind(
        "warn",
        "rows ask for loss on a turn that is not the assistant's: only answers are trained",
        "Remove that weight",
    ),
    "developer_turn": _Kind("info", "rows have a developer turn, which is read as the system turn", "Nothing to do"),
    "null_arguments": _Kind(
        "warn",
        "rows have tool calls with null arguments, which are trained as they are",
        "Leave them out where a table padded the rows with the arguments of other tools",
    ),
    "bad_arguments": _Kind(
        "warn", "rows have tool calls whose arguments are not JSON", "Correct them: the model learns what is there"
    ),
    "replacement_character": _Kind("warn", "rows hold U+FFFD: text was lost in decoding", "Decode the source again"),
    "mojibake": _Kind("warn", "rows look like UTF-8 read as Latin-1", "Decode the source as UTF-8"),
    "chat_marker": _Kind(
        "warn", "rows hold the markers of a chat format as text, such as <|im_end|> or </s> at an end", "Remove them"
    ),
    "control_character": _Kind("warn", "rows hold control characters", "Strip them"),
    "not_round_trip": _Kind(
        "warn", "rows do not come back from their tokens unchanged", "The tokenizer does not know their characters"
    ),
}
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
_CONTROL_NOTES: frozenset[RenderingNote] = frozenset({"control_text", "control_tokens", "control_in_answer"})
_REPLACEMENT = "�"
_MOJIBAKE = re.compile(r"Ã[\x80-\xBF©¨ª«¬®¯°±²³´µ¶·¸¹º»¼½¾¿¡¢£¤¥¦§]|â€[™œ\x9d“”¢¦˜]|Â[ ©®°±·»«]")
# What chat formats write around turns; a tag that HTML has too counts at an end alone.
_MARKER = re.compile(
    r"<\|(?:im_start|im_end|endoftext|eot_id|eom_id|start_header_id|end_header_id|begin_of_text|end_of_text|end)\|>"
    r"|<(?:start|end)_of_turn>|\[/INST\]|<</SYS>>|<｜(?:User|Assistant|end▁of▁sentence)｜>|</s>$",
    re.MULTILINE,
)
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")


def text_problems(text: str) -> Iterator[str]:
    """The kinds of damage in a text: of encoding, and markers that another program left."""
    if not text.isascii():
        if _REPLACEMENT in text:
            yield "replacement_character"
        if _MOJIBAKE.search(text):
            yield "mojibake"
    if _CONTROL.search(text):
        yield "control_character"
    if ("<" in text or "[" in text) and _MARKER.search(text):
        yield "chat_marker"


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
    """Counts by kind; memory does not grow with the number of rows."""

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
        self._groups.setdefault(kind, _Group(kind, _KINDS[kind])).add(line, example)

    def note_all(self, line: int, read: Iterable[Note], rendered: Iterable[RenderingNote] = (), text: str = "") -> None:
        """Count a row with what its reading, its rendering and its text show, each kind and key once."""
        noted = set(rendered)
        for problem in text_problems(text):
            # The markers are this model's own where the renderer found them; its note says what becomes of them.
            if problem != "chat_marker" or not noted & _CONTROL_NOTES:
                self.note(problem, line)
        for kind, detail in sorted(set(read)):
            if kind == "unread_key":
                self._note_unread(detail, line)
            else:
                self.note(kind, line)
        for kind in sorted(noted):
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
        kind = _Kind("error", f"{place or f'line {line}'}: {error.problem}", fix)
        self._groups.setdefault(pattern, _Group(BAD_ROW, kind)).add(line)

    def count(self, kind: str) -> int:
        """Rows with a known kind of problem."""
        return self._groups[kind].count if kind in self._groups else 0

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
