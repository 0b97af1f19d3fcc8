"""Episodes of several turns as the cookbook's environments. Heavy: imports tinker and the cookbook.

What the model said stays in the next prompt token by token as it was sampled, with the environment's words after it:
the whole episode is one training sequence, in which the loop gives the environment's tokens no loss. A chat template
that rewrites history (thinking taken out of earlier turns) makes one sequence a turn instead.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import tinker
from tinker_cookbook.completers import TinkerTokenCompleter
from tinker_cookbook.rl.rollouts import do_single_rollout
from tinker_cookbook.rl.types import ActionExtra, Env, InitialObservationOverflow, StepResult

from ...core.errors import DataError
from ...models.chat import ChatRenderer, Message
from ...rewards.environments import advance
from ...rewards.episodes import Environment, Episode, Opening
from ...rewards.problems import Problem
from ...rewards.process_pool import ScoringFailedError
from ...rewards.scorers import Response, Score, all_of
from ..steering import StopTrainingError
from .config import RlConfig
from .seeds import GroupKey, group_key, seed_of


@dataclass(frozen=True, slots=True)
class Table:
    """What the episodes of a job share.

    Attributes:
        config: The job's settings.
        renderer: Makes tokens of messages.
        environment: Answers the model.
        limit: Tokens an episode may have, prompt included.
        stopped: Whether the run has to stop.
    """

    config: RlConfig
    renderer: ChatRenderer
    environment: Environment
    limit: int | None
    stopped: Callable[[], bool]


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
        self, table: Table, problem: Problem, opening: Opening | ScoringFailedError, group: GroupKey, member: int
    ) -> None:
        self._table = table
        self._problem = problem
        self._group = group
        self._member = member
        self._shown: list[int] = []
        self.episode = Episode(opening if isinstance(opening, Opening) else Opening(problem.messages))
        if isinstance(opening, ScoringFailedError):
            self._break(str(opening))

    async def initial_observation(self) -> tuple[tinker.ModelInput, Any] | InitialObservationOverflow:
        """The opening's tokens; nothing is sampled if there is none, or if it is too long.

        Raises:
            StopTrainingError: If the run has to stop.
        """
        if self._table.stopped():
            raise StopTrainingError
        if not self.episode.stop:
            self._open()
        if self.episode.stop:
            return InitialObservationOverflow(reward=0.0, metrics={f"stop/{self.episode.stop}": 1.0})
        group_key.set(self._group)
        return tinker.ModelInput.from_ints(self._shown), self._table.renderer.stop

    async def step(self, action: list[int], *, extra: ActionExtra | None = None) -> StepResult:
        """Hand the reply to the environment, and go on with what it says."""
        table, episode = self._table, self.episode
        cut = (extra or {}).get("stop_reason") == "length"
        history = episode.conversation()
        response = Response(table.renderer.decode(action), len(action), cut)
        seed = self._seed(len(episode.turns))
        await advance(table.environment, self._problem, episode, response, seed=seed)
        self._shown += action
        if not episode.stop:
            self._continue(history, response, cut)
        metrics = {"cut": float(cut)}
        if episode.stop:
            nothing = tinker.ModelInput.from_ints([])
            metrics[f"stop/{episode.stop}"] = 1.0
            return StepResult(0.0, True, nothing, table.renderer.stop, metrics=metrics)
        # Each later turn is a request of its own, with a seed that says whose it is.
        group_key.set(GroupKey(self._seed(len(episode.turns), kind=1), 1))
        return StepResult(0.0, False, tinker.ModelInput.from_ints(self._shown), table.renderer.stop, metrics=metrics)

    def _open(self) -> None:
        table = self._table
        try:
            self._shown = table.renderer.generation_prompt(self.episode.opening.messages)
        except DataError as error:
            self._break(f"line {self._problem.line}: environment: the template refuses the opening: {error}")
            return
        if table.limit is not None and len(self._shown) + table.config.max_response_tokens > table.limit:
            room = f"{len(self._shown)} tokens, and max_response_tokens more than {table.limit}"
            self._break(f"line {self._problem.line}: environment: the opening is too long ({room})")

    def _continue(self, history: list[Message], response: Response, cut: bool) -> None:
        """Sets the next prompt, or why there is none."""
        table, episode = self._table, self.episode
        settings = table.config.environment
        if cut:
            episode.stop = "max_tokens"
        elif settings is not None and len(episode.turns) >= settings.max_turns:
            episode.stop = "max_turns"
        else:
            try:
                said = episode.turns[-1].messages
                self._shown = next_prompt(table.renderer, self._shown, history, response.text, said)
            except DataError as error:
                self._break(f"line {self._problem.line}: environment: the template refuses its answer: {error}")
                return
            if table.limit is not None and len(self._shown) + table.config.max_response_tokens > table.limit:
                episode.stop = "context_overflow"

    def _break(self, why: str) -> None:
        self.episode.broken, self.episode.stop = why, "failed"

    def _seed(self, turn: int, *, kind: int = 0) -> int:
        return seed_of(self._group.seed, self._member, turn, kind)


async def make_turn_envs(table: Table, problem: Problem, group: GroupKey) -> list[TurnEnv]:
    """The episodes of a group: they all begin alike."""
    try:
        opening: Opening | ScoringFailedError = await table.environment.reset(problem, group.seed)
    except ScoringFailedError as error:
        opening = error
    return [TurnEnv(table, problem, opening, group, member) for member in range(group.members)]


async def play_group(
    client: Any, table: Table, problem: Problem, group: GroupKey
) -> tuple[list[TurnEnv], list[Response], list[Score]]:
    """Play a group outside of training.

    Args:
        client: A sampling client that asks by group (`rl_steering.GroupSamplingClient`).
        table: What the episodes share.
        problem: What they begin with.
        group: Its seed and size.

    Returns:
        The episodes, each one's words with its tokens, and its reward.
    """
    envs = await make_turn_envs(table, problem, group)
    config = table.config
    policy = TinkerTokenCompleter(client, max_tokens=config.max_response_tokens, temperature=config.temperature)
    await all_of([do_single_rollout(policy, env) for env in envs])
    episodes = [env.episode for env in envs]
    responses = [Response(e.transcript(), e.tokens, e.stop == "max_tokens") for e in episodes]
    return envs, responses, await table.environment.total(problem, episodes)
