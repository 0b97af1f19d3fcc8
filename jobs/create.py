"""From a plan to a running job: its folder, its row, its process."""

from __future__ import annotations

import json
import platform
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, cast

from pydantic import BaseModel

from ..core.files import write_atomically
from ..core.paths import state_folder, writable_folder
from ..data.shards import facts_of
from . import run_files
from .processes import spawn_worker
from .registry import Registry
from .states import Job, JobState, Link

if TYPE_CHECKING:
    from ..core.settings import Origin

_RECORDED = ("sota-ml-researcher", "tinker", "tinker-cookbook", "torch", "transformers", "tokenizers", "numpy")


class JobConfig(Protocol):
    """What every kind of job's config has."""

    @property
    def base_model(self) -> str: ...  # noqa: D102
    @property
    def run_name(self) -> str | None: ...  # noqa: D102
    @property
    def backend(self) -> str: ...  # noqa: D102
    @property
    def output_dir(self) -> str | None: ...  # noqa: D102


def start_job(
    registry: Registry,
    kind: str,
    config: JobConfig,
    origins: Mapping[str, Origin],
    *,
    files: Sequence[Path],
    total_steps: int,
    parents: Sequence[Link] = (),
) -> Job:
    """Create the job's folder and row, and start its worker.

    Args:
        registry: The registry of jobs.
        kind: A key of `jobs.kinds.KINDS`.
        config: The resolved config, a pydantic model.
        origins: Where each of its values came from.
        files: The data files, absolute; the first names a job without ``run_name``.
        total_steps: Length of the whole run in steps.
        parents: The jobs whose results this one builds on.

    Raises:
        StorageError: If the run folder cannot be written; no job is left behind then.
    """
    from ..core.settings import render_config

    runs = writable_folder(Path(config.output_dir)) if config.output_dir else state_folder("runs")
    job = registry.create(
        kind=kind,
        name=config.run_name or (files[0].stem if files else kind),
        backend=config.backend,
        base_model=config.base_model,
        runs=runs,
        parents=parents,
    )
    try:
        write_atomically(job.folder / run_files.CONFIG, render_config(cast("BaseModel", config), origins))
        about = JobFacts(job.name, total_steps, [asdict(link) for link in parents])
        write_atomically(job.folder / run_files.ENVIRONMENT, environment(files, about))
        write_atomically(job.folder / run_files.README, run_files.readme(kind))
        registry.set_total_steps(job.id, total_steps)
        return spawn_worker(registry, job)
    except BaseException as error:
        registry.move(job.id, [JobState.QUEUED], JobState.FAILED, error=f"it could not be started: {error}")
        raise


@dataclass(frozen=True, slots=True)
class JobFacts:
    """What the registry knows of a job from its start and its config does not say (see `jobs.repair`)."""

    name: str
    total_steps: int
    parents: Sequence[Mapping[str, str]]


def environment(data_files: Sequence[Path], job: JobFacts) -> str:
    """What a later reader needs to repeat the run: versions, machine, code revision, and the data's SHA-256."""
    facts = {
        "job": asdict(job),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: _version(name) for name in _RECORDED},
        "git_revision": _git_revision(data_files[0].parent) if data_files else None,
        "data": {str(path): facts_of(path) for path in data_files},
    }
    return json.dumps(facts, indent=2) + "\n"


def _version(distribution: str) -> str | None:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None


def _git_revision(folder: Path) -> str | None:
    """The revision of the repository that holds the data, with ``-dirty`` if it has changes; None outside of one."""
    command = ["git", "-C", str(folder), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=5, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None
