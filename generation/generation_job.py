"""One generation job from its resolved config to its files. Only a worker imports it."""

from __future__ import annotations

import asyncio
import time
from collections import Counter, deque
from dataclasses import replace
from pathlib import Path

from ..core.errors import BackendError
from ..core.files import append_json_line, write_atomically
from ..core.foreign_text import foreign
from ..jobs import run_files
from ..jobs.context import Outcome, Progress, RunContext, StopReason
from ..judges.asking import GIVE_UP_AFTER
from .gate import Draft, Task, fault_of
from .generation_config import GenerationConfig, load_generation_settings
from .jury import Jury
from .ledger import CapReachedError, Ledger
from .made_rows import Facts, Made, finish
from .model_answers import Asking, LeftOpenError, NotMadeError, StoppedError
from .recipe import Recipe
from .recipes import load_recipe
from .writers import make_writer

_METRICS_EVERY_S = 1.0


def run_generation_job(context: RunContext, config_file: Path) -> Outcome:
    """Make the rows whose resolved config lies in ``config_file``.

    Raises:
        ResearcherError: For sources, a model or a judge that cannot be used, or where no row could be made.
    """
    config = load_generation_settings(config_file, None).config
    return asyncio.run(_Production(context, config, load_recipe(config)).run())


class _Production:
    """All sources of one job, so many at once."""

    def __init__(self, context: RunContext, config: GenerationConfig, recipe: Recipe) -> None:
        self._context = context
        self._config = config
        self._recipe = recipe
        self._progress = Progress(context)
        self._ledger = Ledger(config.max_cost_usd, context.judged)
        self._made: dict[int, Made] = {}
        self._ending = False
        self._open = 0
        self._told_at = float("-inf")
        self._began = time.monotonic()

    async def run(self) -> Outcome:
        """Ask for everything that is missing, and write the files.

        Raises:
            ResearcherError: As `run_generation_job`.
        """
        context, config = self._context, self._config
        context.started(len(self._recipe.tasks))
        # An attempt counts what is in the journals anew.
        write_atomically(context.folder / run_files.METRICS, "")
        writer = make_writer(config, context.connect)
        judge: Jury | None = None
        self._ask = Asking(
            writer, context.folder, self._ledger, seed=config.seed, tries=config.tries, should_stop=self._should_stop
        )
        try:
            await writer.check()
            if config.judge is not None:
                judge = Jury(config, config.judge, context.folder, context.connect, self._ledger, self._should_stop)
                await judge.check()
            return await self._all(judge)
        finally:
            await writer.close()
            if judge is not None:
                await judge.close()
            self._ask.close()

    def _should_stop(self) -> bool:
        return self._ending or self._context.stop_requested() is not None

    async def _all(self, judge: Jury | None) -> Outcome:
        waiting = deque(self._recipe.tasks)

        async def work() -> None:
            while waiting and not self._should_stop():
                task = waiting.popleft()
                try:
                    await self._one(task, judge)
                except LeftOpenError:
                    self._open += 1
                except StoppedError:
                    return
                except BaseException:
                    self._ending = True  # what is under way is paid for: it is awaited and kept
                    raise

        count = min(self._config.parallel_requests, len(waiting))
        ended = await asyncio.gather(*[work() for _ in range(count)], return_exceptions=True)
        self._tell(now=True)
        failed = [each for each in ended if isinstance(each, BaseException)]
        capped = next((each for each in failed if isinstance(each, CapReachedError)), None)
        if others := [each for each in failed if not isinstance(each, CapReachedError)]:
            raise others[0]
        if capped is not None:
            return self._stopped_by_cap(capped)
        if len(self._made) + self._open < len(self._recipe.tasks):
            return Outcome(False, self._context.stop_requested() or StopReason.SIGNAL, self._progress.done, {})
        if self._open:
            raise BackendError(
                f"{self._open} of {len(self._recipe.tasks)} sources could not be asked about: the service failed",
                fix="resume_job asks again for what is missing, and for nothing else",
            )
        return self._finished()

    async def _one(self, task: Task, judge: Jury | None) -> None:
        try:
            drafts = await self._recipe.make(task, self._ask, judge)
            made = Made(task, [await self._gated(draft, judge) for draft in drafts])
        except NotMadeError as error:
            made = Made(task, [], error.reason, error.said)
        self._made[task.number] = made
        self._give_up_early()
        self._progress.one()
        self._tell()

    async def _gated(self, draft: Draft, judge: Jury | None) -> Draft:
        """The draft with the reason why it does not pass, if there is one."""
        fault = fault_of(draft, self._config.gate)
        if fault is not None or judge is None or draft.judged is None:
            return replace(draft, fault=fault)
        score = await judge.score(draft.judged, draft.answer)
        facts = {**draft.facts, "judge": self._config.judge_model, "score": None if score is None else round(score, 4)}
        low = score is not None and score < self._config.judge_threshold
        fault = "judge_unreadable" if score is None else "judge_below_threshold" if low else None
        return replace(draft, fault=fault, facts=facts)

    def _give_up_early(self) -> None:
        """Stop where the model cannot do what is asked, before all sources are paid for.

        Raises:
            BackendError: If not one of the first sources was answered so that it can be read.
        """
        if len(self._made) < GIVE_UP_AFTER or any(not made.reason for made in self._made.values()):
            return
        refused = next((made.said for made in self._made.values() if made.reason == "not_answered"), None)
        if refused is not None:
            raise BackendError(f"none of the first {len(self._made)} requests was answered: {foreign(refused)}")
        raise BackendError(
            f"{self._config.model} gave no answer that can be read on the first {len(self._made)} sources, in "
            f"{self._config.tries} tries each",
            where=str(self._context.folder / "answers.jsonl"),
            fix="Use a model that follows instructions, or raise max_response_tokens if its answers are cut",
        )

    def _tell(self, *, now: bool = False) -> None:
        """Write how far it is, once per second."""
        if not now and time.monotonic() - self._told_at < _METRICS_EVERY_S:
            return
        self._told_at = time.monotonic()
        counts = Counter[str]()
        for made in list(self._made.values()):
            counts["rows/made"] += sum(draft.fault is None for draft in made.drafts)
            counts["rows/left_out"] += sum(draft.fault is not None for draft in made.drafts) + bool(made.reason)
        record = {"step": self._progress.done, **{name: counts[name] for name in ("rows/made", "rows/left_out")}}
        record |= {"answers": self._ask.answered, "answers/unreadable": self._ask.unreadable}
        append_json_line(self._context.folder / run_files.METRICS, {**record, "cost_usd": round(self._ledger.spent, 6)})

    def _stopped_by_cap(self, error: CapReachedError) -> Outcome:
        way_out = "every answer is kept. resume_job with a higher max_cost_usd goes on from here"
        self._context.alert("warn", f"stopping: {error}; {way_out}", step=self._progress.done)
        return Outcome(False, StopReason.BUDGET, self._progress.done, {})

    def _finished(self) -> Outcome:
        made = [self._made[number] for number in sorted(self._made)]
        facts = Facts(self._ask.answered, self._ask.unreadable, self._ask.usage, self._ledger.spent)
        summary = finish(self._context.folder, self._config, self._recipe, made, facts)
        for warning in summary.warnings:
            self._context.alert("warn", warning)
        result = {**summary.numbers, "wall_s": round(time.monotonic() - self._began, 2)}
        return Outcome(True, None, self._progress.done, result)
