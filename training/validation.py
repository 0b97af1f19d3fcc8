"""Held-out loss during training, and keeping the checkpoint that had the lowest. Heavy: imports the cookbook."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tinker
from tinker_cookbook.eval.evaluators import TrainingClientEvaluator
from tinker_cookbook.supervised.nll_evaluator import SamplerNLLEvaluator

from sota_ml_researcher.core.files import append_json_line, read_json_lines
from sota_ml_researcher.training.resume_point import CHECKPOINTS
from sota_ml_researcher.training.steering import Steering

logger = logging.getLogger(__name__)
BEST = "best-"


@dataclass(frozen=True, slots=True)
class Best:
    """The best validation so far: mean NLL (nats per trained token), the step it was measured before, and paths."""

    nll: float
    step: int
    state_path: str
    sampler_path: str


def read_best(folder: Path) -> Best | None:
    """The best checkpoint recorded in a run's folder, or None."""
    found = [r for r in read_json_lines(folder / CHECKPOINTS) if str(r["name"]).startswith(BEST)]
    if not found:
        return None
    last = found[-1]
    return Best(last["test/nll"], last["step"], last["best_state_path"], last["sampler_path"])


class Validation(TrainingClientEvaluator):
    """Measures ``test/nll`` and ``test/bpb`` of the current weights; saves them when the NLL is the lowest so far."""

    def __init__(self, data: Sequence[tinker.Datum], tokenizer: Any, steering: Steering, folder: Path) -> None:
        self._evaluator = SamplerNLLEvaluator(list(data), name="test", tokenizer=tokenizer)
        self._steering = steering
        self._folder = folder
        self._tokens = sum(datum.model_input.length + 1 for datum in data)  # the whole sequence is scored
        self._best = read_best(folder)

    async def __call__(self, training_client: Any) -> dict[str, float]:
        """Measure, and keep the weights if they are the best yet."""
        meter = self._steering.meter
        if meter is not None and not meter.evaluate(prefill=self._tokens):
            logger.warning("No validation at step %d: the cap has no room for it", self._steering.next_step)
            return {}
        sampler = await training_client.save_weights_and_get_sampling_client_async()
        metrics = await self._evaluator(sampler)
        step = self._steering.next_step
        if step > 0 and (self._best is None or metrics["test/nll"] < self._best.nll):
            await self._keep(training_client, metrics["test/nll"], step)
        return metrics

    async def _keep(self, client: Any, nll: float, step: int) -> None:
        name = f"{BEST}{step:06d}"
        # The inner client's save: a best state is no resume point, its step may be far behind.
        state = await (await client.inner.save_state_async(name, ttl_seconds=None)).result_async()
        sampler = await (await client.save_weights_for_sampler_async(name, ttl_seconds=None)).result_async()
        previous, self._best = self._best, Best(nll, step, state.path, sampler.path)
        record = {"name": name, "step": step, "test/nll": nll, "best_state_path": state.path}
        append_json_line(self._folder / CHECKPOINTS, {**record, "sampler_path": sampler.path})
        if previous is not None:
            await self._forget(previous)

    async def _forget(self, previous: Best) -> None:
        rest = self._steering.rest
        if rest is None:
            return
        for path in (previous.state_path, previous.sampler_path):
            try:
                await rest.delete_checkpoint_from_tinker_path(path)
            except tinker.TinkerError as error:
                logger.warning("The superseded best checkpoint %s could not be deleted: %s", path, error)
