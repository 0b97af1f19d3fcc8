"""Several runs side by side: what was changed, what it changed, and whether that is more than noise."""
# pyright: basic
# reason: numpy arithmetic

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..core.errors import ConfigError, DataError
from .config_difference import ConfigDifference, config_difference
from .experiment import lower_is_better
from .failures import Failure, lasting_failure, until
from .findings import MetricPoint, RunFinding, finding, noise_factor
from .metric_names import ALIASES, LABELS, known_name
from .runs import Run
from .series import Aligned, Floats, Series, noise_of, rolling_mean, rolling_median

MOST_RUNS = 8
# The stretch at the end of which runs are compared, as a share of what they have in common.
_END = 0.2
_STEPS, _TOKENS = "step", "tokens trained"
_PREFERRED = ("val_reward", "val_loss", "val_accuracy", "reward", "train_loss")


@dataclass(frozen=True, slots=True)
class RunPair:
    """One run against the first.

    Attributes:
        run: Its name.
        difference: Its metric minus the first run's, over the end of what both have (same units as the metric);
            None where a run broke before two steps could be compared.
        floor: What the difference must exceed to be more than the noise of steps.
        points: Steps that were compared, value by value.
        at_tokens: The same difference at equal tokens, if both logged tokens.
        word: ``no difference beyond the noise``, ``lower``, ``higher``, ``improved``, ``worsened``, ``failed``.
        reading: The sentence that goes with it.
        left_out: Which steps were not compared, and why; empty where all were.
    """

    run: str
    difference: float | None
    floor: float | None
    points: int
    at_tokens: float | None
    word: str
    reading: str
    left_out: str = ""


@dataclass(frozen=True, slots=True)
class Comparison:
    """Several runs side by side; the first is the baseline. ``panels`` are pairs of an axis and the curves on it."""

    runs: tuple[Run, ...]
    metric: str
    lower_is_better: bool
    config: ConfigDifference
    seed_spread: float | None
    pairs: tuple[RunPair, ...]
    findings: tuple[RunFinding, ...]
    panels: tuple[tuple[str, tuple[Aligned, ...]], ...]


def compare(runs: Sequence[Run], metric: str | None = None) -> Comparison:
    """Compare each run with the first.

    Args:
        runs: Two to `MOST_RUNS` runs.
        metric: The metric as logged; None: the runs' primary metric, else the best one that all have.

    Raises:
        ConfigError: If there are too few or too many runs, or one is given twice.
        DataError: If no metric is common to all.
    """
    if not 2 <= len(runs) <= MOST_RUNS:
        raise ConfigError(f"{len(runs)} runs were given", where="runs", fix=f"Give 2 to {MOST_RUNS}")
    if len({run.file.resolve() for run in runs}) < len(runs):
        raise ConfigError("a run is given twice", where="runs", fix="Give different runs")
    quantity = _common(runs, metric)
    failures = [lasting_failure(run) for run in runs]
    # What a run logged after it broke counts for nothing.
    sound = [until(run, f.step) if f else run for run, f in zip(runs, failures, strict=True)]
    curves = [run.series.get(quantity) or _nothing(runs[i].series[quantity].name) for i, run in enumerate(sound)]
    lower = lower_is_better(curves[0].name)
    config = config_difference(runs)
    spread = _seed_spread(curves, config, failures)
    pairs = tuple(
        _failed_pair(runs, curves, failures, quantity, i)
        if failures[0] or failures[i]
        else _pair(runs, curves, quantity, i, config, spread, lower)
        for i in range(1, len(runs))
    )
    label = LABELS.get(quantity, curves[0].name)
    panels = [(axis, _panel(runs, curves, label, axis)) for axis in (_STEPS, _TOKENS)]
    return Comparison(
        runs=tuple(runs),
        metric=curves[0].name,
        lower_is_better=lower,
        config=config,
        seed_spread=spread,
        pairs=pairs,
        findings=tuple(_departures(curves, config)),
        panels=tuple((axis, aligned) for axis, aligned in panels if len(aligned) == len(runs)),
    )


def _common(runs: Sequence[Run], metric: str | None) -> str:
    planned = {str(run.config["primary_metric"]) for run in runs if run.config.get("primary_metric")}
    metric = known_name(metric)[0] or metric if metric else None
    wanted = metric or (planned.pop() if len(planned) == 1 else None)
    if wanted is not None:
        quantity = next((q for q, names in ALIASES.items() if wanted in names or wanted == q), wanted)
        if all(_logged(run, quantity) for run in runs):
            return quantity
        if metric is not None:
            missing = [run.name for run in runs if not _logged(run, quantity)]
            have = sorted({s.name for run in runs for s in run.series.values()})[:12]
            raise DataError(f"{', '.join(missing)} did not log it", where=metric, fix=f"Logged: {', '.join(have)}")
    for quantity in _PREFERRED:
        if all(_logged(run, quantity) for run in runs):
            return quantity
    each = "; ".join(f"{run.name}: {', '.join(s.name for s in list(run.series.values())[:4])}" for run in runs)
    raise DataError(f"the runs have no metric in common ({each})", fix="Compare runs of one kind, or give metric")


def _logged(run: Run, quantity: str) -> bool:
    """Whether a metric was logged twice at least, as a number or not: a run that broke at once is compared too."""
    series = run.series.get(quantity)
    return series is not None and len(series) + len(series.not_finite) >= 2


def _nothing(name: str) -> Series:
    return Series(name, np.empty(0, np.int64), np.empty(0), np.empty(0, np.int64))


def _left_out(runs: Sequence[Run], quantity: str, i: int) -> str:
    """Which steps of either run were not compared, and why."""
    logged = [runs[k].series[quantity] for k in (0, i)]
    broken = [lasting_failure(runs[k]) for k in (0, i)]
    ends = [f.step if f else None for f in broken]
    usable = [s.steps[s.steps < end] if end is not None else s.steps for s, end in zip(logged, ends, strict=True)]
    both = np.intersect1d(usable[0], usable[1])
    parts: list[str] = []
    for mine, k, other in ((0, 0, 1), (1, i, 0)):
        all_steps = np.union1d(logged[mine].steps, np.array([s for s, _ in logged[mine].not_finite], np.int64))
        missing = np.setdiff1d(all_steps, both)
        if not len(missing) or not len(both):
            continue
        why = _why_missing(logged, broken, (mine, other), [runs[0].name, runs[i].name], missing)
        parts.append(f"{len(missing)} of {len(all_steps)} steps of {runs[k].name} ({why})")
    return "left out: " + "; ".join(parts) if parts else ""


def _why_missing(
    logged: Sequence[Series],
    broken: Sequence[Failure | None],
    sides: tuple[int, int],
    names: Sequence[str],
    missing: np.ndarray,
) -> str:
    mine, other = sides
    failed = [(f.step, f"from step {f.step} on {f.metric} of {names[k]} {f.what}") for k, f in enumerate(broken) if f]
    if failed:
        return min(failed)[1]
    for k in (mine, other):
        if {step for step, _ in logged[k].not_finite} & set(missing.tolist()):
            return f"{logged[k].name} of {names[k]} is not a number there"
    if len(logged[other]) and missing[0] > logged[other].steps[-1]:
        return f"{names[other]} ends at step {logged[other].steps[-1]}"
    return f"{names[other]} logged other steps"


def _failed_pair(
    runs: Sequence[Run], curves: Sequence[Series], failures: Sequence[Failure | None], quantity: str, i: int
) -> RunPair:
    """A pair of which at least one run broke: that decides, and only the steps before it are compared at all."""
    told = "; ".join(f"{runs[k].name}: {f}" for k in (0, i) if (f := failures[k]) is not None)
    word = "failed" if failures[i] and not failures[0] else "the first run failed" if not failures[i] else "both failed"
    steps = len(np.intersect1d(curves[0].steps, curves[i].steps))
    left_out = _left_out(runs, quantity, i)
    if steps < 2:
        return RunPair(runs[i].name, None, None, steps, None, word, f"{told}. No step can be compared", left_out)
    difference, floor, points = _end_difference(curves[0], curves[i])
    size = f"{abs(difference):.3g} {'lower' if difference < 0 else 'higher'}" if difference else "equal"
    reading = f"{told}. At the {steps} common steps before that it is {size}, which says nothing of the whole"
    return RunPair(runs[i].name, difference, floor, points, None, word, reading, left_out)


def _aligned(a: Series, b: Series) -> tuple[np.ndarray, Floats, Floats]:
    steps, at_a, at_b = np.intersect1d(a.steps, b.steps, assume_unique=True, return_indices=True)
    return steps, a.values[at_a], b.values[at_b]


def _end_difference(a: Series, b: Series) -> tuple[float, float, int]:
    """The mean paired difference over the end of the common steps, its noise floor, and the steps compared."""
    steps, x, y = _aligned(a, b)
    if len(steps) < 2:
        # No common steps: the ends are compared as they are.
        (la, ea), (lb, eb) = a.level(1 - _END, 1.0), b.level(1 - _END, 1.0)
        return lb - la, noise_factor() * (ea**2 + eb**2) ** 0.5, 0
    d = y - x
    count = max(1, round(_END * len(d)))
    end = d[-count:]
    noise = noise_of(d)
    if count >= 8:
        # Neighbouring steps are alike: the spread within the stretch counts as if a quarter were independent.
        noise = max(noise, float(np.std(end)))
    floor = noise_factor() * noise / max(1.0, count / (4 if count >= 8 else 1)) ** 0.5
    return float(np.mean(end)), floor, count


def _seed_spread(
    curves: Sequence[Series], config: ConfigDifference, failures: Sequence[Failure | None]
) -> float | None:
    """The standard deviation of the end level between runs that differ by their seed alone; None without any."""
    squares, freedom = 0.0, 0
    for group in ([i for i in whole if failures[i] is None] for whole in config.groups):
        if len(group) > 1:
            ends = np.array([_end_level(curves[i]) for i in group])
            squares += float(np.sum((ends - ends.mean()) ** 2))
            freedom += len(group) - 1
    return (squares / freedom) ** 0.5 if freedom else None


def _end_level(series: Series) -> float:
    return float(np.mean(series.part(1 - _END, 1.0)))


def _pair(
    runs: Sequence[Run],
    curves: Sequence[Series],
    quantity: str,
    i: int,
    config: ConfigDifference,
    spread: float | None,
    lower: bool,
) -> RunPair:
    difference, floor, points = _end_difference(curves[0], curves[i])
    tokens = _at_equal_tokens(runs, curves, i)
    direction = "lower" if difference < 0 else "higher"
    size = f"{abs(difference):.3g} {direction}"
    group = next(g for g in config.groups if i in g)
    if abs(difference) <= floor:
        word, reading = "no difference beyond the noise", f"{size}, which is within the noise floor of {floor:.2g}"
    elif 0 in group:
        word, reading = direction, f"{size} with the same settings: that is what the seed does"
    elif config.unknown:
        word, reading = direction, f"{size}; settings are not known, so no cause is shown"
    elif config.confounded:
        word = direction
        reading = f"{size}, but {len(config.changed)} settings changed: confounded, it does not show which one mattered"
    elif spread is None:
        word = direction
        reading = f"{size}, beyond the noise of steps ({floor:.2g}); second seeds must show that it exceeds theirs"
    else:
        word, reading = _against_seeds(curves, config, i, spread, lower)
    return RunPair(runs[i].name, difference, floor, points, tokens, word, reading, _left_out(runs, quantity, i))


def _against_seeds(
    curves: Sequence[Series], config: ConfigDifference, i: int, spread: float, lower: bool
) -> tuple[str, str]:
    """The verdict where seeds were repeated: the groups' means against the spread between seeds."""
    mine, base = (next(g for g in config.groups if k in g) for k in (i, 0))
    means = [float(np.mean([_end_level(curves[k]) for k in g])) for g in (mine, base)]
    difference = means[0] - means[1]
    floor = 2 * spread * (1 / len(mine) + 1 / len(base)) ** 0.5
    size = f"{abs(difference):.3g} {'lower' if difference < 0 else 'higher'}"
    if abs(difference) <= floor:
        return "no difference beyond the noise", f"{size} in the mean of seeds, within their spread ({floor:.2g})"
    better = (difference < 0) == lower
    return ("improved" if better else "worsened"), f"{size} in the mean of seeds, beyond their spread ({floor:.2g})"


def _tokens_at(run: Run, series: Series) -> Floats | None:
    """Tokens trained up to each point of a series."""
    tokens = run.get("tokens", least=2)
    if tokens is None:
        return None
    sums = np.cumsum(tokens.values)
    at = np.searchsorted(tokens.steps, series.steps, side="left")
    return np.concatenate([[0.0], sums])[np.minimum(at, len(sums))]


def _at_equal_tokens(runs: Sequence[Run], curves: Sequence[Series], i: int) -> float | None:
    x, y = _tokens_at(runs[0], curves[0].reduced), _tokens_at(runs[i], curves[i].reduced)
    if x is None or y is None:
        return None
    end = min(x[-1], y[-1])
    if end <= max(x[0], y[0]):
        return None
    grid = np.linspace(end * (1 - _END), end, 20)
    a = np.interp(grid, x, curves[0].smooth if len(x) >= 20 else curves[0].reduced.values)
    b = np.interp(grid, y, curves[i].smooth if len(y) >= 20 else curves[i].reduced.values)
    return float(np.mean(b - a))


def _panel(runs: Sequence[Run], curves: Sequence[Series], label: str, axis: str) -> tuple[Aligned, ...]:
    """The runs' curves by step or by tokens; a run that logged no tokens is left out of the latter."""
    aligned: list[Aligned] = []
    for run, series in zip(runs, curves, strict=True):
        points = series.reduced
        x = points.steps.astype(float) if axis == _STEPS else _tokens_at(run, points)
        if x is not None:
            aligned.append(Aligned(run.name, label, x, points.values, series.smooth))
    return tuple(aligned)


def _departures(curves: Sequence[Series], config: ConfigDifference) -> list[RunFinding]:
    """Where only the rank differs: the step at which the lower one leaves the higher one for good."""
    if list(config.changed) != ["lora_rank"] or config.unknown:
        return []
    ranks = [int(r) for r in config.changed["lora_rank"]]
    low, high = int(np.argmin(ranks)), int(np.argmax(ranks))
    steps, x, y = _aligned(curves[high], curves[low])
    d = y - x
    if len(d) < 20 or not lower_is_better(curves[0].name):
        return []
    width = max(3, len(d) // 10) | 1
    smooth = rolling_mean(rolling_median(d, width), width)
    above = smooth > noise_factor() * noise_of(d) / width**0.5
    below = np.flatnonzero(~above)
    start = int(below[-1]) + 1 if len(below) else 0
    if start > 0.8 * len(d):
        return []
    series = curves[low]
    where = int(np.searchsorted(series.steps, steps[start]))
    evidence = MetricPoint(
        series.name, int(steps[start]), int(series.lines[where]), {"gap_at_the_end": float(smooth[-1])}
    )
    return [
        finding(
            "under_capacity",
            f"The curve of rank {ranks[low]} leaves that of rank {ranks[high]} at step {steps[start]} and ends "
            f"{smooth[-1]:.3g} above it.",
            (evidence,),
            f"Use rank {ranks[high]}, or one between; validate_capacity names the smallest that suffices.",
            confidence="high" if config.seeds[low] == config.seeds[high] else "medium",
        )
    ]
