"""Preference data in the shapes people have it, as a prompt with a better and a worse answer."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

from ..core.errors import DataError
from ..models.chat import Message, words_of
from .formats import key_list, to_messages

PreferenceFormat = Literal["pairs", "conversations", "transcripts", "ratings"]
PREFERENCE_FORMATS: Mapping[PreferenceFormat, str] = {
    "pairs": '{"prompt": "..." or [messages], "chosen": "..." or [messages], "rejected": "..." or [messages]}',
    "conversations": '{"chosen": [messages], "rejected": [messages]}',
    "transcripts": '{"chosen": "\\n\\nHuman: ...\\n\\nAssistant: ...", "rejected": "..."}',
    "ratings": '{"prompt": "...", "responses": ["...", "..."], "ratings": [4, 2]}',
}
_SPEAKER = re.compile(r"(?:^|\n\n)(Human|Assistant):")
_ROLES = {"Human": "user", "Assistant": "assistant"}
_RATING_KEYS = ("ratings", "scores")


@dataclass(frozen=True, slots=True)
class PreferencePair:
    """A prompt (ending in a turn that is not the assistant's) and two answers, the first of them preferred."""

    prompt: tuple[Message, ...]
    chosen: tuple[Message, ...]
    rejected: tuple[Message, ...]

    @property
    def chosen_text(self) -> str:
        """The better answer's words."""
        return words_of(self.chosen)

    @property
    def rejected_text(self) -> str:
        """The worse answer's words."""
        return words_of(self.rejected)


def is_preference_row(row: Mapping[str, Any]) -> bool:
    """Whether a row holds a preference, in whatever shape."""
    return {"chosen", "rejected"} <= set(row) or {"prompt", "responses"} <= set(row)


def detect_preference_format(row: Mapping[str, Any]) -> PreferenceFormat:
    """Which of the known shapes a row has.

    Raises:
        DataError: If it has none of them.
    """
    keys = set(row)
    if {"prompt", "chosen", "rejected"} <= keys and row["prompt"] is not None:
        return "pairs" if isinstance(row["chosen"], str) or not _holds_prompt(row) else "conversations"
    if {"chosen", "rejected"} <= keys:
        return "transcripts" if isinstance(row["chosen"], str) else "conversations"
    if {"prompt", "responses"} <= keys:
        return "ratings"
    raise DataError(
        f"no preference in this row (keys: {key_list(row)})",
        fix=f"Use one of: {'; '.join(PREFERENCE_FORMATS.values())}",
    )


def to_pair(row: Mapping[str, Any], form: PreferenceFormat | None = None) -> PreferencePair:
    """The preference in a row, checked: roles, no empty turns, two answers that differ.

    Raises:
        DataError: With what is wrong (the caller adds the file and line).
    """
    form = form or detect_preference_format(row)
    pair = _READERS[form](row)
    if pair.chosen == pair.rejected:
        raise DataError(
            "chosen and rejected are the same: there is nothing to prefer", fix="Remove the row, or correct its label"
        )
    return pair


def _from_pairs(row: Mapping[str, Any]) -> PreferencePair:
    (prompt, chosen), (_, rejected) = (_answered(row, side) for side in ("chosen", "rejected"))
    return PreferencePair(prompt, chosen, rejected)


def _answered(row: Mapping[str, Any], side: str) -> tuple[tuple[Message, ...], tuple[Message, ...]]:
    """The prompt and one of its answers, each as text or messages."""
    prompt, answer = row["prompt"], row[side]
    try:
        if isinstance(prompt, str) and isinstance(answer, list):
            prompt = [{"role": "user", "content": prompt}]
        turns = to_messages({"prompt": prompt, "completion": answer}, "prompt_completion")
    except DataError as error:
        problem = error.problem.replace('"completion"', f'"{side}"').replace("completion[", f"{side}[")
        raise DataError(problem, fix=error.fix) from error
    length = len(cast("Sequence[object]", answer)) if isinstance(answer, list) else 1
    return tuple(turns[:-length]), tuple(turns[-length:])


def _holds_prompt(row: Mapping[str, Any]) -> bool:
    """Whether ``chosen`` is a whole conversation that repeats the prompt, as several public sets have it."""
    turns = row["chosen"]
    if not isinstance(turns, list) or not turns:
        return False
    first = cast("Sequence[object]", turns)[0]
    return isinstance(first, Mapping) and cast("Mapping[str, Any]", first).get("role") in {"user", "system"}


def _from_conversations(row: Mapping[str, Any]) -> PreferencePair:
    chosen = to_messages({"messages": row["chosen"]}, "messages")
    rejected = to_messages({"messages": row["rejected"]}, "messages")
    return _split(chosen, rejected)


def _from_transcripts(row: Mapping[str, Any]) -> PreferencePair:
    return _split(_transcript(row, "chosen"), _transcript(row, "rejected"))


def _transcript(row: Mapping[str, Any], side: str) -> list[Message]:
    text = row[side]
    if not isinstance(text, str):
        raise DataError(f'"{side}" is not text, and the other side is')
    speakers = list(_SPEAKER.finditer(text))
    if not speakers:
        raise DataError(
            f'"{side}" has no prompt: no "Human:" and "Assistant:" turns in it',
            fix='Add "prompt", or whole transcripts',
        )
    ends = [m.start() for m in speakers[1:]] + [len(text)]
    turns = [
        {"role": _ROLES[m.group(1)], "content": text[m.end() : end].strip()}
        for m, end in zip(speakers, ends, strict=True)
    ]
    return to_messages({"messages": turns}, "messages")


def _split(chosen: Sequence[Message], rejected: Sequence[Message]) -> PreferencePair:
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
    return PreferencePair(tuple(chosen[:common]), tuple(chosen[common:]), tuple(rejected[common:]))


def _from_ratings(row: Mapping[str, Any]) -> PreferencePair:
    responses, ratings = row["responses"], next((row[key] for key in _RATING_KEYS if key in row), None)
    if not isinstance(responses, list) or not isinstance(ratings, list):
        raise DataError('"responses" and "ratings" must be two lists of the same length')
    texts, values = cast("list[Any]", responses), cast("list[Any]", ratings)
    if len(texts) != len(values) or len(texts) < 2:
        raise DataError(f"{len(texts)} responses and {len(values)} ratings: two or more of each are needed")
    if not all(isinstance(v, int | float) and not isinstance(v, bool) for v in values):
        raise DataError('"ratings" must be numbers')
    best, worst = values.index(max(values)), values.index(min(values))
    if values[best] == values[worst]:
        raise DataError("every response has the same rating: there is nothing to prefer", fix="Remove the row")
    return _from_pairs({"prompt": row["prompt"], "chosen": texts[best], "rejected": texts[worst]})


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
