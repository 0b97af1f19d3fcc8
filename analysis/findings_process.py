"""What a run shows about its process and its data: steps that slow down, a stall, an early end, odd rows."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..doctrine.rules import number, rule
from .failures import Failure
from .findings import MetricPoint, RunFinding, finding, noise_factor, numbers, point
from .runs import Run
from .series import Series, change_points, sudden_rise

_LEAST = 20


def broken_finding(run: Run, failures: Sequence[Failure]) -> RunFinding:
    """That numbers of the run are no numbers, or stand in for none; of several metrics the first three."""
    first = failures[0]
    whole = "; ".join(str(f) for f in failures[:3])
    points = tuple(MetricPoint(f.metric, f.step, f.line, {"values": f.count}) for f in failures[:3])
    start = min((int(s.steps[0]) for s in run.series.values() if len(s)), default=first.step)
    rate = f"learning_rate / {number('diagnosis.lr_step'):g}"
    rule = "diagnosis.broken"
    if not first.lasting:
        follow = f"Read the rows of step {first.step}: one without a token that carries loss yields no number."
        summary = f"Some values are no numbers: {whole}."
        return finding("divergence", summary, points, follow, rule=rule, level="warn")
    summary = f"The run broke: {whole}. What follows counts for nothing."
    if first.step <= start and first.total == first.count and "number" not in first.what:
        follow = "Render one row and check that tokens carry loss (check_dataset), then that the loss has a gradient."
        return finding("flat_from_start", f"Nothing is trained: {whole}.", points, follow, rule=rule, level="error")
    follow = (
        f"Rerun from the last checkpoint before step {first.step} with {rate} and grad_clip: 1.0; if it breaks at the "
        "same step, that batch's rows are the cause."
    )
    return finding("divergence", summary, points, follow, rule=rule)


def process_findings(run: Run) -> list[RunFinding]:
    """Findings on pace, liveness and completeness."""
    findings = [_mixed(run), _slower(run), _stalled(run) or _unfinished(run)]
    return [f for f in findings if f is not None]


def data_findings(run: Run) -> list[RunFinding]:
    """Findings on the loss that point at the data rather than at the optimizer (SFT)."""
    train = run.get("train_loss", least=1)
    if train is None:
        return []
    findings = [_strange_start(train), _level_shift(train), _epoch_steps(run, train), _leakage(run, train)]
    return [f for f in findings if f is not None][:2]


def _mixed(run: Run) -> RunFinding | None:
    if not run.mixed:
        return None
    first = next(iter(run.series.values()))
    return finding(
        "mixed_runs",
        f"{run.mixed[0].upper()}{run.mixed[1:]}.",
        (MetricPoint(first.name, *((int(first.steps[0]), int(first.lines[0])) if len(first) else (0, 0)), {}),),
        "Give every run its own file, and analyse them apart.",
    )


def _slower(run: Run) -> RunFinding | None:
    pace = run.get("step_time", least=_LEAST)
    if pace is None:
        return None
    values = np.array(pace.reduced.values)
    tokens = run.get("tokens", least=_LEAST)
    if tokens is not None and len(tokens) == len(pace) and float(np.median(tokens.reduced.values)) > 0:
        values = values / np.maximum(tokens.reduced.values, 1.0) * float(np.median(tokens.reduced.values))
    logs = np.log(np.maximum(values, 1e-6))
    noise = max(0.02, float(np.median(np.abs(np.diff(logs)))) * 1.05)
    margin = max(5, len(values) // 12)
    splits = [c for c in change_points(logs, noise=noise) if margin <= c <= len(values) - margin]
    if not splits:
        return None
    last = max(splits, key=lambda c: float(np.median(values[c:]) / np.median(values[:c])))
    earlier, since = float(np.median(values[:last])), float(np.median(values[last:]))
    if since < number("diagnosis.throughput.factor") * earlier:
        return None
    step = pace.at(last)[0]
    return finding(
        "throughput",
        f"Steps slow down at step {step}: {earlier:.3g} s before, {since:.3g} s since, at equal tokens.",
        (point(pace, max(0, last - 1)), point(pace, last)),
        "Look at the machine (or the service's status) at that time; longer rows would have shown in the tokens.",
    )


def _stalled(run: Run) -> RunFinding | None:
    if not run.active:
        return None
    pace, limits = run.get("step_time", least=2), numbers("diagnosis.stalled.steps")
    usual = float(np.median(pace.values)) if pace is not None else 0.0
    if usual == 0.0 or run.quiet_s < max(limits["steps"] * usual, limits["least_s"]):
        return None
    last = next(iter(run.series.values()))
    return finding(
        "stalled",
        f"Stalled: no new step for {run.quiet_s:.0f} s, while a step usually takes {usual:.3g} s.",
        (point(last, -1, quiet_s=run.quiet_s),),
        f"get_job(job_id='{run.name}') says whether the backend makes it wait; if not, cancel_job and resume_job.",
    )


def _unfinished(run: Run) -> RunFinding | None:
    if run.active or run.planned_steps is None:
        return None
    ended = run.job.step if run.job is not None else run.last_step
    done = max(ended, run.last_step)
    # The last step logged counts from zero in some programs; records come every few steps in others.
    gap = max(1, _record_gap(run))
    if done >= run.planned_steps - gap:
        return None
    going = run.job is None and run.quiet_s < 120
    state = f" ({run.job.state}{': ' + run.job.error if run.job.error else ''})" if run.job is not None else ""
    follow = (
        f"resume_job(job_id='{run.job.id}') goes on from the last checkpoint."
        if run.job is not None
        else "Go on from its last checkpoint; until then judge it as what it is."
    )
    last = next(iter(run.series.values()))
    return finding(
        "unfinished",
        f"{'Still going' if going else 'Unfinished'}: it ends at step {done} of {run.planned_steps}{state}.",
        (point(last, -1, planned=float(run.planned_steps)),),
        follow,
        level="note" if going else "warn",
    )


def _record_gap(run: Run) -> int:
    longest = max(run.series.values(), key=len)
    return int(np.median(np.diff(longest.steps))) if len(longest) > 1 else 1


def _strange_start(train: Series) -> RunFinding | None:
    lowest, highest = _start_bounds()
    first = float(np.median(train.values[:3]))
    if lowest <= first <= highest:
        return None
    cause, refuted = "template or tokenizer is broken.", "special tokens in their places refute it."
    if first < lowest:
        cause = "the answers stand in the prompt, or the model knows them already."
        refuted = "an answer that is not in its prompt refutes it."
    return finding(
        "data_problem",
        f"The loss starts at {first:.3g} nats per token: {cause}",
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


def _level_shift(train: Series) -> RunFinding | None:
    """A jump upwards that stays for a while and is not a divergence: another kind of rows begins."""
    rise = sudden_rise(train)
    if rise is None:
        return None
    at, jump = rise
    step = train.at(at)[0]
    return finding(
        "data_problem",
        f"The loss jumps by {jump:.3g} at step {step} and stays there: another kind of rows begins.",
        (point(train, at - 1), point(train, at)),
        f"Read the rows of step {step}; sort order is the usual cause: shuffle the file and rerun.",
    )


def _epoch_steps(run: Run, train: Series) -> RunFinding | None:
    """Drops at the starts of epochs: rows are learned by heart."""
    starts = _epoch_starts(run, train)
    r = train.reduced
    drops: list[tuple[int, float]] = []
    for step in starts:
        at = int(np.searchsorted(r.steps, step))
        width = max(3, min(at, len(r) - at) // 3)
        before, after = r.values[max(0, at - width) : at], r.values[at : at + width]
        if len(before) < 3 or len(after) < 3:
            continue
        # The halves at the boundary: the slope of the curve between them is that within the window before.
        near, early = before[len(before) // 2 :], before[: len(before) // 2 + 1]
        onset = after[: len(after) // 2 + 1]
        within = float(np.median(early) - np.median(near))
        drop = float(np.median(near) - np.median(onset))
        error = 1.25 * train.noise * (1 / len(near) + 1 / len(onset)) ** 0.5
        if drop > max(noise_factor() * error, 3 * abs(within), 0.1 * abs(float(np.median(near)))):
            drops.append((at, drop))
    if not starts or len(drops) < max(1, (len(starts) + 1) // 2):
        return None
    at, drop = drops[0]
    return finding(
        "data_problem",
        f"The loss drops by {drop:.3g} at the start of an epoch (step {train.at(at)[0]}): rows are learned by heart.",
        tuple(point(train, i) for a, _ in drops[:2] for i in (a - 1, a)),
        "Rerun with one epoch less and look at the held-out loss; check_dataset counts the duplicates.",
        rule="data.duplicates",
    )


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
