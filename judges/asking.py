"""Asking a judge many questions at once: repair, missing verdicts, what it cost, and stopping in good order."""

from __future__ import annotations

import asyncio
import hashlib
import json
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ..core.errors import BackendError
from ..core.files import append_json_line, read_json_lines
from .base import Judge, JudgeCallError, Repair, Reply, Usage
from .journal import Journal, Judgment
from .judge_catalog import Price, catalog
from .prompt import EvalItem, Prompter, Question, repair_request
from .verdicts import UnreadableVerdictError, read_absolute, read_pair

CallKind = Literal["pair", "absolute", "control", "canary"]


@dataclass(frozen=True, slots=True)
class Call:
    """One question to one judge. The prompt is written when it is asked: a thousand long ones need not lie in memory.

    Attributes:
        key: Hash of the judge, the prompt's wording and the content.
        kind: What it is for.
        item: The prompt.
        first: The arm whose answer is shown as A (``good`` or ``bad`` in a canary).
        second: The arm shown as B; None in absolute mode.
        answer_a: The first answer.
        answer_b: The second answer, or None.
        again: Whether an answer that was asked about is asked about once more, to see whether its score holds.
    """

    key: str
    kind: CallKind
    item: EvalItem
    first: str
    second: str | None
    answer_a: str
    answer_b: str | None
    again: bool = False

    def question(self, prompter: Prompter) -> Question:
        """The call as a judge sees it."""
        return prompter.question(self.item, self.answer_a, self.answer_b, again=self.again)


if TYPE_CHECKING:
    from .anthropic_judge import AnthropicJudge
BATCHES = "batches.jsonl"
# After so many failures in a row nobody is listening: better to stop and be resumed than to lose every item.
GIVE_UP_AFTER = 20
_STOP_GRACE_S = 30.0
_WATCH_S = 0.25
# Calls start one after the other, at least so far apart: fifty that leave together come back together, and share the
# processor ever after. It is more than a call takes of the processor, and limits nobody: 333 calls a second.
_GAP_S = 0.003
_BATCH_SIZE = 10_000


@dataclass(slots=True)
class Spending:
    """What the judges have cost so far in US dollars, and how much they may."""

    price: dict[str, Price | None]
    limit: float | None
    batch: bool = False
    spent: float = 0.0
    tell: Callable[[float], None] | None = None

    def add(self, judge: str, usage: Usage) -> None:
        """Count one call; cached input is charged at the table's shares.

        Raises:
            BackendError: If the limit is passed. What was judged is kept.
        """
        price = self.price.get(judge)
        if price is None:
            return
        table = catalog()
        cached = (
            usage.cache_read_tokens * table["cache_read_share"] + usage.cache_write_tokens * table["cache_write_share"]
        )
        self.spent += price.cost(usage.input_tokens + cached, usage.output_tokens, batch=self.batch)
        if self.tell is not None:
            self.tell(self.spent)
        if self.limit is not None and self.spent >= self.limit:
            raise BackendError(
                f"the judges have cost {self.spent:.2f} USD, and max_cost_usd is {self.limit:g}",
                fix="Start again with a higher max_cost_usd, a cheaper judge, or fewer prompts (num_samples)",
            )


class Judging:
    """Asks the questions of one judge and writes each verdict to the journal."""

    def __init__(
        self,
        judge: Judge,
        prompter: Prompter,
        journal: Journal,
        spending: Spending,
        *,
        concurrency: int,
        should_stop: Callable[[], bool],
        on_judged: Callable[[], None],
    ) -> None:
        self._judge = judge
        self._prompter = prompter
        self._journal = journal
        self._spending = spending
        self._concurrency = judge.at_once or concurrency
        self._should_stop = should_stop
        self._on_judged = on_judged
        self._failures = 0
        self._next_turn = 0.0

    async def ask_all(self, calls: Sequence[Call]) -> dict[str, Judgment] | None:
        """Ask every question; returns the judgements by key, or None when told to stop.

        Raises:
            ResearcherError: If no call can work (key, model, limit of cost, disk), or too many failed in a row.
        """
        found: dict[str, Judgment] = {}
        waiting = deque(calls)

        async def work() -> None:
            while waiting and not self._should_stop():
                call = waiting.popleft()
                await self._turn()
                found[call.key] = await self._ask(call)

        tasks = [asyncio.create_task(work()) for _ in range(min(self._concurrency, len(calls)))]
        try:
            await self._until_done(tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        return found if len(found) == len(calls) else None

    async def ask_batch(self, judge: AnthropicJudge, calls: Sequence[Call], folder: Path) -> dict[str, Judgment] | None:
        """The same through Message Batches, at half the price; a batch handed in before a kill is found again.

        Raises:
            ResearcherError: As `ask_all`.
        """
        found: dict[str, Judgment] = {}
        for start in range(0, len(calls), _BATCH_SIZE):
            chunk = {c.key: c for c in calls[start : start + _BATCH_SIZE]}
            first = await self._batch(judge, chunk, {}, folder)
            unread = {k: r for k, r in (first or {}).items() if isinstance(r, Repair)}
            second = await self._batch(judge, {k: chunk[k] for k in unread}, unread, folder) if unread else {}
            if first is None or second is None:
                return None
            for key, outcome in ({**first, **second}).items():
                judgment = outcome if isinstance(outcome, Judgment) else self._unscored(chunk[key], "unreadable", 2)
                self._note(judgment)
                found[key] = judgment
        return found

    async def _turn(self) -> None:
        """Wait until this call may start; calls to a judge on this machine need no turns."""
        if self._judge.at_once is not None:
            return
        now = time.monotonic()
        self._next_turn = max(now, self._next_turn + _GAP_S)
        if self._next_turn > now:
            await asyncio.sleep(self._next_turn - now)

    async def _until_done(self, tasks: Sequence[asyncio.Task[None]]) -> None:
        deadline: float | None = None
        pending = set(tasks)
        while pending:
            done, pending = await asyncio.wait(pending, timeout=_WATCH_S, return_when=asyncio.FIRST_EXCEPTION)
            for task in done:
                task.result()
            if self._should_stop():
                # Calls under way are paid for: they get a while to come home.
                grace = 0.0 if self._judge.at_once and self._judge.at_once > 1 else _STOP_GRACE_S
                deadline = deadline or time.monotonic() + grace
                if time.monotonic() >= deadline:
                    return

    async def _ask(self, call: Call) -> Judgment:
        question = call.question(self._prompter)
        usage, repair, problem = Usage(), None, ""
        reply: Reply | None = None
        transient = False
        for attempt in (1, 2):
            try:
                reply = await self._judge.ask(call.key, question, repair)
            except JudgeCallError as error:
                problem, transient = f"failed: {error.reason}", error.transient
                continue
            usage, transient = usage + reply.usage, False
            try:
                judgment = self._read(call, reply, attempt)
            except UnreadableVerdictError as error:
                problem = _why_unreadable(reply, error)
                repair = Repair(_said(reply), repair_request(str(error)))
                continue
            return self._note(replace(judgment, usage=usage))
        judgment = self._unscored(call, problem, 2, reply, transient=transient)
        return self._note(replace(judgment, usage=usage))

    def _note(self, judgment: Judgment) -> Judgment:
        self._journal.write(judgment)
        self._on_judged()
        self._failures = self._failures + 1 if judgment.transient else 0
        if self._failures >= GIVE_UP_AFTER:
            raise BackendError(
                f"{GIVE_UP_AFTER} calls of {judgment.judge} in a row have failed, the last: {judgment.unscored}",
                fix="resume_job asks again for what is missing, and for nothing else",
            )
        self._spending.add(judgment.judge, judgment.usage)
        return judgment

    def _read(self, call: Call, reply: Reply, attempt: int) -> Judgment:
        if reply.arguments is None:
            raise UnreadableVerdictError("there was no structured verdict in the answer")
        base = Judgment(
            key=call.key,
            judge=self._judge.name,
            kind=call.kind,
            item=call.item.id,
            first=call.first,
            second=call.second,
            model=reply.model,
            stop_reason=reply.stop_reason,
            attempts=attempt,
            usage=reply.usage,
        )
        if self._prompter.mode == "absolute":
            absolute = read_absolute(reply.arguments, self._prompter.rubric)
            return replace(base, scores=dict(absolute.scores), reason=absolute.reason)
        pair = read_pair(reply.arguments, self._prompter.rubric)
        scores: dict[str, Any] = {name: {"A": a, "B": b} for name, (a, b) in pair.scores.items()}
        return replace(base, verdict=pair.choice, scores=scores, reason=pair.reason)

    def _unscored(
        self, call: Call, why: str, attempts: int, reply: Reply | None = None, *, transient: bool = False
    ) -> Judgment:
        return Judgment(
            key=call.key,
            judge=self._judge.name,
            kind=call.kind,
            item=call.item.id,
            first=call.first,
            second=call.second,
            unscored=why,
            transient=transient,
            model=reply.model if reply else "",
            stop_reason=reply.stop_reason if reply else "",
            attempts=attempts,
        )

    async def _batch(
        self, judge: AnthropicJudge, chunk: dict[str, Call], repairs: dict[str, Repair], folder: Path
    ) -> dict[str, Judgment | Repair] | None:
        """One batch; each result is a judgement, or the repair to ask for."""
        marked = json.dumps([sorted(chunk), bool(repairs)])
        mark = hashlib.sha256(marked.encode()).hexdigest()[:32]
        known = {r["mark"]: str(r["batch_id"]) for r in read_json_lines(folder / BATCHES)}
        batch_id = known.get(mark)
        if batch_id is None:
            questions = [(k, c.question(self._prompter), repairs.get(k)) for k, c in chunk.items()]
            batch_id = await judge.create_batch(questions)
            append_json_line(folder / BATCHES, {"mark": mark, "batch_id": batch_id, "calls": len(chunk)})
        collecting = asyncio.create_task(self._collect(judge, batch_id, chunk, 2 if repairs else 1))
        while not collecting.done():
            await asyncio.wait({collecting}, timeout=_WATCH_S)
            if self._should_stop():
                collecting.cancel()
                return None
        return collecting.result()

    async def _collect(
        self, judge: AnthropicJudge, batch_id: str, chunk: dict[str, Call], attempt: int
    ) -> dict[str, Judgment | Repair]:
        found: dict[str, Judgment | Repair] = {}
        async for key, outcome in judge.batch_results(batch_id):
            if isinstance(outcome, JudgeCallError):
                found[key] = self._unscored(
                    chunk[key], f"failed: {outcome.reason}", attempt, transient=outcome.transient
                )
                continue
            try:
                found[key] = self._read(chunk[key], outcome, attempt)
            except UnreadableVerdictError as error:
                if attempt == 2:
                    found[key] = self._unscored(chunk[key], _why_unreadable(outcome, error), 2, outcome)
                else:
                    found[key] = Repair(_said(outcome), repair_request(str(error)))
        for key, call in chunk.items():
            found.setdefault(
                key, self._unscored(call, "failed: the batch has no result for it", attempt, transient=True)
            )
        return found


def _why_unreadable(reply: Reply, error: UnreadableVerdictError) -> str:
    if reply.stop_reason == "refusal":
        return "refused"
    if reply.stop_reason in {"max_tokens", "length"}:
        return "unreadable: cut off at judge_max_tokens"
    return f"unreadable: {error}"


def _said(reply: Reply) -> str:
    said = reply.text.strip() or (json.dumps(dict(reply.arguments)) if reply.arguments else "")
    return said[:4000]
