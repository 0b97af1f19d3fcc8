"""From chat messages to tokens with a loss mask, and back: one renderer for checking, training and sampling.

What is trained must be what sampling will produce: the tokens of a prompt are made by the same code, cut at the same
places, whether an answer follows (training) or is awaited (sampling).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, NotRequired, Protocol, TypedDict


class Message(TypedDict):
    """One turn of a conversation. ``content`` is text; tool calls are kept for templates that render them."""

    role: str
    content: str
    tool_calls: NotRequired[list[Any]]


@dataclass(frozen=True, slots=True)
class Rendered:
    """One conversation as tokens.

    Attributes:
        tokens: Token ids, shape [T].
        weights: 1 where the token is trained (an assistant's words and the token that ends its turn), else 0; [T].
        last_turn_only: True when earlier assistant turns could not be trained, because the template writes them
            differently once they are history.
    """

    tokens: Sequence[int]
    weights: Sequence[int]
    last_turn_only: bool = False


class ChatRenderer(Protocol):
    """Renders one model's conversations.

    Attributes:
        name: ``chat_template``, or the cookbook's name for it.
        stop: What ends an answer: token ids, or strings.
        vocabulary: Number of token ids the tokenizer knows, added ones included.
    """

    name: str
    stop: list[int] | list[str]
    vocabulary: int

    @property
    def special_tokens(self) -> Sequence[int]:
        """Ids of tokens that stand for no text, such as those that end a turn."""
        ...

    def render_many(self, conversations: Sequence[Sequence[Message]]) -> list[Rendered]:
        """Render many conversations (much faster than one at a time).

        Raises:
            DataError: If the template refuses a conversation.
        """
        ...

    def generation_prompt(self, messages: Sequence[Message]) -> list[int]:
        """The tokens after which the model answers ``messages``."""
        ...

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of an answer, reasoning included, without the token that ended it."""
        end = len(tokens)
        while end and tokens[end - 1] in self.stop:
            end -= 1
        return self.text_of(tokens[:end])

    def text_of(self, tokens: Sequence[int]) -> str:
        """The text of any tokens, special ones included."""
        ...


def words_of(messages: Sequence[Message]) -> str:
    """What is said in a conversation, without roles, for comparing one with another."""
    return "\n".join(message["content"] for message in messages)


def mask_view(renderer: ChatRenderer, rendered: Rendered) -> str:
    """The text of a conversation with what is trained between ⟦ and ⟧."""
    view = ""
    for trained, run in groupby(zip(rendered.tokens, rendered.weights, strict=True), key=lambda pair: pair[1]):
        text = renderer.text_of([token for token, _ in run])
        view += f"⟦{text}⟧" if trained else text
    return view
