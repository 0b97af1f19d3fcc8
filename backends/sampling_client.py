"""Sampling: the counted sampler of a job, trying a model out, and measuring how surprised it is by rows of data."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Generator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Literal

import tinker

from ..core.errors import BackendError
from ..models.chat import ChatRenderer, Message, Rendered
from .connection import Backend, TokenCounter, backend_errors
from .runs_on_server import let_go, run_from_state
from .sdk_hooks import with_sequence_ids
from .servers import require_protobuf, server_of

_CLOSING_S = 30.0
logger = logging.getLogger(__name__)


class Sampler:
    """Weights on a backend to sample from. What is asked and answered is counted: a prompt once per request."""

    def __init__(self, client: tinker.SamplingClient, count: TokenCounter) -> None:
        self._client = client
        self._count = count

    async def sample(
        self, prompt: tinker.ModelInput, samples: int, params: tinker.SamplingParams
    ) -> Sequence[tinker.SampledSequence]:
        """So many samples of one prompt, in one request: a seed in ``params`` makes the request repeatable."""
        answer = await self._client.sample(prompt, samples, params)
        self._count(prefill=prompt.length, sample=sum(len(sequence.tokens) for sequence in answer.sequences))
        return answer.sequences

    async def logprobs(self, tokens: tinker.ModelInput) -> list[float | None]:
        """Log-probability (nats) of each token given those before it; None for the first. Shape [T]."""
        found = await self._client.compute_logprobs(tokens)
        self._count(prefill=tokens.length, sample=1)  # the SDK asks for one token that nobody reads
        return of_each_token(found, tokens.length)


async def sampler_of_run(backend: Backend, run: tinker.TrainingClient) -> Sampler:
    """Sample from the weights that a run has now."""
    return Sampler(await _client_of_run(backend, run), backend.count)


def of_each_token(logprobs: Sequence[float | None] | None, length: int) -> list[float | None]:
    """Log-probabilities of a prompt's tokens, None for the first, which some servers leave out.

    Raises:
        BackendError: If there is not one for each other token.
    """
    found = list(logprobs or ())
    if len(found) == length - 1:
        return [None, *found]
    if len(found) != length:
        raise BackendError(
            f"the server gave {len(found)} log-probabilities for a prompt of {length} tokens",
            fix="It cannot score given text: leave out val_file, kl_coef and what else measures a model",
        )
    return found


async def open_sampler(backend: Backend, weights: str, *, service: tinker.ServiceClient | None = None) -> Sampler:
    """Sample from saved weights or from a base model.

    Args:
        backend: Where they are.
        weights: A ``tinker://`` sampler path, or a base model's wire name.
        service: A client that is open already.
    """
    client, _ = await _sampling_client(backend, service or _service(backend), weights)
    return Sampler(client, backend.count)


@dataclass(frozen=True, slots=True)
class SampleOptions:
    """How to sample. ``seed`` makes the whole call repeatable; samples of one prompt still differ."""

    max_tokens: int
    temperature: float
    top_p: float
    num_samples: int
    seed: int | None


@dataclass(frozen=True, slots=True)
class Completion:
    """One answer: its text, why it ended, its length in tokens, and the sum of its log-probabilities in nats."""

    text: str
    stop_reason: str
    tokens: int
    logprob: float | None


@dataclass(frozen=True, slots=True)
class Nll:
    """Mean negative log-likelihood of trained tokens: nats per token, its standard error over rows, and counts."""

    mean: float
    standard_error: float | None
    tokens: int
    rows: int


def base_model_of(backend: Backend, path: str) -> str:
    """The base model of a ``tinker://`` checkpoint.

    Raises:
        BackendError: If there is no such checkpoint on the backend.
    """
    with backend_errors(backend):
        rest = tinker.RestClient(base_url=backend.base_url, api_key=backend.api_key)
        return rest.get_weights_info_by_tinker_path(_path_known(backend, path)).result().base_model


def renderer_of(backend: Backend, path: str) -> str | None:
    """The chat format that a ``tinker://`` checkpoint was trained with; None where no record of it can be had."""
    with suppress(BackendError), backend_errors(backend):
        rest = tinker.RestClient(base_url=backend.base_url, api_key=backend.api_key)
        return (rest.get_training_run_by_tinker_path(path).result().user_metadata or {}).get("renderer_name")
    return None


def sample(
    backend: Backend,
    renderer: ChatRenderer,
    model: str,
    conversations: Sequence[Sequence[Message]],
    options: SampleOptions,
) -> list[list[Completion]]:
    """Answer each conversation ``num_samples`` times.

    Args:
        backend: Where the model is.
        renderer: Turns messages into tokens and tokens into text; it must be the one of the model's training.
        model: A ``tinker://`` sampler path, or a base model's wire name.
        conversations: Messages that end with a user's turn.
        options: How to sample.

    Raises:
        BackendError: If the backend refuses.
    """
    params = tinker.SamplingParams(
        max_tokens=options.max_tokens,
        temperature=options.temperature,
        top_p=options.top_p,
        seed=options.seed,
        stop=renderer.stop,
    )
    prompts = [tinker.ModelInput.from_ints(renderer.generation_prompt(c)) for c in conversations]
    with _opened(backend, model) as client:
        futures = [client.sample(prompt, options.num_samples, params) for prompt in prompts]
        answers = [future.result().sequences for future in futures]
    sampled = sum(len(sequence.tokens) for sequences in answers for sequence in sequences)
    backend.count(prefill=sum(prompt.length for prompt in prompts), sample=sampled)
    return [[_completion(renderer, sequence) for sequence in sequences] for sequences in answers]


def measure_nll(backend: Backend, renderer: ChatRenderer, model: str, rows: Sequence[Rendered]) -> Nll:
    """How many nats the model needs per trained token of ``rows``: the information in them, from its view."""
    with _opened(backend, model) as client:
        futures = [client.compute_logprobs(tinker.ModelInput.from_ints([int(t) for t in r.tokens])) for r in rows]
        measured = [
            _row_nll(row, of_each_token(future.result(), len(row.tokens)))
            for row, future in zip(rows, futures, strict=True)
        ]
    backend.count(prefill=sum(len(row.tokens) for row in rows), sample=len(rows))
    measured = [(nll, tokens) for nll, tokens in measured if tokens]
    total = sum(tokens for _, tokens in measured)
    mean = sum(nll for nll, _ in measured) / total if total else math.nan
    return Nll(mean, _ratio_error(measured, mean), total, len(measured))


@contextmanager
def closing_service(service: tinker.ServiceClient) -> Generator[tinker.ServiceClient]:
    """A client whose session ends with the block.

    What went wrong in the block is what is raised: some servers cannot end a session, and the SDK's own ``with`` then
    raises that in the place of the first error, or after work that succeeded.
    """
    status: Literal["success", "errored", "interrupted"] = "interrupted"
    try:
        yield service
        status = "success"
    except Exception:  # all but an interruption, which keeps its status
        status = "errored"
        raise
    finally:
        try:
            service.close(status).result(timeout=_CLOSING_S)
        except Exception as error:  # nothing is lost by it: the server lets go of a session by itself
            logger.info("The session was not ended: %s", error)


def _service(backend: Backend) -> tinker.ServiceClient:
    return tinker.ServiceClient(base_url=backend.base_url, api_key=backend.api_key)


@contextmanager
def _opened(backend: Backend, weights: str) -> Generator[tinker.SamplingClient]:
    """A client to sample with, whose session and run end with the block."""
    with backend_errors(backend), closing_service(_service(backend)) as service:
        client, run = asyncio.run(_sampling_client(backend, service, weights))
        try:
            yield client
        finally:
            if run is not None:
                asyncio.run(let_go(backend, run))


async def _sampling_client(
    backend: Backend, service: tinker.ServiceClient, weights: str
) -> tuple[tinker.SamplingClient, tinker.TrainingClient | None]:
    """A client to sample with, and the run that had to be made for it where a server forgets ended ones."""
    server = await asyncio.to_thread(server_of, backend)
    require_protobuf(server, where=backend.base_url)
    can = server.abilities
    if weights.startswith("tinker://") and can.ended_runs is False:
        run = await run_from_state(backend, service, _state_of(weights))
        return await _client_of_run(backend, run), run
    if weights.startswith("tinker://"):
        client = await service.create_sampling_client(model_path=weights)
    else:
        client = await service.create_sampling_client(base_model=weights)
    return (client if can.sequence_ids else with_sequence_ids(client)), None


async def _client_of_run(backend: Backend, run: tinker.TrainingClient) -> tinker.SamplingClient:
    client = await run.save_weights_and_get_sampling_client()
    can = (await asyncio.to_thread(server_of, backend)).abilities
    return client if can.sequence_ids else with_sequence_ids(client)


def _state_of(path: str) -> str:
    """The training state that was saved with weights to sample from; ours have one name."""
    return path.replace("/sampler_weights/", "/weights/")


def _path_known(backend: Backend, path: str) -> str:
    """The path under which a server knows a checkpoint: one that forgets ended runs keeps their states alone."""
    return _state_of(path) if server_of(backend).abilities.ended_runs is False else path


def _completion(renderer: ChatRenderer, sequence: tinker.SampledSequence) -> Completion:
    logprobs = sequence.logprobs
    return Completion(
        text=renderer.decode(sequence.tokens),
        stop_reason=str(sequence.stop_reason),
        tokens=len(sequence.tokens),
        logprob=None if logprobs is None else round(math.fsum(logprobs), 4),
    )


def _row_nll(row: Rendered, logprobs: Sequence[float | None]) -> tuple[float, int]:
    trained = [(p, w) for p, w in zip(logprobs, row.weights, strict=True) if p is not None and w > 0]
    return -math.fsum(p for p, _ in trained), len(trained)


def _ratio_error(measured: Sequence[tuple[float, int]], mean: float) -> float | None:
    """Standard error of a ratio of sums over rows (tokens of one row are not independent)."""
    n = len(measured)
    if n < 2:
        return None
    mean_tokens = sum(tokens for _, tokens in measured) / n
    squares = math.fsum((nll - mean * tokens) ** 2 for nll, tokens in measured)
    return math.sqrt(squares / (n - 1) / n) / mean_tokens
