"""What the protocol side of the engine and its compute side say to each other.

The protocol side (HTTP, futures, sessions, checkpoints on disk) knows nothing of torch; the compute side
(weights, losses, sampling) knows nothing of HTTP. Arrays cross as numpy. Axis suffixes: ``T`` tokens of one
sequence, ``K`` candidates.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

IntArray = NDArray[np.int64]
FloatArray = NDArray[np.float32]
Tensors = Mapping[str, NDArray[Any]]
StopReason = Literal["stop", "length"]


class RequestRejectedError(ValueError):
    """The request is wrong and would be wrong again: tokens outside the vocabulary, unknown loss, bad lengths."""


class OutOfMemoryError(RuntimeError):
    """The request does not fit this machine's memory; the engine goes on."""


@dataclass(frozen=True, slots=True)
class LoraSpec:
    """How an adapter is made. Alpha is 32, A is uniform at 1/sqrt(d_in), B is zero, as on the platform."""

    rank: int
    seed: int | None = None
    train_mlp: bool = True
    train_attn: bool = True
    train_unembed: bool = True


@dataclass(frozen=True, slots=True)
class TrainItem:
    """One datum: input tokens of shape [T] and the loss function's inputs, each of shape [T] (or [T, K])."""

    tokens_T: IntArray
    loss_inputs: Mapping[str, NDArray[Any]]


@dataclass(frozen=True, slots=True)
class LossResult:
    """One mapping of arrays per datum (always ``logprobs`` of shape [T]) and metrics named ``name:reduction``."""

    outputs: list[dict[str, FloatArray]]
    metrics: dict[str, float]


@dataclass(frozen=True, slots=True)
class AdamSettings:
    """AdamW as the SDK's ``AdamParams`` has it; clipping by global norm where positive."""

    learning_rate: float
    beta1: float = 0.9
    beta2: float = 0.95
    eps: float = 1e-12
    weight_decay: float = 0.0
    grad_clip_norm: float = 0.0


@dataclass(frozen=True, slots=True)
class SampleSettings:
    """One prompt and how to continue it. ``top_k`` of -1 and ``top_p`` of 1 mean no truncation."""

    prompt_T: IntArray
    num_samples: int = 1
    max_tokens: int | None = None
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = -1
    seed: int | None = None
    stop_tokens: frozenset[int] = frozenset()
    stop_strings: tuple[str, ...] = ()
    prompt_logprobs: bool = False
    prompt_logprobs_last_n: int | None = None
    topk_prompt_logprobs: int = 0
    topk_sample_logprobs: int = 0
    target_prompt_TK: IntArray | None = None
    prompt_alt_tokens_k: int = 0


@dataclass(frozen=True, slots=True)
class Continuation:
    """One sampled sequence; ``logprobs`` are those of the model at temperature 1, as on the platform."""

    tokens_T: IntArray
    logprobs_T: FloatArray
    stop_reason: StopReason
    topk_tokens_TK: IntArray | None = None
    topk_logprobs_TK: FloatArray | None = None


@dataclass(frozen=True, slots=True)
class SampleOutput:
    """All samples of one prompt, and what was asked about the prompt (nan where there is no value)."""

    continuations: list[Continuation]
    prompt_logprobs_T: FloatArray | None = None
    topk_prompt_tokens_TK: IntArray | None = None
    topk_prompt_logprobs_TK: FloatArray | None = None
    target_prompt_logprobs_TK: FloatArray | None = None
    alt_tokens_TK: IntArray | None = None
    alt_logprobs_TK: FloatArray | None = None


class Weights:
    """A frozen snapshot of one adapter, for sampling; it never changes when training goes on."""


def _always() -> bool:
    return True


@dataclass(frozen=True, slots=True)
class SampleAsk:
    """A checked request, the weights it samples from (None: the plain base model), and the caller's key for it.

    ``wanted`` is asked before every token; once it says no, the request is dropped and never finished.
    """

    key: Any
    request: SampleSettings
    weights: Weights | None
    wanted: Callable[[], bool] = _always


Arrivals = Callable[[], Sequence[SampleAsk]]
Finished = Callable[[Any, SampleOutput], None]


class Adapter(Protocol):
    """One LoRA adapter in training: fp32 masters, gradients and AdamW moments.

    Attributes:
        spec: How it was made.
        nbytes: Bytes of memory it holds, gradient and moments included.
    """

    spec: LoraSpec
    nbytes: int

    def forward_backward(
        self, data: Sequence[TrainItem], loss: Any, config: Mapping[str, float] | None, *, backward: bool
    ) -> LossResult:
        """Compute the loss; with ``backward`` add its gradient to what is already accumulated.

        ``loss`` is a built-in loss's name, or what `compute.custom_loss.compile_custom_loss` made.

        Raises:
            RequestRejectedError: If the data, the loss or its config is wrong (nothing is accumulated then).
            OutOfMemoryError: If it does not fit (nothing is accumulated then).
        """
        ...

    def optim_step(self, settings: AdamSettings) -> dict[str, float]:
        """Apply the accumulated gradient, clear it, and return metrics (``grad_norm`` among them).

        Raises:
            RequestRejectedError: If a setting is out of range (the gradient is kept), or the gradient is not finite
                (it is dropped and the weights stay).
            OutOfMemoryError: If it does not fit (the gradient is kept and the weights stay).
        """
        ...

    def weights(self) -> Weights:
        """A frozen snapshot of the current weights."""
        ...

    def export_weights(self) -> dict[str, NDArray[np.float32]]:
        """LoRA tensors under PEFT's names (``base_model.model.<module>.lora_A.weight``)."""
        ...

    def export_optimizer(self) -> dict[str, NDArray[np.float32]]:
        """AdamW moments and step, exact."""
        ...

    def load(self, weights: Tensors, optimizer: Tensors | None) -> None:
        """Replace weights, and moments too where given (else they are reset).

        Raises:
            RequestRejectedError: If a tensor is missing, surplus or of another shape (nothing is changed then).
        """
        ...


class BaseModel(Protocol):
    """A loaded base model, shared by every adapter of it. Calls come from one thread at a time.

    Attributes:
        name: The name clients use.
        tokenizer: As transformers has it.
        max_context_length: Positions the model was made for.
        description: Device, dtype, parameter count, architecture: for people and for the benchmark.
    """

    name: str
    tokenizer: Any
    max_context_length: int
    description: dict[str, Any]

    def new_adapter(self, spec: LoraSpec) -> Adapter:
        """A fresh adapter.

        Raises:
            RequestRejectedError: If the spec asks for nothing to train, or a rank below 1.
            OutOfMemoryError: If it does not fit.
        """
        ...

    def frozen(self, spec: LoraSpec, weights: Tensors) -> Weights:
        """Sampling weights from saved tensors.

        Raises:
            RequestRejectedError: If they do not fit this model and spec.
        """
        ...

    def adapter_config(self, spec: LoraSpec) -> dict[str, Any]:
        """The ``adapter_config.json`` that lets ``peft`` load ``export_weights``."""
        ...

    def sample(self, requests: Sequence[SampleSettings], weights: Sequence[Weights | None]) -> list[SampleOutput]:
        """Continue many prompts together; ``weights[i]`` None is the plain base model.

        Raises:
            RequestRejectedError: If a prompt is empty, too long, or has tokens outside the vocabulary.
            OutOfMemoryError: If it does not fit.
        """
        ...

    def check_sample(self, request: SampleSettings) -> None:
        """Refuse a request that ``sample`` would refuse.

        Raises:
            RequestRejectedError: Naming the setting.
        """
        ...

    def sample_stream(self, asks: Sequence[SampleAsk], arrivals: Arrivals, finished: Finished) -> None:
        """Continue checked prompts together, letting in more while it runs.

        Args:
            asks: What to begin with.
            arrivals: Asked before every token for what came since; it must be quick.
            finished: Called with the key and the result of each as soon as its last row has stopped.

        Raises:
            OutOfMemoryError: If it does not fit; what is finished by then stays so.
        """
        ...


@dataclass(frozen=True, slots=True)
class LoadOptions:
    """How to load a base model."""

    device: str = "auto"
    dtype: str = "auto"
    quantize: str | None = None
    threads: int | None = None
    extra: Mapping[str, Any] = field(default_factory=dict[str, Any])
