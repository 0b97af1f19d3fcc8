"""What a run saves, and which step comes next after a kill at any moment.

``checkpoints.jsonl`` has one line per checkpoint. It is taken between steps, when nothing is under way, and says how
many steps are in the weights (``next_step``): an attempt goes on from there exactly. The weights that did best on
held-out data are a line of their own, whose ``best_state_path`` is no place to go on from.
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tinker

from ..core.files import append_json_line, drop_torn_line, read_json_lines, write_json_lines
from ..jobs.run_files import CHECKPOINTS, DISCARDED, METRICS
from .client import SavedWeights, TrainingClient

BEST = "best-"
FINAL = "final"
# Versions before this one kept the states to resume from in a file of their own.
_FORMER_STATES = "states.jsonl"

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ResumePoint:
    """A saved state to go on from: its path, the number of steps in it, and the tokens sent for them."""

    state_path: str
    next_step: int
    tokens: int = 0


@dataclass(frozen=True, slots=True)
class BestCheckpoint:
    """The best validation so far: its value, the number of steps in the weights, and their paths."""

    value: float
    step: int
    state_path: str
    sampler_path: str


def find_resume_point(folder: Path) -> ResumePoint | None:
    """The latest state for which every earlier step's metrics are on disk, or None to start over.

    Runs of earlier versions saved states that were ahead of the metrics by steps not logged yet; going on from such a
    one would leave a hole in the loss curve, so the state before it is taken.
    """
    logged = {r["step"] for r in read_json_lines(folder / METRICS) if _is_of_a_step(r)}
    records = [*read_json_lines(folder / _FORMER_STATES), *read_json_lines(folder / CHECKPOINTS)]
    states = [
        ResumePoint(str(r["state_path"]), int(r["next_step"]), int(r.get("tokens", 0)))
        for r in records
        if "state_path" in r and "next_step" in r
    ]
    complete = [s for s in states if all(step in logged for step in range(s.next_step))]
    return max(complete, key=lambda s: (s.next_step, s.tokens), default=None)


def _is_of_a_step(record: dict[str, Any]) -> bool:
    """Whether a step was logged, and not only a validation beside it."""
    return "step" in record and any(not name.startswith(("step", "test/", "time/")) for name in record)


def prepare_folder(folder: Path, next_step: int) -> None:
    """Make the folder look as it did when ``next_step`` steps were done.

    Lines that a kill tore are dropped, and metrics of steps that will be taken again move to
    ``metrics.discarded.jsonl``. Where the run starts over, so do its checkpoints.
    """
    for path in folder.glob("*.jsonl"):
        drop_torn_line(path)
    records = list(read_json_lines(folder / METRICS))
    again = [r for r in records if r.get("step", 0) >= next_step]
    for record in again:
        append_json_line(folder / DISCARDED, record)
    if again:
        write_json_lines(folder / METRICS, [r for r in records if r.get("step", 0) < next_step])
    if next_step == 0:
        (folder / CHECKPOINTS).unlink(missing_ok=True)


def read_best(folder: Path, metric: str) -> BestCheckpoint | None:
    """The best checkpoint recorded in a run's folder, or None."""
    records = [r for r in read_json_lines(folder / CHECKPOINTS) if str(r["name"]).startswith(BEST)]
    if not records:
        return None
    last = records[-1]
    return BestCheckpoint(last[metric], last["step"], last["best_state_path"], last["sampler_path"])


class Checkpoints:
    """Saves a run's weights and records them in its folder.

    Args:
        folder: The run's.
        client: The adapter under training.
        ttl_hours: Life of the periodic ones; the final and the best never expire.
        metric: Of a validation, which picks the best.
        highest: Whether more of it is better.
    """

    def __init__(
        self, folder: Path, client: TrainingClient, *, ttl_hours: int | None, metric: str, highest: bool
    ) -> None:
        self._folder = folder
        self._client = client
        self._ttl_hours = ttl_hours
        self._metric = metric
        self._highest = highest
        self._best = read_best(folder, metric)

    async def periodic(self, step: int) -> None:
        """Save what ``step`` steps made, for as long as periodic checkpoints live."""
        await self._save(f"{step:06d}", step, self._ttl_hours)

    async def last(self, step: int, *, stopped: bool) -> None:
        """Save what the run ends with, finished or not; unless it was saved before this attempt began."""
        name = f"stopped-{step:06d}" if stopped else FINAL
        saved = list(read_json_lines(self._folder / CHECKPOINTS))
        if not any(r.get("name") == name and r.get("next_step") == step for r in saved):
            await self._save(name, step, None)

    async def consider(self, step: int, value: float) -> None:
        """Keep the weights if ``value`` is the best yet, and let the ones they supersede go.

        The weights before the first step are not kept.
        """
        if step == 0 or (self._best is not None and not self._better(value, self._best.value)):
            return
        name = f"{BEST}{step:06d}"
        saved = await self._client.save(name, ttl_hours=None)
        previous, self._best = self._best, BestCheckpoint(value, step, saved.state_path, saved.sampler_path)
        self._record({"name": name, "step": step, self._metric: value, "best_state_path": saved.state_path}, saved)
        for path in (previous.state_path, previous.sampler_path) if previous else ():
            try:
                await self._client.delete(path)
            except tinker.TinkerError as error:
                logger.warning("The superseded best checkpoint %s could not be deleted: %s", path, error)

    async def _save(self, name: str, step: int, ttl_hours: int | None) -> None:
        saved = await self._client.save(name, ttl_hours=ttl_hours)
        record = {"name": name, "next_step": step, "tokens": self._client.tokens, "state_path": saved.state_path}
        self._record(record, saved)

    def _record(self, record: dict[str, Any], saved: SavedWeights) -> None:
        line = {**record, "sampler_path": saved.sampler_path, "time": time.time()}
        append_json_line(self._folder / CHECKPOINTS, line)

    def _better(self, value: float, than: float) -> bool:
        return value > than if self._highest else value < than
