"""Bradley-Terry strengths of several models, and a win rate adjusted for length."""
# pyright: basic
# reason: statsmodels and scipy have no type information

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from .estimates import Interval
from .intervals import cluster_codes

_ITERATIONS = 10_000
_TOLERANCE = 1e-10
_STEEPEST = 15.0  # log-odds for one standard deviation; beyond it the fit runs off to infinity


class PairScore(NamedTuple):
    """One judged pair: its two models and the first one's score (1 won, 0.5 tie, 0 lost)."""

    first: str
    second: str
    score: float


class LengthAdjusted(NamedTuple):
    """A win rate at equal length.

    Attributes:
        rate: The expected score when both answers are of one length.
        interval: Its interval, cluster-robust, or None where the model cannot be fitted.
        raw: The plain mean score beside it.
        slope: Log-odds for one standard deviation of length difference; positive means that longer answers win.
        slope_p_value: Of no effect of length.
        n: Items.
    """

    rate: float
    interval: Interval | None
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
    out here. Scores of one half are fractions of a success (quasi-likelihood), and standard errors are cluster-robust.

    Args:
        scores: 0 to 1 for each item, shape [n].
        length_differences: Tuned minus baseline, in characters or tokens, shape [n].
        clusters: A label per item, or None.
        level: Confidence.

    Returns:
        None with fewer than ten items, equal differences, or scores that are all equal or determined by length alone.
    """
    y, d = np.asarray(scores, dtype=float), np.asarray(length_differences, dtype=float)
    spread = float(d.std())
    if len(y) < 10 or spread == 0 or y.min() == y.max():
        return None
    fitted = _fit_logistic(y, d / spread, cluster_codes(clusters, len(y)))
    if fitted is None:
        return None
    params, errors, units = fitted
    half = float(stats.t.ppf(0.5 + level / 2, units - 1)) * errors[0]
    low, high = _expit(params[0] - half), _expit(params[0] + half)
    p_value = float(2 * stats.t.sf(abs(params[1]) / errors[1], units - 1)) if errors[1] > 0 else None
    interval = Interval(low, high, level, "logistic, cluster-robust")
    return LengthAdjusted(_expit(params[0]), interval, float(y.mean()), float(params[1]), p_value, len(y))


def _fit_logistic(
    y: NDArray[np.float64], x: NDArray[np.float64], codes: NDArray[np.intp]
) -> tuple[NDArray[np.float64], NDArray[np.float64], int] | None:
    import warnings

    from statsmodels.genmod.families import Binomial
    from statsmodels.genmod.generalized_linear_model import GLM
    from statsmodels.tools.sm_exceptions import PerfectSeparationError, PerfectSeparationWarning

    units = int(codes.max()) + 1
    if units < 3:
        return None
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("error", PerfectSeparationWarning)
        warnings.simplefilter("ignore", UserWarning)
        try:
            model = GLM(y, np.column_stack([np.ones(len(y)), x]), family=Binomial())
            fitted = model.fit(cov_type="cluster", cov_kwds={"groups": codes})
        except (PerfectSeparationError, PerfectSeparationWarning, np.linalg.LinAlgError):
            return None
    # (Nearly) perfect separation: length determines the score, so there is no such thing as the score at equal length.
    if float(fitted.deviance) < 1e-4 * len(y) or abs(float(fitted.params[1])) > _STEEPEST:
        return None
    errors = np.asarray(fitted.bse)
    return (np.asarray(fitted.params), errors, units) if np.isfinite(errors).all() else None


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
