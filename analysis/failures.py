"""Where a run broke: values that are no numbers, and the zeros and repetitions behind which trainers hide them."""
# pyright: basic
# reason: numpy arithmetic

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from .runs import Run
from .series import Series

# Whose values do not say whether training works.
_BOOKKEEPING = frozenset({"step_time", "submit_time", "finish_time", "tokens", "loss_tokens", "epoch", "lr"})
# So many equal values in a row, to the last digit, are no chance once the values before them all differed.
_REPEATED = 8
_ZEROS = 3


@dataclass(frozen=True, slots=True)
class Failure:
    """Steps whose numbers do not count.

    Attributes:
        metric: The metric that shows it, as logged.
        what: What it is there, as a predicate: ``is not a number``.
        step: The first such step.
        line: Its line in the file.
        count: How many values are so.
        total: How many values of the metric were logged.
        lasting: Whether it lasts to the end: the run is lost from that step on.
    """

    metric: str
    what: str
    step: int
    line: int
    count: int
    total: int
    lasting: bool

    def __str__(self) -> str:
        where = f"from step {self.step} on" if self.lasting else f"at {self.count} of {self.total} steps"
        return f"{self.metric} {self.what} {where}"


def failures_of(run: Run) -> list[Failure]:
    """What broke in a run: what lasts comes first, then by step, then by count."""
    found = [f for q, s in run.series.items() if q not in _BOOKKEEPING and (f := _not_finite(s)) is not None]
    if run.kind != "rl" and (train := run.series.get("train_loss")) is not None:
        # The loss of a policy is zero by rights where its samples are its own.
        found += [f for f in (_zeros(train), _repeated(train), _empty(run, train)) if f is not None]
    found = [f for f in found if f.lasting or not _harmless(run, f)]
    return sorted(found, key=lambda f: (not f.lasting, f.step, -f.count))


def lasting_failure(run: Run) -> Failure | None:
    """The failure from which the run did not come back, or None."""
    return next((f for f in failures_of(run) if f.lasting), None)


def until(run: Run, step: int) -> Run:
    """The run before a step."""
    series: Mapping[str, Series] = {q: _before(s, step) for q, s in run.series.items()}
    return replace(run, series={q: s for q, s in series.items() if len(s)})


def _before(series: Series, step: int) -> Series:
    kept = series.steps < step
    return Series(series.name, series.steps[kept], series.values[kept], series.lines[kept])


def _not_finite(series: Series) -> Failure | None:
    if not series.not_finite:
        return None
    last = int(series.steps[-1]) if len(series) else -1
    since = [(step, line) for step, line in series.not_finite if step > last]
    total = len(series) + len(series.not_finite)
    step, line = (since or series.not_finite)[0]
    return Failure(series.name, "is not a number", step, line, len(since or series.not_finite), total, bool(since))


def _harmless(run: Run, failure: Failure) -> bool:
    """Single gradient norms that are not finite, the loss sound throughout: loss scaling left those steps out."""
    norm = run.series.get("grad_norm")
    return norm is not None and failure.metric == norm.name and failure.count <= 0.05 * failure.total


def _zeros(train: Series) -> Failure | None:
    """A loss of exactly zero to the end: no token carries loss, or nan is logged as zero."""
    nonzero = np.flatnonzero(train.values != 0)
    begin = int(nonzero[-1]) + 1 if len(nonzero) else 0
    count = len(train) - begin
    # A loss that has fallen below the last digit logged is zero too.
    fallen = begin > 0 and float(np.median(np.abs(train.values[max(0, begin - 3) : begin]))) < 0.005
    if count < _ZEROS or fallen:
        return None
    what = "is exactly 0 (which a trainer logs for nan, and where no token carries loss)"
    return Failure(train.name, what, int(train.steps[begin]), int(train.lines[begin]), count, len(train), True)


def _repeated(train: Series) -> Failure | None:
    """One value to the end, to the last digit, after values that all differed: the weights are not trained."""
    if len(train) < 2 * _REPEATED:
        return None
    differs = np.flatnonzero(np.diff(train.values) != 0)
    begin = int(differs[-1]) + 1 if len(differs) else 0
    count, value = len(train) - begin, float(train.values[begin])
    # What is logged with few digits repeats by chance.
    by_chance = begin - len(differs) > 0.02 * max(begin, 1) or len(f"{value:.7g}".strip("0.").replace(".", "")) < 4
    if value == 0 or count < _REPEATED or (begin and by_chance):
        return None
    what = f"is {value:.6g} to the last digit"
    return Failure(train.name, what, int(train.steps[begin]), int(train.lines[begin]), count, len(train), True)


def _empty(run: Run, train: Series) -> Failure | None:
    """The loss is no longer logged while the rest is: many programs write nothing where there is no number."""
    others = [run.series[q].steps for q in ("lr", "grad_norm", "tokens") if q in run.series]
    if not len(train) or not others:
        return None
    on = max(others, key=len)
    since, before = on[on > train.steps[-1]], on[on <= train.steps[-1]]
    # What is logged less often than the rest ends earlier by chance.
    if train.not_finite or len(since) < max(5, 0.05 * len(on)) or len(train) < 0.9 * len(before):
        return None
    total = len(train) + len(since)
    return Failure(train.name, "is empty", int(since[0]), 0, len(since), total, True)
