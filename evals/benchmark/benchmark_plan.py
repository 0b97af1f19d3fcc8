"""What a benchmark will do, worked out before it starts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ...core.errors import ConfigError, DataError
from ...core.extras import require_packages
from ...core.paths import user_path
from ...core.settings import Origin, Settings
from ...data.sources import data_source
from ...judges.prompt import EvalItem
from ..answer_room import with_room
from ..inputs import resolve_arm
from ..test_set import load_items, unread_keys, worked_solutions
from .benchmark_config import BenchmarkConfig, grader_may_cost, grader_price

_GRADING_PROMPT_TOKENS = 800  # Inspect's instructions, a question of ordinary length and its criterion
_GRADE_TOKENS = 400  # some steps of reasoning and the grade


@dataclass(frozen=True, slots=True)
class BenchmarkPlan:
    """A benchmark ready to start.

    Attributes:
        settings: The config with absolute paths and a name.
        items: Items, or None when only the task knows.
        answers: Answers to sample, or None.
        grader_usd: What the grader may cost: 0 without one that is paid, None where it is not known.
        grader_note: How that was estimated, and the day of the prices.
        bills_elsewhere: Whether the grader may cost money.
        files: The task's file, if it is one.
        warnings: What to know before starting.
    """

    settings: Settings[BenchmarkConfig]
    items: int | None
    answers: int | None
    grader_usd: float | None
    grader_note: str
    bills_elsewhere: bool
    files: tuple[Path, ...]
    warnings: tuple[str, ...] = ()


def plan_benchmark(settings: Settings[BenchmarkConfig], bases: Mapping[str, str] | None = None) -> BenchmarkPlan:
    """Check everything that can be checked without running the task.

    Args:
        settings: The config, with job ids already resolved to checkpoints.
        bases: The base models of tinker:// paths, as far as they are known.

    Raises:
        ResearcherError: For a task or model that does not exist here.
        MissingDependencyError: If Inspect, or the package of the task, is not installed.
    """
    require_packages("evals", by="a benchmark")
    settings = _named(_with_paths(settings))
    for key in ("finetuned_model", "baseline_model"):
        model: str | None = getattr(settings.config, key)
        if model is not None and resolve_arm(key, model).file is not None:
            raise ConfigError(
                "a benchmark samples its models: a file of answers is for run_judge_eval", where=settings.place(key)
            )
    items = _items(settings.config)
    settings, warnings = with_room(settings, list(settings.config.arms.values()), bases or {}, items)
    config = settings.config
    count = len(items) if items is not None else config.num_samples
    path = _path(config)
    files = (path,) if items is not None or path.is_file() else ()
    answers = None if count is None else count * config.epochs * len(config.arms)
    usd, note = _grader_cost(config, answers)
    if items is not None:
        warnings += unread_keys(path)
        if config.scorer in {"exact", "includes"}:
            warnings += worked_solutions(items, f"scorer {config.scorer}")
    return BenchmarkPlan(settings, count, answers, usd, note, grader_may_cost(config), files, tuple(warnings))


def _with_paths(settings: Settings[BenchmarkConfig]) -> Settings[BenchmarkConfig]:
    """Paths made absolute, since the worker runs in another folder; rows of the hub are fetched."""
    changes: dict[str, tuple[Any, Origin]] = {"task": _task(settings)}
    output = settings.config.output_dir
    if output is not None:
        changes["output_dir"] = (str(user_path(output).absolute()), settings.origins["output_dir"])
    return settings.derived(changes)


def _path(config: BenchmarkConfig) -> Path:
    """The file of a task, or the rows."""
    return Path(config.task if config.has_rows else config.task.split("@")[0])


def _task(settings: Settings[BenchmarkConfig]) -> tuple[str, Origin]:
    config, origin = settings.config, settings.origins["task"]
    if config.has_rows:
        source = data_source(config.task, where=settings.place("task"), bases=settings.bases)
        return str(source.path), origin.model_copy(update={"reason": source.facts})
    file, at, name = config.task.partition("@")
    if file.endswith(".py"):
        return f"{settings.data_file('task', file)}{at}{name}", origin
    package = file.split("/")[0]
    if "/" not in file or find_spec(package) is None:
        raise ConfigError(
            f"there is no task '{config.task}' here",
            where=settings.place("task"),
            fix=f"Give a task.py, data rows with a scorer, or install the package '{package}' that holds it",
        )
    return config.task, origin


def _items(config: BenchmarkConfig) -> list[EvalItem] | None:
    """The items of data rows; None where the task has its own."""
    if not config.has_rows:
        return None
    items = load_items(Path(config.task), config.num_samples, config.seed)
    without = next((item for item in items if item.reference is None), None)
    if without is not None:
        raise DataError(
            "a benchmark compares with a reference, and this row has none",
            where=f"{Path(config.task).name}:{without.line}",
            fix='Add "reference" to each row',
        )
    return items


def _grader_cost(config: BenchmarkConfig, answers: int | None) -> tuple[float | None, str]:
    if not grader_may_cost(config) or answers is None:
        return 0.0, "no grader is paid per call"
    price = grader_price(config)
    if price is None:
        return None, f"no price of {config.judge_model} here; give judge_price: {{input: .., output: ..}}"
    tokens_in = _GRADING_PROMPT_TOKENS + config.max_response_tokens
    usd = answers * price.cost(tokens_in, _GRADE_TOKENS)
    return usd, f"at most about {tokens_in:,} tokens in and {_GRADE_TOKENS} out per answer, prices of {price.as_of}"


def _named(settings: Settings[BenchmarkConfig]) -> Settings[BenchmarkConfig]:
    """A name for the job when the user gave none: the task's."""
    if settings.config.run_name is not None:
        return settings
    name = _path(settings.config).stem
    return settings.derived({"run_name": (name, Origin(kind="derived", reason="the task's name"))})
