"""What one engine holds: its own scheduler, service and sampler driven by simulated clients in virtual time.

usage: python -m benchmarks.scale [--model demo|135m] [--clients 1,10,1000] [--page docs/scale.md]

Only the arithmetic is simulated. First a short calibration runs the real compute side and fits what a call, a token and
a sampled token cost. Then `engine.service` runs as it is: adapters of a stand-in base model take those seconds on a
clock that jumps to the next event, and the real `Sampler` decides which samples meet. The clock stands still while
Python runs, so that a run is repeatable; what Python itself takes is measured apart, as seconds of the event loop.
`python -m benchmarks.job_queue` measures the jobs' side: processes, queue, list_jobs.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import statistics
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np

from benchmarks.models import write_model
from benchmarks.virtual_time import Costs, VirtualTime, timed_base, timed_batch

# As the engine's own process has them; read when torch is loaded.
os.environ.update(OMP_WAIT_POLICY="PASSIVE", GOMP_SPINCOUNT="4000")
KINDS = ("sft", "dpo", "grpo")
# Tokens of a row, a prompt and a response, and the LoRA rank: those of the packaged data, and of a small real task.
SIZES = {"demo": (35, 28, 8, 32), "135m": (256, 96, 64, 32)}
# Of the packaged templates: rows, pairs and prompts per step, samples per prompt, optimizer steps per batch of RL.
ROWS, PAIRS, PROMPTS, GROUP, SUBSTEPS = 16, 16, 16, 16, 2
# Seconds that a client is busy itself in a step: building a batch, the loss of DPO, scoring the samples of a step.
THINK_S = {"sft": 0.005, "dpo": 0.02, "grpo": 0.1}
# Steps of each client's own size that fit the time of a run, by number of clients; 2 where there are more.
ROUNDS = {1: 30, 10: 20}
_FIRST_RETRY_S, _LONGEST_RETRY_S = 0.5, 10.0  # of the SDK
_POLL_S = 20.0


def calibrate(model: Path, sizes: tuple[int, ...]) -> Costs:
    """Fit the costs to the real engine's compute side; CPU seconds of one thread, the fewest of up to seven."""
    from sota_ml_researcher.engine.compute.model import load_model
    from sota_ml_researcher.engine.interface import AdamSettings, LoadOptions, LoraSpec, SampleSettings, TrainItem

    length, prompt_length, response, rank = sizes
    response = min(response, 8)  # a step of sampling costs the same further on, but for attention
    base = load_model("m", str(model), LoadOptions(threads=1))
    adapter, rng = base.new_adapter(LoraSpec(rank, seed=0)), np.random.default_rng(0)
    top = int(base.description["vocabulary"])

    def seconds(work: Callable[[], object]) -> float:
        times: list[float] = []
        while len(times) < 7 and sum(times) < 10:
            began = time.process_time()
            work()
            times.append(time.process_time() - began)
        return min(times)

    def loss(rows: int, backward: bool) -> float:
        def work() -> None:
            tokens = rng.integers(3, top, (rows, length + 1))
            data = [
                TrainItem(row[:-1], {"target_tokens": row[1:], "weights": np.ones(length, np.float32)})
                for row in tokens
            ]
            adapter.forward_backward(data, "cross_entropy", None, backward=backward)

        return seconds(work)

    def sampled(prompts: int, samples: int, tokens: int) -> float:
        asks = [SampleSettings(rng.integers(3, top, prompt_length), samples, tokens, seed=n) for n in range(prompts)]
        return seconds(lambda: base.sample(asks, [None] * prompts))

    few, many = loss(2, True), loss(ROWS, True)
    trained = (many - few) / ((ROWS - 2) * length)
    optimizer = seconds(lambda: adapter.optim_step(AdamSettings(1e-4)))
    shapes = [(1, 1, response), (4, 4, response), (8, 16, response), (16, 16, response), (16, 1, 2), (4, 1, 2)]
    counts = np.array([(p * prompt_length, t, t * p * s) for p, s, t in shapes], float)
    took = np.array([sampled(*shape) for shape in shapes])
    # Relative errors count, and no cost is below zero.
    fitted = np.maximum(np.linalg.lstsq(counts / took[:, None], np.ones(len(took)), rcond=None)[0], 0.0)
    return Costs(
        max(0.0, few - trained * 2 * length), trained, loss(ROWS, False) / (ROWS * length), optimizer,
        *(float(cost) for cost in fitted), adapter.nbytes,
    )  # fmt: skip


class Simulation:
    """One engine with ``clients`` that train in turn by SFT, DPO and RL."""

    def __init__(self, costs: Costs, sizes: tuple[int, ...], kinds: Sequence[str], rounds: int, room: float) -> None:
        self.costs, self.sizes, self.kinds, self.rounds, self.room = costs, sizes, kinds, rounds, room
        self.clock = VirtualTime()
        self.waits: list[float] = []
        self.done: dict[int, int] = defaultdict(int)
        self.first: dict[int, float] = {}
        self.tokens: Counter[str] = Counter()
        self.refused = 0
        self.most_waiting = 0

    def add(self, span: Any) -> None:
        """Stands in for the engine's trace, which keeps the latest spans only."""
        self.waits.append(span.began - span.submitted)

    def run(self) -> dict[str, Any]:
        """Until every client has had its share of ``rounds`` by its own costs on an engine shared equally."""
        with tempfile.TemporaryDirectory() as folder, mock.patch("time.monotonic", VirtualTime.monotonic):
            from sota_ml_researcher.engine.compute import sampling
            from sota_ml_researcher.engine.service.base_models import BaseModels
            from sota_ml_researcher.engine.service.service import Engine
            from sota_ml_researcher.engine.service.store import Store

            base = timed_base(self.costs, self.clock.sleep)
            models = BaseModels({"m": "m"}, any_local=False, options=Any, load=lambda *_: base)
            self.engine = Engine(Store(Path(folder)), models, adapter_bytes=self.room)
            self.engine.scheduler._trace = self
            with mock.patch.object(sampling, "Batch", timed_batch(self.costs, self.clock.sleep)):
                return self.clock.loop.run_until_complete(self._measure())

    async def _measure(self) -> dict[str, Any]:
        engine = self.engine
        horizon = self.rounds * sum(self._step_s(kind) for kind in self.kinds)
        background = [asyncio.create_task(engine.scheduler.run()), asyncio.create_task(self._sweep())]
        began, cpu = self.clock.now, time.thread_time()
        clients = [asyncio.create_task(self._client(n, kind)) for n, kind in enumerate(self.kinds)]
        await asyncio.sleep(horizon)
        took, cpu = self.clock.now - began, time.thread_time() - cpu
        tasks = {*background, *clients, *asyncio.all_tasks()} - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        failed = [r for r in await asyncio.gather(*tasks, return_exceptions=True) if isinstance(r, Exception)]
        self.clock.close()
        engine.scheduler.close()
        if failed:
            raise failed[0]
        waits = sorted(self.waits)
        shares = {kind: [self.done[n] for n, k in enumerate(self.kinds) if k == kind] for kind in KINDS}
        held = [t.adapter.nbytes for t in engine.trainings.values() if t.adapter is not None]
        return {
            "clients": len(self.kinds), "seconds": took, "busy": engine.scheduler.compute_s / took,
            **{f"{name}_tokens_per_s": self.tokens[name] / took for name in ("trained", "sampled")},
            "wait_p50": waits[len(waits) // 2], "wait_p99": waits[int(0.99 * len(waits))],
            "steps": {kind: statistics.mean(s) for kind, s in shares.items() if s},
            "slowest": {kind: min(s) / (statistics.mean(s) or 1) for kind, s in shares.items() if s},
            "first_sample_s": max(self.first.values(), default=0.0),
            "requests": len(waits), "refused": self.refused, "most_waiting": self.most_waiting,
            "loop_s_per_request": cpu / len(waits), "adapters": len(held), "adapter_gb": sum(held) / 1e9,
        }  # fmt: skip

    def _step_s(self, kind: str) -> float:
        """Compute seconds of a step of one client alone."""
        c, (length, prompt, response, _) = self.costs, self.sizes
        if kind == "sft":
            return c.call + ROWS * length * c.trained + c.optimizer
        if kind == "dpo":
            return 2 * c.call + 2 * PAIRS * length * (c.trained + c.scored) + c.optimizer
        rows = PROMPTS * GROUP
        sampling = PROMPTS * prompt * c.prompt + response * (c.step + rows * c.row)
        return sampling + SUBSTEPS * (c.call + c.optimizer) + rows * (prompt + response) * c.trained

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(self.engine.sweep_s)
            self.engine.forget_silent(self.clock.now)
            self.most_waiting = max(self.most_waiting, self.engine.scheduler.waiting)

    async def _asked(self, ask: Callable[[], Any], rng: random.Random) -> Any:
        """Send a request as the SDK does: again after a while where it is refused, polled until it is done."""
        from sota_ml_researcher.engine.service.scheduler import BusyError

        delay = _FIRST_RETRY_S
        while True:
            try:
                promise = ask()
                break
            except BusyError:
                self.refused += 1
                await asyncio.sleep(delay * rng.uniform(0.75, 1.0))
                delay = min(2 * delay, _LONGEST_RETRY_S)
        while not promise.done.is_set():
            self.engine.heard_of(promise.request_id)
            try:
                await asyncio.wait_for(promise.done.wait(), _POLL_S)
            except TimeoutError:
                continue
        self.engine.promises.forget([promise.request_id])
        if promise.failure is not None:
            raise RuntimeError(promise.failure.message)
        return promise.result

    async def _client(self, number: int, kind: str) -> None:
        from sota_ml_researcher.engine.interface import LoraSpec

        rng, engine = random.Random(number), self.engine
        await asyncio.sleep(rng.uniform(0, self._step_s(kind)))
        session = engine.create_session(None, None).session_id
        spec = LoraSpec(self.sizes[3], seed=0)
        model = await self._asked(lambda: engine.create_model(session, 0, "m", spec, None), rng)
        step = getattr(self, f"_{kind}")
        ahead: list[asyncio.Task[None]] = []
        numbers = iter(range(1, 10**9))
        while True:
            await asyncio.sleep(rng.expovariate(1 / THINK_S[kind]))
            ahead.append(asyncio.create_task(step(number, model.model_id, numbers, rng)))
            await asyncio.sleep(0)
            if kind != "sft" or len(ahead) > 1:  # SFT sends a step while the one before it is computed
                await ahead.pop(0)
                self.done[number] += 1

    def _loss(self, model: str, seq: int, rows: int, length: int, rng: random.Random, backward: bool = True) -> Any:
        from sota_ml_researcher.engine import wire

        class Sized(wire.LossRequest):
            def config(self) -> dict[str, Any]:
                return {}

            def items(self) -> Any:
                return [SimpleNamespace(tokens_T=range(length))] * rows

        if backward:
            self.tokens["trained"] += rows * length
        request = Sized(None, model, seq, "cross_entropy", not backward)
        return self._asked(lambda: self.engine.loss(request), rng)

    def _optimize(self, model: str, seq: int, rng: random.Random) -> Any:
        from sota_ml_researcher.engine.interface import AdamSettings

        return self._asked(lambda: self.engine.optim_step(model, seq, AdamSettings(1e-4)), rng)

    async def _sft(self, number: int, model: str, seq: Any, rng: random.Random) -> None:
        length = self.sizes[0]
        await asyncio.gather(self._loss(model, next(seq), ROWS, length, rng), self._optimize(model, next(seq), rng))

    async def _dpo(self, number: int, model: str, seq: Any, rng: random.Random) -> None:
        length = self.sizes[0]
        await self._loss(model, next(seq), 2 * PAIRS, length, rng, backward=False)
        await asyncio.sleep(rng.expovariate(1 / THINK_S["dpo"]))
        await asyncio.gather(
            self._loss(model, next(seq), 2 * PAIRS, length, rng), self._optimize(model, next(seq), rng)
        )

    async def _grpo(self, number: int, model: str, seq: Any, rng: random.Random) -> None:
        from sota_ml_researcher.engine.interface import SampleSettings
        from sota_ml_researcher.engine.service.sample_runner import SampleJob

        _, prompt, response, _ = self.sizes
        place = next(seq)
        saved = await self._asked(lambda: self.engine.snapshot(model, place, place), rng)
        sampler = self.engine.sampling.get(saved.sampling_session_id)
        asked = self.clock.now

        async def group(place: int) -> None:
            settings = SampleSettings(np.arange(prompt) + place, GROUP, response, seed=place)
            job = SampleJob(sampler, settings, encode=lambda output: output)
            await self._asked(lambda: self.engine.sampling.sample(job, place), rng)

        await asyncio.gather(*(group(place) for place in range(PROMPTS)))
        self.engine.sampling.drop(sampler.sampler_id)
        self.first.setdefault(number, self.clock.now - asked)
        self.tokens["sampled"] += PROMPTS * GROUP * response
        await asyncio.sleep(rng.expovariate(1 / THINK_S["grpo"]))
        rows = PROMPTS * GROUP // SUBSTEPS
        sent: list[Any] = []
        for _ in range(SUBSTEPS):
            sent += [self._loss(model, next(seq), rows, prompt + response, rng), self._optimize(model, next(seq), rng)]
        await asyncio.gather(*sent)


def _row(found: dict[str, Any], kinds: Sequence[str]) -> str:
    per_day = (found["trained_tokens_per_s"] + found["sampled_tokens_per_s"]) * 86_400 / 1e6
    slowest = ", ".join(f"{kind} {share:.2f}" for kind, share in found["slowest"].items())
    return (
        f"| {len(kinds):,} {kinds[0] if len(set(kinds)) == 1 else 'mixed'} | {found['trained_tokens_per_s']:,.0f} | "
        f"{found['sampled_tokens_per_s']:,.0f} | {per_day:,.0f} | {100 * found['busy']:.0f}% | "
        f"{found['wait_p50']:.2f} | {found['wait_p99']:.2f} | {slowest} | {found['most_waiting']:,} | "
        f"{found['refused']:,} | {found['adapter_gb']:.2f} | {1e3 * found['loop_s_per_request']:.2f} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", choices=SIZES, default="demo")
    parser.add_argument("--clients", default="1,10,1000")
    parser.add_argument("--page", type=Path, help="replace the measured part of this page")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        packaged = Path(__file__).parents[1] / "demo" / "model"
        model = packaged if options.model == "demo" else write_model(Path(folder) / "model", options.model)
        costs = calibrate(model, SIZES[options.model])
    length, prompt, response, rank = SIZES[options.model]
    us = {name: f"{1e6 * cost:,.0f} us" for name, cost in asdict(costs).items()}
    lines = [
        f"Command: `python -m benchmarks.scale --model {options.model} --clients {options.clients}`. Costs, in CPU",
        f"time of one thread: a loss call {us['call']} and {us['trained']} a token ({us['scored']} forward only),",
        f"an optimizer step {us['optimizer']}; {us['prompt']} a token of a prompt, {us['step']} a step of sampling",
        f"and {us['row']} a row in it. Rows of {length} tokens, prompts of {prompt}, responses of {response}.",
        f"Rank {rank}: {costs.adapter_bytes:,} bytes an adapter.",
        "",
        "| clients | trained tok/s | sampled tok/s | million tokens a day | busy | wait p50 s | p99 s "
        "| slowest client's steps over the mean | most waiting | refused | adapters GB | loop ms a request |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for count in map(int, options.clients.split(",")):
        for kinds in [[kind] for kind in KINDS] if count == 1 else [[KINDS[n % 3] for n in range(count)]]:
            found = Simulation(costs, SIZES[options.model], kinds, ROUNDS.get(count, 2), float("inf")).run()
            print(json.dumps(found), flush=True)
            lines.append(_row(found, kinds))
    text = "\n".join([*lines, ""])
    print(text)
    if options.page:
        before, mark, rest = options.page.read_text().partition("<!-- measured -->\n")
        options.page.write_text(before + mark + text + mark + rest.partition(mark)[2])


if __name__ == "__main__":
    main()
