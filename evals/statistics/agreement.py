"""How far judges agree with each other and with people, and what that does to a rate."""
# pyright: basic
# reason: scipy.stats has no type information

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable, Sequence
from typing import NamedTuple

from scipy import stats

from .estimates import Interval


class JudgeAccuracy(NamedTuple):
    """A judge against people, on items both decided.

    Attributes:
        true_positive_rate: Of those people gave to the first model, the share the judge gave it too; None without any.
        true_negative_rate: The same for the second model.
        positives: Items people gave to the first model.
        negatives: Items people gave to the second.
    """

    true_positive_rate: float | None
    true_negative_rate: float | None
    positives: int
    negatives: int


class CorrectedRate(NamedTuple):
    """A judged rate corrected for the judge's errors, cut to 0..1, with its interval."""

    rate: float
    interval: Interval
    raw: float


def krippendorff_alpha(ratings: Sequence[Sequence[Hashable | None]]) -> float | None:
    """Krippendorff's alpha for nominal categories, any number of raters, missing ratings allowed.

    alpha = 1 - observed disagreement / expected disagreement, over pairs of ratings of one item (Krippendorff 2011,
    "Computing Krippendorff's alpha-reliability").

    Args:
        ratings: For each item one rating per judge; None where it gave none.

    Returns:
        None when no item has two ratings, or when all ratings are equal (nothing to agree by chance about).
    """
    rated = [Counter(r for r in item if r is not None) for item in ratings]
    paired = [counts for counts in rated if counts.total() > 1]
    totals: Counter[Hashable] = sum(paired, Counter())
    n = totals.total()
    if n == 0 or len(totals) < 2:
        return None
    observed = sum(
        (m * m - sum(c * c for c in counts.values())) / (m - 1) for counts in paired for m in [counts.total()]
    )
    expected = (n * n - sum(c * c for c in totals.values())) / (n - 1)
    return 1 - observed / expected


def judge_accuracy(judged: Sequence[bool], labelled: Sequence[bool]) -> JudgeAccuracy:
    """A judge's accuracy from its verdicts ("the first is better") and people's, item by item.

    Raises:
        ValueError: If the two differ in length.
    """
    if len(judged) != len(labelled):
        raise ValueError(f"judge_accuracy: {len(judged)} verdicts for {len(labelled)} labels")
    on_positive = [j for j, label in zip(judged, labelled, strict=True) if label]
    on_negative = [not j for j, label in zip(judged, labelled, strict=True) if not label]
    return JudgeAccuracy(
        sum(on_positive) / len(on_positive) if on_positive else None,
        sum(on_negative) / len(on_negative) if on_negative else None,
        len(on_positive),
        len(on_negative),
    )


def rogan_gladen(successes: int, n: int, accuracy: JudgeAccuracy, *, level: float = 0.95) -> CorrectedRate | None:
    """The true rate behind a judged one: (p + TNR - 1) / (TPR + TNR - 1) (Rogan and Gladen 1978).

    The interval is that of Lang and Reiczigel (2014), which carries the uncertainty of TPR and TNR too and keeps its
    coverage in small samples by adding pseudo-observations.

    Args:
        successes: Items judged for the first model.
        n: Items judged.
        accuracy: The judge against people, on a labelled sample.
        level: Confidence.

    Returns:
        None without labels on both sides, or when the judge is no better than chance (TPR + TNR <= 1).
    """
    tpr, tnr = accuracy.true_positive_rate, accuracy.true_negative_rate
    if n == 0 or tpr is None or tnr is None or tpr + tnr <= 1:
        return None
    p = successes / n
    z = float(stats.norm.ppf(0.5 + level / 2))
    m1, m0 = accuracy.positives + 2, accuracy.negatives + 2
    se, sp = (accuracy.positives * tpr + 1) / m1, (accuracy.negatives * tnr + 1) / m0
    youden = se + sp - 1
    if youden <= 0:
        return None
    size = n + z * z
    shrunk = (n * p + z * z / 2) / size
    centre = (shrunk + sp - 1) / youden
    variance = shrunk * (1 - shrunk) / size + centre**2 * se * (1 - se) / m1 + (1 - centre) ** 2 * sp * (1 - sp) / m0
    shift = 2 * z * z * (centre * se * (1 - se) / m1 - (1 - centre) * sp * (1 - sp) / m0)
    half = z * math.sqrt(variance) / youden
    interval = Interval(_unit(centre + shift - half), _unit(centre + shift + half), level, "Lang-Reiczigel")
    return CorrectedRate(_unit((p + tnr - 1) / (tpr + tnr - 1)), interval, p)


def _unit(value: float) -> float:
    return min(1.0, max(0.0, value))
