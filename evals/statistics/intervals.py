"""Confidence intervals of means and rates: Wilson's on a scale with ends, Student's on one without.

The unit of analysis is one item (a prompt). Items that share a source are one cluster, and every function that takes
``clusters`` treats the cluster as the thing that was drawn at random. What is undefined is None, never zero.

Which interval where (`mean_interval`):

- Scores on a scale with ends, such as a win rate: Wilson's (1927) score interval, which never leaves the scale, with
  the number of items replaced by an effective one, items / design effect (Kish 1965, "Survey Sampling"; with Wilson's
  interval Dean and Pagano 2015, Franco, Little, Louis and Slud 2019, both Journal of Survey Statistics and
  Methodology): ties make it shorter, clusters longer. Without either it is Wilson's interval itself. With clusters the
  normal quantile becomes Student's with units - 1 degrees of freedom (Korn and Graubard 1998, Survey Methodology 24).
- Scores without ends, such as differences of graded scores: Student's, with clustered errors (Miller 2024).

``scripts/make_judge_tables.py`` measures their coverage; the table stands in docs/judge-eval.md.
"""
# pyright: basic
# reason: scipy.stats has no type information

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from .estimates import Interval, MeanEstimate

Bounds = tuple[float, float]


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
    values: Sequence[float] | NDArray[np.float64],
    *,
    clusters: Sequence[Hashable] | None = None,
    bounds: Bounds | None = None,
    level: float = 0.95,
) -> MeanEstimate:
    """The mean of ``values`` with its standard error and interval, clustered where labels are given.

    The clustered standard error sums residuals in each cluster (Miller 2024, arXiv 2411.00640, section 2.2) and
    carries the factor G / (G - 1) of G clusters, which the paper leaves out; with one item per cluster it is the
    ordinary standard error.

    Args:
        values: One number per item, shape [n].
        clusters: A label per item, or None.
        bounds: The ends of the scale, where it has some: Wilson's interval, else Student's (see the module).
        level: Confidence of the interval.

    Raises:
        ValueError: If there are no values, one is not finite or off the scale, or there is not one label per item.
    """
    x = _finite(values)
    n = len(x)
    codes = cluster_codes(clusters, n)
    units = int(codes.max()) + 1
    mean = float(x.mean())
    deviation = float(x.std(ddof=1)) if n > 1 else None
    if units < 2:
        return MeanEstimate(mean, None, None, n, units, deviation, bounds)
    residuals = np.bincount(codes, weights=x - mean, minlength=units)
    error = math.sqrt(float(residuals @ residuals) * units / (units - 1)) / n
    if bounds is not None:
        return _on_a_scale(x, codes, error, bounds, level)
    half = float(stats.t.ppf(0.5 + level / 2, units - 1)) * error
    method = "t" if units == n else "t, clustered"
    interval = Interval(mean - half, mean + half, level, method) if error > 0 else None
    return MeanEstimate(mean, error, interval, n, units, deviation)


def _on_a_scale(
    values: NDArray[np.float64], codes: NDArray[np.intp], error: float, bounds: Bounds, level: float
) -> MeanEstimate:
    low, high = bounds
    if values.min() < low or values.max() > high:
        raise ValueError(f"a value is off the scale of {low:g} to {high:g}")
    x = (values - low) / (high - low)
    n, sizes = len(x), np.bincount(codes)
    units, mean = len(sizes), float(x.mean())
    inflation = 1.0
    if units < n:
        inflation = float(cluster_inflation((error / (high - low)) ** 2, x.var(), sizes))
    size = float(effective_size(n, mean, float((x * x).mean()), inflation))
    deviation = float(values.std(ddof=1))
    estimate = MeanEstimate(float(values.mean()), error, None, n, units, deviation, bounds, size)
    quantile = float(_law(n, units).ppf(0.5 + level / 2))
    if x.min() == x.max():
        # So large a share of others may have been missed (Wilson's bound), and these may lie at either end.
        missed = quantile**2 / (units + quantile**2)
        ends, method = (mean * (1 - missed), mean + missed * (1 - mean)), "Wilson, all alike"
    else:
        ends = wilson_ends(mean, size, quantile)
        method = "Wilson, clustered" if units < n else "Wilson" if set(x) == {0.0, 1.0} else "Wilson, effective size"
    lower, upper = (low + (high - low) * float(end) for end in ends)
    return replace(estimate, interval=Interval(lower, upper, level, method))


def cluster_inflation(
    squared_error: NDArray[np.float64] | float, variance: NDArray[np.float64] | float, sizes: NDArray[np.intp]
) -> NDArray[np.float64]:
    """By how much clusters inflate the variance of a mean; of arrays, element by element.

    Args:
        squared_error: The clustered standard error, squared.
        variance: The variance of the items; where it is 0 the clusters are taken to agree entirely.
        sizes: Items in each cluster, shape [clusters].

    Returns:
        At most what clusters that agree entirely would give, and at least 1 / clusters.
    """
    n, most = sizes.sum(), float((sizes**2).sum() / sizes.sum())
    variance = np.asarray(variance, dtype=float)
    safe = np.where(variance > 0, variance, 1.0)
    return np.where(variance > 0, np.clip(squared_error * n / safe, 1 / len(sizes), most), most)


def effective_size(
    n: int,
    mean: NDArray[np.float64] | float,
    mean_square: NDArray[np.float64] | float,
    inflation: NDArray[np.float64] | float,
) -> NDArray[np.float64]:
    """How many independent wins and losses say as much as ``n`` scores of 0 to 1; of arrays, element by element.

    That is n / design effect, the variance of the scores over that of wins and losses of the same mean. Half a win and
    half a loss are added for it: a few scores that all lie near one end show too little of their variance.

    Args:
        n: Items.
        mean: The mean score.
        mean_square: The mean of the squared scores.
        inflation: Of the variance by clusters (`cluster_inflation`); 1 without.
    """
    m, square = (n * np.asarray(mean) + 0.5) / (n + 1), (n * np.asarray(mean_square) + 0.5) / (n + 1)
    return n * m * (1 - m) / ((square - m * m) * inflation)


def wilson_ends(
    mean: NDArray[np.float64] | float, n: NDArray[np.float64] | float, quantile: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The ends of Wilson's score interval (Wilson 1927) of a mean of 0 to 1; of arrays, element by element.

    Args:
        mean: The mean.
        n: Items, or the effective size.
        quantile: 1.96 for 95% (Student's where the variance was estimated from few clusters).
    """
    p, q2 = np.asarray(mean, dtype=float), quantile * quantile
    centre = (p + q2 / (2 * n)) / (1 + q2 / n)
    half = quantile / (1 + q2 / n) * np.sqrt(np.maximum(p * (1 - p), 0) / n + q2 / (4 * n * n))
    # At the ends rounding would leave 1e-17 instead of 0.
    return np.where(p <= 0, 0.0, np.maximum(centre - half, 0)), np.where(p >= 1, 1.0, np.minimum(centre + half, 1))


def mean_p_value(estimate: MeanEstimate, null: float) -> float | None:
    """Two-sided p-value that the true mean is ``null``, of the test that the estimate's interval inverts.

    Returns:
        None where the estimate has no interval.
    """
    if estimate.interval is None or not estimate.units > 1:
        return None
    if estimate.bounds is None:
        assert estimate.standard_error
        return float(2 * stats.t.sf(abs(estimate.mean - null) / estimate.standard_error, estimate.units - 1))
    assert estimate.effective_n is not None
    low, high = estimate.bounds
    p, mean = (null - low) / (high - low), (estimate.mean - low) / (high - low)
    if estimate.deviation == 0:
        share = (mean - p) / mean if mean > p else (p - mean) / (1 - mean) if p > mean else 0.0
        z = math.sqrt(estimate.units * share / (1 - share))
    else:
        z = abs(mean - p) / math.sqrt(p * (1 - p) / estimate.effective_n)
    return float(2 * _law(estimate.n, estimate.units).sf(z))


def scale_of(values: Sequence[float], low: float, high: float) -> Bounds | None:
    """The scale's ends where they limit these values: all lie between them, and one lies at an end or all are equal.

    Graded scores far from both ends are better served by Student's interval: `effective_size` would add a whole win and
    loss to a variance that is much smaller.
    """
    inside = all(low <= value <= high for value in values)
    limited = any(value in (low, high) for value in values) or len(set(values)) == 1
    return (low, high) if inside and limited else None


def wilson_interval(successes: float, n: int, *, level: float = 0.95) -> Interval | None:
    """Wilson's score interval for a rate (Wilson 1927).

    Returns:
        None without observations.

    Raises:
        ValueError: If ``successes`` lies outside of 0 to ``n``.
    """
    if not 0 <= successes <= n:
        raise ValueError(f"wilson_interval: {successes} successes of {n}")
    if n == 0:
        return None
    low, high = wilson_ends(successes / n, n, float(stats.norm.ppf(0.5 + level / 2)))
    return Interval(float(low), float(high), level, "Wilson")


def _law(n: int, units: int) -> Any:
    """What a mean's distance from the truth is measured against: normal, or Student's where items form clusters."""
    return stats.norm if units == n else stats.t(units - 1)


def _finite(values: Sequence[float] | NDArray[np.float64]) -> NDArray[np.float64]:
    x = np.asarray(values, dtype=float)
    if x.ndim != 1 or len(x) == 0:
        raise ValueError(f"one number per item is needed, and at least one item; got shape {x.shape}")
    if not np.isfinite(x).all():
        raise ValueError("a value is not a finite number: leave unscored items out")
    return x
