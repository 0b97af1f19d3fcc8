"""An environment in which the model may run Python programs before it answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from ..models.chat import Message
from .environment_config import EnvironmentConfig
from .episodes import Environment, Episode, Turn, discounted
from .problems import Problem
from .process_pool import ScoringFailedError, Slots
from .programs import program_in, run
from .sandbox.modes import Mode, require_isolation
from .scorers import Response, Score, Scorers, at_once, program_limits

_INTRODUCTION = "Output:\n"


class Interpreter(Environment):
    """A block of Python in a reply is run, and its output is the next message; a reply without one is the answer.

    An episode that ends with a program has no answer, and is scored as one that says nothing.
    """

    def __init__(self, settings: EnvironmentConfig, scorers: Scorers, *, allow_unsandboxed: bool) -> None:
        """Prepare to run programs.

        Args:
            settings: Time, output and turns.
            scorers: Score the answer.
            allow_unsandboxed: Whether programs may run without a sandbox where none works.

        Raises:
            ConfigError: If programs cannot be isolated and may not run without that.
        """
        self._settings = settings
        self._scorers = scorers
        self._mode: Mode = require_isolation(allow_unsandboxed=allow_unsandboxed, where="environment")
        self._programs = Slots(at_once())

    async def step(self, problem: Problem, episode: Episode, response: Response, seed: int) -> Turn:
        """Run the reply's program; a reply that was cut is not run, because it ends the episode."""
        code = program_in(response.text)
        if code is None or response.cut:
            return Turn(response.text, response.tokens, Score(0.0), done=not response.cut)
        wall_s, most = self._settings.timeout_s, self._settings.max_output_chars
        try:
            async with self._programs.take():
                ran = await run(
                    code, mode=self._mode, limits=program_limits(wall_s), wall_s=wall_s, most=most, seed=seed
                )
        except ScoringFailedError as error:
            raise ScoringFailedError(f"line {problem.line}: environment: {error}") from error
        score = Score(0.0, {"programs": 1.0, "errors": float(ran.failed)})
        said = Message(role="user", content=_INTRODUCTION + ran.text)
        return Turn(response.text, response.tokens, score, (said,))

    async def total(self, problem: Problem, episodes: Sequence[Episode]) -> list[Score]:
        """The reward of the last reply, discounted for each turn before it if so set."""
        scores = [episode.failure or Score(0.0) for episode in episodes]
        answered = [i for i, episode in enumerate(episodes) if episode.turns and not episode.broken]
        if answered:
            last = [_answer(episodes[i]) for i in answered]
            for i, score in zip(answered, await self._scorers.score_group(problem, last), strict=True):
                scores[i] = self._discounted(score, episodes[i])
        return scores

    def _discounted(self, score: Score, episode: Episode) -> Score:
        """An answer's score after so many turns, with the programs that were run for it."""
        counts = {
            f"interpreter.{name}": sum(turn.score.parts.get(name, 0.0) for turn in episode.turns)
            for name in ("programs", "errors")
        }
        return discounted(replace(score, parts={**score.parts, **counts}), self._settings, len(episode.turns))


def _answer(episode: Episode) -> Response:
    last = episode.turns[-1]
    text = last.reply if program_in(last.reply) is None else ""
    return Response(text, last.tokens, episode.stop == "max_tokens")
