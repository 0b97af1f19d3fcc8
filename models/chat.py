"""From chat messages to tokens with a loss mask, and back: one renderer for checking, training and sampling.

What is trained must be what sampling will produce: the tokens of a prompt are made by the same code, cut at the same
places, whether an answer follows (training) or is awaited (sampling).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, Literal, NotRequired, Protocol, TypeAlias, TypedDict

# OpenAI's form: {"type": "function", "function": {"name", "arguments"}} for a call, and for a tool its schema.
ToolCall: TypeAlias = Mapping[str, Any]
Tool: TypeAlias = Mapping[str, Any]


class Message(TypedDict):
    """One turn of a conversation.

    ``content`` is text, empty where a turn is a tool call alone. ``trained`` false: an assistant turn that is read and
    not imitated. The others reach templates that render them.
    """

    role: str
    content: str
    reasoning_content: NotRequired[str]
    tool_calls: NotRequired[list[ToolCall]]
    tool_call_id: NotRequired[str]
    name: NotRequired[str]
    trained: NotRequired[bool]


@dataclass(frozen=True, slots=True)
class Conversation:
    """Turns, and the tools that the model is told of before them."""

    messages: Sequence[Message]
    tools: Sequence[Tool] = ()


Chat: TypeAlias = Conversation | Sequence[Message]


def as_conversation(chat: Chat) -> Conversation:
    """A conversation, also of bare messages."""
    return chat if isinstance(chat, Conversation) else Conversation(chat)


def is_trained(message: Message) -> bool:
    """Whether a turn is the assistant's and carries loss."""
    return message["role"] == "assistant" and message.get("trained", True)


# What a renderer did to a conversation that its author may not want; `data.row_findings` has the sentences.
RenderingNote = Literal[
    "last_turn_only",
    "no_end_token",
    "other_end_token",
    "think_deleted",
    "no_thinking",
    "reasoning_dropped",
    "tools_dropped",
    "rewritten_text",
    "control_text",
    "control_tokens",
    "control_in_answer",
]


@dataclass(frozen=True, slots=True)
class Rendered:
    """One conversation as tokens.

    Attributes:
        tokens: Token ids, shape [T].
        weights: 1 where the token is trained (an assistant's words and the token that ends its turn), else 0; [T].
        notes: What was left out, rewritten or may surprise.
        row_weight: How much it counts beside others, which count 1.
    """

    tokens: Sequence[int]
    weights: Sequence[int]
    notes: frozenset[RenderingNote] = frozenset()
    row_weight: float = 1.0


@dataclass(frozen=True, slots=True)
class Measured:
    """The size of one conversation in tokens.

    Attributes:
        parts: (tokens, whether they are trained) in order.
        tokens: All of them.
        trained: Those that are trained.
        notes: Those of `Rendered`.
    """

    parts: Sequence[tuple[int, bool]]
    tokens: int
    trained: int
    notes: frozenset[RenderingNote] = frozenset()

    @classmethod
    def of(cls, parts: Sequence[tuple[int, bool]], notes: frozenset[RenderingNote]) -> Measured:
        """The size of these parts together."""
        tokens = trained = 0
        for size, is_trained_part in parts:
            tokens += size
            if is_trained_part:
                trained += size
        return cls(parts, tokens, trained, notes)

    def trained_within(self, limit: int) -> int:
        """Trained tokens among the first ``limit``."""
        trained = 0
        for size, is_trained_part in self.parts:
            trained += min(size, limit) if is_trained_part else 0
            limit = max(0, limit - size)
        return trained


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

    def render_many(self, conversations: Sequence[Chat]) -> list[Rendered]:
        """Render many conversations (much faster than one at a time).

        Raises:
            DataError: If the template refuses a conversation, or would train an answer without what is in it.
        """
        ...

    def measure_many(self, conversations: Sequence[Chat]) -> list[Measured]:
        """The sizes of what `render_many` makes, without the tokens.

        Raises:
            DataError: As `render_many`.
        """
        return [
            Measured.of([(len(list(run)), trained == 1) for trained, run in groupby(each.weights)], each.notes)
            for each in self.render_many(conversations)
        ]

    def generation_prompt(self, messages: Chat) -> list[int]:
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
    """What is said, thought and called in a conversation, without roles, for comparing one with another."""
    return "\n".join(text for message in messages for text in _words(message))


def _words(message: Message) -> Sequence[str]:
    if "reasoning_content" not in message and "tool_calls" not in message:
        return (message["content"],)
    calls = [json.dumps(call.get("function"), ensure_ascii=False) for call in message.get("tool_calls", ())]
    parts = (message.get("reasoning_content", ""), message["content"], *calls)
    return [part for part in parts if part]


def control_pattern(tokens: Iterable[str]) -> re.Pattern[str]:
    """Matches any of these texts, the longest first; nothing where there are none."""
    return re.compile("|".join(map(re.escape, sorted(filter(None, tokens), key=len, reverse=True))) or "(?!)")


def mask_view(renderer: ChatRenderer, rendered: Rendered) -> str:
    """The text of a conversation with what is trained between ⟦ and ⟧.

    A control token's spelling that is mere text gets a backslash after its first character, not to look like the token.
    """
    special = set(renderer.special_tokens)
    spelled = control_pattern(renderer.text_of([token]) for token in special)
    view = ""
    for trained, run in groupby(zip(rendered.tokens, rendered.weights, strict=True), key=lambda pair: pair[1]):
        text = ""
        for is_control, part in groupby((token for token, _ in run), key=special.__contains__):
            said = renderer.text_of(list(part))
            text += said if is_control else spelled.sub(lambda match: f"{match[0][0]}\\{match[0][1:]}", said)
        view += f"⟦{text}⟧" if trained else text
    return view
