"""Setting rows aside: training, validation and test files of one source, with no prompt in two of them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

from ..core.errors import DataError
from ..core.files import short_digest, write_json_lines
from ..doctrine.rules import rule
from ..models.chat import Message, words_of
from .columns import ColumnMap
from .formats import key_list, open_messages, read_row, with_system
from .preference_rows import to_pair
from .row_files import Row, at_line, read_rows

Use = Literal["supervised", "preferences", "rl"]
HOLDOUT_RULE = "data.holdout"
_PROMPT_KEYS = ("prompt", "question", "messages")


@dataclass(frozen=True, slots=True)
class Question:
    """A row as something to ask: the turns before the answer, and the answer it gives, if it gives one as text."""

    prompt: tuple[Message, ...]
    reference: str | None

    @property
    def digest(self) -> bytes:
        """Equal for equal prompts."""
        return short_digest(words_of(self.prompt))


def question_of(row: Mapping[str, Any], use: Use) -> Question:
    """The question in a row of this use.

    Raises:
        DataError: With what is wrong (the caller adds the file and line).
    """
    if use == "preferences":
        pair = to_pair(row)
        return Question(pair.prompt, pair.chosen_text)
    if use == "supervised":
        messages = read_row(row).conversation.messages
        last = max(index for index, message in enumerate(messages) if message["role"] == "assistant")
        return Question(tuple(messages[:last]), messages[last]["content"])
    key = next((key for key in _PROMPT_KEYS if row.get(key) is not None), None)
    if key is None:
        raise DataError(f"no prompt in this row (keys: {key_list(row)})")
    value: object = row[key]
    turns = cast("list[object]", value) if isinstance(value, list) else [{"role": "user", "content": value}]
    prompt = with_system(row, open_messages(turns))
    answer = row.get("answer")
    return Question(tuple(prompt), None if answer is None else str(answer))


@dataclass(frozen=True, slots=True)
class Source:
    """A file to read: ``columns`` says which of its columns are what."""

    path: Path
    columns: ColumnMap | None
    use: Use

    def questions(self) -> Iterator[tuple[Row, Question | DataError]]:
        """Each row, and its question or what is wrong with it."""
        for row in read_rows(self.path, self.columns):
            outcome = row.parsed(lambda content: question_of(content, self.use))
            yield row, at_line(self.path, row.number, outcome) if isinstance(outcome, DataError) else outcome


@dataclass(frozen=True, slots=True)
class Holdout:
    """Rows by the file they went to; ``repeated``: test rows left out, as their prompt is there already."""

    train: int
    val: int
    test: int
    repeated: int


def write_split(
    source: Source,
    folder: Path,
    *,
    seed: int,
    test_wanted: int,
    test_row: Callable[[Question], Mapping[str, Any]],
    train_row: Callable[[Question], Mapping[str, Any]] | None = None,
    val: Source | None = None,
    test: Source | None = None,
) -> Holdout:
    """Write ``train.jsonl``, ``val.jsonl`` and ``test.jsonl``: rows as their columns map them, unusable ones left out.

    What is not given is set aside from ``source`` by prompt, so that no prompt is in two files; which prompts, the seed
    decides. Rule ``data.holdout`` says how many at most.

    Args:
        source: The rows to train on.
        folder: Where the files go.
        seed: Decides which prompts are set aside.
        test_wanted: Test prompts that are enough.
        test_row: How a test question is written.
        train_row: How a row to train or validate on is written; None writes it as it is read.
        val: Rows held out already.
        test: Test rows set aside already.

    Raises:
        DataError: If nothing is left to train on, or too little to set rows aside from.
        StorageError: If the folder takes no files.
    """
    given = _digests(test) | _digests(val)
    prompts = sorted(
        _digests(source) - given,
        key=lambda digest: short_digest(f"{seed} {digest.hex()}"),
    )
    shares: Any = rule(HOLDOUT_RULE).value
    tests = 0 if test else min(test_wanted, int(len(prompts) * shares["test"]))
    vals = 0 if val else min(int(shares["most_validation"]), int(len(prompts) * shares["validation"]))
    if (test is None and tests < 2) or (val is None and vals < 1):
        raise DataError(
            f"{len(prompts):,} different prompts are too few to set any aside for a test",
            where=source.path.name,
            fix="Give test_set and val_file, or more rows",
        )
    in_test, in_val = set(prompts[:tests]), set(prompts[tests : tests + vals])
    aside = in_test | in_val | given
    train = _write(folder / "train.jsonl", source, train_row, lambda q: q.digest not in aside)
    of_val = _write(folder / "val.jsonl", val or source, train_row, lambda q: val is not None or q.digest in in_val)
    seen: set[bytes] = set()
    rows: list[Mapping[str, Any]] = []
    repeated = 0
    for _, question in (test or source).questions():
        if isinstance(question, Question) and (test is not None or question.digest in in_test):
            if question.digest in seen:
                repeated += 1
            else:
                seen.add(question.digest)
                rows.append(test_row(question))
    write_json_lines(folder / "test.jsonl", rows)
    for count, name in ((train, "training"), (of_val, "validation"), (len(rows), "test")):
        if not count:
            raise DataError(
                f"no {name} rows are left", where=source.path.name, fix="Check the files with check_dataset"
            )
    return Holdout(train, of_val, len(rows), repeated)


def _digests(source: Source | None) -> set[bytes]:
    """The prompts of a file that is given."""
    return {q.digest for _, q in source.questions() if isinstance(q, Question)} if source else set()


def _write(
    path: Path,
    source: Source,
    as_row: Callable[[Question], Mapping[str, Any]] | None,
    wanted: Callable[[Question], bool],
) -> int:
    rows = [
        as_row(question) if as_row else json.loads(json.dumps(row.content(), default=str))
        for row, question in source.questions()
        if isinstance(question, Question) and wanted(question)
    ]
    write_json_lines(path, rows)
    return len(rows)
