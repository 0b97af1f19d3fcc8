"""The calls that a training loop makes on a backend: typed, counted, with the job's optimizer settings.

Every call sends its request at once, in the order of the calls, and returns what is awaited for the answer. So a batch
and its optimizer step are sent together, and a step may be sent while the one before it is still computed.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import tinker
from numpy.typing import NDArray
from torch import Tensor

from ..backends.connection import Backend
from ..backends.runs_on_server import let_go
from ..backends.sampling_client import Sampler, sampler_of_run
from ..core.errors import ResearcherError
from .config import TrainingConfig

# A batch and its log-probabilities, one tensor per sequence, to a scalar loss and what to log of it.
CustomLoss = Callable[[list[tinker.Datum], list[Tensor]], tuple[Tensor, dict[str, float]]]


class LossNotFiniteError(ResearcherError, ArithmeticError):
    """The loss became nan or infinite: going on would spend money on noise."""


@dataclass(frozen=True, slots=True)
class SavedWeights:
    """Where weights were saved: the training state with the optimizer's moments, and the weights to sample from."""

    state_path: str
    sampler_path: str


def shifted_datum(tokens: Sequence[int] | NDArray[np.int32], weights: NDArray[np.float32]) -> tinker.Datum:
    """A sequence to learn: each token is asked for its successor.

    Args:
        tokens: Token ids, shape [T].
        weights: Loss weight of each token, shape [T]; the first token has nothing before it and is not trained.
    """
    ids = np.asarray(tokens, dtype=np.int64)
    return tinker.Datum(
        model_input=tinker.ModelInput.from_ints(ids[:-1].tolist()),
        loss_fn_inputs={
            "target_tokens": tinker.TensorData(data=ids[1:], dtype="int64", shape=[len(ids) - 1]),
            "weights": tinker.TensorData(data=weights[1:], dtype="float32", shape=[len(ids) - 1]),
        },
    )


def whole_sequence(datum: tinker.Datum) -> tinker.ModelInput:
    """The sequence that was shifted into inputs and targets."""
    return datum.model_input.append_int(int(datum.loss_fn_inputs["target_tokens"].data[-1]))


def logprobs_of(output: tinker.ForwardBackwardOutput) -> list[Tensor]:
    """Log-probabilities of the target tokens, one tensor of shape [T - 1] per sequence, in the batch's order."""
    return [one["logprobs"].to_torch().flatten() for one in output.loss_fn_outputs]


def adamw(config: TrainingConfig, learning_rate: float) -> tinker.AdamParams:
    """The job's optimizer for one step."""
    return tinker.AdamParams(
        learning_rate=learning_rate,
        beta1=config.adam_beta1,
        beta2=config.adam_beta2,
        eps=config.adam_eps,
        weight_decay=config.weight_decay,
        grad_clip_norm=config.grad_clip,
    )


def tokens_in(data: Sequence[tinker.Datum]) -> int:
    """Tokens that a backend reads for a batch."""
    return sum(datum.model_input.length for datum in data)


class TrainingClient:
    """An adapter under training.

    Attributes:
        tokens: Tokens sent for training so far, counted from the start of the job; validations are left out.
    """

    def __init__(
        self, inner: tinker.TrainingClient, config: TrainingConfig, backend: Backend, *, tokens: int = 0
    ) -> None:
        self._inner = inner
        self._config = config
        self._backend = backend
        self._sampler: Sampler | None = None
        self.tokens = tokens

    def forward_backward(
        self,
        data: Sequence[tinker.Datum],
        loss_fn: tinker.types.LossFnType,
        settings: Mapping[str, float] | None = None,
    ) -> Awaitable[tinker.ForwardBackwardOutput]:
        """Add a batch's gradient under one of the backend's losses.

        Raises:
            LossNotFiniteError: When awaited, if the loss is not a number.
        """
        self._note_batch(data)
        return _finite(self._inner.forward_backward(list(data), loss_fn, dict(settings) if settings else None))

    def forward_backward_custom(
        self, data: Sequence[tinker.Datum], loss: CustomLoss
    ) -> Awaitable[tinker.ForwardBackwardOutput]:
        """Add a batch's gradient under a loss computed here: the batch is sent twice, and counted twice.

        Raises:
            LossNotFiniteError: When awaited, if the loss is not a number.
        """
        self._note_batch(data, passes=2)

        def checked(batch: list[tinker.Datum], logprobs: list[Tensor]) -> tuple[Tensor, dict[str, float]]:
            value, metrics = loss(batch, logprobs)
            if not math.isfinite(float(value)):
                raise not_finite({"loss": float(value)})
            return value, metrics

        return self._inner.forward_backward_custom(list(data), checked)

    async def forward(self, data: Sequence[tinker.Datum]) -> list[Tensor]:
        """Log-probabilities of a batch's target tokens, without a gradient (see `logprobs_of`)."""
        self._backend.count(train=tokens_in(data))
        return logprobs_of(await self._inner.forward(list(data), "cross_entropy"))

    def optim_step(self, learning_rate: float) -> Awaitable[tinker.OptimStepResponse]:
        """Update the weights by AdamW with the gradient added so far; the answer has the optimizer's metrics."""
        self._sampler = None
        return self._inner.optim_step(adamw(self._config, learning_rate))

    async def sampler(self) -> Sampler:
        """The weights of now, to sample from; asked for once per update."""
        if self._sampler is None:
            self._sampler = await sampler_of_run(self._backend, self._inner)
        return self._sampler

    async def save(self, name: str, *, ttl_hours: int | None) -> SavedWeights:
        """Save the training state and the weights to sample from; None keeps them until they are deleted."""
        seconds = ttl_hours * 3600 if ttl_hours else None
        state = self._inner.save_state(name, ttl_seconds=seconds)
        weights = self._inner.save_weights_for_sampler(name, ttl_seconds=seconds)
        return SavedWeights((await state).path, _with_kind((await weights).path))

    async def close(self) -> None:
        """Free the adapter's place on the server, where it is not freed by itself. What was saved stays."""
        await let_go(self._backend, self._inner)

    async def delete(self, path: str) -> None:
        """Delete a saved checkpoint.

        Raises:
            tinker.TinkerError: If the backend refuses.
        """
        rest = tinker.RestClient(base_url=self._backend.base_url, api_key=self._backend.api_key)
        await rest.delete_checkpoint_from_tinker_path(path)

    def _note_batch(self, data: Sequence[tinker.Datum], passes: int = 1) -> None:
        sent = tokens_in(data)
        self.tokens += sent
        self._backend.count(train=passes * sent)


def _with_kind(path: str) -> str:
    """The path of weights to sample from; SkyRL leaves the kind out, and takes it either way."""
    run, _, name = path.removeprefix("tinker://").partition("/")
    return path if "/" in name or not name else f"tinker://{run}/sampler_weights/{name}"


async def _finite(answer: Awaitable[tinker.ForwardBackwardOutput]) -> tinker.ForwardBackwardOutput:
    output = await answer
    bad = {k: v for k, v in output.metrics.items() if k.startswith("loss") and not math.isfinite(v)}
    if bad:
        raise not_finite(bad)
    return output


def not_finite(losses: Mapping[str, float]) -> LossNotFiniteError:
    """The error for losses that are not numbers, by their names."""
    return LossNotFiniteError(
        f"the loss is not a number ({dict(losses)})",
        fix="Resume from the last checkpoint with learning_rate / 3, and look at that batch's rows",
    )
