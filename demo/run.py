"""The demo's session: an MCP client that does what an assistant would do, against the server as users run it."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import anyio
from mcp import Client, StdioServerParameters
from mcp.shared.dispatcher import ProgressFnT
from mcp_types import CallToolResult, TextContent
from pydantic import BaseModel
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from ..core.errors import JobError, ResearcherError
from ..core.paths import demo_data, home
from ..templates.catalog import template_path

TEST_PROMPTS = 50
MAX_TOKENS = 24
# What the demo promises: the base cannot do the task, the tuned model can, and held-out loss at least halves.
WORST_BEFORE, BEST_AFTER, NLL_RATIO = 0.2, 0.9, 0.5
# And that preferences and rewards are learnt: held-out pair accuracy, mean reward of the samples.
PAIR_ACCURACY, REWARD_BEFORE, REWARD_AFTER = 0.9, 0.3, 0.8
# The reward of so many steps is averaged: one step is a few hundred samples.
_LAST_STEPS = 4
# The quick demo's fine-tuning: a third of the steps at three times the learning rate, which the tiny model bears.
_QUICK = {"num_epochs": None, "num_steps": 200, "learning_rate": 2e-3, "run_name": "sft-quick-demo"}


class Stage(BaseModel):
    """One further training job of the demo, and its number before and after."""

    job_id: str
    run_folder: str
    steps: int
    measure: str
    before: float
    after: float


class Job(BaseModel):
    """What the demo reads of `wait_for_job`'s answer."""

    job_id: str
    run_folder: Path
    step: int
    state: str
    error: str | None

    def metric(self, name: str) -> list[float]:
        """A metric of the run, in order of step."""
        records = [json.loads(line) for line in (self.run_folder / "metrics.jsonl").read_text().splitlines()]
        return [record[name] for record in records if name in record]

    def stage(self, measure: str, before: float, after: float) -> Stage:
        """The job with its number before and after."""
        folder = str(self.run_folder)
        return Stage(
            job_id=self.job_id, run_folder=folder, steps=self.step, measure=measure, before=before, after=after
        )


class Interval(BaseModel):
    """A confidence interval; by default all of the scale."""

    low: float = 0.0
    high: float = 1.0


class Judged(BaseModel):
    """What the demo reads of an evaluation's result.json."""

    verdict: str
    mean: float
    interval: Interval | None


class DemoResult(BaseModel):
    """What the demo measured. NLL in nats per trained token; accuracies are exact matches on held-out prompts.

    ``dpo`` and ``grpo`` are left out of the quick demo.
    """

    job_id: str
    run_folder: str
    rows: int
    loss_tokens: int
    lora_parameters: int
    capacity_verdict: str
    steps: int
    nll_before: float
    nll_after: float
    exact_match_before: float
    exact_match_after: float
    test_prompts: int
    judge_verdict: str
    judge_win_rate: float
    judge_interval: list[float]
    example_prompt: str
    example_before: str
    example_after: str
    dpo: Stage | None
    grpo: Stage | None
    seconds: dict[str, float]
    targets_met: bool


class Demo:
    """One run of the demo: quick leaves out preferences and rewards, and trains for fewer steps."""

    def __init__(self, *, quiet: bool, quick: bool = False) -> None:
        self._quick = quick
        self._console = Console(stderr=quiet, quiet=quiet)
        self._seconds: dict[str, float] = {}
        self._job_id: str | None = None

    async def run(self) -> DemoResult:
        """Do everything, in the order an assistant would.

        Raises:
            ResearcherError: If a tool refuses or the job does not succeed.
        """
        self._console.print(f"State folder: {home()}; `ml-researcher jobs` lists what runs in it", highlight=False)
        server = StdioServerParameters(
            command=sys.executable, args=["-m", "sota_ml_researcher", "serve"], env=dict(os.environ)
        )
        began = time.monotonic()
        async with Client(server) as client:
            tools = await client.list_tools()
            self._step(f"connected to ml-researcher over stdio: {len(tools.tools)} tools", began)
            try:
                return await self._session(client, began)
            except (KeyboardInterrupt, anyio.get_cancelled_exc_class()):
                with anyio.CancelScope(shield=True):
                    await self._cancel(client)
                raise

    async def _session(self, client: Client, began: float) -> DemoResult:
        train, val = "demo:sft_train", "demo:sft_val"
        checked = await self._call(client, "check_dataset", train_file=train, base_model="demo", val_file=val)
        report = checked["report"]
        capacity = await self._call(client, "validate_capacity", base_model="demo", lora_rank=32, train_file=train)
        prompts, answers = test_set()
        before = await self._sample(client, "before", "demo", prompts)
        job = await self._train(client, "start_sft", "sft", **(_QUICK if self._quick else {}))
        after = await self._sample(client, "after", job.job_id, prompts)
        judged = await self._judge(client, job.job_id)
        interval = judged.interval or Interval()
        dpo = None if self._quick else await self._preferences(client, job.job_id)
        grpo = None if self._quick else await self._rewards(client)
        self._seconds["total"] = round(time.monotonic() - began, 1)
        nll = job.metric("test/nll")
        matches = [sum(s == a for s, a in zip(said, answers, strict=True)) / len(answers) for said in (before, after)]
        met = matches[0] < WORST_BEFORE and matches[1] > BEST_AFTER and nll[-1] <= NLL_RATIO * nll[0]
        met = met and judged.verdict == "better"
        met = met and (dpo is None or dpo.after >= PAIR_ACCURACY)
        met = met and (grpo is None or (grpo.before <= REWARD_BEFORE and grpo.after >= REWARD_AFTER))
        return DemoResult(
            job_id=job.job_id,
            run_folder=str(job.run_folder),
            rows=report["rows"],
            loss_tokens=report["tokens"]["loss"],
            lora_parameters=capacity["parameters"],
            capacity_verdict=capacity["verdict"],
            steps=job.step,
            nll_before=nll[0],
            nll_after=nll[-1],
            exact_match_before=matches[0],
            exact_match_after=matches[1],
            test_prompts=len(answers),
            judge_verdict=judged.verdict,
            judge_win_rate=judged.mean,
            judge_interval=[interval.low, interval.high],
            example_prompt=prompts[0],
            example_before=before[0],
            example_after=after[0],
            dpo=dpo,
            grpo=grpo,
            seconds=self._seconds,
            targets_met=met,
        )

    async def _preferences(self, client: Client, sft_job: str) -> Stage:
        """DPO on top of the SFT job: small letters are preferred to capitals."""
        job = await self._train(client, "start_dpo", "dpo", load_checkpoint=sft_job)
        values = job.metric("test/accuracy")
        return job.stage("held-out pair accuracy", values[0], values[-1])

    async def _rewards(self, client: Client) -> Stage:
        """GRPO from the base model, which says a word in small letters less than one time in three."""
        job = await self._train(client, "start_grpo", "grpo")
        values = job.metric("reward/mean")
        return job.stage("mean reward", values[0], sum(values[-_LAST_STEPS:]) / _LAST_STEPS)

    async def _train(self, client: Client, tool: str, kind: str, **overrides: Any) -> Job:
        began = time.monotonic()
        columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed}/{task.total}"))
        total_steps = await self._start(client, tool, kind, overrides)
        with Progress(*columns, TimeElapsedColumn(), console=self._console) as bars:
            bar = bars.add_task(f"training ({kind})", total=total_steps)

            async def moved(progress: float, total: float | None, message: str | None) -> None:
                bars.update(bar, completed=progress, total=total, description=(message or "training")[:60])

            job = await self._ended(client, moved)
            bars.update(bar, completed=job.step)
        self._seconds[f"train {kind}"] = round(time.monotonic() - began, 1)
        return job

    async def _judge(self, client: Client, tuned: str) -> Judged:
        """Base against tuned, as the template eval.yaml does it."""
        began = time.monotonic()
        await self._start(client, "run_judge_eval", "eval", {"finetuned_model": tuned})
        job = await self._ended(client)
        self._step("judge", began)
        return Judged.model_validate_json((job.run_folder / "result.json").read_bytes())

    async def _start(self, client: Client, tool: str, kind: str, overrides: Mapping[str, Any]) -> int | None:
        """Start a job from its template; returns its steps, where it has them."""
        started = await self._call(client, tool, config=str(template_path(kind)), overrides=overrides)
        self._job_id = started["job_id"]
        return started.get("total_steps")

    async def _ended(self, client: Client, moved: ProgressFnT | None = None) -> Job:
        """The job that was started last, once it has succeeded.

        Raises:
            JobError: If it ends in another way.
        """
        while True:
            arguments = {"job_id": self._job_id, "timeout_s": 20}
            result = await client.call_tool("wait_for_job", arguments, progress_callback=moved)
            job = Job.model_validate(_content("wait_for_job", result))
            if job.state == "succeeded":
                return job
            if job.state not in {"queued", "starting", "running"}:
                raise JobError(f"the job ended as {job.state}: {job.error}", where=str(job.run_folder))

    async def _sample(self, client: Client, phase: str, model: str, prompts: list[str]) -> list[str]:
        arguments = {"model": model, "prompts": prompts, "max_tokens": MAX_TOKENS, "temperature": 0.0}
        sampled = await self._call(client, "sample_model", phase=f"sample {phase}", **arguments)
        return [one["completions"][0]["text"] for one in sampled["samples"]]

    async def _call(self, client: Client, tool: str, *, phase: str | None = None, **arguments: Any) -> dict[str, Any]:
        began = time.monotonic()
        content = _content(tool, await client.call_tool(tool, arguments))
        self._step(phase or tool, began)
        return content

    async def _cancel(self, client: Client) -> None:
        if self._job_id is not None:
            await client.call_tool("cancel_job", {"job_id": self._job_id})

    def _step(self, what: str, began: float) -> None:
        self._seconds[what.split(":")[0]] = round(time.monotonic() - began, 2)
        self._console.print(f"[green]✓[/] {what} ({time.monotonic() - began:.1f} s)", highlight=False)


def _content(tool: str, result: CallToolResult) -> dict[str, Any]:
    if result.is_error or result.structured_content is None:
        text = next((c.text for c in result.content if isinstance(c, TextContent)), "no answer")
        raise ResearcherError(text, where=tool)
    return dict(result.structured_content)


def test_set() -> tuple[list[str], list[str]]:
    """Held-out prompts and the answers that count as right."""
    rows = [json.loads(line) for line in demo_data("sft_test", where="demo").read_text().splitlines()[:TEST_PROMPTS]]
    return [row["messages"][-2]["content"] for row in rows], [row["messages"][-1]["content"] for row in rows]


def show_result(result: DemoResult, *, as_json: bool) -> int:
    """Print the result, as a table or as JSON; returns the exit code."""
    if as_json:
        print(result.model_dump_json())
    else:
        _show_table(result)
    if not result.targets_met:
        print(
            f"ml-researcher demo: a target was missed: exact match must go from below {WORST_BEFORE:.0%} to above "
            f"{BEST_AFTER:.0%}, held-out NLL must halve, the tuned model be judged better, pair accuracy (DPO) must "
            f"reach {PAIR_ACCURACY:.0%}, the mean reward (GRPO) go from at most {REWARD_BEFORE} to {REWARD_AFTER}.",
            file=sys.stderr,
        )
    return 0 if result.targets_met else 1


def _show_table(result: DemoResult) -> None:
    table = Table("", "before", "after", title=f"Fine-tuning the demo model ({result.steps} steps)")
    table.add_row("held-out NLL (nats per token)", f"{result.nll_before:.3f}", f"{result.nll_after:.3f}")
    table.add_row(
        f"exact match on {result.test_prompts} held-out prompts",
        f"{result.exact_match_before:.0%}",
        f"{result.exact_match_after:.0%}",
    )
    low, high = result.judge_interval
    verdict = f"{result.judge_verdict}: win rate {result.judge_win_rate:.2f}, 95% interval {low:.2f} to {high:.2f}"
    table.add_row("judged against its base", "", verdict)
    table.add_row(f"'{result.example_prompt}'", repr(result.example_before), repr(result.example_after))
    stages = [(name, stage) for name, stage in (("DPO", result.dpo), ("GRPO", result.grpo)) if stage]
    for name, stage in stages:
        table.add_row(f"{name}, {stage.steps} steps: {stage.measure}", f"{stage.before:.2f}", f"{stage.after:.2f}")
    console = Console()
    console.print(table)
    seconds = result.seconds
    trained = sum(taken for name, taken in seconds.items() if name.startswith("train "))
    jobs = ", ".join([result.job_id, *(stage.job_id for _, stage in stages)])
    console.print(f"Trained in {trained:.0f} s, {seconds['total']:.0f} s in all. Jobs {jobs}.", soft_wrap=True)
    console.print(f"Everything of this run: {result.run_folder}", highlight=False, soft_wrap=True)
    following = f"Next: `ml-researcher analyze {result.job_id}`; `ml-researcher engine stop` gives its memory back now"
    console.print(following, highlight=False, soft_wrap=True)
