"""One RL job from its resolved config to its final checkpoint, on the cookbook's RL loop.

Heavy: imports torch, tinker and the cookbook. Only a worker imports it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, cast

import chz
from tinker_cookbook import tokenizer_utils
from tinker_cookbook.rl import metric_util, train
from tinker_cookbook.rl import metrics as loop_metrics
from tinker_cookbook.rl.types import RLDataset, RLDatasetBuilder

from ...backends.connection import Backend, backend_errors, connect
from ...core.files import append_json_line, read_json_lines
from ...jobs.context import Outcome, RunContext, StopReason
from ...models.model_ref import resolve_model
from ...models.renderers import load_renderer
from ...rewards.environments import make_environment
from ...rewards.model_scorers import JudgeMaker, model_scorers
from ...rewards.problems import Problem, load_problems
from ...rewards.scorers import Scorers
from .. import resume_point
from ..best_checkpoint import read_best
from ..cookbook_loop import injected, save_stopped, service_client_factory, tokenizer_of, watched
from ..dpo.recipe import check_same_base
from ..steering import Steering, StopTrainingError
from .advantages import advantages_of
from .config import RlConfig
from .dry_run import check_before_training
from .kl import kl_penalty_with_estimate
from .overlap import OverlappingData
from .rollouts import PromptData, Recorder, Sampling, forget_rollouts
from .steering import SteeredRlService
from .validation import HELD_OUT, RewardValidation


def run_rl(context: RunContext, config: RlConfig, *, judges: JudgeMaker | None = None) -> Outcome:
    """Train until the last step or until the worker asks to stop; either way a checkpoint is saved.

    Args:
        context: The worker.
        config: The job's settings, all derived.
        judges: Makes the judges that a service answers for.

    Raises:
        ResearcherError: For bad data, a reward that cannot be used, or a backend that refuses.
    """
    began = time.monotonic()
    parts = config.parts()

    def problems(file: str) -> list[Problem]:
        return load_problems(Path(file), parts, system_prompt=config.system_prompt, skip_bad_rows=config.skip_bad_rows)

    train_set, held_out = problems(config.train_file), problems(config.val_file) if config.val_file else []
    backend = connect(config.backend, config.base_url)
    given = {"ref_model": reference_path(config), "load_checkpoint": config.load_checkpoint}
    check_same_base(backend, config.base_model, given)
    total_steps = config.num_steps or steps_of(config, len(train_set))
    point = resume_point.find_resume_point(context.folder) if context.attempt > 1 else None
    resume_point.prepare_folder(context.folder, point, batches_per_epoch=None)
    forget_rollouts(context.folder, point.next_step if point else 0)
    if point:
        context.alert("info", f"going on from the checkpoint with {point.next_step} steps", step=point.next_step)
    run = _RlRun(context, config, backend, train_set, held_out, total_steps, point, judges)
    context.started(total_steps)
    context.progress(run.steering.next_step)
    with backend_errors(backend):
        stopped = watched(run.train, backend, run.steering)
    return Outcome(stopped is None, stopped, run.steering.next_step, _summary(context.folder, run.steering, began))


def reference_path(config: RlConfig) -> str | None:
    """The sampler path of the KL's reference; None for the base model."""
    return None if config.ref_model == "base" else config.ref_model


def steps_of(config: RlConfig, prompts: int) -> int:
    """Steps of so many epochs: the last one is filled up from the next epoch."""
    batch = min(config.batch_size or 1, prompts)
    return -(-prompts * (config.num_epochs or 1) // batch)


class _RlRun:
    """The pieces of one attempt, tied to the loop of the cookbook."""

    def __init__(
        self,
        context: RunContext,
        config: RlConfig,
        backend: Backend,
        problems: Sequence[Problem],
        held_out: Sequence[Problem],
        total_steps: int,
        point: resume_point.ResumePoint | None,
        judges: JudgeMaker | None,
    ) -> None:
        self._context = context
        self._config = config
        self._backend = backend
        self._problems = problems
        self._total_steps = total_steps
        self._model = resolve_model(config.base_model)
        self._renderer = load_renderer(config.base_model, config.renderer)
        self._failures = 0
        self.scorers = Scorers(
            config.parts(),
            max_tokens=config.max_response_tokens,
            allow_unsandboxed=config.allow_unsandboxed,
            models=model_scorers(config.parts(), config.base_model, backend, self._renderer, judges),
        )
        self.steering = Steering(
            config=config,
            should_stop=self._should_stop,
            on_step=context.progress,
            on_saved=partial(resume_point.note_state, context.folder),
            next_step=point.next_step if point else 0,
            tokens_submitted=point.tokens if point else 0,
        )
        overlapping = config.max_steps_off_policy is not None
        clock = (lambda: self.steering.next_step) if overlapping else None
        batch = min(config.batch_size or 1, len(problems))
        recorder = Recorder(context.folder, config.keep_rollouts, self._on_failure, clock, batch=batch)
        self.environment = make_environment(config, self.scorers)
        self._sampling = Sampling(
            config, self._renderer, self.scorers, recorder, self._should_stop_sampling, self.environment
        )
        data = PromptData(self._sampling, problems, total_steps)
        self._data = OverlappingData(data, self._enough) if overlapping else data
        self._validation = (
            RewardValidation(held_out, self._sampling, self.steering, context.folder) if held_out else None
        )

    def train(self) -> str | None:
        """Run the loop; returns why it stopped early, or None."""
        tokenizer = tokenizer_of(self._model)
        tokenizer_utils.register_tokenizer(self._model.wire_name, lambda: tokenizer)
        config = self._config
        functions: dict[str, Any] = {
            "compute_advantages": advantages_of(config.advantage),
            "compute_trajectory_metrics": self._with_statistics(metric_util.compute_trajectory_metrics),
        }
        if config.kl_coef:
            functions["incorporate_kl_penalty"] = kl_penalty_with_estimate(loop_metrics.incorporate_kl_penalty)
        if config.loss_fn == "gspo":
            functions["_remove_mask"] = _mask_for_sequence_ratio
        client = service_client_factory(self._context.job_id, self._backend, self.steering, SteeredRlService)
        with injected(train, ServiceClient=client, **functions):
            return asyncio.run(self._train())

    async def _train(self) -> str | None:
        try:
            return await self._run_loop()
        finally:
            await self.scorers.close()
            if self.environment is not None:
                await self.environment.close()

    async def _run_loop(self) -> str | None:
        try:
            if self.steering.next_step == 0:
                await check_before_training(self._context, self._backend, self._sampling, self._problems)
            await train.main(self._loop_config())
            self._check_all_taken()
        except StopTrainingError:
            await save_stopped(self._context.folder, self.steering, batches_per_epoch=None)
            return self._context.stop_requested() or StopReason.CANCEL
        await self._final_validation()
        return None

    def _check_all_taken(self) -> None:
        """Overlapping steps end with the data: then they stop early, or there were too few groups to learn from.

        Raises:
            StopTrainingError: If the run was asked to stop.
        """
        taken = self.steering.next_step
        if taken >= self._total_steps:
            return
        if self._should_stop():
            raise StopTrainingError
        message = f"only {taken} of {self._total_steps} steps: the other groups had one reward throughout or were stale"
        self._context.alert("warn", message, step=taken)

    def _enough(self) -> bool:
        return self.steering.next_step >= self._total_steps or self._should_stop()

    def _should_stop(self) -> bool:
        return self._context.stop_requested() is not None

    def _should_stop_sampling(self) -> bool:
        """With overlapping steps a stop waits for the step under way, so that every step taken is logged."""
        return self._config.max_steps_off_policy is None and self._should_stop()

    def _on_failure(self, note: str) -> None:
        self._failures += 1
        if self._failures == 1 or self._failures % 100 == 0:
            step = self.steering.next_step
            message = f"a reward could not be computed ({self._failures} so far); such samples are left out: {note}"
            self._context.alert("warn", message, step=step)

    def _with_statistics(self, original: Any) -> Any:
        """The loop's trajectory metrics, and with them ours of all samples, those of dropped groups included."""

        def metrics(groups: Any, tags: Any) -> dict[str, float]:
            return {**original(groups, tags), **self._sampling.recorder.take(self.steering.next_step)}

        return metrics

    def _loop_config(self) -> train.Config:
        config = self._config
        hours = config.checkpoint_ttl_hours
        reference = train.KLReferenceConfig(
            base_model=self._model.wire_name, load_checkpoint_path=reference_path(config)
        )
        off_policy = config.max_steps_off_policy
        batch = min(config.batch_size or 1, len(self._problems))
        return train.Config(
            log_path=str(self._context.folder),
            model_name=self._model.wire_name,
            recipe_name="ml_researcher_rl",
            renderer_name=self._renderer.name,
            load_checkpoint_path=config.load_checkpoint,
            dataset_builder=cast("RLDatasetBuilder", _Builder(build=lambda: self._data)),
            learning_rate=config.learning_rate or 0.0,
            max_tokens=config.max_response_tokens,
            temperature=config.temperature,
            loss_fn=config.loss_fn,
            loss_fn_config=dict(loss_settings(config)) or None,
            num_substeps=config.num_substeps,
            kl_penalty_coef=config.kl_coef,
            kl_reference_config=reference if config.kl_coef else None,
            remove_constant_reward_groups=config.drop_constant_groups,
            rollout_error_tolerance=False,
            async_config=train.AsyncConfig(max_steps_off_policy=off_policy, groups_per_batch=batch)
            if off_policy
            else None,
            lora_rank=config.lora_rank,
            evaluator_builders=[lambda: cast("Any", self._validation)] if self._validation else [],
            save_every=config.checkpoint_every or 0,
            eval_every=config.eval_every or 0,
            ttl_seconds=hours * 3600 if hours else None,
            session_name=config.run_name or self._context.job_id,
            num_groups_to_log=0,
            rollout_json_export=False,
            max_steps=self._total_steps,
        )

    async def _final_validation(self) -> None:
        """The loop validates before a step only; this measures the weights it ends with."""
        client, step, validation = self.steering.client, self.steering.next_step, self._validation
        if client is None or validation is None:
            return
        sampler = await client.save_weights_and_get_sampling_client_async()
        append_json_line(self._context.folder / resume_point.METRICS, {"step": step, **await validation(sampler)})


def loss_settings(config: RlConfig) -> Mapping[str, float]:
    """The loss's own settings, as the platform names them."""
    if config.loss_fn == "dro":
        return {"beta": config.dro_beta}
    if config.clip_ratio is None:
        return {}
    low, high = config.clip_pair(config.clip_ratio)
    if config.loss_fn != "cispo":
        low, high = 1 - low, 1 + high
    return {"clip_low_threshold": low, "clip_high_threshold": high}


def _mask_for_sequence_ratio(datum: Any) -> Any:
    """What gspo reads instead of the mask that the loop takes away: the tokens that make up a sequence's ratio."""
    inputs = {("sequence_ratio_mask" if k == "mask" else k): v for k, v in datum.loss_fn_inputs.items()}
    return type(datum)(model_input=datum.model_input, loss_fn_inputs=inputs)


@chz.chz
class _Builder:
    # A function, because the loop deep-copies its config and a function is copied as itself.
    build: Callable[[], RLDataset]

    async def __call__(self) -> tuple[RLDataset, RLDataset | None]:
        return self.build(), None


def _summary(folder: Path, steering: Steering, began: float) -> dict[str, object]:
    records = list(read_json_lines(folder / resume_point.METRICS))
    saved = list(read_json_lines(folder / resume_point.CHECKPOINTS))
    last = next((r for r in reversed(saved) if r.get("state_path") and r.get("sampler_path")), None)
    best = read_best(folder, HELD_OUT)
    shown: dict[str, object] = {}
    for name in ("reward/mean", HELD_OUT, "response/tokens", "episode/turns", "optim/entropy"):
        values = [r[name] for r in records if name in r]
        shown |= {f"first_{name}": values[0] if values else None, f"last_{name}": values[-1] if values else None}
    return {
        "final_checkpoint": {k: last[k] for k in ("name", "state_path", "sampler_path")} if last else None,
        "best_checkpoint": best.as_result() if best else None,
        **shown,
        "tokens_trained": steering.tokens_submitted,
        "wall_s": round(time.monotonic() - began, 2),
    }
