"""Judging with Anthropic's models through their SDK: verdicts by tool call, a cached system prompt, Message Batches.

The SDK retries what may work later (429, 529, timeouts) and waits as long as ``retry-after`` asks; nothing is retried
on top of that here.
"""
# pyright: basic
# reason: the SDK's request types are unions of TypedDicts that a dict built in steps does not match

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Generator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, cast

import anthropic

from ..core.errors import BackendError, ConfigError, ResearcherError, did_you_mean
from ..models.chat import Message
from .base import JudgeCallError, JudgeUsage, Repair, Reply, conversation_with
from .judge_catalog import JudgeRef, anthropic_model, known_models
from .prompt import Question, with_tool_rule
from .services import REFUSED, CallLimits, ServiceModel, is_transient, refusal
from .verdicts import TOOL

MAX_RETRIES = 8
_BATCH_POLL_S = 5.0
_KEY = "ANTHROPIC_API_KEY"


class AnthropicJudge(ServiceModel):
    """One Anthropic model as a judge; it answers by a tool call."""

    def __init__(self, ref: JudgeRef, schema: Mapping[str, Any], limits: CallLimits) -> None:
        """See `service_judge` for the arguments and errors."""
        model = anthropic_model(ref.model)  # one that is newer than the table takes neither
        temperature = {"temperature": 0.0} if model and model.sampling else {}
        kind = {"type": "tool", "name": TOOL} if model and model.forced_tool else {"type": "auto"}
        choice = {**temperature, "tool_choice": {**kind, "disable_parallel_tool_use": True}}
        super().__init__(ref, max_tokens=limits.max_tokens, **choice)
        self._fixed = {"model": ref.model, "max_tokens": limits.max_tokens, **choice}
        self._tool = {
            "name": TOOL,
            "description": "Record the verdict on the answers shown.",
            "input_schema": dict(schema),
            "cache_control": {"type": "ephemeral"},
        }
        self._client = anthropic.AsyncAnthropic(timeout=limits.timeout_s, max_retries=MAX_RETRIES)
        self._require_key()

    def _require_key(self) -> None:
        client = self._client
        if not (client.api_key or client.auth_token or getattr(client, "credentials", None)):
            other = "a model of a backend" if self.ref.where == "model" else "judge_model: assistant, or a local judge"
            raise BackendError(
                f"{_KEY} is not set, and {self.ref.name} needs it",
                where=self.ref.where,
                fix=f"Export {_KEY} for the server, or use {other}",
            )

    async def check(self) -> None:
        """Look the model up with the key at hand.

        Raises:
            BackendError: If the key is refused or the service does not answer.
            ConfigError: If there is no such model, or no longer.
        """
        try:
            await self._client.models.retrieve(self.ref.model)
        except anthropic.NotFoundError as error:
            if _error_type(error) == "not_found_error":
                raise self._no_such_model() from error
            return  # a proxy without this call: the first verdict will tell
        except anthropic.APIStatusError as error:
            if error.status_code in REFUSED:
                raise self._refused(error) from error
        except anthropic.APIConnectionError as error:
            raise self._no_answer(error, fix="Check the network") from error

    async def ask(self, key: str, question: Question, repair: Repair | None) -> Reply:
        """Ask one question (see `Judge.ask`)."""
        return await self._answer(self._request(question, repair))

    async def write(self, messages: Sequence[Message], *, temperature: float | None, seed: int) -> Reply:
        """Answer a conversation in text (see `ServiceModel.write`)."""
        system: list[Any] = [{"type": "text", "text": m["content"]} for m in messages if m["role"] == "system"]
        if system:  # the same for every row, and long where a teacher is distilled
            system[-1]["cache_control"] = {"type": "ephemeral"}
        request = {"model": self.ref.model, "max_tokens": self._fixed["max_tokens"]}
        request |= {"system": system} if system else {}
        request |= {"temperature": temperature} if temperature is not None else {}
        return await self._answer({**request, "messages": [m for m in messages if m["role"] != "system"]})

    async def _answer(self, request: dict[str, Any]) -> Reply:
        # The SDK's signature has lost the parameter that older models still take.
        extra = {"temperature": request.pop("temperature")} if "temperature" in request else None
        try:
            message = await self._client.messages.create(**request, extra_body=extra)
        except anthropic.APIStatusError as error:
            raise self._call_error(error) from error
        except anthropic.APIConnectionError as error:
            raise JudgeCallError(f"no answer ({type(error).__name__})", transient=True) from error
        return _reply(message)

    async def close(self) -> None:
        """Close the connections."""
        await self._client.close()

    def _request(self, question: Question, repair: Repair | None) -> dict[str, Any]:
        """The body of one Messages request. What is the same in all of them is cached by the service."""
        system = {"type": "text", "text": with_tool_rule(question.system), "cache_control": {"type": "ephemeral"}}
        messages = conversation_with(question.user, repair)
        return {**self._fixed, "system": [system], "tools": [self._tool], "messages": messages}

    async def create_batch(self, questions: Sequence[tuple[str, Question, Repair | None]]) -> str:
        """Submit a Message Batch; returns its id, under which the results can be fetched for 29 days."""
        requests: Any = [{"custom_id": key, "params": self._request(q, repair)} for key, q, repair in questions]
        with self._batch_errors():
            return (await self._client.messages.batches.create(requests=requests)).id

    async def batch_results(self, batch_id: str) -> AsyncIterator[tuple[str, Reply | JudgeCallError]]:
        """Wait for a batch to end and yield each result as (key, reply or error), in no particular order."""
        fix = "resume_job goes on waiting for the same batch"
        with self._batch_errors(f"the batch {batch_id} cannot be reached", fix):
            while (await self._client.messages.batches.retrieve(batch_id)).processing_status != "ended":
                await asyncio.sleep(_BATCH_POLL_S)
            async for row in await self._client.messages.batches.results(batch_id):
                yield row.custom_id, _batch_reply(row.result)

    @contextmanager
    def _batch_errors(self, problem: str = "no answer", fix: str = "") -> Generator[None]:
        try:
            yield
        except anthropic.APIStatusError as error:
            raise self._refused(error) from error
        except anthropic.APIConnectionError as error:
            raise self._no_answer(error, problem, fix=fix) from error

    def _no_answer(self, error: Exception, problem: str = "no answer", *, fix: str) -> BackendError:
        return BackendError(f"{problem} ({type(error).__name__})", where=str(self._client.base_url), fix=fix)

    def _call_error(self, error: anthropic.APIStatusError) -> Exception:
        status = error.status_code
        if status in REFUSED or status == 404:
            return self._refused(error)
        return JudgeCallError(f"status {status}: {_message(error)}", transient=is_transient(status))

    def _refused(self, error: anthropic.APIStatusError) -> ResearcherError:
        if error.status_code == 404 and _error_type(error) == "not_found_error":
            return self._no_such_model()
        message = f"status {error.status_code}: {_message(error)}"
        return refusal(error.status_code, message, key=_KEY, where=str(self._client.base_url))

    def _no_such_model(self) -> ConfigError:
        model = self.ref.model
        hint = did_you_mean(model, [m for m in known_models() if m != model])
        return ConfigError(
            f"Anthropic has no model '{model}', or it has been retired",
            where=self.ref.where,
            fix=hint or f"Current ones: {', '.join(known_models()[:4])}",
        )


def retirement_note(model: str) -> str | None:
    """What the SDK says about the end of a model, or None."""
    from anthropic.resources.messages import messages

    date = cast("dict[str, str]", getattr(messages, "DEPRECATED_MODELS", {})).get(model)
    return f"the judge {model} is deprecated and retires on {date}" if date else None


def _error_type(error: anthropic.APIStatusError) -> str:
    return _detail(error, "type")


def _detail(error: anthropic.APIStatusError, key: str) -> str:
    """One field of the error object in the body; empty where the body is something else (a proxy's page)."""
    body: Any = error.body
    inner = body.get("error") if isinstance(body, dict) else None
    return str(inner.get(key, "")) if isinstance(inner, dict) else ""


def _message(error: anthropic.APIStatusError) -> str:
    text = _detail(error, "message")
    secret = os.environ.get(_KEY, "")
    return (text.replace(secret, "***") if secret else text)[:200] or "no message"


def _reply(message: anthropic.types.Message) -> Reply:
    used = message.usage
    arguments = next((b.input for b in message.content if b.type == "tool_use" and b.name == TOOL), None)
    return Reply(
        arguments=arguments if isinstance(arguments, Mapping) else None,
        text="".join(b.text for b in message.content if b.type == "text"),
        stop_reason=str(message.stop_reason),
        model=message.model,
        usage=JudgeUsage(
            used.input_tokens,
            used.output_tokens,
            used.cache_read_input_tokens or 0,
            used.cache_creation_input_tokens or 0,
        ),
    )


def _batch_reply(result: Any) -> Reply | JudgeCallError:
    if result.type == "succeeded":
        return _reply(result.message)
    if result.type == "errored":
        inner = getattr(result.error, "error", None)
        kind = str(getattr(inner, "type", "error"))
        return JudgeCallError(
            f"{kind}: {getattr(inner, 'message', '')}"[:200], transient=kind != "invalid_request_error"
        )
    return JudgeCallError(f"the batch ended with this request {result.type}", transient=True)
