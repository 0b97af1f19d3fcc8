"""What answers the model between its turns: retry, an interpreter, or a user's file in a sandboxed child process."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Protocol

from pydantic import BaseModel, ConfigDict, model_validator

from ..core.errors import DataError
from ..data.formats import open_messages
from ..models.chat import Message
from .environment_config import EnvironmentConfig
from .episodes import Environment, Episode, Opening, Turn, discounted
from .interpreter import Interpreter
from .problems import Problem
from .process_pool import Answer, AnswerT, Number, Parts, PlainData, ScoringFailedError, ScoringPool, at_most
from .reward_config import RewardPart
from .sandbox.modes import require_isolation
from .scorers import GroupScorer, Response, Score, Scorers, all_of, at_once, attainable, custom_command

# Bytes of an answer with messages and a state, and its messages.
_LONGEST = 1 << 22
_SOME = at_most(1000)
# Rewards are compared with what can be had up to this.
_ROUNDING = 1e-9


class RewardedConfig(Protocol):
    """What a job's config says about its rewards and its environment."""

    @property
    def environment(self) -> EnvironmentConfig | None: ...  # noqa: D102
    @property
    def allow_unsandboxed(self) -> bool: ...  # noqa: D102
    def parts(self) -> tuple[RewardPart, ...]: ...  # noqa: D102


def make_environment(config: RewardedConfig, scorers: Scorers) -> Environment | None:
    """The environment of a job, or None where an episode is one answer.

    Raises:
        ConfigError: If its code has to run and cannot be isolated.
    """
    settings = config.environment
    if settings is None:
        return None
    if settings.type == "retry":
        return Retry(settings, config.parts(), scorers)
    if settings.type == "interpreter":
        return Interpreter(settings, scorers, allow_unsandboxed=config.allow_unsandboxed)
    return Script(settings, scorers, has_checks=bool(config.parts()), allow_unsandboxed=config.allow_unsandboxed)


class Retry(Environment):
    """After a wrong answer the model is told so and may try again; each further try is worth less.

    The reward is that of the last answer times discount^(turns - 1) (Liu et al. 2025, arXiv 2507.14295).
    """

    def __init__(self, settings: EnvironmentConfig, parts: Sequence[RewardPart], scorers: Scorers) -> None:
        self._settings = settings
        self._scorers = scorers
        self._enough = settings.pass_share * attainable(parts) - _ROUNDING

    async def step(self, problem: Problem, episode: Episode, response: Response, seed: int) -> Turn:
        """Score the answer; a wrong one is followed by feedback."""
        (score,) = await self._scorers.score_group(problem, [response])
        if score.failed:
            raise ScoringFailedError(score.note)
        if score.reward >= self._enough:
            return Turn(response.text, response.tokens, score, done=True)
        said = self._settings.feedback
        if self._settings.show_errors and score.note:
            said = f"{said}\n{score.note}"
        return Turn(response.text, response.tokens, score, (Message(role="user", content=said),))

    async def total(self, problem: Problem, episodes: Sequence[Episode]) -> list[Score]:
        """The last answer's score, discounted."""
        return [
            e.failure or discounted(replace(e.turns[-1].score, note=""), self._settings, len(e.turns)) for e in episodes
        ]


class Opened(Answer):
    """What a file's ``reset`` says; no messages where it has none."""

    longest: ClassVar[int] = _LONGEST
    messages: Annotated[list[dict[str, PlainData]] | None, _SOME]
    state: PlainData = None


class Said(BaseModel):
    """A message that the model is answered with."""

    model_config = ConfigDict(strict=True)

    role: Literal["system", "user", "tool"]
    content: str


class Stepped(Answer):
    """What a file's ``step`` says."""

    longest: ClassVar[int] = _LONGEST
    messages: Annotated[list[Said], _SOME]
    reward: Number
    done: bool
    state: PlainData = None
    parts: Parts

    @model_validator(mode="after")
    def _goes_on(self) -> Stepped:
        if not self.done and not self.messages:
            raise ValueError("neither messages nor done")
        return self


class Script(Environment):
    """A user's ``step`` and ``reset``, in sandboxed child processes that are killed when they hang, and replaced."""

    def __init__(
        self, settings: EnvironmentConfig, scorers: Scorers, *, has_checks: bool, allow_unsandboxed: bool
    ) -> None:
        self._settings = settings
        self._scorers = scorers
        self._has_checks = has_checks
        script = str(Path(str(settings.script)).expanduser().resolve())
        mode = require_isolation(allow_unsandboxed=allow_unsandboxed, where="environment")
        command = custom_command(mode, script, "environment")
        self._pool = ScoringPool(command, size=at_once(), where=script, what="environment")

    async def reset(self, problem: Problem, seed: int) -> Opening:
        """What the file's ``reset(row)`` says; without one, the row's prompt."""
        answer = await self._ask(problem, {"do": "reset", "row": dict(problem.row), "seed": seed}, Opened)
        if answer.messages is None:
            return Opening(problem.messages, answer.state)
        try:
            return Opening(tuple(open_messages(answer.messages)), answer.state)
        except DataError as error:
            raise ScoringFailedError(f"line {problem.line}: environment: reset: {error}") from error

    async def step(self, problem: Problem, episode: Episode, response: Response, seed: int) -> Turn:
        """What the file's ``step`` says."""
        state = episode.turns[-1].state if episode.turns else episode.opening.state
        request = {"do": "step", "messages": episode.conversation(), "reply": response.text, "state": state}
        answer = await self._ask(problem, {**request, "row": dict(problem.row), "seed": seed}, Stepped)
        said = tuple(Message(role=message.role, content=message.content) for message in answer.messages)
        score = Score(answer.reward, answer.parts)
        return Turn(response.text, response.tokens, score, said, answer.done, answer.state)

    async def total(self, problem: Problem, episodes: Sequence[Episode]) -> list[Score]:
        """The sum of the turns' rewards, each discounted, and with it the checks of the last answers."""
        own = [e.failure or self._summed(e) for e in episodes]
        alive = [(i, e) for i, e in enumerate(episodes) if e.turns]
        if not self._has_checks or not alive:
            return own
        last = [Response(e.turns[-1].reply, e.turns[-1].tokens, e.stop == "max_tokens") for _, e in alive]
        for (i, _), checked in zip(alive, await self._scorers.score_group(problem, last), strict=True):
            own[i] = _added(own[i], checked)
        return own

    async def close(self) -> None:
        """End the children."""
        await self._pool.close()

    async def _ask(self, problem: Problem, request: dict[str, Any], kind: type[AnswerT]) -> AnswerT:
        try:
            return await self._pool.ask(request, kind, timeout_s=self._settings.timeout_s)
        except ScoringFailedError as error:
            raise ScoringFailedError(f"line {problem.line}: environment: {request['do']}: {error}") from error

    def _summed(self, episode: Episode) -> Score:
        reward = sum(t.score.reward * self._settings.per_turn**i for i, t in enumerate(episode.turns))
        parts: dict[str, float] = {"environment": reward}
        for turn in episode.turns:
            for name, value in turn.score.parts.items():
                parts[f"environment.{name}"] = parts.get(f"environment.{name}", 0.0) + value
        return Score(reward, parts)


def _added(one: Score, other: Score) -> Score:
    note = "; ".join(filter(None, (one.note, other.note)))
    return Score(one.reward + other.reward, {**one.parts, **other.parts}, note, one.failed or other.failed)


class ScriptedPlayer(GroupScorer):
    """Scores texts by playing each as the model's every turn: what the reward's probes need of an environment."""

    def __init__(self, environment: Environment, max_turns: int) -> None:
        self._environment = environment
        self._max_turns = max_turns

    async def score_group(self, problem: Problem, responses: Sequence[Response]) -> list[Score]:
        """The reward of an episode in which the model says the same each time."""
        try:
            opening = await self._environment.reset(problem, 0)
        except ScoringFailedError as error:
            return [Score.failure(error) for _ in responses]
        episodes = await all_of([self._play(problem, opening, response) for response in responses])
        return await self._environment.total(problem, episodes)

    async def _play(self, problem: Problem, opening: Opening, response: Response) -> Episode:
        episode = Episode(opening)
        while not episode.stop:
            await advance(self._environment, problem, episode, response, seed=0)
            if len(episode.turns) == self._max_turns:
                episode.stop = episode.stop or "max_turns"
        return episode


def prober(config: RewardedConfig, environment: Environment | None, scorers: GroupScorer) -> GroupScorer:
    """The scorer of the reward's probes."""
    if environment is None or config.environment is None:
        return scorers
    return ScriptedPlayer(environment, config.environment.max_turns)


async def advance(
    environment: Environment, problem: Problem, episode: Episode, response: Response, *, seed: int
) -> None:
    """Let the environment answer one more turn; sets why the episode ended, if it did."""
    try:
        turn = await environment.step(problem, episode, response, seed)
    except ScoringFailedError as error:
        episode.broken = str(error)
        turn = Turn(response.text, response.tokens, Score.failure(error), done=True)
    episode.turns.append(turn)
    if turn.done:
        episode.stop = "failed" if episode.broken else "completed"


async def opened(environment: Environment, problems: Sequence[Problem], *, seed: int) -> list[Problem]:
    """Problems with the messages their episodes begin with.

    Raises:
        DataError: Naming the first row whose episode cannot begin.
        ConfigError: If the environment cannot be used at all.
    """

    async def one(problem: Problem) -> Problem:
        try:
            opening = await environment.reset(problem, seed)
        except ScoringFailedError as error:
            raise DataError(str(error), fix="Correct reset(row) or that row") from error
        return replace(problem, messages=opening.messages)

    return await all_of([one(problem) for problem in problems])
