"""The reward's dry run on samples of the weights a run starts from. Heavy: imports tinker and the cookbook."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import tinker

from sota_ml_researcher.core.files import write_atomically
from sota_ml_researcher.training.backends import Backend
from sota_ml_researcher.training.models import resolve_model
from sota_ml_researcher.training.reward_check import (
    SAMPLED_ROWS,
    RewardReport,
    Sampled,
    check_reward,
    require_usable,
)
from sota_ml_researcher.training.rl_rollouts import Sampling, seed_of
from sota_ml_researcher.training.rl_rows import Problem
from sota_ml_researcher.training.rl_validation import sample_and_score
from sota_ml_researcher.training.run_context import RunContext

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
    sampled = [Sampled(problem, group) for problem, group in zip(chosen, groups, strict=True)]
    return await check_reward(sampling.scorers, config.parts(), problems, group_size=config.group_size, sampled=sampled)


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
