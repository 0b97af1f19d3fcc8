"""Who computes next: one thread, adapters and clients that sample in turn, each one's requests in order."""

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

# More prompts than this in one batch would make the others of the queue wait too long; while nobody else waits, so many
# may be under way, which end before the turn of whoever comes next.
_MOST_SAMPLES, _MOST_JOINED = 64, 256
_MOST_WAITING = 10_000
# A client that asks for many samples sends them one by one: the first waits until no other came for this long.
_GATHER_S, _MOST_GATHER_S = 0.003, 0.05


class BusyError(RuntimeError):
    """More requests wait than the engine keeps in memory; the SDK tries again by itself."""


@dataclass(eq=False, slots=True)
class Work:
    """One request: what to compute, and the promise that waits for it.

    ``payload`` is for samples. ``blocked`` says why it cannot run yet, or None. ``lane`` is noted at its submission.
    """

    promise: Promise
    compute: Callable[[], object] | None = None
    payload: Any = None
    blocked: Callable[[], str | None] | None = None
    submitted: float = field(default_factory=time.monotonic)
    lane: str = ""


@dataclass(slots=True)
class _Lane:
    """The requests of one adapter, or a client's samples. Those that arrive ahead of their turn wait in ``early``."""

    next_seq: int
    ready: list[Work] = field(default_factory=list[Work])
    early: list[tuple[int, int, Work]] = field(default_factory=list[tuple[int, int, Work]])

    @property
    def samples(self) -> bool:
        """Whether samples wait here."""
        return bool(self.ready) and self.ready[0].payload is not None


class Joint:
    """Samples that are computed together: what is under way, what may still join, and where results go.

    ``take`` and ``finish`` belong to the compute thread, the rest to the event loop.

    Attributes:
        room: How many more requests may join now.
        lanes: Whose requests were let in, in order.
    """

    def __init__(self, works: Sequence[Work], settle: Callable[[Work, object, float], None]) -> None:
        self._settle = settle
        self._arrivals: SimpleQueue[Work] = SimpleQueue()
        self._began: dict[Work, float] = {}
        self._open = True
        self.room = _MOST_JOINED
        self.lanes: dict[str, None] = {}
        self.add(works)

    def add(self, works: Sequence[Work]) -> None:
        """Let requests join."""
        self.room -= len(works)
        for work in works:
            self.lanes[work.lane] = None
            self._arrivals.put(work)

    def ended(self) -> None:
        """One of its requests has its result: another may join."""
        self.room += self._open

    def close(self) -> None:
        """Let no more requests join: others wait for their turn."""
        self._open, self.room = False, 0

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
        self._queued = 0
        self._joint: Joint | None = None
        self.looks = 0  # for what is worth finding out once each time that somebody's turn is looked for
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
        if self._queued >= _MOST_WAITING:
            raise BusyError(f"{_MOST_WAITING:,} requests wait already; try again when some are done")

    def is_past(self, lane_name: str, seq: int) -> bool:
        """Whether a lane is beyond ``seq``."""
        return lane_name in self._lanes and seq < self._lanes[lane_name].next_seq

    def submit(self, lane_name: str, work: Work, *, seq: int | None = None, first_seq: int = 1) -> None:
        """Queue work in a lane; with ``seq`` it runs after every smaller one of that lane."""
        lane = self._lanes.setdefault(lane_name, _Lane(first_seq))
        self.last_work = time.monotonic()
        work.lane = lane_name
        self._queued += 1
        if seq is None:
            lane.ready.append(work)
        else:
            self._counter += 1
            heapq.heappush(lane.early, (seq, self._counter, work))
            while lane.early and lane.early[0][0] <= lane.next_seq:
                number, _, due = heapq.heappop(lane.early)
                lane.ready.append(due)
                lane.next_seq = max(lane.next_seq, number + 1)
        if self._joint is not None and work.payload is None:
            self._joint.close()  # what runs goes on to its end, and then it is the others' turn
        self._join_more()
        self._wake.set()

    def drop_lane(self, lane_name: str, message: str) -> None:
        """Forget an adapter's lane; what waits in it fails."""
        lane = self._lanes.pop(lane_name, None)
        waiting = [*lane.ready, *(w for _, _, w in lane.early)] if lane else []
        self._queued -= len(waiting)
        for work in waiting:
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
        """The next lane's first request; where that is a sample, all samples that wait, its own lane's first."""
        self.looks += 1
        for name in list(self._lanes):
            lane = self._lanes[name]
            if not lane.ready or self._is_held(name) or self._is_blocked(lane.ready[0]):
                continue
            if lane.samples:
                return self._waiting_samples(_MOST_SAMPLES)
            self._lanes.move_to_end(name)  # the others come first next time
            self._queued -= 1
            return [lane.ready.pop(0)]
        return []

    def _waiting_samples(self, most: int) -> list[Work]:
        """Up to ``most`` samples, those of the client whose turn it is first; clients that had theirs go to the end."""
        batch: list[Work] = []
        for name in [name for name, lane in self._lanes.items() if lane.samples] if most > 0 else []:
            lane, room = self._lanes[name], most - len(batch)
            if not room:
                break
            batch, lane.ready = batch + lane.ready[:room], lane.ready[room:]
            self._lanes.move_to_end(name)
        self._queued -= len(batch)
        return batch

    def _join_more(self) -> None:
        """Let samples that wait join those under way, as far as there is room."""
        if self._joint is not None and self._joint.room > 0:
            self._joint.add(self._waiting_samples(self._joint.room))

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
        def settled(work: Work, outcome: object, began: float) -> None:
            self._settle(work, outcome, began)
            joint.ended()
            self._join_more()

        def settle(work: Work, outcome: object, began: float) -> None:
            loop.call_soon_threadsafe(settled, work, outcome, began)

        joint = self._joint = Joint(batch, settle)
        if any(lane.ready and not lane.samples for lane in self._lanes.values()):
            joint.close()
        self._join_more()
        try:
            await loop.run_in_executor(self._thread, self._sample_together, joint)
        finally:
            self._joint = None
            for name in joint.lanes:
                if name in self._lanes:
                    self._lanes.move_to_end(name)  # they had their turn: who came meanwhile is next
            for work in reversed(joint.left()):
                if (lane := self._lanes.get(work.lane)) is not None:  # else its session has ended, and it was told
                    lane.ready.insert(0, work)
                    self._queued += 1

    async def _gathered(self, batch: list[Work]) -> list[Work]:
        """The batch and what arrives right after it: one batch is cheaper than a small one and then the others."""
        ends = time.monotonic() + _MOST_GATHER_S
        while len(batch) < _MOST_SAMPLES and time.monotonic() < ends:
            await asyncio.sleep(_GATHER_S)
            came = self._waiting_samples(_MOST_SAMPLES - len(batch))
            if not came:
                break
            batch = batch + came
        return batch

    def _settle(self, work: Work, outcome: object, began: float) -> None:
        self._trace.add(Span(work.lane, work.promise.request_id, work.submitted, began, time.monotonic()))
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
