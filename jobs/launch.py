"""Giving a job its process: a worker in a session of its own that outlives whoever started it."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

from sota_ml_researcher.core.files import storage_errors
from sota_ml_researcher.jobs.processes import start_time_of
from sota_ml_researcher.jobs.registry import Registry
from sota_ml_researcher.jobs.states import Job


def spawn_worker(registry: Registry, job: Job) -> Job:
    """Start the worker of a queued job and note its process in the job's row.

    The worker waits for its place on the backend by itself, so no dispatcher has to stay alive.
    """
    log = job.folder / "log.txt"
    with storage_errors(log), log.open("ab") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "sota_ml_researcher.jobs.worker", job.id],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            cwd=job.folder,
            env=os.environ | {"PYTHONUNBUFFERED": "1"},
            **_own_session(),
        )
    registry.update(job.id, pid=process.pid, pid_started=start_time_of(process.pid))
    return registry.get(job.id)


def _own_session() -> dict[str, Any]:
    if os.name == "posix":
        return {"start_new_session": True}
    return {"creationflags": 0x00000008 | 0x00000200}  # DETACHED_PROCESS | CREATE_NEW_PROCESS_GROUP
