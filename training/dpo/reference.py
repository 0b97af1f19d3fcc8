"""Log-probabilities of answers under the reference: measured once per job, before the first step, and kept."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

import numpy as np
import tinker
import torch
from torch import Tensor

from ...backends.runs_on_server import run_from_state
from ...backends.sampling_client import Sampler, open_sampler
from ...core.files import append_json_line, read_json_lines
from ...data.examples import Example
from ...data.preferences import RenderedPair
from ...models.model_ref import resolve_model
from ..client import TrainingClient, shifted_datum, whole_sequence
from ..loop import Run, StopTrainingError
from .config import DpoConfig
from .preference_loss import PairScores

REFERENCE = "reference.jsonl"
# Sequences per request while the reference is measured: a stop is seen between two requests.
_CHUNK = 128

Forward = Callable[[Sequence[tinker.Datum]], Awaitable[list[float]]]


def data_of(pairs: Sequence[RenderedPair]) -> list[tinker.Datum]:
    """Pairs as data: chosen and rejected in turn, weight 1 on each token of the answer."""

    def datum(answer: Example) -> tinker.Datum:
        return shifted_datum(answer.tokens, answer.weights.astype(np.float32))

    return [datum(side) for pair in pairs for side in (pair.chosen, pair.rejected)]


def key_of(datum: tinker.Datum) -> str:
    """A name for a sequence and its weights, the same in every process."""
    digest = hashlib.blake2b(digest_size=12)
    for name in ("target_tokens", "weights"):
        digest.update(np.asarray(datum.loss_fn_inputs[name].data, dtype=np.int32).tobytes())
    digest.update(np.asarray(datum.model_input.to_ints()[:1], dtype=np.int32).tobytes())
    return digest.hexdigest()


class Reference:
    """Nats of each answer under the reference, kept in ``reference.jsonl``."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / REFERENCE
        self._sums: dict[str, float] = {str(r["key"]): float(r["sum"]) for r in read_json_lines(self._path)}

    def missing(self, data: Sequence[tinker.Datum]) -> list[tinker.Datum]:
        """Those not measured yet, each once."""
        new = {key: datum for datum in data if (key := key_of(datum)) not in self._sums}
        return list(new.values())

    def note(self, data: Sequence[tinker.Datum], sums: Sequence[float]) -> None:
        """Keep what was measured."""
        for datum, value in zip(data, sums, strict=True):
            self._sums[key_of(datum)] = value
            append_json_line(self._path, {"key": key_of(datum), "sum": value})

    def of(self, data: Sequence[tinker.Datum]) -> Tensor:
        """The sums of ``data``, shape [len(data)]."""
        return torch.tensor([self._sums[key_of(datum)] for datum in data], dtype=torch.float64)

    async def measure(self, run: Run, config: DpoConfig, data: Sequence[tinker.Datum]) -> None:
        """Measure what is missing: under a checkpoint, the weights the run starts from, or the base model.

        Raises:
            StopTrainingError: If the run has to stop; what was measured by then is kept.
        """
        todo = self.missing(data)
        if not todo:
            return
        forward, client = await _reference_model(run, config)
        try:
            for start in range(0, len(todo), _CHUNK):
                if run.must_stop():
                    raise StopTrainingError
                part = todo[start : start + _CHUNK]
                self.note(part, await forward(part))
        finally:
            if client is not None:
                await client.close()


async def _reference_model(run: Run, config: DpoConfig) -> tuple[Forward, TrainingClient | None]:
    """What measures under the reference, and the adapter that was made for it."""
    service = tinker.ServiceClient(base_url=run.backend.base_url, api_key=run.backend.api_key)
    if config.ref_model is not None and config.ref_model != "base":
        sampler = await open_sampler(run.backend, config.ref_model, service=service)
        return (lambda part: _sampler_sums(sampler, part)), None
    if config.load_checkpoint is not None and config.ref_model is None:
        weights = await run_from_state(run.backend, service, config.load_checkpoint)
    else:
        # An adapter of rank 1 that was never trained changes nothing: the base model, computed as training does.
        weights = await service.create_lora_training_client(resolve_model(config.base_model).wire_name, rank=1)
    client = TrainingClient(weights, config, run.backend)
    return (lambda part: forward_sums(client, part)), client


async def forward_sums(client: TrainingClient, data: Sequence[tinker.Datum]) -> list[float]:
    """Nats of each answer under the weights of now."""
    return [float(value) for value in weighted_sums(data, await client.forward(data))]


async def _sampler_sums(sampler: Sampler, data: Sequence[tinker.Datum]) -> list[float]:
    scored = await asyncio.gather(*[sampler.logprobs(whole_sequence(datum)) for datum in data])
    return [float(value) for value in weighted_sums(data, [torch.tensor(row[1:]) for row in scored])]


def weighted_sums(data: Sequence[tinker.Datum], logprobs: Sequence[Tensor]) -> Tensor:
    """Sum of weight x log-probability of each datum, shape [len(data)]; differentiable."""
    weights = [torch.as_tensor(datum.loss_fn_inputs["weights"].data, dtype=torch.float32) for datum in data]
    return torch.stack([(lp.flatten().float() * w).sum() for lp, w in zip(logprobs, weights, strict=True)])


def pair_scores(data: Sequence[tinker.Datum], policy: Tensor, reference: Tensor) -> PairScores:
    """Interleaved sums as pairs. Both are of shape [2 P], chosen and rejected in turn."""
    counts = [sum(w > 0 for w in datum.loss_fn_inputs["weights"].data) for datum in data]
    tokens = torch.tensor(counts, dtype=torch.float32)
    reference = reference.to(policy.dtype)
    return PairScores(policy[0::2], policy[1::2], reference[0::2], reference[1::2], tokens[0::2], tokens[1::2])
