"""Making the registry again: from the rows that can still be read, and from the folders of the runs."""

from __future__ import annotations

import json
import shutil
import sqlite3
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import closing, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ..backends.meter import Meter
from ..core.errors import ResearcherError
from ..core.files import storage_errors, sync_folder
from ..core.paths import home, jobs_database
from ..core.yaml_loading import load_yaml
from . import run_files
from .budget import open_meter
from .kinds import KINDS
from .processes import start_time_of
from .registry import COLUMNS, DamagedRegistryError, Registry
from .states import ACTIVE, CancelRequest, JobState

Tables = dict[str, list[dict[str, Any]]]

_WORKER = "sota_ml_researcher.jobs.worker"
# SQLite's other files beside the database.
_BESIDE = ("-wal", "-shm")


@dataclass(frozen=True, slots=True)
class Repair:
    """What was done.

    Attributes:
        kept_as: Where the damaged file is now; None if the registry was sound.
        read: How many jobs the registry still knew.
        restored: The ids of jobs that it did not know and that have a run folder.
    """

    kept_as: Path | None
    read: int
    restored: list[str]


def repair_registry() -> Repair:
    """Make the registry whole: its readable rows, and every run folder that it does not know.

    A new file is complete before it takes the damaged one's place: a worker finds its row at its next heartbeat.

    Raises:
        StorageError: If the registry is held by another process, of a newer version, or the disk is full.
    """
    path = jobs_database()
    with storage_errors(path):
        damaged = _is_damaged(path)
        tables = _readable(path)
        known = {row["id"] for row in tables["jobs"]}
        places = {Path(row["folder"]).parent for row in tables["jobs"]} | {home() / "runs"}
        restored = [folder for folder in _run_folders(places) if folder.name not in known and _restore(folder, tables)]
        new = path.with_name(f".{path.name}.new")
        if damaged:
            _remove(new)
        Registry(new if damaged else path).put_back(tables)
        kept_as = _take_place(new, path) if damaged else None
    return Repair(kept_as, len(known), [folder.name for folder in restored])


def _is_damaged(path: Path) -> bool:
    try:
        registry = Registry(path)
        registry.find(limit=1_000_000)
        return not registry.is_sound()
    except DamagedRegistryError:
        return True


def _readable(path: Path) -> Tables:
    """What can still be read, from a copy: opening a damaged file can change it."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / path.name
        for suffix in ("", *_BESIDE):
            with suppress(FileNotFoundError):
                shutil.copyfile(f"{path}{suffix}", f"{copy}{suffix}")
        with closing(sqlite3.connect(copy)) as db:
            db.row_factory = sqlite3.Row
            tables = {table: list(_rows(db, table)) for table in ("jobs", "lineage", "spend")}
    jobs = {row["id"]: row for row in tables["jobs"] if _is_job(row)}
    return {**tables, "jobs": list(jobs.values())}


def _rows(db: sqlite3.Connection, table: str) -> Iterator[dict[str, Any]]:
    """A table's rows from both ends: a page that cannot be read hides neither what is before it nor what is after."""
    for order in ("ASC", "DESC"):
        with suppress(sqlite3.DatabaseError):
            for row in db.execute(f"SELECT * FROM {table} ORDER BY rowid {order}"):
                yield dict(row)


def _is_job(row: dict[str, Any]) -> bool:
    """Whether a row is what was written: bytes that were overwritten can read as anything."""
    with suppress(ValueError, KeyError):
        JobState(row["state"])
        CancelRequest(row["cancel"])
        times = (row[name] for name in ("created", "queued"))
        return row.keys() >= set(COLUMNS) and row["kind"] in KINDS and all(isinstance(t, float) for t in times)
    return False


def _run_folders(places: Iterable[Path]) -> Iterator[Path]:
    for place in sorted(places):
        if place.is_dir():
            yield from (config.parent for config in sorted(place.glob(f"*-*/{run_files.CONFIG}")))


def _restore(folder: Path, tables: Tables) -> bool:
    """Add the job of a run folder to the tables; False if the folder is not one."""
    kind = folder.name.rpartition("-")[0]
    config_file = folder / run_files.CONFIG
    try:
        config = load_yaml(config_file).data
        result = run_files.result(folder)
        steps = run_files.recent_metrics(folder, limit=1)
    except (ResearcherError, ValueError, OSError):
        return False
    if kind not in KINDS:
        return False
    facts, meter = _facts(folder), _meter(folder)
    began, ended = config_file.stat().st_mtime, max(file.stat().st_mtime for file in folder.iterdir())
    pid = _worker_of(folder.name)
    finished = result is not None and result.numbers.get("finished") is True
    state = JobState.SUCCEEDED if finished else JobState.RUNNING if pid else JobState.INTERRUPTED
    note = "" if state is not JobState.INTERRUPTED else "its row was lost and made again from its run folder"
    tables["jobs"].append(
        dict.fromkeys(COLUMNS)
        | {
            "id": folder.name,
            "kind": kind,
            "name": facts.get("name") or config.get("run_name") or kind,
            "state": state,
            "backend": config.get("backend") or "embedded",
            "base_model": config.get("base_model") or "",
            "folder": str(folder),
            "created": began,
            "queued": began,
            "started": began,
            "ended": None if state in ACTIVE else ended,
            "pid": pid,
            "pid_started": start_time_of(pid) if pid else None,
            "step": int(steps[-1].get("step") or 0) if steps else 0,
            "total_steps": facts.get("total_steps"),
            "error": note,
            "cancel": CancelRequest.NONE,
            "attempt": 1,
            "cost_usd": meter.cost_usd if meter else None,
        }
    )
    links = facts.get("parents", [])
    tables["lineage"] += [{"job_id": folder.name, "parent_id": k["job_id"], "role": k["role"]} for k in links]
    if meter and meter.known_usd:
        month = datetime.fromtimestamp(ended, UTC).strftime("%Y-%m")
        tables["spend"].append({"job_id": folder.name, "month": month, "usd": meter.known_usd})
    return True


def _facts(folder: Path) -> dict[str, Any]:
    """What was noted at the start of a job besides its config; nothing in runs of earlier versions."""
    with suppress(OSError, ValueError):
        return json.loads((folder / run_files.ENVIRONMENT).read_bytes()).get("job") or {}
    return {}


def _meter(folder: Path) -> Meter | None:
    with suppress(ResearcherError, ValueError, OSError):
        return open_meter(folder, folder / run_files.CONFIG)
    return None


def _worker_of(job_id: str) -> int | None:
    """The process that works on a job now, if there is one."""
    import psutil

    for process in psutil.process_iter(["pid", "cmdline"]):
        if (process.info["cmdline"] or [])[-2:] == [_WORKER, job_id]:
            return int(process.info["pid"])
    return None


def _take_place(new: Path, path: Path) -> Path:
    """Put the new file where the damaged one is, which is kept beside it; returns where."""
    kept = path.with_name(f"{path.name}.damaged-{datetime.now(UTC):%Y%m%d-%H%M%S}")
    if path.is_file():
        shutil.copyfile(path, kept)
    for suffix in _BESIDE:  # a log of the old file must not meet the new one
        with suppress(FileNotFoundError):
            Path(f"{path}{suffix}").replace(f"{kept}{suffix}")
    new.replace(path)
    sync_folder(path.parent)
    return kept


def _remove(database: Path) -> None:
    for suffix in ("", *_BESIDE):
        Path(f"{database}{suffix}").unlink(missing_ok=True)
