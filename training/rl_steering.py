"""Steering the cookbook's RL loop: steps counted by batch, seeds for samples, a stop between steps. Imports tinker."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import tinker

from sota_ml_researcher.training.rl_config import RlConfig
from sota_ml_researcher.training.rl_rollouts import sampling_seed
from sota_ml_researcher.training.steering import (
    LossFuture,
    SteeredServiceClient,
    SteeredTrainingClient,
    Steering,
    StopTrainingError,
)


@dataclass(frozen=True, slots=True)
class SeededSamplingClient:
    """A sampling client that gives each sample the seed its environment set."""

    inner: Any

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    async def sample_async(self, prompt: tinker.ModelInput, num_samples: int, sampling_params: Any) -> Any:
        """Sample with this task's seed."""
        params = sampling_params.model_copy(update={"seed": sampling_seed.get()})
        return await self.inner.sample_async(prompt=prompt, num_samples=num_samples, sampling_params=params)


class SteeredRlClient(SteeredTrainingClient):
    """A training client for a loop whose step is a batch of groups, however many optimizer steps it takes.

    The loop ends every step by asking for the new weights; that is where a step is counted.
    """

    def __init__(self, inner: Any, steering: Steering) -> None:
        super().__init__(inner, steering)
        self._under_way = False

    async def forward_backward_async(self, data: list[tinker.Datum], loss_fn: str, **kwargs: Any) -> Any:
        """Send a batch.

        Raises:
            StopTrainingError: If the run has to stop and this would be the first batch of a step.
        """
        steering = self._steering
        if not self._under_way and steering.should_stop():
            steering.stopped = True
            raise StopTrainingError
        self._under_way = True
        steering.tokens_submitted += sum(datum.model_input.length for datum in data)
        future = await self.inner.forward_backward_async(data, loss_fn, **kwargs)
        return LossFuture(future, steering.next_step)

    async def optim_step_async(self, adam_params: tinker.AdamParams) -> Any:
        """Send an optimizer step with the job's settings, for which the loop has no parameters."""
        settings = cast("RlConfig", self._steering.config)
        changes = {
            "beta1": settings.adam_beta1,
            "beta2": settings.adam_beta2,
            "eps": settings.adam_eps,
            "weight_decay": settings.weight_decay,
            "grad_clip_norm": settings.grad_clip,
        }
        return await self.inner.optim_step_async(adam_params.model_copy(update=changes))

    async def save_state_async(self, name: str, ttl_seconds: int | None = None) -> Any:
        """Save a training state; the step under way is done by then."""
        self._count()
        return await super().save_state_async(name, ttl_seconds)

    async def save_weights_and_get_sampling_client_async(self) -> SeededSamplingClient:
        """The weights of now, for sampling."""
        self._count()
        return SeededSamplingClient(await self.inner.save_weights_and_get_sampling_client_async())

    def create_sampling_client(self, model_path: str) -> SeededSamplingClient:
        """Saved weights, for sampling."""
        return SeededSamplingClient(self.inner.create_sampling_client(model_path))

    def _count(self) -> None:
        if self._under_way:
            self._under_way = False
            self._steering.next_step += 1
            self._steering.on_step(self._steering.next_step)


class SteeredRlService(SteeredServiceClient):
    """A service client whose training clients are `SteeredRlClient`."""

    async def _steer(self, client: Any) -> SteeredRlClient:
        return SteeredRlClient(await client, self.steering)
