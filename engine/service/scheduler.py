"""Who computes next: one thread, adapters in turn, each adapter's requests in order, waiting samples together."""

from __future__ import annotations

import asyncio
import heapq
import logging
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from queue import SimpleQueue
from typing import Any

from ...core.errors import ResearcherError
from ..interface import OutOfMemoryError, RequestRejectedError
from .futures import Failure, Promise, Promises
from .trace import Span, Trace

logger = logging.getLogger(__name__)

SAMPLES = "samples"
# More prompts than this in one batch would make the others of the queue wait too long.
_MOST_SAMPLES = 64
_MOST_WAITING = 10_000
# A client that asks for many samples sends them one by one: the first waits until no other came for this long.
_GATHER_S, _MOST_GATHER_S = 0.003, 0.05


class BusyError(RuntimeError):
    """More requests wait than the engine keeps in memory; the SDK tries again by itself."""


@dataclass(eq=False, slots=True)
class Work:
    """One request: what to compute, and the promise that waits for it.

    ``payload`` is for grouped work. ``blocked`` says why it cannot run yet, or None.
    """

    promise: Promise
    compute: Callable[[], object] | None = None
    payload: Any = None
    blocked: Callable[[], str | None] | None = None
    submitted: float = field(default_factory=time.monotonic)


@dataclass(slots=True)
class _Lane:
    """The requests of one adapter. Those that arrive ahead of their turn wait in ``early``."""

    next_seq: int
    ready: list[Work] = field(default_factory=list[Work])
    early: list[tuple[int, int, Work]] = field(default_factory=list[tuple[int, int, Work]])


class Joint:
    """Samples that are computed together: what is under way, what may still join, and where results go.

    ``take`` and ``finish`` belong to the compute thread, ``offer`` and ``close`` to the event loop.
    """

    def __init__(self, works: Sequence[Work], settle: Callable[[Work, object, float], None]) -> None:
        self._settle = settle
        self._arrivals: SimpleQueue[Work] = SimpleQueue()
        self._began: dict[Work, float] = {}
        self._open = True
        for work in works:
            self._arrivals.put(work)

    def offer(self, work: Work) -> bool:
        """Let a request join; False once others wait for their turn."""
        if self._open:
            self._arrivals.put(work)
        return self._open

    def close(self) -> None:
        """Let no more requests join."""
        self._open = False

    def take(self) -> list[Work]:
        """The requests that came since."""
        taken = [work for work in self.left() if not work.promise.cancelled]
        self._began |= dict.fromkeys(taken, time.monotonic())
        return taken

    def finish(self, work: Work, outcome: object) -> None:
        """Hand over the result of one request, or the error it ended with; a second one is ignored."""
        if work in self._began:
            self._settle(work, outcome, self._began.pop(work))

    def left(self) -> list[Work]:
        """Requests that were let in and never taken."""
        return [self._arrivals.get_nowait() for _ in range(self._arrivals.qsize())]


class Scheduler:
    """Runs work in one thread.

    Args:
        promises: Where results go.
        sample_together: Computes samples: takes requests from the `Joint` and finishes each of them.
        trace: Where it is noted when each request waited and ran.
        is_held: Whether a lane's requests must wait, because its client fell silent.
    """

    def __init__(
        self,
        promises: Promises,
        sample_together: Callable[[Joint], None],
        trace: Trace,
        is_held: Callable[[str], bool],
    ) -> None:
        self._promises = promises
        self._is_held = is_held
        self._trace = trace
        self._sample_together = sample_together
        self._lanes: OrderedDict[str, _Lane] = OrderedDict()
        self._wake = asyncio.Event()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="compute")
        self._counter = 0
        self._joint: Joint | None = None
        self.busy = False
        self.last_work = time.monotonic()
        self.compute_s = 0.0

    @property
    def waiting(self) -> int:
        """Requests that wait for their turn."""
        return sum(len(lane.ready) for lane in self._lanes.values())

    def check_room(self) -> None:
        """Refuse one more request if too many wait.

        Raises:
            BusyError: If so.
        """
        if sum(len(lane.ready) + len(lane.early) for lane in self._lanes.values()) >= _MOST_WAITING:
            raise BusyError(f"{_MOST_WAITING:,} requests wait already; try again when some are done")

    def is_past(self, lane_name: str, seq: int) -> bool:
        """Whether a lane is beyond ``seq``."""
        return lane_name in self._lanes and seq < self._lanes[lane_name].next_seq

    def submit(self, lane_name: str, work: Work, *, seq: int | None = None, first_seq: int = 1) -> None:
        """Queue work in a lane; with ``seq`` it runs after every smaller one of that lane."""
        lane = self._lanes.setdefault(lane_name, _Lane(first_seq))
        self.last_work = time.monotonic()
        if self._joint is not None:
            if lane_name == SAMPLES and not lane.ready and self._joint.offer(work):
                return
            self._joint.close()  # what runs goes on to its end, and then it is the others' turn
        if seq is None:
            lane.ready.append(work)
        else:
            self._counter += 1
            heapq.heappush(lane.early, (seq, self._counter, work))
            while lane.early and lane.early[0][0] <= lane.next_seq:
                number, _, due = heapq.heappop(lane.early)
                lane.ready.append(due)
                lane.next_seq = max(lane.next_seq, number + 1)
        self._wake.set()

    def drop_lane(self, lane_name: str, message: str) -> None:
        """Forget an adapter's lane; what waits in it fails."""
        lane = self._lanes.pop(lane_name, None)
        for work in [*lane.ready, *(w for _, _, w in lane.early)] if lane else []:
            self._finish(work.promise, Failure(message, "user"))
        self._wake.set()  # memory that somebody waits for may be free now

    def cancel(self, promise: Promise, failure: Failure) -> None:
        """End a request without its result: one that waits is not computed, and a sample under way is let go."""
        if not promise.done.is_set():
            promise.cancelled = True
            self._finish(promise, failure)

    def look_again(self) -> None:
        """What kept a lane waiting may be over."""
        self._wake.set()

    async def run(self) -> None:
        """Work until cancelled."""
        while True:
            batch = self._next()
            if not batch:
                self._wake.clear()
                await self._wake.wait()
                continue
            self.busy = True
            try:
                await self._compute(batch)
            finally:
                self.busy = False
                self.last_work = time.monotonic()

    def run_now(self, compute: Callable[[], object]) -> None:
        """Run something in the compute thread before the event loop starts, and wait for it.

        No other thread should compute: OpenMP keeps a pool of workers for each thread that ever did, and with more
        workers than cores it puts them to sleep between operations, which made sampling a third slower.
        """
        self._thread.submit(compute).result()

    def close(self) -> None:
        """Let the computation under way end, and accept no more."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _next(self) -> list[Work]:
        """The next lane's first request; from the lane of samples, all that wait."""
        for name in list(self._lanes):
            lane = self._lanes[name]
            if not lane.ready or self._is_held(name) or self._is_blocked(lane.ready[0]):
                continue
            self._lanes.move_to_end(name)  # the others come first next time
            count = _MOST_SAMPLES if name == SAMPLES else 1
            batch, lane.ready = lane.ready[:count], lane.ready[count:]
            return batch
        return []

    def _is_blocked(self, work: Work) -> bool:
        work.promise.paused = work.blocked() if work.blocked else None
        return work.promise.paused is not None

    async def _compute(self, batch: list[Work]) -> None:
        batch = [work for work in batch if not work.promise.cancelled]
        if not batch:
            return
        loop = asyncio.get_running_loop()
        compute = batch[0].compute
        if compute is None:
            batch = await self._gathered(batch)
            began = time.monotonic()
            await self._compute_samples(batch, loop)
        else:
            began = time.monotonic()
            self._settle(batch[0], await loop.run_in_executor(self._thread, _guarded, compute), began)
        self.compute_s += time.monotonic() - began

    async def _compute_samples(self, batch: list[Work], loop: asyncio.AbstractEventLoop) -> None:
        def settle(work: Work, outcome: object, began: float) -> None:
            loop.call_soon_threadsafe(self._settle, work, outcome, began)

        joint = self._joint = Joint(batch, settle)
        if len(self._lanes) > 1 and any(lane.ready for name, lane in self._lanes.items() if name != SAMPLES):
            joint.close()
        try:
            await loop.run_in_executor(self._thread, self._sample_together, joint)
        finally:
            self._joint = None
            lane = self._lanes.setdefault(SAMPLES, _Lane(1))
            lane.ready = joint.left() + lane.ready

    async def _gathered(self, batch: list[Work]) -> list[Work]:
        """The batch and what arrives right after it: one batch is cheaper than a small one and then the others."""
        ends = time.monotonic() + _MOST_GATHER_S
        while len(batch) < _MOST_SAMPLES and time.monotonic() < ends:
            await asyncio.sleep(_GATHER_S)
            lane = self._lanes.get(SAMPLES)
            if lane is None or not lane.ready:
                break
            room = _MOST_SAMPLES - len(batch)
            batch, lane.ready = batch + lane.ready[:room], lane.ready[room:]
        return batch

    def _settle(self, work: Work, outcome: object, began: float) -> None:
        lane = SAMPLES if work.payload is not None else work.promise.request_id.rpartition(":")[0]
        self._trace.add(Span(lane, work.promise.request_id, work.submitted, began, time.monotonic()))
        self._finish(work.promise, failure_of(outcome) if isinstance(outcome, Exception) else outcome)

    def _finish(self, promise: Promise, outcome: object) -> None:
        if not promise.done.is_set():  # else it was cancelled meanwhile, and its client told so
            promise.settle(outcome)
            self._promises.finished(promise)


def _guarded(compute: Callable[[], object]) -> object:
    try:
        return compute()
    except Exception as error:  # the boundary of a request: one that fails must not take the engine with it
        return error


def failure_of(error: Exception) -> Failure:
    """What a client is told about an error; only what was meant for it carries its own words."""
    if isinstance(error, RequestRejectedError):
        return Failure(str(error), "user")
    if isinstance(error, OutOfMemoryError | MemoryError):
        return Failure(f"out of memory: {error}. Send fewer or shorter sequences at once", "server")
    if isinstance(error, ResearcherError):
        return Failure(str(error), "server")
    logger.error("A request failed unexpectedly", exc_info=error)
    return Failure(f"an unexpected {type(error).__name__} in the engine; its log has the details", "server")
