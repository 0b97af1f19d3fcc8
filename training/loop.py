"""The one training loop. A method (SFT, DPO, RL) says what a step is; the loop knows when.

Per step: a checkpoint if one is due, a validation if one is due, the method's batch, the method's step, its metrics on
disk. Checkpoints and validations happen between steps, when nothing is under way. A run is a function of its config,
its data, its seed and the step: nothing here depends on which answer arrives first, so that a resumed run goes on as if
it had never stopped.
"""

from __future__ import annotations

import asyncio
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

from ..backends.connection import Backend, backend_errors
from ..backends.embedded import engine_died
from ..backends.sampling_client import base_model_of, renderer_of
from ..core.errors import BackendError, ConfigError
from ..core.files import append_json_line, read_json_lines
from ..data.columns import ColumnMap
from ..data.examples import Batches, MixedBatches
from ..data.mixtures import Mix
from ..jobs.context import Outcome, RunContext, StopReason
from ..jobs.run_files import CHECKPOINTS, METRICS
from ..models.chat import ChatRenderer
from ..models.model_ref import resolve_model
from .checkpoints import BEST, Checkpoints, find_resume_point, prepare_folder, read_best
from .client import LossNotFiniteError, TrainingClient
from .config import OfflineConfig, TrainingConfig
from .open_client import open_training_client
from .plan import backend_warnings

T = TypeVar("T")
BatchT = TypeVar("BatchT")
RowT = TypeVar("RowT")
Metrics = dict[str, float]
_WATCH_S = 2.0
_OF_A_CHECKPOINT = ("name", "next_step", "state_path", "sampler_path")


class StopTrainingError(Exception):
    """Raised by a method in the middle of a step when the run has to stop: that step is not taken."""


@dataclass(frozen=True, slots=True)
class Run:
    """What a job's attempt is about.

    Attributes:
        context: The worker.
        config: The job's settings, all derived.
        backend: Where it trains.
        renderer: Name of the chat format.
        total_steps: Steps of the whole run.
    """

    context: RunContext
    config: TrainingConfig
    backend: Backend
    renderer: str
    total_steps: int

    @property
    def folder(self) -> Path:
        """The run's folder."""
        return self.context.folder

    def must_stop(self) -> bool:
        """Whether the worker asked for a checkpoint and an end."""
        return self.context.stop_requested() is not None

    def must_give_up(self) -> bool:
        """Whether the step under way is not worth finishing: somebody waits. A budget had room for it when it began."""
        return self.context.stop_requested() not in {None, StopReason.BUDGET}

    def learning_rate(self, step: int, schedule: str) -> float:
        """The learning rate of a step: decayed from the peak over the whole run."""
        peak, done = self.config.learning_rate or 0.0, step / self.total_steps
        factors = {"linear": 1 - done, "cosine": 0.5 * (1 + math.cos(math.pi * done)), "constant": 1.0}
        return peak * factors[schedule]


class Method(Protocol[BatchT]):
    """What a kind of training adds to the loop.

    Attributes:
        ahead: Steps that may be sent before the oldest one's answer is awaited: one hides the round trip.
        held_out: The metric of a validation that picks the best checkpoint.
        highest: Whether more of it is better.
        validates: Whether there is anything to validate on.
        summarized: Names in ``result.json`` (after ``first_`` and ``last_``) and the metrics they show.
    """

    ahead: int
    held_out: str
    highest: bool
    validates: bool
    summarized: Mapping[str, str]

    async def prepare(self, client: TrainingClient, step: int) -> None:
        """Whatever has to be done once before step ``step``, the first of this attempt."""
        ...

    async def batch(self, client: TrainingClient, step: int) -> BatchT:
        """What step ``step`` learns from.

        Raises:
            StopTrainingError: If the run has to stop before it can be had.
        """
        ...

    async def step(self, client: TrainingClient, step: int, batch: BatchT) -> Metrics:
        """Send the batch and the optimizer step, await both, and say what to log.

        Where ``ahead`` is above 0, everything is sent before the first await, so that the steps stay in order.
        """
        ...

    async def validate(self, client: TrainingClient) -> Metrics:
        """Measure the weights of now on held-out data."""
        ...

    async def close(self) -> None:
        """Let go of everything; called once, however the run ends."""
        ...


def train(run: Run, method: Method[BatchT]) -> Outcome:
    """Run a job to its last step, or until the worker asks to stop; either way a checkpoint is saved.

    Raises:
        ResearcherError: For a backend that refuses or dies, or a loss that is not a number.
    """
    began = time.monotonic()
    context = run.context
    point = find_resume_point(run.folder) if context.attempt > 1 else None
    first_step = point.next_step if point else 0
    prepare_folder(run.folder, first_step)
    if point:
        context.alert("info", f"going on from the checkpoint with {first_step} steps", step=first_step)
    else:
        for note in backend_warnings(run.config):
            context.alert("info", note, step=0)
        if run.config.load_checkpoint:
            _warn_of_another_format(run, run.config.load_checkpoint)
    context.started(run.total_steps)
    context.progress(first_step)
    loop = _Loop(run, method, first_step)

    async def body() -> str | None:
        try:
            client = await open_training_client(
                run.backend,
                run.config,
                model=resolve_model(run.config.base_model).wire_name,
                renderer=run.renderer,
                job_id=context.job_id,
                resume_from=point.state_path if point else None,
                tokens=point.tokens if point else 0,
            )
            try:
                return await loop.run(client)
            finally:
                await client.close()
        finally:
            await method.close()

    with backend_errors(run.backend):
        stopped_for = _watched(lambda: asyncio.run(body()), run.backend, lambda: loop.done)
    summary = summarize(run.folder, method) | {
        "tokens_trained": loop.tokens,
        "wall_s": round(time.monotonic() - began, 2),
    }
    return Outcome(stopped_for is None, stopped_for, loop.done, summary)


class _Loop:
    """One attempt at a run. ``done`` counts the steps that are done and logged, ``tokens`` those sent for them."""

    def __init__(self, run: Run, method: Method[BatchT], first_step: int) -> None:
        self._run = run
        self._method = method
        self._under_way: deque[tuple[int, Metrics, asyncio.Task[Metrics]]] = deque()
        self._finished_at = 0.0
        self.done = self._first_step = first_step
        self.tokens = 0

    async def run(self, client: TrainingClient) -> str | None:
        """Take the steps that are left; returns a `StopReason`, or None after the last step."""
        run, method, config = self._run, self._method, self._run.config
        saved = Checkpoints(
            run.folder, client, ttl_hours=config.checkpoint_ttl_hours, metric=method.held_out, highest=method.highest
        )
        try:
            stopped = await self._steps(client, saved)
            await self._drain()
        finally:
            for _, _, task in self._under_way:
                task.cancel()
            self.tokens = client.tokens
        if stopped:
            if self.done:
                await saved.last(self.done, stopped=True)
            return run.context.stop_requested() or StopReason.CANCEL
        await saved.last(self.done, stopped=False)
        if method.validates and not self._validated_already():
            metrics = await self._validate(client, saved)
            append_json_line(run.folder / METRICS, {"step": self.done, **metrics})
        return None

    async def _steps(self, client: TrainingClient, saved: Checkpoints) -> bool:
        """Whether the run was stopped before its last step."""
        run, method, config = self._run, self._method, self._run.config
        try:
            await method.prepare(client, self._first_step)
            self._finished_at = time.perf_counter()
            for step in range(self._first_step, run.total_steps):
                metrics: Metrics = {}
                if run.must_stop():
                    return True
                if step > self._first_step and config.checkpoint_every and step % config.checkpoint_every == 0:
                    await self._drain()
                    await saved.periodic(step)
                if method.validates and config.eval_every and step % config.eval_every == 0:
                    await self._drain()
                    metrics = await self._validate(client, saved)
                batch = await method.batch(client, step)
                # The task sends everything at its first turn: tasks take their turns in the order of their making.
                self._under_way.append((step, metrics, asyncio.create_task(method.step(client, step, batch))))
                await asyncio.sleep(0)
                while len(self._under_way) > method.ahead:
                    await self._finish_oldest()
        except StopTrainingError:
            return True
        return False

    async def _drain(self) -> None:
        while self._under_way:
            await self._finish_oldest()

    async def _finish_oldest(self) -> None:
        """Await the oldest step under way and log it."""
        step, metrics, task = self._under_way.popleft()
        try:
            metrics |= await task
        except LossNotFiniteError as error:
            raise LossNotFiniteError(f"{error.problem} at step {step}", fix=error.fix) from error
        now = time.perf_counter()
        metrics["time/total"], self._finished_at = now - self._finished_at, now
        append_json_line(self._run.folder / METRICS, {"step": step, **metrics})
        self.done = step + 1
        self._run.context.progress(self.done)

    async def _validate(self, client: TrainingClient, saved: Checkpoints) -> Metrics:
        began = time.perf_counter()
        metrics = await self._method.validate(client)
        if self._method.held_out in metrics:
            await saved.consider(self.done, metrics[self._method.held_out])
        return {**metrics, "time/validation": time.perf_counter() - began}

    def _validated_already(self) -> bool:
        records = read_json_lines(self._run.folder / METRICS)
        return any(r.get("step") == self.done and self._method.held_out in r for r in records)


def summarize(folder: Path, method: Method[BatchT]) -> dict[str, object]:
    """What ``result.json`` says of a run: its checkpoints, and its metrics at their first and last logged step."""
    records = list(read_json_lines(folder / METRICS))
    saved = [r for r in read_json_lines(folder / CHECKPOINTS) if not str(r["name"]).startswith(BEST)]
    last = next((r for r in reversed(saved) if r.get("state_path") and r.get("sampler_path")), None)
    best = read_best(folder, method.held_out)
    summary: dict[str, object] = {
        "final_checkpoint": {key: last.get(key) for key in _OF_A_CHECKPOINT} if last else None,
        "best_checkpoint": best
        and {
            "name": f"{BEST}{best.step:06d}",
            "step": best.step,
            "state_path": best.state_path,
            "sampler_path": best.sampler_path,
        },
    }
    for name, metric in method.summarized.items():
        values = [r[metric] for r in records if metric in r]
        summary |= {f"first_{name}": values[0] if values else None, f"last_{name}": values[-1] if values else None}
    return summary


def load_batches(
    load: Callable[..., Batches[RowT]], config: OfflineConfig, renderer: ChatRenderer
) -> tuple[Batches[RowT], Batches[RowT] | None]:
    """The training rows and the held-out ones, read by a method's loader (see `data.supervised.load_sft_data`).

    Raises:
        DataError: For the first row that cannot be used, unless such rows are to be left out.
    """
    batch_size, seed = config.batch_size or 1, config.seed

    def rows(file: Path, columns: ColumnMap | None) -> Batches[RowT]:
        return load(
            file,
            renderer,
            batch_size=batch_size,
            max_seq_len=config.max_seq_len,
            seed=seed,
            skip_bad_rows=config.skip_bad_rows,
            columns=columns,
        )

    parts = [rows(source.file, source.columns) for source in config.sources]
    mix = Mix.of(config.sources, [part.rows for part in parts])
    mixed = MixedBatches(parts, mix, batch_size=batch_size, seed=seed)
    return mixed, rows(Path(config.val_file), config.columns) if config.val_file else None


def check_same_base(backend: Backend, base_model: str, checkpoints: Mapping[str, str | None]) -> None:
    """Refuse a checkpoint of another base model.

    Args:
        backend: Where the checkpoints are.
        base_model: The model the run trains.
        checkpoints: Paths by the setting that names them; other names than ``tinker://`` paths are left alone.

    Raises:
        ConfigError: Naming the setting and both models.
        BackendError: If there is no such checkpoint.
    """
    name = resolve_model(base_model).wire_name
    for key, path in checkpoints.items():
        if path is None or not path.startswith("tinker://"):
            continue
        other = base_model_of(backend, path)
        if other != name:
            raise ConfigError(
                f"this checkpoint is of {other}, and the run trains {name}",
                where=key,
                fix=f"Give a checkpoint of {name}, or set base_model to {other}",
            )


def _warn_of_another_format(run: Run, checkpoint: str) -> None:
    """Say so when the weights a run starts from were trained with another chat format, where that is known."""
    other = renderer_of(run.backend, checkpoint)
    if other not in {None, run.renderer}:
        message = f"load_checkpoint was trained with renderer {other}, and this run uses {run.renderer}"
        run.context.alert("warn", f"{message}: the same renderer is the safe choice", step=0)


def _watched(run: Callable[[], T], backend: Backend, step: Callable[[], int]) -> T:
    """Run something that talks to the backend, and give up when the embedded engine dies: the SDK would call for ever.

    It runs in a thread, because some of the SDK's calls block, and in one that cannot keep a finished worker alive.

    Raises:
        BackendError: If the engine's process ended.
    """
    results: list[T] = []
    failures: list[BaseException] = []

    def body() -> None:
        try:
            results.append(run())
        except BaseException as error:  # carried over to the caller's thread, whatever it is
            failures.append(error)

    thread = threading.Thread(target=body, name="training-loop", daemon=True)
    thread.start()
    while thread.is_alive():
        thread.join(_WATCH_S)
        if thread.is_alive() and backend.name == "embedded" and engine_died(backend.base_url):
            raise BackendError(
                f"the embedded engine ended at step {step()}",
                where=backend.base_url,
                fix="resume_job starts a new one and goes on from the last checkpoint; engine/log.txt says why",
            )
    if failures:
        raise failures[0]
    return results[0]
