"""The prompts of an evaluation, read once, checked, and the same for every arm; and people's verdicts on them."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, cast

from ..core.errors import DataError
from ..core.foreign_text import foreign, named
from ..data.column_proposal import PROMPT_KEYS
from ..data.columns import ColumnMap
from ..data.formats import PROVENANCE, open_messages, to_messages
from ..data.row_files import Row, read_rows, usable_rows
from ..data.row_turns import Notes, read_turns
from ..judges.prompt import EvalItem, prompt_key
from ..models.chat import Message

_REFERENCE_KEYS = ("reference", "answer", "completion", "output")
_OTHER_KEYS = ("system", "cluster_id", "category", "id", PROVENANCE)
_WORKED_SOLUTION = "####"
WINNERS = ("baseline", "tuned", "tie")
T = TypeVar("T")
_NAMED_KEYS = 8


def read_test_set(path: Path, columns: ColumnMap | None = None) -> list[EvalItem]:
    """Read and check a test set.

    A row has ``messages`` (a last assistant turn is the reference), ``prompt`` or ``instruction`` (with ``input``),
    and may have ``reference`` (or ``answer``), ``system``, ``cluster_id``, ``category`` and ``id``. ``columns`` says
    which of its columns are these.

    Raises:
        DataError: For a row that cannot be used, a prompt or id given twice, or an empty file, with the line.
    """
    prompts: dict[str, int] = {}
    ids: dict[str, int] = {}

    def read(row: Mapping[str, Any], number: int) -> EvalItem:
        item = item_of(row, number, len(prompts) + 1)
        fix = "Remove one: a prompt that counts twice makes the interval too narrow"
        _only_once(prompts, item.prompt_key, number, "this prompt", fix)
        _only_once(ids, item.id, number, f"the id {named(item.id)}", fix)
        return item

    return read_each(path, read, columns)


def unread_keys(path: Path, columns: ColumnMap | None = None) -> list[str]:
    """What the rows of a test set hold and an evaluation does not read, as sentences with counts.

    Raises:
        DataError: If a row cannot be read.
    """
    unread: Counter[tuple[str, str]] = Counter()

    def note(row: Mapping[str, Any], number: int) -> None:
        prompt, reference = _key_of(row, PROMPT_KEYS), _key_of(row, _REFERENCE_KEYS, empty=(None,))
        read = {prompt, reference, *_OTHER_KEYS} | ({"input"} if prompt == "instruction" else set[str]())
        for key in row:
            unusable = key == "system" and not isinstance(row[key], str)
            if (key not in read or unusable) and row[key] is not None:
                of = prompt if key in PROMPT_KEYS else reference if key in _REFERENCE_KEYS else None
                unread[str(key), of or ""] += 1

    rows = len(read_each(path, note, columns))
    several = {key: count for (key, of), count in unread.items() if not of}
    sentences = [
        f"{count:,} of {rows:,} rows have both {of} and {named(key)}: {of} is used, {named(key)} is not read"
        for (key, of), count in unread.items()
        if of
    ]
    if several:
        listed = ", ".join(f"{named(key, 40)} ({count:,})" for key, count in list(several.items())[:_NAMED_KEYS])
        more = f" and {len(several) - _NAMED_KEYS:,} more" if len(several) > _NAMED_KEYS else ""
        sentences.append(f"keys of the rows that are not read here, with the number of rows: {listed}{more}")
    return sentences


def final_answer(reference: str) -> str:
    """What stands after the last ``####`` of a worked solution, as GSM8K writes them; else the whole reference."""
    return reference.rpartition(_WORKED_SOLUTION)[2].strip() if _WORKED_SOLUTION in reference else reference


def worked_solutions(items: Sequence[EvalItem], comparison: str) -> list[str]:
    """A warning if references are worked solutions, which no answer equals word by word; else nothing."""
    count = sum(item.reference is not None and final_answer(item.reference) != item.reference for item in items)
    if not count:
        return []
    return [
        f"{count:,} of {len(items):,} references are worked solutions that end in '#### answer', and {comparison} "
        "compares with the whole text: run_benchmark with scorer math compares with what stands after ####"
    ]


def load_items(test_set: Path, count: int | None, seed: int, columns: ColumnMap | None = None) -> list[EvalItem]:
    """The prompts to use: all, or ``count`` of them drawn by the seed, in the file's order.

    Raises:
        DataError: If the test set cannot be used.
    """
    items = read_test_set(test_set, columns)
    if count is None or count >= len(items):
        return items
    return [items[index] for index in sorted(random.Random(seed).sample(range(len(items)), count))]


def read_each(path: Path, read: Callable[[Mapping[str, Any], int], T], columns: ColumnMap | None = None) -> list[T]:
    """What ``read`` makes of each row and its number; its errors get the file and the line.

    Raises:
        DataError: If a row cannot be read, or ``read`` refuses it.
    """

    def outcome(row: Row) -> T | DataError:
        return row.parsed(lambda content: read(content, row.number))

    return list(
        usable_rows(path, ((row.number, outcome(row)) for row in read_rows(path, columns)), skip_bad_rows=False)
    )


def read_labels(path: Path, items: Sequence[EvalItem]) -> dict[str, str]:
    """People's winner by item id. Labels of prompts that are not in this evaluation are left out.

    Raises:
        DataError: For a row without ``winner`` or without ``id`` or prompt, a second label for a prompt, or when no
            label fits a prompt.
    """
    ids = {item.id for item in items}
    by_prompt = {item.prompt_key: item.id for item in items}
    labels: dict[str, str] = {}
    lines: dict[str, int] = {}

    def note(row: Mapping[str, Any], number: int) -> None:
        winner, item = row.get("winner"), row.get("id")
        if winner not in WINNERS:
            problem = '"winner" is missing' if winner is None else f'"winner" is {foreign(winner, 60)}'
            raise DataError(problem, fix=f"Use one of {', '.join(WINNERS)}")
        item = by_prompt.get(prompt_key(conversation(row)[0])) if item in (None, "") else str(item)
        if item in ids:
            _only_once(lines, item, number, "a label for this prompt", "Keep one: what most people say, or tie")
            labels[item] = winner

    read_each(path, note)
    if not labels:
        raise DataError("no label belongs to a prompt of this evaluation", where=path.name, fix="Name ids or prompts")
    return labels


def conversation(row: Mapping[str, Any]) -> tuple[list[Message], str | None]:
    """The prompt in a row as messages, and the reference if the row ends with an answer.

    Raises:
        DataError: If there is no prompt, or it cannot be read.
    """
    key = _key_of(row, PROMPT_KEYS)
    if key is None:
        raise DataError("no prompt in this row", fix='Give "prompt": "..." or "messages": [{"role", "content"}, ...]')
    value = row[key]
    if isinstance(value, str) and not value.strip():
        raise DataError(f'"{key}" is empty')
    if key == "instruction":
        # A made-up answer makes a training row of it, whose first turn is the instruction with its input.
        exchange = to_messages({"instruction": value, "input": row.get("input"), "output": "x"})
        value = exchange[0]["content"]
    turns: object = [Message(role="user", content=value)] if isinstance(value, str) else value
    if not isinstance(turns, list) or not turns:
        raise DataError(f'"{key}" must be text or a list of turns with role and content')
    messages, reference = _with_reference(cast("list[object]", turns))
    system = row.get("system")
    if isinstance(system, str) and system.strip():
        if messages[0]["role"] == "system":
            raise DataError('"system" is given, and the messages have a system turn too', fix="Keep one of them")
        messages.insert(0, Message(role="system", content=system))
    return messages, reference


def item_of(row: Mapping[str, Any], number: int, position: int) -> EvalItem:
    """The prompt of a row; without an ``id`` of its own it has its position.

    Raises:
        DataError: As `conversation`.
    """
    messages, reference = conversation(row)
    key = _key_of(row, _REFERENCE_KEYS, empty=(None,))
    return EvalItem(
        id=str(row["id"]) if row.get("id") not in (None, "") else str(position),
        messages=tuple(messages),
        reference=reference if key is None else str(row[key]),
        cluster=_label(row, "cluster_id"),
        category=_label(row, "category"),
        line=number,
    )


def _key_of(row: Mapping[str, Any], keys: Sequence[str], *, empty: Sequence[object] = (None, "")) -> str | None:
    """The first of these keys that a row fills in."""
    return next((key for key in keys if row.get(key) not in empty), None)


def _label(row: Mapping[str, Any], key: str) -> str | None:
    value = row.get(key)
    return None if value in (None, "") else str(value)


def _with_reference(turns: Sequence[object]) -> tuple[list[Message], str | None]:
    """The turns to answer, and the answer that stands after them, if one does."""
    messages = read_turns(turns, "messages", Notes())
    if messages[-1]["role"] != "assistant":
        return open_messages(turns), None
    *messages, answer = to_messages({"messages": turns})
    return messages, answer["content"] or None


def _only_once(seen: dict[str, int], value: str, number: int, what: str, fix: str) -> None:
    first = seen.setdefault(value, number)
    if first != number:
        raise DataError(f"{what} stands on line {first} already", fix=fix)
