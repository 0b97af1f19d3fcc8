"""Prompts as the cookbook's environments, with seeds, scores and a record. Heavy: imports the cookbook."""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import tinker
from tinker_cookbook.rl.types import (
    ActionExtra,
    Env,
    EnvGroupBuilder,
    Metrics,
    RLDataset,
    StepResult,
    Trajectory,
)

from ...core.errors import ResearcherError
from ...core.files import append_json_line, read_json_lines, write_json_lines
from ...doctrine.rules import number
from ...models.chat import ChatRenderer
from ...rewards.episodes import Environment, Episode
from ...rewards.problems import Problem
from ...rewards.reward_rules import overlong_penalty
from ...rewards.scorers import Response, Score, Scorers
from ..steering import StopTrainingError
from .advantages import UNSCORED
from .config import RlConfig
from .seeds import GroupKey, group_key, seed_of
from .turns import Table, TurnEnv, make_turn_envs

ROLLOUTS = "rollouts.jsonl"
_KEPT_TEXT = 20_000
_LEAST_GROUPS = 8


class RewardFailedError(ResearcherError, RuntimeError):
    """Too many samples could not be scored: what is left is no fair sample of what the model does."""


@dataclass(slots=True)
class StepStatistics:
    """What the samples of one step were like, before any group is left out."""

    rewards: list[list[float]] = field(default_factory=list[list[float]])  # of samples that were scored
    parts: dict[str, list[float]] = field(default_factory=dict[str, list[float]])
    tokens: list[int] = field(default_factory=list[int])
    episodes: list[Episode] = field(default_factory=list[Episode])
    cut: int = 0
    failed: int = 0
    kept: int = 0

    @property
    def samples(self) -> int:
        """How many there were, scored or not."""
        return len(self.tokens)

    def metrics(self) -> dict[str, float]:
        """As logged: ``reward/...`` and ``response/...``."""
        if not self.samples:
            return {}
        found = {
            "reward/failed": self.failed / self.samples,
            "response/tokens": fmean(self.tokens),
            "response/cut": self.cut / self.samples,
        }
        flat = [reward for group in self.rewards for reward in group]
        if flat:
            mean = fmean(flat)
            found |= {
                "reward/mean": mean,
                "reward/std": math.sqrt(fmean([(r - mean) ** 2 for r in flat])),
                "reward/constant_groups": fmean([float(len(set(group)) == 1) for group in self.rewards]),
            }
        found |= {f"reward/{name}": fmean(values) for name, values in self.parts.items()}
        return found | episode_metrics(self.episodes)


def episode_metrics(episodes: Sequence[Episode]) -> dict[str, float]:
    """What episodes of several turns were like.

    ``episode/turns`` and ``episode/tokens`` are means; ``episode/reward_turn_N`` is the mean reward of the N-th turn,
    before discount, of the episodes that came so far; ``episode/ended_REASON`` the share of episodes.
    """
    if not episodes:
        return {}
    found = {
        "episode/turns": fmean([len(e.turns) for e in episodes]),
        "episode/tokens": fmean([e.tokens for e in episodes]),
    }
    for n in range(max(len(e.turns) for e in episodes)):
        reached = [e.turns[n].score.reward for e in episodes if len(e.turns) > n and not e.turns[n].score.failed]
        if reached:
            found[f"episode/reward_turn_{n + 1}"] = fmean(reached)
    ended = Counter(e.stop for e in episodes)
    return found | {f"episode/ended_{reason}": count / len(episodes) for reason, count in ended.items()}


class Recorder:
    """Statistics by step, and the rollouts kept for people in ``rollouts.jsonl``."""

    def __init__(
        self,
        folder: Path,
        keep: int,
        on_failure: Callable[[str], None],
        clock: Callable[[], int] | None = None,
        *,
        batch: int = 1,
    ) -> None:
        """Prepare to record.

        Args:
            folder: The run's.
            keep: Rollouts kept of each step.
            on_failure: Told why a sample could not be scored.
            clock: If given, groups belong to the step it shows when they are scored.
            batch: Groups of a step: the failures of so many (and at least of eight) are looked at together.
        """
        self._path = folder / ROLLOUTS
        self._clock = clock
        self._keep = keep
        self._on_failure = on_failure
        self._steps: dict[int, StepStatistics] = {}
        self._lately: deque[float] = deque(maxlen=max(batch, _LEAST_GROUPS))

    def note(
        self,
        step: int,
        problem: Problem,
        responses: Sequence[Response],
        scores: Sequence[Score],
        episodes: Sequence[Episode] = (),
    ) -> None:
        """Take in one group; ``episodes`` are what the responses come from where there is an environment.

        Raises:
            RewardFailedError: If too many of the last samples could not be scored.
        """
        found = self._steps.setdefault(self._window(step), StepStatistics())
        step = self._clock() if self._clock else step
        found.episodes += episodes
        known = [score.reward for score in scores if not score.failed]
        found.rewards += [known] if known else []
        for response, score in zip(responses, scores, strict=True):
            found.tokens.append(response.tokens)
            found.cut += response.cut
            found.failed += score.failed
            if score.failed:
                self._on_failure(score.note)
                continue
            for name, value in score.parts.items():
                found.parts.setdefault(name, []).append(value)
        share = max(1, self._keep // 4)
        for i, (response, score) in enumerate(list(zip(responses, scores, strict=True))[:share]):
            if found.kept < self._keep:
                found.kept += 1
                spoken = _spoken(episodes[i]) if episodes else {}
                append_json_line(self._path, {**_record(step, problem, response, score), **spoken})

        self._check(fmean([float(score.failed) for score in scores]), scores)

    def _check(self, failed: float, scores: Sequence[Score]) -> None:
        self._lately.append(failed)
        share = fmean(self._lately)
        if len(self._lately) == self._lately.maxlen and share > number("reward.unscored"):
            last = next((s.note for s in scores if s.failed), "")
            raise RewardFailedError(
                f"{share:.0%} of the samples of the last {len(self._lately)} prompts could not be scored; last: {last}",
                where="reward",
                fix="Mend what it names, then resume_job goes on from the last checkpoint",
            )

    def take(self, step: int) -> dict[str, float]:
        """The metrics of a step, once; with a clock, of what was scored since they were last taken."""
        return self._steps.pop(self._window(step), StepStatistics()).metrics()

    def _window(self, step: int) -> int:
        return 0 if self._clock else step


def _record(step: int, problem: Problem, response: Response, score: Score) -> dict[str, Any]:
    return {
        "step": step,
        "line": problem.line,
        "prompt": problem.prompt[:_KEPT_TEXT],
        "response": response.text[:_KEPT_TEXT],
        "reward": None if score.failed else score.reward,
        "parts": dict(score.parts),
        "tokens": response.tokens,
        "cut": response.cut,
        "note": score.note,
    }


def _spoken(episode: Episode) -> dict[str, Any]:
    """An episode turn by turn: the opening, and for each turn what was said to and fro and its reward."""
    turns = [
        {
            "reply": turn.reply[:_KEPT_TEXT],
            "tokens": turn.tokens,
            "reward": None if turn.score.failed else turn.score.reward,
            "parts": dict(turn.score.parts),
            "environment": [{**m, "content": m["content"][:_KEPT_TEXT]} for m in turn.messages],
        }
        for turn in episode.turns
    ]
    return {"opening": list(episode.opening.messages), "turns": turns, "ended": episode.stop}


def forget_rollouts(folder: Path, next_step: int) -> None:
    """Drop the rollouts of steps that will be taken again."""
    path = folder / ROLLOUTS
    kept = [r for r in read_json_lines(path) if r["step"] < next_step]
    if path.exists():
        write_json_lines(path, kept)


class PromptEnv(Env):
    """One sample of a response to one prompt. Its score comes from the group, once all have answered."""

    def __init__(
        self, tokens: Sequence[int], stop: list[int] | list[str], group: GroupKey, stopped: Callable[[], bool]
    ) -> None:
        self._tokens = list(tokens)
        self._stop = stop
        self._group = group
        self._stopped = stopped

    async def initial_observation(self) -> tuple[tinker.ModelInput, Any]:
        """The prompt; the sampler takes the group and its seed from here.

        Raises:
            StopTrainingError: If the run has to stop: no further sample is worth waiting for.
        """
        if self._stopped():
            raise StopTrainingError
        group_key.set(self._group)
        return tinker.ModelInput.from_ints(self._tokens), self._stop

    async def step(self, action: list[int], *, extra: ActionExtra | None = None) -> StepResult:
        """The response ends the episode."""
        cut = (extra or {}).get("stop_reason") == "length"
        nothing = tinker.ModelInput.from_ints([])
        return StepResult(0.0, True, nothing, self._stop, metrics={"cut": float(cut)})


@dataclass(frozen=True)
class Sampling:
    """What every group of a job shares."""

    config: RlConfig
    renderer: ChatRenderer
    scorers: Scorers
    recorder: Recorder
    stopped: Callable[[], bool]
    environment: Environment | None = None

    def table(self, stopped: Callable[[], bool] | None = None) -> Table | None:
        """What episodes of several turns share; None where an episode is one answer."""
        settings = self.config.environment
        if self.environment is None or settings is None:
            return None
        limit = settings.max_trajectory_tokens
        return Table(self.config, self.renderer, self.environment, limit, stopped or self.stopped)


@dataclass(frozen=True)
class PromptGroup(EnvGroupBuilder):
    """All the samples of one prompt in one step."""

    sampling: Sampling
    problem: Problem
    step: int
    place: int

    async def make_envs(self) -> Sequence[Env]:
        """One environment a sample."""
        shared, config = self.sampling, self.sampling.config
        group = GroupKey(seed_of(config.seed, self.step, self.place), config.group_size)
        table = shared.table()
        if table is not None:
            return await make_turn_envs(table, self.problem, group)
        tokens = shared.renderer.generation_prompt(self.problem.messages)
        return [PromptEnv(tokens, shared.renderer.stop, group, shared.stopped) for _ in range(config.group_size)]

    async def compute_group_rewards(
        self, trajectory_group: list[Trajectory], env_group: Sequence[Env]
    ) -> list[tuple[float, Metrics]]:
        """Score the responses.

        One that could not be scored is marked so (`rl_advantages`: it gets no advantage), and its reward here is one
        that leaves a constant group constant.
        """
        shared = self.sampling
        episodes = [env.episode for env in env_group if isinstance(env, TurnEnv)]
        if shared.environment is not None:
            responses = [_last_response(e) for e in episodes]
            scores = await shared.environment.total(self.problem, episodes)
        else:
            responses = [response_of(shared.renderer, t) for t in trajectory_group]
            scores = await shared.scorers.score_group(self.problem, responses)
        scores = [self._with_penalty(s, r) for s, r in zip(scores, responses, strict=True)]
        shared.recorder.note(self.step, self.problem, responses, scores, episodes)
        neutral = next((score.reward for score in scores if not score.failed), 0.0)
        return [(neutral if s.failed else s.reward, {UNSCORED: float(s.failed)}) for s in scores]

    def _with_penalty(self, score: Score, response: Response) -> Score:
        config = self.sampling.config
        if not config.overlong_buffer_tokens or score.failed:
            return score
        penalty = overlong_penalty(
            response.tokens, max_tokens=config.max_response_tokens, buffer=config.overlong_buffer_tokens
        )
        return Score(score.reward + penalty, {**score.parts, "overlong": penalty}, score.note)

    def logging_tags(self) -> list[str]:
        """No tags: all groups are of one kind."""
        return []


def response_of(renderer: ChatRenderer, trajectory: Trajectory) -> Response:
    """What was said in a trajectory."""
    last = trajectory.transitions[-1]
    tokens = [token for transition in trajectory.transitions for token in transition.ac.tokens]
    return Response(renderer.decode(last.ac.tokens), len(tokens), bool(last.metrics.get("cut")))


def _last_response(episode: Episode) -> Response:
    """The last thing said in an episode; nothing where it could not begin."""
    if not episode.turns:
        return Response("", 0)
    last = episode.turns[-1]
    return Response(last.reply, last.tokens, episode.stop == "max_tokens")


class PromptData(RLDataset):
    """The prompts of a job, step by step: shuffled anew each epoch, by the seed and the epoch alone."""

    def __init__(self, sampling: Sampling, problems: Sequence[Problem], total_steps: int) -> None:
        self._sampling = sampling
        self._problems = problems
        self._total_steps = total_steps
        self._batch = min(sampling.config.batch_size or 1, len(problems))

    def get_batch(self, index: int) -> list[EnvGroupBuilder]:
        """The groups of a step; an epoch's last prompts are joined by the next one's first, so all steps are alike."""
        chosen = [self._at(index * self._batch + i) for i in range(self._batch)]
        return [PromptGroup(self._sampling, problem, index, place) for place, problem in enumerate(chosen)]

    def _at(self, position: int) -> Problem:
        epoch, place = divmod(position, len(self._problems))
        order = np.random.default_rng([self._sampling.config.seed, epoch]).permutation(len(self._problems))
        return self._problems[int(order[place])]

    def __len__(self) -> int:
        return self._total_steps
