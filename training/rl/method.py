"""Reinforcement learning from rewards (GRPO and its relatives): sample groups, score them, learn from advantages."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean

import tinker
from tinker_cookbook.rl.data_processing import remove_constant_reward_groups, trajectory_to_data
from tinker_cookbook.rl.metric_util import compute_trajectory_metrics
from tinker_cookbook.rl.metrics import compute_kl_sample_train
from tinker_cookbook.rl.types import TrajectoryGroup
from tinker_cookbook.utils.misc_utils import split_list
from torch import Tensor

from ...backends.sampling_client import Sampler, open_sampler
from ...data.mixtures import Mix, pass_order
from ...jobs.context import Outcome, RunContext
from ...models.model_ref import resolve_model
from ...models.renderers import load_renderer
from ...rewards.environments import make_environment
from ...rewards.judge_scorer import ServiceJudge
from ...rewards.model_scorers import JudgeMaker, model_scorers
from ...rewards.problems import Problem, load_mixed_problems, load_problems
from ...rewards.scorers import Scorers, all_of
from ..client import TrainingClient, logprobs_of
from ..loop import Metrics, Run, check_same_base, train
from .advantages import penalize_kl, scored_advantages
from .config import VALIDATION_SAMPLES, LossName, RlConfig, load_rl_settings
from .dry_run import check_before_training
from .rollout_log import RolloutLog, episode_metrics, forget_rollouts, sample_metrics
from .rollouts import PlayedGroup, Rollouts
from .turns import seed_of

HELD_OUT = "test/reward"
# The groups of a step are all sampled from the same weights; the names are the cookbook's.
_STALENESS = ("sampling_client/step_min", "sampling_client/step_mean", "sampling_client/step_max")
# Seeds of held-out samples are of a kind of their own, so that none is a seed of training.
_HELD_OUT_SEEDS = -1


def run_grpo_job(context: RunContext, config_file: Path) -> Outcome:
    """Run the RL job whose resolved config lies in ``config_file``.

    Raises:
        ResearcherError: For bad data, a reward that cannot be used, or a backend that refuses.
    """
    config = load_rl_settings(config_file, None).config
    problems, mix = load_mixed_problems(
        config.sources, config.parts(), system_prompt=config.system_prompt, skip_bad_rows=config.skip_bad_rows
    )
    held_out = _held_out(config, config.val_file) if config.val_file else []
    backend = context.connect(config.backend, config.base_url)
    checkpoints = {"ref_model": _reference_path(config), "load_checkpoint": config.load_checkpoint}
    check_same_base(backend, config.base_model, checkpoints)
    renderer = load_renderer(config.base_model, config.renderer)
    run = Run(context, config, backend, renderer.name, config.total_steps(mix.rows))
    scorers = Scorers(
        config.parts(),
        max_tokens=config.max_response_tokens,
        allow_unsandboxed=config.allow_unsandboxed,
        models=model_scorers(config.parts(), config.base_model, backend, renderer, _service_judges(context, config)),
    )
    rollouts = Rollouts(config, renderer, scorers, make_environment(config, scorers), run.must_give_up)
    return train(run, Reinforcement(run, config, rollouts, problems, mix, held_out))


def _held_out(config: RlConfig, file: str) -> list[Problem]:
    return load_problems(
        Path(file),
        config.parts(),
        system_prompt=config.system_prompt,
        skip_bad_rows=config.skip_bad_rows,
        columns=config.columns,
    )


def _service_judges(context: RunContext, config: RlConfig) -> JudgeMaker:
    """What makes the judges that a service answers for; what they cost together is told to the worker."""
    costs: dict[int, float] = {}

    def told(place: int, usd: float) -> None:
        costs[place] = usd
        context.judged(sum(costs.values()))

    def judge(place: int) -> ServiceJudge:
        return ServiceJudge(config.parts()[place], context.folder, lambda usd: told(place, usd))

    return judge


def _reference_path(config: RlConfig) -> str | None:
    """The sampler path of the KL's reference; None for the base model."""
    return None if config.ref_model == "base" else config.ref_model


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


class Reinforcement:
    """The method. With ``max_steps_off_policy``, later steps are sampled while earlier ones are trained."""

    ahead = 0  # the next step is sampled from the weights that this one makes
    held_out = HELD_OUT
    highest = True
    summarized: Mapping[str, str] = {
        name: name for name in ("reward/mean", HELD_OUT, "response/tokens", "episode/turns", "optim/entropy")
    }

    def __init__(
        self,
        run: Run,
        config: RlConfig,
        rollouts: Rollouts,
        problems: Sequence[Problem],
        mix: Mix,
        held_out: Sequence[Problem],
    ) -> None:
        self._run = run
        self._config = config
        self._rollouts = rollouts
        self._problems = problems
        self._held_out = held_out
        self._mix = mix
        self._batch = min(config.batch_size or 1, mix.rows)
        self._log = RolloutLog(run.folder, config.keep_rollouts, self._on_failure, batch=self._batch)
        self._sampling: dict[int, asyncio.Task[list[PlayedGroup]]] = {}
        self._sampled_at: dict[int, int] = {}
        self._reference: Sampler | None = None
        self._failures = 0
        self.validates = bool(held_out)

    async def prepare(self, client: TrainingClient, step: int) -> None:
        """Try the reward on samples of the weights the run starts from; open the reference.

        Raises:
            ConfigError: If the reward cannot teach anything.
        """
        forget_rollouts(self._run.folder, step)
        if step == 0:
            await check_before_training(self._run.context, await client.sampler(), self._rollouts, self._problems)
        if self._config.kl_coef:
            weights = _reference_path(self._config) or resolve_model(self._config.base_model).wire_name
            self._reference = await open_sampler(self._run.backend, weights)

    async def batch(self, client: TrainingClient, step: int) -> list[PlayedGroup]:
        """The step's groups, sampled and scored.

        Sampling of the steps that may be off-policy begins here too: of step s from the weights after s -
        max_steps_off_policy steps, and never across a checkpoint, so that a resumed run samples from the same ones.
        """
        last = min(step + (self._config.max_steps_off_policy or 0), self._next_checkpoint(step) - 1)
        for coming in range(step, last + 1):
            if coming not in self._sampling:
                sampler = await client.sampler()
                self._sampling[coming] = asyncio.create_task(self._sample(sampler, coming))
                self._sampled_at[coming] = step
        return await self._sampling.pop(step)

    async def step(self, client: TrainingClient, step: int, batch: list[PlayedGroup]) -> Metrics:
        """Advantages, then a gradient and an update for each substep."""
        config = self._config
        learning_rate = config.learning_rate or 0.0
        self._log.note(step, batch)
        groups = [group.as_trajectories() for group in batch]
        if config.drop_constant_groups:
            groups = remove_constant_reward_groups(groups)
        metrics: Metrics = {
            "progress/batch": step,
            "progress/done_frac": (step + 1) / self._run.total_steps,
            "optim/lr": learning_rate,
            **compute_trajectory_metrics(groups, [[] for _ in groups]),
            **sample_metrics(batch),
            **self._staleness(step),
        }
        data = self._data(groups)
        if not data:
            return metrics
        if self._reference is not None:
            metrics |= await penalize_kl(data, self._reference, config.kl_coef)
        sent = [
            (
                client.forward_backward(
                    [for_loss(datum, config.loss_fn) for datum in part], config.loss_fn, loss_settings(config)
                ),
                client.optim_step(learning_rate),
            )
            for part in split_list(data, min(config.num_substeps, len(data)))
        ]
        logprobs: list[Tensor] = []
        for gradient, update in sent:
            logprobs += logprobs_of(await gradient)
            metrics |= (await update).metrics or {}
        return metrics | compute_kl_sample_train(data, logprobs)

    async def validate(self, client: TrainingClient) -> Metrics:
        """``test/reward`` of the weights of now at training's temperature, with the same seeds every time."""
        sampler, seed = await client.sampler(), self._config.seed
        groups = await all_of(
            [
                self._rollouts.play(
                    sampler, problem, samples=VALIDATION_SAMPLES, seed=seed_of(seed, _HELD_OUT_SEEDS, problem.line)
                )
                for problem in self._held_out
            ]
        )
        outcomes = [outcome for group in groups for outcome in group.outcomes()]
        rewards = [score.reward for _, score in outcomes if not score.failed]
        metrics = {HELD_OUT: fmean(rewards)} if rewards else {}
        metrics["test/response_tokens"] = fmean([response.tokens for response, _ in outcomes])
        played = episode_metrics([episode for group in groups for episode in group.episodes])
        return metrics | {f"test/{name}": value for name, value in played.items()}

    async def close(self) -> None:
        """Give up what is being sampled, and end the processes that score."""
        for task in self._sampling.values():
            task.cancel()
        await asyncio.gather(*self._sampling.values(), return_exceptions=True)
        await self._rollouts.close()

    async def _sample(self, sampler: Sampler, step: int) -> list[PlayedGroup]:
        """The groups of a step: prompts are shuffled anew in each epoch, by the seed and the epoch alone.

        An epoch's last prompts are joined by the next one's first, so that all steps are alike.
        """
        config = self._config
        played = await all_of(
            [
                self._rollouts.play(
                    sampler,
                    self._problem(step * self._batch + place),
                    samples=config.group_size,
                    seed=seed_of(config.seed, step, place),
                )
                for place in range(self._batch)
            ]
        )
        return [self._rollouts.penalized(group) for group in played]

    def _problem(self, position: int) -> Problem:
        number, place = divmod(position, self._mix.rows)
        return self._problems[int(pass_order(self._mix, self._config.seed, number)[place])]

    def _next_checkpoint(self, step: int) -> int:
        """The step before which the next checkpoint is taken."""
        every = self._config.checkpoint_every
        return min((step // every + 1) * every, self._run.total_steps) if every else self._run.total_steps

    def _staleness(self, step: int) -> Metrics:
        sampled_at = self._sampled_at.pop(step, step)
        return {} if self._config.max_steps_off_policy is None else dict.fromkeys(_STALENESS, sampled_at)

    def _data(self, groups: Sequence[TrajectoryGroup]) -> list[tinker.Datum]:
        """One datum per sequence: with ``logprobs`` of the sampler, ``advantages``, and ``mask`` on sampled tokens."""
        return [
            datum
            for group in groups
            for trajectory, advantage in zip(
                group.trajectories_G, scored_advantages(group, self._config.advantage), strict=True
            )
            for datum in trajectory_to_data(trajectory, float(advantage))
        ]

    def _on_failure(self, note: str) -> None:
        self._failures += 1
        if self._failures == 1 or self._failures % 100 == 0:
            message = f"a reward could not be computed ({self._failures} so far); such samples are left out: {note}"
            self._run.context.alert("warn", message)


def for_loss(datum: tinker.Datum, loss: LossName) -> tinker.Datum:
    """A datum with what the loss reads: gspo takes the mask for the tokens of a sequence's ratio, the others none."""
    inputs = {k: v for k, v in datum.loss_fn_inputs.items() if k != "mask"}
    if loss == "gspo":
        inputs["sequence_ratio_mask"] = datum.loss_fn_inputs["mask"]
    return tinker.Datum(model_input=datum.model_input, loss_fn_inputs=inputs)
