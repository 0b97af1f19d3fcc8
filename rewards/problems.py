"""Rows for reinforcement learning: a prompt, and what its response is checked by."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

from ..core.errors import DataError
from ..data.columns import ColumnMap
from ..data.formats import read_prompt
from ..data.mixtures import Mix, Sources
from ..data.row_files import Row, read_rows, usable_rows
from ..models.chat import Message
from .reward_config import NEEDS_KEY, RewardPart


@dataclass(frozen=True, slots=True)
class Problem:
    """One prompt with its row and the row's place in the file."""

    line: int
    messages: tuple[Message, ...]
    row: Mapping[str, Any]

    @property
    def prompt(self) -> str:
        """The words of the last turn before the response."""
        return self.messages[-1]["content"]


def to_problem(row: Mapping[str, Any], line: int, *, system_prompt: str | None = None) -> Problem:
    """The problem in a row.

    Raises:
        DataError: With what is wrong (the caller adds the file and line).
    """
    messages = read_prompt(row)
    if system_prompt is not None and messages[0]["role"] != "system":
        messages = [Message(role="system", content=system_prompt), *messages]
    return Problem(line, tuple(messages), row)


def missing_key(row: Mapping[str, Any], parts: Iterable[RewardPart]) -> DataError | None:
    """What a row lacks for its checks, or None."""
    for part in parts:
        key = NEEDS_KEY.get(part.type)
        if key is None:
            continue
        value = row.get(key)
        if value is None or (isinstance(value, str) and not value.strip()) or value == []:
            return DataError(f'reward {part.type} needs "{key}", and this row has none', fix=f'Add "{key}" to the row')
        if part.type in {"math", "exact"} and not isinstance(value, str | int | float):
            return DataError(f'"{key}" must be text or a number for reward {part.type}')
        if part.type == "code" and (problem := _unusable_tests(row)) is not None:
            return problem
    return None


def _unusable_tests(row: Mapping[str, Any]) -> DataError | None:
    """What is wrong with a row's tests before any of them runs, or None."""
    tests = row["tests"]
    several = cast("list[object]", tests if isinstance(tests, list) else [tests])
    examples = [
        isinstance(each, Mapping) and isinstance(cast("Mapping[str, object]", each).get("output"), str | int | float)
        for each in several
    ]
    if not all(isinstance(each, str) for each in several) and not (isinstance(tests, list) and all(examples)):
        return DataError(
            '"tests" is neither text, a list of texts, nor a list of {"input", "output"}',
            fix='Write asserts, or {"input": what the program reads, "output": what it must print}',
        )
    if not isinstance(row.get("entry_point"), str | None):
        return DataError('"entry_point" must be the name of a function')
    return None


def load_problems(
    path: Path,
    parts: Sequence[RewardPart],
    *,
    system_prompt: str | None = None,
    skip_bad_rows: bool = False,
    columns: ColumnMap | None = None,
) -> list[Problem]:
    """Every usable row of a file.

    Raises:
        DataError: For the first row that cannot be used, or if no row can.
    """

    def outcome(row: Row) -> Problem | DataError:
        problem = row.parsed(lambda content: to_problem(content, row.number, system_prompt=system_prompt))
        return row.placed(problem if isinstance(problem, DataError) else missing_key(problem.row, parts) or problem)

    outcomes = ((row.number, outcome(row)) for row in read_rows(path, columns))
    return list(usable_rows(path, outcomes, skip_bad_rows=skip_bad_rows))


def load_mixed_problems(
    sources: Sources, parts: Sequence[RewardPart], *, system_prompt: str | None = None, skip_bad_rows: bool = False
) -> tuple[list[Problem], Mix]:
    """Every usable row of all sources, and how they are mixed; lines are counted through the sources.

    Raises:
        DataError: As `load_problems`.
        ConfigError: If a source gives less than one row.
    """
    found: list[Problem] = []
    sizes: list[int] = []
    for source in sources:
        before = found[-1].line if found else 0
        of_file = load_problems(
            source.file, parts, system_prompt=system_prompt, skip_bad_rows=skip_bad_rows, columns=source.columns
        )
        found += [replace(problem, line=before + problem.line) for problem in of_file] if before else of_file
        sizes.append(len(of_file))
    return found, Mix.of(sources, sizes)
