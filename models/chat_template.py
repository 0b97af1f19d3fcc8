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
from .chat import Tool, control_pattern

# tokenizers ships no types.
AnyTokenizer = Any


@dataclass(frozen=True, slots=True)
class ChatTemplate:
    """How one model writes a conversation.

    Attributes:
        tokenizer: The fast tokenizer.
        compiled: The jinja2 template.
        variables: What the template may refer to: ``bos_token`` and the like, and what every template has.
        special: Matches the text of any control token: one that is marked special, or that the settings name.
        eos_id: The id of ``eos_token``, if there is one.
        ends: Ids at which other programs stop: ``eos_token`` and those of ``generation_config.json``; empty where that
            file is not there.
    """

    tokenizer: AnyTokenizer
    compiled: Any
    variables: Mapping[str, Any]
    special: re.Pattern[str]
    eos_id: int | None
    ends: frozenset[int] = frozenset()

    def render(
        self, messages: Sequence[Mapping[str, Any]], *, tools: Sequence[Tool] = (), add_generation_prompt: bool = False
    ) -> str:
        """The text of a conversation.

        Args:
            messages: Turns with the keys that the template reads.
            tools: What it declares to the model.
            add_generation_prompt: End it where the model is to answer.

        Raises:
            DataError: If the template refuses it (some accept no system turn, for example).
        """
        from jinja2 import TemplateError

        try:
            given = {"messages": messages, "tools": list(tools) or None, "add_generation_prompt": add_generation_prompt}
            # What `Template.render` does, without merging the variables anew for each conversation.
            context = self.compiled.new_context({**self.variables, **given}, shared=True)
            return "".join(self.compiled.root_render_func(context))
        except TemplateError as error:
            reason = error.message or "it does not say why"
            raise DataError(f"the model's chat template refuses it: {reason}") from error
        except (TypeError, ValueError, AttributeError, LookupError, ArithmeticError, RecursionError) as error:
            raise DataError(
                f"the model's chat template cannot write it ({error})", fix="It expects turns of another shape"
            ) from error

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
    special = _special_pattern(tokenizer, variables.values())
    return ChatTemplate(tokenizer, compiled, {**compiled.globals, **variables}, special, eos_id, _ends(folder, eos_id))


def _ends(folder: Path, eos_id: int | None) -> frozenset[int]:
    declared = _json(folder / "generation_config.json").get("eos_token_id")
    several = cast("list[object]", declared if isinstance(declared, list) else [declared])
    ids = {each for each in several if isinstance(each, int)}
    own = set[int]() if eos_id is None else {eos_id}
    return frozenset(ids | own) if ids else frozenset()


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


def _special_pattern(tokenizer: AnyTokenizer, named: Iterable[str]) -> re.Pattern[str]:
    added = cast("dict[int, Any]", tokenizer.get_added_tokens_decoder())
    # A token that the settings name is a control token even where nobody marked it so.
    return control_pattern(t.content for t in added.values() if t.special or t.content in set(named))


def _to_json(value: Any, ensure_ascii: bool = False, indent: int | None = None, **_: Any) -> str:
    """Chat templates expect plain JSON; jinja2's own filter escapes it for HTML."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent)


def _refuse(message: str) -> None:
    from jinja2 import TemplateError

    raise TemplateError(message)


def _strftime_now(form: str) -> str:
    return datetime.now().astimezone().strftime(form)
