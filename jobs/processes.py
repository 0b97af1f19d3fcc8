"""The process of a job: starting it, telling whether it is still the one its row names, and killing it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

from ..core.files import appending
from . import run_files
from .registry import Registry
from .states import Job

# Seconds since the epoch differ by rounding alone for one process; two processes with one pid are seconds apart.
_SAME_START_S = 2.0
# Below it a start is counted from the machine's boot; above it, from the epoch.
_EPOCH_TIMES_FROM = 1e9
_POSIX = os.name == "posix"
_DETACHED = 0x00000008 | 0x00000200  # DETACHED_PROCESS | CREATE_NEW_PROCESS_GROUP, of Windows


def start_time_of(pid: int) -> float | None:
    """When ``pid`` started, as the system keeps it; None if there is no such live process, 0 if it may not be asked.

    Seconds: since boot on Linux, where those since the epoch move with every step of the clock, since the epoch
    elsewhere, where they are noted at the start.
    """
    if sys.platform == "linux":
        return _started_since_boot(pid)
    return _started_since_epoch(pid)


def _started_since_boot(pid: int) -> float | None:
    try:
        facts = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return None
    except PermissionError:
        return 0.0
    state, *numbers = facts.rpartition(")")[2].split()  # the name before it may hold anything
    return None if state in {"Z", "X"} else int(numbers[18]) / os.sysconf("SC_CLK_TCK")


def _started_since_epoch(pid: int) -> float | None:
    import psutil

    try:
        process = psutil.Process(pid)
        if process.status() == psutil.STATUS_ZOMBIE:
            return None
        return process.create_time()
    except (psutil.NoSuchProcess, psutil.ZombieProcess):
        return None
    except psutil.AccessDenied:
        return 0.0


def is_alive(pid: int | None, pid_started: float | None) -> bool:
    """Whether the very process that had ``pid`` when it started at ``pid_started`` still runs."""
    if pid is None:
        return False
    started = start_time_of(pid)
    if started is None:
        return False
    if pid_started is None or started == 0.0:
        return True
    if started < _EPOCH_TIMES_FROM <= pid_started:  # noted by an earlier version
        started = _started_since_epoch(pid) or 0.0
    return abs(started - pid_started) < (_SAME_START_S if started >= _EPOCH_TIMES_FROM else 1e-3)


def kill_session(pid: int, pid_started: float | None) -> bool:
    """Kill ``pid`` and every process of its session at once; False if it was gone already."""
    if not is_alive(pid, pid_started):
        return False
    with suppress(ProcessLookupError, PermissionError):
        if hasattr(os, "killpg") and os.getpgid(pid) == pid:
            os.killpg(pid, signal.SIGKILL)
        else:
            import psutil

            psutil.Process(pid).kill()
        return True
    return False


def spawn_worker(registry: Registry, job: Job) -> Job:
    """Start the worker of a queued job and note its process in the job's row.

    The worker waits for its place on the backend by itself, so no dispatcher has to stay alive.
    """
    with appending(job.folder / run_files.LOG) as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "sota_ml_researcher.jobs.worker", job.id],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            cwd=job.folder,
            env=os.environ | {"PYTHONUNBUFFERED": "1"},
            # A session of its own, so that the job outlives this process; what it writes is for its owner alone.
            start_new_session=_POSIX,
            umask=0o077 if _POSIX else -1,
            creationflags=0 if _POSIX else _DETACHED,
        )
    registry.set_process(job.id, process.pid, start_time_of(process.pid))
    return registry.get(job.id)
