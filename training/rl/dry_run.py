"""The reward's dry run on samples of the weights a run starts from."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from statistics import fmean

import numpy as np
import tinker

from ...backends.connection import Backend, backend_errors, connect
from ...backends.runs_on_server import run_from_state
from ...backends.sampling_client import Sampler, open_sampler, sampler_of_run
from ...core.files import write_atomically
from ...jobs.context import RunContext
from ...models.model_ref import resolve_model
from ...models.renderers import load_renderer
from ...rewards.environments import make_environment, prober
from ...rewards.model_scorers import asked_in_jobs_only, model_scorers
from ...rewards.probes import SAMPLED_ROWS, RewardReport, Sampled, check_reward, require_usable
from ...rewards.problems import Problem
from ...rewards.sandbox.modes import unsandboxed_warnings
from ...rewards.scorers import Scorers, all_of
from .config import MOST_DRY_RUN_SAMPLES, RlConfig
from .rollouts import Rollouts
from .turns import seed_of

REPORT = "reward_check.json"
# A kind of seed that training and validation do not use.
_DRY_RUN_SEEDS = -2


async def dry_run(sampler: Sampler, rollouts: Rollouts, problems: Sequence[Problem]) -> RewardReport:
    """Sample some prompts as training will, and judge the reward by what comes back."""
    config = rollouts.config
    order = np.random.default_rng([config.seed, 7]).permutation(len(problems))[:SAMPLED_ROWS]
    chosen = [problems[int(i)] for i in order]
    groups = await all_of(
        [
            rollouts.play(
                sampler,
                problem,
                samples=min(config.group_size, MOST_DRY_RUN_SAMPLES),
                seed=seed_of(config.seed, _DRY_RUN_SEEDS, problem.line),
            )
            for problem in chosen
        ]
    )
    sampled = [Sampled(group.problem, group.outcomes()) for group in groups]
    probed = prober(config, rollouts.environment, rollouts.scorers)
    unsafe = unsandboxed_warnings(runs_code=config.runs_code)
    report = await check_reward(
        probed, config.parts(), problems, group_size=config.group_size, sampled=sampled, warnings=unsafe
    )
    turns = [len(episode.turns) for group in groups for episode in group.episodes]
    return report.model_copy(update={"turns": fmean(turns)}) if turns else report


def dry_run_once(config: RlConfig, problems: Sequence[Problem]) -> RewardReport:
    """The dry run outside of a job: connects, samples, scores, and ends what it started.

    Raises:
        ConfigError: If the reward cannot be used.
        BackendError: If the backend does not answer.
    """
    for part in config.parts():
        if part.is_service_judge:
            raise asked_in_jobs_only(part)
    backend = connect(config.backend, config.base_url)
    renderer = load_renderer(config.base_model, config.renderer)

    async def run() -> RewardReport:
        scorers = Scorers(
            config.parts(),
            max_tokens=config.max_response_tokens,
            allow_unsandboxed=config.allow_unsandboxed,
            models=model_scorers(config.parts(), config.base_model, backend, renderer),
        )
        rollouts = Rollouts(config, renderer, scorers, make_environment(config, scorers), lambda: False)
        try:
            return await dry_run(await _start_weights(backend, config), rollouts, problems)
        finally:
            await rollouts.close()

    with backend_errors(backend):
        return asyncio.run(run())


async def check_before_training(
    context: RunContext, sampler: Sampler, rollouts: Rollouts, problems: Sequence[Problem]
) -> None:
    """Dry-run the reward, keep the report, warn, and refuse what cannot teach anything.

    Raises:
        ConfigError: If the reward is constant and the config does not insist.
        DataError: If tests fail on the data's own solutions.
    """
    report = await dry_run(sampler, rollouts, problems)
    write_atomically(context.folder / REPORT, json.dumps(report.model_dump(), indent=2) + "\n")
    require_usable(report, force=rollouts.config.force)
    for warning in report.warnings:
        context.alert("warn", warning, step=0)


async def _start_weights(backend: Backend, config: RlConfig) -> Sampler:
    if config.load_checkpoint is None:
        return await open_sampler(backend, resolve_model(config.base_model).wire_name)
    service = tinker.ServiceClient(base_url=backend.base_url, api_key=backend.api_key)
    training = await run_from_state(backend, service, config.load_checkpoint)
    return await sampler_of_run(backend, training)
