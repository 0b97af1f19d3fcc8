"""Supervised fine-tuning: cross-entropy on the tokens of the answers."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import tinker
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...data.examples import Batches, Example
from ...data.supervised import load_sft_data
from ...jobs.context import Outcome, RunContext
from ...models.chat import ChatRenderer
from ...models.renderers import load_renderer
from ..client import TrainingClient, logprobs_of, shifted_datum, tokens_in, whole_sequence
from ..loop import Metrics, Run, check_same_base, load_batches, train
from .config import SftConfig, load_sft_settings

NLL = "test/nll"


def run_sft_job(context: RunContext, config_file: Path) -> Outcome:
    """Run the SFT job whose resolved config lies in ``config_file``."""
    return run_sft(context, load_sft_settings(config_file, None).config)


def run_sft(context: RunContext, config: SftConfig) -> Outcome:
    """Train until the last step or until the worker asks to stop; either way a checkpoint is saved.

    Raises:
        ResearcherError: For bad data, a model that cannot be had, or a backend that refuses.
    """
    renderer = load_renderer(config.base_model, config.renderer)
    data, held_out = load_batches(load_sft_data, config, renderer)
    backend = context.connect(config.backend, config.base_url)
    check_same_base(backend, config.base_model, {"load_checkpoint": config.load_checkpoint})
    run = Run(context, config, backend, renderer.name, config.total_steps(data.rows))
    return train(run, Supervised(run, config.lr_schedule, renderer, data, held_out))


class Supervised:
    """The method: mean negative log-likelihood of each row's trained tokens, summed over the rows of a batch."""

    ahead = 1
    held_out = NLL
    highest = False
    summarized: Mapping[str, str] = {"test_nll": NLL, "train_nll": "train_mean_nll"}

    def __init__(
        self, run: Run, schedule: str, renderer: ChatRenderer, data: Batches[Example], held_out: Batches[Example] | None
    ) -> None:
        self._run = run
        self._schedule = schedule
        self._renderer = renderer
        self._data = data
        self._held_out = [row_datum(e) for i in range(len(held_out)) for e in held_out.batch(i)] if held_out else []
        self.validates = bool(self._held_out)

    async def prepare(self, client: TrainingClient, step: int) -> None:
        """There is nothing to prepare."""

    async def batch(self, client: TrainingClient, step: int) -> list[tinker.Datum]:
        """The rows of a step: shuffled anew in each epoch, by the seed and the epoch alone."""
        return [row_datum(example) for example in self._data.batch(step)]

    async def step(self, client: TrainingClient, step: int, batch: list[tinker.Datum]) -> Metrics:
        """One gradient and one update."""
        learning_rate = self._run.learning_rate(step, self._schedule)
        gradient = client.forward_backward(batch, "cross_entropy")
        update = client.optim_step(learning_rate)
        logprobs = logprobs_of(await gradient)
        optimizer = (await update).metrics or {}
        return {
            "epoch": step // len(self._data),
            "progress": (step + 1) / self._run.total_steps,
            "learning_rate": learning_rate,
            **optimizer,
            "num_sequences": len(batch),
            "num_tokens": tokens_in(batch),
            "num_loss_tokens": sum(int(np.count_nonzero(weights_of(datum))) for datum in batch),
            **likelihood("train_mean_", batch, logprobs, self._renderer),
        }

    async def validate(self, client: TrainingClient) -> Metrics:
        """``test/nll`` (nats per trained token, each row counting alike) and ``test/bpb`` of the weights of now."""
        sampler = await client.sampler()
        scored = await asyncio.gather(*[sampler.logprobs(whole_sequence(datum)) for datum in self._held_out])
        logprobs = [torch.tensor(row[1:], dtype=torch.float32) for row in scored]
        return likelihood("test/", self._held_out, logprobs, self._renderer)

    async def close(self) -> None:
        """There is nothing to let go of."""


def row_datum(example: Example) -> tinker.Datum:
    """A row as a datum whose weights sum to the row's own, 1 unless it says otherwise, however long it is."""
    weights: NDArray[np.float32] = example.weights.astype(np.float32)
    return shifted_datum(example.tokens, weights * np.float32(example.row_weight) / weights[1:].sum())


def weights_of(datum: tinker.Datum) -> NDArray[np.float32]:
    """Loss weights of a datum's targets, shape [T - 1]."""
    return np.asarray(datum.loss_fn_inputs["weights"].data, dtype=np.float32)


def likelihood(
    prefix: str, data: Sequence[tinker.Datum], logprobs: Sequence[Tensor], renderer: ChatRenderer
) -> Metrics:
    """How surprised the model is by the trained tokens.

    Args:
        prefix: Of the metrics' names.
        data: Sequences of T tokens.
        logprobs: Log-probabilities (nats) of their targets, each of shape [T - 1].
        renderer: Makes text of tokens.

    Returns:
        ``nll``: mean negative log-likelihood in nats, weighted by the loss weights. ``token_nll``: the same with every
        trained token alike, so that a long row counts for more. ``bpb``: the same in bits per UTF-8
        byte of the trained text, comparable across tokenizers; special tokens count on neither side, since they carry
        no text and their number depends on the chat format. It is left out where no text is trained.
    """
    weighted = weight = nats = plain = 0.0
    length = tokens = 0
    for datum, lp in zip(data, logprobs, strict=True):
        weights, targets = weights_of(datum), np.asarray(datum.loss_fn_inputs["target_tokens"].data)
        weighted += float(np.dot(lp.numpy(), weights))
        weight += float(weights.sum())
        plain += float(lp.numpy()[weights > 0].sum())
        tokens += int(np.count_nonzero(weights))
        counted = (weights > 0) & ~np.isin(targets, renderer.special_tokens)
        nats += float(lp.numpy()[counted].sum())
        length += len(renderer.text_of(targets[counted].tolist()).encode())
    metrics = {f"{prefix}nll": -weighted / weight, f"{prefix}token_nll": -plain / tokens}
    return metrics | ({f"{prefix}bpb": -nats / (math.log(2) * length)} if length else {})
