"""One judge evaluation from its resolved config to its verdict. Only a worker imports it."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from pathlib import Path

from ..core.errors import BackendError, ResearcherError
from ..core.files import write_atomically
from ..jobs import run_files
from ..jobs.context import Outcome, Progress, RunContext
from ..judges.asking import Call, Judging, Spending
from ..judges.base import Judge
from ..judges.journal import JUDGMENTS, Journal, Judgment, read_judgments
from ..judges.judge_catalog import judge_price
from ..judges.prompt import Prompter
from .controls import ControlResult, control_result
from .evidence import CONTROLS, RUN, VERDICT, write_material
from .inputs import EvalInputs, load_inputs, make_judge
from .judge_config import JudgeEvalConfig, load_judge_settings
from .questions import Material, build_calls
from .responses import Response
from .results import JudgingFacts, Verdict, write_record


class JudgeFailedError(BackendError):
    """A judge failed its calibration checks: nothing it says is reported as a verdict."""


def run_judge_eval_job(context: RunContext, config_file: Path) -> Outcome:
    """Run the evaluation whose resolved config lies in ``config_file``.

    Raises:
        ResearcherError: For bad data, a judge that cannot be asked, or one that fails its calibration checks.
    """
    began = time.monotonic()
    config = load_judge_settings(config_file, None).config
    inputs = load_inputs(config)
    progress = Progress(context)
    context.started(inputs.total_steps)
    answers = _answers(context, config, inputs, progress)
    if answers is None:
        return _stopped(context, progress)
    write_material(context.folder, inputs.items, answers)
    _warn_about_answers(context, answers, inputs.prompter)
    material = Material(inputs.items, answers, inputs.canaries, config.position_debias, config.seed)
    with _without_place(context, config):
        finished = asyncio.run(_Evaluation(context, config, inputs.prompter, material, progress).run())
    if not finished:
        return _stopped(context, progress)
    summary: dict[str, object] = conclude(context.folder).model_dump()
    summary["wall_s"] = round(time.monotonic() - began, 2)
    return Outcome(True, None, progress.done, summary)


def _without_place(context: RunContext, config: JudgeEvalConfig) -> AbstractContextManager[None]:
    """While an assistant judges nothing is computed here, unless another judge is sampled on the backend."""
    kinds = {judge.kind for judge in config.judges}
    return run_files.parked(context.folder) if "assistant" in kinds and "tinker" not in kinds else nullcontext()


def _stopped(context: RunContext, progress: Progress) -> Outcome:
    return Outcome(False, context.stop_requested(), progress.done, {})


class _Evaluation:
    """All judges of one evaluation, asked concurrently."""

    def __init__(
        self,
        context: RunContext,
        config: JudgeEvalConfig,
        prompter: Prompter,
        material: Material,
        progress: Progress,
    ) -> None:
        self._context = context
        self._config = config
        self._prompter = prompter
        self._material = material
        self._progress = progress
        self._controls: list[ControlResult] = []
        self._judging_s: float | None = None
        prices = {ref.name: judge_price(ref, config.judge_price) for ref in config.judges}
        batched = {ref.name for ref in config.judges if config.in_batches(ref)}
        self._spending = Spending(prices, config.max_cost_usd, batched, tell=context.judged)

    async def run(self) -> bool:
        """Judge everything; False when told to stop.

        Raises:
            ResearcherError: As `run_judge_eval_job`.
        """
        judges = [
            make_judge(ref, self._config, self._prompter, self._context.folder, self._context.connect)
            for ref in self._config.judges
        ]
        self._write_run(judges)
        path = self._context.folder / JUDGMENTS
        earlier = {j.key: j for j in read_judgments(path) if not j.transient}
        for judgment in earlier.values():
            self._spending.count(judgment.judge, judgment.usage)
        journal = Journal(path)
        began = time.monotonic()
        tasks = [asyncio.create_task(self._one(judge, journal, earlier)) for judge in judges]
        try:
            finished = await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            for judge in judges:
                await judge.close()
            journal.close()
        self._judging_s = time.monotonic() - began
        self._write_run(judges)
        return all(finished)

    async def _one(self, judge: Judge, journal: Journal, earlier: Mapping[str, Judgment]) -> bool:
        await judge.check()
        self._warn_of_retirement(judge)
        tests, main = build_calls(self._material, judge, self._prompter)
        judging = Judging(
            judge,
            self._prompter,
            journal,
            self._spending,
            concurrency=self._config.parallel_judges,
            should_stop=lambda: self._context.stop_requested() is not None,
            on_judged=self._progress.one,
        )
        # The checks come first, so that a judge that fails them costs little. An assistant gets all at once and mixed.
        stages = [[*tests, *main]] if judge.ref.kind == "assistant" else [tests, main]
        judged: dict[str, Judgment] = {}
        for stage in stages:
            judgments = await self._ask(judging, judge, stage, earlier)
            if judgments is None:
                return False
            judged |= judgments
            if stage is not main:
                self._check(judge.name, tests, judged)
        return True

    def _warn_of_retirement(self, judge: Judge) -> None:
        if judge.ref.kind == "anthropic":
            from ..judges.anthropic_judge import retirement_note

            note = retirement_note(judge.ref.model)
            if note is not None:
                self._context.alert("warn", note)

    async def _ask(
        self, judging: Judging, judge: Judge, calls: Sequence[Call], earlier: Mapping[str, Judgment]
    ) -> dict[str, Judgment] | None:
        """The judgments on these calls, of which ``earlier`` attempts of the job may have made some."""
        before = {c.key: earlier[c.key] for c in calls if c.key in earlier}
        for _ in before:
            self._progress.one()
        todo = list({c.key: c for c in calls if c.key not in earlier}.values())
        if not todo:
            return before
        if self._config.in_batches(judge.ref):
            from ..judges.anthropic_judge import AnthropicJudge

            assert isinstance(judge, AnthropicJudge)
            judgments = await judging.ask_batch(judge, todo, self._context.folder)
        else:
            judgments = await judging.ask_all(todo)
        return None if judgments is None else before | judgments

    def _check(self, name: str, tests: Sequence[Call], judged: dict[str, Judgment]) -> None:
        result = control_result(name, tests, judged, self._prompter)
        self._controls.append(result)
        report = json.dumps([asdict(c) for c in self._controls], indent=2) + "\n"
        write_atomically(self._context.folder / CONTROLS, report)
        if result.problems:
            lost = Counter(j.unscored for c in tests if (j := judged[c.key]).unscored is not None)
            why = [f"unscored, most often: {reason}" for reason, _ in lost.most_common(1)]
            problems = "; ".join([*result.problems, *why])
            raise JudgeFailedError(
                f"the judge {name} failed its calibration checks, so there is no verdict: {problems}",
                where=str(self._context.folder / CONTROLS),
                fix="Use another judge, or correct the rubric; judgments.jsonl holds what it said",
            )

    def _write_run(self, judges: Sequence[Judge]) -> None:
        facts = JudgingFacts(
            judges=[{"name": judge.name, **judge.settings} for judge in judges],
            prompt_hash=self._prompter.prompt_hash,
            judge_system_prompt=self._prompter.system,
            spent_usd=round(self._spending.spent, 6) if any(self._spending.price.values()) else None,
            judging_s=None if self._judging_s is None else round(self._judging_s, 3),
        )
        write_record(self._context.folder / RUN, facts)


def _answers(
    context: RunContext, config: JudgeEvalConfig, inputs: EvalInputs, progress: Progress
) -> dict[str, list[Response]] | None:
    answers: dict[str, list[Response]] = {}
    for index, arm in enumerate(inputs.arms.values()):
        before = progress.done

        def moved(done: int, before: int = before) -> bool:
            progress.done = before + done
            context.progress(progress.done)
            return context.stop_requested() is not None

        responses = arm.answers(config, inputs.items, connect=context.connect, seed=config.seed + index, on_done=moved)
        if responses is None:
            return None
        answers[arm.name] = responses
    return answers


def _warn_about_answers(context: RunContext, answers: dict[str, list[Response]], prompter: Prompter) -> None:
    counts: dict[str, Callable[[Response], bool]] = {
        "are empty": lambda r: not r.text.strip(),
        "were cut off at max_response_tokens": lambda r: r.stop_reason == "length",
        "are longer than max_response_chars, and the judge does not see their middle": lambda r: prompter.is_cut(
            r.text
        ),
    }
    for arm, responses in answers.items():
        for what, test in counts.items():
            if number := sum(test(r) for r in responses):
                context.alert("warn", f"{number} of {len(responses)} answers of '{arm}' {what}")


def conclude(folder: Path) -> Verdict:
    """Statistics and report, then the log, in processes of their own: their libraries would double this one's memory.

    Raises:
        ResearcherError: With what went wrong there.
    """
    environment = {k: v for k, v in os.environ.items() if not k.endswith(("_API_KEY", "_TOKEN", "_SECRET"))}
    for part in ("numbers", "log"):
        command = [sys.executable, "-m", "sota_ml_researcher.evals.write_report", str(folder), part]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
        if done.returncode != 0:
            last = next(iter(reversed(done.stderr.strip().splitlines())), "no message")
            sys.stderr.write(done.stderr)
            raise ResearcherError(f"the judgements are complete, and their analysis failed: {last}", where=str(folder))
    return Verdict.model_validate_json((folder / VERDICT).read_bytes())
