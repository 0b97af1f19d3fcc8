"""What the loss says of the learning rate that the log holds: too high, too low, or not to be told from one curve.

Steps are not alike under a schedule: progress is measured against the sum of the rates so far, and a loss that stands
still counts only while the rate is high.
"""
# pyright: basic
# reason: numpy arithmetic

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..core.errors import ResearcherError
from ..doctrine.rules import number
from ..models.configs import load_model_config
from ..models.hyperparameters import recommended_learning_rate
from ..models.model_ref import resolve_model
from .findings import HEAD, TAIL, Claim, RunFinding, finding, moved, noise_factor, numbers, point
from .runs import Run
from .series import Floats, Series, noise_of

# Points a curve needs before its shape is judged, and before its levels are.
SHAPE = 20
_LEVELS = 12


@dataclass(frozen=True, slots=True)
class RateCourse:
    """The learning rate at each reduced point of the loss, as a share of its peak.

    Attributes:
        peak: The highest rate logged; None where none was, and then a constant rate is assumed.
        share: Rate / peak at each point, shape [n].
        passed: The sum of the rates up to each point, as a share of the whole, shape [n].
    """

    peak: float | None
    share: Floats
    passed: Floats


def rate_course(run: Run, train: Series) -> RateCourse:
    """The course of the logged rate over the points of a loss."""
    points = train.reduced.steps.astype(float)
    rate = run.get("lr", least=2)
    peak = float(np.max(rate.values)) if rate is not None else None
    if rate is None or not peak or peak <= 0:
        share = np.ones(len(points))
        return RateCourse(None, share, np.cumsum(share) / len(points))
    share = np.interp(points, rate.steps.astype(float), np.maximum(rate.values, 0.0)) / peak
    return RateCourse(peak, share, np.cumsum(share) / float(np.sum(share)))


def rate_findings(run: Run) -> list[RunFinding]:
    """At most one finding on the rate: a curve has one course."""
    train = run.get("train_loss", least=_LEVELS)
    if train is None:
        return []
    course = rate_course(run, train)
    looks = (_too_high, _flat, _too_low, _not_learned if run.kind == "sft" else _above_the_start)
    for look in looks:
        if (found := look(run, train, course)) is not None and found.borne_out:
            return [found]
    return []


def restarts(run: Run) -> list[int]:
    """Steps at which the schedule begins again: the logged rate at least doubles after a fall from its peak."""
    rate = run.get("lr", least=SHAPE)
    if rate is None:
        return []
    values = rate.values
    rises = np.flatnonzero(values[1:] > 2 * np.maximum(values[:-1], 1e-12)) + 1
    peak = float(np.max(values))
    return [int(rate.steps[i]) for i in rises if np.max(values[:i]) > 0.5 * peak and values[i] > 0.3 * peak]


def three_points(run: Run, course: RateCourse, *, down: bool = True) -> str:
    """The check that one curve cannot replace: the same short run at three rates."""
    factor = number("diagnosis.lr_step")
    rate = _known_rate(run, course)
    powers = (0, -1, -2) if down else (0, 1, 2)
    if rate is None:
        names = [f"learning_rate x {factor**p:.2g}" for p in powers]
    else:
        names = [f"{rate * factor**p:.2g}" for p in powers]
    return f"three short runs of {SHAPE * 3} steps, all else equal, with learning_rate: {', '.join(names)}"


def _known_rate(run: Run, course: RateCourse) -> float | None:
    if course.peak is not None:
        return course.peak
    rate = run.config.get("learning_rate")
    return float(rate) if isinstance(rate, int | float) and not isinstance(rate, bool) else None


def lowered(run: Run, course: RateCourse | None = None) -> str:
    """The setting for the next run with a lower rate."""
    return _scaled(run, course, 1 / number("diagnosis.lr_step"))


def _scaled(run: Run, course: RateCourse | None, factor: float) -> str:
    rate = run.config.get("learning_rate")
    if not isinstance(rate, int | float) or isinstance(rate, bool):
        logged = run.get("lr")
        rate = course.peak if course is not None else float(np.max(logged.values)) if logged is not None else None
    if not rate:
        return f"learning_rate x {factor:g}" if factor > 1 else f"learning_rate / {1 / factor:g}"
    return f"learning_rate: {rate * factor:.2g}"


def _against_recommendation(run: Run, course: RateCourse) -> tuple[float, str]:
    """The rate over the recommended one (1 where neither is known), and the words for it."""
    model, rate = run.config.get("base_model"), _known_rate(run, course)
    if rate is None:
        return 1.0, ""
    if run.kind == "sft" and isinstance(model, str):
        try:
            advised = recommended_learning_rate(load_model_config(resolve_model(model))).value
        except (ResearcherError, ValueError):
            advised = None
        if advised:
            return rate / advised, f" (the rate is {rate:.2g}; {advised:.2g} is recommended)"
    limit = number("diagnosis.lr_too_high.limit")
    more = f"; beyond {limit:g} no fine-tuning is known to work" if rate > limit else ""
    return (100.0 if rate > limit else 1.0), f" (the rate is {rate:.2g}{more})"


def _too_high(run: Run, train: Series, course: RateCourse) -> RunFinding | None:
    signs: list[str] = []
    claims: list[Claim] = []
    points = [point(train, 0), point(train, -1)]
    for look in (_climbs_early, _stands_until_the_rate_falls, _gradient_grows, _noise_grows):
        if (sign := look(run, train, course)) is not None:
            signs.append(sign[0])
            claims += sign[1]
            points.append(point(train, sign[2]))
    ratio, told = _against_recommendation(run, course)
    end, first = train.level(*TAIL)[0], float(np.max(train.smooth[:3]))
    if not signs and ratio >= 10 and end > _LEFT * first:
        signs.append(f"the loss ends at {end:.3g}, having begun at {train.values[0]:.3g}")
    if not signs:
        return None
    return finding(
        "lr_too_high",
        f"The learning rate looks too high{told}: {'; '.join(signs)}.",
        tuple(points),
        f"Rerun with {lowered(run, course)}; a smooth curve that ends lower confirms it, the same shape refutes it.",
        claims=tuple(claims),
    )


# A loss of which more than this share is left at the end has not been learned.
_LEFT = 0.35
Sign = tuple[str, list[Claim], int]


def _climbs_early(run: Run, train: Series, course: RateCourse) -> Sign | None:
    """The loss climbs in the first third, by a share of its start and for a while: not the bump of a warmup."""
    limits, n = numbers("diagnosis.lr_too_high.growth"), len(train.reduced)
    values, r = train.reduced.values, train.reduced
    # A DPO loss climbs in its first steps by rights: pairs are pushed before they are told apart.
    if n < SHAPE or run.kind != "sft":
        return None
    begin = float(np.median(values[:2]))
    first_third = train.smooth[: max(8, n // 3)]
    lowest = np.minimum.accumulate(first_third)
    rises = first_third - lowest
    top = int(np.argmax(rises))
    noise = noise_of(values[: max(12, n // 3)])
    if rises[top] < max(limits["rise"] * abs(begin), noise_factor() * noise / 2, 0.05):
        return None
    above = train.smooth > lowest[top] + rises[top] / 2
    start = top - int(np.argmin(above[top::-1])) if not above[: top + 1].all() else 0
    stays = int(np.argmin(above[top:])) if not above[top:].all() else n - top
    if top - start + stays < max(6, n // 16) or any(r.steps[0] < at <= r.steps[top] for at in restarts(run)):
        return None
    return (
        f"the loss climbs from {lowest[top]:.3g} to {first_third[top]:.3g} (smoothed) around step {r.steps[top]}",
        [],
        top,
    )


def _stands_until_the_rate_falls(run: Run, train: Series, course: RateCourse) -> Sign | None:
    """A loss that stands still while the rate is high, far from learned, and falls once it comes down."""
    n = len(train.reduced)
    high = np.flatnonzero(course.share >= 0.5)
    if course.peak is None or len(high) < 8 or high[-1] > 0.85 * n or high[-1] - high[0] + 1 > len(high):
        return None
    values = train.reduced.values
    begin = high[0] + (high[-1] - high[0]) // 2
    part, after = values[begin : high[-1] + 1], values[high[-1] + 1 :]
    if len(part) < 4 or len(after) < 4:
        return None
    half = len(part) // 2
    noise = max(noise_of(part), 1e-9)
    level, end = float(np.median(part)), float(np.median(after[-max(3, len(after) // 4) :]))
    moves = float(np.median(part[:half]) - np.median(part[half:]))
    left = level > max(0.05, 0.5 * float(np.max(train.smooth[:3])))
    falls = level - end
    # Whether it stands can be said only where its noise hides no more than a part of the fall.
    hidden = 1.25 * noise * (2 / half) ** 0.5
    if not left or falls < max(0.08 * level, noise_factor() * hidden) or moves > max(0.15 * falls - hidden, 0.0):
        return None
    r = train.reduced
    sign = (
        f"the loss stands at {level:.3g} until the rate comes down after step {r.steps[high[-1]]}, "
        f"and falls to {end:.3g} then"
    )
    return sign, [], int(high[-1])


def _gradient_grows(run: Run, train: Series, course: RateCourse) -> Sign | None:
    gradient = run.get("grad_norm", least=_LEVELS)
    if gradient is None or run.kind != "sft":
        return None
    growth = numbers("diagnosis.lr_too_high.growth")["growth"]
    before, after = gradient.level(0.1, 0.3)[0], gradient.level(0.8, 1.0)[0]
    first = gradient.level(0.0, 0.05)[0]
    grown = before > 0 and after > growth * before and moved(gradient, (0.1, 0.3), (0.8, 1.0))[1]
    # Where the loss has fallen all the same, only a growth beyond all doubt counts.
    learned = train.level(*TAIL)[0] < 0.5 * train.level(*HEAD)[0]
    if not grown or after < growth * first * (2 if learned else 1):
        return None
    return f"the gradient norm grows from {before:.3g} to {after:.3g}", [], len(train.reduced) - 1


def _noise_grows(run: Run, train: Series, course: RateCourse) -> Sign | None:
    """The noise of the loss grows by a factor over the run, the loss not falling meanwhile."""
    growth = numbers("diagnosis.lr_too_high.growth")["growth"]
    early, late = noise_of(train.part(0.1, 0.4)), noise_of(train.part(0.7, 1.0))
    level = abs(train.level(0.1, 0.4)[0])
    # Pairs begin at ln 2 to the last digit: there noise grows from nothing by rights.
    few = run.kind != "sft" or len(train) < 2 * SHAPE
    if few or early <= 1e-3 * level or late < 0.05 * abs(train.level(0.7, 1.0)[0]):
        return None
    # The log of a median deviation of n normal values varies by 1.36 / n; second differences overlap: about twice that.
    error = (2 * 2.7 / len(train.part(0.1, 0.4))) ** 0.5
    ratio = late / early
    if ratio <= growth or np.log(ratio) <= noise_factor() * error:
        return None
    return f"the noise of the loss grows {ratio:.1f} times", [], len(train.reduced) - 1


def _flat(run: Run, train: Series, course: RateCourse) -> RunFinding | None:
    smoother = run.get("val_loss", least=6) or train
    change, beyond = moved(smoother)
    first = smoother.level(*HEAD)[0]
    still = abs(change) <= 0.01 * abs(first)
    if train.noise > 0.1 * abs(first):
        return None
    if not still and (beyond or abs(change) > 0.05 * abs(first)):
        return None  # it moved; or the noise hides whether it did, which is not the same as standing still
    lowest = float(np.min(train.smooth))
    if float(np.max(train.smooth[:3])) - lowest > max(6 * train.noise, 0.05 * abs(first)):
        return None  # it moved meanwhile, or fell before the first tenth was over
    told = "" if course.peak is None else f" at a learning rate of up to {course.peak:.2g}"
    spread = (float(np.min(train.values)), float(np.max(train.values)))
    return finding(
        "flat_from_start",
        f"The training loss never moves{told}: {train.level(*HEAD)[0]:.4g} at the start, "
        f"{train.level(*TAIL)[0]:.4g} at the end, between {spread[0]:.4g} and {spread[1]:.4g} throughout. The rate is "
        "far too low, or nothing is trained.",
        (point(train, 0), point(train, -1)),
        "Render one row and check that tokens carry loss (check_dataset); if they do: "
        f"{three_points(run, course, down=False)}. A loss that falls at a higher one confirms the rate.",
        claims=(Claim(train, int(train.steps[0]), low=spread[0], high=spread[1]),),
    )


def _too_low(run: Run, train: Series, course: RateCourse) -> RunFinding | None:
    """A loss that falls in a straight line over the sum of its rates, most of it left: it has hardly begun."""
    curve = _curve(run, train, course)
    if curve is None:
        return None
    name, (begin, middle, end), error = curve
    limits = numbers("diagnosis.lr_too_low.straight")
    fall, late = begin - end, middle - end
    left, straight = end / max(begin, 1e-9), late / max(fall, 1e-9)
    gradient = run.get("grad_norm", least=_LEVELS)
    kept = gradient.level(0.7, 1.0)[0] / float(np.max(gradient.values[:3])) if gradient is not None else None
    ratio, told = _against_recommendation(run, course)
    # A model whose gradient is down has left the place where it began.
    if fall <= error or late <= error / 2 or (kept is not None and kept < 0.2) or ratio > number("diagnosis.lr_step"):
        return None
    hardly = any(
        left > limits[most] and straight > limits[share] for most, share in (("left", "straight"), ("most", "half"))
    )
    # A DPO loss that has left ln 2 by a tenth has begun.
    hardly = hardly and (run.kind == "sft" or left > limits["pairs"])
    far_below = run.kind == "sft" and ratio < limits["recommended"] and left > limits["left"]
    moved_by = (
        f"{name} falls from {begin:.3g} to {end:.3g}, {straight:.0%} of that in the second half of the run (counted "
    )
    check = (
        f"{three_points(run, course, down=False)}. The one that falls fastest without a climb is right; if all fall "
    )
    if hardly or far_below:
        return finding(
            "lr_too_low",
            f"The learning rate looks too low, or the run too short{told}: {moved_by}by learning rate).",
            (point(train, 0), point(train, -1)),
            f"{check}alike, train longer instead.",
        )
    if kept is None or left < 0.5 or straight < 0.15 or run.kind != "sft":
        return None
    return finding(
        "lr_too_low",
        f"Whether the learning rate is too low{told} one curve cannot tell: {moved_by}by learning rate), and the "
        f"gradient norm keeps {kept:.0%} of its first height.",
        (point(train, 0), point(train, -1)),
        f"{check}alike, the rate is no limit.",
        level="note",
        confidence="low",
    )


def _curve(run: Run, train: Series, course: RateCourse) -> tuple[str, list[float], float] | None:
    """A loss's name, its level at the begin, in the middle (of the sum of rates) and at the end, and their error."""
    val = run.get("val_loss", least=8)
    if len(train) < 2 * SHAPE and val is None:
        return None
    source = val or train
    points = source.reduced
    passed = np.interp(points.steps.astype(float), train.reduced.steps.astype(float), course.passed)
    levels: list[float] = []
    sizes: list[int] = []
    for low, high in ((0.0, 0.12), (0.44, 0.56), (0.9, 1.01)):
        part = points.values[(passed >= low) & (passed < high)]
        if not len(part):
            part = points.values[[int(np.argmin(np.abs(passed - (low + high) / 2)))]]
        levels.append(float(np.median(part)))
        sizes.append(len(part))
    error = noise_factor() * 1.25 * source.noise * (1 / sizes[0] + 1 / sizes[2]) ** 0.5
    return source.name, levels, error


def _not_learned(run: Run, train: Series, course: RateCourse) -> RunFinding | None:
    """A loss that came to rest early, at a full rate and far from zero, with its gradient nearly gone."""
    limits, gradient = numbers("diagnosis.not_learned"), run.get("grad_norm", least=_LEVELS)
    if gradient is None:
        return None
    values = train.reduced.values
    first, end = float(np.max(values[:3])), train.level(0.9, 1.0)[0]
    middle = (
        float(np.median(values[(course.passed >= 0.44) & (course.passed < 0.56)])) if len(values) >= _LEVELS else end
    )
    fall, late = first - end, middle - end
    if end < limits["left"] * first or late > limits["late"] * fall:
        return None
    start, now = float(np.max(gradient.values[:3])), gradient.level(0.7, 1.0)[0]
    if now > limits["gradient"] * start:
        return None
    _, told = _against_recommendation(run, course)
    return finding(
        "not_learned",
        f"The loss began at {values[0]:.3g} and ends at {end:.3g}; {max(late, 0):.2g} of its fall lies in the second "
        f"half of the run (counted by learning rate), the gradient norm is down from {start:.3g} to {now:.2g}{told}. "
        "One curve cannot tell a learning rate too high from answers that do not follow from their prompts (shuffled "
        "labels), or from a task beyond the model.",
        (point(train, 0), point(train, -1), point(gradient, -1)),
        f"Read 20 rows for answers that belong to other prompts. If they are sound: {three_points(run, course)}. A "
        "lower one that ends lower confirms the rate.",
    )


def _above_the_start(run: Run, train: Series, course: RateCourse) -> RunFinding | None:
    """Preferences: the loss lies above ln 2, where the start model stands, or pairs are told as by a coin."""
    if run.config.get("loss", "dpo") not in ("dpo", "dpo_norm", "sigmoid"):
        return None
    ln2, limits = number("dpo.loss.start"), numbers("diagnosis.not_learned.pairs")
    accuracy = run.get("accuracy", least=_LEVELS)
    late = train.part(0.3, 1.0)
    level, error = float(np.median(late)), noise_factor() * 1.25 * noise_of(late) / len(late) ** 0.5
    _, told = _against_recommendation(run, course)
    if level > max(limits["far_above"], ln2 + error):
        return finding(
            "lr_too_high",
            f"The learning rate looks too high{told}: the loss is {level:.3g} in the median of the last 70% of the "
            f"run, while a model that has learned nothing has {ln2:.3g} (ln 2).",
            (point(train, 0), point(train, -1)),
            f"Start {three_points(run, course)}. If a lower one stays above {ln2:.2g} too, read 20 pairs: "
            f"which is better?",
        )
    tail = train.level(*TAIL)[0]
    if accuracy is None or tail < ln2 - limits["gain"] or not _no_better_than_chance(run, accuracy, limits["accuracy"]):
        return None
    seen = accuracy.part(0.6, 1.0)
    return finding(
        "not_learned",
        f"The pairs are not learned{told}: the loss ends at {tail:.3g} (ln 2, where it begins, is {ln2:.3g}), with "
        f"{np.mean(seen):.0%} of the pairs told right in the last 40% of the run. One curve cannot tell labels that "
        "fall by chance from a learning rate that does not fit.",
        (point(train, 0), point(train, -1), point(accuracy, -1)),
        f"Read 20 pairs: which answer is better? If the labels are sound: {three_points(run, course)}. A loss that "
        "falls confirms the rate.",
    )


def _no_better_than_chance(run: Run, accuracy: Series, limit: float) -> bool:
    """Whether the pairs of the last 40% are told right no more often than a coin and a margin tell them."""
    val = run.get("val_accuracy", least=4)
    held_out = float(np.mean(val.part(0.6, 1.0))) if val is not None else 0.0
    return float(np.mean(accuracy.part(0.6, 1.0))) < limit and held_out < limit
