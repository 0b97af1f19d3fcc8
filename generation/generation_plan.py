"""What a generation job will do, worked out before it starts: sources, requests, tokens, and what they cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..backends.connection import connect
from ..backends.estimate import CostEstimate
from ..core.errors import ConfigError, StorageError
from ..core.paths import require_creatable, user_path
from ..core.settings import Origin, Settings
from ..data.sources import data_source
from ..evals.answer_room import with_room
from ..evals.judge_config import family_of
from ..judges.base import check_judges
from ..judges.judge_catalog import JudgeRef
from ..judges.prompt import EvalItem
from ..judges.services import CallLimits, service_judge
from ..models.model_ref import resolve_model
from .documents import document_files
from .generation_config import LEAST_PASSAGE, GenerationConfig
from .generation_cost import EXPECTED, Work, openai_url, require_cap
from .recipe import Recipe
from .recipes import load_recipe

_TEMPERATURE = 0.7
Changes = dict[str, tuple[Any, Origin]]


@dataclass(frozen=True, slots=True)
class GenerationPlan:
    """A generation job ready to start.

    Attributes:
        settings: The config with absolute paths and every null derived.
        tasks: Sources that rows are made of: the job's length.
        answers: Answers of the model, where every one can be read.
        judge_calls: Questions to the judge at most.
        cost: What all of it will cost, as a range; ``usage`` are the expected tokens on the backend.
        service_tokens: Expected tokens in and out of the writing service; 0 and 0 where a backend writes.
        bills_elsewhere: Whether a service may charge for it, besides the backend.
        sampled_models: What the backend samples: base models and tinker:// paths.
        files: The data files.
        warnings: What to know before starting.
    """

    settings: Settings[GenerationConfig]
    tasks: int
    answers: int
    judge_calls: int
    cost: CostEstimate
    service_tokens: tuple[int, int]
    bills_elsewhere: bool
    sampled_models: tuple[str, ...]
    files: tuple[Path, ...]
    warnings: tuple[str, ...]


def plan_generation(settings: Settings[GenerationConfig], *, bases: Mapping[str, str] | None = None) -> GenerationPlan:
    """Check everything that can be checked without writing a row.

    Args:
        settings: The config, with job ids already resolved to checkpoints.
        bases: The base models of tinker:// paths, as far as they are known.

    Raises:
        ResearcherError: For a file, a rubric, a judge or a model that cannot be used, or a cap that cannot be held.
    """
    settings = _derived(_with_paths(settings), bases or {})
    recipe = load_recipe(settings.config)
    settings, shortened = _with_room(settings, recipe)
    config = settings.config
    work = Work.of(config, recipe)
    require_cap(settings, work)
    service, judge = config.service, config.judge
    services = ((service, config.model_base_url), (judge, config.judge_base_url))
    sampled = [] if service else [config.weights]
    return GenerationPlan(
        settings=settings,
        tasks=len(recipe.tasks),
        answers=work.answers,
        judge_calls=work.judge_calls,
        cost=work.cost(),
        service_tokens=work.tokens(EXPECTED) if service else (0, 0),
        bills_elsewhere=any(ref is not None and ref.may_cost(openai_url(url)) for ref, url in services),
        sampled_models=(*sampled, *([judge.model] if judge and judge.kind == "tinker" else [])),
        files=tuple(_files(config)),
        warnings=(*shortened, *recipe.warnings, *_warnings(config)),
    )


def _with_paths(settings: Settings[GenerationConfig]) -> Settings[GenerationConfig]:
    """Paths made absolute: the worker runs in another folder."""
    config, origins = settings.config, settings.origins
    changes: Changes = {}
    if config.prompts is not None:
        rows = data_source(config.prompts, where=settings.place("prompts"), bases=settings.bases)
        changes["prompts"] = (str(rows.path), origins["prompts"].model_copy(update={"reason": rows.facts}))
    for key in ("documents", "teacher_prompt_file", "rubric"):
        name = getattr(config, key)
        if name is not None:
            changes[key] = (str(settings.data_file(key, name)), origins[key])
    for key in ("output_file", "output_dir"):
        name = getattr(config, key)
        if name is not None:
            changes[key] = (str(user_path(name).absolute()), origins[key])
    if config.run_name is None:
        source = Path(changes["documents" if config.documents else "prompts"][0])
        name = f"{config.recipe}-{source.stem}"[:80]
        changes["run_name"] = (name, Origin(kind="derived", reason="the recipe and its source"))
    settings = settings.derived(changes)
    if settings.config.output_file is not None:
        require_new_file(Path(settings.config.output_file), where=settings.place("output_file"))
    return settings


def require_new_file(path: Path, *, where: str) -> None:
    """Refuse a place for rows that holds something, or cannot be made.

    Raises:
        ConfigError: If it is no .jsonl file.
        StorageError: If it exists, or its folder cannot be made or written to.
    """
    if path.suffix.lower() != ".jsonl":
        raise ConfigError(f"rows are written as .jsonl, not '{path.suffix}'", where=where)
    if path.exists():
        raise StorageError(f"{path} exists, and is not overwritten", where=where, fix="Give another name")
    require_creatable(path.parent, where=where)


def _derived(settings: Settings[GenerationConfig], bases: Mapping[str, str]) -> Settings[GenerationConfig]:
    """What follows from the model: its base model, and how it is sampled."""
    config, service = settings.config, settings.config.service
    changes: Changes = {}
    if config.temperature is None and service is None:
        changes["temperature"] = (_TEMPERATURE, Origin(kind="derived", reason="a model of a backend"))
    if config.temperature is not None and service is not None and not service.takes_temperature:
        raise ConfigError(
            f"{service.name} takes no temperature", where=settings.place("temperature"), fix="Leave it out"
        )
    base, reason = _base_model(settings, bases)
    if config.base_model not in {None, base}:
        raise ConfigError(
            f"model is {config.weights}, of the base model {base}",
            where=settings.place("base_model"),
            fix="Leave it out",
        )
    changes["base_model"] = (base, Origin(kind="derived", reason=reason))
    return settings.derived(changes)


def _base_model(settings: Settings[GenerationConfig], bases: Mapping[str, str]) -> tuple[str, str]:
    config = settings.config
    if config.service is not None:
        return config.service.model, "the service's model"
    if not config.weights.startswith("tinker://"):
        resolve_model(config.weights)
        return config.weights, "the model itself"
    if config.weights in bases:
        return bases[config.weights], "of the checkpoint"
    from ..backends.sampling_client import base_model_of

    return base_model_of(connect(config.backend, config.base_url), config.weights), "of the checkpoint"


def _with_room(settings: Settings[GenerationConfig], recipe: Recipe) -> tuple[Settings[GenerationConfig], list[str]]:
    """Answers that fit beside every first request of the recipe (see `evals.answer_room`)."""
    if settings.config.service is not None:
        return settings, []
    openings = [(task.item, tuple(recipe.opening(task))) for task in recipe.tasks]
    items: list[EvalItem] = [replace(item, messages=messages) for item, messages in openings if messages]
    base = str(settings.config.base_model)
    try:
        return with_room(settings, [base], {}, items)
    except ConfigError as error:
        if settings.config.recipe != "questions":
            raise
        size = settings.config.passage_chars
        fix = f"Lower passage_chars (now {size:,})" if size > LEAST_PASSAGE else "Use a model with a longer context"
        raise ConfigError(error.problem, where=error.where, fix=fix) from error


def _files(config: GenerationConfig) -> Sequence[Path]:
    documents = document_files(Path(config.documents)) if config.documents else []
    named = (config.prompts, config.teacher_prompt_file, config.rubric)
    return [*documents, *(Path(name) for name in named if name)]


def _warnings(config: GenerationConfig) -> list[str]:
    warnings: list[str] = []
    service, judge = config.service, config.judge
    if service is not None:
        what = "takes no seed" if service.kind == "anthropic" else "need not keep to the seed it is sent"
        warnings.append(f"{service.name} {what}: a new job writes other rows, a resumed one keeps what was written")
    if judge is not None and family_of(judge.model) == family_of(service.model if service else str(config.base_model)):
        warnings.append(f"{judge.name} judges a model of its own family (judge.self_preference)")
    if judge is None and config.recipe == "questions":
        warnings.append("answers are checked by rule alone: the quote stands in the passage, and most words too")
    return warnings


async def check_services(config: GenerationConfig) -> None:
    """Look up the model and the judge that are behind services, with the keys at hand. Costs nothing.

    Raises:
        ResearcherError: If a key is missing or refused, a model is unknown or retired, or a service does not answer.
        MissingDependencyError: If the evals extra is not installed.
    """
    limits = CallLimits(64, config.model_timeout_s)
    asked: list[tuple[JudgeRef | None, str | None]] = [
        (config.service, config.model_base_url),
        (config.judge, config.judge_base_url),
    ]
    await check_judges(service_judge(ref, {}, limits, base_url=url) for ref, url in asked if ref and ref.is_service)
