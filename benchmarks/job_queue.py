"""What one machine holds of jobs: a waiting, a working and a server process, and the registry with 1,000 jobs queued.

usage: python -m benchmarks.job_queue [--waiting 8] [--queued 1000]

Memory is PSS (shared pages divided among those who share them), of real processes on Linux: ``--waiting`` jobs behind
one that trains the demo model, and a server that was asked once. The long queue is rows of live processes; the calls
are those that the tools and each waiting worker make.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import anyio
from mcp import Client, StdioServerParameters

_CALLS = 40


def pss_mb(pid: int) -> float:
    """Proportional set size of a process in MB."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("Pss:")) / 1e3


def median_ms(call: Callable[[], object]) -> float:
    times: list[float] = []
    for _ in range(_CALLS):
        began = time.perf_counter()
        call()
        times.append(time.perf_counter() - began)
    return 1e3 * statistics.median(times)


async def processes(home: Path, waiting: int) -> dict[str, float]:
    """MB of each kind of process while ``waiting`` jobs wait for the one that works."""
    from sota_ml_researcher.jobs.registry import Registry
    from sota_ml_researcher.jobs.states import JobState
    from sota_ml_researcher.templates.catalog import template_path

    command = StdioServerParameters(
        command=sys.executable,
        args=["-m", "sota_ml_researcher.server", "serve"],
        env={**os.environ, "ML_RESEARCHER_HOME": str(home)},
    )
    async with Client(command) as client:
        overrides = {"num_steps": 100_000, "num_epochs": None, "val_file": None}
        for _ in range(waiting + 1):
            started = await client.call_tool("start_sft", {"config": str(template_path("sft")), "overrides": overrides})
            if started.is_error:
                raise SystemExit(str(started.content))
        registry = Registry(home / "jobs.db")
        with anyio.fail_after(300):
            while not any(job.step > 5 for job in registry.find()):
                await anyio.sleep(0.5)
        jobs = registry.find(limit=waiting + 1)
        server = next(int(p.parent.name) for p in Path("/proc").glob("[0-9]*/stat") if _parent(p) == os.getpid())
        queued = [pss_mb(job.pid) for job in jobs if job.state is JobState.QUEUED and job.pid]
        working = [pss_mb(job.pid) for job in jobs if job.state is JobState.RUNNING and job.pid]
        found = {
            "a waiting job": statistics.mean(queued),
            "a working job": statistics.mean(working),
            "a server": pss_mb(server),
        }
        for job in jobs:
            await client.call_tool("cancel_job", {"job_id": job.id, "hard": True})
    return found


def _parent(stat: Path) -> int:
    try:
        return int(stat.read_text().rpartition(")")[2].split()[1])
    except OSError:
        return 0


def long_queue(home: Path, count: int) -> dict[str, float]:
    """Milliseconds of each call with ``count`` jobs queued, all of them live."""
    os.environ["ML_RESEARCHER_HOME"] = str(home)
    from sota_ml_researcher.jobs.processes import is_alive, start_time_of
    from sota_ml_researcher.jobs.registry import Registry
    from sota_ml_researcher.tools.jobs import get_job, list_jobs

    registry, pid = Registry(), os.getpid()
    for _ in range(count):
        job = registry.create(kind="sft", name="n", backend="embedded", base_model="demo", runs=home / "runs")
        registry.set_process(job.id, pid, start_time_of(pid))
    return {
        "list_jobs": median_ms(list_jobs),
        "get_job of the last": median_ms(lambda: get_job(job.id)),
        "one look for a place, by the last": median_ms(lambda: registry.claim(job.id, pid, limit=1, alive=is_alive)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--waiting", type=int, default=8)
    parser.add_argument("--queued", type=int, default=1000)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as one, tempfile.TemporaryDirectory() as two:
        memory = anyio.run(processes, Path(one), options.waiting)
        times = long_queue(Path(two), options.queued)
    print("| process | MB (PSS) |\n|---|---|")
    print("\n".join(f"| {name} | {mb:.0f} |" for name, mb in memory.items()))
    print(f"\n| with {options.queued:,} jobs queued | ms |\n|---|---|")
    print("\n".join(f"| {name} | {ms:.1f} |" for name, ms in times.items()))


if __name__ == "__main__":
    main()
