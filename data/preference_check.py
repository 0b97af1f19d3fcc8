"""What is wrong with a file of preferences as a whole: contradictions, repeats, leaks, and a bias to length."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from math import comb
from pathlib import Path
from typing import Literal

from pydantic import BaseModel

from ..core.errors import ConfigError, DataError
from ..core.files import short_digest
from ..doctrine.rules import number
from ..models.chat import ChatRenderer, words_of
from ..models.hyperparameters import require_within_context
from .columns import ColumnMap
from .preference_rows import PreferencePair, is_preference_row, to_pair
from .preferences import RenderedPair, render_pair
from .row_files import Row, read_rows
from .row_findings import SHOWN_LINES, RowFindings

# A share that fair coins show more often says nothing; from so many pairs on none that is warned of is chance.
_CHANCE, _BEYOND_CHANCE = 0.05, 100
_NAMED_LINES = 5
_PROGRESS_ROWS = 256
DataKind = Literal["supervised", "preferences"]


@dataclass(slots=True)
class PreferenceFindings:
    """Counts over the usable pairs of a file, with the lines of each kind of problem.

    Attributes:
        rows: Rows read.
        usable: Rows that hold a pair.
        bad_count: Rows that do not.
        bad: (line, error) of the first of these.
        contradictory: Lines whose two answers were preferred the other way round before.
        repeated: Lines that repeat an earlier pair.
        leaked: Lines whose prompt is in the validation file too.
        chosen_longer: Pairs whose chosen answer has more characters; ``rejected_longer`` the other way round.
        cut: Lines of pairs that are longer than ``max_seq_len``.
        noted: How the rows were read and, with a renderer, rendered.
    """

    rows: int = 0
    usable: int = 0
    bad_count: int = 0
    bad: list[tuple[int, DataError]] = field(default_factory=list[tuple[int, DataError]])
    contradictory: list[int] = field(default_factory=list[int])
    repeated: list[int] = field(default_factory=list[int])
    leaked: list[int] = field(default_factory=list[int])
    chosen_longer: int = 0
    rejected_longer: int = 0
    cut: list[int] = field(default_factory=list[int])
    noted: RowFindings = field(default_factory=RowFindings)

    @property
    def longer_share(self) -> float | None:
        """Share of pairs of unequal length in which the chosen answer is the longer one."""
        unequal = self.chosen_longer + self.rejected_longer
        return self.chosen_longer / unequal if unequal else None

    def add_bad(self, line: int, error: DataError | None) -> None:
        """Count a row that holds no pair to compare."""
        self.bad_count += 1
        if error is not None and len(self.bad) < _NAMED_LINES:
            self.bad.append((line, error))

    def warnings(self) -> list[str]:
        """One sentence for each kind of problem."""
        kinds = (
            (self.contradictory, "pairs contradict an earlier one"),
            (self.repeated, "pairs repeat an earlier one"),
            (self.leaked, "prompts are in the validation file too"),
            (self.cut, "pairs have a side that is cut at max_seq_len"),
        )
        warnings = [f"{len(lines):,} {problem} ({_lines(lines)})" for lines, problem in kinds if lines]
        share, unequal = self.longer_share, self.chosen_longer + self.rejected_longer
        is_lopsided = share is not None and abs(share - 0.5) > number("dpo.length_bias") - 0.5
        if share is not None and is_lopsided and not _is_chance(max(self.chosen_longer, self.rejected_longer), unequal):
            which = "longer" if share > 0.5 else "shorter"
            warnings.append(
                f"the {which} answer is the chosen one in {max(share, 1 - share):.0%} of pairs of unequal length: "
                "length may be all that is learnt (dpo.length): balance the data, or take loss: dpo_norm, which has "
                "a beta of its own (dpo.beta.norm)"
            )
        return warnings


def _is_chance(longer: int, pairs: int) -> bool:
    """Whether fair coins fall at least ``longer`` of ``pairs`` times on this side too often to speak of a cause."""
    return pairs < _BEYOND_CHANCE and sum(comb(pairs, k) for k in range(longer, pairs + 1)) / 2**pairs > _CHANCE


def _lines(numbers: list[int]) -> str:
    more = " ..." if len(numbers) > _NAMED_LINES else ""
    return f"lines {', '.join(map(str, numbers[:_NAMED_LINES]))}{more}"


class PreferenceReport(BaseModel):
    """A file of preferences as `check_dataset` shows it. ``ok`` means that training on it can start."""

    file: str
    format: Literal["preferences"] = "preferences"
    ok: bool
    rows: int
    usable_rows: int
    bad_rows: list[str]
    contradictory: list[int]
    repeated: list[int]
    leaked: list[int]
    chosen_longer_share: float | None
    warnings: list[str]


def check_preferences(
    train_file: Path,
    val_file: Path | None = None,
    *,
    renderer: ChatRenderer | None = None,
    max_seq_len: int | None = None,
    columns: ColumnMap | None = None,
    progress: Callable[[int], None] | None = None,
) -> PreferenceFindings:
    """Read a whole file of preferences; memory grows by some hundred bytes per row.

    Args:
        train_file: The pairs to train.
        val_file: Held-out pairs whose prompts must not be in it.
        renderer: The model's; without one nothing is said of tokens.
        max_seq_len: Tokens at which training cuts a side.
        columns: Which columns are what, in both files.
        progress: Called with the rows read.

    Raises:
        DataError: If the file as a whole cannot be read; bad rows are counted, not raised.
    """
    held_out = {_prompt_digest(pair) for _, pair in _pairs(val_file, columns) if isinstance(pair, PreferencePair)}
    findings = PreferenceFindings()
    chosen_before: dict[bytes, bytes] = {}
    for row, pair in _pairs(train_file, columns):
        findings.rows += 1
        if progress is not None and findings.rows % _PROGRESS_ROWS == 0:
            progress(findings.rows)
        if row.not_finite:
            findings.noted.note("not_finite", row.number)
        rendered = None
        if renderer is not None and isinstance(pair, PreferencePair):
            rendered = render_pair(renderer, pair, max_seq_len)
        problem = next((each for each in (pair, rendered) if isinstance(each, DataError)), None)
        if problem is not None or isinstance(pair, DataError):
            findings.add_bad(row.number, row.placed(problem) if problem is not None else None)
            continue
        findings.usable += 1
        _note_pair(findings, row.number, pair, rendered if isinstance(rendered, RenderedPair) else None)
        prompt, key, chosen = _digests(pair)
        if key not in chosen_before:
            chosen_before[key] = chosen
        elif chosen_before[key] == chosen:
            findings.repeated.append(row.number)
        else:
            findings.contradictory.append(row.number)
        if prompt in held_out:
            findings.leaked.append(row.number)
    return findings


def _note_pair(findings: PreferenceFindings, line: int, pair: PreferencePair, rendered: RenderedPair | None) -> None:
    words = "\n".join((words_of(pair.prompt), pair.chosen_text, pair.rejected_text))
    findings.noted.note_all(line, pair.notes, rendered.rendered if rendered else (), words)
    if rendered is not None and rendered.cut:
        findings.cut.append(line)
    difference = len(pair.chosen_text) - len(pair.rejected_text)
    findings.chosen_longer += difference > 0
    findings.rejected_longer += difference < 0


def _digests(pair: PreferencePair) -> tuple[bytes, bytes, bytes]:
    """The prompt, the prompt with both answers in either order, and the better answer."""
    prompt = _prompt_digest(pair)
    chosen, rejected = short_digest(pair.chosen_text), short_digest(pair.rejected_text)
    return prompt, prompt + min(chosen, rejected) + max(chosen, rejected), chosen


def _pairs(path: Path | None, columns: ColumnMap | None) -> Iterator[tuple[Row, PreferencePair | DataError]]:
    for row in read_rows(path, columns) if path is not None else ():
        yield row, row.parsed(to_pair)


def _prompt_digest(pair: PreferencePair) -> bytes:
    return short_digest(words_of(pair.prompt))


def kind_of(path: Path, columns: ColumnMap | None = None) -> DataKind:
    """What the first readable row of a file is for.

    Raises:
        DataError: If the file cannot be read.
    """
    for row in read_rows(path, columns):
        if row.value is not None:
            return "preferences" if is_preference_row(row.value) else "supervised"
    return "supervised"


def preference_report(
    train_file: Path,
    val_file: Path | None = None,
    *,
    renderer: ChatRenderer | None = None,
    max_seq_len: int | None = None,
    context: int | None = None,
    columns: ColumnMap | None = None,
    progress: Callable[[int], None] | None = None,
) -> PreferenceReport:
    """What is wrong with a file of preferences; the arguments are those of `check_dataset`.

    Raises:
        DataError: If the file as a whole cannot be read.
    """
    findings = check_preferences(
        train_file,
        val_file,
        renderer=renderer,
        max_seq_len=max_seq_len or context,
        columns=columns,
        progress=progress,
    )
    refused: list[str] = []
    try:
        require_within_context(max_seq_len, context)
    except ConfigError as error:
        refused.append(str(error))
    return PreferenceReport(
        file=str(train_file),
        ok=findings.usable > 0 and findings.bad_count == 0 and not refused,
        rows=findings.rows,
        usable_rows=findings.usable,
        bad_rows=[*refused, *(str(error) if error.where else f"line {line}: {error}" for line, error in findings.bad)],
        contradictory=findings.contradictory[:SHOWN_LINES],
        repeated=findings.repeated[:SHOWN_LINES],
        leaked=findings.leaked[:SHOWN_LINES],
        chosen_longer_share=findings.longer_share,
        warnings=[*findings.warnings(), *findings.noted.sentences()],
    )
