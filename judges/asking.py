"""Asking a judge many questions at once: repair, missing verdicts, cost, and an orderly stop."""

from __future__ import annotations

import asyncio
import hashlib
import json
import time
from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ..core.errors import BackendError
from ..core.files import append_json_line, read_json_lines
from .base import Judge, JudgeCallError, JudgeUsage, Repair, Reply
from .journal import Journal, Judgment
from .judge_catalog import Price, catalog
from .prompt import EvalItem, Prompter, Question, repair_request
from .verdicts import UnreadableVerdictError, read_absolute, read_pair

if TYPE_CHECKING:
    from .anthropic_judge import AnthropicJudge

BATCHES = "batches.jsonl"
# After so many failures in a row the service is down: better to stop and be resumed than to lose every item.
GIVE_UP_AFTER = 20
_STOP_GRACE_S = 30.0
_WATCH_S = 0.25
# Calls start one after the other, at least this far apart: fifty that leave together come back together and compete
# for the processor from then on. The gap exceeds the processor time of one call and still allows 333 calls per second.
_GAP_S = 0.003
_BATCH_SIZE = 10_000

CallKind = Literal["pair", "absolute", "control", "canary"]


@dataclass(frozen=True, slots=True)
class Call:
    """One question to one judge. Its prompt is written only when it is asked, so that thousands do not fill memory.

    Attributes:
        key: Hash of the judge, the prompt's wording and the content.
        kind: What it is for.
        item: The prompt.
        first: The arm whose answer is shown as A (``good`` or ``bad`` in a canary).
        second: The arm shown as B; None in absolute mode.
        answer_a: The first answer.
        answer_b: The second answer, or None.
        again: Whether the same answer is asked about a second time, to see whether its score holds.
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


def call_key(content: Sequence[Any], *, sort_keys: bool = False) -> str:
    """The hash that identifies a call, from everything its verdict depends on."""
    text = json.dumps(content, sort_keys=sort_keys)
    return hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()[:32]


@dataclass(slots=True)
class Spending:
    """What the judges have cost so far, in US dollars.

    Attributes:
        price: The price of each judge by name; None where none is known, and the judge is not counted.
        limit: The most they may cost, or None.
        batched: The judges whose calls are charged at the batch discount.
        spent: The sum.
        tell: Told each new sum.
    """

    price: dict[str, Price | None]
    limit: float | None
    batched: Collection[str] = ()
    spent: float = 0.0
    tell: Callable[[float], None] | None = None

    def count(self, judge: str, usage: JudgeUsage) -> None:
        """Count one call; cached input is charged at the table's shares."""
        price = self.price.get(judge)
        if price is None:
            return
        table = catalog()
        cached = usage.cache_read_tokens * table.cache_read_share + usage.cache_write_tokens * table.cache_write_share
        self.spent += price.cost(usage.input_tokens + cached, usage.output_tokens, batch=judge in self.batched)
        if self.tell is not None:
            self.tell(self.spent)

    def check(self) -> None:
        """See that the limit is not reached.

        Raises:
            BackendError: If it is. What was judged is kept.
        """
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
        self._prompt_hash = prompter.prompt_hash
        self._journal = journal
        self._spending = spending
        self._concurrency = judge.at_once or concurrency
        self._should_stop = should_stop
        self._on_judged = on_judged
        self._failures = 0
        self._next_turn = 0.0

    async def ask_all(self, calls: Sequence[Call]) -> dict[str, Judgment] | None:
        """Ask every question; returns the judgments by key, or None when told to stop.

        Raises:
            ResearcherError: If no call can work (key, model, cost limit, disk), or too many failed in a row.
        """
        judged: dict[str, Judgment] = {}
        waiting = deque(calls)

        async def work() -> None:
            while waiting and not self._should_stop():
                call = waiting.popleft()
                await self._turn()
                judged[call.key] = await self._ask(call)

        tasks = [asyncio.create_task(work()) for _ in range(min(self._concurrency, len(calls)))]
        try:
            await self._until_done(tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        return judged if len(judged) == len(calls) else None

    async def ask_batch(self, judge: AnthropicJudge, calls: Sequence[Call], folder: Path) -> dict[str, Judgment] | None:
        """The same through Message Batches, at half the price; a batch submitted before a kill is picked up again.

        Raises:
            ResearcherError: As `ask_all`.
        """
        judged: dict[str, Judgment] = {}
        for start in range(0, len(calls), _BATCH_SIZE):
            chunk = {c.key: c for c in calls[start : start + _BATCH_SIZE]}
            first = await self._batch(judge, chunk, {}, folder)
            repairs = {k: o for k, o in (first or {}).items() if isinstance(o, Repair)}
            second = await self._batch(judge, {k: chunk[k] for k in repairs}, repairs, folder) if repairs else {}
            if first is None or second is None:
                return None
            judgments = [o for o in (first | second).values() if isinstance(o, Judgment)]
            # All of them are paid for: they are kept before one of them can end the job.
            for judgment in judgments:
                self._keep(judgment)
            append_json_line(folder / BATCHES, {"noted": list(chunk)})
            for judgment in judgments:
                self._check(judgment)
            judged |= {judgment.key: judgment for judgment in judgments}
        return judged

    async def _turn(self) -> None:
        """Wait until this call may start; calls to a judge on this machine start at once."""
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
                # Calls under way are paid for: they get some time to return.
                grace = 0.0 if self._judge.at_once and self._judge.at_once > 1 else _STOP_GRACE_S
                deadline = deadline or time.monotonic() + grace
                if time.monotonic() >= deadline:
                    return

    async def _ask(self, call: Call) -> Judgment:
        """One question: a failed call is tried once more, an unreadable answer is asked to be repaired once."""
        question = call.question(self._prompter)
        repair: Repair | None = None
        for attempt in (1, 2):
            try:
                answer = await self._judge.ask(call.key, question, repair)
            except JudgeCallError as error:
                answer = error
            outcome = self._outcome(call, answer, attempt, repair)
            if isinstance(outcome, Repair):
                repair = outcome
            elif attempt == 2 or isinstance(answer, Reply):
                return self._note(outcome)
        raise AssertionError("the second attempt always ends in a judgment")

    def _note(self, judgment: Judgment) -> Judgment:
        self._keep(judgment)
        self._check(judgment)
        return judgment

    def _keep(self, judgment: Judgment) -> None:
        self._journal.write(judgment)
        self._on_judged()
        self._spending.count(judgment.judge, judgment.usage)

    def _check(self, judgment: Judgment) -> None:
        """See whether to go on after this one.

        Raises:
            BackendError: If too many have failed in a row, or the judges have cost too much.
        """
        self._failures = self._failures + 1 if judgment.transient else 0
        if self._failures >= GIVE_UP_AFTER:
            raise BackendError(
                f"{GIVE_UP_AFTER} calls of {judgment.judge} in a row have failed, the last: {judgment.unscored}",
                fix="resume_job asks again for what is missing, and for nothing else",
            )
        self._spending.check()

    def _outcome(
        self, call: Call, answer: Reply | JudgeCallError, attempt: int, repair: Repair | None
    ) -> Judgment | Repair:
        """What an answer amounts to: a judgment, with or without a verdict, or the repair to ask for."""
        usage = repair.usage if repair else JudgeUsage()
        if isinstance(answer, JudgeCallError):
            why = f"failed: {answer.reason}"
            return self._judgment(call, attempt, usage=usage, unscored=why, transient=answer.transient)
        usage += answer.usage
        facts = {"model": answer.model, "stop_reason": answer.stop_reason, "usage": usage}
        try:
            return self._judgment(call, attempt, **facts, **self._verdict(answer))
        except UnreadableVerdictError as error:
            if attempt == 1:
                return Repair(_said(answer), repair_request(str(error)), usage)
            return self._judgment(call, attempt, **facts, unscored=_why_unreadable(answer, error))

    def _judgment(self, call: Call, attempts: int, **outcome: Any) -> Judgment:
        who = self._judge.name, call.kind, call.item.id, call.first, call.second
        return Judgment(call.key, *who, attempts=attempts, prompt_hash=self._prompt_hash, **outcome)

    def _verdict(self, reply: Reply) -> Mapping[str, Any]:
        """The fields of a `Judgment` that a readable answer fills."""
        if reply.arguments is None:
            raise UnreadableVerdictError("there was no structured verdict in the answer")
        if self._prompter.mode == "absolute":
            absolute = read_absolute(reply.arguments, self._prompter.rubric)
            return {"scores": dict(absolute.scores), "reason": absolute.reason}
        pair = read_pair(reply.arguments, self._prompter.rubric)
        scores = {name: {"A": a, "B": b} for name, (a, b) in pair.scores.items()}
        return {"verdict": pair.choice, "scores": scores, "reason": pair.reason}

    async def _batch(
        self, judge: AnthropicJudge, chunk: dict[str, Call], repairs: dict[str, Repair], folder: Path
    ) -> dict[str, Judgment | Repair] | None:
        """These calls in a batch; each result is a judgment, or the repair to ask for. None when told to stop."""
        batch_of = _submitted(folder, chunk, repairs=bool(repairs))
        if new := [key for key in chunk if key not in batch_of]:
            questions = [(key, chunk[key].question(self._prompter), repairs.get(key)) for key in new]
            batch_id = await judge.create_batch(questions)
            append_json_line(folder / BATCHES, {"batch_id": batch_id, "repairs": bool(repairs), "keys": new})
            batch_of |= dict.fromkeys(new, batch_id)
        collecting = asyncio.create_task(self._collect(judge, batch_of, chunk, repairs))
        while not collecting.done():
            await asyncio.wait({collecting}, timeout=_WATCH_S)
            if self._should_stop():
                collecting.cancel()
                return None
        return collecting.result()

    async def _collect(
        self, judge: AnthropicJudge, batch_of: Mapping[str, str], chunk: dict[str, Call], repairs: dict[str, Repair]
    ) -> dict[str, Judgment | Repair]:
        lost = JudgeCallError("the batch has no result for it", transient=True)
        answers: dict[str, Reply | JudgeCallError] = dict.fromkeys(chunk, lost)
        for batch_id in dict.fromkeys(batch_of.values()):
            results = judge.batch_results(batch_id)
            answers |= {key: answer async for key, answer in results if batch_of.get(key) == batch_id}
        attempt = 2 if repairs else 1
        return {key: self._outcome(chunk[key], a, attempt, repairs.get(key)) for key, a in answers.items()}


def _submitted(folder: Path, keys: Collection[str], *, repairs: bool) -> dict[str, str]:
    """The batch that holds each of these calls, of those that were submitted and not noted since."""
    whole = hashlib.sha256(json.dumps([sorted(keys), repairs]).encode()).hexdigest()[:32]
    batch_of: dict[str, str] = {}
    for record in read_json_lines(folder / BATCHES):
        if "noted" in record:
            for key in record["noted"]:
                batch_of.pop(key, None)
        elif record.get("mark") == whole:  # as earlier versions wrote it
            batch_of |= dict.fromkeys(keys, str(record["batch_id"]))
        elif record.get("repairs") == repairs:
            batch_of |= dict.fromkeys(record["keys"], str(record["batch_id"]))
    return {key: batch_of[key] for key in keys if key in batch_of}


def _why_unreadable(reply: Reply, error: UnreadableVerdictError) -> str:
    if reply.stop_reason == "refusal":
        return "refused"
    if reply.stop_reason in {"max_tokens", "length"}:
        return "unreadable: cut off at judge_max_tokens"
    return f"unreadable: {error}"


def _said(reply: Reply) -> str:
    said = reply.text.strip() or (json.dumps(dict(reply.arguments)) if reply.arguments else "")
    return said[:4000]
