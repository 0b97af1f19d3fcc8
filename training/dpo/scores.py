"""Log-probabilities of answers under the policy and under the reference. Heavy: imports torch and tinker."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tinker
import torch

from ...core.files import append_json_line, read_json_lines
from ...data.examples import Example
from ...data.preferences import RenderedPair
from ..steering import StopTrainingError
from .preference_loss import PairScores

REFERENCE = "reference.jsonl"
# Sequences a request holds while the reference is measured: a stop is seen between two requests.
_CHUNK = 128


def datum_of(answer: Example) -> tinker.Datum:
    """A side of a pair as the loop wants it: targets shifted by one, weight 1 on each token of the answer."""
    tokens = [int(token) for token in answer.tokens]
    weights = answer.weights[1:].astype(np.float32)
    return tinker.Datum(
        model_input=tinker.ModelInput.from_ints(tokens[:-1]),
        loss_fn_inputs={
            "target_tokens": tinker.TensorData(data=tokens[1:], dtype="int64", shape=[len(tokens) - 1]),
            "weights": tinker.TensorData(data=weights.tolist(), dtype="float32", shape=[len(weights)]),
        },
    )


def data_of(pairs: Sequence[RenderedPair]) -> list[tinker.Datum]:
    """Pairs as the loop wants them: chosen and rejected in turn."""
    return [datum_of(side) for pair in pairs for side in (pair.chosen, pair.rejected)]


def key_of(datum: tinker.Datum) -> str:
    """A name for a sequence and its weights, the same in every process."""
    digest = hashlib.blake2b(digest_size=12)
    for name in ("target_tokens", "weights"):
        digest.update(np.asarray(datum.loss_fn_inputs[name].data, dtype=np.int32).tobytes())
    digest.update(np.asarray(datum.model_input.to_ints()[:1], dtype=np.int32).tobytes())
    return digest.hexdigest()


class ReferenceSums:
    """Nats of each answer under the reference, measured once a job and kept in ``reference.jsonl``."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / REFERENCE
        self._sums: dict[str, float] = {str(r["key"]): float(r["sum"]) for r in read_json_lines(self._path)}

    def missing(self, data: Sequence[tinker.Datum]) -> list[tinker.Datum]:
        """Those not measured yet, each once."""
        found = {key: datum for datum in data if (key := key_of(datum)) not in self._sums}
        return list(found.values())

    def note(self, data: Sequence[tinker.Datum], sums: Sequence[float]) -> None:
        """Keep what was measured."""
        for datum, value in zip(data, sums, strict=True):
            self._sums[key_of(datum)] = value
            append_json_line(self._path, {"key": key_of(datum), "sum": value})

    def of(self, data: Sequence[tinker.Datum]) -> torch.Tensor:
        """The sums of ``data``, shape [len(data)]."""
        return torch.tensor([self._sums[key_of(datum)] for datum in data], dtype=torch.float64)


async def measure_reference(
    sums: ReferenceSums,
    data: Sequence[tinker.Datum],
    forward: Callable[[Sequence[tinker.Datum]], Awaitable[list[float]]],
    should_stop: Callable[[], bool],
) -> None:
    """Measure what is missing, in requests small enough that a stop is seen soon.

    Raises:
        StopTrainingError: If the run has to stop.
    """
    todo = sums.missing(data)
    for start in range(0, len(todo), _CHUNK):
        if should_stop():
            raise StopTrainingError
        part = todo[start : start + _CHUNK]
        sums.note(part, await forward(part))


async def forward_sums(client: Any, data: Sequence[tinker.Datum]) -> list[float]:
    """Nats of each answer under a training client's weights."""
    result = await (await client.forward_async(list(data), "cross_entropy")).result_async()
    logprobs = [torch.as_tensor(output["logprobs"].data) for output in result.loss_fn_outputs]
    return [float(value) for value in weighted_sums(data, logprobs)]


async def sampler_sums(client: Any, data: Sequence[tinker.Datum]) -> list[float]:
    """Nats of each answer under a sampling client's weights."""
    whole = [datum.model_input.append_int(int(datum.loss_fn_inputs["target_tokens"].data[-1])) for datum in data]
    found = await asyncio.gather(*[client.compute_logprobs_async(sequence) for sequence in whole])
    return [float(value) for value in weighted_sums(data, [torch.tensor(one[1:]) for one in found])]


def weighted_sums(data: Sequence[tinker.Datum], logprobs: Sequence[torch.Tensor]) -> torch.Tensor:
    """Sum of weight x log-probability of each datum, shape [len(data)]; differentiable."""
    weights = [torch.as_tensor(datum.loss_fn_inputs["weights"].data, dtype=torch.float32) for datum in data]
    return torch.stack([(lp.flatten().float() * w).sum() for lp, w in zip(logprobs, weights, strict=True)])


def pair_scores(data: Sequence[tinker.Datum], policy: torch.Tensor, reference: torch.Tensor) -> PairScores:
    """Interleaved sums as pairs. Both are of shape [2 P], chosen and rejected in turn."""
    counts = [sum(w > 0 for w in datum.loss_fn_inputs["weights"].data) for datum in data]
    tokens = torch.tensor(counts, dtype=torch.float32)
    reference = reference.to(policy.dtype)
    return PairScores(policy[0::2], policy[1::2], reference[0::2], reference[1::2], tokens[0::2], tokens[1::2])
