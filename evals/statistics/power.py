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


# z(1 - alpha/2) + z(power) of 95% intervals and 80% power.
_QUANTILES = NormalDist().inv_cdf(0.975) + NormalDist().inv_cdf(0.8)


def minimal_detectable_effect(n: int, deviation: float) -> float | None:
    """The smallest true difference in the mean score that n items show with 80% power in a 95% interval.

    (z(1 - alpha/2) + z(power)) x sd / sqrt(n) + 2 x sd / n (Miller 2024, arXiv 2411.00640, section 5). The second term
    is a continuity correction: the exact test moves in steps of one item, which are 2 x sd without ties.

    Args:
        n: Items.
        deviation: Standard deviation of the item scores, from a pilot or a stated prior.

    Returns:
        None for fewer than two items.
    """
    if n < 2:
        return None
    return _QUANTILES * deviation / math.sqrt(n) + 2 * deviation / n


def items_needed(effect: float, deviation: float) -> int:
    """How many items show a difference of ``effect`` in the mean score (see `minimal_detectable_effect`).

    Raises:
        ValueError: If the effect is not above zero.
    """
    if effect <= 0:
        raise ValueError(f"items_needed: the effect must be above 0, got {effect}")
    quarter = _QUANTILES / 4
    root = math.sqrt(quarter**2 + effect / (2 * deviation)) - quarter  # 1 / sqrt(n), which solves that formula
    return math.ceil(1 / root**2 - 1e-9)
