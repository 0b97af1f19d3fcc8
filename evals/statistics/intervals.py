"""Intervals for means and rates: t, clustered t, cluster bootstrap, Wilson.

The unit of analysis is one item (a prompt). Items that share a source are one cluster, and every function that takes
``clusters`` treats the cluster as the thing that was drawn at random. What is undefined is None, never zero.
"""
# pyright: basic
# reason: scipy.stats has no type information

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from .estimates import Interval, MeanEstimate

_CHUNK = 1_000_000  # indices drawn at once in a bootstrap: 12 MB with the values they select


def cluster_labels(clusters: Mapping[str, str | None]) -> list[str] | None:
    """A label per item, from the cluster of each; an item without one is independent. None where no item has one."""
    if all(cluster is None for cluster in clusters.values()):
        return None
    return [f"i:{item}" if cluster is None else f"c:{cluster}" for item, cluster in clusters.items()]


def cluster_codes(clusters: Sequence[Hashable] | None, n: int) -> NDArray[np.intp]:
    """A code per item, equal for items of one cluster, shape [n]; ``clusters`` None makes each item its own.

    This is the only definition of a cluster.

    Raises:
        ValueError: If there is not one label per item.
    """
    if clusters is None:
        return np.arange(n)
    if len(clusters) != n:
        raise ValueError(f"cluster_codes: {len(clusters)} cluster labels for {n} items")
    seen: dict[Hashable, int] = {}
    return np.array([seen.setdefault(label, len(seen)) for label in clusters], dtype=np.intp)


def mean_interval(
    values: Sequence[float] | NDArray[np.float64], *, clusters: Sequence[Hashable] | None = None, level: float = 0.95
) -> MeanEstimate:
    """The mean of ``values`` with Student's interval, clustered where labels are given.

    The clustered standard error sums residuals in each cluster (Miller 2024, arXiv 2411.00640, section 2.2) and
    carries the factor G / (G - 1) of G clusters, which the paper leaves out; with one item per cluster it is the
    ordinary standard error.

    Args:
        values: One number per item, shape [n].
        clusters: A label per item, or None.
        level: Confidence of the interval.
    """
    x = _finite(values)
    n = len(x)
    codes = cluster_codes(clusters, n)
    units = int(codes.max()) + 1
    mean = float(x.mean())
    deviation = float(x.std(ddof=1)) if n > 1 else None
    if units < 2:
        return MeanEstimate(mean, None, None, n, units, deviation)
    residuals = np.bincount(codes, weights=x - mean, minlength=units)
    error = math.sqrt(float(residuals @ residuals) * units / (units - 1)) / n
    half = float(stats.t.ppf(0.5 + level / 2, units - 1)) * error
    method = "t" if units == n else "t, clustered"
    interval = Interval(mean - half, mean + half, level, method) if error > 0 else None
    return MeanEstimate(mean, error, interval, n, units, deviation)


def mean_p_value(estimate: MeanEstimate, null: float) -> float | None:
    """Two-sided p-value of Student's test that the true mean is ``null``; None where the error is 0 or undefined."""
    if not estimate.standard_error:
        return None
    return float(2 * stats.t.sf(abs(estimate.mean - null) / estimate.standard_error, estimate.units - 1))


def paired_interval(
    first: Sequence[float],
    second: Sequence[float],
    *,
    clusters: Sequence[Hashable] | None = None,
    level: float = 0.95,
) -> MeanEstimate:
    """`mean_interval` of the item-by-item differences ``first - second``.

    Raises:
        ValueError: If the two have not the same length.
    """
    if len(first) != len(second):
        raise ValueError(f"paired_interval: {len(first)} and {len(second)} values cannot be paired")
    return mean_interval(
        np.asarray(first, dtype=float) - np.asarray(second, dtype=float), clusters=clusters, level=level
    )


def bootstrap_interval(
    values: Sequence[float] | NDArray[np.float64],
    rng: np.random.Generator,
    *,
    clusters: Sequence[Hashable] | None = None,
    draws: int = 2000,
    level: float = 0.95,
) -> Interval | None:
    """Cluster bootstrap of the mean: whole clusters are drawn with replacement.

    The percentile interval is too narrow for few units; the quantiles are widened as Hesterberg (2015, "What teachers
    should know about the bootstrap", section 4.3.4) proposes, so that for normal data it has Student's width.

    Returns:
        None with fewer than two units, or when all draws are equal.
    """
    x = _finite(values)
    codes = cluster_codes(clusters, len(x))
    units = int(codes.max()) + 1
    if units < 2:
        return None
    sums = np.bincount(codes, weights=x, minlength=units).astype(float)
    counts = np.bincount(codes, minlength=units).astype(float)
    means = np.concatenate([_drawn_means(sums, counts, rng, k) for k in _chunks(draws, units)])
    widened = math.sqrt(units / (units - 1)) * float(stats.t.ppf(0.5 - level / 2, units - 1))
    tail = float(stats.norm.cdf(widened))
    low, high = np.quantile(means, [tail, 1 - tail])
    if low == high:
        return None
    return Interval(float(low), float(high), level, "cluster bootstrap, widened percentile")


def wilson_interval(successes: float, n: float, *, level: float = 0.95) -> Interval | None:
    """Wilson's score interval for a rate (Wilson 1927); ``successes`` may be half-integral where ties count half.

    Returns:
        None without observations.

    Raises:
        ValueError: If ``successes`` lies outside of 0 to ``n``.
    """
    if not 0 <= successes <= n:
        raise ValueError(f"wilson_interval: {successes} successes of {n}")
    if n == 0:
        return None
    z = float(stats.norm.ppf(0.5 + level / 2))
    p = successes / n
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return Interval(max(0.0, centre - half), min(1.0, centre + half), level, "Wilson")


def degenerate_interval(
    values: Sequence[float], *, low: float, high: float, units: int, level: float = 0.95
) -> Interval | None:
    """An interval for the mean when all values are equal, where Student's has no width and would read as certainty.

    Values that all lie at one end of their range count as that many successes: the interval is Wilson's bound for
    their share, with the rest assumed to lie at the other end.

    Args:
        values: One number per item, shape [n].
        low: Lower end of the range.
        high: Upper end of the range.
        units: Independent units among the items.
        level: Confidence.

    Returns:
        None for values inside the range, and with fewer than two units.
    """
    if units < 2 or len(set(values)) != 1 or values[0] not in (low, high):
        return None
    share = wilson_interval(units, units, level=level)
    assert share is not None
    reach = (high - low) * share.low
    ends = (low + reach, high) if values[0] == high else (low, high - reach)
    return Interval(*ends, level, "Wilson, all alike")


def _finite(values: Sequence[float] | NDArray[np.float64]) -> NDArray[np.float64]:
    x = np.asarray(values, dtype=float)
    if x.ndim != 1 or len(x) == 0:
        raise ValueError(f"one number per item is needed, and at least one item; got shape {x.shape}")
    if not np.isfinite(x).all():
        raise ValueError("a value is not a finite number: leave unscored items out")
    return x


def _chunks(draws: int, units: int) -> list[int]:
    size = max(1, _CHUNK // units)
    return [min(size, draws - start) for start in range(0, draws, size)]


def _drawn_means(
    sums: NDArray[np.float64], counts: NDArray[np.float64], rng: np.random.Generator, draws: int
) -> NDArray[np.float64]:
    drawn = rng.integers(0, len(sums), size=(draws, len(sums)), dtype=np.int32)
    totals = sums[drawn].sum(axis=1)
    if (counts == counts[0]).all():
        return totals / (counts[0] * len(sums))
    return totals / counts[drawn].sum(axis=1)
