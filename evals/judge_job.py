"""One judge evaluation from its resolved config to its verdict. Only a worker imports it."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..core.errors import BackendError, MissingDependencyError, ResearcherError
from ..core.files import write_atomically
from ..jobs.context import Outcome, Progress, RunContext
from ..judges.asking import Call, Judging, Spending
from ..judges.base import Judge
from ..judges.journal import JUDGMENTS, Journal, Judgment, read_judgments
from ..judges.judge_catalog import JudgeRef, Price, price_of
from ..judges.prompt import EvalItem, Prompter
from ..judges.rubric import load_rubric
from .arms import CONTROLS, ITEMS, RESPONSES, RUN, VERDICT, Arm, load_items, resolve_arm, sampled_arms
from .controls import ControlResult, control_result, load_canaries
from .judge_config import JudgeEvalConfig, load_judge_settings
from .questions import Material, build_calls, count_calls
from .responses import Response


class JudgeFailedError(BackendError):
    """A judge failed the tests of itself: nothing it says is reported as a verdict."""


def run_judge_eval_job(context: RunContext, config_file: Path) -> Outcome:
    """Run the evaluation whose resolved config lies in ``config_file``.

    Raises:
        ResearcherError: For bad data, a judge that cannot be asked, or one that fails the tests of itself.
    """
    began = time.monotonic()
    config = load_judge_settings(config_file, None).config
    items = load_items(Path(config.test_set), config.num_samples, config.seed)
    rubric = load_rubric(Path(config.rubric) if config.rubric else None)
    canaries = load_canaries(Path(config.canaries) if config.canaries else None)
    arms = {name: resolve_arm(name, model) for name, model in config.arms.items()}
    calls_each = count_calls(
        len(arms), len(items), len(canaries), pairwise=config.mode == "pairwise", both_orders=config.position_debias
    )
    progress = Progress(context)
    context.started(len(sampled_arms(arms)) * len(items) + calls_each * len(config.judges))
    prompter = Prompter(rubric, config.mode, max_chars=config.max_response_chars)
    answers = _answers(context, config, arms, items, progress)
    if answers is None:
        return Outcome(False, context.stop_requested(), progress.done, {})
    _write_material(context.folder, items, answers)
    _warn_about_answers(context, answers, prompter)
    material = Material(items, answers, canaries, config.position_debias, config.seed)
    if not asyncio.run(_Evaluation(context, config, prompter, material, progress).run()):
        return Outcome(False, context.stop_requested(), progress.done, {})
    verdict = _conclude(context.folder)
    summary: dict[str, object] = {**verdict, "wall_s": round(time.monotonic() - began, 2)}
    return Outcome(True, None, progress.done, summary)


class _Evaluation:
    """All judges of one evaluation, side by side."""

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
        prices = {ref.name: _price(ref, config) for ref in config.judges}
        self._spending = Spending(prices, config.max_cost_usd, config.judge_batch, tell=context.judged)

    async def run(self) -> bool:
        """Judge everything; False when told to stop.

        Raises:
            ResearcherError: As `run_judge_eval_job`.
        """
        judges = [make_judge(ref, self._config, self._prompter, self._context.folder) for ref in self._config.judges]
        self._write_run(judges)
        path = self._context.folder / JUDGMENTS
        known = {j.key: j for j in read_judgments(path) if not j.transient}
        for judgment in known.values():
            self._spending_of_earlier(judgment)
        journal = Journal(path)
        began = time.monotonic()
        tasks = [asyncio.create_task(self._one(judge, journal, known)) for judge in judges]
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

    def _spending_of_earlier(self, judgment: Judgment) -> None:
        limit, self._spending.limit = self._spending.limit, None
        self._spending.add(judgment.judge, judgment.usage)
        self._spending.limit = limit

    async def _one(self, judge: Judge, journal: Journal, known: dict[str, Judgment]) -> bool:
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
        # The tests come first, so that a judge that fails them costs little. An assistant gets all at once and mixed.
        stages = [[*tests, *main]] if judge.settings["kind"] == "assistant" else [tests, main]
        judged: dict[str, Judgment] = {}
        for stage in stages:
            found = await self._ask(judging, judge, stage, known)
            if found is None:
                return False
            judged |= found
            if stage is not main:
                self._check(judge.name, tests, judged)
        return True

    def _warn_of_retirement(self, judge: Judge) -> None:
        if judge.settings["kind"] == "anthropic":
            from ..judges.anthropic_judge import retirement_note

            note = retirement_note(str(judge.settings["model"]))
            if note is not None:
                self._context.alert("warn", note)

    async def _ask(
        self, judging: Judging, judge: Judge, calls: Sequence[Call], known: dict[str, Judgment]
    ) -> dict[str, Judgment] | None:
        before = {c.key: known[c.key] for c in calls if c.key in known}
        for _ in before:
            self._progress.one()
        todo = list({c.key: c for c in calls if c.key not in known}.values())
        if not todo:
            return before
        if self._config.judge_batch and judge.settings["kind"] == "anthropic":
            from ..judges.anthropic_judge import AnthropicJudge

            assert isinstance(judge, AnthropicJudge)
            found = await judging.ask_batch(judge, todo, self._context.folder)
        else:
            found = await judging.ask_all(todo)
        return None if found is None else before | found

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
                f"the judge {name} failed the tests of itself, so there is no verdict: {problems}",
                where=str(self._context.folder / CONTROLS),
                fix="Use another judge, or mend the rubric; judgments.jsonl holds what it said",
            )

    def _write_run(self, judges: Sequence[Judge]) -> None:
        facts = {
            "judges": [{"name": judge.name, **judge.settings} for judge in judges],
            "prompt_hash": self._prompter.prompt_hash,
            "judge_system_prompt": self._prompter.system,
            "spent_usd": round(self._spending.spent, 6) if any(self._spending.price.values()) else None,
            "judging_s": None if self._judging_s is None else round(self._judging_s, 3),
        }
        write_atomically(self._context.folder / RUN, json.dumps(facts, indent=2, ensure_ascii=False) + "\n")


def make_judge(ref: JudgeRef, config: JudgeEvalConfig, prompter: Prompter, folder: Path) -> Judge:
    """The judge a name means.

    Raises:
        ResearcherError: If it needs a key that is not set, or its backend does not answer.
    """
    if ref.kind == "check":
        from ..judges.local_judges import ReferenceCheck

        return ReferenceCheck(ref, prompter.rubric)
    if ref.kind == "assistant":
        from ..judges.local_judges import AssistantJudge

        return AssistantJudge(ref, folder, seed=config.seed)
    limits: dict[str, Any] = {"max_tokens": config.judge_max_tokens}
    if ref.kind == "tinker":
        from ..backends.connection import connect
        from ..judges.tinker_judge import TinkerJudge

        return TinkerJudge(ref, prompter.schema, connect(config.backend, config.base_url), **limits)
    limits["timeout_s"] = config.judge_timeout_s
    if ref.kind == "anthropic":
        from ..judges.anthropic_judge import AnthropicJudge

        return AnthropicJudge(ref, prompter.schema, **limits)
    from ..judges.openai_judge import OpenAIJudge

    return OpenAIJudge(ref, prompter.schema, base_url=config.judge_base_url, **limits)


def _answers(
    context: RunContext,
    config: JudgeEvalConfig,
    arms: dict[str, Arm],
    items: Sequence[EvalItem],
    progress: Progress,
) -> dict[str, list[Response]] | None:
    found: dict[str, list[Response]] = {}
    for index, arm in enumerate(arms.values()):
        before = progress.done

        def moved(done: int, before: int = before) -> bool:
            progress.done = before + done
            context.progress(progress.done)
            return context.stop_requested() is not None

        responses = arm.answers(config, items, seed=config.seed + index, on_done=moved)
        if responses is None:
            return None
        found[arm.name] = responses
    return found


def _write_material(folder: Path, items: Sequence[EvalItem], answers: dict[str, list[Response]]) -> None:
    write_atomically(folder / ITEMS, "".join(json.dumps(asdict(i), ensure_ascii=False) + "\n" for i in items))
    rows = [
        {"arm": arm, "id": item.id, **asdict(response)}
        for arm, responses in answers.items()
        for item, response in zip(items, responses, strict=True)
    ]
    write_atomically(folder / RESPONSES, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


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


def _price(ref: JudgeRef, config: JudgeEvalConfig) -> Price | None:
    if not ref.is_paid:
        return None
    if config.judge_price is not None:
        return Price(config.judge_price.input, config.judge_price.output, "the config")
    return price_of(ref.model) if ref.kind == "anthropic" else None


def _conclude(folder: Path) -> dict[str, Any]:
    """Statistics and report, then the log, in processes of their own: their libraries would double this one's memory.

    Raises:
        ResearcherError: With what went wrong there.
    """
    environment = {k: v for k, v in os.environ.items() if not k.endswith(("_API_KEY", "_TOKEN", "_SECRET"))}
    for part in ("numbers", "log"):
        command = [sys.executable, "-m", "sota_ml_researcher.evals.write_report", str(folder), part]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
        if done.returncode != 0:
            last = next(iter(reversed(done.stderr.strip().splitlines())), "it said nothing")
            sys.stderr.write(done.stderr)
            raise ResearcherError(f"the judgements are complete, and their analysis failed: {last}", where=str(folder))
    return json.loads((folder / VERDICT).read_bytes())


async def check_judges(config: JudgeEvalConfig) -> None:
    """Look up the model of each Anthropic and OpenAI-compatible judge with the key at hand.

    Raises:
        ResearcherError: If a key is missing or refused, a model is unknown or retired, or a service does not answer.
        MissingDependencyError: If the evals extra is not installed.
    """
    paid = [ref for ref in config.judges if ref.is_paid]
    if not paid:
        return
    rubric = load_rubric(Path(config.rubric) if config.rubric else None)
    prompter = Prompter(rubric, config.mode, max_chars=config.max_response_chars)
    for ref in paid:
        try:
            judge = make_judge(ref, config, prompter, Path())
        except ImportError as error:
            if isinstance(error, MissingDependencyError):
                raise
            raise MissingDependencyError(
                f"the judge {ref.name} needs {error.name}", fix="Run: pip install 'sota-ml-researcher[evals]'"
            ) from error
        try:
            await judge.check()
        finally:
            await judge.close()
