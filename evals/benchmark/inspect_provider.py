"""A model on a Tinker backend as a model of Inspect.

Answers are kept by the hash of what they depend on, including how often the question was asked before, so that a
resumed benchmark samples nothing twice and epochs still differ.
"""
# pyright: basic
# reason: Inspect's message types are wide unions

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import tinker
from inspect_ai.model import (
    ChatCompletionChoice,
    ChatMessage,
    ChatMessageAssistant,
    GenerateConfig,
    ModelAPI,
    ModelOutput,
    ModelUsage,
    modelapi,
)
from inspect_ai.tool import ToolChoice, ToolInfo

from ...backends.connection import backend_errors
from ...backends.sampling_client import Sampler, open_sampler
from ...core.errors import ConfigError
from ...judges.prompt import EvalItem
from ...models.chat import Message
from ...models.cookbook_renderer import CookbookRenderer
from ..responses import ArmSampling, OpenedModel, Response, ResponseCache
from .tool_calling import as_answer, for_renderer, has_calls, offered


class StoppedError(Exception):
    """The job was asked to stop: no further answer is sampled."""


@modelapi(name="ml-researcher")
class TinkerModelAPI(ModelAPI):
    """Samples with the renderer of the model's training."""

    def __init__(
        self,
        opened: OpenedModel,
        *,
        should_stop: Callable[[], bool],
        on_answer: Callable[[], None],
    ) -> None:
        """Prepare to sample a model.

        Args:
            opened: The model; a task's own limits and temperature win over its.
            should_stop: Asked before each answer.
            on_answer: Told of each answer.
        """
        super().__init__(model_name=opened.sampling.model, config=GenerateConfig())
        self._backend = opened.backend
        self._renderer = opened.renderer
        self._sampling = opened.sampling
        self._should_stop = should_stop
        self._on_answer = on_answer
        self._cache = ResponseCache()
        self._asked: Counter[str] = Counter()
        self._opened: Sampler | None = None

    async def generate(
        self, input: list[ChatMessage], tools: list[ToolInfo], tool_choice: ToolChoice, config: GenerateConfig
    ) -> ModelOutput:
        """Answer a conversation once.

        Raises:
            ConfigError: If the task wants tools, and the renderer is a chat template.
            BackendError: If the backend refuses.
        """
        if self._should_stop():
            raise StoppedError
        declared = offered(tools, tool_choice)
        if declared or has_calls(input):
            message, response = await self._with_tools(input, declared, config)
        else:
            messages = tuple(Message(role=m.role, content=m.text) for m in input)
            prompt = self._renderer.generation_prompt(messages)
            response = await self._answer(messages, prompt, self._renderer.decode, config)
            message = ChatMessageAssistant(content=response.text, model=self.model_name, source="generate")
        self._on_answer()
        ended = "max_tokens" if response.stop_reason == "length" else "tool_calls" if message.tool_calls else "stop"
        usage = ModelUsage(output_tokens=response.tokens or 0, total_tokens=response.tokens or 0)
        choice = ChatCompletionChoice(message=message, stop_reason=ended)
        return ModelOutput(model=self.model_name, choices=[choice], usage=usage)

    def max_connections(self) -> int:
        """How many answers Inspect may ask for at once."""
        return 64

    async def _with_tools(
        self, input: list[ChatMessage], declared: list[dict[str, Any]], config: GenerateConfig
    ) -> tuple[ChatMessageAssistant, Response]:
        renderer = self._renderer
        if not isinstance(renderer, CookbookRenderer):
            raise ConfigError(
                "this task gives the model tools, and a chat template does not say how the model's calls are read",
                where="renderer",
                fix="Name the cookbook's renderer of this model's family, such as qwen3 or kimi_k2",
            )
        messages = [for_renderer(message) for message in input]
        prompt = renderer.tool_prompt(messages, declared)
        # What the prompt shows decides the answer: it stands for the conversation, calls and tools included.
        asked = (Message(role="user", content=json.dumps(["tools", renderer.text_of(prompt)])),)
        response = await self._answer(asked, prompt, renderer.text_of, config)
        turn = renderer.read_turn(response.text)
        return as_answer(turn, model=self.model_name, turns_before=len(input)), response

    async def _answer(
        self,
        messages: tuple[Message, ...],
        prompt: list[int],
        read: Callable[[list[int]], str],
        config: GenerateConfig,
    ) -> Response:
        """The answer to ``messages``, whose tokens are ``prompt``; ``read`` makes text of what was sampled."""
        item = EvalItem("", messages, None, None, None, 0)
        base = self._sampling
        times = self._asked[item.prompt_key]
        self._asked[item.prompt_key] += 1
        chosen = replace(
            base,
            max_tokens=config.max_tokens or base.max_tokens,
            temperature=base.temperature if config.temperature is None else config.temperature,
            seed=base.seed + times,
        )
        key = chosen.key(item)
        response = self._cache.get(key)
        if response is None:
            response = await self._sample(prompt, read, chosen)
            self._cache.put(key, response)
        return response

    async def _sample(self, prompt: list[int], read: Callable[[list[int]], str], chosen: ArmSampling) -> Response:
        with backend_errors(self._backend):
            sampler = await self._sampler()
            params = tinker.SamplingParams(
                max_tokens=chosen.max_tokens,
                temperature=chosen.temperature,
                top_p=1.0,
                seed=chosen.seed,
                stop=self._renderer.stop,
            )
            (sequence,) = await sampler.sample(tinker.ModelInput.from_ints(prompt), 1, params)
        return Response(read(sequence.tokens), str(sequence.stop_reason), len(sequence.tokens))

    async def _sampler(self) -> Sampler:
        if self._opened is None:
            self._opened = await open_sampler(self._backend, self._sampling.model)
        return self._opened
