"""One DPO job from its resolved config to its final checkpoint, on the cookbook's preference loop.

The loop measures its reference anew in every step and, after a resume, against the resumed weights. Here the
reference is measured once, before the first step, and kept. Heavy: imports torch, tinker and the cookbook.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, cast

import chz
import tinker
from tinker_cookbook import tokenizer_utils
from tinker_cookbook.preference import train_dpo
from tinker_cookbook.supervised.types import ChatDatasetBuilder, SupervisedDataset

from ...backends.connection import Backend, backend_errors, connect
from ...backends.sampling_client import base_model_of
from ...core.errors import ConfigError
from ...core.files import append_json_line, read_json_lines
from ...data.preferences import PreferenceData, load_preference_data
from ...jobs.context import Outcome, RunContext, StopReason
from ...models.chat import ChatRenderer
from ...models.model_ref import resolve_model
from ...models.renderers import load_renderer
from .. import resume_point
from ..best_checkpoint import read_best
from ..cookbook_loop import injected, save_stopped, service_client_factory, tokenizer_of, watched
from ..steering import StopTrainingError
from .config import DpoConfig, load_dpo_settings
from .scores import ReferenceSums, data_of, forward_sums, measure_reference, sampler_sums
from .steering import PreferenceSteering, SteeredDpoService
from .validation import HELD_OUT_LOSS, PreferenceValidation


def run_dpo_job(context: RunContext, config_file: Path) -> Outcome:
    """Run the DPO job whose resolved config lies in ``config_file`` (see `run_dpo`)."""
    return run_dpo(context, load_dpo_settings(config_file, None).config)


def run_dpo(context: RunContext, config: DpoConfig) -> Outcome:
    """Train until the last step or until the worker asks to stop; either way a checkpoint is saved.

    Raises:
        ResearcherError: For bad data, a model that cannot be had, or a backend that refuses.
    """
    began = time.monotonic()
    renderer = load_renderer(config.base_model, config.renderer)
    data, held_out = _load(config, renderer)
    backend = connect(config.backend, config.base_url)
    given = {"ref_model": config.ref_model, "load_checkpoint": config.load_checkpoint}
    check_same_base(backend, config.base_model, given)
    total_steps = config.num_steps or len(data) * (config.num_epochs or 1)
    point = resume_point.find_resume_point(context.folder) if context.attempt > 1 else None
    resume_point.prepare_folder(context.folder, point, batches_per_epoch=len(data))
    if point:
        context.alert("info", f"going on from the checkpoint with {point.next_step} steps", step=point.next_step)
    steering = PreferenceSteering(
        config=config,
        should_stop=lambda: context.stop_requested() is not None,
        on_step=context.progress,
        on_saved=partial(resume_point.note_state, context.folder),
        next_step=point.next_step if point else 0,
        tokens_submitted=point.tokens if point else 0,
        reference=ReferenceSums(context.folder),
    )
    context.started(total_steps)
    context.progress(steering.next_step)
    run = _DpoRun(context, config, backend, renderer, steering, data, held_out, total_steps)
    with backend_errors(backend):
        stopped = watched(run.train, backend, steering)
    return Outcome(stopped is None, stopped, steering.next_step, _summary(context.folder, steering, began))


def check_same_base(backend: Backend, base_model: str, checkpoints: dict[str, str | None]) -> None:
    """Refuse a checkpoint of another base model.

    Raises:
        ConfigError: Naming the setting and both models.
        BackendError: If there is no such checkpoint.
    """
    name = resolve_model(base_model).wire_name
    for key, path in checkpoints.items():
        if path is None or not path.startswith("tinker://"):
            continue
        found = base_model_of(backend, path)
        if found != name:
            raise ConfigError(
                f"this checkpoint is of {found}, and the run trains {name}",
                where=key,
                fix=f"Give a checkpoint of {name}, or set base_model to {found}",
            )


def _load(config: DpoConfig, renderer: ChatRenderer) -> tuple[PreferenceData, PreferenceData | None]:
    def load(file: str) -> PreferenceData:
        return load_preference_data(
            Path(file),
            renderer,
            batch_size=config.batch_size or 1,
            max_seq_len=config.max_seq_len,
            seed=config.seed,
            skip_bad_rows=config.skip_bad_rows,
        )

    return load(config.train_file), load(config.val_file) if config.val_file else None


class _DpoRun:
    """The pieces of one attempt, tied to the loop of the cookbook."""

    def __init__(
        self,
        context: RunContext,
        config: DpoConfig,
        backend: Backend,
        renderer: ChatRenderer,
        steering: PreferenceSteering,
        data: PreferenceData,
        held_out: PreferenceData | None,
        total_steps: int,
    ) -> None:
        self._context = context
        self._config = config
        self._backend = backend
        self._renderer = renderer
        self._steering = steering
        self._data = data
        self._total_steps = total_steps
        self._model = resolve_model(config.base_model)
        pairs = held_out.pairs() if held_out else []
        self._validation = PreferenceValidation(data_of(pairs), steering, context.folder) if pairs else None
        self._client = service_client_factory(context.job_id, backend, steering, SteeredDpoService)

    def train(self) -> str | None:
        """Measure the reference, run the loop; returns why it stopped early, or None."""
        tokenizer = tokenizer_of(self._model)
        tokenizer_utils.register_tokenizer(self._model.wire_name, lambda: tokenizer)
        try:
            asyncio.run(self._measure_reference())
            with injected(train_dpo, ServiceClient=self._client):
                train_dpo.main(self._loop_config())
        except StopTrainingError:
            asyncio.run(save_stopped(self._context.folder, self._steering, batches_per_epoch=len(self._data)))
            return self._context.stop_requested() or StopReason.CANCEL
        asyncio.run(self._final_validation())
        return None

    async def _measure_reference(self) -> None:
        """Every answer the run will compare, under the reference: its own start, the base, or a checkpoint."""
        config, sums = self._config, self._steering.reference
        wanted = data_of(self._visited()) + (self._validation.data if self._validation else [])
        if not sums.missing(wanted):
            return
        service = tinker.ServiceClient(base_url=self._backend.base_url, api_key=self._backend.api_key)
        if config.ref_model is not None and config.ref_model != "base":
            sampler = await service.create_sampling_client(model_path=config.ref_model)
            forward: Callable[[Any], Any] = lambda part: sampler_sums(sampler, part)  # noqa: E731
        elif config.load_checkpoint is not None and config.ref_model is None:
            start = await service.create_training_client_from_state(config.load_checkpoint)
            forward = lambda part: forward_sums(start, part)  # noqa: E731
        else:
            # An adapter of rank 1 that was never trained changes nothing: the base model, computed as training does.
            base = await service.create_lora_training_client(self._model.wire_name, rank=1)
            forward = lambda part: forward_sums(base, part)  # noqa: E731
        await measure_reference(sums, wanted, forward, self._steering.should_stop)

    def _visited(self) -> list[Any]:
        """The pairs of the steps that will be taken: all of them, unless the run is shorter than an epoch."""
        if self._total_steps >= len(self._data):
            return self._data.pairs()
        self._data.set_epoch(0)
        return [pair for index in range(self._total_steps) for pair in self._data.batch(index)]

    def _loop_config(self) -> train_dpo.Config:
        config = self._config
        hours = config.checkpoint_ttl_hours
        return train_dpo.Config(
            log_path=str(self._context.folder),
            model_name=self._model.wire_name,
            recipe_name="ml_researcher_dpo",
            renderer_name=self._renderer.name,
            load_checkpoint_path=config.load_checkpoint,
            dataset_builder=cast("ChatDatasetBuilder", _Builder(build=lambda: (_Batches(self._data), None))),
            learning_rate=config.learning_rate or 0.0,
            lr_schedule=config.lr_schedule,
            num_epochs=-(-self._total_steps // len(self._data)),
            max_steps=self._total_steps,
            dpo_beta=config.beta,
            lora_rank=config.lora_rank,
            evaluator_builders=[lambda: cast("Any", self._validation)] if self._validation else [],
            save_every=config.checkpoint_every or 0,
            eval_every=config.eval_every or 0,
            infrequent_eval_every=0,
            ttl_seconds=hours * 3600 if hours else None,
            adam_beta1=config.adam_beta1,
            adam_beta2=config.adam_beta2,
            adam_eps=config.adam_eps,
        )

    async def _final_validation(self) -> None:
        """The loop validates before a step only; this measures the weights it ends with."""
        client, step, validation = self._steering.client, self._steering.next_step, self._validation
        records = read_json_lines(self._context.folder / resume_point.METRICS)
        if client is None or validation is None or any(r.get("step") == step and HELD_OUT_LOSS in r for r in records):
            return
        append_json_line(self._context.folder / resume_point.METRICS, {"step": step, **await validation(client)})


class _Batches(SupervisedDataset):
    """Our pairs as the loop wants them."""

    def __init__(self, data: PreferenceData) -> None:
        self._data = data

    def get_batch(self, index: int) -> list[tinker.Datum]:
        return data_of(self._data.batch(index))

    def set_epoch(self, seed: int = 0) -> None:
        self._data.set_epoch(seed)

    def __len__(self) -> int:
        return len(self._data)


@chz.chz
class _Builder:
    build: Callable[[], tuple[SupervisedDataset, SupervisedDataset | None]]

    def __call__(self) -> tuple[SupervisedDataset, SupervisedDataset | None]:
        return self.build()


def _summary(folder: Path, steering: PreferenceSteering, began: float) -> dict[str, object]:
    records = list(read_json_lines(folder / resume_point.METRICS))
    saved = list(read_json_lines(folder / resume_point.CHECKPOINTS))
    last = next((r for r in reversed(saved) if r.get("state_path") and r.get("sampler_path")), None)
    best = read_best(folder, HELD_OUT_LOSS)

    def ends(name: str) -> tuple[float | None, float | None]:
        values = [r[name] for r in records if name in r]
        return (values[0], values[-1]) if values else (None, None)

    shown: dict[str, object] = {}
    for name in ("test/accuracy", "test/dpo_loss", "dpo_loss", "margin", "chosen_logratio"):
        first, final = ends(name)
        shown |= {f"first_{name}": first, f"last_{name}": final}
    return {
        "final_checkpoint": {k: last[k] for k in ("name", "state_path", "sampler_path")} if last else None,
        "best_checkpoint": best.as_result() if best else None,
        **shown,
        "tokens_trained": steering.tokens_submitted,
        "wall_s": round(time.monotonic() - began, 2),
    }
