"""What the loss curves show: divergence, spikes, plateaus, overfitting, the learning rate, capacity."""

from __future__ import annotations

import itertools

import numpy as np

from ..core.errors import ResearcherError
from ..doctrine.rules import number
from ..models.capacity import DataSize, capacity_report, verdict_band
from ..models.configs import load_model_config
from ..models.model_ref import resolve_model
from .findings import HEAD, TAIL, MetricPoint, RunFinding, finding, moved, nearest, noise_factor, numbers, point
from .runs import Run
from .series import Floats, Series, noise_of, spikes, sudden_rise

# Points a curve needs before its shape is judged.
SHAPE = 20


def loss_findings(run: Run) -> list[RunFinding]:
    """Findings on training and held-out loss."""
    train, val = run.series.get("train_loss"), run.get("val_loss", least=3)
    findings: list[RunFinding | None] = []
    if train is not None and len(train) >= SHAPE:
        diverged = _diverged(run, train)
        shape = diverged or _rate_too_high(run, train) or _flat(run, train)
        shape = shape or _straight(run, train) or _plateau(run, train)
        findings += [shape, _spikes(train) if diverged is None else None]
    if val is not None and not any(f and f.kind == "divergence" for f in findings):
        findings.append(_overfitting(train, val))
    return [f for f in findings if f is not None]


def _lower(run: Run) -> str:
    return _rate(run, 1 / number("diagnosis.lr_step"))


def _raised(run: Run) -> str:
    return _rate(run, number("diagnosis.lr_step"))


def _rate(run: Run, factor: float) -> str:
    """The learning rate times a factor, as a setting where the rate is known."""
    rate = run.config.get("learning_rate")
    if not isinstance(rate, int | float) or isinstance(rate, bool):
        return f"learning_rate x {factor:g}" if factor > 1 else f"learning_rate / {1 / factor:g}"
    return f"learning_rate: {rate * factor:.2g}"


def _diverged(run: Run, train: Series) -> RunFinding | None:
    change, beyond = moved(train)
    first = train.level(*HEAD)[0]
    lowest = int(np.argmin(train.smooth))
    floor = float(train.smooth[lowest])
    end = train.level(*TAIL)[0]
    # It ends above its start; or it falls and then gives most of that back for good.
    above_start = beyond and change > 0.02 * abs(first)
    gave_back = end - floor > 0.6 * max(first - floor, 0.0) and end - floor > 0.1 * abs(floor) and end > floor
    visible = noise_factor() * train.noise / 2
    gave_back = gave_back and min(end - floor, first - floor) > visible and lowest < 0.8 * len(train.smooth)
    if not (above_start or gave_back) or sudden_rise(train) is not None:
        return None
    return finding(
        "divergence",
        f"The training loss ends at {end:.4g}, above {'its start' if above_start else 'its lowest level'} "
        f"({first if above_start else floor:.4g}).",
        (point(train, 0), point(train, lowest), point(train, -1)),
        f"Rerun with {_lower(run)} and nothing else changed; if it still rises at the same step, look at that "
        "batch's rows.",
    )


def _rate_too_high(run: Run, train: Series) -> RunFinding | None:
    limits = numbers("diagnosis.lr_too_high.growth")
    quiet = noise_factor()
    rises, errors = _early_rises(train)
    top = int(np.argmax(rises / errors))
    rise = float(rises[top])
    signs: list[str] = []
    points: list[MetricPoint] = []
    if rise > max(limits["rise"] * abs(train.level(0.0, 0.02)[0]), quiet * float(errors[top])):
        signs.append(f"the loss rises by {rise:.3g} early, to {train.smooth[top]:.4g}")
        points.append(point(train, top))
    gradient = run.get("grad_norm", least=SHAPE)
    if gradient is not None:
        before, after = gradient.level(0.1, 0.3)[0], gradient.level(0.8, 1.0)[0]
        if before > 0 and after > limits["growth"] * before and moved(gradient, (0.1, 0.3), (0.8, 1.0))[1]:
            signs.append(f"the gradient norm grows from {before:.3g} to {after:.3g}")
            points.append(point(gradient, -1, earlier=before))
    noisy = _noise_growth(train)
    if noisy > limits["growth"]:
        signs.append(f"the noise of the loss grows {noisy:.1f} times")
        points.append(point(train, -1, noise_growth=noisy))
    if not signs:
        return None
    return finding(
        "lr_too_high",
        f"The learning rate looks too high: {'; '.join(signs)}.",
        tuple(points),
        f"Rerun with {_lower(run)}; a smooth curve that ends lower confirms it, the same shape refutes it.",
    )


def _early_rises(train: Series) -> tuple[Floats, Floats]:
    """For each point of the first quarter how far it lies above the lowest one before it, and its standard error.

    The noise of a loss follows its level, so that of the quarter counts; near the start a level is a mean of few.
    """
    count = max(3, len(train.smooth) // 4)
    start = train.smooth[:count]
    half = max(3, len(train.reduced) // 20) // 2
    widths = 2.0 * np.minimum(half, np.arange(count)) + 1
    lowest = np.minimum.accumulate(start)
    where = np.maximum.accumulate(np.where(start == lowest, np.arange(count), 0))
    noise = max(noise_of(train.reduced.values[: max(count, 12)]), 1e-12)
    return start - lowest, 1.25 * noise * (1 / widths + 1 / widths[where]) ** 0.5


def _noise_growth(train: Series) -> float:
    """How many times the noise grows over the run; 0 where so few points cannot show it."""
    early, late = noise_of(train.part(0.1, 0.4)), noise_of(train.part(0.7, 1.0))
    # In a curve near zero loss noise shrinks with the level; growth from nothing says nothing.
    if early <= 1e-3 * abs(train.level(0.1, 0.4)[0]) or len(train) < 40:
        return 0.0
    # The log of a median deviation of n normal values varies by 1.36 / n; second differences overlap: about twice that.
    error = (2 * 2.7 / len(train.part(0.1, 0.4))) ** 0.5
    return late / early if np.log(max(late / early, 1e-9)) > noise_factor() * error else 0.0


def _flat(run: Run, train: Series) -> RunFinding | None:
    change, beyond = moved(train)
    first = train.level(*HEAD)[0]
    if beyond and abs(change) > 0.01 * abs(first):
        return None
    if train.values[0] - train.level(*TAIL)[0] > max(6 * train.noise, 0.05 * abs(first)):
        return None  # it fell before the first tenth was over
    if abs(change) > 0.05 * abs(first):
        return None  # the noise hides whether it moved, which is not the same as standing still
    return finding(
        "flat_from_start",
        f"The training loss never moves: {first:.4g} at the start, {train.level(*TAIL)[0]:.4g} at the end, with noise "
        f"of {train.noise:.2g}.",
        (point(train, 0), point(train, -1)),
        f"Render one row and check that tokens carry loss (check_dataset); if they do, rerun with {_raised(run)}.",
    )


def _straight(run: Run, train: Series) -> RunFinding | None:
    if len(train) < 2 * SHAPE:
        return None
    levels = [train.level(a, b) for a, b in ((0.0, 0.1), (0.3, 0.4), (0.6, 0.7), (0.9, 1.0))]
    falls = [a[0] - b[0] for a, b in itertools.pairwise(levels)]
    error = noise_factor() * (levels[2][1] ** 2 + levels[3][1] ** 2) ** 0.5
    if falls[2] < error or falls[0] <= 0 or falls[2] < number("diagnosis.lr_too_low.straight") * falls[0]:
        return None
    return finding(
        "lr_too_low",
        f"The loss still falls as fast at the end as at the start ({falls[2]:.3g} in the last third, {falls[0]:.3g} in "
        "the first): the rate is too low, or the run too short.",
        (point(train, 0), point(train, nearest(train, int(train.steps[-1] * 0.66))), point(train, -1)),
        f"Rerun with {_raised(run)}; if the loss does not end lower, train longer instead.",
    )


def _plateau(run: Run, train: Series) -> RunFinding | None:
    limits = numbers("diagnosis.plateau.gain")
    begin = 1 - limits["share"]
    start = float(np.max(train.smooth[: max(1, len(train.smooth) // 20)]))
    end = train.level(0.9, 1.0)[0]
    gain, error = train.level(begin, begin + 0.1)[0] - end, train.level(0.9, 1.0)[1]
    fall = start - end
    if fall <= noise_factor() * train.noise / 2 or gain > max(limits["gain"] * fall, 0.0):
        return None
    if gain > 0.1 * abs(end):
        return None  # near zero a small gain is a large part of what is left
    if error > limits["gain"] * fall:
        return None  # too noisy to tell two percent
    if _held_out_falls(run, begin, fall):
        return None
    since = _flat_since(train, end, 0.03 * fall)
    ratio = capacity_ratio(run)
    if ratio is not None and ratio < verdict_band()[0] and end > 0.1:
        return _short_of_capacity(run, train, since, ratio)
    return finding(
        "plateau",
        f"The loss gains {max(gain, 0):.2g} of its fall of {fall:.3g} after {begin:.0%} of the run; it is level at "
        f"{end:.4g} since step {train.at(since)[0]}.",
        (point(train, since), point(train, -1)),
        f"Stop at step {train.at(since)[0]} next time, or give it something new to learn: more data first, then "
        "rank x 2 (validate_capacity says whether that can matter).",
    )


def _held_out_falls(run: Run, begin: float, fall: float) -> bool:
    """Whether the held-out loss still gains what a plateau would not, over the same stretch."""
    val = run.get("val_loss", least=4)
    if val is None:
        return False
    late = val.part(begin, 1.0)
    return float(late[0] - late[-1]) > max(numbers("diagnosis.plateau.gain")["gain"] * fall, 2 * val.noise)


def _flat_since(train: Series, end: float, tolerance: float) -> int:
    away = np.flatnonzero(np.abs(train.smooth - end) > max(tolerance, train.noise))
    return int(min(away[-1] + 1, len(train.smooth) - 1)) if len(away) else 0


def _short_of_capacity(run: Run, train: Series, since: int, ratio: float) -> RunFinding:
    rank = run.config.get("lora_rank")
    return finding(
        "under_capacity",
        f"The loss is level at {train.level(0.9, 1.0)[0]:.4g} since step {train.at(since)[0]}, and the adapter "
        f"(rank {rank}) has {ratio:.2g} times the capacity that the data's information asks for.",
        (point(train, since, capacity_ratio=ratio), point(train, -1)),
        f"Rerun with lora_rank: {int(rank) * 4 if isinstance(rank, int) else 'four times as high'} and compare_runs; "
        "curves that never part refute it.",
    )


def _spikes(train: Series) -> RunFinding | None:
    limits = numbers("diagnosis.spikes.size")
    highest = spikes(train, sigmas=limits["sigmas"], share=limits["share"])
    if not highest:
        return None
    where = ", ".join(f"step {s.step} ({s.value:.3g} against {s.usual:.3g})" for s in highest[:3])
    return finding(
        "spikes",
        f"{len(highest)} spike{'s' if len(highest) > 1 else ''} in the training loss: {where}.",
        tuple(MetricPoint(train.name, s.step, s.line, {"value": s.value, "usual": s.usual}) for s in highest[:3]),
        f"Read the rows of the batch at step {highest[0].step}; if they are sound, rerun with grad_clip: 1.0.",
    )


def _overfitting(train: Series | None, val: Series) -> RunFinding | None:
    best = int(np.argmin(val.reduced.values))
    lowest, end = float(val.reduced.values[best]), val.level(0.9, 1.0)[0]
    if best >= len(val.reduced) - 1:
        return None
    rise = end - lowest
    later = len(val.reduced) - 1 - best
    floor = max(number("diagnosis.overfitting.rise") * abs(lowest), noise_factor() / later**0.5 * val.noise)
    step = int(val.reduced.steps[best])
    if rise <= floor or not _still_falling(train, step):
        return None
    return finding(
        "overfitting",
        f"Overfitting: the held-out loss is lowest at step {step} ({lowest:.4g}) and ends at {end:.4g}, while the "
        "training loss falls on.",
        (point(val, best), point(val, -1)),
        f"Use the checkpoint of step {step}; next run: stop there (fewer epochs), or add data.",
    )


def _still_falling(train: Series | None, step: int) -> bool:
    """Whether the training loss went on falling after a step (or is not known)."""
    if train is None or len(train) < SHAPE:
        return True
    r = train.reduced
    after = r.values[r.steps >= step]
    if len(after) < 4:
        return True
    half = len(after) // 2
    floor = noise_factor() * train.noise / half**0.5
    return float(np.median(after[half:])) <= float(np.median(after[:half])) + floor


def capacity_ratio(run: Run) -> float | None:
    """The adapter's capacity over the information in an SFT run's data (bits over bits, see `capacity_report`).

    None where model, rank or tokens are not known.
    """
    rank, model, epochs = (run.config.get(k) for k in ("lora_rank", "base_model", "num_epochs"))
    tokens = run.get("loss_tokens") or run.get("tokens")
    if run.kind != "sft" or tokens is None or not isinstance(rank, int) or not isinstance(model, str):
        return None
    passes = epochs if isinstance(epochs, int) and epochs > 0 else 1
    batch = run.config.get("batch_size")
    size = batch if isinstance(batch, int) and batch > 0 else 1
    steps = len(tokens)
    seen = int(np.sum(tokens.values)) // passes
    if seen < 1:
        return None
    try:
        config = load_model_config(resolve_model(model))
        data = DataSize(loss_tokens=seen, rows=max(1, steps * size // passes), epochs=passes)
        return capacity_report(config, lora_rank=rank, data=data, backend=str(run.config.get("backend"))).ratio
    except (ResearcherError, ValueError):
        return None
