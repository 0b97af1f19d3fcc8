"""Keeping the checkpoint that did best on held-out data. Heavy: imports tinker."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tinker

from ..core.files import append_json_line, read_json_lines
from .resume_point import CHECKPOINTS
from .steering import Steering

logger = logging.getLogger(__name__)
BEST = "best-"


@dataclass(frozen=True, slots=True)
class Best:
    """The best validation so far: its value, the number of steps in the weights, and their paths."""

    value: float
    step: int
    state_path: str
    sampler_path: str

    def as_result(self) -> dict[str, object]:
        """As ``result.json`` shows it."""
        return {"state_path": self.state_path, "sampler_path": self.sampler_path, "step": self.step}


def read_best(folder: Path, metric: str) -> Best | None:
    """The best checkpoint recorded in a run's folder, or None."""
    found = [r for r in read_json_lines(folder / CHECKPOINTS) if str(r["name"]).startswith(BEST)]
    if not found:
        return None
    last = found[-1]
    return Best(last[metric], last["step"], last["best_state_path"], last["sampler_path"])


class BestKeeper:
    """Saves the weights whenever ``metric`` is better than ever before, and lets the superseded ones go."""

    def __init__(self, folder: Path, steering: Steering, metric: str, *, highest: bool = False) -> None:
        self._folder = folder
        self._steering = steering
        self._metric = metric
        self._highest = highest
        self._best = read_best(folder, metric)

    async def consider(self, training_client: Any, value: float) -> None:
        """Keep the client's weights if ``value`` is the best yet; the weights before the first step are not kept."""
        step = self._steering.next_step
        if step == 0 or (self._best is not None and not self._better(value, self._best.value)):
            return
        name = f"{BEST}{step:06d}"
        # The inner client's save: a best state is no resume point, its step may be far behind.
        state = await (await training_client.inner.save_state_async(name, ttl_seconds=None)).result_async()
        sampler = await (await training_client.save_weights_for_sampler_async(name, ttl_seconds=None)).result_async()
        previous, self._best = self._best, Best(value, step, state.path, sampler.path)
        record = {"name": name, "step": step, self._metric: value, "best_state_path": state.path}
        append_json_line(self._folder / CHECKPOINTS, {**record, "sampler_path": sampler.path})
        if previous is not None:
            await self._forget(previous)

    def _better(self, value: float, than: float) -> bool:
        return value > than if self._highest else value < than

    async def _forget(self, previous: Best) -> None:
        rest = self._steering.rest
        if rest is None:
            return
        for path in (previous.state_path, previous.sampler_path):
            try:
                await rest.delete_checkpoint_from_tinker_path(path)
            except tinker.TinkerError as error:
                logger.warning("The superseded best checkpoint %s could not be deleted: %s", path, error)
