"""The OpenAI-compatible endpoints: ``/oai/api/v1/chat/completions``, ``completions`` and ``models``.

``model`` is a base model's name, the ``tinker://`` path of a checkpoint, or ``BASE;PATH``. What a field would need and
this engine has not is refused by name, never ignored. A streamed answer carries the same content, sent when it is
complete.
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, cast

import numpy as np
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from ...core.errors import ResearcherError
from ..interface import RequestRejectedError, SampleOutput, SampleSettings
from ..service.scheduler import BusyError
from ..service.service import Engine
from ..service.state import SamplingSession
from ..service.store import NoSuchCheckpointError
from .http_answers import engine_of, json_of
from .openai_answers import ChatChoice, Choices, CompletionUsage, TextChoice

# Ends of a turn in the chat templates of common model families, beside the tokenizer's own end token.
_TURN_ENDS = ("<|im_end|>", "<|eot_id|>", "<end_of_turn>", "<|end|>")
_COMMON_KEYS = frozenset(
    "model stream stream_options max_tokens max_completion_tokens temperature top_p top_k n stop seed logprobs user "
    "metadata store".split()
)
_CHAT_KEYS = _COMMON_KEYS | {"messages", "top_logprobs", "chat_template_kwargs"}
_TEXT_KEYS = _COMMON_KEYS | {"prompt", "echo"}
# Fields whose neutral value asks for nothing.
_NEUTRAL: Mapping[str, Any] = {
    "presence_penalty": 0,
    "frequency_penalty": 0,
    "logit_bias": {},
    "response_format": {"type": "text"},
    "tools": [],
    "tool_choice": "none",
    "best_of": 1,
    "suffix": None,
    "parallel_tool_calls": True,
}
_MOST_CHOICES = 128
_DEFAULT_TOKENS = 16


def _checked(raw: Mapping[str, Any], keys: frozenset[str]) -> dict[str, Any]:
    """The fields that are set, none of them one that would be ignored."""
    body = {key: value for key, value in raw.items() if value is not None}
    for key, value in body.items():
        if key not in keys and not (key in _NEUTRAL and value == _NEUTRAL[key]):
            raise RequestRejectedError(f"this engine does not take '{key}': leave it out")
    if not isinstance(body.get("model"), str):
        raise RequestRejectedError("'model' is missing: a base model's name or a tinker:// path")
    return body


def _sampler(engine: Engine, model: str) -> SamplingSession:
    base, _, path = model.rpartition(";")
    if path.startswith("tinker://"):
        return engine.sampling.direct(base or None, path)
    return engine.sampling.direct(model, None)


def _number(body: Mapping[str, Any], key: str, default: float) -> float:
    value = body.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise RequestRejectedError(f"'{key}' must be a number, got {value!r}")
    return float(value)


def _integer(body: Mapping[str, Any], key: str, default: int | None) -> int | None:
    value = body.get(key, default)
    if value is not None and (isinstance(value, bool) or not isinstance(value, int)):
        raise RequestRejectedError(f"'{key}' must be a whole number, got {value!r}")
    return value


def _settings(
    body: Mapping[str, Any], prompt: Sequence[int], tokenizer: Any, topk: int, room: int | None
) -> SampleSettings:
    stop = body.get("stop", [])
    stops = [stop] if isinstance(stop, str) else stop
    if not isinstance(stops, list) or not all(isinstance(text, str) for text in cast("list[Any]", stops)):
        raise RequestRejectedError("'stop' must be a string or a list of strings")
    choices = _integer(body, "n", 1) or 0
    if not 1 <= choices <= _MOST_CHOICES:
        raise RequestRejectedError(f"'n' must be from 1 to {_MOST_CHOICES}, got {choices}")
    most = _integer(body, "max_completion_tokens", _integer(body, "max_tokens", room))
    return SampleSettings(
        np.asarray(prompt, dtype=np.int64),
        num_samples=choices,
        max_tokens=most,
        temperature=_number(body, "temperature", 1.0),
        top_p=_number(body, "top_p", 1.0),
        top_k=_integer(body, "top_k", -1) or -1,
        seed=_integer(body, "seed", None),
        stop_tokens=_ends(tokenizer),
        stop_strings=tuple(cast("list[str]", stops)),
        topk_sample_logprobs=topk,
        prompt_logprobs=bool(body.get("echo")) and "logprobs" in body and len(prompt) > 1,
    )


def _ends(tokenizer: Any) -> frozenset[int]:
    vocabulary: dict[str, int] = tokenizer.get_vocab()
    ends = {vocabulary[text] for text in _TURN_ENDS if text in vocabulary}
    return frozenset(ends | ({tokenizer.eos_token_id} if tokenizer.eos_token_id is not None else set()))


async def _result(engine: Engine, sampler: SamplingSession, settings: SampleSettings) -> SampleOutput:
    promise = engine.sampling.sample(sampler, None, settings, encode=lambda output: output)
    try:
        await promise.done.wait()
    finally:
        promise.cancelled = True  # a client that went away: what has not begun is not computed
        engine.promises.forget([promise.request_id])
    if promise.failure is not None:
        raise RequestRejectedError(promise.failure.message)
    return promise.result


async def _chat(request: Request) -> Response:
    engine, body = engine_of(request), _checked(await json_of(request), _CHAT_KEYS)
    sampler = _sampler(engine, body["model"])
    tokenizer = await engine.tokenizer(sampler.base_model)
    topk = _integer(body, "top_logprobs", 0) or 0
    settings = _settings(body, _rendered(body, tokenizer), tokenizer, topk, None)
    output = await _result(engine, sampler, settings)
    choices = Choices(tokenizer, settings, logprobs=bool(body.get("logprobs")))
    counts = CompletionUsage()
    counts.add(len(settings.prompt_T), output)
    return _reply(
        body, "chat.completion", [choices.chat(index, one) for index, one in enumerate(output.continuations)], counts
    )


def _rendered(body: Mapping[str, Any], tokenizer: Any) -> list[int]:
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages:
        raise RequestRejectedError("'messages' must be a list with at least one message")
    plain = [_message(message, index) for index, message in enumerate(cast("list[Any]", messages))]
    if not getattr(tokenizer, "chat_template", None):
        raise RequestRejectedError("this model has no chat template: use completions with a prompt")
    try:
        text: str = tokenizer.apply_chat_template(
            plain, tokenize=False, add_generation_prompt=True, **body.get("chat_template_kwargs", {})
        )
    except Exception as error:  # a template is a program of the model's; whatever it raises is about the messages
        raise RequestRejectedError(f"the model's chat template refused the messages: {error}") from error
    return list(tokenizer.encode(text, add_special_tokens=False))


def _message(message: Any, index: int) -> dict[str, Any]:
    fields = cast("dict[str, Any]", message if isinstance(message, dict) else {})
    if not isinstance(fields.get("role"), str):
        raise RequestRejectedError(f"messages[{index}] has no role")
    content: Any = fields.get("content") or ""
    if isinstance(content, list):
        parts = cast("list[dict[str, Any]]", content)
        if any(part.get("type") != "text" for part in parts):
            raise RequestRejectedError(f"messages[{index}] has a part that is not text; this engine reads text")
        content = "".join(str(part["text"]) for part in parts)
    if not isinstance(content, str):
        raise RequestRejectedError(f"messages[{index}].content must be text")
    return {**fields, "content": content}


async def _completions(request: Request) -> Response:
    engine, body = engine_of(request), _checked(await json_of(request), _TEXT_KEYS)
    sampler = _sampler(engine, body["model"])
    tokenizer = await engine.tokenizer(sampler.base_model)
    topk = _integer(body, "logprobs", 0) or 0
    answers: list[TextChoice] = []
    counts = CompletionUsage()
    for prompt in _prompts(body, tokenizer):
        settings = _settings(body, prompt, tokenizer, topk, _DEFAULT_TOKENS)
        output = await _result(engine, sampler, settings)
        choices = Choices(tokenizer, settings, logprobs="logprobs" in body, echo=bool(body.get("echo")))
        answers += [choices.text(len(answers) + i, one, output) for i, one in enumerate(output.continuations)]
        counts.add(len(prompt), output)
    return _reply(body, "text_completion", answers, counts)


def _prompts(body: Mapping[str, Any], tokenizer: Any) -> list[list[int]]:
    prompt = body.get("prompt")
    several = cast("list[Any]", prompt if isinstance(prompt, list) else [prompt])
    if several and all(isinstance(token, int) for token in several):
        return [several]
    if not several or not all(isinstance(one, str | list) for one in several):
        raise RequestRejectedError("'prompt' must be text, tokens, or a list of either")
    return [list(tokenizer.encode(one)) if isinstance(one, str) else one for one in several]


def _reply(
    body: Mapping[str, Any], kind: str, choices: Sequence[ChatChoice | TextChoice], counts: CompletionUsage
) -> Response:
    head = {"id": f"cmpl-{uuid.uuid4().hex}", "created": int(time.time()), "model": body["model"], "object": kind}
    every = [choice.model_dump() for choice in choices]
    if not body.get("stream"):
        return JSONResponse(head | {"choices": every, "usage": counts.model_dump()})
    bodies: list[dict[str, Any]] = [{"choices": [choice]} for choice in every]
    if kind == "chat.completion":
        head["object"] = "chat.completion.chunk"
        for choice in every:
            choice["delta"] = choice.pop("message")
    if cast("dict[str, Any]", body.get("stream_options", {})).get("include_usage"):
        bodies.append({"choices": [], "usage": counts.model_dump()})
    events = [f"data: {json.dumps(head | body)}\n\n" for body in bodies]
    return StreamingResponse(iter([*events, "data: [DONE]\n\n"]), media_type="text/event-stream")


async def _models(request: Request) -> Response:
    engine = engine_of(request)
    names = [*engine.models.names, *(s.path for s in engine.store.checkpoints() if s.kind == "sampler_weights")]
    created = int(engine.started)
    data = [{"id": name, "object": "model", "created": created, "owned_by": "local"} for name in names]
    return JSONResponse({"object": "list", "data": data})


def _guarded(handler: Callable[[Request], Awaitable[Response]]) -> Callable[[Request], Awaitable[Response]]:
    """Errors in the shape that clients of this API read."""

    async def guarded(request: Request) -> Response:
        try:
            return await handler(request)
        except NoSuchCheckpointError as error:
            return _error(404, str(error), "not_found_error")
        except BusyError as error:
            return _error(429, str(error), "rate_limit_error")
        except (RequestRejectedError, ResearcherError) as error:
            return _error(400, str(error), "invalid_request_error")

    return guarded


def _error(status: int, message: str, kind: str) -> JSONResponse:
    return JSONResponse({"error": {"message": message, "type": kind, "code": None}}, status_code=status)


def routes() -> list[Route]:
    """The paths below ``/oai/api/v1``."""
    return [
        Route("/oai/api/v1/chat/completions", _guarded(_chat), methods=["POST"]),
        Route("/oai/api/v1/completions", _guarded(_completions), methods=["POST"]),
        Route("/oai/api/v1/models", _guarded(_models)),
    ]
