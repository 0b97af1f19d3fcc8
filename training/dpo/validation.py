"""Held-out pairs during training, and the checkpoint with the lowest loss on them. Heavy: imports the cookbook."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import tinker
import torch
from tinker_cookbook.eval.evaluators import TrainingClientEvaluator

from ..best_checkpoint import BestKeeper
from .config import DpoConfig
from .preference_loss import preference_loss, preference_metrics
from .scores import forward_sums, pair_scores
from .steering import PreferenceSteering

HELD_OUT_LOSS = "test/dpo_loss"
_CHUNK = 128


class PreferenceValidation(TrainingClientEvaluator):
    """Measures the job's loss, accuracy and margin on held-out pairs; keeps the weights with the lowest loss."""

    def __init__(self, data: Sequence[tinker.Datum], steering: PreferenceSteering, folder: Path) -> None:
        self.data = list(data)
        self._steering = steering
        self._keeper = BestKeeper(folder, steering, HELD_OUT_LOSS)

    async def __call__(self, training_client: Any) -> dict[str, float]:
        """Measure, and keep the weights if they are the best yet."""
        config = cast("DpoConfig", self._steering.config)
        sums: list[float] = []
        for start in range(0, len(self.data), _CHUNK):
            sums += await forward_sums(training_client, self.data[start : start + _CHUNK])
        policy = torch.tensor(sums, dtype=torch.float64)
        scores = pair_scores(self.data, policy, self._steering.reference.of(self.data))
        loss = preference_loss(scores, loss=config.loss, beta=config.beta, label_smoothing=config.label_smoothing)
        metrics = {f"test/{name}": value for name, value in preference_metrics(scores, loss, beta=config.beta).items()}
        await self._keeper.consider(training_client, metrics[HELD_OUT_LOSS])
        return metrics
