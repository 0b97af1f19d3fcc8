"""From chat messages to tokens with a loss mask, and back: one renderer for checking, training and sampling.

What is trained must be what sampling will produce: the tokens of a prompt are made by the same code, cut at the same
places, whether an answer follows (training) or is awaited (sampling). A model's own chat template is rendered with
jinja2 and its ``tokenizer.json`` with ``tokenizers``: neither needs torch, so the server can count tokens.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from sota_ml_researcher.core.errors import DataError, ModelError
from sota_ml_researcher.training.chat_template import ChatTemplate, load_chat_template
from sota_ml_researcher.training.formats import Message
from sota_ml_researcher.training.models import ModelRef, resolve_model

TEMPLATE_RENDERER = "chat_template"
_BATCH = 256


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
    """Renders one model's conversations."""

    @property
    def name(self) -> str:
        """``chat_template``, or the cookbook's name for it."""
        ...

    @property
    def stop(self) -> list[int] | list[str]:
        """What ends an answer: token ids, or strings."""
        ...

    @property
    def vocabulary(self) -> int:
        """Number of token ids the tokenizer knows."""
        ...

    def render_many(self, conversations: Sequence[Sequence[Message]]) -> list[Rendered]:
        """Render many conversations (much faster than one by one).

        Raises:
            DataError: If the template refuses a conversation.
        """
        ...

    def generation_prompt(self, messages: Sequence[Message]) -> list[int]:
        """The tokens after which the model answers ``messages``."""
        ...

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of an answer, without the token that ended it."""
        ...

    def text_of(self, tokens: Sequence[int]) -> str:
        """The text of any tokens, special ones included."""
        ...


def load_renderer(base_model: str, renderer_name: str | None = None) -> ChatRenderer:
    """The renderer for a model: the one named, else its own chat template, else the cookbook's for that id.

    Raises:
        ModelError: If there is no tokenizer or no way to render chats; the message says how to get one.
    """
    model = resolve_model(base_model)
    if renderer_name in (None, TEMPLATE_RENDERER) and model.path is not None:
        return TemplateRenderer(load_chat_template(model.path))
    if renderer_name == TEMPLATE_RENDERER:
        return TemplateRenderer(load_chat_template(_cached_folder(model)))
    return _cookbook(model, renderer_name)


def _cached_folder(model: ModelRef) -> Any:
    from sota_ml_researcher.training.hub import tokenizer_folder

    return tokenizer_folder(model.name)


def _cookbook(model: ModelRef, name: str | None) -> ChatRenderer:
    from sota_ml_researcher.training.cookbook_renderer import load_cookbook_renderer, recommended_renderer

    chosen = name or recommended_renderer(model.name)
    if chosen is None:
        return TemplateRenderer(load_chat_template(_cached_folder(model)))
    return load_cookbook_renderer(model, chosen)


@dataclass(frozen=True, slots=True)
class _Piece:
    text: str
    trained: bool


class TemplateRenderer:
    """Renders with a model's own chat template."""

    def __init__(self, template: ChatTemplate) -> None:
        self._template = template
        self._stop = self._find_stop()

    name = TEMPLATE_RENDERER

    @property
    def stop(self) -> list[int] | list[str]:
        """The ids that end a turn."""
        return list(self._stop)

    @property
    def vocabulary(self) -> int:
        """Number of token ids, added ones included."""
        return self._template.tokenizer.get_vocab_size(with_added_tokens=True)

    def render_many(self, conversations: Sequence[Sequence[Message]]) -> list[Rendered]:
        """Render many conversations; the tokenizer works on all their pieces at once."""
        split = [self._pieces(conversation) for conversation in conversations]
        encodings = iter(self._encode([piece.text for pieces, _ in split for piece in pieces]))
        rendered: list[Rendered] = []
        for pieces, last_only in split:
            tokens: list[int] = []
            weights: list[int] = []
            for piece in pieces:
                ids = next(encodings)
                tokens += ids
                weights += [int(piece.trained)] * len(ids)
            rendered.append(Rendered(tokens, weights, last_only))
        return rendered

    def generation_prompt(self, messages: Sequence[Message]) -> list[int]:
        """The prompt's tokens, cut where training cuts them."""
        pieces, _ = self._pieces([*messages, Message(role="assistant", content="x")])
        last = max(i for i, piece in enumerate(pieces) if piece.trained)
        return [token for ids in self._encode([p.text for p in pieces[:last]]) for token in ids]

    def decode(self, tokens: Sequence[int]) -> str:
        """The answer's text."""
        kept = list(tokens)
        while kept and kept[-1] in self._stop:
            kept.pop()
        return self.text_of(kept)

    def text_of(self, tokens: Sequence[int]) -> str:
        """The text of any tokens."""
        return self._template.tokenizer.decode([int(t) for t in tokens], skip_special_tokens=False)

    def _encode(self, texts: list[str]) -> Iterable[list[int]]:
        for encoding in self._template.tokenizer.encode_batch_fast(texts, add_special_tokens=False):
            yield encoding.ids

    def _pieces(self, messages: Sequence[Message]) -> tuple[list[_Piece], bool]:
        """The conversation's text, cut into what is given and what is answered."""
        whole = self._template.render(messages)
        turns = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
        spans = [self._span(messages, i, whole) for i in turns]
        last_only = any(not whole.startswith(before + answer) for before, answer in spans)
        if last_only:
            before, answer = spans[-1]
            return [_Piece(before, False), _Piece(answer, True)], len(turns) > 1
        pieces: list[_Piece] = []
        position = 0
        for before, answer in spans:
            pieces += [_Piece(before[position:], False), _Piece(answer, True)]
            position = len(before) + len(answer)
        return pieces, False

    def _span(self, messages: Sequence[Message], turn: int, whole: str) -> tuple[str, str]:
        """The text before an assistant turn, and the turn up to and including the token that ends it."""
        before = self._template.render(messages[:turn], add_generation_prompt=True)
        through = whole if turn == len(messages) - 1 else self._template.render(messages[: turn + 1])
        if not through.startswith(before):
            raise DataError(
                f"the chat template writes turn {turn + 1} differently after its own generation prompt",
                fix="Use a template whose prompt is a prefix of the whole conversation, or name a cookbook renderer",
            )
        answer = through[len(before) :]
        end = self._template.last_special(answer)
        return before, answer if end is None or answer[end:].strip() else answer[:end]

    def _find_stop(self) -> list[int]:
        probe = [Message(role="user", content="a"), Message(role="assistant", content="b")]
        try:
            _, answer = self._span(probe, 1, self._template.render(probe))
        except DataError as error:
            raise ModelError(error.problem, where="chat template", fix=error.fix) from error
        ids: list[int] = self._template.tokenizer.encode(answer, add_special_tokens=False).ids
        ended = self._template.last_special(answer) == len(answer)
        found = ([ids[-1]] if ended and ids else []) + ([] if (e := self._template.eos_id) is None else [e])
        if not found:
            raise ModelError(
                "nothing ends an answer: the template writes no special token after it and there is no eos_token",
                where="chat template",
                fix="Set eos_token in tokenizer_config.json",
            )
        return list(dict.fromkeys(found))


def render(renderer: ChatRenderer, messages: Sequence[Message]) -> Rendered:
    """Render one conversation."""
    return renderer.render_many([messages])[0]


def mask_view(renderer: ChatRenderer, rendered: Rendered) -> str:
    """The text of a conversation with what is trained between ⟦ and ⟧."""
    shown: list[str] = []
    start = 0
    weights = list(rendered.weights)
    for end in range(1, len(weights) + 1):
        if end == len(weights) or weights[end] != weights[start]:
            text = renderer.text_of(rendered.tokens[start:end])
            shown.append(f"⟦{text}⟧" if weights[start] else text)
            start = end
    return "".join(shown)
