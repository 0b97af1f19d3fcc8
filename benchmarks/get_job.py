"""How long get_job takes with a full registry: one client over stdio, then many over HTTP that each poll every second.

Run: ``python -m benchmarks.get_job [--jobs 10000] [--clients 50]``. The targets: a median of 5 ms for the one, and 99%
of the answers to the many within 250 ms.
"""

from __future__ import annotations

import argparse
import os
import random
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import anyio
from mcp import Client, StdioServerParameters

from sota_ml_researcher.jobs.registry import Registry

_CALLS = 300
_POLLS, _POLL_EVERY_S = 20, 1.0


def fill(home: Path, count: int) -> list[str]:
    """A registry of ``count`` jobs, a tenth of them finished runs with metrics."""
    registry = Registry(home / "jobs.db")
    ids: list[str] = []
    with sqlite3.connect(registry.path) as db:
        for number in range(count):
            job_id, folder = f"sft-{number:06x}", home / "runs" / f"sft-{number:06x}"
            ids.append(job_id)
            db.execute(
                "INSERT INTO jobs (id, kind, name, state, backend, base_model, folder, created, queued)"
                " VALUES (?, 'sft', 'n', 'succeeded', 'embedded', 'demo', ?, ?, ?)",
                (job_id, str(folder), number, number),
            )
            if number % 10 == 0:
                folder.mkdir(parents=True)
                lines = [f'{{"step": {step}, "train_mean_nll": 1.0, "learning_rate": 0.1}}\n' for step in range(1000)]
                (folder / "metrics.jsonl").write_text("".join(lines))
    return ids


async def measure(home: Path, ids: list[str]) -> list[float]:
    """Seconds of each call."""
    server = StdioServerParameters(
        command=sys.executable,
        args=["-m", "sota_ml_researcher.server", "serve"],
        env={**os.environ, "ML_RESEARCHER_HOME": str(home)},
    )
    rng = random.Random(0)
    times: list[float] = []
    async with Client(server) as client:
        for job_id in rng.choices(ids[::10], k=_CALLS):
            began = time.perf_counter()
            await client.call_tool("get_job", {"job_id": job_id})
            times.append(time.perf_counter() - began)
    return times


async def poll(home: Path, ids: list[str], clients: int) -> list[float]:
    """Seconds of each answer, with ``clients`` that ask once per second at moments of their own, over HTTP."""
    command = [sys.executable, "-m", "sota_ml_researcher.server", "serve", "--http", "--no-key", "--port", "0"]
    environment = {**os.environ, "ML_RESEARCHER_HOME": str(home)}
    server = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)
    assert server.stderr is not None
    url = server.stderr.readline().partition("serving ")[2].strip()
    times: list[float] = []

    async def one(number: int) -> None:
        rng = random.Random(number)
        async with Client(url) as client:
            await client.call_tool("get_job", {"job_id": ids[0]})
            for _ in range(_POLLS):
                await anyio.sleep(rng.uniform(0.5, 1.5) * _POLL_EVERY_S)
                began = time.perf_counter()
                await client.call_tool("get_job", {"job_id": rng.choice(ids[::10])})
                times.append(time.perf_counter() - began)

    try:
        async with anyio.create_task_group() as group:
            for number in range(clients):
                group.start_soon(one, number)
    finally:
        server.terminate()
        server.wait()
    return times


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--clients", type=int, default=50)
    parser.add_argument("--jobs", type=int, default=10_000)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        ids = fill(home, options.jobs)
        times = sorted(anyio.run(measure, home, ids))
        polled = sorted(anyio.run(poll, home, ids, options.clients))
    p50, p99 = statistics.median(times) * 1e3, times[int(0.99 * len(times))] * 1e3
    print(f"get_job among {options.jobs:,} jobs: p50 {p50:.2f} ms, p99 {p99:.2f} ms ({_CALLS} calls)")
    print(f"target p50 5 ms: {'met' if p50 <= 5 else 'MISSED'}")
    p50, p99 = statistics.median(polled) * 1e3, polled[int(0.99 * len(polled))] * 1e3
    print(f"{options.clients} clients over HTTP: p50 {p50:.1f} ms, p99 {p99:.1f} ms ({len(polled):,} calls)")
    print(f"target p99 250 ms: {'met' if p99 <= 250 else 'MISSED'}")


if __name__ == "__main__":
    main()
