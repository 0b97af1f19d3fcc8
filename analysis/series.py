"""One metric over steps, and the robust statistics that every finding is based on."""
# pyright: basic
# reason: ruptures has no types, and numpy's are too wide for strict mode to help in arithmetic

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
# Points a curve is reduced to before anything slower than linear looks at it.
REDUCED = 600
# Spikes looked at in one curve; a curve with more has another problem.
_MOST_SPIKES = 2000
_MAD_TO_SIGMA = 1.4826


@dataclass(frozen=True)
class Series:
    """One metric: its finite values in order of step, each step once.

    Attributes:
        name: The name it was logged under.
        steps: Steps, ascending, shape [n].
        values: Values, shape [n].
        lines: The line of the file each came from, shape [n].
        not_finite: (step, line) of the values that were nan or infinite.
    """

    name: str
    steps: NDArray[np.int64]
    values: Floats
    lines: NDArray[np.int64]
    not_finite: tuple[tuple[int, int], ...] = ()

    def __len__(self) -> int:
        return len(self.values)

    @cached_property
    def reduced(self) -> Series:
        """At most `REDUCED` points: means of equal stretches."""
        if len(self) <= REDUCED:
            return self
        edges = np.linspace(0, len(self), REDUCED + 1).astype(int)
        sizes = np.diff(edges)
        means = np.add.reduceat(self.values, edges[:-1]) / sizes
        middle = edges[:-1] + sizes // 2
        return Series(self.name, self.steps[middle], means, self.lines[middle])

    @cached_property
    def smooth(self) -> Floats:
        """The reduced values through a rolling median, then a rolling mean."""
        width = max(3, len(self.reduced) // 20) | 1
        return rolling_mean(rolling_median(self.reduced.values, width), width)

    @cached_property
    def noise(self) -> float:
        """The standard deviation of one reduced point around the trend (see `noise_of`)."""
        return noise_of(self.reduced.values)

    def part(self, low: float, high: float) -> Floats:
        """Reduced values of a stretch given as fractions of the run, at least one of them."""
        n = len(self.reduced)
        start = min(n - 1, int(low * n))
        return self.reduced.values[start : max(start + 1, int(np.ceil(high * n)))]

    def level(self, low: float, high: float) -> tuple[float, float]:
        """The median of a stretch and its standard error."""
        values = self.part(low, high)
        # The median of normal noise varies 1.25 times as much as its mean.
        return float(np.median(values)), 1.25 * self.noise / len(values) ** 0.5

    def at(self, index: int) -> tuple[int, int, float]:
        """Step, line and value of a reduced point."""
        r = self.reduced
        return int(r.steps[index]), int(r.lines[index]), float(r.values[index])


@dataclass(frozen=True, slots=True)
class Aligned:
    """One run's curve on a common axis: positions, values and trend, each of shape [n]."""

    name: str
    label: str
    x: Floats
    y: Floats
    smooth: Floats


def noise_of(values: Floats) -> float:
    """The standard deviation of the noise around any smooth trend: from second differences, robust against outliers.

    x[i-1] - 2 x[i] + x[i+1] of independent noise has 6 times its variance, and a straight trend drops out.
    """
    if len(values) < 4:
        return float(np.std(values)) if len(values) > 1 else 0.0
    second = np.diff(values, 2)
    return float(_MAD_TO_SIGMA * np.median(np.abs(second - np.median(second))) / 6**0.5)


def local_noise(values: Floats) -> Floats:
    """The noise around each point: of stretches (40, of 25 points at least), joined by straight lines; shape [n]."""
    n = len(values)
    edges = np.linspace(0, n, max(1, min(40, n // 25)) + 1).astype(int)
    levels = [noise_of(values[a:b]) for a, b in pairwise(edges)]
    return np.interp(np.arange(n), (edges[:-1] + edges[1:]) / 2, levels)


def rolling_median(values: Floats, width: int) -> Floats:
    """The median of ``width`` points around each one: fewer near the start, half the width behind at the end."""
    half = width // 2
    if len(values) <= width:
        return np.array([np.median(values[max(0, i - half) : i + half + 1]) for i in range(len(values))])
    inner = np.median(np.lib.stride_tricks.sliding_window_view(values, 2 * half + 1), axis=1)
    head = [np.median(values[: i + i + 1]) for i in range(half)]
    tail = [np.median(values[i - half :]) for i in range(len(values) - half, len(values))]
    return np.concatenate([head, inner, tail])


def rolling_mean(values: Floats, width: int) -> Floats:
    """The mean of ``width`` points around each one: fewer near the start, half the width behind at the end."""
    half = width // 2
    sums = np.concatenate([[0.0], np.cumsum(values)])
    index = np.arange(len(values))
    before = np.minimum(half, index)
    # A curve falls steeply at its start, where points to come would pull it down; its end is level.
    after = np.minimum(before, len(values) - 1 - index)
    return (sums[index + after + 1] - sums[index - before]) / (before + after + 1)


def change_points(values: Floats, *, noise: float, strength: float = 10.0) -> list[int]:
    """Where the level of a curve jumps: the first index after each jump (PELT, Killick et al. 2012, arXiv 1101.1438).

    Args:
        values: The curve, shape [n].
        noise: Standard deviation of one value around its level.
        strength: Penalty for a change point, in units of noise^2 log n.
    """
    import ruptures

    n = len(values)
    if n < 8 or noise <= 0:
        return []
    scaled = (values / noise).reshape(-1, 1)
    ends = ruptures.KernelCPD(kernel="linear", min_size=3).fit(scaled).predict(pen=strength * np.log(n))
    return [int(i) for i in (ends or [])[:-1]]


@dataclass(frozen=True, slots=True)
class Step:
    """A rise from one point to the next that stays for a while.

    Attributes:
        at: The index of the first reduced point after it.
        before: The level before it.
        after: The level of the first points after it.
        floor: No level up to ``end`` (medians of five points) lies below it.
        end: The index of the reduced point up to which ``floor`` was looked at.
    """

    at: int
    before: float
    after: float
    floor: float
    end: int


def sudden_rise(series: Series, *, apart_from: Sequence[int] = ()) -> Step | None:
    """The largest rise from one point to the next that stays; None where there is none.

    A loss that diverges climbs over many steps, one that meets other data jumps once. A hump comes back soon, the noise
    that counts is that of the stretch before, and a rise that is small against the fall of the whole curve is none.

    Args:
        series: A metric.
        apart_from: Steps at which a rise has another cause.
    """
    r, n = series.reduced, len(series.reduced)
    values = r.values
    if n < 24:
        return None
    width, stay = int(np.clip(n // 12, 6, 25)), max(6, n // 16)
    fall = float(np.max(series.smooth[: max(3, n // 20)]) - np.min(series.smooth))
    known = np.searchsorted(r.steps, list(apart_from))
    best: tuple[float, Step] | None = None
    for at in range(max(width, n // 10), n - 5):
        at_once = float(np.median(values[at : at + 3]) - np.median(values[at - 3 : at]))
        if at_once < 0.1 * fall or values[at] - values[at - 1] < 0.5 * at_once or np.any(np.abs(known - at) <= 3):
            continue
        before, after = float(np.median(values[at - width : at])), float(np.median(values[at : at + 5]))
        jump = after - before
        noise = max(noise_of(values[max(0, at - 2 * width) : at]), float(np.std(values[at - width : at])) / 2)
        if jump < max(6 * noise, 0.15 * abs(before), 0.1 * fall) or at_once < 0.6 * jump:
            continue
        end = min(n, at + stay)
        floor = float(np.min(rolling_median(values[at:end], 5)))
        later = values[end : end + 3 * stay]
        climbs = len(later) >= 5 and float(np.max(rolling_median(later, 5))) > after + 0.35 * jump
        if floor > before + 0.25 * jump and not climbs and (best is None or at_once > best[0]):
            best = at_once, Step(at, before, after, floor, end - 1)
    return best[1] if best is not None else None


@dataclass(frozen=True, slots=True)
class Spike:
    """One point far above its neighbours, with the higher median of its two sides (``usual``)."""

    step: int
    line: int
    value: float
    usual: float


def spikes(series: Series, *, sigmas: float, share: float) -> list[Spike]:
    """Points above both their sides by ``sigmas`` noise and by ``share`` of the level, highest first.

    The first twentieth is left out: a loss that falls steeply has no level there.
    """
    values, n = series.values, len(series)
    if n < 12:
        return []
    half = max(3, min(12, n // 40))
    trend = np.interp(np.arange(n), np.linspace(0, n - 1, len(series.reduced)), series.smooth)
    noise = sigmas * local_noise(values)
    # A bump that is small against the fall of the curve does not matter: a loss near zero is easily shaken. Nor is it a
    # spike where one point in ten stands a fifth as high: such a loss is rough throughout.
    rough = 5 * float(np.quantile(values - trend, 0.9))
    least = max(0.1 * float(np.ptp(series.smooth)), rough)
    candidates = np.flatnonzero(values - trend > 0.5 * np.maximum(noise, least))
    candidates = candidates[(candidates >= max(half, n // 20)) & (candidates < n - half)]
    by_height: list[tuple[float, Spike]] = []
    for i in candidates[np.argsort(-(values - trend)[candidates])][:_MOST_SPIKES]:
        usual = max(float(np.median(values[i - half : i])), float(np.median(values[i + 1 : i + 1 + half])))
        excess = float(values[i]) - usual
        if excess > max(float(noise[i]), share * abs(usual), least):
            by_height.append((excess, Spike(int(series.steps[i]), int(series.lines[i]), float(values[i]), usual)))
    return [spike for _, spike in sorted(by_height, key=lambda each: -each[0])]
