"""The numbers of a benchmark: each model's score with its interval, and the paired difference to the baseline."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ...core.names import short_name
from ..results import NONE, Record, side_of, verdict_of
from ..statistics.estimates import Interval
from ..statistics.hypothesis_tests import sign_test
from ..statistics.intervals import cluster_labels, mean_interval, mean_p_value, scale_of
from ..verdict_text import interval_text, lines_within, test_text

_MAX_BYTES = 2000


@dataclass(frozen=True, slots=True)
class ItemScores:
    """Scores by item (None: unscored), and the cluster of each item."""

    scores: Mapping[str, float | None]
    clusters: Mapping[str, str | None]


class ArmScore(Record):
    """One model's mean score over ``n`` items in ``units`` independent units, with the items left unscored."""

    mean: float | None
    standard_error: float | None
    interval: Interval | None
    n: int
    units: int
    unscored: int


class PairedDifference(Record):
    """Model minus baseline, item by item; wins and losses are the model's."""

    mean: float | None
    standard_error: float | None = None
    interval: Interval | None
    n: int
    units: int | None = None
    wins: int
    losses: int
    ties: int
    sign_test_p_value: float | None = None
    p_value: float | None = None
    verdict: str


class ScorerNumbers(Record):
    """What one scorer gave: each model's score, and their difference where there is a baseline."""

    model: ArmScore
    baseline: ArmScore | None = None
    difference: PairedDifference | None


class BenchmarkNumbers(Record):
    """A benchmark's ``metrics.json``."""

    schema_version: int
    arms: Mapping[str, str]
    scorers: Mapping[str, ScorerNumbers]


def benchmark_numbers(
    scores: Mapping[str, Mapping[str, ItemScores]], *, arms: Mapping[str, str], limit: float
) -> BenchmarkNumbers:
    """All numbers of ``metrics.json``.

    Args:
        scores: For each arm and scorer the scores.
        arms: The models by arm.
        limit: Share of unscored items above which there is no verdict.
    """
    scorers: dict[str, ScorerNumbers] = {}
    for name, mine in scores["model"].items():
        theirs = scores.get("baseline", {}).get(name)
        if theirs is None:
            scorers[name] = ScorerNumbers(model=_arm(mine), difference=None)
        else:
            difference = _difference(mine, theirs, limit)
            scorers[name] = ScorerNumbers(model=_arm(mine), baseline=_arm(theirs), difference=difference)
    return BenchmarkNumbers(schema_version=1, arms=arms, scorers=scorers)


def benchmark_text(numbers: BenchmarkNumbers, *, task: str) -> str:
    """The numbers in a few lines."""
    lines: list[str] = []
    for name, scorer in numbers.scorers.items():
        for arm, score in (("model", scorer.model), ("baseline", scorer.baseline)):
            if score is not None:
                lines.append(
                    f"{task}, {name}: {arm} ({short_name(numbers.arms[arm])}) {_number(score.mean)}, "
                    f"{interval_text(score.interval)}, {score.n} items in {score.units} units, "
                    f"{score.unscored} unscored."
                )
        d = scorer.difference
        if d is not None:
            lines.append(
                f"{d.verdict.upper()}: model minus baseline {_number(d.mean)}, {interval_text(d.interval)}; paired, "
                f"{d.wins} items better, {d.losses} worse, {d.ties} equal; {test_text(d.sign_test_p_value)}."
            )
            side = side_of(d.interval, 0.0)
            if side and d.verdict not in (side, NONE):
                lines.append(f"Careful: the interval alone would say {side}, and the exact sign test does not agree.")
    return lines_within(lines, _MAX_BYTES)


def _arm(items: ItemScores) -> ArmScore:
    scored = {item: s for item, s in items.scores.items() if s is not None}
    unscored = len(items.scores) - len(scored)
    if not scored:
        return ArmScore(mean=None, standard_error=None, interval=None, n=0, units=0, unscored=unscored)
    values = list(scored.values())
    estimate = mean_interval(values, clusters=_clusters(list(scored), items), bounds=scale_of(values, 0.0, 1.0))
    return ArmScore(
        mean=estimate.mean,
        standard_error=estimate.standard_error,
        interval=estimate.interval,
        n=estimate.n,
        units=estimate.units,
        unscored=unscored,
    )


def _difference(mine: ItemScores, theirs: ItemScores, limit: float) -> PairedDifference:
    first, second = mine.scores, theirs.scores
    both = [(i, a, b) for i, a in first.items() if a is not None and (b := second.get(i)) is not None]
    if not both:
        return PairedDifference(mean=None, interval=None, n=0, wins=0, losses=0, ties=0, verdict=NONE)
    differences = [a - b for _, a, b in both]
    clusters = _clusters([i for i, _, _ in both], mine)
    estimate = mean_interval(differences, clusters=clusters, bounds=scale_of(differences, -1.0, 1.0))
    signs = sign_test(differences, clusters=clusters)
    too_many_lost = len(first) - len(both) > limit * len(first)
    return PairedDifference(
        mean=estimate.mean,
        standard_error=estimate.standard_error,
        interval=estimate.interval,
        n=estimate.n,
        units=estimate.units,
        wins=signs.wins,
        losses=signs.losses,
        ties=signs.ties,
        sign_test_p_value=signs.p_value,
        p_value=mean_p_value(estimate, 0.0),
        verdict=NONE if too_many_lost else verdict_of(estimate.interval, signs, 0.0),
    )


def _clusters(names: Sequence[str], items: ItemScores) -> list[str] | None:
    return cluster_labels({name: items.clusters.get(name) for name in names})


def _number(value: float | None) -> str:
    return "unscored" if value is None else f"{value:.3f}"
