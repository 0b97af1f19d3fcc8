"""What a DPO run shows besides its loss: displacement, margins without accuracy, a surface mark, a wrong reference."""

from __future__ import annotations

import numpy as np

from ..doctrine.rules import number
from .findings import TAIL, Claim, MetricPoint, RunFinding, finding, moved, noise_factor, numbers, point, rose
from .runs import Run
from .series import Series

_LEAST = 10
_SHAPE = 20


def preference_findings(run: Run) -> list[RunFinding]:
    """Findings on margins, accuracies and log-probabilities."""
    margin = run.get("margin", least=_LEAST)
    findings = [_wrong_reference(run), _surface_mark(run)]
    if margin is not None and rose(margin):
        findings += [_displacement(run, margin), _margin_without_accuracy(run, margin)]
    findings.append(_overoptimization(run))
    return [f for f in findings if f is not None]


def _wrong_reference(run: Run) -> RunFinding | None:
    loss = run.series.get("train_loss")
    if loss is None or not len(loss) or run.config.get("loss", "dpo") not in ("dpo", "dpo_norm", "sigmoid"):
        return None
    start, first = number("dpo.loss.start"), float(loss.values[0])
    if loss.name != "dpo_loss" and "margin" not in run.series:
        return None
    # Some logs begin after a few steps, and report means since the last record: there the loss has fallen already.
    if int(loss.steps[0]) > 1 or abs(first - start) < 0.02:
        return None
    return finding(
        "wrong_reference",
        f"The first loss is {first:.4g}, not ln 2 = {start:.4g}: the reference is not the model the run starts from.",
        (point(loss, 0, expected=start),),
        "Start both from the same checkpoint (ref_model: null) and look at the first step alone.",
    )


def _chosen(run: Run) -> tuple[Series, Series] | None:
    """The chosen answers' log-ratio (nats per sequence), and the metric it was read from."""
    series = run.get("chosen_logprob", least=_LEAST)
    reward, beta = run.get("chosen_reward", least=_LEAST), run.config.get("beta", 0.1)
    # The reward is the log-ratio times beta; a log-probability alone varies with the answers of its batch.
    if reward is not None and (series is None or "ratio" not in series.name):
        if not isinstance(beta, int | float) or beta <= 0:
            return None
        return Series(reward.name, reward.steps, reward.values / beta, reward.lines), reward
    if series is None:
        return None
    shift = 0.0 if "ratio" in series.name else float(np.median(series.part(0.0, 0.05)))
    return Series(series.name, series.steps, series.values - shift, series.lines), series


def _displacement(run: Run, margin: Series) -> RunFinding | None:
    chosen = _chosen(run)
    if chosen is None:
        return None
    ratio, logged = chosen
    fall, beyond = moved(ratio)
    end = ratio.level(*TAIL)[0]
    if not beyond or fall > 0 or end > -number("dpo.displacement.nats"):
        return None
    beta = run.config.get("beta")
    more = f"beta: {beta * 3:.2g}" if isinstance(beta, int | float) else "beta x 3"
    return finding(
        "displacement",
        f"Likelihood displacement: the margin grows to {margin.level(*TAIL)[0]:.3g}, while chosen answers lose "
        f"{-end:.3g} nats each.",
        (point(logged, -1, log_ratio=end), point(margin, -1)),
        f"Rerun with {more}; if chosen answers still fall, drop the pairs that resemble each other most.",
    )


def _margin_without_accuracy(run: Run, margin: Series) -> RunFinding | None:
    accuracy = run.get("val_accuracy", least=3) or run.get("accuracy", least=_LEAST)
    if accuracy is None:
        return None
    end, error = accuracy.level(*TAIL)
    # At the first step every pair is a tie: accuracy starts at one half.
    limit = 0.5 + max(noise_factor() * error, 0.05)
    best = float(np.max(accuracy.smooth))
    if end > limit or best > max(limit, 0.65):
        return None
    held_out = accuracy is run.get("val_accuracy")
    return finding(
        "margin_without_accuracy",
        f"The margin grows to {margin.level(*TAIL)[0]:.3g}, but {'held-out ' if held_out else ''}accuracy ends at "
        f"{end:.0%} and never exceeds {best:.0%} (smoothed): a few pairs are fitted.",
        (point(margin, -1), point(accuracy, -1)),
        "Read the 20 pairs with the largest margins; wrong or repeated ones confirm it. Then rerun without them.",
        confidence="medium" if held_out else "low",
    )


def _surface_mark(run: Run) -> RunFinding | None:
    accuracy, limits = run.get("accuracy", least=_SHAPE), numbers("dpo.surface_mark")
    held_out = run.get("val_accuracy", least=3)
    # A mark tells other pairs apart too; what does not is learned by heart.
    if accuracy is None or (held_out is not None and held_out.level(*TAIL)[0] < limits["accuracy"] - 0.1):
        return None
    reached = np.flatnonzero(accuracy.smooth >= limits["accuracy"])
    if not len(reached) or reached[0] > limits["share"] * len(accuracy.smooth):
        return None
    step = accuracy.at(int(reached[0]))[0]
    since = accuracy.values[accuracy.steps >= step]
    # Nine in ten of the steps: a mark that is always there is told always.
    if float(np.quantile(since, 0.1)) < limits["accuracy"] - 0.1:
        return None
    return finding(
        "surface_mark",
        f"Pair accuracy is {np.median(since):.0%} in the median from step {step} on (at least {np.min(since):.0%}): "
        "something on the surface tells chosen from rejected.",
        (point(accuracy, int(reached[0])),),
        "Score the pairs by length alone: far above one half confirms it. Then balance the pairs and rerun.",
        claims=(Claim(accuracy, step, low=float(np.min(since))),),
    )


def _overoptimization(run: Run) -> RunFinding | None:
    accuracy = run.get("val_accuracy", least=6)
    if accuracy is None:
        return None
    best = int(np.argmax(accuracy.smooth))
    peak, end = float(accuracy.smooth[best]), accuracy.level(*TAIL)[0]
    n = len(accuracy.smooth)
    # The highest of many smoothed values is high by chance; a small held-out set moves in steps.
    width, tail = max(3, n // 20), max(1, round(0.15 * n))
    noise = max(accuracy.noise, float(np.std(accuracy.part(*TAIL))))
    floor = max(0.03, noise_factor() * noise * (1 / width + 1 / tail) ** 0.5)
    if n - best < 3 or peak - end <= floor or peak < 0.55:
        return None
    step = accuracy.at(best)[0]
    return finding(
        "overoptimization",
        f"Held-out accuracy peaks around step {step} ({peak:.1%}, smoothed) and ends at {end:.1%}.",
        (MetricPoint(accuracy.name, step, accuracy.at(best)[1], {"smoothed": peak}), point(accuracy, -1)),
        f"Use the checkpoint nearest step {step}; next run: beta x 2, or stop there.",
    )
