"""The numbers of a benchmark: each model's score with its interval, and the paired difference to the baseline."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..statistics.hypothesis_tests import sign_test
from ..statistics.intervals import (
    Interval,
    MeanEstimate,
    alike_interval,
    mean_interval,
    mean_p_value,
    paired_interval,
    wilson_interval,
)


@dataclass(frozen=True, slots=True)
class ItemScores:
    """Scores by item (None: unscored), and the cluster of each item."""

    scores: Mapping[str, float | None]
    clusters: Mapping[str, str | None]


def benchmark_numbers(
    scores: Mapping[str, Mapping[str, ItemScores]], *, arms: Mapping[str, str], limit: float
) -> dict[str, Any]:
    """All numbers of ``metrics.json``.

    Args:
        scores: For each arm and scorer the scores.
        arms: The models by arm.
        limit: Share of unscored items above which there is no verdict.
    """
    found: dict[str, Any] = {"schema_version": 1, "arms": dict(arms), "scorers": {}}
    for name, mine in scores["model"].items():
        entry: dict[str, Any] = {arm: _arm(by_scorer[name]) for arm, by_scorer in scores.items() if name in by_scorer}
        theirs = scores.get("baseline", {}).get(name)
        entry["difference"] = _difference(mine, theirs, limit) if theirs is not None else None
        found["scorers"][name] = entry
    return found


def benchmark_text(numbers: Mapping[str, Any], *, task: str) -> str:
    """The numbers in a few lines."""
    lines: list[str] = []
    for name, entry in numbers["scorers"].items():
        for arm in ("model", "baseline"):
            if arm in entry:
                one = entry[arm]
                who = f"{arm} ({numbers['arms'][arm][-60:]})"
                lines.append(
                    f"{task}, {name}: {who} {_number(one['mean'])}, {_range(one['interval'])}, "
                    f"{one['n']} items in {one['units']} units, {one['unscored']} unscored."
                )
        if entry["difference"]:
            d = entry["difference"]
            lines.append(
                f"{d['verdict'].upper()}: model minus baseline {_number(d['mean'])}, {_range(d['interval'])}; paired, "
                f"{d['wins']} items better, {d['losses']} worse, {d['ties']} equal."
            )
    return "\n".join(lines)[:2000] + "\n"


def _arm(given: ItemScores) -> dict[str, Any]:
    scored = {item: s for item, s in given.scores.items() if s is not None}
    unscored = len(given.scores) - len(scored)
    if not scored:
        return {"mean": None, "interval": None, "n": 0, "units": 0, "unscored": unscored, "standard_error": None}
    values = list(scored.values())
    clusters = _clusters(list(scored), given.clusters)
    estimate = mean_interval(values, clusters=clusters)
    interval: Interval | None = estimate.interval
    if clusters is None and all(v in (0.0, 1.0) for v in values):
        interval = wilson_interval(sum(values), len(values))
    return {**_estimate(estimate, interval), "unscored": unscored}


def _difference(mine: ItemScores, theirs: ItemScores, limit: float) -> dict[str, Any]:
    first, second = mine.scores, theirs.scores
    both = [i for i in first if first[i] is not None and second.get(i) is not None]
    lost = len(first) - len(both)
    if not both:
        return {"mean": None, "interval": None, "n": 0, "wins": 0, "losses": 0, "ties": 0, "verdict": "no verdict"}
    a, b = [first[i] or 0.0 for i in both], [second[i] or 0.0 for i in both]
    estimate = paired_interval(a, b, clusters=_clusters(both, mine.clusters))
    differences = [x - y for x, y in zip(a, b, strict=True)]
    interval = estimate.interval or alike_interval(differences, low=-1.0, high=1.0, units=estimate.units)
    found = _estimate(estimate, interval)
    verdict = "no verdict" if lost > limit * len(first) else _verdict(interval)
    signs = sign_test(differences)
    return found | {
        "wins": signs.wins,
        "losses": signs.losses,
        "ties": signs.ties,
        "sign_test_p_value": signs.p_value,
        "p_value": mean_p_value(estimate, 0.0),
        "verdict": verdict,
    }


def _verdict(interval: Interval | None) -> str:
    if interval is None:
        return "not distinguishable"
    return "better" if interval.low > 0 else "worse" if interval.high < 0 else "not distinguishable"


def _estimate(estimate: MeanEstimate, interval: Interval | None) -> dict[str, Any]:
    return {
        "mean": estimate.mean,
        "standard_error": estimate.standard_error,
        "interval": None if interval is None else dict(interval._asdict()),
        "n": estimate.n,
        "units": estimate.units,
    }


def _clusters(items: Sequence[str], clusters: Mapping[str, str | None]) -> list[str] | None:
    if all(clusters.get(item) is None for item in items):
        return None
    return [f"c:{clusters[item]}" if clusters.get(item) is not None else f"i:{item}" for item in items]


def _number(value: float | None) -> str:
    return "unscored" if value is None else f"{value:.3f}"


def _range(interval: Mapping[str, Any] | None) -> str:
    return "no interval" if interval is None else f"95% interval {interval['low']:.3f} to {interval['high']:.3f}"
