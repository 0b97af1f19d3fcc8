"""Supervised rows in the shapes people have them, as one list of chat messages."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal, cast

from ..core.errors import DataError
from ..models.chat import Message

SftFormat = Literal["messages", "prompt_completion", "input_output", "instruction", "sharegpt"]
FORMATS: Mapping[SftFormat, str] = {
    "messages": '{"messages": [{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}]}',
    "prompt_completion": '{"prompt": "...", "completion": "..."}',
    "input_output": '{"input": "...", "output": "..."}',
    "instruction": '{"instruction": "...", "input": "...", "output": "..."}',
    "sharegpt": '{"conversations": [{"from": "human", "value": "..."}, {"from": "gpt", "value": "..."}]}',
}
_SHAREGPT_ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}
_SURROGATE = re.compile(r"[\ud800-\udfff]")
_ROLES = {name: name for name in ("system", "user", "assistant", "tool")}


def detect_format(row: Mapping[str, Any]) -> SftFormat:
    """Which of the known shapes a row has.

    Raises:
        DataError: If it has none of them; preference rows and RL prompts are told apart by name.
    """
    keys = set(row)
    if "messages" in keys:
        return "messages"
    if "conversations" in keys:
        return "sharegpt"
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
            "this row has a prompt and no completion",
            fix='Add "completion"; prompts with an answer to reward are for RL',
        )
    raise DataError(f"no usable keys (found: {key_list(row)})", fix=f"Use one of: {'; '.join(FORMATS.values())}")


def key_list(row: Mapping[str, Any]) -> str:
    """The first keys of a row, for an error."""
    return ", ".join(sorted(row)[:8]) or "none"


def to_messages(row: Mapping[str, Any], form: SftFormat | None = None) -> list[Message]:
    """The conversation in a row, checked: known roles in a sensible order, no empty turns, an answer to learn.

    Raises:
        DataError: With what is wrong (the caller adds the file and line).
    """
    form = form or detect_format(row)
    if form == "messages":
        messages = _from_turns(row, "messages")
    elif form == "sharegpt":
        messages = _from_turns(row, "conversations", role="from", content="value")
    elif form == "instruction":
        instruction, details = _text(row, "instruction"), row.get("input") or ""
        if not isinstance(details, str):
            raise DataError('"input" is not text')
        prompt = f"{instruction}\n\n{details}" if details.strip() else instruction
        messages = _exchange(prompt, _text(row, "output"))
    else:
        messages = _pair(row, *(("prompt", "completion") if form == "prompt_completion" else ("input", "output")))
    _check_roles(messages)
    return messages


def open_messages(turns: Sequence[object]) -> list[Message]:
    """Turns as messages that a model can answer.

    Raises:
        DataError: If a turn cannot be read, or the last one is the assistant's.
    """
    messages = _from_turns({"messages": turns}, "messages")
    if messages and messages[-1]["role"] == "assistant":
        raise DataError("the prompt ends with the assistant's turn", fix="End it with the user's")
    # A made-up answer lets the checks of a whole conversation judge the prompt alone.
    _check_roles([*messages, Message(role="assistant", content="x")])
    return messages


def _pair(row: Mapping[str, Any], prompt: str, completion: str) -> list[Message]:
    """Prompt and completion, each as text or as a list of messages."""
    if isinstance(row.get(prompt), list):
        messages = _from_turns(row, prompt)
        if isinstance(row.get(completion), list):
            return messages + _from_turns(row, completion)
        return [*messages, Message(role="assistant", content=_text(row, completion))]
    return _exchange(_text(row, prompt), _text(row, completion))


def _exchange(prompt: str, completion: str) -> list[Message]:
    return [Message(role="user", content=prompt), Message(role="assistant", content=completion)]


def _text(row: Mapping[str, Any], key: str) -> str:
    value = row.get(key)
    if not isinstance(value, str):
        raise DataError(f'"{key}" is {_kind(value)}, and text is needed')
    if not value.strip():
        raise DataError(f'"{key}" is empty')
    return _encodable(value, f'"{key}"')


def _encodable(text: str, where: str) -> str:
    if not text.isascii() and _SURROGATE.search(text):
        raise DataError(f"{where} holds half of a surrogate pair, which no tokenizer takes", fix="Repair the text")
    return text


def _from_turns(row: Mapping[str, Any], key: str, *, role: str = "role", content: str = "content") -> list[Message]:
    turns: object = row.get(key)
    if not isinstance(turns, Sequence) or isinstance(turns, str):
        raise DataError(f'"{key}" is {_kind(turns)}, and a list of turns is needed')
    return [_turn(turn, f"{key}[{i}]", role, content) for i, turn in enumerate(cast("Sequence[object]", turns))]


def _turn(turn: object, where: str, role_key: str, content_key: str) -> Message:
    if not isinstance(turn, Mapping):
        raise DataError(f"{where} is {_kind(turn)}, and an object is needed")
    fields = cast("Mapping[str, Any]", turn)
    role = fields.get(role_key)
    roles = _SHAREGPT_ROLES if role_key == "from" else _ROLES
    if role not in roles:
        raise DataError(f"{where} has the role {role!r}", fix=f"Known roles: {', '.join(roles)}")
    content = _content(fields.get(content_key), f"{where}.{content_key}")
    calls = fields.get("tool_calls")
    if not content.strip() and not calls:
        raise DataError(f"{where} ({roles[role]}) is empty")
    message = Message(role=roles[role], content=content)
    if calls:
        message["tool_calls"] = list(calls)
    return message


def _content(value: object, where: str) -> str:
    """Text, or a list of text parts as some chat APIs write it."""
    if value is None:
        return ""
    if isinstance(value, str):
        return _encodable(value, where)
    if isinstance(value, Sequence):
        return "".join(_part(part, where) for part in cast("Sequence[object]", value))
    raise DataError(f"{where} is {_kind(value)}, and text is needed")


def _part(part: object, where: str) -> str:
    fields: Mapping[str, Any] = cast("Mapping[str, Any]", part) if isinstance(part, Mapping) else {}
    if fields.get("type") != "text" or not isinstance(fields.get("text"), str):
        raise DataError(f"{where} has a part that is not text", fix="Images and audio cannot be trained on here")
    return _encodable(str(fields["text"]), where)


def _check_roles(messages: Sequence[Message]) -> None:
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


def _kind(value: object) -> str:
    """A value's type in the words of a person who writes JSON."""
    if value is None:
        return "missing"
    name = type(value).__name__
    return {"str": "text", "bool": "true or false", "list": "a list", "dict": "an object"}.get(
        name, "a number" if isinstance(value, int | float) else name
    )
