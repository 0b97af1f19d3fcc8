"""Which step comes next, after a kill at any moment.

``states.jsonl`` has one line for each saved training state: its path and how many optimizer steps are in it.
The loop's own record cannot be used for that: it names a batch whose step is already in the state, so a resume by
it would take that step twice (tinker-cookbook issue 935).
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..core.files import append_json_line, drop_torn_line, read_json_lines, write_json_lines

STATES = "states.jsonl"
METRICS = "metrics.jsonl"
DISCARDED = "metrics.discarded.jsonl"
CHECKPOINTS = "checkpoints.jsonl"


@dataclass(frozen=True, slots=True)
class ResumePoint:
    """A saved state to go on from: its path, the number of steps in it, and the tokens sent for them."""

    state_path: str
    next_step: int
    tokens: int = 0


def note_state(folder: Path, state_path: str, next_step: int, tokens: int) -> None:
    """Write down that ``state_path`` holds ``next_step`` steps, for which ``tokens`` were sent."""
    record = {"state_path": state_path, "next_step": next_step, "tokens": tokens, "time": time.time()}
    append_json_line(folder / STATES, record)


def find_resume_point(folder: Path) -> ResumePoint | None:
    """The latest state for which every earlier step's metrics are on disk, or None to start over.

    A state can be ahead of the metrics by the steps the loop had submitted but not yet logged; going on from it
    would leave a hole in the loss curve, so the state before it is taken.
    """
    logged = {r["step"] for r in read_json_lines(folder / METRICS) if _is_of_a_step(r)}
    states = [
        ResumePoint(str(r["state_path"]), int(r["next_step"]), int(r.get("tokens", 0)))
        for r in read_json_lines(folder / STATES)
    ]
    complete = [s for s in states if all(step in logged for step in range(s.next_step))]
    return max(complete, key=lambda s: s.next_step, default=None)


def _is_of_a_step(record: dict[str, Any]) -> bool:
    """Whether a step was logged, and not only a validation beside it, which overlapping steps log by itself."""
    return "step" in record and any(not name.startswith(("step", "test/", "time/")) for name in record)


def prepare_folder(folder: Path, point: ResumePoint | None, *, batches_per_epoch: int | None) -> None:
    """Make the folder look as it did at the resume point, so that the loop goes on from there exactly.

    Metrics of steps that will be taken again move to ``metrics.discarded.jsonl``; the loop's own checkpoint file
    gets a record that names the next batch, counted from the run's start where ``batches_per_epoch`` is None.
    """
    for path in folder.glob("*.jsonl"):
        drop_torn_line(path)
    next_step = point.next_step if point else 0
    _set_aside_metrics(folder, next_step)
    if point is None:
        (folder / CHECKPOINTS).unlink(missing_ok=True)
        return
    record = {"name": f"resume-{next_step:06d}", "state_path": point.state_path, "next_step": next_step}
    append_json_line(folder / CHECKPOINTS, {**record, **loop_place(next_step, batches_per_epoch)})


def loop_place(step: int, batches_per_epoch: int | None) -> dict[str, int]:
    """Where a loop stands after ``step`` steps, in the words of its checkpoint records."""
    if batches_per_epoch is None:
        return {"batch": step}
    return {"epoch": step // batches_per_epoch, "batch": step % batches_per_epoch}


def _set_aside_metrics(folder: Path, next_step: int) -> None:
    records = list(read_json_lines(folder / METRICS))
    kept = [r for r in records if r.get("step", 0) < next_step]
    if len(kept) == len(records):
        return
    for record in records[len(kept) :] if kept == records[: len(kept)] else [r for r in records if r not in kept]:
        append_json_line(folder / DISCARDED, record)
    write_json_lines(folder / METRICS, kept)
