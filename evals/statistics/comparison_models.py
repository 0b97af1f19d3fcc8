"""Bradley-Terry strengths of several models, and a win rate adjusted for length."""
# pyright: basic
# reason: scipy has no type information

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from .estimates import Interval
from .intervals import cluster_codes

_ITERATIONS = 10_000
_TOLERANCE = 1e-10
SEPARATED = 0.9  # a feature that tells so many winners leaves nothing to tell apart from it


class PairScore(NamedTuple):
    """One judged pair: its two models and the first one's score (1 won, 0.5 tie, 0 lost)."""

    first: str
    second: str
    score: float


class LengthAdjusted(NamedTuple):
    """A win rate at equal length.

    Attributes:
        rate: The expected score when both answers are of one length.
        interval: Its interval, cluster-robust.
        raw: The plain mean score beside it.
        slope: Log-odds for one standard deviation of length difference; positive means that longer answers win.
        slope_p_value: Of no effect of length.
        n: Items.
    """

    rate: float
    interval: Interval
    raw: float
    slope: float
    slope_p_value: float | None
    n: int


def bradley_terry(comparisons: Sequence[PairScore], *, prior: float = 0.0) -> dict[str, float] | None:
    """Strengths in log-odds, centred at zero, by the minorisation of Hunter (2004, equation 3); ties are half-wins.

    P(i beats j) = exp(s_i) / (exp(s_i) + exp(s_j)).

    Args:
        comparisons: Judged pairs.
        prior: Imaginary ties between every two models; above zero it keeps strengths finite for a model that won or
            lost everything.

    Returns:
        None when the strengths are not finite: some group of models never lost to, or never met, the rest.
    """
    names = sorted({c.first for c in comparisons} | {c.second for c in comparisons})
    wins = _win_matrix(comparisons, names, prior)
    if len(names) < 2 or not _connected(wins):
        return None
    games, totals = wins + wins.T, wins.sum(axis=1)
    strength = np.ones(len(names))
    for _ in range(_ITERATIONS):
        updated = totals / (games / (strength[:, None] + strength[None, :])).sum(axis=1)
        updated /= np.exp(np.log(updated).mean())
        moved = float(np.abs(np.log(updated) - np.log(strength)).max())
        strength = updated
        if moved < _TOLERANCE:
            break
    return dict(zip(names, np.log(strength).tolist(), strict=True))


def bradley_terry_intervals(
    items: Sequence[Sequence[PairScore]],
    rng: np.random.Generator,
    *,
    clusters: Sequence[Hashable] | None = None,
    draws: int = 200,
    level: float = 0.95,
) -> dict[str, Interval] | None:
    """Bootstrap intervals of the strengths: whole items (or clusters) are drawn, so the pairs of one stay together.

    Args:
        items: For each item its judged pairs.
        rng: Source of randomness.
        clusters: A label per item, or None.
        draws: Bootstrap samples.
        level: Confidence.

    Returns:
        None when the strengths themselves are undefined.
    """
    if bradley_terry([c for item in items for c in item], prior=0.5) is None:
        return None
    codes = cluster_codes(clusters, len(items))
    members: list[list[int]] = [[] for _ in range(int(codes.max()) + 1)]
    for index, code in enumerate(codes):
        members[code].append(index)
    samples: dict[str, list[float]] = {}
    for _ in range(draws):
        drawn = rng.integers(0, len(members), size=len(members))
        pairs = [c for unit in drawn for index in members[unit] for c in items[index]]
        for name, value in (bradley_terry(pairs, prior=0.5) or {}).items():
            samples.setdefault(name, []).append(value)
    tails = [0.5 - level / 2, 0.5 + level / 2]
    ends = {name: np.quantile(values, tails) for name, values in samples.items()}
    return {name: Interval(float(e[0]), float(e[1]), level, "cluster bootstrap") for name, e in ends.items()}


def length_adjusted(
    scores: Sequence[float],
    length_differences: Sequence[float],
    *,
    clusters: Sequence[Hashable] | None = None,
    level: float = 0.95,
) -> LengthAdjusted | None:
    """The win rate at equal length: a logistic model of the score on the standardised length difference.

    logit E[score] = a + b x d / sd(d); the adjusted rate is expit(a). AlpacaEval 2 (Dubois et al. 2024, arXiv
    2404.04475) also fits a difficulty for each of its own prompts; that needs many models on one prompt set and is left
    out here. Scores of one half are fractions of a success (quasi-likelihood). The fit is Firth's, which stays finite
    where length alone decides (see `_fit_firth`). Standard errors are cluster-robust, or the model's own where those
    are larger: under separation the residuals, and the robust errors with them, vanish.

    Args:
        scores: 0 to 1 for each item, shape [n].
        length_differences: Tuned minus baseline, in characters or tokens, shape [n].
        clusters: A label per item, or None.
        level: Confidence.

    Returns:
        None with fewer than ten items, fewer than three units, or equal differences.
    """
    y, d = np.asarray(scores, dtype=float), np.asarray(length_differences, dtype=float)
    spread = float(d.std())
    codes = cluster_codes(clusters, len(y))
    units = int(codes.max()) + 1
    if len(y) < 10 or spread == 0 or units < 3:
        return None
    x = np.column_stack([np.ones(len(y)), d / spread])
    params, covariance = _fit_firth(y, x)
    robust = _cluster_robust(y, x, params, covariance, codes)
    separated = rank_agreement(y - 0.5, length_differences) is not None
    own = np.sqrt(np.diag(covariance))
    errors = np.maximum(robust, own) if separated or y.min() == y.max() else robust
    half = float(stats.t.ppf(0.5 + level / 2, units - 1)) * errors[0]
    interval = Interval(_expit(params[0] - half), _expit(params[0] + half), level, "logistic (Firth), cluster-robust")
    p_value = float(2 * stats.t.sf(abs(params[1]) / errors[1], units - 1)) if errors[1] > 0 else None
    return LengthAdjusted(_expit(params[0]), interval, float(y.mean()), float(params[1]), p_value, len(y))


def rank_agreement(effects: Sequence[float] | NDArray[np.float64], feature: Sequence[float]) -> float | None:
    """How well one feature alone tells the decided items' winners, where it nearly does.

    Two measures, of which the larger counts, and either way round: the share of items whose winner is the side with
    more of the feature, and the chance that a won item has a larger difference than a lost one (the area under the ROC
    curve), which sees a threshold other than zero too.

    Args:
        effects: Above zero where the first side won, below where it lost, shape [n].
        feature: The first side's excess of the feature, shape [n].

    Returns:
        The larger measure from `SEPARATED` on, negative where having less of the feature wins; None below that, with
        fewer than ten decided items, or where chance would do it in one of a hundred evaluations.
    """
    won, d = np.sign(np.asarray(effects, dtype=float)), np.asarray(feature, dtype=float)
    won, d = won[won != 0], d[won != 0]
    if len(won) < 10:
        return None
    found: list[float] = []
    agree, apart = int((won * d > 0).sum()), int((d != 0).sum())
    if apart >= 0.9 * len(won) and stats.binomtest(agree, apart).pvalue < 0.01:
        found += [agree / apart, agree / apart - 1]
    first, second = d[won > 0], d[won < 0]
    if len(first) and len(second):
        test = stats.mannwhitneyu(first, second)
        area = float(test.statistic) / (len(first) * len(second))
        if test.pvalue < 0.01:
            found += [area, area - 1]
    strongest = max(found, key=abs, default=0.0)
    return strongest if abs(strongest) >= SEPARATED else None


def _fit_firth(y: NDArray[np.float64], x: NDArray[np.float64]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Logistic regression with Firth's penalty: its coefficients and their covariance, the inverse information.

    The score equations are sum (y - p + h (1/2 - p)) x = 0 with the leverages h (Firth 1993, Biometrika 80; Heinze and
    Schemper 2002, Statistics in Medicine 21, for separation): finite for all data. Newton steps are cut to length 2 and
    halved while the penalised likelihood falls. Libraries (firthmodels 0.8) take outcomes of 0 and 1 alone, and ties
    are scores of one half.
    """
    beta = np.zeros(x.shape[1])
    value = _penalised(y, x, beta)
    for _ in range(200):
        p = 1 / (1 + np.exp(-(x @ beta)))
        weighted = x * (p * (1 - p))[:, None]
        covariance = np.linalg.inv(x.T @ weighted)
        leverage = np.einsum("ij,jk,ik->i", x, covariance, weighted)
        step = covariance @ (x.T @ (y - p + leverage * (0.5 - p)))
        step *= min(1.0, 2.0 / max(float(np.abs(step).max()), 1e-12))
        while (moved := _penalised(y, x, beta + step)) < value - 1e-12 and np.abs(step).max() > 1e-9:
            step = step / 2
        beta, value = beta + step, moved
        if np.abs(step).max() < 1e-8:
            break
    p = 1 / (1 + np.exp(-(x @ beta)))
    return beta, np.linalg.inv(x.T @ (x * (p * (1 - p))[:, None]))


def _penalised(y: NDArray[np.float64], x: NDArray[np.float64], beta: NDArray[np.float64]) -> float:
    """The log-likelihood plus half the log-determinant of the information (Jeffreys' prior)."""
    z = x @ beta
    p = 1 / (1 + np.exp(-z))
    sign, determinant = np.linalg.slogdet(x.T @ (x * (p * (1 - p))[:, None]))
    if sign <= 0:
        return -math.inf
    return float(y @ z - np.logaddexp(0, z).sum() + determinant / 2)


def _cluster_robust(
    y: NDArray[np.float64],
    x: NDArray[np.float64],
    beta: NDArray[np.float64],
    covariance: NDArray[np.float64],
    codes: NDArray[np.intp],
) -> NDArray[np.float64]:
    """Sandwich standard errors with statsmodels' small-sample factor, G / (G - 1) x (n - 1) / (n - k)."""
    residuals = x * (y - 1 / (1 + np.exp(-(x @ beta))))[:, None]
    units, (n, k) = int(codes.max()) + 1, x.shape
    sums = np.column_stack([np.bincount(codes, weights=column, minlength=units) for column in residuals.T])
    factor = units / (units - 1) * (n - 1) / (n - k)
    return np.sqrt(np.diag(covariance @ (sums.T @ sums) @ covariance) * factor)


def _win_matrix(comparisons: Sequence[PairScore], names: Sequence[str], prior: float) -> NDArray[np.float64]:
    index = {name: i for i, name in enumerate(names)}
    wins = np.full((len(names), len(names)), prior / 2)
    np.fill_diagonal(wins, 0.0)
    for first, second, score in comparisons:
        wins[index[first], index[second]] += score
        wins[index[second], index[first]] += 1 - score
    return wins


def _connected(wins: NDArray[np.float64]) -> bool:
    """Whether every model can be reached from every other along wins (Ford's condition)."""
    from scipy.sparse.csgraph import connected_components

    return int(connected_components(wins > 0, directed=True, connection="strong")[0]) == 1


def _expit(value: float) -> float:
    return 1 / (1 + math.exp(-value))
