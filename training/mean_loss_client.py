"""The same training on a server whose losses are means where the platform's are sums.

Such a server divides each sequence's loss by the sum of its weights, and the gradient by the number of sequences since
the last update. What is sent makes up for it: every gradient is that of the sums divided by one number, the job's batch
size, which AdamW does not see once its epsilon is divided too. Its moments outlive a step, so the number never changes.

* Cross-entropy has weights alone, which are divided away. Rows whose weights sum to 1 come out right, in a batch that
  empty sequences fill up to its full size.
* A loss with advantages is linear in them: they are multiplied by what the server will divide by.
* For other rows, and for a loss that is computed here, the batch's log-probabilities are asked for first, and the
  gradient with respect to them is sent as advantages of importance sampling, whose ratio is then 1 everywhere.
"""

from __future__ import annotations

import asyncio
import dataclasses
import math
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import TypeVar

import numpy as np
import tinker
import torch
from torch import Tensor

from ..backends.connection import Backend
from ..backends.sampling_client import Sampler
from ..core.errors import BackendError
from .client import CustomLoss, SavedWeights, TrainingClient, adamw, logprobs_of, not_finite, tokens_in
from .config import TrainingConfig

T = TypeVar("T")
# Weights are float32, and sum to 1 up to this.
_ROUNDING = 1e-4
# SkyRL's name for the norm of its gradient.
_NORM = "skyrl.ai/grad_norm"


class MeanLossClient(TrainingClient):
    """An adapter under training on such a server. Requests are sent one after the other, each when it is complete."""

    def __init__(
        self, inner: tinker.TrainingClient, config: TrainingConfig, backend: Backend, *, tokens: int = 0
    ) -> None:
        super().__init__(inner, config, backend, tokens=tokens)
        self._last: asyncio.Task[object] | None = None
        # How much smaller every gradient is than that of the sums.
        self._smaller = config.batch_size or 1

    def forward_backward(
        self,
        data: Sequence[tinker.Datum],
        loss_fn: tinker.types.LossFnType,
        settings: Mapping[str, float] | None = None,
    ) -> Awaitable[tinker.ForwardBackwardOutput]:
        """Add a batch's gradient under one of the backend's losses (see `TrainingClient.forward_backward`)."""
        self._note_batch(data)
        if loss_fn == "cross_entropy":
            return self._in_turn(lambda: self._cross_entropy(data))
        return self._in_turn(lambda: self._send(self._as_sums(data), loss_fn, settings))

    def forward_backward_custom(
        self, data: Sequence[tinker.Datum], loss: CustomLoss
    ) -> Awaitable[tinker.ForwardBackwardOutput]:
        """Add a batch's gradient under a loss computed here (see `TrainingClient.forward_backward_custom`)."""
        self._note_batch(data, passes=2)
        return self._in_turn(lambda: self._by_gradient(data, loss))

    async def forward(self, data: Sequence[tinker.Datum]) -> list[Tensor]:
        """Log-probabilities of a batch's target tokens, without a gradient."""
        return await self._in_turn(lambda: super(MeanLossClient, self).forward(data))

    def optim_step(self, learning_rate: float) -> Awaitable[tinker.OptimStepResponse]:
        """Update the weights by AdamW with the gradient added so far."""
        return self._in_turn(lambda: self._step(learning_rate))

    async def sampler(self) -> Sampler:
        """The weights of now, to sample from."""
        return await self._in_turn(super().sampler)

    async def save(self, name: str, *, ttl_hours: int | None) -> SavedWeights:
        """Save the training state and the weights to sample from."""
        return await self._in_turn(lambda: super(MeanLossClient, self).save(name, ttl_hours=ttl_hours))

    def _in_turn(self, work: Callable[[], Awaitable[T]]) -> Awaitable[T]:
        """Do it once everything asked for before is done; an error before is its error too."""
        before = self._last

        async def run() -> T:
            if before is not None:
                await before
            return await work()

        self._last = task = asyncio.create_task(run())
        return task

    async def _send(
        self,
        data: Sequence[tinker.Datum],
        loss_fn: tinker.types.LossFnType,
        settings: Mapping[str, float] | None = None,
    ) -> tinker.ForwardBackwardOutput:
        output = await self._inner.forward_backward(list(data), loss_fn, dict(settings) if settings else None)
        if any(name.endswith("loss:sum") for name in output.metrics):
            raise BackendError(
                "it reports sums of its losses, as SkyRL's JAX backend does not: whether it averages is not known, and "
                "no update was made",
                where=self._backend.base_url,
                fix="Train with SkyRL's JAX backend, or with backend: embedded",
            )
        if not all(math.isfinite(float(lp.sum())) for lp in logprobs_of(output)):
            raise not_finite({"log-probabilities": math.nan})
        return output

    async def _cross_entropy(self, data: Sequence[tinker.Datum]) -> tinker.ForwardBackwardOutput:
        sums = [float(np.sum(datum.loss_fn_inputs["weights"].data)) for datum in data]
        if len(data) > self._smaller or any(abs(each - 1) > _ROUNDING for each in sums):
            self._backend.count(train=tokens_in(data))
            return await self._by_gradient(data, _cross_entropy)
        filled = [*data, *[_empty(data[0])] * (self._smaller - len(data))]
        output = await self._send(filled, "cross_entropy")
        return dataclasses.replace(output, loss_fn_outputs=output.loss_fn_outputs[: len(data)])

    async def _by_gradient(self, data: Sequence[tinker.Datum], loss: CustomLoss) -> tinker.ForwardBackwardOutput:
        before = await self._inner.forward([_unweighted(datum) for datum in data], "cross_entropy")
        logprobs = [lp.detach().clone().requires_grad_() for lp in logprobs_of(before)]
        value, metrics = loss(list(data), logprobs)
        total = float(value.detach())
        if not math.isfinite(total):
            raise not_finite({"loss": total})
        value.backward()  # pyright: ignore[reportUnknownMemberType] (torch)
        along = [_along(datum, lp) for datum, lp in zip(data, logprobs, strict=True)]
        output = await self._send(self._as_sums(along), "importance_sampling")
        return dataclasses.replace(output, metrics={**output.metrics, **metrics, "loss:sum": total})

    def _as_sums(self, data: Sequence[tinker.Datum]) -> list[tinker.Datum]:
        """The data of a batch with advantages, and weight 1 on each token, whose mean is what the sum was."""

        def as_sum(datum: tinker.Datum) -> tinker.Datum:
            advantages = np.asarray(datum.loss_fn_inputs["advantages"].data, dtype=np.float32)
            divided_by = len(advantages) * len(data) / self._smaller
            kept = {name: value for name, value in datum.loss_fn_inputs.items() if name not in {"weights", "mask"}}
            inputs = {**kept, "advantages": _floats(advantages * np.float32(divided_by))}
            return tinker.Datum(model_input=datum.model_input, loss_fn_inputs=inputs)

        return [as_sum(datum) for datum in data]

    async def _step(self, learning_rate: float) -> tinker.OptimStepResponse:
        self._sampler = None
        settings = adamw(self._config, learning_rate)
        answer = await self._inner.optim_step(settings.model_copy(update={"eps": settings.eps / self._smaller}))
        metrics = dict(answer.metrics or {})
        if (norm := metrics.pop(_NORM, None)) is not None:
            metrics["grad_norm"] = norm * self._smaller
        return answer.model_copy(update={"metrics": metrics})


def _along(datum: tinker.Datum, logprobs: Tensor) -> tinker.Datum:
    """A datum of importance sampling with the gradient of the loss that was differentiated by ``logprobs``."""
    gradient = torch.zeros_like(logprobs) if logprobs.grad is None else logprobs.grad
    inputs = {
        "target_tokens": datum.loss_fn_inputs["target_tokens"],
        "logprobs": _floats(logprobs.detach().numpy()),
        "advantages": _floats(-gradient.numpy()),
    }
    return tinker.Datum(model_input=datum.model_input, loss_fn_inputs=inputs)


def _cross_entropy(data: list[tinker.Datum], logprobs: list[Tensor]) -> tuple[Tensor, dict[str, float]]:
    weights = [torch.as_tensor(datum.loss_fn_inputs["weights"].data, dtype=torch.float32) for datum in data]
    return -torch.stack([(lp * w).sum() for lp, w in zip(logprobs, weights, strict=True)]).sum(), {}


def _unweighted(datum: tinker.Datum) -> tinker.Datum:
    """A datum of cross-entropy; a forward pass does not care for weights, but wants some."""
    targets = datum.loss_fn_inputs["target_tokens"]
    ones = _floats(np.ones(len(targets.data), dtype=np.float32))
    return tinker.Datum(model_input=datum.model_input, loss_fn_inputs={"target_tokens": targets, "weights": ones})


def _empty(like: tinker.Datum) -> tinker.Datum:
    """A sequence of one token without weight: it adds to the number of sequences and to nothing else."""
    token = like.model_input.to_ints()[0]
    target = tinker.TensorData(data=[token], dtype="int64", shape=[1])
    inputs = {"target_tokens": target, "weights": _floats(np.zeros(1, dtype=np.float32))}
    return tinker.Datum(model_input=tinker.ModelInput.from_ints([token]), loss_fn_inputs=inputs)


def _floats(values: np.ndarray[tuple[int], np.dtype[np.float32]]) -> tinker.TensorData:
    return tinker.TensorData(data=values, dtype="float32", shape=list(values.shape))
