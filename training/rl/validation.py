"""Held-out reward during training, and keeping the checkpoint with the highest. Heavy: imports the cookbook."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import tinker
from tinker_cookbook.eval.evaluators import SamplingClientEvaluator

from ...rewards.episodes import Episode
from ...rewards.problems import Problem
from ...rewards.scorers import Response, Score
from ..best_checkpoint import BestKeeper
from ..steering import Steering
from .rollouts import Sampling, episode_metrics
from .seeds import GroupKey, seed_of
from .steering import GroupSamplingClient
from .turns import play_group

HELD_OUT = "test/reward"
SAMPLES = 4
# Seeds of held-out samples are of a kind of their own, so that none is a seed of training.
_HELD_OUT_SEEDS = -1


@dataclass(frozen=True, slots=True)
class Sampled:
    """What some samples for one problem came to; ``episodes`` are empty without an environment."""

    outcomes: list[tuple[Response, Score]]
    episodes: list[Episode]


async def sample_and_score(client: Any, sampling: Sampling, problem: Problem, *, samples: int, seed: int) -> Sampled:
    """Sample some responses to a problem as training does, or play some episodes, and score them."""
    table = sampling.table(stopped=lambda: False)
    if table is not None:
        asking = client if isinstance(client, GroupSamplingClient) else GroupSamplingClient(client)
        envs, responses, scores = await play_group(asking, table, problem, GroupKey(seed, samples))
        return Sampled(list(zip(responses, scores, strict=True)), [env.episode for env in envs])
    config, renderer = sampling.config, sampling.renderer
    params = tinker.SamplingParams(
        max_tokens=config.max_response_tokens, temperature=config.temperature, stop=renderer.stop, seed=seed
    )
    prompt = tinker.ModelInput.from_ints(renderer.generation_prompt(problem.messages))
    result = await client.sample_async(prompt=prompt, num_samples=samples, sampling_params=params)
    responses = [
        Response(renderer.decode(s.tokens), len(s.tokens), str(s.stop_reason) == "length") for s in result.sequences
    ]
    scores = await sampling.scorers.score_group(problem, responses)
    return Sampled(list(zip(responses, scores, strict=True)), [])


class RewardValidation(SamplingClientEvaluator):
    """Measures ``test/reward`` of the current weights at training's temperature, with the same seeds every time."""

    def __init__(self, problems: Sequence[Problem], sampling: Sampling, steering: Steering, folder: Path) -> None:
        self._problems = problems
        self._sampling = sampling
        self._steering = steering
        self._keeper = BestKeeper(folder, steering, HELD_OUT, highest=True)

    async def __call__(self, sampling_client: Any) -> dict[str, float]:
        """Measure, and keep the weights if they are the best yet."""
        seed = self._sampling.config.seed
        groups = await asyncio.gather(
            *[
                sample_and_score(
                    sampling_client,
                    self._sampling,
                    problem,
                    samples=SAMPLES,
                    seed=seed_of(seed, _HELD_OUT_SEEDS, problem.line),
                )
                for problem in self._problems
            ]
        )
        outcomes = [outcome for group in groups for outcome in group.outcomes]
        known = [score.reward for _, score in outcomes if not score.failed]
        metrics = {HELD_OUT: fmean(known)} if known else {}
        metrics["test/response_tokens"] = fmean([response.tokens for response, _ in outcomes])
        played = episode_metrics([episode for group in groups for episode in group.episodes])
        metrics |= {f"test/{name}": value for name, value in played.items()}
        if known and self._steering.client is not None:
            await self._keeper.consider(self._steering.client, metrics[HELD_OUT])
        return metrics
