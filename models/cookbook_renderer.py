"""The cookbook's renderers behind our interface, for hosted models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..core.errors import DataError, ModelError
from ..core.extras import not_installed
from .chat import ChatRenderer, Message, Rendered
from .hub import cache_if_offline
from .model_ref import ModelRef


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

    @property
    def special_tokens(self) -> Sequence[int]:
        """Ids of the tokenizer's special tokens."""
        return list(self._tokenizer.all_special_ids)

    def render_many(self, conversations: Sequence[Sequence[Message]]) -> list[Rendered]:
        """Render many conversations, one at a time: the cookbook has no batch form."""
        return [self._render(conversation) for conversation in conversations]

    def _render(self, messages: Sequence[Message]) -> Rendered:
        from tinker_cookbook.exceptions import RendererError
        from tinker_cookbook.renderers import TrainOnWhat

        every_turn = bool(self._renderer.has_extension_property)
        what = TrainOnWhat.ALL_ASSISTANT_MESSAGES if every_turn else TrainOnWhat.LAST_ASSISTANT_MESSAGE
        try:
            model_input, weights = self._renderer.build_supervised_example(list(messages), train_on_what=what)
        except (RendererError, AssertionError, ValueError) as error:
            raise DataError(f"the renderer '{self.name}' refuses it: {error}") from error
        answers = sum(message["role"] == "assistant" for message in messages)
        return Rendered(model_input.to_ints(), [int(w > 0) for w in weights.tolist()], not every_turn and answers > 1)

    def generation_prompt(self, messages: Sequence[Message]) -> list[int]:
        """The prompt's tokens."""
        return self._renderer.build_generation_prompt(list(messages)).to_ints()

    def tool_prompt(self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]]) -> list[int]:
        """The tokens after which the model answers, with ``tools`` declared as its family declares them.

        Args:
            messages: The cookbook's own, tool calls and their results among them.
            tools: Each with ``name``, ``description`` and ``parameters`` (a JSON schema); may be empty.

        Raises:
            ModelError: If this renderer has no form for tools.
        """
        conversation = list(messages)
        if tools:
            system = str(conversation.pop(0)["content"]) if messages and messages[0]["role"] == "system" else ""
            try:
                prefix = self._renderer.create_conversation_prefix_with_tools(list(tools), system)
            except NotImplementedError as error:
                raise ModelError(
                    f"the renderer '{self.name}' has no form for tools", where="renderer", fix="Use another model"
                ) from error
            conversation = [*prefix, *conversation]
        return self._renderer.build_generation_prompt(conversation).to_ints()

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
