"""A job as tools show it: its row, what changed in its folder, and what to do next."""

from __future__ import annotations

import time
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

from pydantic import BaseModel

from ..core.foreign_text import foreign, named
from ..jobs import run_files
from ..jobs.control import silence_s
from ..jobs.kinds import KINDS
from ..jobs.registry import Registry
from ..jobs.run_files import Alert, Checkpoint
from ..jobs.states import ACTIVE, RESUMABLE, Job, JobState, Link
from .answers import duration, number

_SHOWN_CHECKPOINTS = 5
_SHOWN_STEPS = 50
_VERDICT_CHARS = 1000
_MESSAGE_CHARS = 600
_SETTINGS_AT_FAULT = frozenset({"ConfigError", "RequestRefusedError"})
_EVALUATIONS = {"judge_eval": "report.html", "benchmark": "inspect"}
_SUPERVISED = ("train_mean_nll", "test/nll")
_PREFERENCES = ("dpo_loss", "accuracy", "margin", "test/accuracy", "test/pair_accuracy")
_REWARDS = ("reward/mean", "test/reward", "reward/constant_groups", "response/tokens", "episode/turns")
_MADE = ("rows/made", "rows/left_out", "answers/unreadable")
SERIES = ("step", *_SUPERVISED, *_PREFERENCES, *_REWARDS, "learning_rate", *_MADE)


class JobLine(BaseModel):
    """One job in a list. Times are ISO 8601 (UTC)."""

    job_id: str
    name: str
    kind: str
    state: str
    step: int
    total_steps: int | None
    created: str
    parents: list[Link] = []


class JobView(JobLine):
    """One job. Losses are nats per trained token."""

    backend: str
    base_model: str
    run_folder: str
    ended: str | None
    attempt: int
    error: str
    eta_s: float | None
    silent_s: float | None
    waiting: str | None
    cost_usd: float | None
    billed_usd: float | None
    metrics: dict[str, float]
    series: list[dict[str, int | float | None]]
    alerts: list[Alert]
    checkpoints: list[Checkpoint]
    final_checkpoint: Checkpoint | None
    best_checkpoint: Checkpoint | None
    verdict: str | None
    children: list[Link]
    next: str


def row(job: Job) -> dict[str, Any]:
    """A job's row in the words of answers."""
    facts = asdict(job) | {"job_id": job.id, "state": job.state.value, "run_folder": str(job.folder)}
    return facts | {"created": iso(job.created), "ended": iso(job.ended) if job.ended else None}


def view(job: Job, *, since_step: int | None = None) -> JobView:
    """Everything about one job that fits an answer; the series holds what came after ``since_step``."""
    records = run_files.recent_metrics(job.folder, since_step=since_step, limit=_SHOWN_STEPS)
    result = run_files.result(job.folder) if job.state not in ACTIVE else None
    parents, children = Registry().family(job.id)
    return JobView(
        **row(job),
        eta_s=_eta_s(job),
        silent_s=silence_s(job),
        waiting=_waiting(job),
        billed_usd=run_files.billed_usd(job.folder),
        metrics=run_files.latest_values(records),
        series=[{name: r[name] for name in SERIES if name in r} for r in records],
        alerts=run_files.alerts(job.folder, limit=10),
        checkpoints=run_files.checkpoints(job.folder, limit=_SHOWN_CHECKPOINTS),
        final_checkpoint=result.final_checkpoint if result else None,
        best_checkpoint=result.best_checkpoint if result else None,
        verdict=result.verdict_text if result else None,
        parents=parents,
        children=children,
        next=next_step(job),
    )


def _waiting(job: Job) -> str | None:
    """What a job waits for now, in words; None if it works, or has ended."""
    if job.state is JobState.QUEUED:
        return _queue(job)
    if job.state not in ACTIVE:
        return None
    if run_files.is_parked(job.folder):
        return f"the assistant's verdicts: {submit(job.id)}"
    held_up = run_files.waiting(job.folder)
    if held_up is None:
        return None
    explained = f" ({foreign(held_up.detail)})" if held_up.detail else ""
    return f"the backend: {named(held_up.reason)}{explained} since {iso(held_up.since)}; it goes on by itself"


def _queue(job: Job) -> str:
    """Who has the places that a queued job waits for."""
    from ..jobs.worker import LIMIT_VARIABLE, job_limit

    ahead = [other for other in Registry().find(states=ACTIVE, limit=1000) if _stands_before(other, job)]
    if not ahead:
        return "its process to start"
    who = ", ".join(f"{other.id} ({other.state.value})" for other in ahead[:3])
    more = f" and {len(ahead) - 3} more" if len(ahead) > 3 else ""
    limit = f"{job_limit(job.backend)} at a time, {LIMIT_VARIABLE.format(backend=job.backend.upper())}"
    return f"a place on backend {job.backend} ({limit}), after {who}{more}; it starts by itself"


def _stands_before(other: Job, job: Job) -> bool:
    if other.backend != job.backend or other.id == job.id:
        return False
    if other.state is JobState.QUEUED:
        return other.queued < job.queued
    return not run_files.is_parked(other.folder)


def submit(job_id: str) -> str:
    """The call that hands in verdicts, and shows what is to be judged."""
    return f"submit_verdicts(job_id='{job_id}')"


def iso(seconds: float) -> str:
    """A time as ISO 8601 in UTC, to the second."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _eta_s(job: Job) -> float | None:
    """Time left at the measured pace of the last steps; None before two steps are logged."""
    if job.state is not JobState.RUNNING or not job.total_steps:
        return None
    records = run_files.recent_metrics(job.folder, limit=20)
    paces = [pace for record in records if (pace := _pace_s(record)) is not None]
    if len(paces) < 2:
        return None
    return round((job.total_steps - job.step) * sum(paces) / len(paces), 1)


def _pace_s(record: dict[str, Any]) -> float | None:
    """Seconds of a step. A loop that works ahead logs two parts, since its total counts steps twice."""
    if "time/finish_batch" in record:
        return float(record["time/submit_batch"] + record["time/finish_batch"])
    return record.get("time/total")


def next_step(job: Job) -> str:
    """The sensible next call for a job in this state."""
    if job.state is JobState.SUCCEEDED and job.kind in _EVALUATIONS:
        return f"read the answers behind the number before you believe it: {job.folder / _EVALUATIONS[job.kind]}"
    if job.state is JobState.SUCCEEDED and job.kind == "generation":
        made = run_files.result(job.folder)
        return f"read some of {made.numbers['files'][0]}, then {made.numbers['next']}" if made else str(job.folder)
    if job.state is JobState.SUCCEEDED and job.kind == "reward_model":
        part = f"{{'type': 'preference_model', 'checkpoint': '{job.id}'}}"
        return f"start_grpo(overrides={{'rewards': [{part}], ...}}) to train against it"
    if job.state is JobState.SUCCEEDED:
        return f"sample_model(model='{job.id}', prompts=[...]) to try the result"
    if job.state is JobState.FAILED:
        return _after_failure(job)
    if job.state in RESUMABLE:
        return f"resume_job(job_id='{job.id}') to go on from the last checkpoint"
    if job.state in ACTIVE and run_files.is_parked(job.folder):
        return f"{submit(job.id)} gives you packets to judge"
    since = f", since_step={job.step}" if job.state is JobState.RUNNING else ""
    return f"wait_for_job(job_id='{job.id}'{since})"


def _after_failure(job: Job) -> str:
    """A resumed job has the same settings, so that it is no way out where these are at fault."""
    tool = KINDS[job.kind].tool if job.kind in KINDS else "the tool that started it"
    last = run_files.alerts(job.folder, limit=1)
    if last and last[0].cause in _SETTINGS_AT_FAULT:
        return f"correct what the error names and start again with {tool}: resume_job would meet the same settings"
    return f"fix what the error names; resume_job(job_id='{job.id}') goes on with the same settings, {tool} with others"


def summary(job: JobView) -> str:
    """A job in a few lines."""
    steps = f"step {job.step}" + (f" of {job.total_steps}" if job.total_steps else "")
    made_from = ", ".join(f"{parent.job_id} ({parent.role})" for parent in job.parents)
    lines = [f"{job.job_id} ({named(job.name)}): {job.state}, {steps}, {named(job.base_model)} on {job.backend}."]
    lines += [f"Made from {made_from}."] * bool(made_from)
    if job.eta_s is not None:
        lines.append(f"About {duration(job.eta_s)} left at the measured pace.")
    names = ("train_mean_nll", "test/nll", "dpo_loss", "test/accuracy", "chosen_logratio", "reward/mean", "test/reward")
    names += ("reward/constant_groups", "episode/turns", "test/pair_accuracy", "learning_rate", *_MADE)
    values = [f"{name} {number(job.metrics[name])}" for name in names if name in job.metrics]
    if values:
        lines.append("Latest: " + ", ".join(values) + ".")
    if job.waiting:
        lines.append(f"It waits for {job.waiting}.")
    if job.cost_usd:
        billed = f", ${job.billed_usd:.4g} billed so far" if job.billed_usd is not None else ""
        lines.append(f"Cost so far: ${job.cost_usd:.4g} metered{billed}.")
    if job.silent_s and not job.waiting:
        lines.append(f"No sign of life for {duration(job.silent_s)}: the process is alive but stuck.")
    if job.error:
        lines.append(f"Error: {_quoted(job.error)}")
    lines += [f"[{named(a.level)}] {_quoted(a.message)}" for a in job.alerts[-3:] if a.message != job.error]
    if job.verdict:  # it names arms, criteria and categories in the words of the user's files
        lines.append(foreign(job.verdict.strip(), _VERDICT_CHARS, lines=True))
    for label, checkpoint in (("Final", job.final_checkpoint), ("Best", job.best_checkpoint)):
        if checkpoint:
            lines.append(f"{label} checkpoint: {named(checkpoint.sampler_path)}")
    lines.append(f"Files: {job.run_folder}")
    lines.append(f"Next: {job.next}")
    return "\n".join(lines)


def _quoted(message: str) -> str:
    """What a job's process said: it may repeat a row, a model, a program or a server."""
    return foreign(message.replace("⟪", "'").replace("⟫", "'"), _MESSAGE_CHARS)


def age(seconds: float) -> str:
    """How long ago a time was."""
    return duration(max(0.0, time.time() - seconds)) + " ago"
