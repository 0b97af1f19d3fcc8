"""What a run shows about its process: numbers that are none, steps that slow down, a stall, an early end."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..doctrine.rules import number
from .failures import Failure
from .findings import MetricPoint, RunFinding, finding, numbers, point
from .findings_rate import lowered
from .runs import Run
from .series import change_points

_LEAST = 20


def broken_finding(run: Run, failures: Sequence[Failure]) -> RunFinding:
    """That numbers of the run are no numbers, or stand in for none; of several metrics the first three."""
    first = failures[0]
    whole = "; ".join(str(f) for f in failures[:3])
    points = tuple(MetricPoint(f.metric, f.step, f.line, {"values_affected": f.count}) for f in failures[:3])
    start = min((int(s.steps[0]) for s in run.series.values() if len(s)), default=first.step)
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
        f"Rerun from the last checkpoint before step {first.step} with {lowered(run)} and grad_clip: 1.0; if it "
        "breaks at the same step, that batch's rows are the cause."
    )
    return finding("divergence", summary, points, follow, rule=rule)


def process_findings(run: Run) -> list[RunFinding]:
    """Findings on pace, liveness and completeness."""
    findings = [_mixed(run), _slower(run), _stalled(run) or _unfinished(run)]
    return [f for f in findings if f is not None]


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
    # Seconds lost so far: what costs less than a minute asks for nothing.
    lost = (since - earlier) * float(np.sum(pace.steps >= step))
    return finding(
        "throughput",
        f"Steps slow down at step {step}: {earlier:.3g} s before, {since:.3g} s since, at equal tokens.",
        (point(pace, max(0, last - 1)), point(pace, last)),
        "Look at the machine (or the service's status) at that time; longer rows would have shown in the tokens.",
        level="warn" if lost >= number("diagnosis.throughput.lost_s") else "note",
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
