"""The journal of an evaluation: a line a judgement, written as soon as it is known, so that none is asked twice."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from ..core.files import read_json_lines, storage_errors
from .base import Usage

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
        scores: By criterion: a number, or one for A and one for B.
        reason: The judge's.
        unscored: Why there is no verdict, or None.
        transient: Whether asking again later may help.
        model: The exact model that answered.
        stop_reason: Why its answer ended.
        attempts: Calls it took: 2 after a repair.
        usage: Tokens of all attempts.
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
    usage: Usage = field(default_factory=Usage)


_FIELDS = tuple(f.name for f in fields(Judgment))


class Journal:
    """Appends judgements to a file that a kill cannot corrupt.

    Each line is handed to the system in one write, which outlives the process; the disk is asked to keep it once a
    second, which a power cut can cost.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        _cut_torn_line(path)
        self._synced = time.monotonic()
        with storage_errors(path):
            self._file = path.open("ab", buffering=0)

    def write(self, judgment: Judgment) -> None:
        """Append one judgement.

        Raises:
            StorageError: If the disk is full.
        """
        record = {name: getattr(judgment, name) for name in _FIELDS}
        line = json.dumps(record | {"usage": asdict(judgment.usage)}, ensure_ascii=False) + "\n"
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
    """The judgements in a journal; where a question was asked again after an outage, the last answer counts."""
    latest: dict[str, dict[str, Any]] = {}
    for record in read_json_lines(path):
        latest[record["key"]] = record
    for record in latest.values():
        usage = Usage(**record.pop("usage"))
        yield Judgment(**record, usage=usage)


def _cut_torn_line(path: Path) -> None:
    if not path.exists():
        return
    with storage_errors(path), path.open("rb+") as file:
        end = file.seek(0, 2)
        while end > 0:
            start = max(0, end - 65536)
            file.seek(start)
            block = file.read(end - start)
            newline = block.rfind(b"\n")
            if newline != -1:
                file.truncate(start + newline + 1)
                return
            end = start
        file.truncate(0)
