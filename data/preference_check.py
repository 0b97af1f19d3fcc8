"""What is wrong with a file of preferences as a whole: contradictions, repeats, leaks, and a bias to length."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from pydantic import BaseModel

from ..core.errors import DataError
from ..core.files import short_digest
from ..doctrine.rules import number
from ..models.chat import words_of
from .preference_rows import PreferencePair, is_preference_row, to_pair
from .row_files import read_rows
from .row_findings import SHOWN_LINES

_NAMED_LINES = 5
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

    @property
    def longer_share(self) -> float | None:
        """Share of pairs of unequal length in which the chosen answer is the longer one."""
        unequal = self.chosen_longer + self.rejected_longer
        return self.chosen_longer / unequal if unequal else None

    def warnings(self) -> list[str]:
        """One sentence for each kind of problem."""
        kinds = (
            (self.contradictory, "pairs contradict an earlier one"),
            (self.repeated, "pairs repeat an earlier one"),
            (self.leaked, "prompts are in the validation file too"),
        )
        warnings = [f"{len(lines):,} {problem} ({_lines(lines)})" for lines, problem in kinds if lines]
        share = self.longer_share
        if share is not None and abs(share - 0.5) > number("dpo.length_bias") - 0.5:
            which = "longer" if share > 0.5 else "shorter"
            warnings.append(
                f"the {which} answer is the chosen one in {max(share, 1 - share):.0%} of pairs of unequal length: "
                "length may be all that is learnt (dpo.length): balance the data, or take loss: dpo_norm, which has "
                "a beta of its own (dpo.beta.norm)"
            )
        return warnings


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


def check_preferences(train_file: Path, val_file: Path | None = None) -> PreferenceFindings:
    """Read a whole file of preferences; memory grows by some hundred bytes per row.

    Raises:
        DataError: If the file as a whole cannot be read; bad rows are counted, not raised.
    """
    held_out = {_prompt_digest(pair) for _, pair in _pairs(val_file) if isinstance(pair, PreferencePair)}
    findings = PreferenceFindings()
    chosen_before: dict[bytes, bytes] = {}
    for line, pair in _pairs(train_file):
        findings.rows += 1
        if isinstance(pair, DataError):
            findings.bad_count += 1
            if len(findings.bad) < _NAMED_LINES:
                findings.bad.append((line, pair))
            continue
        findings.usable += 1
        chosen, rejected = short_digest(pair.chosen_text), short_digest(pair.rejected_text)
        prompt = _prompt_digest(pair)
        question = prompt + min(chosen, rejected) + max(chosen, rejected)
        if question not in chosen_before:
            chosen_before[question] = chosen
        elif chosen_before[question] == chosen:
            findings.repeated.append(line)
        else:
            findings.contradictory.append(line)
        if prompt in held_out:
            findings.leaked.append(line)
        difference = len(pair.chosen_text) - len(pair.rejected_text)
        findings.chosen_longer += difference > 0
        findings.rejected_longer += difference < 0
    return findings


def _pairs(path: Path | None) -> Iterator[tuple[int, PreferencePair | DataError]]:
    for row in read_rows(path) if path is not None else ():
        yield row.number, row.parsed(to_pair)


def _prompt_digest(pair: PreferencePair) -> bytes:
    return short_digest(words_of(pair.prompt))


def kind_of(path: Path) -> DataKind:
    """What the first readable row of a file is for.

    Raises:
        DataError: If the file cannot be read.
    """
    for row in read_rows(path):
        if row.value is not None:
            return "preferences" if is_preference_row(row.value) else "supervised"
    return "supervised"


def preference_report(train_file: Path, val_file: Path | None) -> PreferenceReport:
    """What is wrong with a file of preferences.

    Raises:
        DataError: If the file as a whole cannot be read.
    """
    findings = check_preferences(train_file, val_file)
    return PreferenceReport(
        file=str(train_file),
        ok=findings.usable > 0 and findings.bad_count == 0,
        rows=findings.rows,
        usable_rows=findings.usable,
        bad_rows=[f"line {line}: {error}" for line, error in findings.bad],
        contradictory=findings.contradictory[:SHOWN_LINES],
        repeated=findings.repeated[:SHOWN_LINES],
        leaked=findings.leaked[:SHOWN_LINES],
        chosen_longer_share=findings.longer_share,
        warnings=findings.warnings(),
    )
