"""The exact sign test of paired outcomes, and correction for several tests.

"Exact" means here one thing only: the sign test on the binomial distribution, or on its counterpart for clusters.
"""
# pyright: basic
# reason: scipy.stats has no type information

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from .intervals import cluster_codes


class SignTest(NamedTuple):
    """The exact two-sided sign test.

    Attributes:
        wins: Items decided for the first.
        losses: Items decided for the second.
        ties: Items not decided; they say nothing about which is better and are left out.
        p_value: Of the hypothesis that neither side is favoured; None without a decided item.
    """

    wins: int
    losses: int
    ties: int
    p_value: float | None


def sign_test(differences: Sequence[float], *, clusters: Sequence[Hashable] | None = None) -> SignTest:
    """Count positive, negative and zero differences, and test them exactly; for 0/1 grades this is McNemar's test.

    Without clusters wins among the decided are binomial. With clusters, wins minus losses of each cluster keep or
    change their sign together, each with probability one half (the sign-flipping test, Fisher 1935, section 21; for
    whole blocks Winkler et al. 2014, NeuroImage 92); one item per cluster gives the binomial again.

    Args:
        differences: One number per item, shape [n]; only its sign counts.
        clusters: A label per item, or None.

    Raises:
        ValueError: If there is not one label per item.
    """
    signs = np.sign(np.asarray(differences, dtype=float)).astype(int)
    wins, losses = int((signs > 0).sum()), int((signs < 0).sum())
    codes = cluster_codes(clusters, len(signs))
    p = None
    if wins + losses and (clusters is None or int(codes.max()) + 1 == len(signs)):
        p = float(stats.binomtest(wins, wins + losses).pvalue)
    elif wins + losses:
        p = _flipped_together(np.bincount(codes, weights=signs).astype(int))
    return SignTest(wins, losses, len(signs) - wins - losses, p)


def _flipped_together(sums: NDArray[np.int_]) -> float:
    """P(|sum of the clusters with random signs| >= |their sum|), by adding one cluster after the other."""
    observed = abs(int(sums.sum()))
    sizes = np.abs(sums[sums != 0])
    chance = np.ones(1)  # of each value of the sum over the clusters that keep a plus
    for size in sizes:
        kept = np.zeros(len(chance) + size)
        kept[: len(chance)] += chance / 2
        kept[size:] += chance / 2
        chance = kept
    totals = 2 * np.arange(len(chance)) - int(sizes.sum())
    return min(1.0, float(chance[np.abs(totals) >= observed].sum()))


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's (1979) step-down adjusted p-values, in the order given; each at most 1.

    The smallest of m is multiplied by m, the next by m - 1, and so on; none may fall below the one before it.
    """
    m = len(p_values)
    adjusted = [0.0] * m
    running = 0.0
    for rank, index in enumerate(sorted(range(m), key=lambda i: p_values[i])):
        running = max(running, min(1.0, (m - rank) * p_values[index]))
        adjusted[index] = running
    return adjusted


def equal_rates_test(table: Sequence[tuple[int, int]]) -> float | None:
    """p-value that the rows of ``(missing, present)`` counts share one rate.

    Fisher's exact test for two rows, chi-square for more (where the exact test would take too long).

    Returns:
        None with fewer than two rows, or when nothing or everything is missing.
    """
    if len(table) < 2 or sum(a for a, _ in table) == 0 or sum(b for _, b in table) == 0:
        return None
    if len(table) == 2:
        exact: Any = stats.fisher_exact([list(row) for row in table])
        return float(exact[1])
    chi2: Any = stats.chi2_contingency([list(row) for row in table])
    return float(chi2[1])
