"""Judging with any OpenAI-compatible endpoint: hosted ones, vLLM, llama.cpp, or a Tinker server's own."""
# pyright: basic
# reason: the SDK's request types are unions of TypedDicts that a dict built in steps does not match

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

import openai

from ..core.errors import BackendError, ConfigError, ResearcherError, did_you_mean
from ..models.chat import Message
from .base import JudgeCallError, JudgeUsage, Repair, Reply, conversation_with
from .judge_catalog import JudgeRef
from .prompt import Question, with_tool_rule
from .services import REFUSED, CallLimits, ServiceModel, is_transient, refusal
from .verdicts import TOOL

MAX_RETRIES = 8
_KEY = "OPENAI_API_KEY"
_URL = "OPENAI_BASE_URL"


class OpenAIJudge(ServiceModel):
    """One model behind a Chat Completions endpoint as a judge; it answers by a function call."""

    def __init__(self, ref: JudgeRef, schema: Mapping[str, Any], limits: CallLimits, *, base_url: str | None) -> None:
        """See `service_judge` for the arguments and errors."""
        self._schema = dict(schema)
        self._max_tokens = limits.max_tokens
        address = base_url or os.environ.get(_URL)
        key = os.environ.get(_KEY)
        if not key and not address:
            raise BackendError(
                f"{_KEY} is not set, and {ref.name} needs it",
                where=ref.where,
                fix=f"Export {_KEY} for the server, or give {_url_key(ref)} for an endpoint without a key",
            )
        self._client = openai.AsyncOpenAI(
            base_url=address, api_key=key or "none", timeout=limits.timeout_s, max_retries=MAX_RETRIES
        )
        super().__init__(ref, base_url=str(self._client.base_url), max_tokens=limits.max_tokens)

    async def check(self) -> None:
        """See that the endpoint answers, takes the key and, where it lists its models, has this one.

        Raises:
            BackendError: If it does not answer or refuses the key.
            ConfigError: If it lists models and this one is not among them.
        """
        try:
            served = [model.id async for model in await self._client.models.list()]
        except openai.APIStatusError as error:
            if error.status_code in REFUSED:
                raise self._refused(error) from error
            return  # not every server lists its models
        except openai.APIConnectionError as error:
            raise BackendError(
                f"no answer ({type(error).__name__})",
                where=str(self._client.base_url),
                fix=f"Check {_url_key(self.ref)}",
            ) from error
        model = self.ref.model
        if served and model not in served:
            hint = did_you_mean(model, served) or f"It serves: {', '.join(sorted(served)[:8])}"
            raise ConfigError(f"the endpoint has no model '{model}'", where=self.ref.where, fix=hint)

    async def ask(self, key: str, question: Question, repair: Repair | None) -> Reply:
        """Ask one question (see `Judge.ask`)."""
        return await self._answer(self._request(question, repair))

    async def write(self, messages: Sequence[Message], *, temperature: float | None, seed: int) -> Reply:
        """Answer a conversation in text (see `ServiceModel.write`)."""
        request: dict[str, Any] = {"model": self.ref.model, "messages": list(messages), "seed": seed}
        request |= {"temperature": temperature} if temperature is not None else {}
        return await self._answer({**request, "max_completion_tokens": self._max_tokens})

    async def _answer(self, request: dict[str, Any]) -> Reply:
        try:
            completion = await self._client.chat.completions.create(**request)
        except openai.APIStatusError as error:
            status = error.status_code
            if status in REFUSED or status == 404:
                raise self._refused(error) from error
            raise JudgeCallError(f"status {status}", transient=is_transient(status)) from error
        except openai.APIConnectionError as error:
            raise JudgeCallError(f"no answer ({type(error).__name__})", transient=True) from error
        return _reply(completion)

    async def close(self) -> None:
        """Close the connections."""
        await self._client.close()

    def _request(self, question: Question, repair: Repair | None) -> dict[str, Any]:
        system = {"role": "system", "content": with_tool_rule(question.system)}
        function = {"name": TOOL, "description": "Record the verdict.", "parameters": self._schema}
        return {
            "model": self.ref.model,
            "messages": [system, *conversation_with(question.user, repair)],
            "max_completion_tokens": self._max_tokens,
            "tools": [{"type": "function", "function": function}],
            "tool_choice": {"type": "function", "function": {"name": TOOL}},
        }

    def _refused(self, error: openai.APIStatusError) -> ResearcherError:
        address = str(self._client.base_url)
        if error.status_code == 404:
            return ConfigError(
                f"the endpoint has no model '{self.ref.model}', or no chat completions",
                where=self.ref.where,
                fix=f"Check the model and {_url_key(self.ref)} ({address})",
            )
        return refusal(error.status_code, f"status {error.status_code}", key=_KEY, where=address)


def _url_key(ref: JudgeRef) -> str:
    return "model_base_url" if ref.where == "model" else "judge_base_url"


def _reply(completion: Any) -> Reply:
    choice = completion.choices[0] if completion.choices else None
    message = choice.message if choice else None
    arguments: Any = None
    for call in (message.tool_calls if message else None) or []:
        if call.type == "function" and call.function.name == TOOL:
            try:
                arguments = json.loads(call.function.arguments)
            except ValueError:
                arguments = None
    used = completion.usage
    return Reply(
        arguments=arguments if isinstance(arguments, Mapping) else None,
        text=(message.content or message.refusal or "") if message else "",
        stop_reason="refusal" if message and message.refusal else str(choice.finish_reason if choice else "none"),
        model=completion.model,
        usage=JudgeUsage(used.prompt_tokens, used.completion_tokens) if used else JudgeUsage(),
    )
