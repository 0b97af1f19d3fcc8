# pyright: basic
# Reason: torch tensors across the interface's numpy seam.
"""Which requests are sampled together, and when each is let in.

Requests of one adapter run as one batch, and those that come while it runs join it before the next token (Yu et al.
2022, "Orca": iteration-level scheduling). What does not fit the cache waits for room; other weights wait for the end.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from ..interface import Arrivals, Finished, RequestRejectedError, SampleAsk, SampleOutput, SampleSettings, Weights
from .backbone import Backbone
from .lora import LoraWeights
from .packing import ModelLimits, check_tokens
from .sampling_batch import Batch, Piece
from .sampling_prompt import check_prompt_questions

_MOST_SAMPLES = 1 << 16
# Most logits of one step: 256 MiB in fp32.
_MOST_LOGITS = 1 << 26
# Most prompt tokens read before one step: reading more would keep the rows under way waiting, and takes memory.
_PREFILL_TOKENS = 8192


class Sampler:
    """Sampling on one base model."""

    def __init__(self, backbone: Backbone, limits: ModelLimits, tokenizer: Any, cache_tokens: int) -> None:
        self._backbone = backbone
        self._limits = limits
        self._tokenizer = tokenizer
        self._cache_tokens = cache_tokens
        self._most_rows = max(1, _MOST_LOGITS // limits.vocabulary)

    def sample(self, requests: Sequence[SampleSettings], weights: Sequence[Weights | None]) -> list[SampleOutput]:
        """See ``BaseModel.sample``."""
        for index, request in enumerate(requests):
            check_request(request, self._limits, f"request[{index}]")
        outputs: dict[int, SampleOutput] = {}
        asks = [SampleAsk(index, *both) for index, both in enumerate(zip(requests, weights, strict=True))]
        self.stream(asks, list, outputs.__setitem__)
        return [outputs[index] for index in range(len(requests))]

    def stream(self, asks: Sequence[SampleAsk], arrivals: Arrivals, finished: Finished) -> None:
        """See ``BaseModel.sample_stream``."""
        waiting = [piece for ask in asks for piece in self._pieces(ask)]
        joined: dict[Any, SampleOutput] = {}

        def done(piece: Piece, output: SampleOutput) -> None:
            so_far = _joined(joined.pop(piece.ask.key, None), output)
            if len(so_far.continuations) < piece.request.num_samples:
                joined[piece.ask.key] = so_far
            else:
                finished(piece.ask.key, so_far)

        while waiting:
            waiting = _by_weights(waiting)
            snapshot = waiting[0].ask.weights
            lora = snapshot.lora if isinstance(snapshot, LoraWeights) else None
            batch = Batch(self._backbone, lora, self._tokenizer, self._limits.vocabulary, done)
            while True:
                waiting += [piece for ask in arrivals() for piece in self._pieces(ask)]
                waiting = [piece for piece in waiting if piece.ask.wanted()]
                batch.drop_unwanted()
                fitting = self._fitting(waiting, snapshot, batch)
                del waiting[: len(fitting)]
                if not batch.advance(fitting):
                    break

    def _fitting(self, waiting: Sequence[Piece], snapshot: Weights | None, batch: Batch) -> list[Piece]:
        """The first of ``waiting`` that can go on together with what runs; at least one where nothing does."""
        places, rows, prompt = batch.places, batch.rows, 0
        for count, piece in enumerate(waiting):
            places, rows, prompt = places + piece.places, rows + piece.count, prompt + len(piece.request.prompt_T)
            full = places > self._cache_tokens or rows > self._most_rows or prompt > _PREFILL_TOKENS
            full = full or batch.one_request
            if piece.ask.weights is not snapshot or (full and (count or batch.rows)):
                return list(waiting[:count])
        return list(waiting)

    def _pieces(self, ask: SampleAsk) -> list[Piece]:
        """A request, cut where its samples do not fit at once."""
        limit = _limit(ask.request, self._limits)
        fit = (self._cache_tokens - len(ask.request.prompt_T)) // limit
        most = max(1, min(fit, self._most_rows))
        samples = ask.request.num_samples
        return [Piece(ask, first, min(most, samples - first), limit) for first in range(0, samples, most)]


def _by_weights(waiting: Sequence[Piece]) -> list[Piece]:
    """Those on the first one's weights first: clients whose requests came in turn are still sampled in batches."""
    order: dict[int, int] = {}
    for piece in waiting:
        order.setdefault(id(piece.ask.weights), len(order))
    return sorted(waiting, key=lambda piece: order[id(piece.ask.weights)])


def _joined(before: SampleOutput | None, piece: SampleOutput) -> SampleOutput:
    """The samples of a request's pieces in order; what was asked about the prompt is in the first."""
    return piece if before is None else replace(before, continuations=[*before.continuations, *piece.continuations])


def _limit(request: SampleSettings, limits: ModelLimits) -> int:
    room = limits.context - len(request.prompt_T) + 1
    return room if request.max_tokens is None else request.max_tokens


def check_request(request: SampleSettings, limits: ModelLimits, where: str) -> None:
    """Refuse what could not be sampled.

    Raises:
        RequestRejectedError: Naming the request and the setting.
    """
    check_tokens(request.prompt_T, limits, f"{where}: prompt")
    if not 1 <= request.num_samples <= _MOST_SAMPLES:
        raise RequestRejectedError(f"{where}: num_samples must be from 1 to {_MOST_SAMPLES}, got {request.num_samples}")
    if request.max_tokens is not None and request.max_tokens < 1:
        raise RequestRejectedError(f"{where}: max_tokens must be at least 1, got {request.max_tokens}")
    if len(request.prompt_T) + (request.max_tokens or 1) - 1 > limits.context:
        raise RequestRejectedError(
            f"{where}: prompt length plus max_tokens exceeds the model's context window: "
            f"{len(request.prompt_T)} + {request.max_tokens} > {limits.context}"
        )
    if not (np.isfinite(request.temperature) and request.temperature >= 0):
        raise RequestRejectedError(f"{where}: temperature must be a number from 0 up, got {request.temperature}")
    if not 0 < request.top_p <= 1:
        raise RequestRejectedError(f"{where}: top_p must be above 0 and at most 1, got {request.top_p}")
    if request.top_k < -1:
        raise RequestRejectedError(f"{where}: top_k must be -1 (off) or above, got {request.top_k}")
    if any(not text for text in request.stop_strings):
        raise RequestRejectedError(f"{where}: a stop string is empty")
    check_prompt_questions(request, limits, where)
