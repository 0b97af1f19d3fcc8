"""Judges without a model behind them: a program that compares with references, and the assistant that called us."""

from __future__ import annotations

import asyncio
import random
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ..core.errors import DataError
from ..core.files import append_json_line, read_json_lines
from .base import Judge, Repair, Reply
from .judge_catalog import JudgeRef
from .prompt import Question
from .rubric import Rubric

PACKETS = "packets.jsonl"
SUBMISSIONS = "submissions.jsonl"
_POLL_S = 0.3
# A minus sign belongs to a number unless a number, a word or a bracket stands before it, as in "10-12".
_NUMBER = re.compile(
    r"(?:(?<![\w.)])-[$€£]?)?(?:(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|(?<!\d)\.\d+)(?:[eE][+-]?\d+)?"
)
_CURRENCY = str.maketrans("", "", "$€£,")


def check_exact(answer: str, reference: str) -> bool:
    """The two are equal apart from white space at the ends."""
    return answer.strip() == reference.strip()


def check_includes(answer: str, reference: str) -> bool:
    """The reference occurs in the answer; case is ignored."""
    return reference.strip().casefold() in answer.casefold()


def check_number(answer: str, reference: str) -> bool:
    """The last number in the answer is the last one in the reference."""
    stated, wanted = _last_number(answer), _last_number(reference)
    return stated is not None and wanted is not None and abs(stated - wanted) <= 1e-9 * max(1.0, abs(wanted))


CHECKS: Mapping[str, Callable[[str, str], bool]] = {
    "exact": check_exact,
    "includes": check_includes,
    "number": check_number,
}


class ReferenceCheck(Judge):
    """Not a model: a program that says which answer agrees with the reference. Both or neither is a tie."""

    at_once = 1

    def __init__(self, ref: JudgeRef, rubric: Rubric) -> None:
        """Choose the check that ``ref`` names; ``rubric`` gives the scales of its scores."""
        super().__init__(ref)
        self._rubric = rubric
        self._passes = CHECKS[ref.model]

    async def ask(self, key: str, question: Question, repair: Repair | None) -> Reply:
        """Compare with the reference (see `Judge.ask`).

        Raises:
            DataError: If the prompt has no reference.
        """
        reference = question.item.reference
        if reference is None:
            raise DataError(
                f"the prompt has no reference answer, which {self.name} needs",
                where=f"test set, line {question.item.line}",
                fix='Add "reference" to each row, or use another judge',
            )
        first = self._passes(question.answer_a, reference)
        if question.answer_b is None:
            scores: Any = {c.name: c.high if first else c.low for c in self._rubric.criteria}
            return Reply({"reason": "", "scores": scores}, "", "check", self.name)
        second = self._passes(question.answer_b, reference)
        verdict = "tie" if first == second else "A" if first else "B"
        scores = {
            c.name: {s: c.high if ok else c.low for s, ok in (("A", first), ("B", second))}
            for c in self._rubric.criteria
        }
        agreement = {(True, True): "both agree", (False, False): "neither agrees"}
        reason = f"{agreement.get((first, second), verdict + ' agrees')} with the reference ({self.ref.model})"
        return Reply({"reason": reason, "scores": scores, "verdict": verdict}, "", "check", self.name)


class AssistantJudge(Judge):
    """The assistant that started the job: questions wait in ``packets.jsonl`` until it submits their verdicts.

    A packet does not name the arms, and its id does not reveal its kind. Which model judges is not known here.
    """

    at_once = 1_000_000

    def __init__(self, ref: JudgeRef, folder: Path, *, seed: int) -> None:
        """Read which packets ``folder`` (the run's) has already; ``seed`` decides the order they are shown in."""
        super().__init__(ref)
        self._folder = folder
        self._waiting: dict[str, asyncio.Future[Mapping[str, Any]]] = {}
        self._written = {str(r["id"]) for r in read_json_lines(folder / PACKETS)}
        self._poller: asyncio.Task[None] | None = None
        self._random = random.Random(seed)

    async def ask(self, key: str, question: Question, repair: Repair | None) -> Reply:
        """Wait until this question's verdict is submitted (see `Judge.ask`)."""
        packet_id = f"{key[:12]}{'-again' if repair else ''}"
        if self._poller is None:
            self._poller = asyncio.create_task(self._poll())
        future: asyncio.Future[Mapping[str, Any]] = asyncio.get_running_loop().create_future()
        self._waiting[packet_id] = future
        if packet_id not in self._written:
            self._written.add(packet_id)
            packet = {"id": packet_id, "order": self._random.random()}
            packet |= {"system": question.system, "question": question.user}
            append_json_line(self._folder / PACKETS, packet | ({"again": repair.request} if repair else {}))
        arguments = await future
        return Reply(arguments, "", "submitted", self.name)

    async def close(self) -> None:
        """Stop looking for submissions."""
        if self._poller is not None:
            self._poller.cancel()

    async def _poll(self) -> None:
        while True:
            for record in read_json_lines(self._folder / SUBMISSIONS):
                future = self._waiting.pop(str(record["id"]), None)
                if future is not None and not future.done():
                    future.set_result(record["verdict"])
            await asyncio.sleep(_POLL_S)


def _last_number(text: str) -> float | None:
    numbers = _NUMBER.findall(text.replace("\u2212", "-"))
    return float(numbers[-1].translate(_CURRENCY)) if numbers else None
