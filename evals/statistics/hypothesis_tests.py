"""Exact tests of paired outcomes, and correction for several of them."""
# pyright: basic
# reason: scipy.stats has no type information

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from scipy import stats


class SignTest(NamedTuple):
    """The exact two-sided sign test.

    Attributes:
        wins: Items decided for the first.
        losses: Items decided for the second.
        ties: Items not decided; they say nothing about which is better and are left out.
        p_value: Of the hypothesis that wins and losses are equally likely; None without a decided item.
    """

    wins: int
    losses: int
    ties: int
    p_value: float | None


def sign_test(differences: Sequence[float]) -> SignTest:
    """Count positive, negative and zero differences, and test them with the exact binomial distribution."""
    wins = sum(d > 0 for d in differences)
    losses = sum(d < 0 for d in differences)
    p = float(stats.binomtest(wins, wins + losses).pvalue) if wins + losses else None
    return SignTest(wins, losses, len(differences) - wins - losses, p)


def mcnemar_test(first: Sequence[bool], second: Sequence[bool]) -> SignTest:
    """McNemar's exact test for two models graded right or wrong on the same items.

    Raises:
        ValueError: If the two differ in length.
    """
    if len(first) != len(second):
        raise ValueError(f"mcnemar_test: {len(first)} and {len(second)} grades cannot be paired")
    return sign_test([int(a) - int(b) for a, b in zip(first, second, strict=True)])


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
