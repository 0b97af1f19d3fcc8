"""The journal of an evaluation: one line per judgment, written as soon as it is known, so that none is asked twice."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ..core.files import LineJournal, read_json_lines
from .base import JudgeUsage
from .rubric import Rubric

JUDGMENTS = "judgments.jsonl"


@dataclass(frozen=True, slots=True)
class Judgment:
    """One judge's verdict on one question.

    Attributes:
        key: The call's hash.
        judge: The judge's name.
        kind: ``pair``, ``absolute``, ``control`` or ``canary``.
        item: The prompt's id.
        first: The arm shown as A.
        second: The arm shown as B, or None in absolute mode.
        verdict: ``A``, ``B``, ``tie``; None in absolute mode and when unscored.
        scores: For each criterion a number, or one for A and one for B.
        reason: The judge's reason.
        unscored: Why there is no verdict, or None.
        transient: Whether asking again later may help.
        model: The exact model that answered.
        stop_reason: Why its answer ended.
        attempts: Calls it took: 2 after a repair.
        usage: Tokens of all attempts.
        prompt_hash: Of the wording and rubric it was asked with; empty in journals of older versions.
    """

    key: str
    judge: str
    kind: str
    item: str
    first: str
    second: str | None
    verdict: str | None = None
    scores: dict[str, Any] = field(default_factory=dict[str, Any])
    reason: str = ""
    unscored: str | None = None
    transient: bool = False
    model: str = ""
    stop_reason: str = ""
    attempts: int = 1
    usage: JudgeUsage = field(default_factory=JudgeUsage)
    prompt_hash: str = ""

    def weighted(self, rubric: Rubric) -> float | None:
        """An absolute verdict's weighted score, 0 to 1; None when unscored."""
        return None if self.unscored else rubric.weighted(self.scores)


class Journal(LineJournal):
    """The judgments of one run."""

    def write(self, judgment: Judgment) -> None:
        """Append one judgment.

        Raises:
            StorageError: If the disk is full.
        """
        self.append(asdict(judgment))


def read_judgments(path: Path) -> Iterator[Judgment]:
    """The judgments in a journal; where a question was asked again after an outage, the last answer counts."""
    latest: dict[str, dict[str, Any]] = {}
    for record in read_json_lines(path):
        latest[record["key"]] = record
    for record in latest.values():
        usage = JudgeUsage(**record.pop("usage"))
        yield Judgment(**record, usage=usage)
