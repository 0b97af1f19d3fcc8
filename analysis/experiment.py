"""What was meant before a run started (hypothesis, primary metric, stop rule), and what the run answers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from .diagnosis import Change, Diagnosis, measure_change
from .metric_names import ALIASES
from .runs import Run

KEYS = ("hypothesis", "primary_metric", "stop_rule")
# Words in the name of a metric for which more is better.
_HIGHER = ("accuracy", "reward", "margin", "score", "win", "entropy", "exact", "correct")


@dataclass(frozen=True, slots=True)
class Experiment:
    """The plan of an experiment, as its config holds it; None where it says nothing."""

    hypothesis: str | None
    primary_metric: str | None
    stop_rule: str | None


def experiment_of(config: dict[str, Any]) -> Experiment | None:
    """The plan in a run's config, or None if there is none."""
    parts = [str(config[k]).strip() if config.get(k) else None for k in KEYS]
    return Experiment(*parts) if any(parts) else None


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
    rows: list[tuple[str, str]] = []
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
