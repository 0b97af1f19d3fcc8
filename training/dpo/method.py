"""Direct preference optimization and its variants: a loss on pairs of answers, against a reference."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import tinker
import torch
from torch import Tensor

from ...data.examples import Batches
from ...data.preferences import RenderedPair, load_preference_data
from ...jobs.context import Outcome, RunContext
from ...models.renderers import load_renderer
from ..client import TrainingClient, tokens_in
from ..loop import Metrics, Run, check_same_base, load_batches, train
from .config import DpoConfig, load_dpo_settings
from .preference_loss import preference_loss, preference_metrics
from .reference import Reference, data_of, forward_sums, pair_scores, weighted_sums

HELD_OUT_LOSS = "test/dpo_loss"
_CHUNK = 128


def run_dpo_job(context: RunContext, config_file: Path) -> Outcome:
    """Run the DPO job whose resolved config lies in ``config_file``.

    Raises:
        ResearcherError: For bad data, a model that cannot be had, or a backend that refuses.
    """
    config = load_dpo_settings(config_file, None).config
    renderer = load_renderer(config.base_model, config.renderer)
    data, held_out = load_batches(load_preference_data, config, renderer)
    backend = context.connect(config.backend, config.base_url)
    checkpoints = {"ref_model": config.ref_model, "load_checkpoint": config.load_checkpoint}
    check_same_base(backend, config.base_model, checkpoints)
    run = Run(context, config, backend, renderer.name, config.total_steps(data.rows))
    return train(run, Preferences(run, config, data, held_out))


class Preferences:
    """The method: the job's preference loss, averaged over the pairs of a batch."""

    ahead = 1
    held_out = HELD_OUT_LOSS
    highest = False
    summarized: Mapping[str, str] = {
        name: name for name in ("test/accuracy", HELD_OUT_LOSS, "dpo_loss", "margin", "chosen_logratio")
    }

    def __init__(
        self, run: Run, config: DpoConfig, data: Batches[RenderedPair], held_out: Batches[RenderedPair] | None
    ) -> None:
        self._run = run
        self._config = config
        self._data = data
        self._held_out = data_of(held_out.visited(len(held_out))) if held_out else []
        self._reference = Reference(run.folder)
        self.validates = bool(self._held_out)

    async def prepare(self, client: TrainingClient, step: int) -> None:
        """Measure the reference on every answer that the run will compare; after a resume it is known already."""
        await self._reference.measure(self._run, self._config, [*self._visited(), *self._held_out])

    async def batch(self, client: TrainingClient, step: int) -> list[tinker.Datum]:
        """The pairs of a step: shuffled anew in each epoch, by the seed and the epoch alone."""
        return data_of(self._data.batch(step))

    async def step(self, client: TrainingClient, step: int, batch: list[tinker.Datum]) -> Metrics:
        """One gradient and one update."""
        learning_rate = self._run.learning_rate(step, self._config.lr_schedule)
        reference = self._reference.of(batch)

        def loss(data: Sequence[tinker.Datum], logprobs: Sequence[Tensor]) -> tuple[Tensor, Metrics]:
            return self._loss(data, weighted_sums(data, logprobs), reference)

        gradient = client.forward_backward_custom(batch, loss)
        update = client.optim_step(learning_rate)
        metrics = (await gradient).metrics
        optimizer = (await update).metrics or {}
        return {
            "epoch": step // len(self._data),
            "progress": step / self._run.total_steps,
            "learning_rate": learning_rate,
            "num_pairs": len(batch) // 2,
            "num_tokens": tokens_in(batch),
            **optimizer,
            **metrics,
        }

    async def validate(self, client: TrainingClient) -> Metrics:
        """The job's loss, accuracy and margin on the held-out pairs."""
        sums: list[float] = []
        for start in range(0, len(self._held_out), _CHUNK):
            sums += await forward_sums(client, self._held_out[start : start + _CHUNK])
        policy, reference = torch.tensor(sums, dtype=torch.float64), self._reference.of(self._held_out)
        _, metrics = self._loss(self._held_out, policy, reference)
        return {f"test/{name}": value for name, value in metrics.items()}

    async def close(self) -> None:
        """There is nothing to let go of."""

    def _loss(self, data: Sequence[tinker.Datum], policy: Tensor, reference: Tensor) -> tuple[Tensor, Metrics]:
        """The loss of interleaved pairs, and what is logged of it."""
        config = self._config
        scores = pair_scores(data, policy, reference)
        assert config.beta is not None, "the plan fills it in"
        loss = preference_loss(scores, loss=config.loss, beta=config.beta, label_smoothing=config.label_smoothing)
        return loss, preference_metrics(scores, loss, beta=config.beta)

    def _visited(self) -> list[tinker.Datum]:
        """The pairs of the steps that will be taken, each once."""
        return data_of(self._data.visited(self._run.total_steps))
