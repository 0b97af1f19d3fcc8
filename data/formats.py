"""Supervised rows in the shapes people have them, as one conversation each: the one reading behind every door."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

from ..core.errors import DataError
from ..models.chat import Conversation, Message, is_trained
from .row_turns import (
    REASONING_KEYS,
    Fields,
    Note,
    Notes,
    encodable,
    is_blank,
    key_list,
    kind,
    read_tools,
    read_turns,
    refuse_media,
    shown,
)

SftFormat = Literal["messages", "prompt_completion", "input_output", "instruction", "sharegpt"]
FORMATS: Mapping[SftFormat, str] = {
    "messages": '{"messages": [{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}]}',
    "prompt_completion": '{"prompt": "...", "completion": "..."}',
    "input_output": '{"input": "...", "output": "..."}',
    "instruction": '{"instruction": "...", "input": "...", "output": "..."}',
    "sharegpt": '{"conversations": [{"from": "human", "value": "..."}, {"from": "gpt", "value": "..."}]}',
}
_TURN_KEYS = ("messages", "conversations", "conversation")
_PAIRS: Mapping[SftFormat, tuple[str, str]] = {
    "prompt_completion": ("prompt", "completion"),
    "input_output": ("input", "output"),
    "instruction": ("instruction", "output"),
}
# How many rows a row counts for in the loss; `columns` fills it.
ROW_WEIGHT = "row_weight"
_OPEN_KEYS = ("prompt", "question", "messages")
# How a made row came about (`generation` writes it); nothing is trained on it.
PROVENANCE = "provenance"
_SYSTEM_KEYS = ("system", "system_prompt")
_TOOL_KEYS = ("tools", "functions")
# An answer that begins with a prompt of this length (characters) is no coincidence; a greeting may well be.
_LEAST_REPEATED = 12


@dataclass(frozen=True, slots=True)
class ReadRow:
    """A supervised row: its shape, conversation, what its author may not expect, and how many rows it counts for."""

    form: SftFormat
    conversation: Conversation
    notes: tuple[Note, ...] = ()
    weight: float = 1.0


def detect_format(row: Fields) -> SftFormat:
    """Which of the known shapes a row has.

    Raises:
        DataError: If it has none of them; preference rows and RL prompts are told apart by name.
    """
    keys = set(row)
    turns = turns_key(row)
    if turns is not None:
        return "messages" if turns == "messages" else "sharegpt"
    if {"chosen", "rejected"} <= keys:
        raise DataError("these are preference pairs, not rows to imitate", fix="Preference pairs are for DPO")
    if {"prompt", "completion"} <= keys:
        return "prompt_completion"
    if {"instruction", "output"} <= keys:
        return "instruction"
    if {"input", "output"} <= keys:
        return "input_output"
    if keys & {"prompt", "question"}:
        raise DataError(
            f"this row has a prompt and no completion (keys: {key_list(row)})",
            fix='Add "completion"; prompts with an answer to reward are for RL',
        )
    raise DataError(f"no usable keys (found: {key_list(row)})", fix=f"Use one of: {'; '.join(FORMATS.values())}")


def turns_key(row: Fields) -> str | None:
    """The key under which a row has its turns, if it has one; one that is null counts where there is nothing else."""
    present = [key for key in _TURN_KEYS if key in row]
    filled = next((key for key in present if row[key] is not None), None)
    others = any(set(pair) <= row.keys() for pair in _PAIRS.values())
    return filled or (present[0] if present and not others else None)


def read_row(row: Fields) -> ReadRow:
    """The conversation in a row, checked: known roles in a sensible order, no empty turns, an answer to learn.

    Raises:
        DataError: With what is wrong (the caller adds the file and line).
    """
    form = detect_format(row)
    notes = Notes()
    if form in _PAIRS:
        messages, read = _exchange(row, form, notes)
    else:
        key = turns_key(row) or "messages"
        messages, read = read_turns(row.get(key), key, notes), {key}
    messages = with_system(row, messages)
    check_roles(messages)
    if not any(map(is_trained, messages)):
        raise DataError("every answer of this row has weight 0: there is nothing to learn", fix="Remove the row")
    if row.get("label") is False:
        notes.append(Note("unwanted_answer"))
    conversation = Conversation(messages, tools_of(row))
    notes.extend(unread_keys(row, {*read, ROW_WEIGHT}))
    return ReadRow(form, conversation, tuple(notes), _row_weight(row))


def _row_weight(row: Fields) -> float:
    """How many rows this one counts for: 1, or what it says.

    Raises:
        DataError: If that is no finite number above 0.
    """
    value = row.get(ROW_WEIGHT, 1.0)
    try:
        weight = float(value) if isinstance(value, str | int | float) and not isinstance(value, bool) else math.nan
    except (ValueError, OverflowError):
        weight = math.nan
    if not math.isfinite(weight) or weight <= 0:
        said = f"'{shown(value)}'" if isinstance(value, str | int | float) else kind(value)
        raise DataError(
            f'"{ROW_WEIGHT}" is {said}, and a finite number above 0 is needed', fix="Correct it, or remove the row"
        )
    return weight


def refuse_row_weight(row: Fields) -> None:
    """Refuse a weight where every row counts alike.

    Raises:
        DataError: If the row has one.
    """
    if ROW_WEIGHT in row:
        raise DataError(f'"{ROW_WEIGHT}" is given, and weights per row are for SFT alone', fix="Remove it")


def to_messages(row: Fields) -> list[Message]:
    """The turns of `read_row`, for those who need neither tools nor notes.

    Raises:
        DataError: As `read_row`.
    """
    return list(read_row(row).conversation.messages)


def open_messages(turns: Sequence[object]) -> list[Message]:
    """Turns as messages that a model can answer.

    Raises:
        DataError: If a turn cannot be read, or the last one is the assistant's.
    """
    messages = read_turns(turns, "messages", Notes())
    if messages and messages[-1]["role"] == "assistant":
        raise DataError("the prompt ends with the assistant's turn", fix="End it with the user's")
    # A made-up answer lets the checks of a whole conversation judge the prompt alone.
    check_roles([*messages, Message(role="assistant", content="x")])
    return messages


def read_prompt(row: Fields) -> list[Message]:
    """The turns of a row that a model is to answer: ``prompt``, ``question`` or ``messages``, after its system turn.

    Raises:
        DataError: If it has none of them, or they do not end with a turn to answer.
    """
    refuse_row_weight(row)
    key = next((name for name in _OPEN_KEYS if row.get(name) is not None), None)
    if key is None:
        raise DataError(f"no prompt in this row (keys: {key_list(row)})", fix='Use "prompt", "question" or "messages"')
    value = row[key]
    if isinstance(value, str) and not value.strip():
        raise DataError(f'"{key}" is empty')
    turns: object = [{"role": "user", "content": value}] if isinstance(value, str) else value
    if not isinstance(turns, list) or not turns:
        raise DataError(f'"{key}" must be text or a list of messages')
    return with_system(row, open_messages(cast("list[object]", turns)))


def _exchange(row: Fields, form: SftFormat, notes: Notes) -> tuple[list[Message], set[str]]:
    """Prompt and answer, each as text or turns, after the turns of ``history``; and the keys that were read."""
    asked, answered = _PAIRS[form]
    prompt, read = prompt_turns(row, asked, notes)
    value = row.get(answered)
    if isinstance(value, list):
        answer = read_turns(cast("list[object]", value), answered, notes)
    else:
        answer = [Message(role="assistant", content=text_of(row, answered))]
    reasoning = next((key for key in REASONING_KEYS if not is_blank(row.get(key))), None)
    if reasoning is not None and answer:
        answer[-1].setdefault("reasoning_content", text_of(row, reasoning))
        read.add(reasoning)
    if prompt and answer and repeats(prompt[-1]["content"], answer[0]["content"]):
        notes.append(Note("prompt_repeated"))
    return [*prompt, *answer], read | {answered}


def prompt_turns(row: Fields, key: str, notes: Notes) -> tuple[list[Message], set[str]]:
    """The turns before the answer, from a text or a list of turns under ``key``; and the keys that were read.

    An ``instruction`` takes its ``input`` along, and ``history`` (pairs of question and answer, or turns) comes first.

    Raises:
        DataError: If they cannot be read.
    """
    read = {key, "history"}
    if isinstance(row.get(key), list):
        return [*_history(row, notes), *read_turns(row[key], key, notes)], read
    text = text_of(row, key)
    if key == "instruction":
        read.add("input")
        details = row.get("input") or ""
        if not isinstance(details, str):
            raise DataError('"input" is not text')
        text = f"{text}\n\n{text_of(row, 'input')}" if details.strip() else text
    return [*_history(row, notes), Message(role="user", content=text)], read


def _history(row: Fields, notes: Notes) -> list[Message]:
    history: object = row.get("history")
    if is_blank(history):
        return []
    if not isinstance(history, list):
        raise DataError(f'"history" is {kind(history)}, and a list of [question, answer] is needed')
    rounds = cast("list[object]", history)
    if isinstance(rounds[0], Mapping):
        return read_turns(rounds, "history", notes)
    messages: list[Message] = []
    for i, one in enumerate(rounds):
        said = cast("list[object]", one) if isinstance(one, list) else list[object]()
        if len(said) != 2 or not all(isinstance(text, str) and text.strip() for text in said):
            raise DataError(f"history[{i}] is not a question and its answer", fix='Write ["question", "answer"]')
        for role, text in zip(("user", "assistant"), said, strict=True):
            messages.append(Message(role=role, content=encodable(str(text), f"history[{i}]")))
    return messages


def with_system(row: Fields, messages: list[Message]) -> list[Message]:
    """The turns after the system turn of the row's own column, if it has one.

    Raises:
        DataError: If it is not text, or the turns have another system turn.
    """
    for key in _SYSTEM_KEYS:
        if is_blank(row.get(key)) or not str(row[key]).strip():
            continue
        system = Message(role="system", content=text_of(row, key))
        if not messages or messages[0]["role"] != "system":
            return [system, *messages]
        if messages[0]["content"].strip() != system["content"].strip():
            raise DataError(f'"{key}" is given, and the turns begin with another system turn', fix="Keep one of them")
    return messages


def tools_of(row: Fields) -> tuple[dict[str, Any], ...]:
    """The tools that a row declares.

    Raises:
        DataError: If they cannot be read.
    """
    key = next((key for key in _TOOL_KEYS if not is_blank(row.get(key))), None)
    return cast("tuple[dict[str, Any], ...]", read_tools(row[key])) if key is not None else ()


def unread_keys(row: Fields, read: set[str]) -> Iterator[Note]:
    """A note for each key of a row that nothing reads.

    Raises:
        DataError: For pictures and sounds, and a weight that is not finite.
    """
    if row.keys() <= read:
        return
    refuse_media(row)
    weight = row.get("weight")
    if isinstance(weight, float) and not math.isfinite(weight):
        raise DataError(f'"weight" is {weight}, which is not a finite number', fix="Correct or remove it")
    known = read | {*_SYSTEM_KEYS, *_TOOL_KEYS, PROVENANCE}
    for key, value in row.items():
        if key not in known and not is_blank(value):
            yield Note("unread_key", shown(key))


def repeats(prompt: str, answer: str) -> bool:
    """Whether an answer begins with its prompt and goes on."""
    asked, said = prompt.strip(), answer.strip()
    return len(asked) >= _LEAST_REPEATED and said.startswith(asked) and said[len(asked) :][:1].isspace()


def text_of(row: Fields, key: str) -> str:
    """The text under a key.

    Raises:
        DataError: If there is none.
    """
    value = row.get(key)
    if not isinstance(value, str):
        raise DataError(f'"{key}" is {kind(value)}, and text is needed')
    if not value.strip():
        raise DataError(f'"{key}" is empty')
    return encodable(value, f'"{key}"')


def check_roles(messages: Sequence[Message]) -> None:
    """Refuse turns whose order is no conversation that ends with an answer.

    Raises:
        DataError: With the turn.
    """
    if not messages:
        raise DataError("the conversation is empty")
    roles = [message["role"] for message in messages]
    if "assistant" not in roles:
        raise DataError("no assistant turn: there is nothing to learn", fix="Add the answer as an assistant turn")
    if "system" in roles[1:]:
        raise DataError(f"roles out of order: a system turn at position {roles.index('system', 1) + 1}")
    body = roles[1:] if roles[0] == "system" else roles
    if body[0] != "user":
        raise DataError(f"roles out of order: the conversation opens with {body[0]}, not user")
    for position, (previous, current) in enumerate(itertools.pairwise(body), start=2):
        if previous == current and current != "tool":
            raise DataError(f"roles out of order: two {current} turns in a row (turn {position})")
    if roles[-1] != "assistant":
        raise DataError(
            f"the conversation ends with {roles[-1]}, not assistant", fix="Remove the turns after the answer"
        )
