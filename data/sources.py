"""From the name of data, as people write it in a config or an argument, to a path: the one place that decides it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from concurrent.futures import wait as wait_for
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from threading import Lock, Thread
from time import monotonic
from typing import TYPE_CHECKING

from ..core.errors import ConfigError, DataError
from ..core.paths import find_file
from .hub_reference import HubReference, hub_reading, parse_reference

if TYPE_CHECKING:
    from .hub_fetch import Fetched

Progress = Callable[[int, int], None]
# Seconds that a caller can wait for a fetch, which then goes on without it; None: until it is done.
PATIENCE_S: ContextVar[float | None] = ContextVar("PATIENCE_S", default=None)


@dataclass(frozen=True, slots=True)
class DataSource:
    """Where data lies.

    Attributes:
        path: An absolute path that `row_files.read_rows` takes: a file, a folder, or a pattern.
        reference: For a data set of the hub what it is, with its commit; else None.
        facts: The same with its size, and what to know of it, for people; else nothing.
    """

    path: Path
    reference: str | None = None
    facts: str = ""


def data_source(name: str, *, where: str, bases: Sequence[Path] = (), progress: Progress | None = None) -> DataSource:
    """The data that a name means: ``demo:NAME``, a path that exists, or a data set of the hub, which is fetched.

    A path that exists wins. A name without ``@revision`` is never a data set of the hub, so a path that is misspelt
    asks nobody. What was fetched before is used again (see `hub_fetch.fetch`).

    Args:
        name: What the user wrote.
        where: The key or argument, for errors.
        bases: Folders in which a relative path is looked for, in order; none: the current one.
        progress: Told the bytes fetched, and of how many.

    Raises:
        ConfigError: If there is no such file.
        ModelError: If there is no demo data set of that name.
        DataError: If the hub does not have it, does not give it, it means several splits, or it is still being
            fetched when `PATIENCE_S` is over.
        StorageError: If the disk has no room for it.
        MissingDependencyError: If a data set of the hub is named and ``huggingface_hub`` is not installed.
    """
    found, looked_at = find_file(name, bases or (Path.cwd(),), where=where)
    if found is not None:
        return DataSource(found)
    reference = parse_reference(name, where=where)
    if reference is None:
        raise ConfigError(
            f"no such file: {name} (looked at {looked_at})", where=where, fix=hub_reading(name) or "Check the path"
        )
    from .hub_catalog import NoSuchDatasetError

    try:
        fetched = _fetched(reference, progress)
    except NoSuchDatasetError as error:
        raise DataError(
            f"{error.problem}, and there is no such file here ({looked_at})", where=f"{where}: {name}", fix=error.fix
        ) from error
    except DataError as error:
        raise type(error)(error.problem, where=f"{where}: {error.where}", fix=error.fix) from error
    return DataSource(fetched.path, str(fetched.reference), fetched.facts)


@dataclass(slots=True)
class _Fetch:
    """A fetch under way, or one whose end nobody has seen yet."""

    future: Future[Fetched]
    done: int = 0
    of: int = 0
    ended_s: float | None = None

    def note(self, done: int, of: int) -> None:
        self.done, self.of = done, of


# Nobody may come for the end of a fetch: what a branch was then does not hold for later calls.
_KEPT_S = 600.0
_fetches: dict[HubReference, _Fetch] = {}
_lock = Lock()  # two calls for one data set must share one fetch


def _fetched(reference: HubReference, progress: Progress | None) -> Fetched:
    """What was fetched, by this thread, or by another one if the caller cannot wait for ever."""
    from .hub_fetch import fetch, in_bytes

    patience = PATIENCE_S.get()
    if patience is None:
        return fetch(reference, progress)
    with _lock:
        under_way = _fetches.get(reference)
        if under_way is None or (under_way.ended_s is not None and monotonic() - under_way.ended_s > _KEPT_S):
            under_way = _fetches[reference] = _Fetch(Future())
            Thread(target=_run, args=(under_way, reference), daemon=True, name="hub-fetch").start()
    wait_for([under_way.future], patience)
    if not under_way.future.done():
        far = f"{in_bytes(under_way.done)} of {in_bytes(under_way.of)}" if under_way.of else "the hub is being asked"
        raise DataError(f"it is still being fetched ({far})", where=str(reference), fix="Call again: the fetch goes on")
    with _lock:
        if _fetches.get(reference) is under_way:
            del _fetches[reference]
    return under_way.future.result()


def _run(under_way: _Fetch, reference: HubReference) -> None:
    from .hub_fetch import fetch

    try:
        under_way.future.set_result(fetch(reference, under_way.note))
    except BaseException as error:  # it belongs to the call that waits, which raises it
        under_way.future.set_exception(error)
    under_way.ended_s = monotonic()
