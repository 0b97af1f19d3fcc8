"""What is known of every row before any is written: 40 bytes each, and 256 for its sketch; never its text."""

from __future__ import annotations

import json
import re
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ...core.errors import DataError
from ...core.files import short_digest
from ...models.chat import ChatRenderer, Message, words_of
from ..columns import RowMapper
from ..finding_kinds import BAD_ROW
from ..finding_rows import finding_rows
from ..formats import read_prompt, read_row
from ..mixtures import Source
from ..near_duplicates import Sketches
from ..personal_data import LONGEST_WORD, personal_kinds
from ..preference_rows import to_pair
from ..row_files import Row, read_rows
from ..row_turns import Fields, kind
from ..text_checks import text_problems
from ..words import words_in
from .prepare_config import Method

_BATCH = 1024
_BATCH_CHARACTERS = 2**24
_HIDDEN = "unmapped."
Progress = Callable[[int, str], None]


class Content(NamedTuple):
    """What rows are compared by: all that is trained, all words, and the words up to the first answer."""

    exact: str
    words: str
    opening: str


def content_of(row: Fields, method: Method) -> Content:
    """What a row of a method says.

    Raises:
        DataError: If the method cannot use it.
    """
    if method == "dpo":
        pair = to_pair(row)
        sides = [*pair.prompt, *pair.chosen, *pair.rejected]
        return Content(_json([pair.prompt, pair.chosen, pair.rejected, pair.tools]), words_of(sides), _opening(sides))
    if method == "rl":
        messages = read_prompt(row)
        checked = [row.get(key) for key in ("answer", "tests", "entry_point", "reference")]
        return Content(_json([messages, checked]), words_of(messages), _opening(messages))
    conversation = read_row(row).conversation
    messages = list(conversation.messages)
    return Content(_json([messages, list(conversation.tools)]), words_of(messages), _opening(messages))


def _json(value: object) -> str:
    return json.dumps(value, sort_keys=True, default=str)


def _opening(messages: Sequence[Message]) -> str:
    end = next((i for i, message in enumerate(messages) if message["role"] == "assistant"), len(messages))
    return " ".join(words_of(messages[:end]).lower().split())


def prepared_rows(source: Source) -> Iterator[tuple[Row, Fields | DataError]]:
    """Every row of a source with its content under the columns, without what competes with a named column.

    Raises:
        DataError: If a file as a whole cannot be read.
    """
    mapper = RowMapper(source.columns) if source.columns else None
    for row in read_rows(source.file):
        made = row.parsed(lambda value: mapper(value) if mapper is not None else value)
        if isinstance(made, Mapping) and mapper is not None:
            made = {key: value for key, value in made.items() if not key.startswith(_HIDDEN)}
        yield row, made


def as_line(row: Fields) -> bytes:
    """A row as a line of JSON.

    Raises:
        DataError: If it holds what JSON has no word for.
    """
    try:
        text = json.dumps(row, ensure_ascii=False, allow_nan=False, default=str)
    except ValueError as error:
        raise DataError("NaN or Infinity, which is not JSON", fix="Write null or a number") from error
    try:
        return text.encode() + b"\n"
    except UnicodeEncodeError:  # half of a surrogate pair in a column that nothing reads
        return json.dumps(row, allow_nan=False, default=str).encode() + b"\n"


@dataclass(slots=True)
class Survey:
    """All rows of all sources, counted through them.

    Attributes:
        sizes: Rows of each source.
        numbers: `Row.number` of each row in its source.
        usable: Whether the method can use it.
        exact: A digest of what is trained; 0 where it is not usable, as for the others.
        opening: A digest of the words up to the first answer.
        group: A digest of the value of ``group_by``.
        sketches: Of the usable rows, in their order.
        found: For each kind of finding the rows that have it, ascending.
        bad: What is wrong with unusable rows: how many, and the first.
    """

    sizes: list[int] = field(default_factory=list[int])
    numbers: array[int] = field(default_factory=lambda: array("q"))
    usable: bytearray = field(default_factory=bytearray)
    exact: array[int] = field(default_factory=lambda: array("Q"))
    opening: array[int] = field(default_factory=lambda: array("Q"))
    group: array[int] = field(default_factory=lambda: array("Q"))
    sketches: Sketches = field(default_factory=Sketches)
    found: dict[str, list[NDArray[np.int64]]] = field(default_factory=dict[str, list[NDArray[np.int64]]])
    bad: dict[str, list[int]] = field(default_factory=dict[str, list[int]])

    def rows_with(self, kind: str) -> NDArray[np.int64]:
        """The rows with a finding."""
        parts = self.found.get(kind, [])
        return np.concatenate(parts) if parts else np.zeros(0, np.int64)


@dataclass(frozen=True, slots=True)
class Criteria:
    """What rows are looked at for.

    Attributes:
        method: What they are to be used for.
        group_by: A column whose values must not cross files.
        renderer: Of the model that counts tokens.
        max_tokens: Tokens that a row may have.
        benchmarks: Test sets that no row may come from.
    """

    method: Method
    group_by: str | None = None
    renderer: ChatRenderer | None = None
    max_tokens: int | None = None
    benchmarks: Sequence[Path] = ()


def take_in(survey: Survey, source: Source, criteria: Criteria, progress: Progress) -> None:
    """Note what is known of each row of a source: it is read twice, once for what it says, once for its findings.

    Raises:
        DataError: If a file as a whole cannot be read, or a row has no value to be grouped by.
    """
    before = len(survey.numbers)
    of_prompts = _read(survey, source, criteria, progress)
    survey.sizes.append(len(survey.numbers) - before)
    found: Mapping[str, NDArray[np.int64]] = {
        kind: np.asarray(rows, dtype=np.int64) for kind, rows in of_prompts.items()
    }
    if criteria.method != "rl":
        numbers = np.frombuffer(survey.numbers, dtype=np.int64)[before:].copy()
        of_lines = finding_rows(
            source.file,
            renderer=criteria.renderer,
            max_seq_len=criteria.max_tokens,
            benchmark_files=criteria.benchmarks,
            columns=source.columns,
            progress=progress,
        )
        found = {kind: before + np.searchsorted(numbers, lines) for kind, lines in of_lines.items()}
    for name, rows in found.items():
        survey.found.setdefault(name, []).append(rows)


def _read(survey: Survey, source: Source, criteria: Criteria, progress: Progress) -> dict[str, list[int]]:
    """Take in what the rows of a source say; the findings of prompts for RL, which have no other check."""
    grouping = RowMapper({"cluster_id": criteria.group_by}) if criteria.group_by else None
    found: dict[str, list[int]] = {}
    words: list[str] = []
    size = 0
    for row, made in prepared_rows(source):
        index = len(survey.numbers)
        survey.numbers.append(row.number)
        content = _content(row, made, criteria.method)
        survey.usable.append(not isinstance(content, DataError))
        if isinstance(content, DataError):
            _note_bad(survey, index, content)
            _append(survey, 0, 0, 0)
            continue
        _append(survey, _digest(content.exact), _digest(content.opening), _group(row, source, grouping))
        for name in _rl_findings(made, content, criteria):
            found.setdefault(name, []).append(index)
        words.append(content.words)
        size += len(content.words)
        if len(words) >= _BATCH or size >= _BATCH_CHARACTERS:
            survey.sketches.add(words_in(words))
            progress(len(survey.numbers), "rows read")
            words, size = [], 0
    survey.sketches.add(words_in(words))
    return found


def _content(row: Row, made: Fields | DataError, method: Method) -> Content | DataError:
    if isinstance(made, DataError):
        return made
    try:
        if row.not_finite:
            as_line(made)
        return content_of(made, method)
    except DataError as error:
        return error


def _append(survey: Survey, exact: int, opening: int, group: int) -> None:
    survey.exact.append(exact)
    survey.opening.append(opening)
    survey.group.append(group)


def _digest(text: str) -> int:
    return int.from_bytes(short_digest(text)[:8], "little")


def _group(row: Row, source: Source, grouping: RowMapper | None) -> int:
    if grouping is None:
        return 0
    try:
        value: object = grouping(row.content())["cluster_id"]
        if not isinstance(value, str | int | float):
            raise DataError(f"the value to group by is {kind(value)}, and text or a number is needed")
    except DataError as error:
        place = row.place or f"{source.file.name}:{row.number}"
        raise DataError(f"group_by: {error.problem.removeprefix('columns: ')}", where=place, fix=error.fix) from error
    return _digest(str(value))


def _note_bad(survey: Survey, index: int, error: DataError) -> None:
    """Errors alike but for numbers and quoted words are one kind; no word of the data is kept."""
    pattern = re.sub(r" ?\([^)]*\)", "", re.sub(r"'[^']*'|\d[\d,.]*", "…", error.problem)).strip()
    survey.bad.setdefault(pattern, []).append(index)


def _rl_findings(made: Fields | DataError, content: Content, criteria: Criteria) -> Iterator[str]:
    if criteria.method != "rl" or isinstance(made, DataError):
        return
    yield from {*text_problems(content.words), *personal_kinds(content.words, LONGEST_WORD)}
    if criteria.renderer is None or criteria.max_tokens is None:
        return
    try:
        if len(criteria.renderer.generation_prompt(read_prompt(made))) > criteria.max_tokens:
            yield "truncated"
    except DataError:
        yield BAD_ROW
