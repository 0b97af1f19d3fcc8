"""Held-out loss during training, and keeping the checkpoint that had the lowest. Heavy: imports the cookbook."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tinker
from tinker_cookbook.eval.evaluators import TrainingClientEvaluator
from tinker_cookbook.supervised.nll_evaluator import SamplerNLLEvaluator

from ..best_checkpoint import BestKeeper
from ..steering import Steering

NLL = "test/nll"


class Validation(TrainingClientEvaluator):
    """Measures ``test/nll`` and ``test/bpb`` of the current weights; saves them when the NLL is the lowest so far."""

    def __init__(self, data: Sequence[tinker.Datum], tokenizer: Any, steering: Steering, folder: Path) -> None:
        self._evaluator = SamplerNLLEvaluator(list(data), name="test", tokenizer=tokenizer)
        self._keeper = BestKeeper(folder, steering, NLL)

    async def __call__(self, training_client: Any) -> dict[str, float]:
        """Measure, and keep the weights if they are the best yet."""
        sampler = await training_client.save_weights_and_get_sampling_client_async()
        metrics = await self._evaluator(sampler)
        await self._keeper.consider(training_client, metrics[NLL])
        return metrics
