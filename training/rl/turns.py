"""Episodes of several turns as the cookbook's environments.

What the model said stays in the next prompt token by token as it was sampled, with the environment's words after it:
the whole episode is one training sequence, in which the environment's tokens get no loss. A chat template that rewrites
history (thinking taken out of earlier turns) makes one sequence per turn instead.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import tinker
from tinker_cookbook.completers import StopCondition
from tinker_cookbook.rl.types import ActionExtra, Env, InitialObservationOverflow, Metrics, StepResult

from ...core.errors import DataError
from ...models.chat import ChatRenderer, Message
from ...rewards.environment_config import EnvironmentConfig
from ...rewards.environments import advance
from ...rewards.episodes import Environment, Episode, Opening
from ...rewards.problems import Problem
from ...rewards.process_pool import ScoringFailedError
from ...rewards.scorers import Response
from ..loop import StopTrainingError


@dataclass(frozen=True, slots=True)
class EpisodeContext:
    """What the episodes of a job have in common.

    Attributes:
        settings: The environment's.
        max_response_tokens: Tokens at which a reply is cut.
        renderer: Makes tokens of messages.
        environment: Answers the model.
        stopped: Whether the run has to stop.
    """

    settings: EnvironmentConfig
    max_response_tokens: int
    renderer: ChatRenderer
    environment: Environment
    stopped: Callable[[], bool]

    def overlong(self, prompt: Sequence[int]) -> bool:
        """Whether an episode with this prompt has no room for another reply."""
        limit = self.settings.max_trajectory_tokens
        return limit is not None and len(prompt) + self.max_response_tokens > limit


def seed_of(*parts: int) -> int:
    """A seed for one request: the same in every run of a job, another for every group, member and turn."""
    digest = hashlib.blake2b(",".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") % (2**31 - 1)


def next_prompt(
    renderer: ChatRenderer,
    shown: Sequence[int],
    history: Sequence[Message],
    reply: str,
    added: Sequence[Message],
) -> list[int]:
    """The tokens of the next prompt.

    Args:
        renderer: Of the model.
        shown: The last prompt and the reply to it, as tokens.
        history: The conversation up to the last prompt.
        reply: The reply as text.
        added: What the environment says to it.

    Returns:
        ``shown`` and the tokens of ``added`` after it, where the template only appends; else the conversation anew.

    Raises:
        DataError: If the template refuses the conversation.
    """
    placeholder = [*history, Message(role="assistant", content="x")]
    prompt = renderer.generation_prompt(history)
    try:
        turn = list(renderer.render_many([placeholder])[0].tokens)
    except DataError:  # a generation prompt that opens <think> wants an answer with reasoning
        placeholder[-1] = Message(role="assistant", content="<think>\nx\n</think>\n\nx")
        turn = list(renderer.render_many([placeholder])[0].tokens)
    whole = renderer.generation_prompt([*placeholder, *added])
    if turn[: len(prompt)] == prompt and whole[: len(turn)] == turn:
        return [*shown, *whole[len(turn) :]]
    return renderer.generation_prompt([*history, Message(role="assistant", content=reply), *added])


class TurnEnv(Env):
    """One episode. Its reward is given to the whole group at its end, so that each step's is 0 here.

    Attributes:
        episode: What was said so far.
    """

    def __init__(
        self,
        context: EpisodeContext,
        problem: Problem,
        opening: Opening | ScoringFailedError,
        *,
        group_seed: int,
        member: int,
    ) -> None:
        self._context = context
        self._problem = problem
        self._seeds = (group_seed, member)
        self._prompt: list[int] = []
        self.episode = Episode(opening if isinstance(opening, Opening) else Opening(problem.messages))
        if isinstance(opening, ScoringFailedError):
            self._break(str(opening))

    async def initial_observation(self) -> tuple[tinker.ModelInput, StopCondition] | InitialObservationOverflow:
        """The opening's tokens; nothing is sampled if there is none, or if it is too long.

        Raises:
            StopTrainingError: If the run has to stop.
        """
        if self._context.stopped():
            raise StopTrainingError
        if not self.episode.stop:
            self._open()
        if self.episode.stop:
            return InitialObservationOverflow(reward=0.0, metrics={f"stop/{self.episode.stop}": 1.0})
        return tinker.ModelInput.from_ints(self._prompt), self._context.renderer.stop

    async def step(self, action: list[int], *, extra: ActionExtra | None = None) -> StepResult:
        """Hand the reply to the environment, and go on with what it says."""
        context, episode = self._context, self.episode
        cut = (extra or {}).get("stop_reason") == "length"
        history = episode.conversation()
        response = Response(context.renderer.decode(action), len(action), cut)
        seed = seed_of(*self._seeds, len(episode.turns), 0)
        await advance(context.environment, self._problem, episode, response, seed=seed)
        self._prompt += action
        if not episode.stop:
            self._continue(history, response, cut)
        metrics: Metrics = {"cut": float(cut)}
        if episode.stop:
            metrics[f"stop/{episode.stop}"] = 1.0
        following = tinker.ModelInput.from_ints([] if episode.stop else self._prompt)
        return StepResult(0.0, bool(episode.stop), following, context.renderer.stop, metrics=metrics)

    def _open(self) -> None:
        try:
            self._prompt = self._context.renderer.generation_prompt(self.episode.opening.messages)
        except DataError as error:
            self._break(f"line {self._problem.line}: environment: the template refuses the opening: {error}")
            return
        if self._context.overlong(self._prompt):
            limit = self._context.settings.max_trajectory_tokens
            room = f"{len(self._prompt)} tokens, and max_response_tokens more than {limit}"
            self._break(f"line {self._problem.line}: environment: the opening is too long ({room})")

    def _continue(self, history: list[Message], response: Response, cut: bool) -> None:
        """Set the next prompt, or why there is none."""
        context, episode = self._context, self.episode
        if cut:
            episode.stop = "max_tokens"
        elif len(episode.turns) >= context.settings.max_turns:
            episode.stop = "max_turns"
        else:
            try:
                said = episode.turns[-1].messages
                self._prompt = next_prompt(context.renderer, self._prompt, history, response.text, said)
            except DataError as error:
                self._break(f"line {self._problem.line}: environment: the template refuses its answer: {error}")
                return
            if context.overlong(self._prompt):
                episode.stop = "context_overflow"

    def _break(self, why: str) -> None:
        self.episode.broken, self.episode.stop = why, "failed"


async def make_turn_envs(context: EpisodeContext, problem: Problem, *, samples: int, seed: int) -> list[TurnEnv]:
    """The episodes of a group: they all begin alike."""
    try:
        opening: Opening | ScoringFailedError = await context.environment.reset(problem, seed)
    except ScoringFailedError as error:
        opening = error
    return [TurnEnv(context, problem, opening, group_seed=seed, member=member) for member in range(samples)]
