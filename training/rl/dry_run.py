"""The reward's dry run on samples of the weights a run starts from. Heavy: imports tinker and the cookbook."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import tinker

from ...backends.connection import Backend, backend_errors, connect
from ...core.files import write_atomically
from ...jobs.context import RunContext
from ...models.model_ref import resolve_model
from ...models.renderers import load_renderer
from ...rewards.environments import make_environment, prober
from ...rewards.model_scorers import asked_in_jobs_only, model_scorers
from ...rewards.probes import SAMPLED_ROWS, RewardReport, Sampled, check_reward, require_usable
from ...rewards.problems import Problem
from ...rewards.sandbox.modes import unsandboxed_warnings
from ...rewards.scorers import Scorers
from .config import RlConfig
from .rollouts import Recorder, Sampling
from .seeds import seed_of
from .validation import sample_and_score

REPORT = "reward_check.json"
_MOST_SAMPLES = 16
# A kind of seed that training and validation do not use.
_DRY_RUN_SEEDS = -2


async def dry_run(backend: Backend, sampling: Sampling, problems: Sequence[Problem]) -> RewardReport:
    """Sample some prompts as training will, and judge the reward by what comes back."""
    config = sampling.config
    order = np.random.default_rng([config.seed, 7]).permutation(len(problems))[:SAMPLED_ROWS]
    chosen = [problems[int(i)] for i in order]
    client = await _start_weights(backend, config.base_model, config.load_checkpoint)
    samples = min(config.group_size, _MOST_SAMPLES)
    groups = await asyncio.gather(
        *[
            sample_and_score(
                client, sampling, problem, samples=samples, seed=seed_of(config.seed, _DRY_RUN_SEEDS, problem.line)
            )
            for problem in chosen
        ]
    )
    sampled = [Sampled(problem, group.outcomes) for problem, group in zip(chosen, groups, strict=True)]
    probed = prober(config, sampling.environment, sampling.scorers)
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
        # Nothing is recorded here: the recorder's folder is never written to with keep 0.
        recorder = Recorder(Path(), 0, lambda note: None)
        environment = make_environment(config, scorers)
        sampling = Sampling(config, renderer, scorers, recorder, lambda: False, environment)
        try:
            return await dry_run(backend, sampling, problems)
        finally:
            await scorers.close()
            if environment is not None:
                await environment.close()

    with backend_errors(backend):
        return asyncio.run(run())


async def check_before_training(
    context: RunContext, backend: Backend, sampling: Sampling, problems: Sequence[Problem]
) -> None:
    """Dry-run the reward, keep the report, warn, and refuse what cannot teach anything.

    Raises:
        ConfigError: If the reward is constant and the config does not insist.
        DataError: If tests fail on the data's own solutions.
    """
    report = await dry_run(backend, sampling, problems)
    write_atomically(context.folder / REPORT, json.dumps(report.model_dump(), indent=2) + "\n")
    require_usable(report, force=sampling.config.force)
    for warning in report.warnings:
        context.alert("warn", warning, step=0)


async def _start_weights(backend: Backend, base_model: str, load_checkpoint: str | None) -> Any:
    service = tinker.ServiceClient(base_url=backend.base_url, api_key=backend.api_key)
    if load_checkpoint is None:
        return await service.create_sampling_client(base_model=resolve_model(base_model).wire_name)
    training = await service.create_training_client_from_state(load_checkpoint)
    return await training.save_weights_and_get_sampling_client()
