"""Whose turn it is: every client has one in each round, and what one client sends keeps nobody waiting for long."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from sota_ml_researcher.engine.interface import LoadOptions, LoraSpec
from sota_ml_researcher.engine.service.base_models import BaseModels
from sota_ml_researcher.engine.service.futures import Promise, Promises
from sota_ml_researcher.engine.service.scheduler import Joint, Scheduler, Work
from sota_ml_researcher.engine.service.service import Engine
from sota_ml_researcher.engine.service.store import Store
from sota_ml_researcher.engine.service.trace import Trace


class Computed:
    """A scheduler whose work takes no time, and the lanes of what it computed, in order."""

    def __init__(self, together: Callable[[Joint], None] | None = None) -> None:
        self.order: list[str] = []
        self.works: list[Work] = []
        self.scheduler = Scheduler(Promises(), together or self.sample, Trace(), lambda _: False)

    def sample(self, joint: Joint) -> None:
        while works := joint.take():
            for work in works:
                self.order.append(work.lane)
                joint.finish(work, None)

    def add(self, lane: str, *, samples: bool) -> Work:
        promise = Promise(f"{lane}:{len(self.works)}")
        work = Work(promise, payload="x") if samples else Work(promise, lambda: self.order.append(lane))
        self.works.append(work)
        self.scheduler.submit(lane, work)
        return work

    async def finish(self) -> None:
        running = asyncio.create_task(self.scheduler.run())
        for work in self.works:
            await asyncio.wait_for(work.promise.done.wait(), 30)
        running.cancel()
        self.scheduler.close()


def test_clients_that_sample_have_a_turn_each_beside_many_that_train() -> None:
    async def run() -> list[str]:
        computed = Computed()
        for number in range(640):
            computed.add(f"samples {number // 64}", samples=True)
        for number in range(200):
            computed.add(f"adapter {number % 20}", samples=False)
        await computed.finish()
        return computed.order

    order = asyncio.run(run())
    training = [lane for lane in order if lane.startswith("adapter")]
    last_first_sample = max(order.index(f"samples {client}") for client in range(10))
    before = [lane for lane in order[:last_first_sample] if lane.startswith("adapter")]
    assert len(before) <= 20, "one round of the adapters before every client had sampled"
    assert len(training) == 200


def test_many_samples_of_one_client_do_not_keep_another_ones_waiting() -> None:
    async def run() -> list[str]:
        computed = Computed()
        for _ in range(1000):
            computed.add("many", samples=True)
        computed.add("one", samples=True)
        await computed.finish()
        return computed.order

    assert asyncio.run(run()).index("one") <= 64


def test_training_waits_for_the_samples_under_way_and_not_for_those_that_came_since() -> None:
    async def run() -> list[str]:
        loop, sent = asyncio.get_running_loop(), threading.Event()

        def more() -> None:
            for _ in range(1000):
                computed.add("many", samples=True)
            computed.add("adapter", samples=False)
            sent.set()

        def together(joint: Joint) -> None:
            if not sent.is_set():
                loop.call_soon_threadsafe(more)
                sent.wait(30)
            computed.sample(joint)

        computed = Computed(together)
        first = computed.add("many", samples=True)
        running = asyncio.create_task(computed.scheduler.run())
        await asyncio.wait_for(first.promise.done.wait(), 30)
        running.cancel()
        await computed.finish()
        return computed.order

    order = asyncio.run(run())
    assert len(order) == 1002
    assert order.index("adapter") <= 256


def test_samples_go_on_joining_while_nobody_else_waits() -> None:
    batches: list[int] = []

    async def run() -> None:
        def together(joint: Joint) -> None:
            before = len(computed.order)
            finished = threading.Event()
            while works := joint.take():
                for work in works:
                    computed.order.append(work.lane)
                    joint.finish(work, None)
                finished.clear()
                loop.call_soon_threadsafe(finished.set)  # after the results: by then others were let in
                finished.wait(30)
            batches.append(len(computed.order) - before)

        loop = asyncio.get_running_loop()
        computed = Computed(together)
        for _ in range(1000):
            computed.add("many", samples=True)
        await computed.finish()

    asyncio.run(run())
    assert batches == [1000]


def test_an_old_result_is_looked_for_among_few() -> None:
    class Counted(dict[str, Promise]):
        seen = 0

        def items(self) -> Any:
            for item in super().items():
                self.seen += 1
                yield item

    promises = Promises()
    promises._all = counted = Counted()
    for number in range(100):
        promises.open(str(number))
    assert counted.seen <= 100 * 17


def test_clients_that_wait_for_room_cost_one_count_of_the_adapters(tmp_path: Path) -> None:
    counts = 0

    class Sized:
        @property
        def nbytes(self) -> int:
            nonlocal counts
            counts += 1
            return 16

    base: Any = SimpleNamespace(name="m", new_adapter=lambda spec: Sized())
    models = BaseModels({"m": "m"}, any_local=False, options=LoadOptions(), load=lambda *_: base)

    async def run() -> None:
        nonlocal counts
        engine = Engine(Store(tmp_path), models, adapter_bytes=40)
        sessions = [engine.create_session(None, None).session_id for _ in range(50)]
        made = [engine.create_model(session, 0, "m", LoraSpec(1), None) for session in sessions]
        running = asyncio.create_task(engine.scheduler.run())
        for promise in made[:3]:
            await promise.done.wait()
        counts = 0
        engine.create_custom_loss(sessions[0], 0, "x", [], [])
        assert engine.scheduler._next()
        assert counts <= 3, "three adapters, and 47 clients that wait"
        assert made[3].paused is not None
        assert "3 adapters of other clients" in made[3].paused
        running.cancel()
        engine.scheduler.close()

    asyncio.run(run())
