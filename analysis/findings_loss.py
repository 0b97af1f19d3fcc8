"""What the loss curves show: divergence, spikes, plateaus, overfitting, capacity."""

from __future__ import annotations

import numpy as np

from ..core.errors import ResearcherError
from ..core.names import COMPONENTS
from ..doctrine.rules import number
from ..models.capacity import DataSize, capacity_report, verdict_band
from ..models.configs import load_model_config
from ..models.model_ref import resolve_model
from .description_length import description_length
from .findings import HEAD, TAIL, Claim, MetricPoint, RunFinding, finding, moved, noise_factor, numbers, point
from .findings_rate import SHAPE, lowered, rate_findings
from .runs import Run
from .series import Series, noise_of, rolling_median, spikes


def loss_findings(run: Run) -> list[RunFinding]:
    """Findings on training and held-out loss."""
    train, val = run.series.get("train_loss"), run.get("val_loss", least=3)
    findings: list[RunFinding | None] = []
    rate = rate_findings(run)
    findings += rate
    if train is not None and len(train) >= SHAPE:
        diverged = _diverged(run, train)
        plateau = None if any(f.level != "note" for f in rate) or diverged else _plateau(run, train)
        findings += [diverged, plateau, _spikes(train) if diverged is None else None]
    if val is not None and not any(f and f.kind == "divergence" for f in findings):
        findings.append(_overfitting(run, train, val))
    return [f for f in findings if f is not None]


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
    if not (above_start or gave_back):
        return None
    return finding(
        "divergence",
        f"The training loss ends at {end:.4g}, above {'its start' if above_start else 'its lowest level'} "
        f"({first if above_start else floor:.4g}).",
        (point(train, 0), point(train, lowest), point(train, -1)),
        f"Rerun with {lowered(run)} and nothing else changed; if it still rises at the same step, look at that "
        "batch's rows.",
    )


def _plateau(run: Run, train: Series) -> RunFinding | None:
    limits = numbers("diagnosis.plateau.gain")
    begin = 1 - limits["share"]
    start = float(np.max(train.smooth[: max(1, len(train.smooth) // 20)]))
    end = train.level(0.9, 1.0)[0]
    gain, error = train.level(begin, begin + 0.1)[0] - end, train.level(0.9, 1.0)[1]
    fall = start - end
    if end < 0.1 * start:
        return None  # it is learned: there is nothing left to gain
    if fall <= noise_factor() * train.noise / 2 or gain > max(limits["gain"] * fall, 0.0):
        return None
    if gain > 0.1 * abs(end):
        return None  # near zero a small gain is a large part of what is left
    if error > limits["gain"] * fall:
        return None  # too noisy to tell two percent
    if _held_out_falls(run, begin, fall):
        return None
    since = _flat_since(train, end, 0.03 * fall)
    if since > (begin + 0.2) * len(train.smooth):
        return None  # it left that level in between
    ratio = capacity_ratio(run)
    if ratio is not None and ratio < verdict_band()[0] and end > 0.1 and not _learned_little(run):
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


def _learned_little(run: Run) -> bool:
    """Whether the log shows that the run took up far less per parameter than LoRA can."""
    learned = description_length(run)
    if isinstance(learned, str) or not learned.is_told or learned.per_parameter is None:
        return False
    return learned.per_parameter < numbers("lora.capacity.edl")["elicit_most"]


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


def _overfitting(run: Run, train: Series | None, val: Series) -> RunFinding | None:
    values, n = val.reduced.values, len(val.reduced)
    # Of many validations the lowest is low by chance: levels are compared, medians of neighbours.
    half = n // 12 if n >= SHAPE else 0
    best = int(np.argmin(val.smooth if half else values))
    low = float(np.median(values[max(0, best - half) : best + half + 1]))
    end = float(np.median(values[-2 * half - 1 :])) if half else val.level(0.9, 1.0)[0]
    later = n - 1 - best
    if later <= half:
        return _gap(run, train, val)
    # The lowest of so many levels lies about two standard errors below where it would by itself.
    error = val.noise * (1.25 * (2 / (2 * half + 1)) ** 0.5 if half else 1 / later**0.5)
    step = int(val.reduced.steps[best])
    falls, claims = _falls_on(train, step)
    if end - low <= max(number("diagnosis.overfitting.rise") * abs(low), noise_factor() * error) or not falls:
        return _gap(run, train, val)
    where = (
        f"lowest around step {step} ({low:.4g}, median of {2 * half + 1})"
        if half
        else f"lowest at step {step} ({low:.4g})"
    )
    return finding(
        "overfitting",
        f"Overfitting: the held-out loss is {where} and ends at {end:.4g}"
        f"{', while the training loss falls on' if claims else ''}.",
        (point(val, best), point(val, -1)),
        f"Use the checkpoint of step {step}; next run: stop there (fewer epochs), or add data.",
        claims=claims if half else (*claims, Claim(val, int(val.steps[0]), low=low)),
    )


def _falls_on(train: Series | None, step: int) -> tuple[bool, tuple[Claim, ...]]:
    """Whether the training loss went on falling after a step (or is not known), and the claim that it never climbed."""
    if train is None or len(train) < SHAPE:
        return True, ()
    r = train.reduced
    after, before = r.values[r.steps >= step], r.values[r.steps <= step]
    if len(after) < 6:
        return True, ()
    width = max(3, min(9, len(after) // 3)) | 1
    level = float(np.median(before[-width:])) if len(before) >= 3 else float(np.median(after[:width]))
    # A median of so many points, and what nobody would call a climb.
    high = level + max(0.1 * abs(level), noise_factor() / 2 * 1.25 * noise_of(after) / width**0.5)
    falls = float(np.median(after[-width:])) < level
    highest = float(np.max(rolling_median(after, width)))
    return falls and highest <= high, (Claim(train, step, high=high, width=width),)


def _gap(run: Run, train: Series | None, val: Series) -> RunFinding | None:
    """A training loss that leaves the held-out one far behind, which falls no further: rows are learned by heart."""
    if run.kind != "sft" or train is None or len(train) < SHAPE or len(val) < 6:
        return None
    third = max(1, len(val) // 3)
    at = val.reduced.steps.astype(float)
    smooth = np.interp(at, train.reduced.steps.astype(float), train.smooth)
    end, late = float(np.median(val.reduced.values[-third:])), val.reduced.values[-third:]
    trained = float(np.median(smooth[-third:]))
    limits = numbers("diagnosis.overfitting.gap")
    apart = trained < limits["share"] * end and end - trained > limits["nats"]
    begin = float(smooth[0]) > 0.8 * float(val.reduced.values[0])
    if not apart or not begin or float(late[0] - late[-1]) > 0.1 * end:
        return None
    return finding(
        "overfitting",
        f"Overfitting: the training loss ends at {smooth[-1]:.3g}, the held-out loss at {late[-1]:.3g}, where it was "
        f"{late[0]:.3g} at step {int(at[-third])}: rows are learned by heart that help with no others.",
        (point(val, len(val.reduced) - third), point(val, -1), point(train, -1)),
        "Rerun with fewer epochs or more rows; check_dataset counts the duplicates.",
    )


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
        parts = run.config.get("apply_to") or COMPONENTS
        backend = str(run.config.get("backend"))
        return capacity_report(config, lora_rank=rank, data=data, backend=backend, apply_to=parts).ratio
    except (ResearcherError, ValueError, TypeError):
        return None
