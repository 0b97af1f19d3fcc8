"""Judging with Anthropic's models through their SDK: verdicts by tool, a cached system prompt, Message Batches.

The SDK retries what may work later (429, 529, timeouts) and waits as long as ``retry-after`` asks; nothing is retried
on top of it here.
"""
# pyright: basic
# reason: the SDK's request types are unions of TypedDicts that a dict built in steps does not match

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any, cast

import anthropic

from ..core.errors import BackendError, ConfigError, ResearcherError, did_you_mean
from .base import JudgeCallError, Repair, Reply, Usage
from .judge_catalog import JudgeRef, known_models, takes_forced_tool, takes_temperature
from .prompt import Question, with_tool_rule
from .verdicts import TOOL

MAX_RETRIES = 8
_BATCH_POLL_S = 5.0
_KEY = "ANTHROPIC_API_KEY"


class AnthropicJudge:
    """One Anthropic model as a judge."""

    at_once = None

    def __init__(self, ref: JudgeRef, schema: Mapping[str, Any], *, max_tokens: int, timeout_s: float) -> None:
        self._ref = ref
        self._tool = {
            "name": TOOL,
            "description": "Record the verdict on the answers shown.",
            "input_schema": dict(schema),
            "cache_control": {"type": "ephemeral"},
        }
        self._max_tokens = max_tokens
        self._client = anthropic.AsyncAnthropic(timeout=timeout_s, max_retries=MAX_RETRIES)
        _require_key(self._client)

    @property
    def name(self) -> str:
        """Its name in every result."""
        return self._ref.name

    @property
    def settings(self) -> Mapping[str, Any]:
        """The model and how it is asked."""
        return {"kind": "anthropic", "model": self._ref.model, "max_tokens": self._max_tokens, **self._choice()}

    async def check(self) -> None:
        """Look the model up with the key at hand.

        Raises:
            BackendError: If the key is refused or the service does not answer.
            ConfigError: If there is no such model, or no longer.
        """
        try:
            await self._client.models.retrieve(self._ref.model)
        except anthropic.NotFoundError as error:
            if _error_type(error) == "not_found_error":
                raise self._no_such_model() from error
            return  # a proxy without this call: the first verdict will tell
        except anthropic.APIStatusError as error:
            if error.status_code in {401, 402, 403}:
                raise self._refused(error) from error
        except anthropic.APIConnectionError as error:
            raise BackendError(
                f"no answer ({type(error).__name__})", where=str(self._client.base_url), fix="Check the network"
            ) from error

    async def ask(self, key: str, question: Question, repair: Repair | None) -> Reply:
        """Ask one question (see `Judge.ask`)."""
        try:
            request = self.request(question, repair)
            # The SDK's signature has lost the parameter that older models still take.
            extra = {k: request.pop(k) for k in ("temperature",) if k in request}
            message = await self._client.messages.create(**request, extra_body=extra or None)
        except anthropic.APIStatusError as error:
            raise self._call_error(error) from error
        except anthropic.APIConnectionError as error:
            raise JudgeCallError(f"no answer ({type(error).__name__})", transient=True) from error
        return _reply(message)

    async def close(self) -> None:
        """Close the connections."""
        await self._client.close()

    def request(self, question: Question, repair: Repair | None) -> dict[str, Any]:
        """The body of one Messages request. What is equal in all of them comes first and is cached."""
        messages: list[dict[str, Any]] = [{"role": "user", "content": question.user}]
        if repair is not None:
            messages.append({"role": "assistant", "content": repair.said or "(no verdict)"})
            messages.append({"role": "user", "content": repair.request})
        system = {"type": "text", "text": with_tool_rule(question.system), "cache_control": {"type": "ephemeral"}}
        return {
            "model": self._ref.model,
            "max_tokens": self._max_tokens,
            "system": [system],
            "tools": [self._tool],
            "messages": messages,
            **self._choice(),
        }

    async def create_batch(self, questions: Sequence[tuple[str, Question, Repair | None]]) -> str:
        """Hand in a Message Batch; returns its id, under which the results can be had for 29 days."""
        requests: Any = [{"custom_id": key, "params": self.request(q, repair)} for key, q, repair in questions]
        try:
            batch = await self._client.messages.batches.create(requests=requests)
        except anthropic.APIStatusError as error:
            raise self._refused(error) from error
        except anthropic.APIConnectionError as error:
            raise BackendError(f"no answer ({type(error).__name__})", where=str(self._client.base_url)) from error
        return batch.id

    async def batch_results(self, batch_id: str) -> AsyncIterator[tuple[str, Reply | JudgeCallError]]:
        """Wait for a batch to end and yield each result as (key, reply or error), in no particular order."""
        try:
            while (await self._client.messages.batches.retrieve(batch_id)).processing_status != "ended":
                await asyncio.sleep(_BATCH_POLL_S)
            async for row in await self._client.messages.batches.results(batch_id):
                yield row.custom_id, _batch_reply(row.result)
        except anthropic.APIStatusError as error:
            raise self._refused(error) from error
        except anthropic.APIConnectionError as error:
            raise BackendError(
                f"the batch {batch_id} cannot be reached ({type(error).__name__})",
                where=str(self._client.base_url),
                fix="resume_job goes on waiting for the same batch",
            ) from error

    def _choice(self) -> dict[str, Any]:
        model = self._ref.model
        temperature = {"temperature": 0.0} if takes_temperature(model) else {}
        kind = {"type": "tool", "name": TOOL} if takes_forced_tool(model) else {"type": "auto"}
        return {**temperature, "tool_choice": {**kind, "disable_parallel_tool_use": True}}

    def _call_error(self, error: anthropic.APIStatusError) -> Exception:
        if error.status_code in {401, 402, 403, 404}:
            return self._refused(error)
        transient = error.status_code >= 408 and error.status_code not in {413, 422}
        return JudgeCallError(f"status {error.status_code}: {_message(error)}", transient=transient)

    def _refused(self, error: anthropic.APIStatusError) -> ResearcherError:
        if error.status_code == 404 and _error_type(error) == "not_found_error":
            return self._no_such_model()
        known = {
            401: ("the key was refused (401)", f"Check {_KEY}"),
            402: ("billing is blocked (402)", "Set up billing in the Anthropic console"),
            403: ("this key may not do that (403)", f"Check what {_KEY} is allowed to do"),
        }
        problem, fix = known.get(error.status_code, (f"status {error.status_code}: {_message(error)}", ""))
        return BackendError(problem, where=str(self._client.base_url), fix=fix)

    def _no_such_model(self) -> ConfigError:
        model = self._ref.model
        hint = did_you_mean(model, [m for m in known_models() if m != model])
        return ConfigError(
            f"Anthropic has no model '{model}', or it has been retired",
            where="judge_model",
            fix=hint or f"Current ones: {', '.join(known_models()[:4])}",
        )


def retirement_note(model: str) -> str | None:
    """What the SDK says about the end of a model, or None."""
    from anthropic.resources.messages import messages

    date = cast("dict[str, str]", getattr(messages, "DEPRECATED_MODELS", {})).get(model)
    return f"the judge {model} is deprecated and retires on {date}" if date else None


def _require_key(client: anthropic.AsyncAnthropic) -> None:
    if not (client.api_key or client.auth_token or getattr(client, "credentials", None)):
        raise BackendError(
            f"{_KEY} is not set, and a judge of Anthropic needs it",
            where="judge_model",
            fix=f"Export {_KEY} for the server, or use judge_model: assistant, or a local judge",
        )


def _error_type(error: anthropic.APIStatusError) -> str:
    body: Any = error.body
    inner = body.get("error") if isinstance(body, dict) else None
    return str(inner.get("type", "")) if isinstance(inner, dict) else ""


def _message(error: anthropic.APIStatusError) -> str:
    body: Any = error.body
    inner = body.get("error") if isinstance(body, dict) else None
    text = str(inner.get("message", "")) if isinstance(inner, dict) else ""
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
        usage=Usage(
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
