"""Playing groups: the samples of one prompt, from the sampler to their rewards.

A group's first turn is one request with as many samples as it has members, so that its prompt is computed once; every
later turn of a member is a request of its own. Each request has a seed that says whose it is: what a group gets does
not depend on which groups are sampled beside it, or on which answer comes first.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace

import tinker
from tinker_cookbook.completers import StopCondition, TokensWithLogprobs
from tinker_cookbook.rl.rollout_runner import stop_reason_from_metrics
from tinker_cookbook.rl.types import (
    ActionExtra,
    Env,
    InitialObservationOverflow,
    StepResult,
    Trajectory,
    TrajectoryGroup,
    Transition,
)

from ...backends.sampling_client import Sampler
from ...models.chat import ChatRenderer
from ...rewards.episodes import Environment, Episode
from ...rewards.problems import Problem
from ...rewards.reward_rules import overlong_penalty
from ...rewards.scorers import Response, Score, Scorers, all_of
from ..loop import StopTrainingError
from .advantages import UNSCORED
from .config import RlConfig
from .turns import EpisodeContext, make_turn_envs, seed_of

# A prompt, what ends an answer, how many samples, and the request's seed.
Ask = Callable[[tinker.ModelInput, StopCondition, int, int], Awaitable[list[TokensWithLogprobs]]]
Opened = tuple[tinker.ModelInput, StopCondition] | InitialObservationOverflow


async def roll_out(envs: Sequence[Env], ask: Ask, seed: int) -> list[Trajectory]:
    """Play the environments of a group to their ends, whoever wrote them.

    Args:
        envs: One per member.
        ask: Samples from the policy.
        seed: The group's.

    Returns:
        One trajectory per member, in their order.
    """
    openings = [await env.initial_observation() for env in envs]
    members: dict[tuple[int, ...], list[int]] = {}
    for member, opening in enumerate(openings):
        if not isinstance(opening, InitialObservationOverflow):
            members.setdefault(tuple(opening[0].to_ints()), []).append(member)

    async def first_turn(nth: int, sharing: list[int]) -> list[tuple[int, TokensWithLogprobs]]:
        opening = openings[sharing[0]]
        assert not isinstance(opening, InitialObservationOverflow)
        answers = await ask(*opening, len(sharing), (seed + nth) % (2**31 - 1))
        return list(zip(sharing, answers, strict=True))

    asked = await all_of([first_turn(nth, sharing) for nth, sharing in enumerate(members.values())])
    first = dict(pair for pairs in asked for pair in pairs)
    return await all_of(
        [
            _play(env, opening, first.get(member), ask, (seed, member))
            for member, (env, opening) in enumerate(zip(envs, openings, strict=True))
        ]
    )


async def _play(
    env: Env, opening: Opened, first: TokensWithLogprobs | None, ask: Ask, seeds: tuple[int, int]
) -> Trajectory:
    """One episode, whose first answer is there already."""
    nothing = tinker.ModelInput.empty()
    if isinstance(opening, InitialObservationOverflow) or first is None:
        assert isinstance(opening, InitialObservationOverflow)
        none_said = TokensWithLogprobs([], [], "length")
        only = Transition(nothing, none_said, opening.reward, True, opening.metrics, opening.logs)
        return Trajectory([only], nothing, stop_reason_from_metrics(opening.metrics))
    (observation, stop), action = opening, first
    transitions: list[Transition] = []
    while True:
        result = await env.step(action.tokens, extra=ActionExtra(stop_reason=action.stop_reason))
        transitions.append(
            Transition(observation, action, result.reward, result.episode_done, result.metrics, result.logs)
        )
        if result.episode_done:
            return Trajectory(transitions, result.next_observation, stop_reason_from_metrics(result.metrics))
        observation, stop = result.next_observation, result.next_stop_condition
        (action,) = await ask(observation, stop, 1, seed_of(*seeds, len(transitions), 1))


class PromptEnv(Env):
    """One sample of a response to one prompt. Its score comes with the group's, once all have answered."""

    def __init__(self, prompt: tinker.ModelInput, stop: StopCondition, stopped: Callable[[], bool]) -> None:
        self._prompt = prompt
        self._stop = stop
        self._stopped = stopped

    async def initial_observation(self) -> tuple[tinker.ModelInput, StopCondition]:
        """The prompt.

        Raises:
            StopTrainingError: If the run has to stop: no further sample is worth waiting for.
        """
        if self._stopped():
            raise StopTrainingError
        return self._prompt, self._stop

    async def step(self, action: list[int], *, extra: ActionExtra | None = None) -> StepResult:
        """The response ends the episode."""
        cut = (extra or {}).get("stop_reason") == "length"
        return StepResult(0.0, True, tinker.ModelInput.empty(), self._stop, metrics={"cut": float(cut)})


@dataclass(frozen=True, slots=True)
class PlayedGroup:
    """The samples of one prompt.

    Attributes:
        problem: The prompt and its row.
        trajectories: One per member.
        responses: The last thing each member said.
        scores: Their rewards.
        episodes: What was said in them, where there is an environment.
    """

    problem: Problem
    trajectories: Sequence[Trajectory]
    responses: Sequence[Response]
    scores: Sequence[Score]
    episodes: Sequence[Episode] = field(default_factory=tuple)

    def outcomes(self) -> list[tuple[Response, Score]]:
        """Everything that each member said, with its score."""
        told = [Response(e.transcript(), e.tokens, e.stop == "max_tokens") for e in self.episodes] or self.responses
        return list(zip(told, self.scores, strict=True))

    def as_trajectories(self) -> TrajectoryGroup:
        """The group in the cookbook's form.

        A sample that could not be scored is marked `UNSCORED`, and its reward is one that leaves a constant group
        constant.
        """
        neutral = next((score.reward for score in self.scores if not score.failed), 0.0)
        rewards = [neutral if score.failed else score.reward for score in self.scores]
        return TrajectoryGroup(list(self.trajectories), rewards, [{UNSCORED: float(s.failed)} for s in self.scores])


@dataclass(frozen=True, slots=True)
class Rollouts:
    """How the groups of a job are sampled and scored."""

    config: RlConfig
    renderer: ChatRenderer
    scorers: Scorers
    environment: Environment | None
    stopped: Callable[[], bool]

    async def play(self, sampler: Sampler, problem: Problem, *, samples: int, seed: int) -> PlayedGroup:
        """Sample some responses to a problem, or play some episodes that begin with it, and score them.

        Raises:
            StopTrainingError: If the run has to stop before the group is begun.
        """
        if self.environment is None or self.config.environment is None:
            prompt = tinker.ModelInput.from_ints(self.renderer.generation_prompt(problem.messages))
            envs = [PromptEnv(prompt, self.renderer.stop, self.stopped) for _ in range(samples)]
            trajectories = await roll_out(envs, self._ask(sampler), seed)
            responses = [_response(self.renderer, trajectory) for trajectory in trajectories]
            return PlayedGroup(problem, trajectories, responses, await self.scorers.score_group(problem, responses))
        context = EpisodeContext(
            self.config.environment,
            self.config.max_response_tokens,
            self.renderer,
            self.environment,
            self.stopped,
        )
        turn_envs = await make_turn_envs(context, problem, samples=samples, seed=seed)
        trajectories = await roll_out(turn_envs, self._ask(sampler), seed)
        episodes = [env.episode for env in turn_envs]
        scores = await self.environment.total(problem, episodes)
        return PlayedGroup(problem, trajectories, [_last_response(e) for e in episodes], scores, episodes)

    def penalized(self, group: PlayedGroup) -> PlayedGroup:
        """The group with the penalty on overlong responses, which training adds."""
        most, buffer = self.config.max_response_tokens, self.config.overlong_buffer_tokens
        if not buffer:
            return group

        def with_penalty(score: Score, response: Response) -> Score:
            if score.failed:
                return score
            penalty = overlong_penalty(response.tokens, max_tokens=most, buffer=buffer)
            return Score(score.reward + penalty, {**score.parts, "overlong": penalty}, score.note)

        scores = [with_penalty(s, r) for s, r in zip(group.scores, group.responses, strict=True)]
        return replace(group, scores=scores)

    async def close(self) -> None:
        """End the processes that score and answer."""
        await self.scorers.close()
        if self.environment is not None:
            await self.environment.close()

    def _ask(self, sampler: Sampler) -> Ask:
        async def ask(
            prompt: tinker.ModelInput, stop: StopCondition, samples: int, seed: int
        ) -> list[TokensWithLogprobs]:
            params = tinker.SamplingParams(
                max_tokens=self.config.max_response_tokens, temperature=self.config.temperature, stop=stop, seed=seed
            )
            sequences = await sampler.sample(prompt, samples, params)
            return [TokensWithLogprobs(list(s.tokens), s.logprobs, s.stop_reason) for s in sequences]

        return ask


def _response(renderer: ChatRenderer, trajectory: Trajectory) -> Response:
    (only,) = trajectory.transitions
    return Response(renderer.decode(only.ac.tokens), len(only.ac.tokens), bool(only.metrics.get("cut")))


def _last_response(episode: Episode) -> Response:
    """The last thing said in an episode; nothing where it could not begin."""
    if not episode.turns:
        return Response("", 0)
    last = episode.turns[-1]
    return Response(last.reply, last.tokens, episode.stop == "max_tokens")
