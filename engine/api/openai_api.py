"""The OpenAI-compatible endpoints: ``/oai/api/v1/chat/completions``, ``completions`` and ``models``.

``model`` is a base model's name, the ``tinker://`` path of a checkpoint, or ``BASE;PATH``. What a field would need and
this engine has not is refused by name, never ignored. A streamed answer carries the same content, sent when it is
complete.
"""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from typing import Any, cast

from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from ...core.errors import ResearcherError
from ..interface import RequestRejectedError, SampleOutput, SampleSettings
from ..json_fields import MOST_SEED, MOST_TOKEN, Fields, shown, tokens_of
from ..service.futures import Promise
from ..service.sample_runner import SampleJob, end_tokens
from ..service.scheduler import BusyError
from ..service.service import Engine
from ..service.state import SamplingSession
from ..service.store import NoSuchCheckpointError
from .http_answers import engine_of, json_of, short
from .openai_answers import ChatChoice, Choices, CompletionUsage, TextChoice

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
_MOST_PROMPTS = 1024
_MOST_STOPS, _LONGEST_STOP = 16, 1024
_DEFAULT_TOKENS = 16


def _checked(raw: Mapping[str, Any], keys: frozenset[str]) -> dict[str, Any]:
    """The fields that are set, none of them one that would be ignored."""
    body = {key: value for key, value in raw.items() if value is not None}
    for key, value in body.items():
        if key not in keys and not (key in _NEUTRAL and value == _NEUTRAL[key]):
            raise RequestRejectedError(f"this engine does not take '{key[:80]}': leave it out")
    if not isinstance(body.get("model"), str):
        raise RequestRejectedError("'model' is missing: a base model's name or a tinker:// path")
    short(body["model"], "model")
    Fields(body, "the request").flag("stream")
    return body


def _sampler(engine: Engine, model: str) -> SamplingSession:
    base, _, path = model.rpartition(";")
    if path.startswith("tinker://"):
        return engine.sampling.direct(base or None, path)
    return engine.sampling.direct(model, None)


def _settings(
    body: Mapping[str, Any], prompt: Sequence[int], tokenizer: Any, topk: int, room: int | None
) -> SampleSettings:
    fields = Fields(body, "the request")
    most = fields.optional_whole("max_completion_tokens", 1, MOST_TOKEN)
    return SampleSettings(
        tokens_of(list(prompt), "the prompt"),
        num_samples=fields.whole("n", 1, 1, _MOST_CHOICES),
        max_tokens=most or fields.optional_whole("max_tokens", 1, MOST_TOKEN) or room,
        temperature=fields.number("temperature", 1.0),
        top_p=fields.number("top_p", 1.0),
        top_k=fields.whole("top_k", -1, -1, MOST_TOKEN) or -1,
        seed=fields.optional_whole("seed", -(2**63), MOST_SEED),
        stop_tokens=end_tokens(tokenizer),
        stop_strings=_stops(body.get("stop", [])),
        topk_sample_logprobs=topk,
        prompt_logprobs=fields.flag("echo") and "logprobs" in body and len(prompt) > 1,
    )


def _stops(stop: object) -> tuple[str, ...]:
    stops = cast("list[Any]", [stop] if isinstance(stop, str) else stop)
    if not isinstance(cast("object", stops), list) or not all(isinstance(text, str) for text in stops):
        raise RequestRejectedError("'stop' must be a string or a list of strings")
    if len(stops) > _MOST_STOPS or any(len(text.encode()) > _LONGEST_STOP for text in stops):
        raise RequestRejectedError(f"'stop' takes at most {_MOST_STOPS} texts, each of at most {_LONGEST_STOP} bytes")
    return tuple(stops)


async def _result(request: Request, sampler: SamplingSession, settings: SampleSettings) -> SampleOutput:
    """Sample, and let go of it if the client goes away."""
    engine = engine_of(request)
    promise = engine.sampling.sample(SampleJob(sampler, settings, encode=lambda output: output), None)
    leaving = asyncio.create_task(_gone(request, engine, promise))
    try:
        await promise.done.wait()
    finally:
        leaving.cancel()
        engine.sampling.cancel(promise.request_id)
        engine.promises.forget([promise.request_id])
    if promise.failure is not None:
        raise RequestRejectedError(promise.failure.message)
    return promise.result


async def _gone(request: Request, engine: Engine, promise: Promise) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
    engine.sampling.cancel(promise.request_id)


async def _chat(request: Request) -> Response:
    engine, body = engine_of(request), _checked(await json_of(request), _CHAT_KEYS)
    sampler = _sampler(engine, body["model"])
    tokenizer = await engine.tokenizer(sampler.base_model)
    fields = Fields(body, "the request")
    topk = fields.whole("top_logprobs", 0, 0, MOST_TOKEN)
    settings = _settings(body, _rendered(body, tokenizer), tokenizer, topk, None)
    output = await _result(request, sampler, settings)
    choices = Choices(tokenizer, settings, logprobs=fields.flag("logprobs"))
    counts = CompletionUsage()
    counts.add(len(settings.prompt_T), output)
    made = [choices.chat(index, one) for index, one in enumerate(output.continuations)]
    return _reply(body, "chat.completion", made, counts)


def _rendered(body: Mapping[str, Any], tokenizer: Any) -> list[int]:
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages:
        raise RequestRejectedError("'messages' must be a list with at least one message")
    plain = [_message(message, index) for index, message in enumerate(cast("list[Any]", messages))]
    if not getattr(tokenizer, "chat_template", None):
        raise RequestRejectedError("this model has no chat template: use completions with a prompt")
    options = Fields(body, "the request").mapping("chat_template_kwargs")
    try:
        text: str = tokenizer.apply_chat_template(plain, tokenize=False, add_generation_prompt=True, **options)
    except Exception as error:  # a template is a program of the model's; whatever it raises is about the messages
        raise RequestRejectedError(f"the model's chat template refused the messages: {error}") from error
    return list(tokenizer.encode(text, add_special_tokens=False))


def _message(message: Any, index: int) -> dict[str, Any]:
    fields = cast("dict[str, Any]", message if isinstance(message, dict) else {})
    if not isinstance(fields.get("role"), str):
        raise RequestRejectedError(f"messages[{index}] has no role")
    content: Any = fields.get("content") or ""
    if isinstance(content, list):
        content = "".join(_text_part(part, index) for part in cast("list[Any]", content))
    if not isinstance(content, str):
        raise RequestRejectedError(f"messages[{index}].content must be text")
    return {**fields, "content": content}


def _text_part(part: Any, index: int) -> str:
    fields = cast("dict[str, Any]", part if isinstance(part, dict) else {})
    if fields.get("type") != "text" or not isinstance(fields.get("text"), str):
        raise RequestRejectedError(f"messages[{index}] has a part that is not text; this engine reads text")
    return fields["text"]


async def _completions(request: Request) -> Response:
    engine, body = engine_of(request), _checked(await json_of(request), _TEXT_KEYS)
    sampler = _sampler(engine, body["model"])
    tokenizer = await engine.tokenizer(sampler.base_model)
    fields = Fields(body, "the request")
    topk = fields.whole("logprobs", 0, 0, MOST_TOKEN)
    answers: list[TextChoice] = []
    counts = CompletionUsage()
    for prompt in _prompts(body, tokenizer):
        settings = _settings(body, prompt, tokenizer, topk, _DEFAULT_TOKENS)
        output = await _result(request, sampler, settings)
        choices = Choices(tokenizer, settings, logprobs="logprobs" in body, echo=fields.flag("echo"))
        answers += [choices.text(len(answers) + i, one, output) for i, one in enumerate(output.continuations)]
        counts.add(len(prompt), output)
    return _reply(body, "text_completion", answers, counts)


def _prompts(body: Mapping[str, Any], tokenizer: Any) -> list[list[int]]:
    prompt = body.get("prompt")
    several = cast("list[Any]", prompt) if isinstance(prompt, list) else [prompt]
    if several and not any(isinstance(one, str | list) for one in several) and isinstance(prompt, list):
        return [tokens_of(several, "'prompt'").tolist()]
    if not several or not all(isinstance(one, str | list) for one in several):
        raise RequestRejectedError(
            f"'prompt' must be text, tokens, or a list of either, got {shown(body.get('prompt'))}"
        )
    if len(several) > _MOST_PROMPTS:
        raise RequestRejectedError(f"'prompt' has {len(several):,} prompts, at most {_MOST_PROMPTS:,} at once")
    return [
        list(tokenizer.encode(one)) if isinstance(one, str) else tokens_of(one, "'prompt'").tolist() for one in several
    ]


def _reply(
    body: Mapping[str, Any], kind: str, choices: Sequence[ChatChoice | TextChoice], counts: CompletionUsage
) -> Response:
    head: dict[str, Any] = {
        "id": f"cmpl-{uuid.uuid4().hex}",
        "created": int(time.time()),
        "model": body["model"],
        "object": kind,
    }
    if body.get("stream"):
        usage = Fields(Fields(body, "the request").mapping("stream_options"), "stream_options", ("include_usage",))
        events = _events(head, choices, counts if usage.flag("include_usage") else None)
        return StreamingResponse(events, media_type="text/event-stream")
    return JSONResponse(head | {"choices": [choice.model_dump() for choice in choices], "usage": counts.model_dump()})


def _events(
    head: Mapping[str, Any], choices: Sequence[ChatChoice | TextChoice], usage: CompletionUsage | None
) -> Iterator[str]:
    """One chunk for each choice, then the usage where it is asked for: the others then say that it comes later."""
    later: dict[str, Any] = {} if usage is None else {"usage": None}
    if head["object"] == "chat.completion":
        head = {**head, "object": "chat.completion.chunk"}
    bodies: list[dict[str, Any]] = [{"choices": [_chunk(choice)], **later} for choice in choices]
    if usage is not None:
        bodies.append({"choices": [], "usage": usage.model_dump()})
    for body in bodies:
        yield f"data: {json.dumps({**head, **body})}\n\n"
    yield "data: [DONE]\n\n"


def _chunk(choice: ChatChoice | TextChoice) -> dict[str, Any]:
    """A choice as a stream carries it: a turn of a chat is what was added to it."""
    content = choice.model_dump()
    if isinstance(choice, ChatChoice):
        content["delta"] = content.pop("message")
    return content


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
