"""Steering the cookbook's RL loop: steps counted by batch, seeds for samples, a stop between steps. Imports tinker."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any, cast

import tinker

from ..steering import LossFuture, SteeredServiceClient, SteeredTrainingClient, Steering, StopTrainingError
from .config import RlConfig
from .seeds import group_key

# How long a request waits for the other members of its group.
_MOMENT_S = 0.05


@dataclass(frozen=True, slots=True)
class _OneSample:
    """One member's share of a group's answer, with what the loop reads of it."""

    sequences: list[Any]


class GroupSamplingClient:
    """A sampling client that asks once for all the samples of a group, with the group's seed.

    The loop asks for every sample by itself, with no seed. One request with ``num_samples`` computes the prompt once,
    and its samples differ from each other although the request as a whole can be repeated.
    """

    def __init__(self, inner: Any) -> None:
        self._inner = inner
        self._open: dict[tuple[Any, ...], list[asyncio.Future[Any]]] = {}
        self._running: set[asyncio.Task[None]] = set()
        self._sent: dict[int, int] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    async def sample_async(self, prompt: tinker.ModelInput, num_samples: int, sampling_params: Any) -> Any:
        """Sample; the members of a group that ask within a moment of each other share a request."""
        group = group_key.get()
        if group is None or num_samples != 1:
            return await self._inner.sample_async(
                prompt=prompt, num_samples=num_samples, sampling_params=sampling_params
            )
        key = (group.seed, tuple(prompt.to_ints()), sampling_params.max_tokens)
        loop = asyncio.get_running_loop()
        members = self._open.setdefault(key, [])
        if not members:
            loop.call_later(_MOMENT_S, self._send, key, prompt, sampling_params)
        mine: asyncio.Future[Any] = loop.create_future()
        members.append(mine)
        if len(members) >= group.members:
            self._send(key, prompt, sampling_params)
        return await mine

    def _send(self, key: tuple[Any, ...], prompt: tinker.ModelInput, params: Any) -> None:
        members = self._open.pop(key, [])
        if members:
            task = asyncio.get_running_loop().create_task(self._ask(key[0], prompt, params, members))
            self._running.add(task)
            task.add_done_callback(self._running.discard)

    async def _ask(self, seed: int, prompt: tinker.ModelInput, params: Any, members: list[asyncio.Future[Any]]) -> None:
        # Stragglers of a group that was sent already must not get its samples again.
        seeded = params.model_copy(update={"seed": (seed + self._repeats(seed)) % (2**31 - 1)})
        try:
            answer = await self._inner.sample_async(prompt=prompt, num_samples=len(members), sampling_params=seeded)
        except Exception as error:  # every member waits for this one request
            for member in members:
                if not member.done():
                    member.set_exception(error)
            return
        for member, sequence in zip(members, answer.sequences, strict=True):
            if not member.done():
                member.set_result(_OneSample([sequence]))

    def _repeats(self, seed: int) -> int:
        self._sent[seed] = self._sent.get(seed, -1) + 1
        return self._sent[seed]


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

    async def save_weights_and_get_sampling_client_async(self) -> GroupSamplingClient:
        """The weights of now, for sampling."""
        self._count()
        return GroupSamplingClient(await self.inner.save_weights_and_get_sampling_client_async())

    def create_sampling_client(self, model_path: str) -> GroupSamplingClient:
        """Saved weights, for sampling."""
        return GroupSamplingClient(self.inner.create_sampling_client(model_path))

    def _count(self) -> None:
        if self._under_way:
            self._under_way = False
            self._steering.next_step += 1
            self._steering.on_step(self._steering.next_step)


class SteeredRlService(SteeredServiceClient):
    """A service client whose training clients are `SteeredRlClient`."""

    async def _steer(self, client: Any) -> SteeredRlClient:
        return SteeredRlClient(await client, self.steering)
