"""Episodes of several turns: what is said and scored in them, and what an environment has to answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from ..models.chat import Message
from .environment_config import EnvironmentConfig
from .problems import Problem
from .scorers import Response, Score


@dataclass(frozen=True, slots=True)
class Opening:
    """How an episode begins: the conversation so far, and what the environment wants to remember."""

    messages: tuple[Message, ...]
    state: Any = None


@dataclass(frozen=True, slots=True)
class Turn:
    """One turn of the model and what came back.

    Attributes:
        reply: What the model said.
        tokens: Its tokens.
        score: The turn's reward before discount, its parts, and whether the environment broke.
        messages: What the environment said to it.
        done: Whether the environment has ended the episode.
        state: What the environment wants to remember.
    """

    reply: str
    tokens: int
    score: Score
    messages: tuple[Message, ...] = ()
    done: bool = False
    state: Any = None


@dataclass(slots=True)
class Episode:
    """Everything said in an episode, why it ended, and how the environment broke, if it did."""

    opening: Opening
    turns: list[Turn] = field(default_factory=list[Turn])
    stop: str = ""
    broken: str = ""

    def conversation(self) -> list[Message]:
        """The messages so far, the model's among them."""
        messages = list(self.opening.messages)
        for turn in self.turns:
            messages += [Message(role="assistant", content=turn.reply), *turn.messages]
        return messages

    def transcript(self) -> str:
        """What was said after the opening, for people; the model's words alone if there was one turn."""
        if len(self.turns) == 1:
            return self.turns[0].reply
        said = [f"[{m['role']}] {m['content']}" for m in self.conversation()[len(self.opening.messages) :]]
        return "\n".join(said)

    @property
    def tokens(self) -> int:
        """Tokens the model wrote."""
        return sum(turn.tokens for turn in self.turns)

    @property
    def failure(self) -> Score | None:
        """The score of an episode in which the environment broke; None if it did not."""
        return Score.failure(self.broken) if self.broken else None


class Environment(Protocol):
    """What answers the model between its turns. All episodes of a job share one; it holds none of their state."""

    async def reset(self, problem: Problem, seed: int) -> Opening:
        """How episodes of a problem begin: by default with the prompt as it stands in the data.

        Raises:
            ScoringFailedError: If the environment breaks on this row.
        """
        return Opening(problem.messages)

    async def step(self, problem: Problem, episode: Episode, response: Response, seed: int) -> Turn:
        """Score and answer the model's next turn.

        Raises:
            ScoringFailedError: If the environment breaks.
        """
        ...

    async def total(self, problem: Problem, episodes: Sequence[Episode]) -> list[Score]:
        """The rewards of whole episodes of one problem."""
        ...

    async def close(self) -> None:
        """End the child processes, if there are any."""


def discounted(score: Score, settings: EnvironmentConfig, turns: int) -> Score:
    """A score times discount^(turns - 1)."""
    return replace(score, reward=score.reward * settings.per_turn ** (turns - 1))
