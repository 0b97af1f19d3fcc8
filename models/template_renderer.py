"""Conversations as tokens by a model's own chat template, with what is trained and what was lost on the way."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple, cast

from ..core.errors import DataError, ModelError
from .chat import (
    Chat,
    ChatRenderer,
    Conversation,
    Measured,
    Message,
    Rendered,
    RenderingNote,
    Tool,
    ToolCall,
    as_conversation,
    is_trained,
)
from .chat_template import ChatTemplate

TEMPLATE_RENDERER = "chat_template"
THINK, END_THINK = "<think>", "</think>"
# A character that Unicode promises never to assign. It splits a control token's spelling in a user's text, so that
# the tokenizer sees text; the pieces are cut at it and it never reaches a token.
SPLIT = "\ufdd0"
# Control tokens that belong into answers.
_ANSWERS_OWN = re.compile(r"</?(think|tool_call|tool_response|answer)>|\[/?(THINK|TOOL_CALLS)\]")
# The end of a generation prompt that begins the answer itself: reasoning is opened, or opened and closed.
_PREFILL = re.compile(r"<think>\s*(</think>\s*)?\Z")
_REASONING_KEYS = ("reasoning_content", "reasoning", "thinking")
# What no template says of itself.
_PROBE = "zQ7xj"


def has_control(pattern: re.Pattern[str], text: str) -> bool:
    """Whether an answer spells a control token, those for reasoning and tool calls aside."""
    return any(not _ANSWERS_OWN.fullmatch(match.group()) for match in pattern.finditer(text))


def deleted_reasoning(message: Message, seen: str) -> bool:
    """Whether an answer's ``<think>`` block is missing from ``seen`` and its words after it are there."""
    thought, closed, said = message["content"].rpartition(END_THINK)
    if not closed or said.strip() not in seen:
        return False
    return END_THINK not in seen or thought.replace(THINK, "").strip() not in seen


class _Piece(NamedTuple):
    text: str
    trained: bool


@dataclass(frozen=True, slots=True)
class _Layout:
    """A conversation's text, cut into what the model reads and what it answers."""

    pieces: list[_Piece]
    notes: frozenset[RenderingNote]


class TemplateRenderer(ChatRenderer):
    """Renders with a model's own chat template."""

    def __init__(self, template: ChatTemplate) -> None:
        self._template = template
        self.name = TEMPLATE_RENDERER
        try:
            prefill = _PREFILL.search(template.render(_turns("a"), add_generation_prompt=True))
            self._prefill = prefill.group() if prefill else ""
            self.stop = self._find_stop()
        except DataError as error:
            raise ModelError(error.problem, where="chat template", fix=error.fix) from error
        self.vocabulary = template.tokenizer.get_vocab_size(with_added_tokens=True)

    @property
    def special_tokens(self) -> Sequence[int]:
        """Ids of the added tokens that are marked special."""
        added = self._template.tokenizer.get_added_tokens_decoder()
        return [token for token, how in added.items() if how.special]

    def render_many(self, conversations: Sequence[Chat]) -> list[Rendered]:
        """Render many conversations; the tokenizer works on all their pieces at once."""
        layouts = [self._layout(self._protected(as_conversation(chat))) for chat in conversations]
        encodings = iter(self._encode(piece.text for layout in layouts for piece in layout.pieces))
        rendered: list[Rendered] = []
        for layout in layouts:
            tokens, weights = list[int](), list[int]()
            for piece in layout.pieces:
                ids = next(encodings)
                tokens += ids
                weights += [int(piece.trained)] * len(ids)
            rendered.append(Rendered(tokens, weights, layout.notes))
        return rendered

    def measure_many(self, conversations: Sequence[Chat]) -> list[Measured]:
        """The sizes of what `render_many` makes."""
        layouts = [self._layout(self._protected(as_conversation(chat))) for chat in conversations]
        pieces = [piece.text for layout in layouts for piece in layout.pieces]
        sizes = iter(self._template.tokenizer.encode_batch_fast(pieces, add_special_tokens=False))
        return [
            Measured.of([(len(next(sizes)), piece.trained) for piece in layout.pieces], layout.notes)
            for layout in layouts
        ]

    def generation_prompt(self, messages: Chat) -> list[int]:
        """The prompt's tokens, cut where training cuts them."""
        chat = self._protected(as_conversation(messages))
        text = self._text(chat, add_generation_prompt=True)
        turns = [i for i, message in enumerate(chat.messages) if message["role"] == "assistant"]
        spans = self._history_spans(chat, turns, text)
        pieces = [_Piece(text, False)] if spans is None else self._cut(chat, spans, text)
        return [token for ids in self._encode(p.text for piece in pieces for p in _parts(piece)) for token in ids]

    def text_of(self, tokens: Sequence[int]) -> str:
        """The text of any tokens."""
        return self._template.tokenizer.decode([int(t) for t in tokens], skip_special_tokens=False)

    def _encode(self, texts: Iterable[str]) -> Iterator[list[int]]:
        for encoding in self._template.tokenizer.encode_batch_fast(list(texts), add_special_tokens=False):
            yield encoding.ids

    def _protected(self, chat: Conversation) -> Conversation:
        """The conversation with control tokens split wherever somebody else than the assistant spells one."""
        control = self._template.special
        if not any(message["role"] != "assistant" and control.search(message["content"]) for message in chat.messages):
            return chat

        def split(message: Message) -> Message:
            if message["role"] == "assistant" or control.search(message["content"]) is None:
                return message
            text = control.sub(lambda match: match[0][0] + SPLIT + match[0][1:], message["content"])
            return cast("Message", {**message, "content": text})

        return replace(chat, messages=[split(message) for message in chat.messages])

    def _text(self, chat: Conversation, turns: int | None = None, *, add_generation_prompt: bool = False) -> str:
        """The text of the first ``turns`` turns, or of all."""
        messages = [self._for_template(message) for message in chat.messages[:turns]]
        return self._template.render(messages, tools=chat.tools, add_generation_prompt=add_generation_prompt)

    def _for_template(self, message: Message) -> Mapping[str, Any]:
        if len(message) == 2:
            return message
        fields = {key: value for key, value in message.items() if key not in {"trained", "reasoning_content"}}
        if "reasoning_content" in message and self._reasoning_key is not None:
            fields[self._reasoning_key] = message["reasoning_content"]
        return fields

    @cached_property
    def _reasoning_key(self) -> str | None:
        """The key under which this template reads a turn's reasoning, if it reads one."""
        for key in _REASONING_KEYS:
            if self._writes([{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", key: _PROBE}]):
                return key
        return None

    @cached_property
    def _writes_tools(self) -> bool | None:
        schema: dict[str, Any] = {"name": _PROBE, "description": "", "parameters": {"type": "object", "properties": {}}}
        return self._writes(_turns("a"), tools=[{"type": "function", "function": schema}])

    @cached_property
    def _writes_calls(self) -> bool | None:
        call: dict[str, Any] = {"id": "call_0001", "type": "function", "function": {"name": _PROBE, "arguments": {}}}
        return self._writes([*_turns("a"), {"role": "assistant", "content": "", "tool_calls": [call]}])

    def _writes(self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Tool] = ()) -> bool | None:
        """Whether the template writes what only the probe holds; None where it refuses the probe."""
        try:
            return _PROBE in self._template.render(messages, tools=tools)
        except DataError:
            return None

    def _layout(self, chat: Conversation) -> _Layout:
        messages = chat.messages
        text = self._text(chat)
        turns = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
        *earlier, last = turns
        before, answer = self._span(chat, last, text)
        spans = self._history_spans(chat, earlier, before) if text.startswith(before + answer) else None
        notes = set[RenderingNote]()
        if spans is None:
            if not is_trained(messages[last]):
                raise DataError(
                    "with this chat template only the last answer can be trained, and its weight is 0",
                    fix="End the conversation with the answer to learn",
                )
            pieces, seen, kept = [_Piece(before, False), _Piece(answer, True)], before + answer, [last]
            notes |= {"last_turn_only"} if any(is_trained(messages[i]) for i in earlier) else set()
        else:
            pieces, seen, kept = self._cut(chat, [*spans, (last, before, answer)], text), text, turns
        notes.update(self._losses(chat, seen, kept))
        if self._template.ends and self._template.ends.isdisjoint(self.stop[:1]):
            notes.add("other_end_token")
        if any(piece.trained and self._template.last_special(piece.text) != len(piece.text) for piece in pieces):
            notes.add("no_end_token")
        if self._opens_reasoning and answer.lstrip().startswith(END_THINK):
            notes.add("no_thinking")
        return _Layout([part for piece in pieces for part in _parts(piece)], frozenset(notes))

    @property
    def _opens_reasoning(self) -> bool:
        return bool(self._prefill) and END_THINK not in self._prefill

    def _history_spans(self, chat: Conversation, turns: Sequence[int], text: str) -> list[tuple[int, str, str]] | None:
        """Each turn with the text before it and its own; None where ``text`` has one of them otherwise."""
        spans: list[tuple[int, str, str]] = []
        for turn in turns:
            try:
                before, answer = self._span(chat, turn, None)
            except DataError:
                return None
            if not text.startswith(before + answer):
                return None
            spans.append((turn, before, answer))
        return spans

    def _cut(self, chat: Conversation, spans: Sequence[tuple[int, str, str]], text: str) -> list[_Piece]:
        """``text`` at the spans' borders; what follows the last answer is left out, what follows a prompt's is not."""
        pieces: list[_Piece] = []
        position = 0
        for turn, before, answer in spans:
            pieces += [_Piece(before[position:], False), _Piece(answer, is_trained(chat.messages[turn]))]
            position = len(before) + len(answer)
        if not spans or spans[-1][0] != len(chat.messages) - 1:
            pieces.append(_Piece(text[position:], False))
        return pieces

    def _span(self, chat: Conversation, turn: int, text: str | None) -> tuple[str, str]:
        """The text before an assistant turn, and the turn up to and including the token that ends it."""
        before = self._text(chat, turn, add_generation_prompt=True)
        through = self._text(chat, turn + 1) if text is None else text
        if through.startswith(before):
            answer = through[len(before) :]
        else:
            answer = self._after_prefill(before, through, chat.messages[turn], turn)
        end = self._template.last_special(answer)
        return before, answer if end is None or answer[end:].strip() else answer[:end]

    def _after_prefill(self, before: str, through: str, message: Message, turn: int) -> str:
        """What the model writes after a generation prompt that opens the answer's reasoning, or closes it too."""
        head = before.removesuffix(self._prefill)
        if not self._prefill or head == before or not through.startswith(head):
            raise DataError(
                f"the chat template writes turn {turn + 1} differently after its own generation prompt",
                fix="Use a template whose prompt is a prefix of the whole conversation, or name a cookbook renderer",
            )
        said = through[len(head) :]
        if not self._opens_reasoning:
            if _reasoning_in(message) is None:
                return said
            raise DataError(
                f"the generation prompt closes the reasoning before the answer, and turn {turn + 1} holds reasoning",
                fix="Remove it, or name a renderer that thinks",
            )
        if said.lstrip().startswith(THINK):
            return said.lstrip().removeprefix(THINK).lstrip("\n")
        reasoning = _reasoning_in(message)
        if reasoning is None:
            raise DataError(
                f"the generation prompt opens {THINK}, and turn {turn + 1} has no reasoning to go on with",
                fix=f"Begin the answer with {THINK}...{END_THINK}, or name a renderer that does not think",
            )
        return f"{reasoning}\n{END_THINK}" + (said if said[:1].isspace() else f"\n\n{said}")

    def _losses(self, chat: Conversation, seen: str, kept: Sequence[int]) -> Iterator[RenderingNote]:
        """What the text ``seen`` lacks or changes. Answers that are not ``kept`` are known to be rewritten."""
        if not all(_written(self._writes_tools, tool, seen) for tool in chat.tools):
            yield "tools_dropped"
        for i, message in enumerate(chat.messages):
            if message["role"] != "assistant":
                if SPLIT in message["content"]:
                    yield "control_text"
                if message["content"].strip() not in seen:
                    yield "rewritten_text"
                continue
            self._require_calls(message, seen)
            if has_control(self._template.special, message["content"]):
                yield "control_in_answer"
            if i in kept:
                yield from _answer_losses(message, seen)

    def _require_calls(self, message: Message, seen: str) -> None:
        for call in message.get("tool_calls", ()):
            if not _written(self._writes_calls, call, seen):
                raise DataError(
                    f"the chat template does not write tool calls: '{call['function']['name']}' would be lost",
                    fix="Use a model whose template has tools, name a renderer, or write the call as the answer's text",
                )

    def _find_stop(self) -> list[int]:
        probe = Conversation(_turns("a", _PROBE))
        text = self._text(probe)
        before = self._text(probe, 1, add_generation_prompt=True)
        if not self._prefill and not text.startswith(before):
            raise ModelError(
                "the chat template writes an answer differently after its own generation prompt",
                where="chat template",
                fix="Use a template whose prompt is a prefix of the whole conversation, or name a cookbook renderer",
            )
        ending = text.rpartition(_PROBE)[2]
        end = self._template.last_special(ending)
        ended = end is not None and not ending[end:].strip()
        ids: list[int] = self._template.tokenizer.encode(ending[:end], add_special_tokens=False).ids if ended else []
        stops = [*ids[-1:], *([] if self._template.eos_id is None else [self._template.eos_id])]
        if not stops:
            raise ModelError(
                "nothing ends an answer: the template writes no special token after it and there is no eos_token",
                where="chat template",
                fix="Set eos_token in tokenizer_config.json",
            )
        return list(dict.fromkeys(stops))


def _turns(*said: str) -> list[Message]:
    return [Message(role=role, content=text) for role, text in zip(("user", "assistant"), said, strict=False)]


def _written(known: bool | None, entry: ToolCall, seen: str) -> bool:
    """Whether a tool or a call is in the text: as the template was found to do, else by its name."""
    return entry["function"]["name"] in seen if known is None else known


def _parts(piece: _Piece) -> list[_Piece]:
    """A piece cut where a control token's spelling is split."""
    if SPLIT not in piece.text:
        return [piece]
    return [_Piece(text, piece.trained) for text in piece.text.split(SPLIT)]


def _reasoning_in(message: Message) -> str | None:
    """A turn's reasoning, of its own key or at the head of its text."""
    if reasoning := message.get("reasoning_content"):
        return reasoning.strip("\n")
    text = message["content"].lstrip()
    thought, closed, _ = text.removeprefix(THINK).partition(END_THINK)
    return thought.strip("\n") if closed and text.startswith(THINK) else None


def _answer_losses(message: Message, seen: str) -> Iterator[RenderingNote]:
    if message.get("reasoning_content", "").strip() not in seen:
        yield "reasoning_dropped"
    if message["content"].strip() in seen:
        return
    if deleted_reasoning(message, seen):
        yield "think_deleted"
    elif (_reasoning_in(message) or message["content"]).strip() not in seen:
        yield "rewritten_text"
