"""The embedded engine as a process, one per state folder: the one that runs, or a new one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from ..core.errors import BackendError
from ..core.extras import require_packages
from ..core.files import storage_errors
from ..core.paths import ENGINE_KEY_FILE, engine_folder

if TYPE_CHECKING:
    import psutil

IDLE_TIMEOUT_VARIABLE = "ML_RESEARCHER_ENGINE_IDLE_S"
# It holds some GB, and a start takes seconds: two minutes after its last job they are given back.
_DEFAULT_IDLE_S = 100
_START_TIMEOUT_S = 120.0
_POLL_S = 0.1
_HEALTH_TIMEOUT_S = 5.0
# It lets requests under way end for 30 s.
_STOP_TIMEOUT_S = 40.0
# The engine serves several jobs with different keys in their environment: it gets none of them, and makes its own.
_SECRETS = ("_KEY", "_TOKEN", "_SECRET", "_PASSWORD")


class _Engine(NamedTuple):
    """What an engine writes about itself into its state folder. Those of earlier versions had no key."""

    url: str
    pid: int
    has_key: bool


@dataclass(frozen=True, slots=True)
class EngineStatus:
    """The engine's process. ``answers``: whether it does now; a busy or starting one may not. ``started``: epoch."""

    url: str
    pid: int
    answers: bool
    memory_bytes: int
    started: float


def running_engine() -> str | None:
    """The URL of the engine that serves this state folder, or None."""
    engine = _discovered(engine_folder())
    return engine.url if engine and engine.has_key and _health(engine.url) is not None else None


def engine_key() -> str:
    """The key of the engine that serves this state folder.

    Raises:
        BackendError: If it cannot be read.
    """
    file = engine_folder() / ENGINE_KEY_FILE
    try:
        return file.read_text(encoding="utf-8").strip()
    except OSError as error:
        raise BackendError(
            f"the key of the embedded engine cannot be read ({error.strerror})",
            where=str(file),
            fix="The engine writes it when it starts: stop it, and the next job starts it anew",
        ) from error


def engine_died(url: str) -> bool:
    """Whether the engine that served ``url`` has ended. Looks at its process, so a busy engine is not mistaken."""
    engine = _discovered(engine_folder())
    return engine is None or engine.url != url or not _lives(engine)


def engine_status() -> EngineStatus | None:
    """The engine of this state folder, or None if none runs."""
    process = _process()
    if process is None:
        return None
    engine, running = process
    answers = _health(engine.url) is not None
    return EngineStatus(engine.url, engine.pid, answers, running.memory_info().rss, running.create_time())


def loaded_models() -> dict[str, dict[str, Any]]:
    """The base models that the engine of this state folder holds, as it describes each; none if it does not run."""
    engine = _discovered(engine_folder())
    health = _health(engine.url) if engine and engine.has_key else None
    return health.get("loaded", {}) if health else {}


def stop_engine() -> bool:
    """End the engine of this state folder and wait until it is gone; False if none runs.

    Raises:
        BackendError: If it does not end.
    """
    import psutil

    process = _process()
    if process is None:
        return False
    engine, running = process
    running.terminate()
    try:
        running.wait(_STOP_TIMEOUT_S)
    except psutil.TimeoutExpired as error:
        raise BackendError(
            f"the embedded engine (pid {engine.pid}) did not end within {_STOP_TIMEOUT_S:.0f} s",
            fix=f"Look at {engine_folder() / 'log.txt'}, or kill {engine.pid}",
        ) from error
    return True


def _process() -> tuple[_Engine, psutil.Process] | None:
    """The engine and its process. A file left by an engine that was killed may name a pid that is another's now."""
    import psutil

    engine = _discovered(engine_folder())
    if engine is None or not _lives(engine):
        return None
    try:
        running = psutil.Process(engine.pid)
        return (engine, running) if "sota_ml_researcher.engine" in running.cmdline() else None
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return None


def ensure_engine() -> str:
    """The URL of a healthy engine on this machine, starting one if needed.

    Several processes may ask at once: a lock lets one of them start it.

    Raises:
        MissingDependencyError: If the training extra is not installed.
        BackendError: If it does not come up in two minutes; the message has the last line of its log.
    """
    from filelock import FileLock

    if url := running_engine():
        return url
    require_packages("train", by="the embedded engine")
    folder = engine_folder()
    with FileLock(folder / "start.lock", timeout=_START_TIMEOUT_S):
        _end_unguarded(folder)
        return running_engine() or _start(folder)


def _end_unguarded(folder: Path) -> None:
    """End an idle engine of an earlier version, which answers everybody.

    Raises:
        BackendError: If it is at work.
    """
    engine = _discovered(folder)
    health = _health(engine.url) if engine and not engine.has_key else None
    if engine is None or health is None or health.get("pid") != engine.pid:
        return
    if health.get("adapters") or health.get("waiting"):
        raise BackendError(
            f"an engine of an earlier version, which has no key, is at work here (process {engine.pid})",
            where=engine.url,
            fix=f"Let its jobs end, or stop it with: kill {engine.pid}",
        )
    import psutil

    try:
        process = psutil.Process(engine.pid)
        process.terminate()
        process.wait(_START_TIMEOUT_S)
    except psutil.NoSuchProcess:  # it ended meanwhile, as it does when nobody needs it
        return
    except (psutil.TimeoutExpired, psutil.AccessDenied) as error:
        raise BackendError(
            f"an engine of an earlier version, which has no key, does not end (process {engine.pid})",
            where=engine.url,
            fix=f"Stop it with: kill -9 {engine.pid}",
        ) from error


def _discovered(folder: Path) -> _Engine | None:
    try:
        written = json.loads((folder / "engine.json").read_bytes())
        return _Engine(str(written["url"]), int(written["pid"]), "key_file" in written)
    except (FileNotFoundError, ValueError, KeyError):
        return None


def _lives(engine: _Engine) -> bool:
    import psutil

    try:
        return psutil.Process(engine.pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _health(url: str) -> dict[str, Any] | None:
    """What an engine says of itself, or None if it says nothing."""
    import httpx2

    try:
        answer = httpx2.get(f"{url}/api/v1/healthz", timeout=_HEALTH_TIMEOUT_S)
        return cast("dict[str, Any]", answer.json()) if answer.status_code == 200 else None
    except (httpx2.HTTPError, ValueError):
        return None


def _start(folder: Path) -> str:
    log = folder / "log.txt"
    idle_s = os.environ.get(IDLE_TIMEOUT_VARIABLE, str(_DEFAULT_IDLE_S))
    command = [sys.executable, "-m", "sota_ml_researcher.engine", "--port", "0", "--store", str(folder)]
    command += ["--any-local-model", "--idle-timeout", idle_s]
    environment = {k: v for k, v in os.environ.items() if not k.endswith(_SECRETS)}
    with storage_errors(log), log.open("ab") as output:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=environment, start_new_session=True
        )
    deadline = time.monotonic() + _START_TIMEOUT_S
    while time.monotonic() < deadline:
        if url := running_engine():
            return url
        # Another one that is alive but slow to answer, on a busy machine, holds the store: it is waited for.
        engine = _discovered(folder)
        if process.poll() is not None and not (engine and _lives(engine)):
            raise BackendError(f"the embedded engine did not start: {_last_line(log)}", where=str(log))
        time.sleep(_POLL_S)
    process.kill()
    raise BackendError(f"the embedded engine was not ready after {_START_TIMEOUT_S:.0f} s", where=str(log))


def _last_line(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return lines[-1] if lines else "it said nothing"
