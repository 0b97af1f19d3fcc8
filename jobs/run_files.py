"""What lies in a run's folder, and reading it while a worker writes to it: of a long file only the tail."""

from __future__ import annotations

import json
import math
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from ..core.files import write_atomically

CONFIG = "config.yaml"
ENVIRONMENT = "environment.json"
LOG = "log.txt"
ALERTS = "alerts.jsonl"
RESULT = "result.json"
WAITING = "waiting.json"
PARKED = "parked"
ROLLOUTS = "rollouts.jsonl"
BILLING = "billing.json"
METRICS = "metrics.jsonl"
DISCARDED = "metrics.discarded.jsonl"
CHECKPOINTS = "checkpoints.jsonl"
README = "README"

_EVERY = {
    CONFIG: "the settings, each with where its value came from; runs again as it is",
    ENVIRONMENT: "versions, machine, code revision, and the SHA-256 of the data",
    LOG: "what the job's process wrote",
    ALERTS: "warnings and errors, one per line",
    "usage.json": "tokens sent to the backend, and their cost",
    WAITING: "only while the backend makes the job wait: for what, and since when",
    BILLING: "what the platform billed, once it was asked (ml-researcher costs)",
    RESULT: "how the job ended, in numbers; written last",
}
_TRAINING = _EVERY | {
    METRICS: "losses, rewards and validations, one line per step",
    DISCARDED: "metrics of steps that a resumed job took again",
    CHECKPOINTS: "the saved checkpoints and their tinker:// paths; a resumed job goes on from one",
}
# What each kind of job writes; a file that never came about was not needed.
_FILES: Mapping[str, Mapping[str, str]] = {
    "sft": _TRAINING,
    "dpo": _TRAINING | {"reference.jsonl": "log-probabilities of the answers under the reference model"},
    "reward_model": _TRAINING | {"comparisons_*.jsonl": "the pairs as comparisons in both orders"},
    "grpo": _TRAINING
    | {
        "reward_check.json": "the dry run of the reward before the first step",
        "rollouts.jsonl": "some responses of each step, with their rewards",
        "judgments.jsonl": "each verdict of a judge behind a service",
    },
    "generation": _EVERY
    | {
        METRICS: "rows made and left out, answers and cost, once per second",
        "answers.jsonl": "each answer of the model, as soon as it came; a resumed job asks for none of them again",
        "judgments.jsonl": "each verdict of the judge, with its reason",
        "rows.jsonl": "the rows, each with its provenance (eval_kit: canaries.jsonl and rubric.yaml)",
        "gated.jsonl": "what was left out, with the reason and what the model said",
    },
    "judge_eval": _EVERY
    | {
        "items.jsonl": "the prompts",
        "responses.jsonl": "each arm's answers",
        "judgments.jsonl": "each verdict of each judge, with its reason",
        "batches.jsonl": "message batches under way",
        PARKED: "only while it waits for the assistant's verdicts, and holds no place on the backend",
        "packets.jsonl": "questions for an assistant that judges; submissions.jsonl: its verdicts",
        "judges.json": "the judges and their settings",
        "controls.json": "how the judges did on pairs with known answers",
        "metrics.json": "every number of the evaluation",
        "verdict.json": "the conclusion; verdict.txt: the same in words",
        "report.html": "the report, with pictures in plots/",
        "inspect_log.json": "the evaluation as a log for Inspect's viewer",
    },
    "benchmark": _EVERY
    | {
        "inspect": "Inspect's log of each model, with every answer",
        "metrics.json": "scores with intervals, and the paired difference",
        "verdict.txt": "the same in words",
    },
}


def readme(kind: str) -> str:
    """What each file of a run's folder is, in plain text."""
    files = _FILES.get(kind, _EVERY)
    width = max(map(len, files))
    lines = [f"{name:<{width}}  {what}" for name, what in files.items()]
    return "\n".join(["The files of this run; some come only when there is something to write.", "", *lines]) + "\n"


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A saved checkpoint.

    Attributes:
        name: As it is called on the backend.
        step: Optimizer steps in it, where that was recorded.
        state_path: The training state (tinker://), to go on from.
        sampler_path: The weights for sampling (tinker://).
        best: Whether it did best on held-out data; no run is resumed from such a one.
    """

    name: str
    step: int | None
    state_path: str | None
    sampler_path: str | None
    best: bool = False

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> Checkpoint:
        """The checkpoint that a record of ``checkpoints.jsonl`` or ``result.json`` describes."""
        state = record.get("state_path") or record.get("best_state_path")
        step = record.get("step", record.get("next_step"))
        return cls(str(record.get("name", "")), step, state, record.get("sampler_path"), "best_state_path" in record)

    @property
    def paths(self) -> tuple[str, ...]:
        """Everything the backend stores of it."""
        return tuple(path for path in (self.state_path, self.sampler_path) if path)


@dataclass(frozen=True, slots=True)
class Alert:
    """Something the worker wanted to be seen.

    Attributes:
        time: Seconds since the epoch.
        level: ``info``, ``warn`` or ``error``.
        step: The step it is about, if any.
        message: What happened.
        cause: Of what ended the job the kind of error, such as ``ConfigError``.
    """

    time: float
    level: str
    step: int | None
    message: str
    cause: str = ""


@dataclass(frozen=True, slots=True)
class Waiting:
    """What the backend makes a run wait for. ``since``: seconds since the epoch."""

    reason: str
    since: float
    detail: str | None = None


@dataclass(frozen=True, slots=True)
class RunResult:
    """What a worker wrote when it finished.

    Attributes:
        final_checkpoint: The last one, if the job trains.
        best_checkpoint: The one that did best on held-out data, if there were any.
        tokens_trained: Tokens sent for training; None if the job trains nothing.
        wall_s: Seconds from its first step to its end.
        verdict_text: The conclusion of an evaluation, in words.
        numbers: Everything that was written.
    """

    final_checkpoint: Checkpoint | None
    best_checkpoint: Checkpoint | None
    tokens_trained: int | None
    wall_s: float | None
    verdict_text: str | None
    numbers: Mapping[str, Any]


def lines_backwards(path: Path, *, block: int = 64 * 1024) -> Iterator[bytes]:
    """Complete lines of a file, last first, reading from its end in blocks; a line still being written is left out."""
    if not path.exists():
        return
    with path.open("rb") as file:
        position = file.seek(0, 2)
        rest, first = b"", True
        while position > 0:
            size = min(block, position)
            position -= size
            file.seek(position)
            rest, *lines = (file.read(size) + rest).split(b"\n")
            if first and lines:
                lines.pop()  # empty, or a line still being written
                first = False
            elif first:
                rest = b""
            yield from reversed(lines)
        if rest:
            yield rest


def recent_metrics(folder: Path, *, since_step: int | None = None, limit: int = 200) -> list[dict[str, Any]]:
    """The newest metric records in order of step: those after ``since_step``, at most ``limit`` of them."""
    records: list[dict[str, Any]] = []
    for line in lines_backwards(folder / METRICS):
        if not line.strip():
            continue
        record: dict[str, Any] = json.loads(line)
        step = record.get("step")
        if since_step is not None and isinstance(step, int) and step <= since_step:
            break
        records.append(record)
        if len(records) >= limit:
            break
    return records[::-1]


def latest_values(records: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """The last finite value of each numeric metric in ``records``."""
    values: dict[str, float] = {}
    for record in reversed(records):  # the last one has nearly all of them
        values |= {name: v for name, v in record.items() if name not in values and _is_finite_number(v)}
    values.pop("step", None)
    return values


def _is_finite_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def checkpoints(folder: Path, *, limit: int | None = None) -> list[Checkpoint]:
    """What was saved, oldest first; the newest ``limit``, if that is given."""
    newest = islice(lines_backwards(folder / CHECKPOINTS), limit)
    return [Checkpoint.of(json.loads(line)) for line in newest if line.strip()][::-1]


def alerts(folder: Path, *, limit: int = 20) -> list[Alert]:
    """The newest alerts, oldest first."""
    newest = islice(lines_backwards(folder / ALERTS), limit)
    return [Alert(**json.loads(line)) for line in newest][::-1]


def billed_usd(folder: Path) -> float | None:
    """What the platform had billed for a run when it was last asked, or None."""
    return (_read(folder / BILLING) or {}).get("cost_usd")


def waiting(folder: Path) -> Waiting | None:
    """What the backend makes a run wait for now, or None."""
    record = _read(folder / WAITING)
    return Waiting(**record) if record else None


@contextmanager
def parked(folder: Path) -> Generator[None]:
    """A stretch in which a run computes nothing and only waits for somebody: meanwhile it holds no place."""
    write_atomically(folder / PARKED, "")
    try:
        yield
    finally:
        (folder / PARKED).unlink(missing_ok=True)


def is_parked(folder: Path) -> bool:
    """Whether a run only waits for somebody now."""
    return (folder / PARKED).exists()


def result(folder: Path) -> RunResult | None:
    """What the worker wrote when it finished, or None."""
    record = _read(folder / RESULT)
    if record is None:
        return None
    final, best = record.get("final_checkpoint"), record.get("best_checkpoint")
    return RunResult(
        Checkpoint.of(final) if final else None,
        Checkpoint.of({**best, "best_state_path": best.get("state_path")}) if best else None,
        record.get("tokens_trained"),
        record.get("wall_s"),
        record.get("verdict_text"),
        record,
    )


def _read(path: Path) -> Mapping[str, Any] | None:
    try:
        return json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
