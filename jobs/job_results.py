"""What a job leaves for others to build on: its model, and its checkpoints."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from statistics import median
from typing import Any, Literal

from ..core.errors import ConfigError, JobError
from ..core.names import BackendName
from . import run_files
from .registry import Registry
from .states import Job, JobState

PathKind = Literal["state_path", "sampler_path"]


@dataclass(frozen=True, slots=True)
class TrainedModel:
    """Which model a job trains, where, and how its chats are rendered."""

    base_model: str
    backend: BackendName
    base_url: str | None
    renderer: str | None


def trained_model(job: Job) -> TrainedModel:
    """What a training job's resolved config says, of whatever kind the job is.

    Raises:
        JobError: If the job trains nothing.
    """
    from ..core.yaml_loading import load_yaml

    data: Mapping[str, Any] = load_yaml(job.folder / run_files.CONFIG).data
    if "base_model" not in data or "lora_rank" not in data:
        raise JobError(f"job {job.id} trains no model")
    return TrainedModel(data["base_model"], data["backend"], data.get("base_url"), data.get("renderer"))


def checkpoint_path(job: Job, kind: PathKind, which: str = "final") -> str:
    """The latest checkpoint of a job, or the one that did best on held-out data.

    Raises:
        JobError: If it has none.
    """
    best = which == "best"
    key = "best_state_path" if best and kind == "state_path" else kind
    found = [c for c in run_files.checkpoints(job.folder) if c.get(key)]
    found = [c for c in found if str(c["name"]).startswith("best-") == best]
    if not found:
        shown = "best checkpoint" if best else "checkpoint"
        raise JobError(f"job {job.id} ({job.state}) has no {shown} yet", fix="wait_for_job shows when it has one")
    return str(found[-1][key])


def resolve_checkpoint(
    name: str, kind: PathKind, *, base_model: str, backend: str, where: str
) -> tuple[str, str | None]:
    """The tinker:// path that a setting names, and the job it is of if it names one (``JOB`` or ``JOB:best``).

    Raises:
        ConfigError: If the job trained another model, or on another backend.
        JobError: If there is no such job, or it has no checkpoint.
    """
    if name.startswith("tinker://"):
        return name, None
    job_id, _, which = name.partition(":")
    job = Registry().get(job_id)
    of = trained_model(job)
    if (of.base_model, of.backend) != (base_model, backend):
        raise ConfigError(
            f"job {job_id} trained {of.base_model} on {of.backend}, and this run trains {base_model} on {backend}",
            where=where,
            fix="Give a checkpoint of the same model on the same backend",
        )
    return checkpoint_path(job, kind, which or "final"), job_id


_LOOKED_AT = 200
_USED = 5


def measured_pace(registry: Registry, kind: str, backend: str, base_model: str) -> float | None:
    """Tokens trained a second, start-up included: the median of the last runs of this kind; None without any."""
    paces: list[float] = []
    for job in registry.list(states=[JobState.SUCCEEDED], limit=_LOOKED_AT):
        if (job.kind, job.backend, job.base_model) != (kind, backend, base_model) or job.attempt > 1:
            continue
        result: dict[str, Any] = run_files.result(job.folder) or {}
        if result.get("tokens_trained") and result.get("wall_s"):
            paces.append(result["tokens_trained"] / result["wall_s"])
        if len(paces) == _USED:
            break
    return median(paces) if paces else None
