"""A run to be analysed: its metrics by quantity, its settings, and the state of its job."""
# pyright: basic
# reason: numpy arithmetic on columns of unknown names

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ..core.errors import ConfigError, DataError
from ..core.paths import user_path
from ..core.yaml_loading import load_yaml
from ..jobs import run_files
from ..jobs.control import look
from ..jobs.registry import Registry
from ..jobs.states import ACTIVE, Job
from .metric_names import ALIASES, STEP_NAMES
from .metrics_reading import RawMetrics, read_metrics
from .series import Series

Kind = Literal["sft", "dpo", "rl"]
TRAINER_STATE = "trainer_state.json"
# A drop in the step number below this share of rows is a resume or a new run; above it the order is simply lost.
_UNORDERED = 0.02


@dataclass(slots=True)
class Run:
    """One run, ready to be read.

    Attributes:
        name: What to call it: a job's id, or the folder's or file's name.
        file: The file of metrics.
        kind: What its metrics and settings say it is.
        series: Metrics by quantity (keys of `metric_names.ALIASES`, and any extra name that was asked for).
        config: Its settings, as far as a config lies beside the metrics.
        notes: What was odd about the file.
        mixed: Why the file seems to hold several runs; empty if it does not.
        job: The registry's row, if it is one of our jobs.
        planned_steps: The steps it was to take, if known.
        quiet_s: Seconds since the file last grew, measured when it was read.
    """

    name: str
    file: Path
    kind: Kind
    series: dict[str, Series]
    config: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    mixed: str = ""
    job: Job | None = None
    planned_steps: int | None = None
    quiet_s: float = 0.0

    @property
    def active(self) -> bool:
        """Whether one of our workers is on it now."""
        return self.job is not None and self.job.state in ACTIVE

    @property
    def last_step(self) -> int:
        """The highest step of any metric."""
        return max((int(s.steps[-1]) for s in self.series.values() if len(s)), default=0)

    def get(self, quantity: str, *, least: int = 1) -> Series | None:
        """A metric with at least ``least`` finite values, or None."""
        series = self.series.get(quantity)
        return series if series is not None and len(series) >= least else None


def _without_summed_weights(run: Run) -> None:
    """Forget what earlier versions of ours logged as tokens with loss: the weights of the rows, 1 for each row."""
    counted, rows = run.series.get("loss_tokens"), run.config.get("batch_size")
    if counted is not None and isinstance(rows, int) and len(counted) and float(counted.values.max()) <= rows:
        del run.series["loss_tokens"]


def load_run(target: str, *, extra: Iterable[str] = ()) -> Run:
    """Read a run by job id, folder or file.

    Raises:
        JobError: If it looks like a job id and there is no such job.
        DataError: If there is no such path, or no metrics in it.
    """
    path = user_path(target)
    if path.exists():
        file = path if path.is_file() else metrics_file(path)
        job = _job_of(path)
    else:
        if any(c in target for c in "/\\.~"):
            raise DataError("no such file or folder", where=target, fix="Give a job id (list_jobs) or a path")
        job = look(Registry(), target)
        file = _job_metrics(job)
    run = from_raw(read_metrics(file, extra=extra), name=job.id if job else _name(file), extra=extra)
    run.job = job
    run.config = _config(file.parent)
    _without_summed_weights(run)
    run.planned_steps = (job.total_steps if job else None) or run.planned_steps
    run.quiet_s = max(0.0, time.time() - file.stat().st_mtime)
    run.kind = _kind(run)
    return run


def _name(file: Path) -> str:
    plain = file.name in (run_files.METRICS, TRAINER_STATE)
    return file.parent.resolve().name if plain else file.stem


def _job_of(path: Path) -> Job | None:
    """The job whose run folder this is, if it is in this machine's registry."""
    folder = (path if path.is_dir() else path.parent).resolve()
    registry = Registry()
    return next((look(registry, j.id) for j in registry.find(limit=10_000) if j.folder.resolve() == folder), None)


def _job_metrics(job: Job) -> Path:
    if job.kind == "generation":
        raise DataError(
            f"{job.id} has made rows: it has no training curve",
            where=str(job.folder),
            fix=f"get_job(job_id='{job.id}') shows what it made",
        )
    file = job.folder / run_files.METRICS
    if file.exists():
        return file
    if (job.folder / "verdict.json").exists() or job.kind in ("judge_eval", "benchmark"):
        raise DataError(
            f"{job.id} is an evaluation: it has no training curve",
            where=str(job.folder),
            fix=f"get_job(job_id='{job.id}') shows its verdict, its report.html the answers",
        )
    raise DataError(
        f"{job.id} has logged no metrics yet (it is {job.state}{': ' + job.error if job.error else ''})",
        where=str(job.folder),
        fix=f"get_job(job_id='{job.id}') shows what it does",
    )


def metrics_file(folder: Path) -> Path:
    """The file of metrics in a folder: metrics.jsonl, a trainer_state.json (the newest checkpoint's), or one CSV.

    Raises:
        DataError: If there is none, or more than one CSV to choose from.
    """
    for name in (run_files.METRICS, TRAINER_STATE):
        if (folder / name).exists():
            return folder / name
    saved = sorted(folder.glob(f"checkpoint-*/{TRAINER_STATE}"), key=lambda p: p.stat().st_mtime)
    if saved:
        return saved[-1]
    tables = sorted([*folder.glob("*.jsonl"), *folder.glob("*.csv")])
    usual = [p for p in tables if p.stem in ("metrics", "progress", "log", "logs", "history", "train_log")]
    if len(usual or tables) == 1:
        return (usual or tables)[0]
    names = ", ".join(sorted(p.name for p in folder.iterdir())[:6]) or "nothing"
    problem = (
        f"several tables ({', '.join(p.name for p in tables[:4])})" if tables else f"no metrics here (it has {names})"
    )
    raise DataError(
        problem, where=str(folder), fix="Give the file: metrics.jsonl, trainer_state.json or a CSV with a step column"
    )


def _config(folder: Path) -> dict[str, Any]:
    """The settings beside the metrics; an unreadable file counts as none."""
    for name in (run_files.CONFIG, "config.json"):
        path = folder / name
        if not path.exists() or path.stat().st_size > 1_000_000:
            continue
        try:
            settings: Any = load_yaml(path).data if path.suffix == ".yaml" else json.loads(path.read_bytes())
        except (ConfigError, ValueError, OSError):
            continue
        if isinstance(settings, dict):
            return settings
    return {}


def from_raw(raw: RawMetrics, *, name: str, extra: Iterable[str] = ()) -> Run:
    """Bring raw columns into order: one run, steps ascending, one value per step."""
    notes = list(raw.notes)
    steps, keep, mixed = _steps(raw, notes)
    wanted: Mapping[str, tuple[str, ...]] = {**ALIASES, **{e: (e,) for e in extra}}
    series: dict[str, Series] = {}
    repeated = 0
    for quantity, names in wanted.items():
        for logged in names:
            if logged in raw.columns:
                metric, again = _series(logged, raw, steps, keep)
                del raw.columns[logged]
                repeated = max(repeated, again)
                if len(metric) or metric.not_finite:
                    series[quantity] = metric
                    break
    planned = series.pop("planned", None)
    if repeated:
        notes.append(f"{repeated} steps are logged more than once: the last value counts")
    if not mixed and series and repeated > 0.5 * max(len(s) for s in series.values()):
        mixed = "most steps are logged more than once with different values: two runs write to one file"
    _derive(series, raw)
    stated = raw.facts.get("max_steps")
    if not isinstance(stated, int):
        stated = int(planned.values[-1]) if planned is not None and len(planned) else None
    return Run(name, raw.path, "sft", series, {}, notes, mixed, None, stated)


def _steps(raw: RawMetrics, notes: list[str]) -> tuple[np.ndarray, np.ndarray, str]:
    """The step of each row, which rows belong to the run to be read, and why the file seems to hold several runs."""
    rows = len(raw.lines)
    keep = np.ones(rows, bool)
    mixed = ""
    if raw.owners and len(owners := dict.fromkeys(o for o in raw.owners if o)) > 1:
        last = list(owners)[-1]
        keep = np.array([o == last for o in raw.owners])
        mixed = f"{len(owners)} runs in one file: only '{last}' is read"
    column = next((raw.columns[n] for n in STEP_NAMES if n in raw.columns), None)
    if column is None:
        notes.append("no step column: rows are counted")
        return np.arange(rows), keep, mixed
    steps = np.full(rows, -1, np.int64)
    usable = np.abs(column[1]) < 2.0**53  # false for nan too
    steps[column[0][usable]] = column[1][usable].astype(np.int64)
    keep &= steps >= 0
    if not mixed and _counted_by_epoch(raw, steps, keep):
        notes.append("steps begin again with every epoch: they are counted on")
        return _counted_on(steps, keep), keep, ""
    if not mixed:
        mixed = _restarts(steps, keep, raw.lines, notes)
    return steps, keep, mixed


def _counted_by_epoch(raw: RawMetrics, steps: np.ndarray, keep: np.ndarray) -> bool:
    """Whether the step number falls back to its start exactly where the epoch goes on: one run, not several."""
    rows = np.flatnonzero(keep)
    epoch = next((raw.columns[n] for n in ALIASES["epoch"] if n in raw.columns), None)
    if epoch is None or len(rows) < 2:
        return False
    by_row = np.full(len(steps), np.nan)
    by_row[epoch[0]] = epoch[1]
    own, passed = steps[rows], by_row[rows]
    drops = np.flatnonzero(np.diff(own) < 0) + 1
    to_start = own[drops] <= own[0] + max(1, int(np.median(np.abs(np.diff(own)))))
    return bool(
        len(drops) and to_start.all() and np.all(np.diff(passed) >= 0) and np.all(np.diff(passed)[drops - 1] > 0)
    )


def _counted_on(steps: np.ndarray, keep: np.ndarray) -> np.ndarray:
    rows = np.flatnonzero(keep)
    own = steps[rows]
    fall = np.maximum(own[:-1] - own[1:], 0)
    # The first step of an epoch follows the last one before it by the usual distance.
    gap = int(np.median(np.diff(own)[np.diff(own) > 0])) if np.any(np.diff(own) > 0) else 1
    counted = steps.copy()
    counted[rows] = own + np.concatenate([[0], np.cumsum(np.where(fall > 0, fall + gap, 0))])
    return counted


def _restarts(steps: np.ndarray, keep: np.ndarray, lines: np.ndarray, notes: list[str]) -> str:
    """Where the step number falls back: to the start is a new run (the last is read), elsewhere a resume."""
    rows = np.flatnonzero(keep)
    if len(rows) < 2:
        return ""
    own = steps[rows]
    drops = np.flatnonzero(np.diff(own) < 0) + 1
    if not len(drops):
        return ""
    if len(drops) > max(3, _UNORDERED * len(rows)):
        notes.append("steps are out of order: sorted")
        return ""
    begins = [int(d) for d in drops if own[d] <= own[0] + 1 and own[d - 1] > own[d] + 2]
    if not begins:
        places = ", ".join(str(int(lines[rows[d]])) for d in drops[:3])
        notes.append(f"the step falls back at line {places}: a resume, the later values count")
        return ""
    keep[rows[: begins[-1]]] = False
    line = int(lines[rows[begins[-1]]])
    return f"{len(begins) + 1} runs in one file: only the last is read, from line {line}"


def _series(logged: str, raw: RawMetrics, steps: np.ndarray, keep: np.ndarray) -> tuple[Series, int]:
    rows, values = raw.columns[logged]
    # Where every row has it, steps and lines are shared.
    if len(rows) == len(steps) and keep.all() and np.all(np.isfinite(values)) and np.all(np.diff(steps) > 0):
        return Series(logged, steps, values.astype(np.float64), raw.lines), 0
    chosen = keep[rows]
    rows, values = rows[chosen], values[chosen]
    at = steps[rows]
    if len(at) > 1 and np.any(np.diff(at) <= 0):
        order = np.argsort(at, kind="stable")
        rows, values, at = rows[order], values[order], at[order]
        last = np.append(np.diff(at) > 0, True)
        # A record of training and one of validation share what both hold (the epoch): that is no repetition.
        same = (values[1:] == values[:-1]) | (np.isnan(values[1:]) & np.isnan(values[:-1]))
        again = int(np.sum(~last[:-1] & ~same))
        rows, values, at = rows[last], values[last], at[last]
    else:
        again = 0
    finite = np.isfinite(values)
    lines = raw.lines[rows]
    odd = np.flatnonzero(~finite)
    odd = odd if len(odd) <= 1000 else np.concatenate([odd[:500], odd[-500:]])  # the first and the last tell enough
    bad = tuple((int(s), int(n)) for s, n in zip(at[odd], lines[odd], strict=True))
    return Series(logged, at[finite], values[finite].astype(np.float64), lines[finite], bad), again


def _derive(series: dict[str, Series], raw: RawMetrics) -> None:
    """Quantities that are logged in parts: step time from its two halves, constant groups from good and bad ones."""
    for total, parts in (
        ("step_time", ("submit_time", "finish_time")),
        ("constant_groups", ("groups_all_good", "groups_all_bad")),
    ):
        logged = [series[p] for p in parts if p in series]
        if total not in series and len(logged) == 2 and np.array_equal(logged[0].steps, logged[1].steps):
            a, b = logged
            series[total] = Series(f"{a.name} + {b.name}", a.steps, a.values + b.values, a.lines)
    tokens = series.get("tokens")
    # TRL logs the tokens seen so far; the difference is what one step had.
    if tokens is not None and raw.path.name == TRAINER_STATE and len(tokens) > 2:
        counts = np.diff(tokens.values, prepend=0.0)
        # A log that begins in the middle of a run has in its first record what came before, too.
        first = 0 if counts[0] <= 2 * np.median(counts[1:]) else 1
        series["tokens"] = Series(tokens.name, tokens.steps[first:], counts[first:], tokens.lines[first:])


def _kind(run: Run) -> Kind:
    if run.job is not None and run.job.kind in ("dpo", "grpo", "ppo"):
        return "dpo" if run.job.kind == "dpo" else "rl"
    if "reward" in run.series or "group_size" in run.config:
        return "rl"
    return "dpo" if "margin" in run.series or "beta" in run.config else "sft"
