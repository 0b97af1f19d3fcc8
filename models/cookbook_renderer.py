"""The cookbook's renderers behind our interface, for hosted models."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, cast

from ..core.errors import DataError, ModelError
from ..core.extras import not_installed
from .chat import (
    Chat,
    ChatRenderer,
    Conversation,
    Message,
    Rendered,
    RenderingNote,
    Tool,
    ToolCall,
    as_conversation,
    control_pattern,
    is_trained,
)
from .hub import cache_if_offline
from .model_ref import ModelRef
from .template_renderer import END_THINK, deleted_reasoning, has_control

# The longest text that ends an answer, in tokens, with room to spare.
_STOP_TOKENS = 16


def recommended_renderer(model_name: str) -> str | None:
    """The cookbook's renderer for a model id, or None if it does not know the model."""
    try:
        from tinker_cookbook import model_info
        from tinker_cookbook.exceptions import ConfigurationError
    except ImportError:
        return None
    try:
        return model_info.get_recommended_renderer_name(model_name)
    except (ConfigurationError, KeyError, ValueError):
        return None


def load_cookbook_renderer(model: ModelRef, name: str) -> CookbookRenderer:
    """The named renderer with the model's tokenizer.

    Raises:
        ModelError: If the cookbook has no such renderer, or the tokenizer cannot be had.
        MissingDependencyError: If the cookbook is not installed.
    """
    try:
        from tinker_cookbook import renderers, tokenizer_utils
        from tinker_cookbook.exceptions import RendererError
    except ImportError as error:
        raise not_installed(["tinker-cookbook"], by=f"the renderer '{name}'") from error
    try:
        with cache_if_offline():
            tokenizer: Any = tokenizer_utils.get_tokenizer(model.wire_name)
    except (OSError, ValueError, ModuleNotFoundError) as error:
        raise ModelError(
            "its tokenizer is not on this machine and the Hugging Face hub is out of reach",
            where=model.name,
            fix="Go online once so that it is cached, or give dataset_tokens (validate_capacity) or a model folder",
        ) from error
    try:
        renderer = renderers.get_renderer(name, tokenizer, model_name=model.name)
    except RendererError as error:
        raise ModelError(f"the cookbook has no renderer '{name}'", where="renderer", fix=str(error)) from error
    try:
        return CookbookRenderer(name, renderer, tokenizer)
    except (ValueError, AssertionError) as error:
        raise ModelError(
            f"the renderer '{name}' ends a turn with a token that the tokenizer of {model.name} does not have",
            where="renderer",
            fix="Name the renderer of this model's family (list_models shows it), or leave it out",
        ) from error


class CookbookRenderer(ChatRenderer):
    """A cookbook renderer as a `ChatRenderer`."""

    def __init__(self, name: str, renderer: Any, tokenizer: Any) -> None:
        self.name = name
        self._renderer = renderer
        self._tokenizer = tokenizer
        self.vocabulary = len(tokenizer)
        self.stop = renderer.get_stop_sequences()
        self._control = control_pattern(map(str, tokenizer.all_special_tokens))

    @property
    def special_tokens(self) -> Sequence[int]:
        """Ids of the tokenizer's special tokens."""
        return list(self._tokenizer.all_special_ids)

    def render_many(self, conversations: Sequence[Chat]) -> list[Rendered]:
        """Render many conversations, one at a time: the cookbook has no batch form."""
        return [self._render(as_conversation(conversation)) for conversation in conversations]

    def _render(self, chat: Conversation) -> Rendered:
        from tinker_cookbook.exceptions import RendererError

        messages = chat.messages
        every_turn = bool(self._renderer.has_extension_property)
        if not every_turn and not is_trained(messages[-1]):
            raise DataError(
                f"with the renderer '{self.name}' only the last answer can be trained, and its weight is 0",
                fix="End the conversation with the answer to learn",
            )
        try:
            converted, what = self._for_training(chat, every_turn)
            model_input, weights = self._renderer.build_supervised_example(converted, train_on_what=what)
        except (RendererError, ModelError, AssertionError, ValueError) as error:
            raise DataError(f"the renderer '{self.name}' refuses it: {error}") from error
        tokens, mask = model_input.to_ints(), [int(w > 0) for w in weights.tolist()]
        notes = set(self._losses(chat, tokens))
        if not every_turn and sum(map(is_trained, messages)) > 1:
            notes.add("last_turn_only")
        if not self._is_ended(tokens, mask):
            notes.add("no_end_token")
        return Rendered(tokens, mask, frozenset(notes))

    def _for_training(self, chat: Conversation, every_turn: bool) -> tuple[list[dict[str, Any]], Any]:
        """The cookbook's messages, and which of them it is to train."""
        from tinker_cookbook.renderers import TrainOnWhat

        converted = [_cookbook_message(message) for message in chat.messages]
        trained: list[bool] = [is_trained(message) for message in chat.messages]
        added = 0
        if chat.tools:
            whole = self._with_tools(converted, chat.tools)
            added, converted = len(whole) - len(converted), whole
        if not every_turn:
            return converted, TrainOnWhat.LAST_ASSISTANT_MESSAGE
        if all(is_trained(m) for m in chat.messages if m["role"] == "assistant"):
            return converted, TrainOnWhat.ALL_ASSISTANT_MESSAGES
        flags = [*[False] * added, *trained]
        return [{**m, "trainable": f} for m, f in zip(converted, flags, strict=True)], TrainOnWhat.CUSTOMIZED

    def _losses(self, chat: Conversation, tokens: Sequence[int]) -> Iterator[RenderingNote]:
        """What became of parts that a renderer may leave out, and of control tokens that somebody spelled."""
        for message in chat.messages:
            if has_control(self._control, message["content"]):
                yield "control_in_answer" if message["role"] == "assistant" else "control_tokens"
        if not any(len(message) > 2 or END_THINK in message["content"] for message in chat.messages):
            return
        seen = self.text_of(tokens)
        for message in chat.messages:
            for call in message.get("tool_calls", ()):
                if call["function"]["name"] not in seen:
                    raise DataError(
                        f"the renderer '{self.name}' does not write tool calls: '{call['function']['name']}' is lost",
                        fix="Use a model whose renderer has tools",
                    )
        # Renderers leave out the reasoning of earlier answers on purpose: these are not trained.
        last = chat.messages[-1]
        if last.get("reasoning_content", "").strip() not in seen:
            yield "reasoning_dropped"
        if deleted_reasoning(last, seen):
            yield "think_deleted"

    def _is_ended(self, tokens: Sequence[int], mask: Sequence[int]) -> bool:
        """Whether the last trained token, or the last trained words, are what ends an answer."""
        end = max((i + 1 for i, trained in enumerate(mask) if trained), default=0)
        if any(isinstance(stop, int) for stop in self.stop):
            return end > 0 and tokens[end - 1] in self.stop
        tail = self.text_of(tokens[max(0, end - _STOP_TOKENS) : end])
        return any(tail.endswith(str(stop)) for stop in self.stop)

    def generation_prompt(self, messages: Chat) -> list[int]:
        """The prompt's tokens."""
        chat = as_conversation(messages)
        converted = [_cookbook_message(message) for message in chat.messages]
        if chat.tools:
            converted = self._with_tools(converted, chat.tools)
        return self._renderer.build_generation_prompt(converted).to_ints()

    def tool_prompt(self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]]) -> list[int]:
        """The tokens after which the model answers, with ``tools`` declared as its family declares them.

        Args:
            messages: The cookbook's own, tool calls and their results among them.
            tools: Each with ``name``, ``description`` and ``parameters`` (a JSON schema); may be empty.

        Raises:
            ModelError: If this renderer has no form for tools.
        """
        conversation = self._with_tools(messages, tools) if tools else list(messages)
        return self._renderer.build_generation_prompt(conversation).to_ints()

    def _with_tools(self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Tool]) -> list[dict[str, Any]]:
        """The cookbook's messages with the tools declared before them; a system turn becomes part of that."""
        conversation = [dict(message) for message in messages]
        system = str(conversation.pop(0)["content"]) if messages and messages[0]["role"] == "system" else ""
        absent: dict[str, Any] = {"description": "", "parameters": {}}
        specs = [{**absent, **tool.get("function", tool)} for tool in tools]
        try:
            prefix = self._renderer.create_conversation_prefix_with_tools(specs, system)
        except NotImplementedError as error:  # how the cookbook says so of a family without tools
            raise ModelError(
                f"the renderer '{self.name}' has no form for tools", where="renderer", fix="Use another model"
            ) from error
        return [*prefix, *conversation]

    def read_turn(self, text: str) -> Mapping[str, Any]:
        """The cookbook's message in a sampled turn: content, tool calls, and calls that could not be read.

        Args:
            text: The whole turn as sampled (`text_of`), with the token that ended it: some families mark a call there.
        """
        message, _ = self._renderer.parse_response(self._tokenizer.encode(text, add_special_tokens=False))
        return message

    def text_of(self, tokens: Sequence[int]) -> str:
        """The text of any tokens."""
        return self._tokenizer.decode([int(t) for t in tokens])


def _cookbook_message(message: Message) -> dict[str, Any]:
    """A turn in the cookbook's form: reasoning as a part of the content, calls as its own class."""
    fields: dict[str, Any] = {k: v for k, v in message.items() if k not in {"trained", "reasoning_content"}}
    reasoning = message.get("reasoning_content")
    if reasoning:
        text = [{"type": "text", "text": message["content"]}] if message["content"] else []
        fields["content"] = [{"type": "thinking", "thinking": reasoning}, *text]
    if "tool_calls" in message:
        fields["tool_calls"] = [_cookbook_call(call) for call in message["tool_calls"]]
    return fields


def _cookbook_call(call: ToolCall) -> Any:
    from tinker_cookbook.renderers import ToolCall as CookbookCall

    function = cast("Mapping[str, Any]", call["function"])
    arguments = function.get("arguments", {})
    text = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
    body = CookbookCall.FunctionBody(name=function["name"], arguments=text)
    return CookbookCall(id=call.get("id"), function=body)
