"""The ladder of a planned experiment: demo, smoke, small, real, each with its runs and what they cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..doctrine.rules import integer, number, rule
from ..jobs.experiment_plan import Decision, Rung, RungName

CONFIG = "experiment.yaml"


@dataclass(frozen=True, slots=True)
class Sized:
    """What one run of the real size processes.

    Attributes:
        steps: Its steps.
        tokens: Tokens to train (RL: to sample at most), or None where they cannot be counted.
        cost_usd: Its expected cost, or None where a price or a size is not known.
        cost_note: What the cost leaves out, or why there is none.
        rows: Its rows.
        decisions: Its settings with their rules.
        warnings: What its plan warns of.
        problem: Why it could not be planned in full, or None.
    """

    steps: int
    tokens: int | None
    cost_usd: float | None
    cost_note: str
    rows: int
    decisions: Mapping[str, Decision]
    warnings: tuple[str, ...]
    problem: str | None


@dataclass(frozen=True, slots=True)
class Ladder:
    """The rungs and the money.

    Attributes:
        rungs: From demo to real.
        cost_usd: Of all runs, or None where it is not known.
        note: What that leaves out, or why there is no figure.
        money: The part of the stop rule that is about money.
        cap_usd: What one run may cost at most, or None.
        unknown: What the budget leaves open.
    """

    rungs: tuple[Rung, ...]
    cost_usd: float | None
    note: str
    money: str
    cap_usd: float | None
    unknown: tuple[str, ...]


def ladder_of(sized: Sized, kind: str, budget_usd: float | None, *, charges: bool) -> Ladder:
    """The runs of an experiment, fitted to a budget by leaving out seeds, never by making a run shorter in silence.

    Args:
        sized: One run of the real size.
        kind: The kind of job.
        budget_usd: What all runs may cost, or None.
        charges: Whether the backend costs money.
    """
    seeds = integer("stats.seeds")
    rungs = _rungs(sized, kind, seeds)
    note, unknown = sized.cost_note, list[str]()
    if budget_usd is None or not charges:
        free = "" if budget_usd is None else f" The budget of ${budget_usd:g} is not needed."
        return Ladder(rungs, _cost(rungs), note + free, "", None, ())
    if sized.cost_usd is None:
        unknown.append(
            f"whether ${budget_usd:g} is enough: no figure ({note}). The smoke rung's job says what a step costs"
        )
        return Ladder(rungs, None, note, f"Money: ${budget_usd:g} in all.", None, tuple(unknown))
    while seeds > 1 and (_cost(rungs) or 0.0) > budget_usd:
        seeds -= 1
        rungs = _rungs(sized, kind, seeds)
    if seeds < integer("stats.seeds"):
        unknown.append(
            f"the spread between seeds: ${budget_usd:g} pays for {seeds} of {integer('stats.seeds')} (stats.seeds), so "
            "a small difference cannot be told from noise"
        )
    below = sum(rung.cost_usd or 0.0 for rung in rungs if rung.rung != "real")
    cap = max(0.0, budget_usd - below) / seeds
    if cap < sized.cost_usd:
        unknown.append(
            f"how it ends: ${budget_usd:g} does not pay for one real run of about ${sized.cost_usd:.3g} after "
            f"${below:.3g} for the rungs below; take fewer rows, a cheaper model, or a larger budget"
        )
    cap = float(f"{cap:.3g}") if cap >= 0.001 else budget_usd
    return Ladder(rungs, _cost(rungs), note, f"Money: ${budget_usd:g} in all.", cap, tuple(unknown))


def _cost(rungs: tuple[Rung, ...]) -> float | None:
    costs = [rung.cost_usd for rung in rungs]
    return None if None in costs else float(f"{sum(cost or 0.0 for cost in costs):.3g}")


def _rungs(sized: Sized, kind: str, seeds: int) -> tuple[Rung, ...]:
    ladder: Any = rule("workflow.ladder").value
    smoke = min(int(ladder["smoke_steps"]), sized.steps)
    small = min(int(ladder["small_steps"]), max(smoke, round(sized.steps * float(ladder["small_share"]))))
    factor = number("diagnosis.lr_step")
    decided = sized.decisions.get("learning_rate")
    rates = [decided.value / factor, decided.value, decided.value * factor] if decided else []
    tried: list[dict[str, Any]] = [{"num_steps": small, "learning_rate": float(f"{rate:.2g}")} for rate in rates]
    return (
        Rung(
            rung="demo",
            config=f"template://{kind}",
            runs=({"num_steps": smoke, "num_epochs": None},),
            decides="do config, calls and report fit together, on the packaged model and data",
            steps=smoke,
            tokens=None,
            cost_usd=0.0,
        ),
        _rung("smoke", [{"num_steps": smoke}], smoke, "do template, memory and price hold, does the loss move", sized),
        _rung("small", tried or [{"num_steps": small}], small, "is there an effect, and at which rate", sized),
        _rung("real", [{"seed": seed} for seed in range(seeds)], sized.steps, "the hypothesis", sized),
    )


def _rung(name: RungName, runs: Sequence[dict[str, Any]], steps: int, decides: str, sized: Sized) -> Rung:
    share = steps * len(runs) / sized.steps
    return Rung(
        rung=name,
        config=CONFIG,
        runs=tuple(runs),
        decides=decides,
        steps=steps,
        tokens=None if sized.tokens is None else round(sized.tokens * share),
        cost_usd=None if sized.cost_usd is None else float(f"{sized.cost_usd * share:.3g}"),
    )
