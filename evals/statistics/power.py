"""Planning: what difference a number of items can show, and how many items a difference needs.

The standard library alone: the server plans without numpy.
"""

from __future__ import annotations

import math
from statistics import NormalDist

# The largest standard deviation a score of 0, 1/2 or 1 can have: no ties, both sides win equally often.
WORST_DEVIATION = 0.5
# The same for a difference of two scores of 0 to 1.
WORST_DEVIATION_OF_DIFFERENCES = 1.0


def minimal_detectable_effect(
    n: float, deviation: float, *, power: float = 0.8, level: float = 0.95, design_effect: float = 1.0
) -> float | None:
    """The smallest true difference in the mean score that n items show with the given power.

    (z(1 - alpha/2) + z(power)) x sd / sqrt(n) + 2 x sd / n, n divided by the design effect (Miller 2024, arXiv
    2411.00640, section 5). The second term is a continuity correction: the exact test moves in steps of one item, which
    are 2 x sd without ties.

    Args:
        n: Items.
        deviation: Standard deviation of the item scores, from a pilot or a stated prior.
        power: Chance to see a difference that is there.
        level: Confidence of the interval used.
        design_effect: 1 + (cluster size - 1) x correlation in a cluster; 1 without clusters.

    Returns:
        None for fewer than two items.
    """
    if n < 2:
        return None
    size = n / design_effect
    return _quantiles(power, level) * deviation / math.sqrt(size) + 2 * deviation / size


def items_needed(
    effect: float, deviation: float, *, power: float = 0.8, level: float = 0.95, design_effect: float = 1.0
) -> int:
    """How many items show a difference of ``effect`` in the mean score (see `minimal_detectable_effect`).

    Raises:
        ValueError: If the effect is not above zero.
    """
    if effect <= 0:
        raise ValueError(f"items_needed: the effect must be above 0, got {effect}")
    quarter = _quantiles(power, level) / 4
    root = math.sqrt(quarter**2 + effect / (2 * deviation)) - quarter  # 1 / sqrt(n), which solves that formula
    return math.ceil(design_effect / root**2 - 1e-9)


def _quantiles(power: float, level: float) -> float:
    return NormalDist().inv_cdf(0.5 + level / 2) + NormalDist().inv_cdf(power)
