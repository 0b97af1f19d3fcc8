"""What a job leaves for others to build on: its model, and its checkpoints."""

from __future__ import annotations

import re
from dataclasses import dataclass
from statistics import median
from typing import Literal

from ..core.errors import ConfigError, JobError
from ..core.names import BackendName
from . import run_files
from .create import JobConfig
from .registry import Registry
from .run_files import Checkpoint
from .states import Job, JobState

PathKind = Literal["state_path", "sampler_path"]
_JOB = re.compile(r"([a-z_]+-[0-9a-f]{6})(?::(best|final))?")
# How many finished jobs are looked through for the pace, and of how many it is the median.
_LOOKED_AT = 200
_USED = 5


@dataclass(frozen=True, slots=True)
class TrainedModel:
    """Which model a job trains, where, and how its chats are rendered."""

    base_model: str
    backend: BackendName
    base_url: str | None
    renderer: str | None
    lora_rank: int


def trained_model(job: Job) -> TrainedModel:
    """What a training job's resolved config says, of whatever kind the job is.

    Raises:
        JobError: If the job trains nothing.
    """
    from ..core.yaml_loading import load_yaml

    config = load_yaml(job.folder / run_files.CONFIG).data
    if "base_model" not in config or "lora_rank" not in config:
        raise JobError(f"job {job.id} trains no model")
    return TrainedModel(
        config["base_model"], config["backend"], config.get("base_url"), config.get("renderer"), config["lora_rank"]
    )


def require_place_of_job(job: Job, trained: TrainedModel, backend: BackendName | None, base_url: str | None) -> None:
    """Refuse another place for a job's checkpoint than the one it lies in.

    Raises:
        ConfigError: If ``backend`` or ``base_url`` is given and is not the job's.
    """
    if backend not in {None, trained.backend} or base_url not in {None, trained.base_url}:
        raise ConfigError(
            f"the checkpoints of job {job.id} are on backend {trained.backend}",
            where="backend",
            fix="Leave backend and base_url out",
        )


def job_of(name: str) -> tuple[str, str] | None:
    """The job that ``JOB``, ``JOB:final`` or ``JOB:best`` names, and ``final`` or ``best``; None for anything else."""
    match = _JOB.fullmatch(name)
    return (match[1], match[2] or "final") if match else None


def checkpoint_of(job: Job, kind: PathKind, which: str = "final") -> Checkpoint:
    """The latest checkpoint of a job that has such a path, or the one that did best on held-out data.

    Raises:
        JobError: If it has none.
    """
    best = which == "best"
    saved = [c for c in run_files.checkpoints(job.folder) if c.best == best and getattr(c, kind)]
    if not saved:
        what = "best checkpoint" if best else "checkpoint"
        raise JobError(f"job {job.id} ({job.state}) has no {what} yet", fix="wait_for_job shows when it has one")
    return saved[-1]


def checkpoint_path(job: Job, kind: PathKind, which: str = "final") -> str:
    """The path of `checkpoint_of`."""
    return str(getattr(checkpoint_of(job, kind, which), kind))


def base_model_of_checkpoint(path: str) -> str | None:
    """The base model of a ``tinker://`` path that one of the last jobs recorded; None where none of them did."""
    for job in Registry().find(limit=_LOOKED_AT):
        if any(path in checkpoint.paths for checkpoint in run_files.checkpoints(job.folder)):
            return job.base_model
    return None


def resolve_checkpoint(name: str, kind: PathKind, config: JobConfig, *, where: str) -> tuple[str, str | None]:
    """The tinker:// path that a setting names, and the job it is of if it names one (``JOB`` or ``JOB:best``).

    Args:
        name: The setting's value.
        kind: Which of a checkpoint's paths is wanted.
        config: The settings of the run that wants it.
        where: The setting's place, for errors.

    Raises:
        ConfigError: If the job trained another model, or on another backend.
        JobError: If there is no such job, or it has no checkpoint.
    """
    if name.startswith("tinker://"):
        return name, None
    job_id, which = job_of(name) or (name, "final")
    job = Registry().get(job_id)
    of = trained_model(job)
    if (of.base_model, of.backend) != (config.base_model, config.backend):
        raise ConfigError(
            f"job {job_id} trained {of.base_model} on {of.backend}, and this run trains {config.base_model} on "
            f"{config.backend}",
            where=where,
            fix="Give a checkpoint of the same model on the same backend",
        )
    return checkpoint_path(job, kind, which), job_id


def measured_pace(registry: Registry, kind: str, backend: str, base_model: str) -> float | None:
    """Tokens trained per second, start-up included: the median of the last runs of this kind; None without any."""
    paces: list[float] = []
    for job in registry.find(states=[JobState.SUCCEEDED], kind=kind, limit=_LOOKED_AT):
        if (job.backend, job.base_model) != (backend, base_model) or job.attempt > 1:
            continue
        result = run_files.result(job.folder)
        if result and result.tokens_trained and result.wall_s:
            paces.append(result.tokens_trained / result.wall_s)
        if len(paces) == _USED:
            break
    return median(paces) if paces else None
