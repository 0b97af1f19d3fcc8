"""A clock that jumps to the next event, and a base model whose calls take time on it instead of computing."""

from __future__ import annotations

import asyncio
import selectors
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Costs:
    """What the compute side takes, in seconds, and the memory of one adapter in bytes.

    Attributes:
        call: A loss call.
        trained: A token forward and backward.
        scored: A token forward only.
        optimizer: An optimizer step.
        prompt: A token of a prompt.
        step: A step of sampling.
        row: A row in a step of sampling.
    """

    call: float
    trained: float
    scored: float
    optimizer: float
    prompt: float
    step: float
    row: float
    adapter_bytes: int


class VirtualTime:
    """A clock for one event loop and one compute thread, of which only one runs at a time."""

    current: VirtualTime

    def __init__(self) -> None:
        VirtualTime.current = self
        self.now = 1e6
        self.loop = asyncio.SelectorEventLoop(self._selector())
        self.loop.time = lambda: self.now
        self._run, self.loop.run_in_executor = self.loop.run_in_executor, self._in_executor
        self._stopped = threading.Event()  # the compute thread sleeps or has ended
        self._ending = self._closed = False
        self._woken = threading.Event()

    @staticmethod
    def monotonic() -> float:
        """In the place of ``time.monotonic``; one function for all runs, since some modules keep a reference."""
        return VirtualTime.current.now

    def close(self) -> None:
        """Let what is under way in the compute thread end without taking time."""
        self._closed = True
        self._woken.set()

    def sleep(self, seconds: float) -> None:
        """Of the compute thread: let the event loop live through so many seconds."""
        if self._closed:
            return
        woken = self._woken = threading.Event()

        def wake() -> None:
            self._stopped.clear()
            woken.set()
            self._stopped.wait()

        self.loop.call_soon_threadsafe(self.loop.call_later, seconds, wake)
        self._stopped.set()
        woken.wait()

    def _in_executor(self, executor: Any, function: Callable[..., Any], *arguments: Any) -> Any:
        def work() -> Any:
            try:
                return function(*arguments)
            finally:
                self._ending = True
                self._stopped.set()

        def ended(_: object) -> None:
            self._ending = False

        self._stopped.clear()
        future = self._run(executor, work)
        future.add_done_callback(ended)
        self._stopped.wait()
        return future

    def _selector(self) -> selectors.BaseSelector:
        clock = self

        class Selector(selectors.DefaultSelector):
            def select(self, timeout: float | None = None) -> Any:
                if clock._ending and timeout != 0:
                    return super().select(None)  # the result is on its way from the other thread
                clock.now += timeout or 0.0
                return super().select(0)

        return Selector()


def timed_base(costs: Costs, sleep: Callable[[float], None]) -> Any:
    """The stand-in: adapters that take time, and the engine's own sampler on rows that take time."""
    from sota_ml_researcher.engine.compute import sampling
    from sota_ml_researcher.engine.compute.packing import ModelLimits
    from sota_ml_researcher.engine.interface import LossResult

    class Timed:
        nbytes = costs.adapter_bytes

        def forward_backward(self, data: Any, loss: Any, config: Any, *, backward: bool) -> LossResult:
            tokens = sum(len(item.tokens_T) for item in data)
            sleep(costs.call + tokens * (costs.trained if backward else costs.scored))
            return LossResult([], {})

        def optim_step(self, settings: Any) -> dict[str, float]:
            sleep(costs.optimizer)
            return {}

        def weights(self) -> object:
            return object()

    vocabulary = 1 << 16
    backbone: Any = SimpleNamespace(head=None)
    sampler = sampling.Sampler(backbone, ModelLimits(vocabulary, 4096), None, 1 << 17)
    return SimpleNamespace(
        name="m", tokenizer=None, max_context_length=4096, description={}, new_adapter=lambda spec: Timed(),
        check_sample=lambda request: None, sample_stream=sampler.stream,
    )  # fmt: skip


def timed_batch(costs: Costs, sleep: Callable[[float], None]) -> type[Any]:
    """Rows on one adapter that take time instead of computing: the interface of ``sampling_batch.Batch``."""
    from sota_ml_researcher.engine.interface import Continuation, SampleOutput

    empty = Continuation(np.zeros(0, np.int64), np.zeros(0, np.float32), "length")

    class Batch:
        one_request = False

        def __init__(self, *given: Any) -> None:
            self._done = given[-1]
            self._running: list[tuple[Any, int]] = []  # pieces and their tokens left to write

        @property
        def rows(self) -> int:
            return sum(piece.count for piece, _ in self._running)

        @property
        def places(self) -> int:
            return sum(piece.places for piece, _ in self._running)

        def drop_unwanted(self) -> None:
            self._running = [(piece, left) for piece, left in self._running if piece.ask.wanted()]

        def advance(self, joining: Sequence[Any]) -> bool:
            self._running += [(piece, piece.limit) for piece in joining]
            if not self._running:
                return False
            read = sum(len(piece.request.prompt_T) for piece in joining)
            sleep(read * costs.prompt + costs.step + self.rows * costs.row)
            written = [(piece, left - 1) for piece, left in self._running]
            self._running = [(piece, left) for piece, left in written if left]
            for piece, left in written:
                if not left:
                    self._done(piece, SampleOutput([empty] * piece.count))
            return True

    return Batch
