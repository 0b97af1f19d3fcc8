"""What the rows of a file can teach a model: pairs, demonstrations, or answers that a program can check."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from statistics import median
from typing import Any, Literal, cast

from ..core.errors import DataError
from ..core.foreign_text import foreign
from ..data.column_proposal import unknown_shape
from ..data.columns import ColumnMap
from ..data.holdout import Source, Use, question_of
from ..data.preference_rows import is_preference_row
from ..data.row_files import read_rows
from ..rewards.answer_extraction import gold_in

Signal = Literal["pairs", "demonstrations", "solutions", "labels", "answers", "tests"]
Check = Literal["exact", "number"]
_HEAD_ROWS = 50
# Answers that are looked at; prompts are counted in the whole file.
_REFERENCES = 20_000
# How alike nine rows in ten must be for a statement about all of them.
_MOST = 0.9
_NUMBER = re.compile(r"\s*[-+]?[$€£]?\d[\d,]*(\.\d+)?\s*%?\s*")
# A short answer on one line can be compared word by word; labels are short answers that come back again and again.
_SHORT_CHARS = 60
_LABEL_REPEATS = 5
_MOST_LABELS = 50


@dataclass(frozen=True, slots=True)
class FileShape:
    """A file of rows as a teacher.

    Attributes:
        source: The file with the columns that hold, and what its rows are read as.
        proposed: Those columns as a block to confirm, if nobody gave them.
        signal: What the rows hold; ``solutions`` end in a final answer, ``answers`` are final answers alone.
        check: The program that can say of an answer whether it is right, or None.
        rows: Rows that can be used.
        unusable: Rows that cannot, and are left out.
        problem: What is wrong with the first of these.
        prompts: Different prompts.
        answer_chars: Median characters of an answer.
    """

    source: Source
    proposed: str | None
    signal: Signal
    check: Check | None
    rows: int
    unusable: int
    problem: str | None
    prompts: int
    answer_chars: int


def file_shape(path: Path, columns: ColumnMap | None = None) -> FileShape:
    """Read a whole file and say what its rows can teach.

    Raises:
        DataError: If it cannot be read, its columns have no meaning here, or its rows have prompts and nothing else.
    """
    source, proposed = _source(path, columns)
    prompts: set[bytes] = set()
    references: list[str] = []
    rows, unusable, problem = 0, 0, None
    for _, outcome in source.questions():
        if isinstance(outcome, DataError):
            unusable, problem = unusable + 1, problem or str(outcome)
            continue
        rows += 1
        prompts.add(outcome.digest)
        if outcome.reference is not None and rows <= _REFERENCES:
            references.append(outcome.reference)
    if not rows:
        raise DataError(f"no row can be used, the first: {foreign(problem or '')}", where=path.name)
    signal, check = _signal(source.use, references)
    return FileShape(
        source=source,
        proposed=proposed,
        signal=signal,
        check=check,
        rows=rows,
        unusable=unusable,
        problem=problem,
        prompts=len(prompts),
        answer_chars=int(median(map(len, references))) if references else 0,
    )


def _source(path: Path, columns: ColumnMap | None) -> tuple[Source, str | None]:
    """The file as rows of one use, with the columns that were given or are proposed."""
    head = [row.value for row in islice(read_rows(path, columns), _HEAD_ROWS) if row.value]
    if any(_are_tests(row.get("tests")) for row in head):
        return Source(path, columns, "rl"), None
    if columns:
        return Source(path, columns, _use(head)), None
    tested = unknown_shape(path, None, "rl", needed=("tests",))
    if tested is not None and tested[0] is not None and _are_tests(tested[0].row.get("tests")):
        return Source(path, tested[0].columns, "rl"), tested[0].block
    unknown = unknown_shape(path, None, "preferences", "supervised")
    if unknown is None:
        return Source(path, None, _use(head)), None
    proposal, error = unknown
    if proposal is None:
        if any(row.get("prompt") or row.get("question") for row in head):
            raise DataError(
                "the rows have prompts and no answers, pairs or tests: there is nothing to learn from yet",
                where=path.name,
                fix="Have a model answer them (start_generation), or write a reward that scores answers (doctrine://method_choice)",
            )
        raise error
    use: Use = "preferences" if proposal.use == "preferences" else "supervised"
    return Source(path, proposal.columns, use), proposal.block


def _use(head: Sequence[Mapping[str, Any]]) -> Use:
    if any(is_preference_row(row) for row in head):
        return "preferences"
    for row in head:
        try:
            question_of(row, "supervised")
        except DataError:
            continue
        return "supervised"
    return "rl" if any(row.get("answer") is not None for row in head) else "supervised"


def _are_tests(value: object) -> bool:
    """Whether a value is tests of a program: asserts, or inputs with their outputs."""
    if isinstance(value, str):
        return "assert" in value
    return isinstance(value, list) and any(
        isinstance(each, Mapping) or "assert" in str(each) for each in cast("list[object]", value)
    )


def _signal(use: Use, references: Sequence[str]) -> tuple[Signal, Check | None]:
    if use == "preferences":
        return "pairs", None
    if not references:
        return "tests", None
    final = [gold_in(text) for text in references]
    if _share(bool(_NUMBER.fullmatch(text)) for text in references) >= _MOST:
        return "answers", "number"
    worked = [answer for answer, text in zip(final, references, strict=True) if answer != text.strip()]
    if len(worked) >= _MOST * len(references):
        return "solutions", "number" if _share(bool(_NUMBER.fullmatch(each)) for each in worked) >= _MOST else "exact"
    if _share("\n" not in text.strip() and len(text) <= _SHORT_CHARS for text in references) < _MOST:
        return "demonstrations", None
    distinct = len({text.strip() for text in references})
    is_label = distinct <= _MOST_LABELS and distinct * _LABEL_REPEATS <= len(references)
    return "labels" if is_label else "demonstrations", "exact"


def _share(values: Any) -> float:
    listed = list(values)
    return sum(listed) / len(listed)
