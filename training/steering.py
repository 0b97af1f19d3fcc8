"""Steering the cookbook's supervised loop from outside it.

`tinker_cookbook.supervised.train.main` builds its own ``ServiceClient`` and has no hook for what a job needs:
choosing adapted layers and the adapter's seed, weight decay and clipping, progress, a graceful stop, and a
checkpoint that says truly which step comes next. The clients here stand in for the SDK's, pass every call on, and
add just that. Heavy: imports tinker.

A checkpoint named ``000010`` by the loop holds, depending on how far ahead it submits, one step or two more than
its record says (tinker-cookbook issue 935 is a consequence). `SteeredTrainingClient` counts the optimizer steps
submitted before each save, and that count is what a resume goes by.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Protocol

import tinker

from ..core.errors import ResearcherError
from ..core.names import COMPONENTS, Component


class StopTrainingError(Exception):
    """Raised inside the loop, after every step taken is logged, when the run has to stop early."""


class AdapterSettings(Protocol):
    """What every kind of training job says about its adapter and its optimizer."""

    @property
    def seed(self) -> int: ...  # noqa: D102
    @property
    def apply_to(self) -> tuple[Component, ...]: ...  # noqa: D102
    @property
    def weight_decay(self) -> float: ...  # noqa: D102
    @property
    def grad_clip(self) -> float: ...  # noqa: D102


@dataclass(slots=True)
class Steering:
    """What passes between the loop and the worker.

    Attributes:
        config: The job's settings.
        should_stop: Asked before each step.
        on_step: Told the number of steps done, after each.
        on_saved: Told (state path, steps in it, tokens sent for them) when a training state is saved.
        next_step: Steps submitted so far, counted from the start of the job.
        stopped: Whether steps are refused now.
    """

    config: AdapterSettings
    should_stop: Callable[[], bool]
    on_step: Callable[[int], None]
    on_saved: Callable[[str, int, int], None]
    next_step: int = 0
    stopped: bool = False
    client: SteeredTrainingClient | None = None
    tokens_submitted: int = 0
    rest: tinker.RestClient | None = None


def adapter_choice(settings: AdapterSettings) -> dict[str, Any]:
    """The SDK's arguments for a fresh adapter on the layers a job chose."""
    return {"seed": settings.seed, **{f"train_{part}": part in settings.apply_to for part in COMPONENTS}}


@dataclass(slots=True)
class _SkippedFuture:
    """Stands for a step that was never sent: waiting for it ends the loop."""

    async def result_async(self, timeout: float | None = None) -> Any:
        raise StopTrainingError


@dataclass(slots=True)
class _StepFuture:
    """An optimizer step under way; reports when it is done."""

    inner: Any
    done: Callable[[], None]

    async def result_async(self, timeout: float | None = None) -> Any:
        result = await self.inner.result_async(timeout)
        self.done()
        return result


@dataclass(slots=True)
class _SaveFuture:
    """A save under way; reports the path with the step count of the moment it was asked for."""

    inner: Any
    done: Callable[[str], None]

    async def result_async(self, timeout: float | None = None) -> Any:
        result = await self.inner.result_async(timeout)
        self.done(result.path)
        return result


class LossNotFiniteError(ResearcherError, ArithmeticError):
    """The loss became nan or infinite: going on would spend money on noise."""


@dataclass(slots=True)
class LossFuture:
    """A forward-backward under way; refuses a loss that is not a number."""

    inner: Any
    step: int

    async def result_async(self, timeout: float | None = None) -> Any:
        """The result.

        Raises:
            LossNotFiniteError: If its loss is not a number.
        """
        result = await self.inner.result_async(timeout)
        bad = {k: v for k, v in result.metrics.items() if k.startswith("loss") and not math.isfinite(v)}
        if bad:
            raise LossNotFiniteError(
                f"the loss is not a number ({bad}) at step {self.step}",
                fix="Resume from the last checkpoint with learning_rate / 3, and look at that batch's rows",
            )
        return result


class SteeredTrainingClient:
    """A training client that passes every call on, and refuses further steps once the run has to stop.

    Attributes:
        inner: The SDK's client.
    """

    def __init__(self, inner: Any, steering: Steering) -> None:
        self.inner = inner
        self._steering = steering
        steering.client = self

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    async def forward_backward_async(self, data: list[tinker.Datum], loss_fn: str, **kwargs: Any) -> Any:
        """Send a batch, unless the run has to stop."""
        steering = self._steering
        steering.stopped = steering.stopped or steering.should_stop()
        if steering.stopped:
            return _SkippedFuture()
        steering.tokens_submitted += sum(datum.model_input.length for datum in data)
        future = await self.inner.forward_backward_async(data, loss_fn, **kwargs)
        return LossFuture(future, steering.next_step)

    async def optim_step_async(self, adam_params: tinker.AdamParams) -> Any:
        """Send an optimizer step with the job's weight decay and clipping."""
        steering = self._steering
        if steering.stopped:
            return _SkippedFuture()
        settings = steering.config
        adam_params = adam_params.model_copy(
            update={"weight_decay": settings.weight_decay, "grad_clip_norm": settings.grad_clip}
        )
        steering.next_step += 1
        step = steering.next_step
        return _StepFuture(await self.inner.optim_step_async(adam_params), lambda: steering.on_step(step))

    async def save_state_async(self, name: str, ttl_seconds: int | None = None) -> Any:
        """Save a training state, noting how many steps are in it."""
        step, tokens = self._steering.next_step, self._steering.tokens_submitted
        future = await self.inner.save_state_async(name, ttl_seconds=ttl_seconds)
        return _SaveFuture(future, lambda path: self._steering.on_saved(path, step, tokens))


@dataclass(frozen=True, slots=True)
class SteeredServiceClient:
    """A service client whose training clients are steered."""

    inner: Any
    steering: Steering

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    async def create_lora_training_client_async(
        self, base_model: str, rank: int = 32, user_metadata: dict[str, str] | None = None
    ) -> SteeredTrainingClient:
        """A fresh adapter on the layers the job chose."""
        choice = adapter_choice(self.steering.config)
        return await self._steer(
            self.inner.create_lora_training_client_async(
                base_model=base_model, rank=rank, user_metadata=user_metadata, **choice
            )
        )

    async def create_training_client_from_state_async(
        self, path: str, user_metadata: dict[str, str] | None = None
    ) -> SteeredTrainingClient:
        """An adapter that starts from saved weights."""
        return await self._steer(self.inner.create_training_client_from_state_async(path, user_metadata=user_metadata))

    async def create_training_client_from_state_with_optimizer_async(
        self, path: str, user_metadata: dict[str, str] | None = None
    ) -> SteeredTrainingClient:
        """An adapter that goes on from saved weights and moments."""
        return await self._steer(
            self.inner.create_training_client_from_state_with_optimizer_async(path, user_metadata=user_metadata)
        )

    async def _steer(self, client: Awaitable[Any]) -> SteeredTrainingClient:
        return SteeredTrainingClient(await client, self.steering)
