"""One SFT job from its resolved config to its final checkpoint, on the cookbook's supervised loop.

Heavy: imports torch, tinker and the cookbook. Only a worker imports it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import chz
import tinker
import torch
from tinker_cookbook import tokenizer_utils
from tinker_cookbook.supervised import train
from tinker_cookbook.supervised.common import datum_from_model_input_weights
from tinker_cookbook.supervised.types import SupervisedDataset, SupervisedDatasetBuilder

from ...backends.connection import backend_errors, connect
from ...core.files import append_json_line, read_json_lines
from ...data.examples import Example
from ...data.supervised import SftData, load_sft_data
from ...jobs.context import Outcome, RunContext, StopReason
from ...models.chat import ChatRenderer
from ...models.model_ref import resolve_model
from ...models.renderers import load_renderer
from .. import resume_point
from ..best_checkpoint import read_best
from ..cookbook_loop import injected, save_stopped, service_client_factory, tokenizer_of, watched
from ..steering import Steering, StopTrainingError
from .config import SftConfig, load_sft_settings
from .validation import NLL, Validation

# Batches the loop sends before it waits for the oldest: one hides the round trip, more only cost memory.
_SUBMIT_AHEAD = 1


def run_sft_job(context: RunContext, config_file: Path) -> Outcome:
    """Run the SFT job whose resolved config lies in ``config_file`` (see `run_sft`)."""
    return run_sft(context, load_sft_settings(config_file, None).config)


def run_sft(context: RunContext, config: SftConfig) -> Outcome:
    """Train until the last step or until the worker asks to stop; either way a checkpoint is saved.

    Raises:
        ResearcherError: For bad data, a model that cannot be had, or a backend that refuses.
    """
    began = time.monotonic()
    model = resolve_model(config.base_model)
    renderer = load_renderer(config.base_model, config.renderer)
    data, held_out = _load(config, renderer)
    backend = connect(config.backend, config.base_url)
    total_steps = config.num_steps or len(data) * (config.num_epochs or 1)
    point = resume_point.find_resume_point(context.folder) if context.attempt > 1 else None
    resume_point.prepare_folder(context.folder, point, batches_per_epoch=len(data))
    if point:
        context.alert("info", f"going on from the checkpoint with {point.next_step} steps", step=point.next_step)
    steering = _steering(context, config, point)
    context.started(total_steps)
    context.progress(steering.next_step)
    run = _SftRun(context, config, renderer, steering, total_steps, tokenizer_of(model))
    client = service_client_factory(context.job_id, backend, steering)
    with backend_errors(backend), injected(train, ServiceClient=client):
        tokenizer_utils.register_tokenizer(model.wire_name, lambda: run.tokenizer)
        stopped = watched(lambda: asyncio.run(run.train(model.wire_name, data, held_out)), backend, steering)
    summary = _summary(context.folder, steering, time.monotonic() - began)
    return Outcome(stopped is None, stopped, steering.next_step, summary)


def _load(config: SftConfig, renderer: ChatRenderer) -> tuple[SftData, SftData | None]:
    def load(file: str) -> SftData:
        return load_sft_data(
            Path(file),
            renderer,
            batch_size=config.batch_size or 1,
            max_seq_len=config.max_seq_len,
            seed=config.seed,
            skip_bad_rows=config.skip_bad_rows,
        )

    return load(config.train_file), load(config.val_file) if config.val_file else None


def _steering(context: RunContext, config: SftConfig, point: resume_point.ResumePoint | None) -> Steering:
    return Steering(
        config=config,
        should_stop=lambda: context.stop_requested() is not None,
        on_step=context.progress,
        on_saved=partial(resume_point.note_state, context.folder),
        next_step=point.next_step if point else 0,
        tokens_submitted=point.tokens if point else 0,
    )


class _SftRun:
    """The pieces of one attempt, tied to the loop of the cookbook."""

    def __init__(
        self,
        context: RunContext,
        config: SftConfig,
        renderer: ChatRenderer,
        steering: Steering,
        total_steps: int,
        tokenizer: Any,
    ) -> None:
        self.tokenizer = tokenizer
        self._context = context
        self._config = config
        self._renderer = renderer
        self._steering = steering
        self._total_steps = total_steps

    async def train(self, model_name: str, data: SftData, held_out: SftData | None) -> str | None:
        """Run the loop; returns why it stopped early, or None."""
        validation = self._validation(held_out)
        try:
            await train.main(self._loop_config(model_name, data, validation))
        except StopTrainingError:
            await save_stopped(self._context.folder, self._steering, batches_per_epoch=len(data))
            return self._context.stop_requested() or StopReason.CANCEL
        if validation is not None:
            await self._final_validation(validation)
        return None

    def _validation(self, held_out: SftData | None) -> Validation | None:
        if held_out is None:
            return None
        rows = [_datum(example) for index in range(len(held_out)) for example in held_out.batch(index)]
        return Validation(rows, self.tokenizer, self._steering, self._context.folder)

    def _loop_config(self, model_name: str, data: SftData, validation: Validation | None) -> train.Config:
        config = self._config
        hours = config.checkpoint_ttl_hours
        return train.Config(
            log_path=str(self._context.folder),
            model_name=model_name,
            recipe_name="ml_researcher_sft",
            renderer_name=self._renderer.name,
            load_checkpoint_path=config.load_checkpoint,
            dataset_builder=_Builder(build=lambda: (_Batches(data), None)),
            learning_rate=config.learning_rate or 0.0,
            lr_schedule=config.lr_schedule,
            num_epochs=-(-self._total_steps // len(data)),
            max_steps=self._total_steps,
            lora_rank=config.lora_rank,
            evaluator_builders=[lambda: validation] if validation is not None else [],
            save_every=config.checkpoint_every or 0,
            eval_every=config.eval_every or 0,
            ttl_seconds=hours * 3600 if hours else None,
            adam_beta1=config.adam_beta1,
            adam_beta2=config.adam_beta2,
            adam_eps=config.adam_eps,
            session_name=config.run_name or self._context.job_id,
            submit_ahead=_SUBMIT_AHEAD,
        )

    async def _final_validation(self, validation: Validation) -> None:
        """The loop validates before a step only; this measures the weights it ends with."""
        client, step = self._steering.client, self._steering.next_step
        records = read_json_lines(self._context.folder / resume_point.METRICS)
        if client is None or any(r.get("step") == step and "test/nll" in r for r in records):
            return
        metrics = await validation(client)
        append_json_line(self._context.folder / resume_point.METRICS, {"step": step, **metrics})


class _Batches(SupervisedDataset):
    """Our rows as the loop wants them."""

    def __init__(self, data: SftData) -> None:
        self._data = data

    def get_batch(self, index: int) -> list[tinker.Datum]:
        return [_datum(example) for example in self._data.batch(index)]

    def set_epoch(self, seed: int = 0) -> None:
        self._data.set_epoch(seed)

    def __len__(self) -> int:
        return len(self._data)


@chz.chz
class _Builder(SupervisedDatasetBuilder):
    build: Callable[[], tuple[SupervisedDataset, SupervisedDataset | None]]

    def __call__(self) -> tuple[SupervisedDataset, SupervisedDataset | None]:
        return self.build()


def _datum(example: Example) -> tinker.Datum:
    """A row as a datum whose weights sum to one, the cookbook's way: each row counts alike, however long."""
    return datum_from_model_input_weights(
        tinker.ModelInput.from_ints([int(token) for token in example.tokens]),
        torch.as_tensor(example.weights, dtype=torch.float32),
        reduction="mean",
    )


def _summary(folder: Path, steering: Steering, wall_s: float) -> dict[str, object]:
    records = list(read_json_lines(folder / resume_point.METRICS))
    saved: Sequence[dict[str, Any]] = list(read_json_lines(folder / resume_point.CHECKPOINTS))
    last = next((r for r in reversed(saved) if r.get("state_path") and r.get("sampler_path")), None)
    best = read_best(folder, NLL)
    validations = [r["test/nll"] for r in records if "test/nll" in r]
    losses = [r["train_mean_nll"] for r in records if "train_mean_nll" in r]
    return {
        "final_checkpoint": {k: last[k] for k in ("name", "state_path", "sampler_path")} if last else None,
        "best_checkpoint": best.as_result() if best else None,
        "first_test_nll": validations[0] if validations else None,
        "last_test_nll": validations[-1] if validations else None,
        "first_train_nll": losses[0] if losses else None,
        "last_train_nll": losses[-1] if losses else None,
        "tokens_trained": steering.tokens_submitted,
        "wall_s": round(wall_s, 2),
    }
