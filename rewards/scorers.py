"""Scoring a response by all the checks of a job. Nothing that a row, a model or a custom file says runs here."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol, TypeVar

from ..doctrine.rules import number
from .problems import Problem
from .process_pool import LARGEST_SCORE, Scored, ScoringFailedError, ScoringPool, Slots
from .programs import code_in, run_tests
from .reward_config import CODE_PARTS, RewardPart
from .reward_rules import length_score
from .sandbox.modes import Limits, Mode, Sandboxed, own_environment, require_isolation, sandboxed

T = TypeVar("T")
_CHILD = "sota_ml_researcher.rewards.scoring_process"
_CUSTOM = Path(__file__).with_name("sandbox") / "custom.py"
_CUSTOM_LIMITS = Limits(cpu_s=3600, memory_mb=4096, processes=64, tmp_mb=256)


@dataclass(frozen=True, slots=True)
class Response:
    """A sampled answer: its text, the number of its tokens, and whether it was cut at the limit."""

    text: str
    tokens: int
    cut: bool = False


@dataclass(frozen=True, slots=True)
class Score:
    """A response's reward, the score of each check (before weights), and why a check failed, if one did."""

    reward: float
    parts: Mapping[str, float] = field(default_factory=dict[str, float])
    note: str = ""
    failed: bool = False

    @classmethod
    def failure(cls, why: object) -> Score:
        """No score: a check broke. It is missing data, not a reward of 0."""
        return cls(0.0, note=str(why), failed=True)


class GroupScorer(Protocol):
    """Scores all the responses to a problem at once, as a preference model has to."""

    async def score_group(self, problem: Problem, responses: Sequence[Response]) -> list[Score]:
        """One score per response; a failed one where there is none.

        Raises:
            ScoringFailedError: If no response can be scored.
        """
        ...

    async def close(self) -> None:
        """Release what it holds."""


class Scorers(GroupScorer):
    """All the checks of a job. Rules run in child processes, code in sandboxes; nothing blocks the event loop."""

    def __init__(
        self,
        parts: Sequence[RewardPart],
        *,
        max_tokens: int,
        allow_unsandboxed: bool = False,
        models: Mapping[int, GroupScorer] | None = None,
    ) -> None:
        """Prepare the checks.

        Args:
            parts: The checks.
            max_tokens: Where responses are cut.
            allow_unsandboxed: Whether code may run without a sandbox where none works.
            models: The scorer of each judge and preference model, by its position in ``parts``.

        Raises:
            ConfigError: If code has to run and cannot be isolated.
        """
        self._parts = parts
        self._max_tokens = max_tokens
        self._models = dict(models or {})
        self._mode: Mode = "plain"
        if any(part.type in CODE_PARTS for part in parts):
            self._mode = require_isolation(allow_unsandboxed=allow_unsandboxed)
        size = at_once()
        self._rules = ScoringPool(rules_command, size=size, where="reward_type")
        self._programs = Slots(size)
        self._custom = {
            i: ScoringPool(custom_command(self._mode, str(part.script), "reward"), size=size, where=str(part.script))
            for i, part in enumerate(parts)
            if part.type == "custom"
        }

    async def score_group(self, problem: Problem, responses: Sequence[Response]) -> list[Score]:
        """Score every response to a problem.

        Raises:
            ConfigError: If a custom reward cannot be used at all. A check that breaks on one response is a failed
                score, not an error.
        """
        columns = await all_of([self._column(i, problem, responses) for i in range(len(self._parts))])
        return [self._combined([column[r] for column in columns]) for r in range(len(responses))]

    async def close(self) -> None:
        """End the child processes, and close the judges."""
        for each in (self._rules, *self._custom.values(), *self._models.values()):
            await each.close()

    async def _column(self, index: int, problem: Problem, responses: Sequence[Response]) -> list[Score]:
        """One check on every response."""
        if index in self._models:
            try:
                return await self._models[index].score_group(problem, responses)
            except ScoringFailedError as error:
                return [Score.failure(error) for _ in responses]
        return await all_of([self._one(index, problem, response) for response in responses])

    async def _one(self, index: int, problem: Problem, response: Response) -> Score:
        part = self._parts[index]
        if part.type == "length":
            target = part.target_tokens or 1
            return Score(length_score(response.tokens, target_tokens=target, max_tokens=self._max_tokens))
        try:
            answer = await self._ask(index, part, problem, response)
        except ScoringFailedError as error:
            return Score.failure(f"line {problem.line}: {part.type}: {error}")
        return Score(answer.score, answer.parts, answer.note)

    async def _ask(self, index: int, part: RewardPart, problem: Problem, response: Response) -> Scored:
        if part.type == "custom":
            request = {"do": "reward", "prompt": problem.prompt, "response": response.text, "row": dict(problem.row)}
            return await self._custom[index].ask(request, Scored, timeout_s=part.timeout_s)
        if part.type == "code":
            return await self._tested(part, problem, response)
        request = {"kind": part.type, "response": response.text, "answer": problem.row.get("answer")}
        if part.type == "exact":
            request["ignore_case"] = part.ignore_case
        elif part.type == "regex":
            request["pattern"] = part.pattern
        elif part.type == "format":
            request |= {"tags": part.tags, "json_schema": part.json_schema}
        return await self._rules.ask(request, Scored, timeout_s=part.timeout_s)

    async def _tested(self, part: RewardPart, problem: Problem, response: Response) -> Scored:
        tests, entry = problem.row["tests"], problem.row.get("entry_point")
        async with self._programs.take():
            failure = await run_tests(
                code_in(response.text, tests, entry),
                tests,
                mode=self._mode,
                limits=program_limits(part.timeout_s),
                wall_s=part.timeout_s,
                entry=entry,
            )
        return Scored(score=float(not failure), note=failure)

    def _combined(self, scores: Sequence[Score]) -> Score:
        """The weighted sum; it has failed if one of the checks has, because its value is then not known."""
        reward = sum(weight_of(part) * score.reward for part, score in zip(self._parts, scores, strict=True))
        if not abs(reward) <= LARGEST_SCORE:
            return Score.failure(f"the weighted sum is not a number up to {LARGEST_SCORE:g}")
        parts: dict[str, float] = {}
        for part, score in zip(self._parts, scores, strict=True):
            parts[part.name] = parts.get(part.name, 0.0) + score.reward
            parts |= {f"{part.name}.{key}": value for key, value in score.parts.items()}
        notes = [score.note for score in scores if score.note]
        return Score(reward, parts, "; ".join(notes)[:500], any(score.failed for score in scores))


async def all_of(coroutines: Sequence[Coroutine[Any, Any, T]]) -> list[T]:
    """Run them side by side; when one fails the others are stopped before its error goes on."""
    tasks = [asyncio.ensure_future(coroutine) for coroutine in coroutines]
    try:
        return list(await asyncio.gather(*tasks))
    except BaseException:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        raise


def attainable(parts: Sequence[RewardPart]) -> float:
    """The most that checks can give together; 1 where none can give anything."""
    return sum(max(0.0, weight_of(part)) for part in parts) or 1.0


def weight_of(part: RewardPart) -> float:
    """A check's weight in the sum."""
    if part.weight is not None:
        return part.weight
    return number("reward.format") if part.type == "format" else 1.0


def at_once() -> int:
    """How many processes of one kind score side by side."""
    return max(1, min(4, os.cpu_count() or 1))


def program_limits(timeout_s: float) -> Limits:
    """What a model's program may use."""
    return Limits(cpu_s=max(1, round(timeout_s)))


def rules_command() -> Sandboxed:
    """How to start a process that scores by rule (`scoring_process`); it runs no code of others, and holds no keys."""
    places = {name: os.environ[name] for name in ("PYTHONPATH",) if name in os.environ}
    return Sandboxed(
        [sys.executable, "-P", "-m", _CHILD], {"env": own_environment() | places, "start_new_session": True}
    )


def custom_command(mode: Mode, script: str, kind: Literal["reward", "environment"]) -> Callable[[], Sandboxed]:
    """How to start a process that answers with a user's file (`sandbox.custom`)."""
    files = {kind: Path(script).expanduser().resolve()}
    company = "shared" if mode == "plain" else "alone"

    def command() -> Sandboxed:
        return sandboxed(mode, _CUSTOM, [f"{{{kind}}}", kind, company], limits=_CUSTOM_LIMITS, files=files, site=True)

    return command
