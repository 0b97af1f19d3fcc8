"""What a run shows about its data: a loss that starts where none should, jumps, drops with the epoch, or leaks."""
# pyright: basic
# reason: numpy arithmetic

from __future__ import annotations

import numpy as np

from ..doctrine.rules import rule
from .findings import Claim, RunFinding, finding, noise_factor, point
from .findings_rate import lowered, restarts
from .runs import Run
from .series import Floats, Series, Step, sudden_rise

_LEAST = 20


def data_findings(run: Run) -> list[RunFinding]:
    """Findings on a loss that point at the data rather than at the optimizer; jumps are `level_shift`'s."""
    train = run.get("train_loss", least=1)
    if train is None or run.kind == "rl":
        return []
    findings = [_strange_start(train) if run.kind == "sft" else None, _epoch_steps(run, train), _leakage(run, train)]
    return [f for f in findings if f is not None][:2]


def _strange_start(train: Series) -> RunFinding | None:
    lowest, highest = _start_bounds()
    first = float(np.median(train.values[:3]))
    if lowest <= first <= highest:
        return None
    cause, refuted = "template or tokenizer is broken.", "special tokens in their places refute it."
    if first < lowest:
        cause = "the answers stand in the prompt, the model knows them, or the loss mask leaves next to nothing."
        refuted = "an answer that is not in its prompt refutes it."
    return finding(
        "data_problem",
        f"The loss is {first:.3g} nats per token in the median of its first three records: {cause}",
        (point(train, 0),),
        f"Read one rendered row with its loss mask (check_dataset); {refuted}",
        rule="diagnosis.data_problem.start",
    )


def _start_bounds() -> tuple[float, float]:
    """Between which losses an SFT run on ordinary text starts (nats per token)."""
    match rule("diagnosis.data_problem.start").value:
        case (int() | float() as low, int() | float() as high):
            return float(low), float(high)
        case other:
            raise TypeError(f"rule diagnosis.data_problem.start must hold two losses, got {other!r}")


def level_shift(run: Run) -> tuple[RunFinding, int] | None:
    """A jump of the loss that stays (in RL a drop of the reward): other rows begin; with the step."""
    if run.kind == "rl":
        reward = run.get("reward", least=_LEAST)
        if reward is None:
            return None
        upside_down = Series(reward.name, reward.steps, -reward.values, reward.lines)
        return _shift(run, reward, sudden_rise(upside_down, apart_from=restarts(run)), sign=-1)
    train = run.get("train_loss", least=_LEAST)
    return None if train is None else _shift(run, train, sudden_rise(train, apart_from=restarts(run)), sign=1)


def _shift(run: Run, series: Series, jump: Step | None, *, sign: int) -> tuple[RunFinding, int] | None:
    if jump is None:
        return None
    step, last = series.at(jump.at)[0], series.at(jump.end)[0]
    swapped = _labels_turned(run, step)
    cause = swapped or "other rows begin there, or the weights were thrown off"
    word, side = ("jumps", "above") if sign > 0 else ("drops", "below")
    bound = {"low": jump.floor} if sign > 0 else {"high": -jump.floor}
    claim = Claim(series.reduced, step, last + 1, **bound, width=5)
    made = finding(
        "data_problem",
        f"The {'loss' if sign > 0 else 'reward'} {word} from {sign * jump.before:.3g} to {sign * jump.after:.3g} at "
        f"step {step} and stays {side} {sign * jump.floor:.3g} (medians of five) until step {last}: {cause}.",
        (point(series, jump.at - 1), point(series, jump.at)),
        "Read the pairs from there on: if chosen and rejected are exchanged, mend those rows and rerun."
        if swapped
        else f"Read the rows of step {step} and those before it; a file sorted by source or difficulty is the usual "
        f"cause: shuffle it and rerun. Rows of one kind refute it: then rerun from the checkpoint before with "
        f"{lowered(run)}.",
        claims=(claim,),
    )
    return made, step


def _labels_turned(run: Run, step: int) -> str:
    """Whether the pairs are told the wrong way round from a step on that were told the right way before."""
    accuracy = run.get("accuracy", least=_LEAST) if run.kind == "dpo" else None
    if accuracy is None:
        return ""
    before, after = accuracy.values[accuracy.steps < step][-8:], accuracy.values[accuracy.steps >= step][:4]
    if len(before) < 4 or len(after) < 2 or float(np.median(before)) < 0.75 or float(np.median(after)) > 0.35:
        return ""
    return (
        f"chosen and rejected change places, for pair accuracy falls from {np.median(before):.0%} to "
        f"{np.median(after):.0%}"
    )


def _epoch_steps(run: Run, train: Series) -> RunFinding | None:
    """Drops at the starts of epochs, larger than any within them: rows are learned by heart."""
    starts = _epoch_starts(run, train)
    r = train.reduced
    boundaries = [int(np.searchsorted(r.steps, step)) for step in starts]
    lengths = np.diff([0, *boundaries, len(r)])
    width = int(min(np.min(lengths), 40) // 2) if boundaries else 0
    if width < 5:
        return None
    fall = float(np.max(train.smooth[:3]) - np.min(train.smooth))
    elsewhere = [
        _break_at(r.values, at, width)[0]
        for at in range(width, len(r) - width)
        if min(abs(at - b) for b in boundaries) >= width
    ]
    usual = max(elsewhere, default=0.0)
    drops: list[tuple[int, float]] = []
    for at in boundaries:
        drop, error, level = _break_at(r.values, at, width)
        if drop > max(noise_factor() * error, 0.15 * level, 0.04 * fall, 2 * usual):
            drops.append((at, drop))
    if len(drops) < max(1, (len(boundaries) + 1) // 2):
        return None
    at, drop = drops[0]
    return finding(
        "data_problem",
        f"The loss drops by {drop:.3g} at the start of an epoch (step {train.at(at)[0]}), more than anywhere within "
        "one: rows are learned by heart.",
        tuple(point(train, i) for a, _ in drops[:2] for i in (a - 1, a)),
        "Rerun with one epoch less and look at the held-out loss; check_dataset counts the duplicates.",
        rule="data.duplicates",
    )


def _break_at(values: Floats, at: int, width: int) -> tuple[float, float, float]:
    """How far the line through the points before a place lies above that after it, its error, and the level before."""
    x = np.arange(width) + 0.5
    before, after = values[at - width : at], values[at : at + width]
    left, right = np.polyfit(x - width, before, 1), np.polyfit(x, after, 1)
    rest = np.concatenate([before - np.polyval(left, x - width), after - np.polyval(right, x)])
    error = float(np.sqrt(np.sum(rest**2) / max(1, 2 * width - 4) * 8 / width))
    return float(left[1] - right[1]), error, abs(float(np.median(before)))


def _epoch_starts(run: Run, train: Series) -> list[int]:
    epoch = run.get("epoch", least=_LEAST)
    if epoch is not None:
        completed = np.floor(epoch.values + 1e-6)
        return [int(epoch.steps[i]) for i in np.flatnonzero(np.diff(completed) > 0) + 1]
    epochs = run.config.get("num_epochs")
    total = run.planned_steps or (run.last_step + 1)
    if not isinstance(epochs, int) or epochs < 2 or total % epochs:
        return []
    return [k * (total // epochs) for k in range(1, epochs)]


def _leakage(run: Run, train: Series) -> RunFinding | None:
    """A held-out loss well below the training loss from the start on: leakage, or an easier split."""
    val = run.get("val_loss", least=3)
    if val is None or len(train) < _LEAST:
        return None
    r = train.reduced
    smooth = np.interp(val.steps.astype(float), r.steps.astype(float), train.smooth)
    gap = smooth - val.values
    later = slice(1, None)
    share = gap[later] / np.maximum(np.abs(smooth[later]), 1e-9)
    if float(np.min(gap[later])) <= train.noise / 2 or float(np.median(share)) < 0.2:
        return None
    return finding(
        "data_problem",
        f"The held-out loss is {np.median(share):.0%} below the training loss throughout: rows may be shared, or the "
        "held-out set is easier.",
        (point(val, -1), point(train, -1)),
        "check_dataset with train and val file counts shared rows; none refutes leakage.",
        rule="data.leakage",
    )
