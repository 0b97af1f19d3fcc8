"""What is wrong with a file of preferences as a whole: contradictions, repeats, leaks, and a taste for length."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from ..core.errors import DataError
from ..doctrine.rules import number
from .preference_rows import Pair, is_preference_row, text_of, to_pair
from .row_files import read_rows

_SHOWN = 5


@dataclass(slots=True)
class PreferenceFindings:
    """Counts over the usable pairs of a file, with the first lines of each kind.

    Attributes:
        rows: Rows read.
        usable: Rows that hold a pair.
        bad: (line, error) of the first rows that do not.
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

    @property
    def length_biased(self) -> bool:
        """Whether length alone predicts the preference far better than a coin."""
        share = self.longer_share
        return share is not None and abs(share - 0.5) > number("dpo.length_bias") - 0.5

    def warnings(self) -> list[str]:
        """One sentence for each kind of problem."""
        found: list[str] = []
        if self.contradictory:
            found.append(f"{len(self.contradictory):,} pairs contradict an earlier one ({_lines(self.contradictory)})")
        if self.repeated:
            found.append(f"{len(self.repeated):,} pairs repeat an earlier one ({_lines(self.repeated)})")
        if self.leaked:
            found.append(f"{len(self.leaked):,} prompts are in the validation file too ({_lines(self.leaked)})")
        share = self.longer_share
        if self.length_biased and share is not None:
            which = "longer" if share > 0.5 else "shorter"
            found.append(
                f"the {which} answer is the chosen one in {max(share, 1 - share):.0%} of pairs of unequal length: "
                "length may be all that is learnt (dpo.length); loss: dpo_norm, or balance the data"
            )
        return found


def _lines(numbers: list[int]) -> str:
    return "lines " + ", ".join(map(str, numbers[:_SHOWN])) + (" ..." if len(numbers) > _SHOWN else "")


def check_preferences(train_file: Path, val_file: Path | None = None) -> PreferenceFindings:
    """Read a whole file of preferences; memory grows by some hundred bytes a row.

    Raises:
        DataError: If the file as a whole cannot be read; bad rows are counted, not raised.
    """
    held_out = _prompts(val_file) if val_file else set[bytes]()
    found = PreferenceFindings()
    seen: dict[bytes, bytes] = {}
    for row in read_rows(train_file):
        found.rows += 1
        try:
            if row.value is None:
                raise row.problem or DataError("unreadable")
            pair = to_pair(row.value)
        except DataError as error:
            found.bad_count += 1
            if len(found.bad) < _SHOWN:
                found.bad.append((row.number, error))
            continue
        found.usable += 1
        _note(found, pair, row.number, seen, held_out)
    return found


def _note(found: PreferenceFindings, pair: Pair, line: int, seen: dict[bytes, bytes], held_out: set[bytes]) -> None:
    prompt, chosen, rejected = (_digest(text_of(part)) for part in (pair.prompt, pair.chosen, pair.rejected))
    question = prompt + min(chosen, rejected) + max(chosen, rejected)
    before = seen.setdefault(question, chosen)
    if before != chosen:
        found.contradictory.append(line)
    elif len(seen) + len(found.contradictory) + len(found.repeated) < found.usable:
        found.repeated.append(line)
    if prompt in held_out:
        found.leaked.append(line)
    difference = len(pair.chosen_text) - len(pair.rejected_text)
    found.chosen_longer += difference > 0
    found.rejected_longer += difference < 0


def _prompts(path: Path) -> set[bytes]:
    found: set[bytes] = set()
    for row in read_rows(path):
        if row.value is None:
            continue
        try:
            found.add(_digest(text_of(to_pair(row.value).prompt)))
        except DataError:
            continue  # it is the training file that is judged here
    return found


def _digest(text: str) -> bytes:
    return hashlib.blake2b(text.encode(), digest_size=12).digest()


DataKind = Literal["supervised", "preferences"]


def kind_of(path: Path) -> DataKind:
    """What the first readable row of a file is for.

    Raises:
        DataError: If the file cannot be read.
    """
    for row in read_rows(path):
        if row.value is not None:
            return "preferences" if is_preference_row(row.value) else "supervised"
    return "supervised"


def preference_report(train_file: Path, val_file: Path | None) -> dict[str, Any]:
    """Everything found in a file of preferences.

    Raises:
        DataError: If the file as a whole cannot be read.
    """
    found: PreferenceFindings = check_preferences(train_file, val_file)
    return {
        "file": str(train_file),
        "format": "preferences",
        "ok": found.usable > 0 and found.bad_count == 0,
        "rows": found.rows,
        "usable_rows": found.usable,
        "bad_rows": [f"line {line}: {error}" for line, error in found.bad],
        "contradictory": found.contradictory[:10],
        "repeated": found.repeated[:10],
        "leaked": found.leaked[:10],
        "chosen_longer_share": found.longer_share,
        "warnings": found.warnings(),
    }
