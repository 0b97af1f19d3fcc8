"""A model folder's tokenizer and chat template, rendered with jinja2 and ``tokenizers``: neither needs torch."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, cast

from ..core.errors import DataError, ModelError
from ..core.extras import not_installed
from .chat import ChatRenderer, Message, Rendered

# tokenizers ships no types.
AnyTokenizer = Any


@dataclass(frozen=True, slots=True)
class ChatTemplate:
    """How one model writes a conversation.

    Attributes:
        tokenizer: The fast tokenizer.
        compiled: The jinja2 template.
        variables: What the template may refer to (``bos_token`` and the like).
        special: Matches any special token's text.
        eos_id: The id of ``eos_token``, if there is one.
    """

    tokenizer: AnyTokenizer
    compiled: Any
    variables: Mapping[str, str]
    special: re.Pattern[str]
    eos_id: int | None

    def render(self, messages: Sequence[Message], *, add_generation_prompt: bool = False) -> str:
        """The text of a conversation.

        Raises:
            DataError: If the template refuses it (some accept no system turn, for example).
        """
        from jinja2 import TemplateError

        try:
            return self.compiled.render(
                messages=messages, add_generation_prompt=add_generation_prompt, tools=None, **self.variables
            )
        except (TemplateError, TypeError) as error:
            raise DataError(f"the model's chat template refuses it: {error}") from error

    def last_special(self, text: str) -> int | None:
        """Where the last special token in ``text`` ends, or None."""
        return max((match.end() for match in self.special.finditer(text)), default=None)


def load_chat_template(folder: Path) -> ChatTemplate:
    """Read ``tokenizer.json`` and the chat template of a model folder.

    Raises:
        ModelError: If either is missing or broken; the message says how to get it.
        MissingDependencyError: If ``tokenizers`` or ``jinja2`` is not installed.
    """
    try:
        import jinja2.ext
        import jinja2.sandbox
        from tokenizers import Tokenizer
    except ImportError as error:
        raise not_installed(["tokenizers", "jinja2"], by="counting tokens") from error
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise ModelError(
            "this model folder has no tokenizer.json",
            where=str(folder),
            fix="Save its tokenizer there: AutoTokenizer.from_pretrained(...).save_pretrained(folder)",
        )
    try:
        tokenizer: AnyTokenizer = cast("Any", Tokenizer).from_file(str(path))
    except Exception as error:  # tokenizers raises bare Exception for every broken file
        raise ModelError(f"the tokenizer cannot be read: {error}", where=str(path)) from error
    settings = _json(folder / "tokenizer_config.json")
    environment: Any = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[jinja2.ext.loopcontrols, _generation_tag()]
    )
    environment.filters["tojson"] = _to_json
    environment.globals.update(raise_exception=_refuse, strftime_now=_strftime_now)
    try:
        compiled = environment.from_string(_template_text(folder, settings))
    except jinja2.TemplateSyntaxError as error:
        raise ModelError(
            f"the chat template is broken at its line {error.lineno}: {error}", where=str(folder)
        ) from error
    variables = _special_variables(settings)
    eos = variables.get("eos_token")
    eos_id: int | None = None if eos is None else tokenizer.token_to_id(eos)
    return ChatTemplate(tokenizer, compiled, variables, _special_pattern(tokenizer), eos_id)


def _generation_tag() -> type[Any]:
    """``{% generation %}`` marks what the model writes; it has no effect here."""
    from jinja2 import nodes
    from jinja2.ext import Extension
    from jinja2.parser import Parser

    class GenerationTag(Extension):
        tags = {"generation"}  # noqa: RUF012 - jinja2's own interface

        def parse(self, parser: Parser) -> list[nodes.Node]:
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    return GenerationTag


def _template_text(folder: Path, settings: Mapping[str, Any]) -> str:
    """The template: its own file in newer folders, a setting of the tokenizer in older ones."""
    own = folder / "chat_template.jinja"
    if own.is_file():
        return own.read_text(encoding="utf-8")
    template = _json(folder / "chat_template.json").get("chat_template") or settings.get("chat_template")
    if isinstance(template, list):  # several, with names
        named = {t["name"]: t["template"] for t in cast("list[dict[str, str]]", template)}
        template = named.get("default")
    if not isinstance(template, str) or not template:
        raise ModelError(
            "this model has no chat template",
            where=str(folder),
            fix="Add chat_template.jinja to the folder, use an instruct model, or set renderer: role_colon",
        )
    return template


def _json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ModelError(f"not readable JSON: {error}", where=str(path)) from error


def _special_variables(settings: Mapping[str, Any]) -> dict[str, str]:
    values = {k: settings.get(k) for k in ("bos_token", "eos_token", "pad_token", "unk_token")}
    texts = {k: cast("dict[str, Any]", v).get("content") if isinstance(v, dict) else v for k, v in values.items()}
    return {k: v for k, v in texts.items() if isinstance(v, str)}


def _special_pattern(tokenizer: AnyTokenizer) -> re.Pattern[str]:
    added = cast("dict[int, Any]", tokenizer.get_added_tokens_decoder())
    texts = sorted((t.content for t in added.values() if t.special), key=len, reverse=True)
    return re.compile("|".join(map(re.escape, texts)) or "(?!)")


def _to_json(value: Any, ensure_ascii: bool = False, indent: int | None = None, **_: Any) -> str:
    """Chat templates expect plain JSON; jinja2's own filter escapes it for HTML."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent)


def _refuse(message: str) -> None:
    from jinja2 import TemplateError

    raise TemplateError(message)


def _strftime_now(form: str) -> str:
    return datetime.now().astimezone().strftime(form)


TEMPLATE_RENDERER = "chat_template"


@dataclass(frozen=True, slots=True)
class _Piece:
    text: str
    trained: bool


class TemplateRenderer(ChatRenderer):
    """Renders with a model's own chat template."""

    def __init__(self, template: ChatTemplate) -> None:
        self._template = template
        self.name = TEMPLATE_RENDERER
        self.stop = self._find_stop()
        self.vocabulary = template.tokenizer.get_vocab_size(with_added_tokens=True)

    @property
    def special_tokens(self) -> Sequence[int]:
        """Ids of the added tokens that are marked special."""
        added = self._template.tokenizer.get_added_tokens_decoder()
        return [token for token, how in added.items() if how.special]

    def render_many(self, conversations: Sequence[Sequence[Message]]) -> list[Rendered]:
        """Render many conversations; the tokenizer works on all their pieces at once."""
        split = [self._pieces(conversation) for conversation in conversations]
        encodings = iter(self._encode([piece.text for pieces, _ in split for piece in pieces]))
        rendered: list[Rendered] = []
        for pieces, last_only in split:
            tokens, weights = list[int](), list[int]()
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

    def text_of(self, tokens: Sequence[int]) -> str:
        """The text of any tokens."""
        return self._template.tokenizer.decode([int(t) for t in tokens], skip_special_tokens=False)

    def _encode(self, texts: list[str]) -> Iterable[list[int]]:
        for encoding in self._template.tokenizer.encode_batch_fast(texts, add_special_tokens=False):
            yield encoding.ids

    def _pieces(self, messages: Sequence[Message]) -> tuple[list[_Piece], bool]:
        """The conversation's text, cut into what the model reads and what it answers."""
        text = self._template.render(messages)
        turns = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
        spans = [self._span(messages, i, text) for i in turns]
        last_only = any(not text.startswith(before + answer) for before, answer in spans)
        if last_only:
            before, answer = spans[-1]
            return [_Piece(before, False), _Piece(answer, True)], len(turns) > 1
        pieces: list[_Piece] = []
        position = 0
        for before, answer in spans:
            pieces += [_Piece(before[position:], False), _Piece(answer, True)]
            position = len(before) + len(answer)
        return pieces, False

    def _span(self, messages: Sequence[Message], turn: int, text: str) -> tuple[str, str]:
        """The text before an assistant turn, and the turn up to and including the token that ends it."""
        before = self._template.render(messages[:turn], add_generation_prompt=True)
        through = text if turn == len(messages) - 1 else self._template.render(messages[: turn + 1])
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
        stops = [*(ids[-1:] if ended else []), *([] if self._template.eos_id is None else [self._template.eos_id])]
        if not stops:
            raise ModelError(
                "nothing ends an answer: the template writes no special token after it and there is no eos_token",
                where="chat template",
                fix="Set eos_token in tokenizer_config.json",
            )
        return list(dict.fromkeys(stops))
