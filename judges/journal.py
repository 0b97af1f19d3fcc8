"""The journal of an evaluation: one line per judgment, written as soon as it is known, so that none is asked twice."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ..core.files import drop_torn_line, read_json_lines, storage_errors
from .base import JudgeUsage
from .rubric import Rubric

JUDGMENTS = "judgments.jsonl"
_SYNC_S = 1.0


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


class Journal:
    """Appends judgments to a file that a kill cannot corrupt.

    Each line is handed to the system in one write, which survives a kill; fsync runs once per second, so a power cut
    can lose the last second.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        if path.exists():
            drop_torn_line(path)
        self._synced = time.monotonic()
        with storage_errors(path):
            self._file = path.open("ab", buffering=0)

    def write(self, judgment: Judgment) -> None:
        """Append one judgment.

        Raises:
            StorageError: If the disk is full.
        """
        line = json.dumps(asdict(judgment), ensure_ascii=False) + "\n"
        with storage_errors(self._path):
            self._file.write(line.encode("utf-8", "replace"))
            if time.monotonic() - self._synced >= _SYNC_S:
                os.fsync(self._file.fileno())
                self._synced = time.monotonic()

    def close(self) -> None:
        """Make everything durable."""
        with storage_errors(self._path):
            os.fsync(self._file.fileno())
            self._file.close()


def read_judgments(path: Path) -> Iterator[Judgment]:
    """The judgments in a journal; where a question was asked again after an outage, the last answer counts."""
    latest: dict[str, dict[str, Any]] = {}
    for record in read_json_lines(path):
        latest[record["key"]] = record
    for record in latest.values():
        usage = JudgeUsage(**record.pop("usage"))
        yield Judgment(**record, usage=usage)
