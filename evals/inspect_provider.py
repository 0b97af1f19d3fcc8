"""A model on a Tinker backend as a model of Inspect. Heavy: imports inspect_ai and tinker.

Answers are kept by the hash of what they depend on, the how-manieth asking of one question included, so that a resumed
benchmark samples nothing twice and epochs still differ.
"""
# pyright: basic
# reason: Inspect's message types are wide unions of which only text is used here

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
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

from sota_ml_researcher.core.errors import ConfigError
from sota_ml_researcher.evals.responses import Response, ResponseCache, Sampling
from sota_ml_researcher.evals.test_set import EvalItem
from sota_ml_researcher.training.backend_errors import backend_errors
from sota_ml_researcher.training.backends import Backend
from sota_ml_researcher.training.formats import Message
from sota_ml_researcher.training.rendering import ChatRenderer


class StoppedError(Exception):
    """The job was asked to stop: no further answer is sampled."""


@modelapi(name="ml-researcher")
class TinkerModelAPI(ModelAPI):
    """Samples with the renderer of the model's training."""

    def __init__(
        self,
        backend: Backend,
        renderer: ChatRenderer,
        sampling: Sampling,
        *,
        should_stop: Callable[[], bool],
        on_answer: Callable[[], None],
    ) -> None:
        super().__init__(model_name=sampling.model, config=GenerateConfig())
        self._backend = backend
        self._renderer = renderer
        self._sampling = sampling
        self._should_stop = should_stop
        self._on_answer = on_answer
        self._cache = ResponseCache()
        self._asked: Counter[str] = Counter()
        self._service: tinker.ServiceClient | None = None
        self._client: tinker.SamplingClient | None = None

    async def generate(
        self, input: list[ChatMessage], tools: list[ToolInfo], tool_choice: ToolChoice, config: GenerateConfig
    ) -> ModelOutput:
        """Answer a conversation once.

        Raises:
            ConfigError: If the task wants tools, which a chat template here does not declare.
            BackendError: If the backend refuses.
        """
        if tools:
            raise ConfigError("this task gives the model tools, which are not supported here", where="task")
        if self._should_stop():
            raise StoppedError
        messages = tuple(Message(role=m.role, content=m.text) for m in input)
        response = await self._answer(messages, config)
        self._on_answer()
        choice = ChatCompletionChoice(
            message=ChatMessageAssistant(content=response.text, model=self.model_name, source="generate"),
            stop_reason="max_tokens" if response.stop_reason == "length" else "stop",
        )
        usage = ModelUsage(output_tokens=response.tokens or 0, total_tokens=response.tokens or 0)
        return ModelOutput(model=self.model_name, choices=[choice], usage=usage)

    def max_connections(self) -> int:
        """How many answers Inspect may ask for at once."""
        return 64

    async def _answer(self, messages: tuple[Message, ...], config: GenerateConfig) -> Response:
        item = EvalItem("", messages, None, None, None, 0)
        base = self._sampling
        times = self._asked[item.prompt_key]
        self._asked[item.prompt_key] += 1
        chosen = Sampling(
            model=base.model,
            backend=base.backend,
            base_url=base.base_url,
            renderer=base.renderer,
            fingerprint=base.fingerprint,
            max_tokens=config.max_tokens or base.max_tokens,
            temperature=base.temperature if config.temperature is None else config.temperature,
            seed=base.seed + times,
        )
        key = chosen.key(item)
        known = self._cache.get(key)
        if known is None:
            known = await self._sample(messages, chosen)
            self._cache.put(key, known)
        return known

    async def _sample(self, messages: tuple[Message, ...], chosen: Sampling) -> Response:
        with backend_errors(self._backend):
            client = await self._connected()
            params = tinker.SamplingParams(
                max_tokens=chosen.max_tokens,
                temperature=chosen.temperature,
                top_p=1.0,
                seed=chosen.seed,
                stop=self._renderer.stop,
            )
            prompt = tinker.ModelInput.from_ints(self._renderer.generation_prompt(messages))
            result: Any = await client.sample(prompt, 1, params).result_async()
        sequence = result.sequences[0]
        return Response(self._renderer.decode(sequence.tokens), str(sequence.stop_reason), len(sequence.tokens))

    async def _connected(self) -> tinker.SamplingClient:
        if self._client is None:
            self._service = tinker.ServiceClient(base_url=self._backend.base_url, api_key=self._backend.api_key)
            model = self._sampling.model
            is_path = model.startswith("tinker://")
            named: dict[str, Any] = {"model_path": model} if is_path else {"base_model": model}
            self._client = await self._service.create_sampling_client(**named).result_async()
        return self._client
