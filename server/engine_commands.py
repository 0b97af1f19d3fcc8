"""The engine that jobs use on this machine: whether it runs, and ending it."""

from __future__ import annotations

import time

from ..backends.embedded import engine_status, stop_engine
from ..jobs import control
from ..jobs.registry import Registry
from ..jobs.states import ACTIVE
from ..tools.answers import duration
from .output import confirmed, show, show_json


def show_status(*, as_json: bool) -> int:
    """Print the engine's address, process and memory, and the jobs that use it."""
    status, jobs = engine_status(), _users()
    if as_json:
        engine = (
            {
                "url": status.url,
                "pid": status.pid,
                "answers": status.answers,
                "memory_bytes": status.memory_bytes,
                "started": status.started,
            }
            if status
            else None
        )
        show_json({"running": status is not None, "engine": engine, "jobs": jobs})
        return 0
    if status is None:
        show("No engine is running; a job starts one.")
        return 0
    busy = "" if status.answers else ", busy: it does not answer now"
    since = duration(time.time() - status.started)
    show(f"{status.url} (pid {status.pid}), {status.memory_bytes / 1e9:.1f} GB, for {since}{busy}")
    show(f"In use by: {', '.join(jobs)}" if jobs else "No job uses it; `ml-researcher engine stop` ends it.")
    return 0


def stop(*, yes: bool, as_json: bool) -> int:
    """Stop the engine; jobs that use it would fail, so then it asks."""
    jobs = _users() if engine_status() else []
    if jobs and not yes:
        show(f"In use by: {', '.join(jobs)}. They would fail, and can be resumed.", error=as_json)
        if not confirmed("Stop it?", yes=yes, otherwise="the engine was not stopped", error=as_json):
            return 1
    stopped = stop_engine()
    if as_json:
        show_json({"stopped": stopped})
    else:
        show("Stopped." if stopped else "No engine is running.")
    return 0


def _users() -> list[str]:
    registry = Registry()
    control.sweep(registry)
    return [job.id for job in registry.find(states=ACTIVE, limit=1000) if job.backend == "embedded"]
