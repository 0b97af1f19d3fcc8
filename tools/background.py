"""Work that takes longer than a client waits: it goes on in the background, and the same call picks it up again."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Generic, TypeVar

import anyio
from mcp.server.mcpserver import Context
from pydantic import Field, WithJsonSchema

from ..core.errors import ConfigError
from ..core.foreign_text import named
from ..data.columns import Columns
from ..data.shards import shards
from ..data.sources import DataSource, data_source
from ..templates.catalog import config_file

T = TypeVar("T")

# Below the 60 s at which clients cut a call.
PATIENCE_S = 50.0
_PROGRESS_S = 1.5
_POLL_S = 0.1
CALL_AGAIN = "Call this tool again with the same arguments to go on waiting"
_LONGEST_PATH = 4096
# A result is kept for the next equal call (a file's identity is part of the key), and a few only.
_KEPT = 8


@dataclass(slots=True)
class WorkProgress:
    """How far some work has come; written by the worker thread, read by the call that waits."""

    done: float = 0.0
    total: float | None = None
    message: str = ""


@dataclass(slots=True)
class Work(Generic[T]):
    """One piece of work under way or finished."""

    future: Future[T]
    report: WorkProgress


_works: dict[Hashable, Work[Any]] = {}
_lock = threading.Lock()  # two calls for one key must share one piece of work


async def run_in_background(
    key: Hashable,
    work: Callable[[WorkProgress], T],
    context: Context,
    *,
    patience_s: float = PATIENCE_S,
) -> tuple[T | None, WorkProgress]:
    """Do ``work`` in a thread and wait for it up to ``patience_s``, reporting progress meanwhile.

    Returns:
        The result, or None if it is still under way: an equal call later goes on waiting for the same work.

    Raises:
        Exception: Whatever ``work`` raised; the next equal call then starts afresh.
    """
    current = _join_or_start(key, work)
    deadline = time.monotonic() + patience_s
    reported = time.monotonic()
    while not current.future.done() and time.monotonic() < deadline:
        if time.monotonic() - reported >= _PROGRESS_S:
            await context.report_progress(current.report.done, current.report.total, current.report.message)
            reported = time.monotonic()
        await anyio.sleep(_POLL_S)
    if not current.future.done():
        return None, current.report
    if current.future.exception() is not None:
        with _lock:
            _works.pop(key, None)
    return current.future.result(), current.report


def forget(key: Hashable) -> None:
    """Drop a finished result that must not answer a later equal call: its effect may be gone by then."""
    with _lock:
        if key in _works and _works[key].future.done():
            del _works[key]


def _join_or_start(key: Hashable, work: Callable[[WorkProgress], T]) -> Work[T]:
    with _lock:
        if key in _works:
            return _works[key]
        for old in [k for k, w in _works.items() if w.future.done()][: max(0, len(_works) - _KEPT + 1)]:
            del _works[old]
        started: Work[T] = Work(Future(), WorkProgress())
        _works[key] = started
    threading.Thread(target=_run, args=(started, work), daemon=True, name="tool-work").start()
    return started


def _run(current: Work[T], work: Callable[[WorkProgress], T]) -> None:
    try:
        current.future.set_result(work(current.report))
    except BaseException as error:  # it belongs to the call that waits, which raises it
        current.future.set_exception(error)


# The schema of what a column may be is long, and what is wrong with one is said by the check of it.
ColumnsArgument = Annotated[
    Columns | None,
    WithJsonSchema({"type": ["object", "null"]}),
    Field(description="Which columns are what, as in a config: {'prompt': 'question', ...}"),
]


def config_path(name: str | None) -> Path | None:
    """The config file that a tool argument names, a template:// among them; None where none is given."""
    return config_file(_path_name(name, "config")) if name else None


async def data_sources(context: Context, **names: str | None) -> tuple[dict[str, DataSource] | None, WorkProgress]:
    """The data that tool arguments name (see `data.sources.data_source`), by argument; data of the hub is fetched.

    Returns:
        The sources of those that are given, or None while one is still being fetched; and how far that has come.

    Raises:
        ResearcherError: If there is no such data.
    """
    found: dict[str, DataSource] = {}
    progress = WorkProgress()
    for argument, name in names.items():
        if name is None:
            continue
        source, progress = await _data_source(context, _path_name(name, argument), argument)
        if source is None:
            return None, progress
        found[argument] = source
    return found, progress


async def _data_source(context: Context, name: str, argument: str) -> tuple[DataSource | None, WorkProgress]:
    def work(report: WorkProgress) -> DataSource:
        def note(done: int, of: int) -> None:
            report.done, report.total = float(done), float(of)
            report.message = f"fetching {shown}, {done / max(1, of):.0%}"

        shown = named(name)
        report.message = f"fetching {shown}"
        return data_source(name, where=argument, progress=note)

    key = ("source", argument, name)
    try:
        return await run_in_background(key, work, context)
    finally:
        forget(key)  # a file may come or go, and a branch of the hub move, before the next call


def _path_name(name: str, where: str) -> str:
    if len(name) > _LONGEST_PATH:
        raise ConfigError(f"a path of {len(name):,} characters is longer than any file's", where=where)
    return name


def file_identity(path: Path | None) -> tuple[tuple[str, int, int], ...] | None:
    """Changes when the file does, or a file of a folder or pattern: a kept answer must never be of an older one."""
    if path is None:
        return None
    found: list[tuple[str, int, int]] = []
    for file in shards(path):
        status = file.stat() if file.exists() else None
        found.append((str(file), status.st_mtime_ns, status.st_size) if status else (str(file), 0, 0))
    return tuple(found)
