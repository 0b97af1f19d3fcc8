"""Removing a job that has ended: its row, its run folder, and the checkpoints that its backend stores."""

from __future__ import annotations

import shutil
from dataclasses import dataclass

from ..backends.connection import connect
from ..backends.prices import load_prices
from ..core.errors import JobError, StorageError
from . import run_files
from .control import look
from .job_results import trained_model
from .registry import Registry
from .states import ACTIVE, Job, Link


@dataclass(frozen=True, slots=True)
class Removal:
    """What goes with a job.

    Attributes:
        job: The job.
        size_bytes: Of its run folder.
        checkpoints: The tinker:// paths it saved; some may have expired.
        children: The jobs made from it. They keep what they have learnt; one that still runs forbids the removal.
    """

    job: Job
    size_bytes: int
    checkpoints: tuple[str, ...]
    children: tuple[Link, ...]


def plan_removal(registry: Registry, job_id: str) -> Removal:
    """What would go.

    Raises:
        JobError: If there is no such job, or it or a job made from it is still active.
    """
    job = look(registry, job_id)
    children = registry.family(job_id)[1]
    for active in (job, *(look(registry, child.job_id) for child in children)):
        if active.state in ACTIVE:
            needs = "" if active is job else f" and was made from {job_id}"
            raise JobError(f"job {active.id} is {active.state}{needs}: nothing was removed", fix="cancel_job stops it")
    saved = run_files.checkpoints(job.folder)
    paths = tuple(dict.fromkeys(path for checkpoint in saved for path in checkpoint.paths))
    return Removal(job, _size(job), paths, tuple(children))


def remove(registry: Registry, removal: Removal, *, keep_checkpoints: bool = False) -> int:
    """Remove a job for good, its checkpoints first; returns how many of these its backend still had.

    What it cost stays in the month's sum.

    Raises:
        BackendError: If the backend of the checkpoints does not answer; nothing is removed then.
        JobError: If the job has become active meanwhile.
        StorageError: If files of the run folder cannot be deleted; the row is gone then.
    """
    job = removal.job
    deleted = 0 if keep_checkpoints or not removal.checkpoints else _delete_checkpoints(removal)
    registry.remove(job.id)
    try:
        shutil.rmtree(job.folder)
    except FileNotFoundError:
        pass
    except OSError as error:
        raise StorageError(
            f"job {job.id} is removed, but not all of its files ({error.strerror})",
            where=str(job.folder),
            fix="Delete the folder",
        ) from error
    return deleted


def _delete_checkpoints(removal: Removal) -> int:
    from ..backends.stored_checkpoints import delete_checkpoints, stored_checkpoints

    of = trained_model(removal.job)
    backend = connect(of.backend, of.base_url)
    stored = {checkpoint.path for checkpoint in stored_checkpoints(backend, load_prices())}
    there = [path for path in removal.checkpoints if path in stored]
    delete_checkpoints(backend, there)
    return len(there)


def _size(job: Job) -> int:
    return sum(path.stat().st_size for path in job.folder.rglob("*") if path.is_file() and not path.is_symlink())
