"""Job ids in a config as the checkpoints they stand for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypeVar, cast

from pydantic import BaseModel

from ..core.errors import ConfigError
from ..jobs.job_results import base_model_of_checkpoint, job_of, resolve_checkpoint
from ..jobs.states import Link
from .models import resolve_target

if TYPE_CHECKING:
    from ..core.settings import Origin, Settings
    from ..rewards.reward_config import RewardPart
    from ..training.config import TrainingConfig
    from ..training.rl.config import RlConfig

ConfigT = TypeVar("ConfigT", bound=BaseModel)
TrainingT = TypeVar("TrainingT", bound="TrainingConfig")
_PLACE = ("backend", "base_url", "renderer")


def with_sampled_jobs(settings: Settings[ConfigT], keys: Sequence[str]) -> tuple[Settings[ConfigT], dict[str, str]]:
    """The settings of an evaluation with job ids replaced by checkpoints; backend and renderer as theirs unless set.

    The second value is the base model of each checkpoint that a job of ours made.

    Args:
        settings: Any config with ``backend``, ``base_url`` and ``renderer``.
        keys: The keys that name a model, or a tuple of models.

    Raises:
        ConfigError: If two jobs ran in different places.
        JobError: If there is no such job, or it has no checkpoint.
    """
    from ..core.settings import Origin

    changes: dict[str, tuple[Any, Origin]] = {}
    place: dict[str, Any] = {}
    bases: dict[str, str] = {}

    def checkpoint(key: str, model: str) -> str:
        if model.startswith("tinker://") and (base := base_model_of_checkpoint(model)) is not None:
            bases[model] = base
        if job_of(model) is None:
            return model
        target = resolve_target(model, None, None)
        here = {name: getattr(target, name) for name in _PLACE}
        if place and place != here:
            raise ConfigError(
                "the jobs ran on different backends, or with different renderers",
                where=settings.place(key),
                fix="Compare checkpoints of one backend, or files of responses",
            )
        place.update(here)
        if target.base_model is not None:
            bases[target.wire_name] = target.base_model
        return target.wire_name

    for key in keys:
        value: Any = getattr(settings.config, key)
        several = isinstance(value, tuple)
        models: list[Any] = list(cast("tuple[Any, ...]", value)) if several else [value]
        resolved = [checkpoint(key, m) if isinstance(m, str) else m for m in models]
        if resolved != models:
            reason = f"the checkpoint of {', '.join(map(str, models))}"
            changes[key] = (tuple(resolved) if several else resolved[0], Origin(kind="derived", reason=reason))
    for key, value in place.items():
        if settings.origins[key].kind == "default" and value != getattr(settings.config, key):
            changes[key] = (value, Origin(kind="derived", reason="as the job of the arm"))
    return settings.derived(changes), bases


def with_start(settings: Settings[TrainingT]) -> tuple[Settings[TrainingT], list[Link]]:
    """The settings of a training job with ``load_checkpoint`` as a path, and the job it names.

    Raises:
        ConfigError: If that job trained another model, or on another backend.
        JobError: If there is no such job, or it has no checkpoint.
    """
    from ..core.settings import Origin

    name = settings.config.load_checkpoint
    if name is None:
        return settings, []
    path, job = resolve_checkpoint(name, "state_path", settings.config, where=settings.place("load_checkpoint"))
    if job is None:
        return settings, []
    origin = Origin(kind=settings.origins["load_checkpoint"].kind, reason=f"of job {name}")
    return settings.derived({"load_checkpoint": (path, origin)}), [Link(job, "weights")]


def with_reference(settings: Settings[RlConfig]) -> tuple[Settings[RlConfig], list[Link]]:
    """``ref_model`` as a path. Null is where the run starts, if a job is named there; ``base`` the base model.

    Raises:
        ConfigError, JobError: As `with_start`.
    """
    from ..core.settings import Origin

    config, key = settings.config, "ref_model"
    name, start = config.ref_model, config.load_checkpoint
    if not config.kl_coef or name == "base" or (name is None and (start is None or start.startswith("tinker://"))):
        return settings, []
    where = settings.place(key if name else "load_checkpoint")
    path, job = resolve_checkpoint(name or str(start), "sampler_path", config, where=where)
    reason = f"of job {job}" + ("" if name else ", where the run starts")
    origin = Origin(kind=settings.origins[key].kind if name else "derived", reason=reason)
    return settings.derived({key: (path, origin)}), [Link(job, "reference")] if job else []


def with_reward_models(settings: Settings[RlConfig]) -> tuple[Settings[RlConfig], list[Link]]:
    """The settings with the jobs of preference models replaced by their checkpoints, and those jobs.

    Raises:
        ConfigError, JobError: As `with_start`.
    """
    config = settings.config
    if config.rewards is None:
        return settings, []
    links: list[Link] = []

    def resolved(part: RewardPart) -> RewardPart:
        if part.checkpoint is None:
            return part
        path, job = resolve_checkpoint(part.checkpoint, "sampler_path", config, where="rewards")
        links.extend([Link(job, "reward")] if job else [])
        return part.model_copy(update={"checkpoint": path})

    return settings.derived({"rewards": (tuple(map(resolved, config.rewards)), settings.origins["rewards"])}), links
