"""What a generation job will do, worked out before it starts: sources, requests, tokens, and what they cost."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..backends.connection import connect
from ..backends.estimate import CHARS_PER_TOKEN, CostEstimate
from ..backends.meter import Usage
from ..backends.prices import load_prices
from ..core.errors import ConfigError, StorageError
from ..core.paths import require_creatable, user_path
from ..core.settings import Origin, Settings
from ..data.sources import data_source
from ..evals.answer_room import with_room
from ..evals.judge_config import family_of
from ..judges.base import check_judges
from ..judges.judge_catalog import JudgeRef, Price, judge_price
from ..judges.prompt import EvalItem
from ..judges.services import CallLimits, service_judge
from ..models.model_ref import resolve_model
from .documents import document_files
from .generation_config import LEAST_PASSAGE, GenerationConfig
from .jury import VERDICT_TOKENS, prompter_of
from .recipe import Recipe
from .recipes import load_recipe
from .writers import backend_price, price_of_judge, prompt_tokens

_TEMPERATURE = 0.7
# Shares of max_response_tokens that answers have at the low end and as expected; at the high end all of it.
_LOW, _EXPECTED = 0.1, 0.5
_READ_RECIPES = frozenset({"questions", "rewrites", "eval_kit"})  # their first answers may have to be asked for again
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
    work = _Work.of(config, recipe)
    _require_cap(settings, work)
    service, judge = config.service, config.judge
    url, judge_url = (
        given or os.environ.get("OPENAI_BASE_URL") for given in (config.model_base_url, config.judge_base_url)
    )
    billed = (service is not None and service.may_cost(url)) or (judge is not None and judge.may_cost(judge_url))
    sampled = [] if service else [config.weights]
    return GenerationPlan(
        settings=settings,
        tasks=len(recipe.tasks),
        answers=work.answers,
        judge_calls=work.judge_calls,
        cost=work.cost(),
        service_tokens=work.tokens(_EXPECTED) if service else (0, 0),
        bills_elsewhere=billed,
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
        source = Path(str(config.documents or config.prompts))
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


@dataclass(frozen=True, slots=True)
class _Work:
    """How much there is to ask.

    Attributes:
        config: The resolved settings.
        told: Tokens of the requests to the model, where every answer can be read.
        shortest: Tokens of the shortest first request.
        answers: Answers to them.
        per_task: Answers for one task.
        judge_calls: Questions to the judge at most.
        calls_per_task: Those on one task.
        judge_told: Tokens of one question to the judge.
    """

    config: GenerationConfig
    told: int
    shortest: int
    answers: int
    per_task: int
    judge_calls: int
    calls_per_task: int
    judge_told: float

    @classmethod
    def of(cls, config: GenerationConfig, recipe: Recipe) -> _Work:
        """Count it."""
        openings = [prompt_tokens(messages) for task in recipe.tasks if (messages := recipe.opening(task))]
        calls, judge_told = _judging(config, recipe)
        return cls(
            config,
            # Samples of one prompt are one request on a backend, which is told the prompt once.
            told=sum(openings) * (1 if config.recipe == "preferences" and not config.service else recipe.answers),
            shortest=min(openings),
            answers=len(openings) * recipe.answers,
            per_task=recipe.answers,
            judge_calls=calls * len(openings),
            calls_per_task=calls,
            judge_told=judge_told,
        )

    def tokens(self, share: float, *, tries: int = 1) -> tuple[int, int]:
        """Tokens in and out, with answers of this share of what they may have."""
        return self.told * tries, round(self.answers * self.config.max_response_tokens * share) * tries

    def cost(self) -> CostEstimate:
        """US dollars of writing and judging; None where a price is unknown."""
        config, table = self.config, load_prices()
        tries = config.tries if config.recipe in _READ_RECIPES else 1
        ends = [self.tokens(_LOW), self.tokens(_EXPECTED), self.tokens(1.0, tries=tries)]
        usage = Usage() if config.service else Usage(prefill=ends[1][0], sample=ends[1][1])
        unknown = [who for who, price, charged in _prices(config) if charged and price is None]
        day = str(table.as_of)
        if unknown:
            note = f"unknown: no price of {unknown[0]} here ({_price_key(config, unknown[0])})"
            return CostEstimate(None, None, None, usage, day, None, note)
        writing, judging = (price for _, price, _ in _prices(config))
        if writing is None and judging is None:
            return CostEstimate(0.0, 0.0, 0.0, usage, None, None, "free: neither the model nor the judge has a price")
        sums = [writing.cost(*each) if writing else 0.0 for each in ends]
        verdicts = (VERDICT_TOKENS // 2, VERDICT_TOKENS, VERDICT_TOKENS * 2)
        if judging is not None:
            sums = [
                s + self.judge_calls * judging.cost(self.judge_told, out) for s, out in zip(sums, verdicts, strict=True)
            ]
        days = sorted({price.as_of for price in (writing, judging) if price})
        note = f"answers of {_EXPECTED:.0%} of max_response_tokens"
        return CostEstimate(sums[0], sums[1], sums[2], usage, ", ".join(days), None, note)

    def most_of_a_row(self) -> float:
        """US dollars that the cheapest source could cost, every answer as long as it may be."""
        (_, writing, _), (_, judging, _) = _prices(self.config)
        row = writing.cost(self.shortest, self.config.max_response_tokens) * self.per_task if writing else 0.0
        judged = judging.cost(self.judge_told, self.config.judge_max_tokens) * self.calls_per_task if judging else 0.0
        return row + judged


def _judging(config: GenerationConfig, recipe: Recipe) -> tuple[int, float]:
    """Questions to the judge on one task at most, and the tokens of one."""
    if config.judge is None:
        return 0, 0.0
    prompter = prompter_of(config)
    pairwise = config.recipe == "preferences"
    samples = config.samples_per_prompt
    each = config.questions_per_passage if config.recipe == "questions" else 1
    chars = sum(len(task.item.prompt_text) + len(task.item.reference or "") for task in recipe.tasks) / len(
        recipe.tasks
    )
    fixed = len(prompter.system) + len(json.dumps(prompter.schema)) + 600
    answers = (2 if pairwise else 1) * config.max_response_tokens * _EXPECTED
    return samples * (samples - 1) if pairwise else each, (fixed + chars) / CHARS_PER_TOKEN + answers


def _prices(config: GenerationConfig) -> Sequence[tuple[str, Price | None, bool]]:
    """Of the model and of the judge: its name, its price, and whether it is charged for."""
    charges = load_prices().charges(config.backend)
    service, judge = config.service, config.judge
    if service is not None:
        written = judge_price(service, config.model_price)
        writer = (service.name, written, service.may_cost(_openai(config.model_base_url)))
    else:
        writer = (str(config.base_model), backend_price(config.backend, str(config.base_model)), charges)
    if judge is None:
        return writer, ("", None, False)
    charged = charges if judge.kind == "tinker" else judge.may_cost(_openai(config.judge_base_url))
    return writer, (judge.name, price_of_judge(judge, config.judge_price, config.backend), charged)


def _openai(base_url: str | None) -> str | None:
    return base_url or os.environ.get("OPENAI_BASE_URL")


def _price_key(config: GenerationConfig, name: str) -> str:
    if config.judge is not None and name == config.judge.name:
        return "give judge_price: {input: .., output: ..}"
    return "give model_price: {input: .., output: ..}" if config.service else "add it to prices.yaml"


def _require_cap(settings: Settings[GenerationConfig], work: _Work) -> None:
    """Refuse a cap that means nothing, cannot be held, or does not pay for one row.

    Raises:
        ConfigError: If it is one of these.
    """
    config = settings.config
    if config.max_cost_usd is None:
        return
    where = settings.place("max_cost_usd")
    prices = _prices(config)
    unknown = next((name for name, price, charged in prices if charged and price is None), None)
    if unknown is not None:
        fix = f"To hold a cap, {_price_key(config, unknown)}; or remove max_cost_usd"
        raise ConfigError(f"the price of {unknown} is unknown, so a cap cannot be held", where=where, fix=fix)
    if all(price is None for _, price, _ in prices):
        raise ConfigError("neither the model nor the judge has a price, so a cap means nothing", where=where)
    most = work.most_of_a_row()
    if most > config.max_cost_usd:
        raise ConfigError(
            f"one row could cost ${most:.4g}, and the cap is ${config.max_cost_usd:g}: none would be written",
            where=where,
            fix="Raise it, or lower max_response_tokens",
        )


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
