"""An environment in which the model may run Python programs before it answers."""

from __future__ import annotations

from collections.abc import Sequence

from ..models.chat import Message
from .environment_config import EnvironmentConfig
from .episodes import Episode, Opening, Turn, broken_score
from .problems import Problem
from .process_pool import ScoringFailedError, Slots
from .programs import program_in, run
from .sandbox.modes import Mode, require_isolation
from .scorers import Response, Score, Scorers, at_once, program_limits

_INTRODUCTION = "Output:\n"


class Interpreter:
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

    async def reset(self, problem: Problem, seed: int) -> Opening:
        """The prompt as it stands in the data."""
        return Opening(problem.messages)

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
        whole = {i: e for i, e in enumerate(episodes) if broken_score(e) is None and e.turns}
        last = [_answer(episode) for episode in whole.values()]
        checked = dict(zip(whole, await self._scorers.score_group(problem, last), strict=True)) if last else {}
        return [
            self._discounted(checked[i], e) if i in checked else broken_score(e) or Score(0.0)
            for i, e in enumerate(episodes)
        ]

    def _discounted(self, score: Score, episode: Episode) -> Score:
        """An answer's score after so many turns, with the programs that were run for it."""
        counts = {
            f"interpreter.{name}": sum(turn.score.parts.get(name, 0.0) for turn in episode.turns)
            for name in ("programs", "errors")
        }
        worth = self._settings.per_turn ** (len(episode.turns) - 1)
        return Score(score.reward * worth, {**score.parts, **counts}, score.note, score.failed)

    async def close(self) -> None:
        """Nothing to end: each program has a process of its own."""


def _answer(episode: Episode) -> Response:
    last = episode.turns[-1]
    text = last.reply if program_in(last.reply) is None else ""
    return Response(text, last.tokens, episode.stop == "max_tokens")
