# pyright: basic
# Reason: torch tensors across the interface's numpy seam.
"""Continuing many prompts together.

Requests of one adapter run as one batch. A prompt that several rows share is read once and its cache copied. Rows
that finish leave the batch at once; requests that do not fit the cache wait for the next wave.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sota_ml_researcher.engine.interface import (
    Continuation,
    RequestRejectedError,
    SampleOutput,
    SampleSettings,
    StopReason,
    Weights,
)
from sota_ml_researcher.engine.lora import LoraWeights
from sota_ml_researcher.engine.model_head import logits_of
from sota_ml_researcher.engine.model_parts import ActiveLora, Backbone, Pair
from sota_ml_researcher.engine.packing import Limits, check_tokens
from sota_ml_researcher.engine.sampling_choice import Cuts, RandomRow, choose
from sota_ml_researcher.engine.sampling_prompt import check_prompt_questions, prompt_answers, wants_prompt
from sota_ml_researcher.engine.sampling_stops import Stops

_MOST_SAMPLES = 1 << 16


@dataclass(frozen=True, slots=True)
class _Piece:
    """Some of the samples of one request: as many as fit the cache at once."""

    index: int
    request: SampleSettings
    first: int
    count: int


@dataclass(slots=True)
class _Row:
    """One continuation being written."""

    request: int
    limit: int
    random: RandomRow
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    topk_tokens: list[Any] = field(default_factory=list)
    topk_logprobs: list[Any] = field(default_factory=list)
    stop_reason: StopReason = "length"

    def finish(self, topk: int) -> Continuation:
        """As the interface has it."""
        return Continuation(
            np.array(self.tokens, dtype=np.int64),
            np.array(self.logprobs, dtype=np.float32),
            self.stop_reason,
            np.array(self.topk_tokens, dtype=np.int64).reshape(-1, topk) if topk else None,
            np.array(self.topk_logprobs, dtype=np.float32).reshape(-1, topk) if topk else None,
        )


class Sampler:
    """Sampling on one base model."""

    def __init__(self, backbone: Backbone, limits: Limits, tokenizer: Any, cache_tokens: int) -> None:
        self._backbone = backbone
        self._limits = limits
        self._tokenizer = tokenizer
        self._cache_tokens = cache_tokens

    def sample(self, requests: Sequence[SampleSettings], weights: Sequence[Weights | None]) -> list[SampleOutput]:
        """See ``BaseModel.sample``."""
        for index, request in enumerate(requests):
            check_request(request, self._limits, f"request[{index}]")
        outputs: list[SampleOutput | None] = [None] * len(requests)
        groups: dict[int, list[int]] = {}
        for index, snapshot in enumerate(weights):
            groups.setdefault(id(snapshot), []).append(index)
        for members in groups.values():
            snapshot = weights[members[0]]
            lora = snapshot.lora if isinstance(snapshot, LoraWeights) else None
            for wave in self._waves(requests, members):
                run = _Wave(self._backbone, wave, lora, self._limits, self._tokenizer)
                for piece, output in zip(wave, run.run(), strict=True):
                    outputs[piece.index] = _joined(outputs[piece.index], output)
        return [output for output in outputs if output is not None]

    def _waves(self, requests: Sequence[SampleSettings], members: Sequence[int]) -> Iterator[list[_Piece]]:
        """Requests that fit the cache together, those that may run longest first."""
        wave: list[_Piece] = []
        used = 0
        for index in sorted(members, key=lambda member: -_limit(requests[member], self._limits)):
            request = requests[index]
            row = len(request.prompt_T) + _limit(request, self._limits)
            most = max(1, self._cache_tokens // row)
            for first in range(0, request.num_samples, most):
                count = min(most, request.num_samples - first)
                if wave and used + count * row > self._cache_tokens:
                    yield wave
                    wave, used = [], 0
                wave.append(_Piece(index, request, first, count))
                used += count * row
        if wave:
            yield wave


def _joined(before: SampleOutput | None, piece: SampleOutput) -> SampleOutput:
    """The samples of a request's pieces in order; what was asked about the prompt is in the first."""
    return piece if before is None else replace(before, continuations=[*before.continuations, *piece.continuations])


class _Wave:
    """Requests that run as one batch."""

    def __init__(
        self,
        backbone: Backbone,
        pieces: Sequence[_Piece],
        lora: ActiveLora | None,
        limits: Limits,
        tokenizer: Any,
    ) -> None:
        requests = [piece.request for piece in pieces]
        self._backbone = backbone
        self._pieces = pieces
        self._requests = requests
        self._lora = lora
        self._pair: Pair | None = lora.pairs.get(backbone.head.name) if lora else None
        self._scaling = lora.scaling if lora else 1.0
        self._stops = Stops([(r.stop_tokens, r.stop_strings) for r in requests], limits.vocabulary, tokenizer)
        self._limits = limits
        self._rows = [
            _Row(place, _limit(piece.request, limits), RandomRow(piece.request.seed, sample))
            for place, piece in enumerate(pieces)
            for sample in range(piece.first, piece.first + piece.count)
        ]

    @torch.no_grad()
    def run(self) -> list[SampleOutput]:
        """Prefill, then one token a row and step until every row has stopped."""
        state, hidden_BD, answers, active = self._prefill()
        cuts = self._cuts(active)
        while active:
            tokens_B, going = self._draw(hidden_BD, active, cuts)
            if not all(going):
                left = torch.tensor(_closed_up(going), dtype=torch.long)
                active = [active[place] for place in left.tolist()]
                if not active:
                    break
                cuts = cuts.keep(left.to(cuts.temperature_B.device))
                left = left.to(self._backbone.device)
                state, tokens_B = self._backbone.keep(state, left), tokens_B[left]
            hidden_BD = self._backbone.step(state, tokens_B, self._lora)
        return self._collect(answers)

    def _prefill(self) -> tuple[Any, Tensor, list[dict[str, Any]], list[_Row]]:
        """Read each different prompt once; rows come in the order of the prompts."""
        owners: dict[bytes, list[int]] = {}
        for index, request in sorted(enumerate(self._requests), key=lambda pair: len(pair[1].prompt_T)):
            owners.setdefault(request.prompt_T.astype(np.int64).tobytes(), []).append(index)
        prompts = [torch.from_numpy(np.frombuffer(key, dtype=np.int64).copy()) for key in owners]
        active: list[_Row] = []
        repeats: list[int] = []
        for members in owners.values():
            rows = [row for row in self._rows if row.request in set(members)]
            active += rows
            repeats.append(len(rows))
        room = max((row.limit for row in active), default=1)
        device = self._backbone.device
        state, packed_ND, last_BD = self._backbone.prefill(
            [prompt.to(device) for prompt in prompts], repeats, room, self._lora
        )
        answers = self._prompt_answers(packed_ND, [len(prompt) for prompt in prompts], list(owners.values()))
        return state, last_BD, answers, active

    def _prompt_answers(
        self, packed_ND: Tensor, lengths: Sequence[int], owners: Sequence[Sequence[int]]
    ) -> list[dict[str, Any]]:
        answers: list[dict[str, Any]] = [{} for _ in self._requests]
        for hidden_TD, members in zip(torch.split(packed_ND, list(lengths)), owners, strict=True):
            for index in members:
                if wants_prompt(self._requests[index]) and self._pieces[index].first == 0:
                    answers[index] = prompt_answers(
                        self._requests[index], hidden_TD, self._backbone.head, self._pair, self._scaling
                    )
        return answers

    def _cuts(self, active: Sequence[_Row]) -> Cuts:
        asked = [self._requests[row.request] for row in active]
        return Cuts.of(
            [request.temperature for request in asked],
            [request.top_p for request in asked],
            [request.top_k for request in asked],
            self._limits.vocabulary,
        ).to(self._backbone.device)

    def _draw(self, hidden_BD: Tensor, active: Sequence[_Row], cuts: Cuts) -> tuple[Tensor, list[bool]]:
        """One token a row; returns the tokens and which rows go on."""
        logits_BV = logits_of(hidden_BD, self._backbone.head, self._pair, self._scaling)
        uniform_B = torch.tensor([row.random.uniform() for row in active], device=hidden_BD.device)
        tokens_B, logprobs_B, normaliser_B = choose(logits_BV, cuts, uniform_B)
        self._record_topk(logits_BV, normaliser_B, active)
        tokens, logprobs = tokens_B.cpu().numpy(), logprobs_B.cpu().tolist()
        request_B = np.array([row.request for row in active])
        stopped_B = self._stops.by_token(request_B, tokens)
        going: list[bool] = []
        for row, token, logprob, stopped in zip(active, tokens.tolist(), logprobs, stopped_B.tolist(), strict=True):
            row.tokens.append(token)
            row.logprobs.append(logprob)
            if stopped or self._stops.by_string(row.request, row.tokens):
                row.stop_reason = "stop"
                going.append(False)
            else:
                going.append(len(row.tokens) < row.limit)
        return tokens_B, going

    def _record_topk(self, logits_BV: Tensor, normaliser_B: Tensor, active: Sequence[_Row]) -> None:
        widest = max(self._requests[row.request].topk_sample_logprobs for row in active)
        if not widest:
            return
        best = (logits_BV - normaliser_B.unsqueeze(-1)).topk(widest, dim=-1)
        tokens, values = best.indices.cpu().numpy(), best.values.cpu().numpy()
        for place, row in enumerate(active):
            k = self._requests[row.request].topk_sample_logprobs
            if k:
                row.topk_tokens.append(tokens[place, :k])
                row.topk_logprobs.append(values[place, :k])

    def _collect(self, answers: Sequence[dict[str, Any]]) -> list[SampleOutput]:
        outputs: list[SampleOutput] = []
        for index, request in enumerate(self._requests):
            rows = [row for row in self._rows if row.request == index]
            done = [row.finish(request.topk_sample_logprobs) for row in rows]
            outputs.append(SampleOutput(done, **answers[index]))
        return outputs


def _closed_up(going: Sequence[bool]) -> list[int]:
    """The rows that go on, those at the end moved into the gaps: the cache then copies few of them."""
    left = [place for place, on in enumerate(going) if on]
    movers = iter(reversed(left))
    return [place if going[place] else next(movers) for place in range(len(left))]


def _limit(request: SampleSettings, limits: Limits) -> int:
    room = limits.context - len(request.prompt_T) + 1
    return room if request.max_tokens is None else request.max_tokens


def check_request(request: SampleSettings, limits: Limits, where: str) -> None:
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
