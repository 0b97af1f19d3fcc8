"""What was meant before a run started (hypothesis, metric, stop rule, plan), and what the run answers."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..core.errors import ConfigError
from ..jobs.experiment_plan import load_plan, rung_of
from .diagnosis import Change, Diagnosis, measure_change
from .metric_names import ALIASES
from .runs import Run

KEYS = ("hypothesis", "primary_metric", "stop_rule")
# Words in the name of a metric for which more is better.
_HIGHER = ("accuracy", "reward", "margin", "score", "win", "entropy", "exact", "correct")


@dataclass(frozen=True, slots=True)
class Experiment:
    """The plan of an experiment, as its config holds it; None where it says nothing.

    ``place``: what its plan file was for, and where on its ladder this run stands with what comes next.
    """

    hypothesis: str | None
    primary_metric: str | None
    stop_rule: str | None
    place: tuple[str, str] | None = None


def experiment_of(config: dict[str, Any]) -> Experiment | None:
    """The plan in a run's config, or None if there is none."""
    hypothesis, metric, stop = (str(config[k]).strip() if config.get(k) else None for k in KEYS)
    place = _place(Path(str(config["plan_file"])), config) if config.get("plan_file") else None
    plan = Experiment(hypothesis, metric, stop, place)
    return plan if plan != Experiment(None, None, None) else None


def _place(file: Path, config: dict[str, Any]) -> tuple[str, str]:
    try:
        plan = load_plan(file)
    except ConfigError as error:
        return f"Plan: {file.name}", f"It cannot be read any more: {error}"
    rung = rung_of(plan, config)
    if rung is None:
        return f"Plan: {plan.goal}", "This run is on no rung of its ladder."
    names = [each.rung for each in plan.ladder]
    following = names[names.index(rung.rung) + 1 :]
    effect = plan.smallest_difference
    then = (
        f"If so, next is {following[0]}."
        if following
        else f"Next is {plan.evaluation} with this job as finetuned_model. What matters is a win rate of "
        f"{0.5 + effect.points:.0%}; {effect.prompts_needed} prompts show it, and {effect.prompts_there} are there."
    )
    return f"Plan: {plan.goal}", f"Rung {rung.rung}, which decides: {rung.decides}. {then}"


def lower_is_better(metric: str) -> bool:
    """Whether a fall of this metric is a gain, by its name."""
    return not any(word in metric.lower() for word in _HIGHER)


def primary_change(run: Run, metric: str) -> Change | None:
    """How far the primary metric moved, or None if it was not logged."""
    quantity = next((q for q, names in ALIASES.items() if metric in names and q in run.series), metric)
    series = run.get(quantity, least=2)
    if series is None or (quantity != metric and series.name != metric):
        return None
    return measure_change(series, lower=lower_is_better(metric))


def answer_to(plan: Experiment, diagnosis: Diagnosis) -> list[tuple[str, str]]:
    """The plan's parts, each with what the run says to it."""
    rows: list[tuple[str, str]] = [plan.place] if plan.place else []
    metric = plan.primary_metric
    change = primary_change(diagnosis.run, metric) if metric else diagnosis.change
    named = metric or (change.metric if change else "any known metric")
    if diagnosis.failure is not None:
        verdict = f"The run failed, so it cannot answer: {diagnosis.failure}."
    elif change is None:
        verdict = f"{named} was not logged, so the run cannot answer."
    else:
        verdict = (
            f"{named}: {change.first:.4g} to {change.last:.4g}, {change.word} (noise floor {change.floor:.2g}; best "
            f"{change.best:.4g} at step {change.best_step}). One run on one seed: compare_runs with a baseline and a "
            "second seed decides."
        )
    if plan.hypothesis:
        rows.append((f"Hypothesis: {plan.hypothesis}", verdict))
    elif metric:
        rows.append((f"Primary metric: {metric}", verdict))
    if plan.stop_rule:
        run = diagnosis.run
        planned = f" of {run.planned_steps}" if run.planned_steps else ""
        rows.append(
            (f"Stop rule: {plan.stop_rule}", f"The run ended at step {run.last_step}{planned}; see the findings below.")
        )
    return rows
