"""A planned experiment as a file: what was decided before any run, which runs follow, and whether a config keeps to it.

A training config names it under ``plan_file``. A start that contradicts it is refused, and the run's report answers it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from ..core.errors import ConfigError
from ..core.settings import Settings, load_settings
from ..core.validation import shown

PLAN_FILE = "plan.yaml"
RungName = Literal["demo", "smoke", "small", "real"]
# They are ways to say one thing: a config has either.
_LENGTHS = ("num_steps", "num_epochs")


class _Frozen(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Decision(_Frozen):
    """A decided setting. ``value`` None: it cannot be known yet, and ``why`` says what to measure."""

    value: Any = Field(description="The value, as a config has it")
    rule: str | None = Field(None, description="The rule that decided, or null")
    source: str | None = Field(None, description="Where the rule comes from")
    why: str = Field(description="The reason, from the data")


class Rung(_Frozen):
    """A step of the ladder. ``runs``: overrides of the config, one mapping for each run."""

    rung: RungName
    config: str = Field(description="A file beside the plan, or template://KIND")
    runs: tuple[dict[str, Any], ...] = Field(min_length=1)
    decides: str = Field(description="What the next rung waits for")
    steps: int = Field(description="Of each run")
    tokens: int | None = Field(description="Of all runs; null where they cannot be counted")
    cost_usd: float | None = Field(description="Of all runs; null where a price or a size is not known")


class Alternative(_Frozen):
    """Something else to take, and when."""

    take: str
    when: str


class SmallestDifference(_Frozen):
    """The smallest difference that matters, in points of win rate, and the prompts that show it with 80% power."""

    points: float
    prompts_needed: int
    prompts_there: int
    detectable_points: float | None = Field(description="What the prompts that are there show")
    why: str


class ExperimentPlan(_Frozen):
    """What an experiment is to show, by which settings and runs, at what cost, and when it ends."""

    goal: str
    method: str = Field(description="The kind of job: sft, dpo, grpo")
    method_rule: str
    method_why: str
    hypothesis: str
    primary_metric: str
    smallest_difference: SmallestDifference
    stop_rule: str
    asked: dict[str, Any] = Field(description="What the plan was asked for")
    settings: dict[str, Decision]
    ladder: tuple[Rung, ...]
    evaluation: str = Field(description="The config of the evaluation, beside the plan")
    cost_usd: float | None = Field(description="Of the whole ladder; null where it is not known")
    cost_note: str
    alternatives: tuple[Alternative, ...]
    unknown: tuple[str, ...] = Field(description="What is not known, and what to measure")
    data: tuple[str, ...] = Field(description="What was found in the data")


def load_plan(path: Path) -> ExperimentPlan:
    """Read a plan.

    Raises:
        ConfigError: If it is not there or is no plan, with its file and line.
    """
    return load_settings(ExperimentPlan, path, None, retired={}, default_rules={}, kinds=("experiment_plan",)).config


def require_kept(path: Path, kind: str, settings: Settings[Any]) -> None:
    """Refuse a job that contradicts its plan. A value that a run of the ladder has is no contradiction.

    Args:
        path: The plan.
        kind: The kind of job that is to start.
        settings: The job's settings, with everything derived.

    Raises:
        ConfigError: With the plan's value and the config's; or if the plan cannot be read.
    """
    plan = load_plan(path)
    if kind != plan.method:
        raise ConfigError(
            f"{path.name} plans {shown(plan.method)}, and '{kind}' is to be started",
            where=settings.place("plan_file"),
            fix="Start what is planned, or leave plan_file out",
        )
    given = settings.config.model_dump(mode="json")
    fixed = {key: each.value for key, each in plan.settings.items() if each.value is not None}
    fixed |= {"hypothesis": plan.hypothesis, "primary_metric": plan.primary_metric, "stop_rule": plan.stop_rule}
    runs = [run for rung in plan.ladder if not rung.config.startswith("template://") for run in rung.runs]
    for key, value in fixed.items():
        allowed = [value, *(run[key] for run in runs if key in run)]
        if key not in given or any(_same(each, given[key], path.parent) for each in allowed):
            continue
        if key in _LENGTHS and given[key] is None:
            continue
        raise ConfigError(
            f"{path.name} says {key} {shown(value)}, and this config {shown(given[key])}",
            where=settings.place(key),
            fix="Change the plan first, so that it stays the record of what was decided before the run; or leave "
            "plan_file out",
        )


def rung_of(plan: ExperimentPlan, config: Mapping[str, Any]) -> Rung | None:
    """The rung of the ladder that a run's config is on, or None: of those with all of its values the most particular.

    Values that are the plan's own tell no rungs apart; of two alike the first counts, since it is the same run.
    """
    decided = {key: each.value for key, each in plan.settings.items()}
    found = [
        (sum(decided.get(key) != value for key, value in run.items()), -at)
        for at, rung in enumerate(plan.ladder)
        if not rung.config.startswith("template://")
        for run in rung.runs
        if all(config.get(key) == value for key, value in run.items())
    ]
    return plan.ladder[-max(found)[1]] if found else None


def _same(planned: Any, given: Any, folder: Path) -> bool:
    if isinstance(planned, str) and isinstance(given, str) and planned != given:
        # A run's settings have absolute paths, the plan those beside it.
        return Path(given).is_absolute() and (folder / planned).resolve() == Path(given)
    return planned == given
