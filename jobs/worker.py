"""The process of one job: waits for its place, runs the recipe, and leaves the row in a final state.

Run as ``python -m sota_ml_researcher.jobs.worker JOB_ID``. Light until it has a place: a queue of a hundred jobs is
a hundred small processes, not a hundred copies of torch.
"""

from __future__ import annotations

import json
import logging
import math
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Generator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from pkgutil import resolve_name
from types import FrameType

from ..backends.connection import Backend, connect
from ..backends.meter import Meter
from ..core.errors import JobError, ResearcherError
from ..core.files import append_json_line, write_atomically
from ..core.foreign_text import foreign
from ..core.names import BackendName
from ..core.redaction import redact_logs, redacted
from . import run_files
from .backend_waits import BackendWaits
from .budget import Budget, open_meter
from .context import AlertLevel, Outcome, RunContext, StopReason
from .kinds import KINDS
from .processes import is_alive, start_time_of
from .registry import Registry
from .states import CancelRequest, Job, JobState

HEARTBEAT_S = 0.5
QUEUE_POLL_S = 0.5
# How long a checkpoint may take once a stop was asked for before the process ends without it.
STOP_GRACE_S = 300.0
MONTHLY_CAP_VARIABLE = "ML_RESEARCHER_MONTHLY_CAP_USD"
LIMIT_VARIABLE = "ML_RESEARCHER_MAX_JOBS_{backend}"
# One job at a time keeps the machine usable; hosted backends scale on their side.
DEFAULT_LIMITS = {"embedded": 1, "tinker": 4, "cluster": 2}

logger = logging.getLogger(__name__)


def job_limit(backend: str) -> int:
    """How many jobs may run on a backend at once: ``ML_RESEARCHER_MAX_JOBS_EMBEDDED`` and so on.

    Raises:
        JobError: If the variable holds something that is not a positive whole number.
    """
    variable = LIMIT_VARIABLE.format(backend=backend.upper())
    text = os.environ.get(variable, str(DEFAULT_LIMITS.get(backend, 1)))
    if not text.isdecimal() or int(text) < 1:
        raise JobError(f"{variable} is {text!r}", fix="Set it to a whole number from 1")
    return int(text)


def monthly_cap() -> float | None:
    """USD all jobs together may cost in a calendar month, or None.

    Raises:
        JobError: If the variable holds something that is not a positive number.
    """
    text = os.environ.get(MONTHLY_CAP_VARIABLE)
    if text is None or not text.strip():
        return None
    try:
        cap = float(text)
    except ValueError:
        cap = math.nan
    if not (math.isfinite(cap) and cap > 0):
        raise JobError(f"{MONTHLY_CAP_VARIABLE} is {text!r}", fix="Set it to a positive number of US dollars")
    return cap


class Worker:
    """One attempt at one job; also what the recipe talks to (`RunContext`)."""

    def __init__(self, registry: Registry, job: Job) -> None:
        self._registry = registry
        self._job = job
        self._pid = os.getpid()
        self._step = job.step
        self._cost = job.cost_usd
        self._total: int | None = None
        self._stop: str | None = None
        self._stop_asked: float | None = None
        self._budget: Budget | None = None
        self._meter: Meter | None = None
        self._listening = ExitStack()
        self._hears_pauses = False
        self._ended = threading.Event()

    @property
    def job_id(self) -> str:
        """The id of the job being run."""
        return self._job.id

    @property
    def folder(self) -> Path:
        """The run's folder."""
        return self._job.folder

    @property
    def attempt(self) -> int:
        """1 for the first run, one more for each resume."""
        return self._job.attempt

    def connect(self, name: BackendName, base_url: str | None = None) -> Backend:
        """The job's backend; what is sent there is counted, and its pauses are told to whoever watches."""
        if not self._hears_pauses:
            # The SDK brings torch, 1.6 s and 260 MB: judging files of answers does without both.
            from ..backends.sdk_hooks import observed_queue

            self._hears_pauses = True
            waits = BackendWaits(self)
            self._listening.callback(waits.going_on)
            self._listening.enter_context(observed_queue(waits))
        backend = connect(name, base_url)
        return replace(backend, count=self._meter.count) if self._meter else backend

    def started(self, total_steps: int) -> None:
        """Enter ``running``."""
        self._total = total_steps
        self._registry.move(self.job_id, [JobState.STARTING], JobState.RUNNING, pid=self._pid, total_steps=total_steps)

    def progress(self, step: int) -> None:
        """Note that ``step`` steps are done; the next heartbeat carries it to the registry."""
        self._step = step
        if self._budget:
            self._budget.step_done(step)

    def alert(self, level: AlertLevel, message: str, *, step: int | None = None, cause: str = "") -> None:
        """Write an alert to ``alerts.jsonl``; ``cause`` is the kind of error that ends the job."""
        record = {"time": time.time(), "level": level, "step": step, "message": redacted(message)}
        record |= {"cause": cause} if cause else {}
        append_json_line(self.folder / run_files.ALERTS, record)

    def spent(self, cost_usd: float, *, is_whole: bool) -> str | None:
        """Put the running cost into the registry; says so when all jobs of this month together reach their cap."""
        if cost_usd != self._cost:
            self._cost = cost_usd
            self._registry.note_cost(self.job_id, cost_usd, is_whole=is_whole)
        cap = monthly_cap()
        if cap is None or (spent := self._registry.spent_this_month()) < cap:
            return None
        return f"all jobs of this month have cost ${spent:.4g}, and {MONTHLY_CAP_VARIABLE} is {cap:g}"

    def judged(self, total_usd: float) -> None:
        """Note what judges outside the backend have cost so far."""
        if self._budget:
            self._budget.judged(total_usd)

    def stop_requested(self) -> str | None:
        """Why the recipe should stop, the budget included, or None."""
        if self._stop is None and self._budget and self._budget.is_spent():
            return StopReason.BUDGET
        return self._stop

    @contextmanager
    def metered(self, config_file: Path) -> Generator[None]:
        """Count what the job sends, and hold it to the cap of its config, for as long as the block runs.

        Raises:
            ConfigError: If the price file is broken.
        """
        self._meter = open_meter(self.folder, config_file)
        self._budget = Budget(self, self._meter)
        try:
            yield
        finally:
            self._listening.close()
            self._budget.settle()

    def ask_to_stop(self, reason: str) -> None:
        """Remember why; the recipe sees it before its next step."""
        if self._stop is None:
            self._stop, self._stop_asked = reason, time.monotonic()
            self.alert("info", f"stopping ({reason}): a checkpoint is saved first", step=self._step)

    def wait_for_place(self) -> bool:
        """Wait in the queue; False when the job was cancelled meanwhile."""
        limit = job_limit(self._job.backend)
        while not self._registry.claim(self.job_id, self._pid, limit=limit, alive=is_alive):
            if self._stop is not None:
                return False
            time.sleep(QUEUE_POLL_S)
        return True

    def run(self) -> int:
        """Run to the end; returns the process's exit code."""
        for left in (run_files.WAITING, run_files.PARKED):  # by an attempt that was killed while it waited
            (self.folder / left).unlink(missing_ok=True)
        heart = threading.Thread(target=self._beat, name="heartbeat", daemon=True)
        try:
            if not self.wait_for_place():
                self._finish(JobState.INTERRUPTED, "the process was asked to end while it waited for a place")
                return 0
            heart.start()
            self._conclude(run_recipe(self, self._job.kind, self.folder))
        except ResearcherError as error:
            logger.exception("The job failed")
            self._fail(str(error), type(error).__name__)
            return 1
        except Exception as error:  # the boundary of a job: whatever escapes becomes one sentence
            logger.exception("The job failed unexpectedly")
            said = foreign(_first_line(error))
            self._fail(f"an unexpected {type(error).__name__} stopped the job: {said} (details: log.txt)")
            return 1
        finally:
            self._ended.set()
        return 0

    def _conclude(self, outcome: Outcome) -> None:
        self._step = outcome.step
        result = {**outcome.summary, "finished": outcome.finished}
        write_atomically(self.folder / run_files.RESULT, json.dumps(result, indent=2) + "\n")
        if outcome.finished:
            self._finish(JobState.SUCCEEDED, "")
        elif outcome.stopped_for == StopReason.CANCEL:
            self._finish(JobState.CANCELLED, "")
        elif outcome.stopped_for == StopReason.BUDGET:
            way_out = "resume_job with a higher max_cost_usd goes on from the checkpoint"
            self._finish(JobState.INTERRUPTED, f"its money was spent at step {outcome.step}: {way_out}")
        else:
            self._finish(JobState.INTERRUPTED, f"the process was asked to end at step {outcome.step}")

    def _fail(self, message: str, cause: str = "") -> None:
        self.alert("error", message, step=self._step, cause=cause)
        self._finish(JobState.FAILED, redacted(message))

    def _finish(self, state: JobState, error: str) -> None:
        active = [JobState.QUEUED, JobState.STARTING, JobState.RUNNING]
        try:
            self._registry.move(self.job_id, active, state, pid=self._pid, step=self._step, error=error)
        except JobError as gone:
            logger.warning("The job's row was left as it is: %s", gone)

    def _beat(self) -> None:
        while not self._ended.wait(HEARTBEAT_S):
            try:
                cancel = self._registry.beat(self.job_id, self._pid, step=self._step, total_steps=self._total)
            except ResearcherError as error:
                logger.warning("No heartbeat could be written: %s", error)
                continue
            if cancel is None and not self._ended.is_set():
                logger.error("The job no longer belongs to this process: it ends here")
                os._exit(3)
            if cancel:
                self.ask_to_stop(StopReason.CANCEL)
            self._enforce_grace()

    def _enforce_grace(self) -> None:
        if self._stop_asked is None or time.monotonic() - self._stop_asked < STOP_GRACE_S or self._ended.is_set():
            return
        message = f"no checkpoint within {STOP_GRACE_S:.0f} s of being asked to stop: ended without one"
        self.alert("warn", message, step=self._step)
        self._finish(JobState.CANCELLED if self._stop == StopReason.CANCEL else JobState.INTERRUPTED, message)
        os._exit(4)


def run_recipe(worker: Worker, kind: str, folder: Path) -> Outcome:
    """Read the run's resolved config and hand over to the recipe of its kind.

    Raises:
        JobError: If this version knows no such kind.
    """
    if kind not in KINDS:
        raise JobError(f"jobs of kind '{kind}' cannot be run by this version")
    config = folder / run_files.CONFIG
    recipe: Callable[[RunContext, Path], Outcome] = resolve_name(KINDS[kind].run)
    with worker.metered(config):
        return recipe(worker, config)


def _first_line(error: Exception) -> str:
    return next(iter(traceback.format_exception_only(error)[-1].strip().splitlines()), "")[:300]


def main(arguments: list[str]) -> int:
    """Entry point: ``JOB_ID`` is the only argument."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s", force=True)
    redact_logs()
    for chatty in ("httpx", "httpx2", "httpcore"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    registry = Registry()
    pid = os.getpid()
    registry.set_process(arguments[0], pid, start_time_of(pid))
    job = registry.get(arguments[0])
    if job.state is not JobState.QUEUED:
        logger.error("Job %s is %s: nothing to do", job.id, job.state)
        return 2
    worker = Worker(registry, job)
    if job.cancel is not CancelRequest.NONE:
        worker.ask_to_stop(StopReason.CANCEL)

    def on_signal(number: int, frame: FrameType | None) -> None:
        worker.ask_to_stop(StopReason.SIGNAL)

    signal.signal(signal.SIGTERM, on_signal)
    signal.signal(signal.SIGINT, on_signal)
    return worker.run()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
