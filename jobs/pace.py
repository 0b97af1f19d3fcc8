"""How fast jobs like this one went on this backend, from their own results."""

from __future__ import annotations

from statistics import median
from typing import Any

from sota_ml_researcher.jobs import run_files
from sota_ml_researcher.jobs.registry import Registry
from sota_ml_researcher.jobs.states import JobState

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
