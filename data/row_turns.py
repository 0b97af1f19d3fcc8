"""Turns and tools of a row, in the spellings that data sets use, as messages; what is not read is noted by its key."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence, Sized
from typing import Any, Literal, NamedTuple, cast

from ..core.errors import DataError
from ..models.chat import Message, Tool, ToolCall

Fields = Mapping[str, Any]
ReadingNote = Literal[
    "unread_key",
    "unwanted_answer",
    "prompt_cut",
    "prompt_repeated",
    "developer_turn",
    "null_arguments",
    "bad_arguments",
    "prompt_weight",
]

ROLES: Mapping[str, str] = {
    **dict.fromkeys(("system", "developer"), "system"),
    **dict.fromkeys(("user", "human", "prompter"), "user"),
    **dict.fromkeys(("assistant", "gpt", "model", "chatgpt", "function_call", "tool_call"), "assistant"),
    **dict.fromkeys(("tool", "function", "observation", "ipython", "function_response", "tool_response"), "tool"),
}
_CALL_ROLES = {"function_call", "tool_call"}
_NAMED_ROLES = "system, developer, user, human, assistant, gpt, tool, observation, function_call"
REASONING_KEYS = ("reasoning_content", "reasoning", "thinking")
# Each says whether an assistant's turn is trained: OpenAI and Mistral, axolotl, the cookbook, ms-swift, LLaMA-Factory.
_TRAIN_KEYS = ("weight", "train", "training", "trainable", "train_on_turn", "loss", "loss_weight")
_TURN_KEYS = frozenset({*REASONING_KEYS, *_TRAIN_KEYS, "tool_calls", "function_call", "tool_call_id", "name"})
_MASKS = ("mask", "loss_mask", "train_detail")
MEDIA = ("images", "image", "videos", "video", "audios", "audio")
_TEXT_PARTS = {"text": "text", "input_text": "text", "output_text": "text"}
_THOUGHT_PARTS = ("thinking", "reasoning")
_CALL_KEYS = frozenset({"id", "type", "index", "function", "name", "arguments"})
_SURROGATE = re.compile("[\ud800-\udfff\ufdd0]")
# Far above any tool's schema, and far below where Python's own recursion ends.
_DEEPEST = 64


class Note(NamedTuple):
    """Something about a row that its author may not want; ``detail`` is a key's path or what was seen."""

    kind: ReadingNote
    detail: str = ""


Notes = list[Note]


def read_turns(turns: object, key: str, notes: Notes) -> list[Message]:
    """Turns under a key of a row: ``role`` and ``content``, or ``from`` and ``value``.

    Raises:
        DataError: With the turn that cannot be read.
    """
    if isinstance(turns, str) and turns.lstrip().startswith("["):
        turns = from_json(turns, f'"{key}"')
    if not isinstance(turns, Sequence) or isinstance(turns, str):
        raise DataError(f'"{key}" is {kind(turns)}, and a list of turns is needed')
    return [_turn(turn, f"{key}[{i}]", key, notes) for i, turn in enumerate(cast("Sequence[object]", turns))]


def _turn(turn: object, where: str, key: str, notes: Notes) -> Message:
    if not isinstance(turn, Mapping):
        raise DataError(f"{where} is {kind(turn)}, and an object is needed")
    fields = cast("Fields", turn)
    role_key = next((name for name in ("role", "from") if fields.get(name) is not None), None)
    if role_key is None:
        raise DataError(
            f'{where} has neither "role" nor "from" (keys: {key_list(fields)})',
            fix='A turn is {"role": "user", "content": "..."} or {"from": "human", "value": "..."}',
        )
    said = fields[role_key]
    role = ROLES.get(said.lower()) if isinstance(said, str) else None
    if role is None:
        label = f"'{shown(said)}'" if isinstance(said, str) else kind(said)
        raise DataError(f"{where} has the role {label}", fix=f"Known roles: {_NAMED_ROLES}")
    content_key = "content" if fields.get("content") is not None or "value" not in fields else "value"
    if said == "developer":
        notes.append(Note("developer_turn"))
    has_more = len(fields) > 2 or content_key not in fields
    if has_more:
        _note_unread(fields, key, {role_key, content_key}, notes)
        _refuse_masks(fields, where)
    text, thought = _content(fields.get(content_key), f"{where}.{content_key}", f"{key}[].{content_key}[]", notes)
    message = Message(role=role, content=text)
    if has_more or thought or said.lower() in _CALL_ROLES:
        _add_extras(message, fields, thought, where, key, said.lower() in _CALL_ROLES, notes)
    if not message["content"].strip() and not message.get("tool_calls"):
        absent = f' (no "content" nor "value" among its keys: {key_list(fields)})' if content_key not in fields else ""
        raise DataError(f"{where} ({role}) is empty{absent}")
    return message


def _note_unread(fields: Fields, key: str, read: set[str], notes: Notes) -> None:
    notes.extend(
        Note("unread_key", f"{key}[].{shown(name)}")
        for name, value in fields.items()
        if name not in read and name not in _TURN_KEYS and not is_blank(value)
    )


def _refuse_masks(fields: Fields, where: str) -> None:
    for name in _MASKS:
        if not is_blank(fields.get(name)):
            raise DataError(
                f'{where} has "{name}", which is not read and would change what is trained',
                fix='Give the turn "weight": 0 where it must not be trained, and remove the key',
            )
    refuse_media(fields, f"{where}: ")


MEDIA_FIX = (
    "Training here takes text alone, on every backend. Tinker's vision models take images in the tinker-cookbook's own "
    "recipes (vlm_classifier)"
)


def refuse_media(fields: Fields, where: str = "") -> None:
    """Refuse pictures and sounds.

    Raises:
        DataError: If a key for them is there and not empty.
    """
    for name in MEDIA:
        if not is_blank(fields.get(name)):
            raise DataError(f'{where}"{name}" is not empty', fix=MEDIA_FIX)


def _add_extras(
    message: Message, fields: Fields, thought: str, where: str, key: str, is_call: bool, notes: Notes
) -> None:
    for name in ("name", "tool_call_id"):
        value = fields.get(name)
        if isinstance(value, str) and value:
            message[name] = encodable(value, f"{where}.{name}")
    trained = _is_trained(fields, where)
    if message["role"] != "assistant":
        # A prompt that asks to be trained; not being trained is what every prompt gets.
        notes.extend([Note("prompt_weight")] if trained else [])
        unread = [name for name in ("tool_calls", "function_call", *REASONING_KEYS) if not is_blank(fields.get(name))]
        notes.extend(Note("unread_key", f"{key}[].{name}") for name in unread)
        return
    if trained is False:
        message["trained"] = False
    reasoning = _reasoning(fields, where) or thought
    if reasoning:
        message["reasoning_content"] = reasoning
    calls = fields.get("tool_calls") or fields.get("function_call")
    if is_call:
        calls, message["content"] = message["content"], ""
    if not is_blank(calls):
        message["tool_calls"] = _calls(calls, where, f"{key}[].tool_calls[]", notes)


def _is_trained(fields: Fields, where: str) -> bool | None:
    """What the turn says of its own loss, or None if it says nothing."""
    said: dict[str, bool] = {}
    for name in _TRAIN_KEYS:
        value = fields.get(name)
        if value is None:
            continue
        if not isinstance(value, int | float) or not math.isfinite(value) or value not in {0, 1}:
            shown = value if isinstance(value, int | float) else kind(value)
            raise DataError(f"{where}.{name} is {shown}; a turn is trained (1) or not (0)", fix="Use 0 or 1")
        said[name] = bool(value)
    if len(set(said.values())) > 1:
        raise DataError(f"{where} says that it is trained and that it is not ({', '.join(said)})", fix="Keep one key")
    return next(iter(said.values()), None)


def _reasoning(fields: Fields, where: str) -> str:
    for name in REASONING_KEYS:
        value = fields.get(name)
        if is_blank(value):
            continue
        if not isinstance(value, str):
            raise DataError(f"{where}.{name} is {kind(value)}, and text is needed")
        return encodable(value, f"{where}.{name}")
    return ""


def _content(value: object, where: str, path: str, notes: Notes) -> tuple[str, str]:
    """Text and reasoning: of a text, or of a list of parts as chat APIs write it."""
    if value is None:
        return "", ""
    if isinstance(value, str):
        return encodable(value, where), ""
    if isinstance(value, Mapping):
        value = [cast("Fields", value)]
    if not isinstance(value, Sequence):
        raise DataError(f"{where} is {kind(value)}, and text is needed")
    texts, thoughts = list[str](), list[str]()
    for part in cast("Sequence[object]", value):
        if isinstance(part, str):
            texts.append(encodable(part, where))
            continue
        fields = as_fields(part)
        label = str(fields.get("type"))
        name = _TEXT_PARTS.get(label) or (label if label in _THOUGHT_PARTS else "")
        text = next((fields[key] for key in (name, "text", "value") if key in fields), None)
        if not name or not isinstance(text, str):
            found = f"of type '{shown(label)}'" if fields.get("type") else f"that is {kind(part)}"
            fix = "Give the call under tool_calls" if label in _CALL_ROLES else MEDIA_FIX
            raise DataError(f"{where} has a part that is not text ({found})", fix=fix)
        (thoughts if label in _THOUGHT_PARTS else texts).append(encodable(text, where))
        unread = fields.keys() - {"type", "text", "value", name}
        notes.extend(Note("unread_key", f"{path}.{shown(k)}") for k in sorted(unread) if not is_blank(fields[k]))
    return "".join(texts), "".join(thoughts)


def _calls(value: object, where: str, path: str, notes: Notes) -> list[ToolCall]:
    if isinstance(value, str):
        value = from_json(value, f"{where}: the tool call")
    entries = cast("Sequence[object]", value if isinstance(value, list) else [value])
    return [_call(entry, where, path, notes) for entry in entries]


def _call(entry: object, where: str, path: str, notes: Notes) -> ToolCall:
    call = as_fields(entry)
    function = as_fields(call.get("function", call))
    name = function.get("name")
    if not isinstance(name, str) or not name:
        raise DataError(
            f"{where} has a tool call without a name",
            fix='A call is {"type": "function", "function": {"name": "...", "arguments": {...}}}',
        )
    unread = [*(call.keys() - _CALL_KEYS), *(function.keys() - _CALL_KEYS)]
    notes.extend(Note("unread_key", f"{path}.{shown(k)}") for k in sorted(set(unread)))
    encodable(name, f"{where}: a tool's name")
    made: dict[str, Any] = {"type": "function", "function": {"name": name, "arguments": {}}}
    made["function"]["arguments"] = _arguments(function.get("arguments"), f"{where}: {name}", notes)
    return made if is_blank(call.get("id")) else {"id": encodable(str(call["id"]), where), **made}


def _arguments(value: object, where: str, notes: Notes) -> object:
    """A call's arguments as an object, which is what chat templates expect; OpenAI writes them as JSON text."""
    if is_blank(value):
        return {}
    if isinstance(value, str):
        encodable(value, f"{where}.arguments")
        try:
            value = from_json(value, where)
        except DataError:
            notes.append(Note("bad_arguments"))
            return value
    arguments = plain(value, f"{where}.arguments")
    if None in as_fields(arguments).values():
        notes.append(Note("null_arguments"))
    return arguments


def read_tools(value: object) -> tuple[Tool, ...]:
    """The tools of a row: a list of schemas, or that list as JSON text, each bare or under ``function``.

    Raises:
        DataError: If it is something else.
    """
    if isinstance(value, str):
        value = from_json(value, '"tools"')
    if is_blank(value):
        return ()
    entries = cast("Sequence[object]", value if isinstance(value, list) else [value])
    return tuple(_tool(entry, f"tools[{i}]") for i, entry in enumerate(entries))


def _tool(entry: object, where: str) -> Tool:
    tool = as_fields(plain(entry, where))
    name = as_fields(tool.get("function", tool)).get("name")
    if not isinstance(name, str) or not name:
        raise DataError(
            f"{where} is no tool with a name",
            fix='A tool is {"type": "function", "function": {"name": "...", "description": "...", "parameters": {}}}',
        )
    return tool if "function" in tool else {"type": "function", "function": tool}


def plain(value: object, where: str, depth: int = 0) -> object:
    """A JSON value as it is, if it is one that any program reads.

    Raises:
        DataError: If it is nested too deeply, or holds a number that is not finite.
    """
    if depth > _DEEPEST:
        raise DataError(f"{where} is nested deeper than {_DEEPEST} levels", fix="Flatten it")
    if isinstance(value, Mapping):
        fields = cast("Fields", value)
        return {encodable(str(k), where): plain(v, where, depth + 1) for k, v in fields.items()}
    if isinstance(value, list | tuple):
        return [plain(v, where, depth + 1) for v in cast("Sequence[object]", value)]
    if isinstance(value, float) and not math.isfinite(value):
        raise DataError(f"{where} holds {value}, which is not a JSON number", fix="Use a finite number, or null")
    if isinstance(value, str):
        return encodable(value, where)
    return value if value is None or isinstance(value, bool | int | float) else str(value)


def from_json(text: str, where: str) -> object:
    """What a JSON text holds.

    Raises:
        DataError: If it is not JSON.
    """
    try:
        return json.loads(text)
    except ValueError as error:
        raise DataError(f"{where} is text and not JSON ({error})") from error
    except RecursionError as error:
        raise DataError(f"{where} is nested too deeply", fix="Flatten it") from error


def as_fields(value: object) -> Fields:
    """The keys of an object; none of anything else."""
    return cast("Fields", value) if isinstance(value, Mapping) else {}


def is_blank(value: object) -> bool:
    """Whether a key says nothing: null, or empty."""
    return value is None or (isinstance(value, Sized) and not len(value))


def encodable(text: str, where: str) -> str:
    """The text, if a tokenizer takes it.

    Raises:
        DataError: If it holds half of a character.
    """
    if not text.isascii() and (found := _SURROGATE.search(text)) is not None:
        what = "U+FDD0, which is no character" if found.group() == "\ufdd0" else "half of a surrogate pair"
        raise DataError(f"{where} holds {what}, which no tokenizer takes", fix="Repair the text")
    return text


def key_list(row: Fields) -> str:
    """The first keys of a row, for an error."""
    return ", ".join(shown(key) for key in sorted(row, key=str)[:8]) or "none"


def shown(name: object) -> str:
    """The head of a name from somebody's data, as text that any output takes."""
    return str(name)[:40].encode("utf-8", "backslashreplace").decode()


def kind(value: object) -> str:
    """A value's type in the words of a person who writes JSON."""
    if value is None:
        return "missing"
    name = type(value).__name__
    return {"str": "text", "bool": "true or false", "list": "a list", "dict": "an object"}.get(
        name, "a number" if isinstance(value, int | float) else name
    )
