"""The Tinker protocol over HTTP: requests in, promises out, results by long poll."""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import json
import os
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from importlib.metadata import version
from typing import Any, cast

import zstandard
from pydantic import BaseModel, ValidationError
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send
from tinker import types

from sota_ml_researcher.core.errors import ResearcherError
from sota_ml_researcher.engine import external, rest, wire
from sota_ml_researcher.engine.futures import Promise
from sota_ml_researcher.engine.interface import LoraSpec, RequestRejectedError
from sota_ml_researcher.engine.service import Engine
from sota_ml_researcher.engine.store import NoSuchCheckpointError

# The SDK gives a poll 45 s; answering "try again" well before keeps proxies and clients content.
_POLL_S = 20.0
_SWEEP_S = 30.0
MOST_BODY_BYTES = 256 * 1024 * 1024
_OPEN_PATHS = frozenset({"/api/v1/healthz"})
# Not a sign that somebody needs the engine: an idle client sends these for ever.
_BACKGROUND = frozenset({"/api/v1/session_heartbeat", "/api/v1/telemetry", "/api/v1/client/dynamic_config"})

Handler = Callable[[Request], Awaitable[Response]]


def build_app(engine: Engine, *, api_key: str | None = None, on_idle: Callable[[], None] | None = None) -> Starlette:
    """The ASGI application.

    Args:
        engine: What it serves.
        api_key: If given, every request must carry it.
        on_idle: Called every half minute while there is nothing to do.
    """

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncGenerator[None]:
        tasks = [asyncio.create_task(engine.scheduler.run()), asyncio.create_task(_sweep(engine, on_idle))]
        try:
            yield
        finally:
            engine.scheduler.close()
            for task in tasks:
                task.cancel()

    app = Starlette(
        routes=[*_routes(), *rest.routes(), *external.routes()],
        lifespan=lifespan,
        middleware=[Middleware(_Gate, engine=engine, api_key=api_key)],
        exception_handlers={
            RequestRejectedError: _refuse,
            ResearcherError: _refuse,
            ValidationError: _malformed,
            HTTPException: _http_error,
        },
    )
    app.state.engine = engine
    return app


async def _sweep(engine: Engine, on_idle: Callable[[], None] | None) -> None:
    while True:
        await asyncio.sleep(_SWEEP_S)
        engine.forget_silent(time.time())
        if on_idle is not None and not engine.scheduler.busy and not engine.scheduler.waiting:
            on_idle()


class _Gate:
    """Checks the key and the size of a body before anything reads it."""

    def __init__(self, app: ASGIApp, engine: Engine, api_key: str | None) -> None:
        self._app = app
        self._engine = engine
        self._api_key = api_key

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            if scope["path"] not in _OPEN_PATHS | _BACKGROUND:
                self._engine.scheduler.last_work = time.monotonic()
            refusal = self._refusal(scope)
            if refusal is not None:
                await refusal(scope, receive, send)
                return
        await self._app(scope, receive, send)

    def _refusal(self, scope: Scope) -> Response | None:
        headers = {name.decode().lower(): value.decode("latin-1") for name, value in scope["headers"]}
        signed = scope["path"].startswith(external.FILES_PATH)
        if scope["path"] not in _OPEN_PATHS and not signed and not self._key_is_right(headers):
            return _error(401, "the API key was refused by this engine")
        length = headers.get("content-length", "0")
        if not length.isdecimal() or int(length) > MOST_BODY_BYTES:
            return _error(413, f"the body is larger than {MOST_BODY_BYTES:,} bytes: send fewer sequences at once")
        return None

    def _key_is_right(self, headers: dict[str, str]) -> bool:
        given = headers.get("x-api-key") or headers.get("authorization", "").removeprefix("Bearer ")
        return self._api_key is None or hmac.compare_digest(given.encode(), self._api_key.encode())


def _error(status: int, message: str) -> JSONResponse:
    return JSONResponse({"detail": message, "error": message}, status_code=status)


async def _refuse(request: Request, error: Exception) -> Response:
    return _error(404 if isinstance(error, NoSuchCheckpointError) else 400, str(error))


async def _malformed(request: Request, error: Exception) -> Response:
    problems = error.errors(include_url=False, include_input=False) if isinstance(error, ValidationError) else []
    places = "; ".join(f"{'.'.join(map(str, p['loc']))}: {p['msg']}" for p in problems[:5])
    return _error(422, f"the request does not fit its type: {places}")


async def _http_error(request: Request, error: Exception) -> Response:
    status = error.status_code if isinstance(error, HTTPException) else 500
    if status == 404:
        return _error(404, f"this engine has no {request.method} {request.url.path}")
    return _error(status, str(error))


def engine_of(request: Request) -> Engine:
    """The engine behind a request."""
    return request.app.state.engine


async def body_of(request: Request) -> bytes:
    """The whole body, decompressed.

    Raises:
        RequestRejectedError: If it is larger than allowed, or not what its encoding says.
    """
    raw = await request.body()
    if request.headers.get("content-encoding") == "zstd":
        try:
            raw = zstandard.ZstdDecompressor().decompressobj().decompress(raw)
        except zstandard.ZstdError as error:
            raise RequestRejectedError("the body is not zstd, as its encoding says") from error
    if len(raw) > MOST_BODY_BYTES:
        raise RequestRejectedError(f"the body is larger than {MOST_BODY_BYTES:,} bytes")
    return raw


async def json_of(request: Request) -> dict[str, Any]:
    """The body as a JSON object.

    Raises:
        RequestRejectedError: If it is none.
    """
    try:
        value = json.loads(await body_of(request))
    except ValueError as error:
        raise RequestRejectedError(f"the body is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise RequestRejectedError("the body is not a JSON object")
    return cast("dict[str, Any]", value)


async def typed(request: Request, model: type[Any]) -> Any:
    """The body as one of the SDK's request types."""
    return model.model_validate(await json_of(request))


def _answer(model: BaseModel | Any) -> Response:
    return JSONResponse(model.model_dump(mode="json"))


def _promised(promise: Promise, **extra: Any) -> Response:
    return JSONResponse({"request_id": promise.request_id, **extra})


async def _health(request: Request) -> Response:
    engine = engine_of(request)
    return JSONResponse(
        {
            "status": "ok",
            "engine": version("sota-ml-researcher"),
            "pid": os.getpid(),
            "models": engine.models.names,
            "loaded": engine.models.describe(),
            "adapters": len(engine.trainings),
            "waiting": engine.scheduler.waiting,
        }
    )


async def _client_config(request: Request) -> Response:
    return _answer(
        types.ClientConfigResponse(
            parallel_fwdbwd_chunks=True,
            sample_use_retrieve_futures=True,
            # Over loopback compressing costs more than it saves.
            proto_compress_fwdbwd=False,
            use_pyqwest_transport=False,
        )
    )


async def _dynamic_config(request: Request) -> Response:
    return _answer(types.ClientDynamicConfigResponse(sample_cancel_enabled=True))


async def _capabilities(request: Request) -> Response:
    models = engine_of(request).models
    listed = [
        types.SupportedModel(
            model_name=name, max_context_length=models.context_length(name), trainable=True, sampleable=True
        )
        for name in models.names
    ]
    return _answer(types.GetServerCapabilitiesResponse(supported_models=listed))


async def _create_session(request: Request) -> Response:
    body = await typed(request, types.CreateSessionRequest)
    session = engine_of(request).create_session(body.user_metadata, body.display_name)
    return _answer(types.CreateSessionResponse(session_id=session.session_id))


async def _heartbeat(request: Request) -> Response:
    body = await json_of(request)
    engine_of(request).beat(str(body.get("session_id")))
    return JSONResponse({"type": "session_heartbeat"})


async def _telemetry(request: Request) -> Response:
    await request.body()  # taken and dropped: nothing leaves this machine
    return JSONResponse({"status": "accepted"})


async def _create_model(request: Request) -> Response:
    body = await typed(request, types.CreateModelRequest)
    lora = body.lora_config
    if lora is None:
        raise RequestRejectedError("lora_config is missing: this engine trains LoRA adapters")
    spec = LoraSpec(lora.rank, lora.seed, lora.train_mlp, lora.train_attn, lora.train_unembed)
    engine = engine_of(request)
    return _promised(engine.create_model(body.session_id, body.model_seq_id, body.base_model, spec, body.user_metadata))


async def _get_info(request: Request) -> Response:
    training = engine_of(request).training(str((await json_of(request)).get("model_id")))
    name = training.run.base_model
    data = types.ModelData(arch="causal-lm", model_name=name, tokenizer_id=name)
    return _answer(
        types.GetInfoResponse(
            type="get_info",
            model_data=data,
            model_id=training.run.run_id,
            is_lora=True,
            lora_rank=training.spec.rank,
            model_name=name,
        )
    )


async def _forward_backward(request: Request) -> Response:
    return _promised(engine_of(request).loss(wire.decode_loss_request(await body_of(request))))


async def _optim_step(request: Request) -> Response:
    body = await typed(request, types.OptimStepRequest)
    if not isinstance(body.optim_params, types.AdamParams):
        raise RequestRejectedError("this engine has AdamW only: send adam_params")
    settings = wire.adam_settings(body.optim_params)
    return _promised(engine_of(request).optim_step(body.model_id, body.seq_id, settings))


async def _save_weights(request: Request) -> Response:
    body = await typed(request, types.SaveWeightsRequest)
    promise = engine_of(request).save(
        body.model_id, body.seq_id, "weights", body.path, ttl_s=body.ttl_seconds, metadata=body.user_metadata
    )
    return _promised(promise)


async def _save_for_sampler(request: Request) -> Response:
    body = await typed(request, types.SaveWeightsForSamplerRequest)
    engine = engine_of(request)
    if body.sampling_session_seq_id is not None and body.path is None:
        return _promised(engine.snapshot(body.model_id, body.seq_id, body.sampling_session_seq_id))
    promise = engine.save(
        body.model_id, body.seq_id, "sampler_weights", body.path, ttl_s=body.ttl_seconds, metadata=body.user_metadata
    )
    return _promised(promise)


async def _save_external(request: Request) -> Response:
    body = await typed(request, types.SaveWeightsExternalRequest)
    finish = external.encrypter(body.age_encryption_recipients or ())
    engine = engine_of(request)
    return _promised(
        engine.save(body.model_id, body.seq_id, external.KIND, body.path, ttl_s=body.ttl_seconds, finish=finish)
    )


async def _load_weights(request: Request) -> Response:
    body = await typed(request, types.LoadWeightsRequest)
    engine = engine_of(request)
    if body.session_id is not None and body.model_seq_id is not None:
        promise = engine.create_from_checkpoint(
            body.session_id, body.model_seq_id, body.path, optimizer=body.optimizer, user_metadata=body.user_metadata
        )
        return _promised(promise, model_id=f"{body.session_id}:train:{body.model_seq_id}")
    if body.model_id is None:
        raise RequestRejectedError("give model_id, or session_id with model_seq_id")
    return _promised(engine.load_weights(body.model_id, body.seq_id, body.path, optimizer=body.optimizer))


async def _create_sampling_session(request: Request) -> Response:
    body = await typed(request, types.CreateSamplingSessionRequest)
    sampler = engine_of(request).create_sampler(
        body.session_id, body.sampling_session_seq_id, body.base_model, body.model_path
    )
    return _answer(types.CreateSamplingSessionResponse(sampling_session_id=sampler.sampler_id))


async def _asample(request: Request) -> Response:
    body = await json_of(request)
    engine = engine_of(request)
    sampler_id = body.get("sampling_session_id")
    if sampler_id is not None:
        sampler = engine.samplers.get(sampler_id)
        if sampler is None:
            raise RequestRejectedError(f"there is no sampling session {sampler_id} here: create a new sampling client")
    else:
        sampler = engine.create_sampler("direct", time.monotonic_ns(), body.get("base_model"), body.get("model_path"))
    settings = wire.sample_settings(body)
    promise = engine.sample(sampler, body.get("seq_id"), settings)
    ids = [f"{promise.request_id}:{i}" for i in range(max(1, settings.num_samples))]
    return _promised(promise, sample_sequence_ids=ids)


async def _retrieve_future(request: Request) -> Response:
    body = await json_of(request)
    promise = engine_of(request).promises.get(str(body.get("request_id")))
    if promise is None:
        return _error(410, "this request is not known here: the engine was restarted, or its result has expired")
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(promise.done.wait(), _POLL_S)
    if not promise.done.is_set():
        again = {"type": "try_again", "request_id": promise.request_id, "queue_state": "active"}
        return JSONResponse(again)
    if promise.failure is not None:
        return JSONResponse({"error": promise.failure.message, "category": promise.failure.category})
    if promise.payload is not None:
        return Response(promise.payload, media_type=wire.PROTOBUF)
    return JSONResponse(promise.answer)


async def _retrieve_futures(request: Request) -> Response:
    body = await typed(request, types.FuturesRetrieveRequest)
    promises = engine_of(request).promises
    sampler, cursor = body.target.sampling_session_id, body.prev_cursor
    if not promises.since(sampler, cursor) and body.timeout != 0:
        await promises.news(sampler, _POLL_S)
    done = promises.since(sampler, cursor)
    completions = [
        {"state": "failed" if p.failure else "finished", "request_id": p.request_id}
        | ({} if p.failure else {"response_payload_uncompressed_size": p.nbytes})
        for p in done
    ]
    return JSONResponse({"completions": completions, "cursor": cursor + len(done)})


async def _cancel_future(request: Request) -> Response:
    promise = engine_of(request).promises.get(str((await json_of(request)).get("request_id")))
    if promise is not None and not promise.done.is_set():
        promise.cancelled = True
    return JSONResponse({"status": "ok"})


async def _unload_model(request: Request) -> Response:
    engine, model_id = engine_of(request), str((await json_of(request)).get("model_id"))
    engine.trainings.pop(model_id, None)
    engine.scheduler.drop_lane(model_id, "the training client was unloaded")
    return JSONResponse({"model_id": model_id, "type": "unload_model"})


def _routes() -> list[Route]:
    def post(path: str, handler: Handler) -> Route:
        return Route(f"/api/v1/{path}", handler, methods=["POST"])

    return [
        Route("/api/v1/healthz", _health),
        Route("/api/v1/get_server_capabilities", _capabilities),
        post("client/config", _client_config),
        post("client/dynamic_config", _dynamic_config),
        post("create_session", _create_session),
        post("session_heartbeat", _heartbeat),
        post("telemetry", _telemetry),
        post("create_model", _create_model),
        post("get_info", _get_info),
        post("forward_backward", _forward_backward),
        post("optim_step", _optim_step),
        post("save_weights", _save_weights),
        post("save_weights_for_sampler", _save_for_sampler),
        post("save_weights_external", _save_external),
        post("load_weights", _load_weights),
        post("create_sampling_session", _create_sampling_session),
        post("asample", _asample),
        post("retrieve_future", _retrieve_future),
        post("retrieve_futures", _retrieve_futures),
        post("cancel_future", _cancel_future),
        post("unload_model", _unload_model),
    ]
