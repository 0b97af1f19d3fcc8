"""Steering the cookbook's DPO loop. It blocks, so these clients have the SDK's blocking calls. Imports tinker."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import tinker
import torch

from ..steering import LossNotFiniteError, SteeredTrainingClient, Steering, StopTrainingError, adapter_choice
from .config import DpoConfig
from .preference_loss import preference_loss, preference_metrics
from .scores import ReferenceSums, pair_scores, weighted_sums


@dataclass(slots=True, kw_only=True)
class PreferenceSteering(Steering):
    """`Steering` with the reference of a DPO run."""

    reference: ReferenceSums


class _NoSampler:
    """Stands for the loop's reference model: our loss reads the kept sums instead, so nothing is computed twice."""

    async def compute_logprobs_async(self, sequence: tinker.ModelInput) -> list[float]:
        return [0.0] * sequence.length


@dataclass(frozen=True, slots=True)
class _StepFuture:
    inner: Any
    done: Callable[[], None]

    def result(self) -> Any:
        result = self.inner.result()
        self.done()
        return result


class SteeredDpoClient(SteeredTrainingClient):
    """A training client whose custom loss is the job's preference loss, whatever function the loop hands over."""

    def __init__(self, inner: Any, steering: PreferenceSteering) -> None:
        super().__init__(inner, steering)
        self._preferences = steering

    def save_weights_and_get_sampling_client(self) -> _NoSampler:
        """The loop asks for its reference by this call, and for nothing else."""
        return _NoSampler()

    def forward_backward_custom(self, data: list[tinker.Datum], _loop_loss: Any) -> Any:
        """Send a batch of pairs with the job's loss.

        Raises:
            StopTrainingError: If the run has to stop; every step taken is logged by then.
        """
        steering = self._preferences
        if steering.stopped or steering.should_stop():
            steering.stopped = True
            raise StopTrainingError
        steering.tokens_submitted += sum(datum.model_input.length for datum in data)
        reference = steering.reference.of(data)

        def loss(batch: Sequence[tinker.Datum], logprobs: list[torch.Tensor]) -> tuple[torch.Tensor, dict[str, float]]:
            return batch_loss(cast("DpoConfig", steering.config), batch, logprobs, reference, steering.next_step)

        return self.inner.forward_backward_custom(data, loss)

    def optim_step(self, adam_params: tinker.AdamParams) -> _StepFuture:
        """Take an optimizer step with the job's weight decay and clipping."""
        steering = self._preferences
        settings = steering.config
        changes = {"weight_decay": settings.weight_decay, "grad_clip_norm": settings.grad_clip}
        steering.next_step += 1
        step = steering.next_step
        future = self.inner.optim_step(adam_params.model_copy(update=changes))
        return _StepFuture(future, lambda: steering.on_step(step))


def batch_loss(
    config: DpoConfig, data: Sequence[tinker.Datum], logprobs: list[torch.Tensor], reference: torch.Tensor, step: int
) -> tuple[torch.Tensor, dict[str, float]]:
    """The job's loss of a batch and what is logged of it.

    Raises:
        LossNotFiniteError: If the loss is not a number.
    """
    scores = pair_scores(data, weighted_sums(data, logprobs), reference)
    loss = preference_loss(scores, loss=config.loss, beta=config.beta, label_smoothing=config.label_smoothing)
    if not math.isfinite(float(loss)):
        raise LossNotFiniteError(
            f"the loss is not a number at step {step}", fix="Resume from the last checkpoint with learning_rate / 3"
        )
    return loss, preference_metrics(scores, loss, beta=config.beta)


class SteeredDpoService:
    """A service client whose blocking calls give `SteeredDpoClient`."""

    def __init__(self, inner: Any, steering: Steering) -> None:
        self._inner = inner
        self._steering = cast("PreferenceSteering", steering)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def create_lora_training_client(
        self, base_model: str, rank: int = 32, user_metadata: dict[str, str] | None = None
    ) -> SteeredDpoClient:
        """A fresh adapter on the layers the job chose."""
        return self._steer(
            self._inner.create_lora_training_client(
                base_model=base_model, rank=rank, user_metadata=user_metadata, **adapter_choice(self._steering.config)
            )
        )

    def create_training_client_from_state(
        self, path: str, user_metadata: dict[str, str] | None = None
    ) -> SteeredDpoClient:
        """An adapter that starts from saved weights."""
        return self._steer(self._inner.create_training_client_from_state(path, user_metadata=user_metadata))

    def create_training_client_from_state_with_optimizer(
        self, path: str, user_metadata: dict[str, str] | None = None
    ) -> SteeredDpoClient:
        """An adapter that goes on from saved weights and moments."""
        create = self._inner.create_training_client_from_state_with_optimizer
        return self._steer(create(path, user_metadata=user_metadata))

    def _steer(self, client: Any) -> SteeredDpoClient:
        return SteeredDpoClient(client, self._steering)
