"""A comparison of two responses as a conversation: what a preference model is trained on and asked."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from sota_ml_researcher.training.formats import Message
from sota_ml_researcher.training.preference_rows import Pair, text_of

_ROLES = {"user": "User", "assistant": "Assistant", "system": "System", "tool": "Tool"}


def comparison_prompt(prompt: Sequence[Message], first: str, second: str) -> list[Message]:
    """The question which of two responses is better, to be answered with A or B."""
    if len(prompt) == 1:
        asked = prompt[0]["content"]
    else:
        asked = "\n\n".join(f"{_ROLES[m['role']]}: {m['content']}" for m in prompt)
    return [Message(role="user", content=f"{asked}\n[A] {first}\n[B] {second}\n[Better]")]


def comparison_conversations(pair: Pair) -> Iterator[list[Message]]:
    """A pair in both orders, so that the place of an answer says nothing about it."""
    chosen, rejected = text_of(pair.chosen), text_of(pair.rejected)
    for first, second, label in ((chosen, rejected, "A"), (rejected, chosen, "B")):
        yield [*comparison_prompt(pair.prompt, first, second), Message(role="assistant", content=label)]
