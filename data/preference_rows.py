"""Preference data in the shapes people have it, as a prompt with a better and a worse answer."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, cast

from ..core.errors import DataError
from ..models.chat import Message, Tool, is_trained, words_of
from .formats import check_roles, prompt_turns, refuse_row_weight, repeats, text_of, tools_of, unread_keys, with_system
from .row_turns import ROLES, Note, Notes, as_fields, key_list, read_turns

PreferenceFormat = Literal["pairs", "conversations", "transcripts", "ratings"]
PREFERENCE_FORMATS: Mapping[PreferenceFormat, str] = {
    "pairs": '{"prompt": "..." or [messages], "chosen": "..." or [messages], "rejected": "..." or [messages]}',
    "conversations": '{"chosen": [messages], "rejected": [messages]}',
    "transcripts": '{"chosen": "\\n\\nHuman: ...\\n\\nAssistant: ...", "rejected": "..."}',
    "ratings": '{"prompt": "...", "responses": ["...", "..."], "ratings": [4, 2]} or "ranks": [1, 2]',
}
_SPEAKER = re.compile(r"(?:^|\n\n)(Human|Assistant):")
_SPEAKERS = {"Human": "user", "Assistant": "assistant"}
_RATING_KEYS = ("ratings", "scores", "ranks")
_PROMPT_KEYS = ("prompt", "question", "instruction", "messages", "conversations", "conversation", "input")


@dataclass(frozen=True, slots=True)
class PreferencePair:
    """A prompt (ending in a turn that is not the assistant's) and two answers, the first of them preferred.

    ``tools`` are those the model is told of; ``notes`` say what the row's author may not expect.
    """

    prompt: tuple[Message, ...]
    chosen: tuple[Message, ...]
    rejected: tuple[Message, ...]
    tools: tuple[Tool, ...] = ()
    notes: tuple[Note, ...] = ()

    @property
    def chosen_text(self) -> str:
        """The better answer's words."""
        return words_of(self.chosen)

    @property
    def rejected_text(self) -> str:
        """The worse answer's words."""
        return words_of(self.rejected)


@dataclass(frozen=True, slots=True)
class _Sides:
    """Both answers of a row with the turns before each, and the keys that were read."""

    chosen: tuple[list[Message], list[Message]]
    rejected: tuple[list[Message], list[Message]]
    read: set[str]


def is_preference_row(row: Mapping[str, Any]) -> bool:
    """Whether a row holds a preference, in whatever shape."""
    return {"chosen", "rejected"} <= set(row) or {"prompt", "responses"} <= set(row)


def detect_preference_format(row: Mapping[str, Any]) -> PreferenceFormat:
    """Which of the known shapes a row has.

    Raises:
        DataError: If it has none of them.
    """
    keys = set(row)
    if {"chosen", "rejected"} <= keys:
        if _prompt_key(row) is not None:
            return "conversations" if _holds_prompt(row) else "pairs"
        return "transcripts" if isinstance(row["chosen"], str) else "conversations"
    if {"prompt", "responses"} <= keys:
        return "ratings"
    raise DataError(
        f"no preference in this row (keys: {key_list(row)})",
        fix=f"Use one of: {'; '.join(PREFERENCE_FORMATS.values())}",
    )


def _prompt_key(row: Mapping[str, Any]) -> str | None:
    return next((key for key in _PROMPT_KEYS if row.get(key) is not None), None)


def to_pair(row: Mapping[str, Any], form: PreferenceFormat | None = None) -> PreferencePair:
    """The preference in a row, checked: roles, no empty turns, two answers that differ.

    Raises:
        DataError: With what is wrong (the caller adds the file and line).
    """
    notes = Notes()
    refuse_row_weight(row)
    sides = _READERS[form or detect_preference_format(row)](row, notes)
    prompt = with_system(row, sides.chosen[0])
    chosen, rejected = tuple(sides.chosen[1]), tuple(sides.rejected[1])
    for answer in (chosen, rejected):
        check_roles([*prompt, *answer])
    if chosen == rejected:
        raise DataError(
            "chosen and rejected are the same: there is nothing to prefer", fix="Remove the row, or correct its label"
        )
    if not all(is_trained(m) for m in (*chosen, *rejected) if m["role"] == "assistant"):
        raise DataError("an answer has weight 0, and both answers of a pair are compared", fix="Remove the weight")
    notes.extend(unread_keys(row, sides.read))
    return PreferencePair(tuple(prompt), chosen, rejected, tools_of(row), tuple(notes))


def _from_pairs(row: Mapping[str, Any], notes: Notes) -> _Sides:
    key = _prompt_key(row) or "prompt"
    asked_turns = _asked_in_transcript(row[key])
    prompt, read = prompt_turns(row if asked_turns is None else {**row, key: asked_turns}, key, notes)
    chosen, rejected = (_answer(row, side, notes) for side in ("chosen", "rejected"))
    asked = prompt[-1]["content"] if prompt else ""
    if all(repeats(asked, answer[0]["content"]) for answer in (chosen, rejected)):
        notes.append(Note("prompt_cut"))
        for answer in (chosen, rejected):
            answer[0]["content"] = answer[0]["content"].lstrip().removeprefix(asked.strip()).lstrip()
    return _Sides((prompt, chosen), (prompt, rejected), read | {"chosen", "rejected"})


def _answer(row: Mapping[str, Any], side: str, notes: Notes) -> list[Message]:
    """One answer: a text, a turn or a list of turns."""
    value: object = row[side]
    if not isinstance(value, list | Mapping):
        return [Message(role="assistant", content=text_of(row, side))]
    turns = read_turns(cast("list[object]", value if isinstance(value, list) else [value]), side, notes)
    if not turns:
        raise DataError(f'"{side}" has no turns')
    return turns


def _holds_prompt(row: Mapping[str, Any]) -> bool:
    """Whether ``chosen`` is a whole conversation that repeats the prompt, as several public sets have it."""
    turns = row["chosen"]
    if not isinstance(turns, list) or not turns:
        return False
    fields = as_fields(cast("list[object]", turns)[0])
    return ROLES.get(str(fields.get("role") or fields.get("from")).lower()) in {"user", "system"}


def _from_conversations(row: Mapping[str, Any], notes: Notes) -> _Sides:
    chosen, rejected = (read_turns(row[side], side, notes) for side in ("chosen", "rejected"))
    return _split(chosen, rejected, {"chosen", "rejected", *_PROMPT_KEYS})


def _from_transcripts(row: Mapping[str, Any], notes: Notes) -> _Sides:
    chosen, rejected = (_transcript(row, side, notes) for side in ("chosen", "rejected"))
    return _split(chosen, rejected, {"chosen", "rejected"})


def _transcript(row: Mapping[str, Any], side: str, notes: Notes) -> list[Message]:
    text = row[side]
    if not isinstance(text, str):
        raise DataError(f'"{side}" is not text, and the other side is')
    speakers = list(_SPEAKER.finditer(text))
    if not speakers:
        raise DataError(
            f'"{side}" has no prompt: no "Human:" and "Assistant:" turns in it',
            fix='Add "prompt", or whole transcripts',
        )
    return read_turns(_turns_between(text, speakers), side, notes)


def _asked_in_transcript(prompt: object) -> list[dict[str, str]] | None:
    """The turns of a prompt that is a transcript up to the answer, as Nectar writes it; None of any other."""
    if not isinstance(prompt, str) or not prompt.rstrip().endswith("\n\nAssistant:"):
        return None
    speakers = list(_SPEAKER.finditer(prompt))
    return _turns_between(prompt, speakers)[:-1] if speakers[0].start() == 0 else None


def _turns_between(text: str, speakers: Sequence[re.Match[str]]) -> list[dict[str, str]]:
    ends = [m.start() for m in speakers[1:]] + [len(text)]
    return [
        {"role": _SPEAKERS[m.group(1)], "content": text[m.end() : end].strip()}
        for m, end in zip(speakers, ends, strict=True)
    ]


def _split(chosen: Sequence[Message], rejected: Sequence[Message], read: set[str]) -> _Sides:
    """Two conversations as their common beginning and two endings."""
    common = 0
    for one, other in zip(chosen[:-1], rejected[:-1], strict=False):
        if one != other:
            break
        common += 1
    while common and chosen[common - 1]["role"] == "assistant":
        common -= 1
    if common == 0:
        raise DataError("chosen and rejected have no common prompt", fix="Both must begin with the same turns")
    prompt = list(chosen[:common])
    return _Sides((prompt, list(chosen[common:])), (prompt, list(rejected[common:])), read)


def _from_ratings(row: Mapping[str, Any], notes: Notes) -> _Sides:
    key = next((key for key in _RATING_KEYS if key in row), "ratings")
    responses, ratings = row["responses"], row.get(key)
    if not isinstance(responses, list) or not isinstance(ratings, list):
        raise DataError('"responses" and "ratings" must be two lists of the same length')
    texts, values = cast("list[Any]", responses), cast("list[Any]", ratings)
    if len(texts) != len(values) or len(texts) < 2:
        raise DataError(f"{len(texts)} responses and {len(values)} ratings: two or more of each are needed")
    if not all(isinstance(v, int | float) and not isinstance(v, bool) and math.isfinite(v) for v in values):
        raise DataError(f'"{key}" must be numbers, and finite ones', fix="Remove the responses without a rating")
    best, worst = values.index(max(values)), values.index(min(values))
    if key == "ranks":  # the first is the best
        best, worst = worst, best
    if values[best] == values[worst]:
        raise DataError("every response has the same rating: there is nothing to prefer", fix="Remove the row")
    sides = _from_pairs({**row, "chosen": texts[best], "rejected": texts[worst]}, notes)
    return replace(sides, read=sides.read | {"responses", key})


_READERS = {
    "pairs": _from_pairs,
    "conversations": _from_conversations,
    "transcripts": _from_transcripts,
    "ratings": _from_ratings,
}


def comparison_prompt(prompt: Sequence[Message], first: str, second: str) -> list[Message]:
    """The question which of two responses is better, to be answered with A or B."""
    if len(prompt) == 1:
        asked = prompt[0]["content"]
    else:
        asked = "\n\n".join(f"{m['role'].capitalize()}: {m['content']}" for m in prompt)
    return [Message(role="user", content=f"{asked}\n[A] {first}\n[B] {second}\n[Better]")]


def comparison_conversations(pair: PreferencePair) -> Iterator[list[Message]]:
    """A pair as a question with its answer, in both orders: an answer's position must not predict the label."""
    chosen, rejected = pair.chosen_text, pair.rejected_text
    for first, second, label in ((chosen, rejected, "A"), (rejected, chosen, "B")):
        yield [*comparison_prompt(pair.prompt, first, second), Message(role="assistant", content=label)]
