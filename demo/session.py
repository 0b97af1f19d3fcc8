"""A session with the server as users run it: an MCP client that starts jobs, waits and reads what they left."""

from __future__ import annotations

import json
import os
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Generic, TypeVar

import anyio
from mcp import Client, StdioServerParameters
from mcp.shared.dispatcher import ProgressFnT
from mcp_types import CallToolResult, TextContent
from pydantic import BaseModel
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from ..core.errors import JobError, ResearcherError
from ..core.paths import home
from ..templates.catalog import template_path

Result = TypeVar("Result", bound=BaseModel)


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


class Evaluation(BaseModel):
    """An evaluation's job and what it concluded."""

    job: Job
    verdict: Judged


def verdict_text(verdict: str, win_rate: float, interval: Sequence[float]) -> str:
    """What an evaluation concluded, in one line."""
    low, high = interval
    return f"{verdict}: win rate {win_rate:.2f}, 95% interval {low:.2f} to {high:.2f}"


def exit_code(result: BaseModel, table: Callable[[], None], *, as_json: bool, met: bool, promise: str) -> int:
    """Print a demo's result, as JSON or by ``table``, and its ``promise`` where that was not kept: the exit code."""
    if as_json:
        print(result.model_dump_json())
    else:
        table()
    if not met:
        print(f"ml-researcher demo: a target was missed: {promise}", file=sys.stderr)
    return 0 if met else 1


class Session(ABC, Generic[Result]):
    """Does what an assistant would do, through tools alone, and says on the console what it does."""

    def __init__(self, *, quiet: bool) -> None:
        self._console = Console(stderr=quiet, quiet=quiet)
        self._seconds: dict[str, float] = {}
        self._job_id: str | None = None

    @abstractmethod
    async def _session(self, client: Client, began: float) -> Result: ...

    async def run(self) -> Result:
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

    async def _judge(self, client: Client, tuned: str, **overrides: Any) -> Evaluation:
        """A baseline against ``tuned``, as the template eval.yaml does it."""
        began = time.monotonic()
        await self._start(client, "run_judge_eval", "eval", {"finetuned_model": tuned, **overrides})
        job = await self._ended(client)
        self._step("judge", began)
        return Evaluation(job=job, verdict=Judged.model_validate_json((job.run_folder / "result.json").read_bytes()))

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
