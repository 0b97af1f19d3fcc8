"""The protocol of training and sampling: requests in, promises out, results by long poll."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Callable
from importlib.metadata import version
from typing import TypeVar

from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from tinker import types

from .. import wire
from ..interface import LoraSpec, RequestRejectedError
from ..service.futures import Promise
from ..service.service import Engine
from ..service.store import SaveOptions
from . import identity
from .http_answers import answer, body_of, engine_of, json_of, post, promised, refusal

# The SDK gives a poll 45 s; answering "try again" well before keeps proxies and clients content.
_POLL_S = 20.0
# One that waits for room is told so soon, and may then say it to its user.
_PAUSED_POLL_S = 2.0
BodyT = TypeVar("BodyT", bound=BaseModel)


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
            "compute_s": engine.scheduler.compute_s,
        }
    )


async def _client_config(request: Request) -> Response:
    return answer(
        types.ClientConfigResponse(
            pjwt_auth_enabled=True,
            parallel_fwdbwd_chunks=True,
            sample_use_retrieve_futures=True,
            sample_join_sampling_session=True,
            custom_loss_server_side=True,
            # Over loopback compressing costs more than it saves.
            proto_compress_fwdbwd=False,
            use_pyqwest_transport=False,
        )
    )


async def _auth_token(request: Request) -> Response:
    return answer(types.AuthTokenResponse(jwt=identity.issue_token(request.app.state.api_key)))


async def _dynamic_config(request: Request) -> Response:
    return answer(types.ClientDynamicConfigResponse(sample_cancel_enabled=True))


async def _capabilities(request: Request) -> Response:
    models = engine_of(request).models
    supported = [
        types.SupportedModel(
            model_name=name, max_context_length=models.context_length(name), trainable=True, sampleable=True
        )
        for name in models.names
    ]
    return answer(types.GetServerCapabilitiesResponse(supported_models=supported))


async def _heartbeat(request: Request) -> Response:
    body = await json_of(request)
    engine_of(request).beat(str(body.get("session_id")))
    return answer(types.SessionHeartbeatResponse())


async def _telemetry(request: Request) -> Response:
    await request.body()  # taken and dropped: nothing leaves this machine
    return answer(types.TelemetryResponse(status="accepted"))


def _create_session(engine: Engine, body: types.CreateSessionRequest) -> BaseModel:
    identity.check_project(body.project_id)
    session = engine.create_session(body.user_metadata, body.display_name)
    return types.CreateSessionResponse(session_id=session.session_id)


def _create_custom_loss(engine: Engine, body: types.CreateCustomLossRequest) -> Promise:
    inputs = [(declared.name, declared.rank) for declared in body.inputs]
    nodes = [node.model_dump() for node in body.graph.nodes]
    return engine.create_custom_loss(body.session_id, body.custom_loss_seq_id, body.name, inputs, nodes)


def _create_model(engine: Engine, body: types.CreateModelRequest) -> Promise:
    lora = body.lora_config
    if lora is None:
        raise RequestRejectedError("lora_config is missing: this engine trains LoRA adapters")
    if body.optimizer_config.type != "adamw":
        raise RequestRejectedError(
            f"this engine has no optimizer '{body.optimizer_config.type}': its algorithm is not published. Use adamw"
        )
    spec = LoraSpec(lora.rank, lora.seed, lora.train_mlp, lora.train_attn, lora.train_unembed)
    return engine.create_model(body.session_id, body.model_seq_id, body.base_model, spec, body.user_metadata)


def _optim_step(engine: Engine, body: types.OptimStepRequest) -> Promise:
    settings = wire.adam_settings(body.optim_params) if isinstance(body.optim_params, types.AdamParams) else None
    return engine.optim_step(body.model_id, body.seq_id, settings)


def _save_weights(engine: Engine, body: types.SaveWeightsRequest) -> Promise:
    options = SaveOptions("weights", body.path, body.ttl_seconds, body.user_metadata, body.overwrite)
    return engine.save(body.model_id, body.seq_id, options)


def _save_for_sampler(engine: Engine, body: types.SaveWeightsForSamplerRequest) -> Promise:
    if body.sampling_session_seq_id is not None and body.path is None:
        inflight = body.kind == "inflight"
        return engine.snapshot(body.model_id, body.seq_id, body.sampling_session_seq_id, inflight=inflight)
    options = SaveOptions("sampler_weights", body.path, body.ttl_seconds, body.user_metadata)
    return engine.save(body.model_id, body.seq_id, options)


def _save_external(engine: Engine, body: types.SaveWeightsExternalRequest) -> Promise:
    options = SaveOptions("external_weights", body.path, body.ttl_seconds)
    return engine.save(body.model_id, body.seq_id, options, encrypted=bool(body.age_encryption_recipients))


def _load_weights(engine: Engine, body: types.LoadWeightsRequest) -> Promise | Response:
    if body.session_id is not None and body.model_seq_id is not None:
        promise = engine.create_from_checkpoint(
            body.session_id, body.model_seq_id, body.path, optimizer=body.optimizer, user_metadata=body.user_metadata
        )
        return promised(promise, model_id=f"{body.session_id}:train:{body.model_seq_id}")
    if body.model_id is None:
        raise RequestRejectedError("give model_id, or session_id with model_seq_id")
    return engine.load_weights(body.model_id, body.seq_id, body.path, optimizer=body.optimizer)


def _create_sampling_session(engine: Engine, body: types.CreateSamplingSessionRequest) -> BaseModel:
    session = engine.sampling.create(body.session_id, body.sampling_session_seq_id, body.base_model, body.model_path)
    return types.CreateSamplingSessionResponse(sampling_session_id=session.sampler_id)


def _join_sampling_session(engine: Engine, body: types.JoinSamplingSessionRequest) -> BaseModel:
    return types.JoinSamplingSessionResponse(client_counter=engine.sampling.join(body.sampling_session_id))


async def _get_info(request: Request) -> Response:
    engine = engine_of(request)
    training = engine.training(str((await json_of(request)).get("model_id")))
    name = training.run.base_model
    data = types.ModelData(arch="causal-lm", model_name=name, tokenizer_id=engine.models.source(name))
    return answer(
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
    return promised(engine_of(request).loss(wire.LossRequest.parse(await body_of(request))))


async def _asample(request: Request) -> Response:
    body = await json_of(request)
    engine = engine_of(request)
    sampler_id = body.get("sampling_session_id")
    if sampler_id is not None:
        sampler = engine.sampling.get(str(sampler_id))
    else:
        sampler = engine.sampling.direct(body.get("base_model"), body.get("model_path"))
    settings = wire.sample_settings(body)
    promise = engine.sampling.sample(sampler, body.get("seq_id"), settings)
    ids = [f"{promise.request_id}:{i}" for i in range(max(1, settings.num_samples))]
    return promised(promise, sample_sequence_ids=ids)


async def _retrieve_future(request: Request) -> Response:
    body = await json_of(request)
    promise = engine_of(request).promises.get(str(body.get("request_id")))
    if promise is None:
        return refusal(410, "this request is not known here: the engine was restarted, or its result has expired")
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(promise.done.wait(), _PAUSED_POLL_S if promise.paused else _POLL_S)
    if not promise.done.is_set():
        again: dict[str, object] = {"type": "try_again", "request_id": promise.request_id, "queue_state": "active"}
        if promise.paused:
            again |= {"queue_state": "paused_capacity", "queue_state_reason": promise.paused}
        return JSONResponse(again)
    if promise.failure is not None:
        return JSONResponse({"error": promise.failure.message, "category": promise.failure.category})
    if isinstance(promise.result, bytes):
        return Response(promise.result, media_type=wire.PROTOBUF)
    return answer(promise.result)


async def _retrieve_futures(request: Request) -> Response:
    body = types.FuturesRetrieveRequest.model_validate(await json_of(request))
    promises = engine_of(request).promises
    sampler, cursor = body.target.sampling_session_id, body.prev_cursor
    promises.forget(body.retrieved_request_ids)
    if not promises.since(sampler, cursor) and body.timeout != 0:
        await promises.news(sampler, _POLL_S)
    done = promises.since(sampler, cursor)
    completions: list[types.FutureCompletion] = [
        types.FutureFailed(state="failed", request_id=ended.request_id)
        if ended.failed
        else types.FutureFinished(
            state="finished", request_id=ended.request_id, response_payload_uncompressed_size=ended.nbytes
        )
        for ended in done
    ]
    return answer(types.FuturesRetrieveResponse(completions=completions, cursor=cursor + len(done)))


async def _cancel_future(request: Request) -> Response:
    engine_of(request).sampling.cancel(str((await json_of(request)).get("request_id")))
    return JSONResponse({"status": "ok"})


async def _unload_model(request: Request) -> Response:
    model_id = str((await json_of(request)).get("model_id"))
    engine_of(request).unload(model_id)
    return answer(types.UnloadModelResponse(model_id=model_id, type="unload_model"))


def _typed(path: str, kind: type[BodyT], handle: Callable[[Engine, BodyT], Promise | BaseModel | Response]) -> Route:
    """A route whose body is one of the SDK's requests, and whose answer one of its responses or a promise of one."""

    async def handler(request: Request) -> Response:
        result = handle(engine_of(request), kind.model_validate(await json_of(request)))
        if isinstance(result, Promise):
            return promised(result)
        return result if isinstance(result, Response) else answer(result)

    return post(path, handler)


def routes() -> list[Route]:
    """The training and sampling clients' paths."""
    return [
        Route("/api/v1/healthz", _health),
        Route("/api/v1/get_server_capabilities", _capabilities),
        post("client/config", _client_config),
        post("client/dynamic_config", _dynamic_config),
        post("auth/token", _auth_token),
        _typed("create_session", types.CreateSessionRequest, _create_session),
        post("session_heartbeat", _heartbeat),
        post("telemetry", _telemetry),
        _typed("create_custom_loss", types.CreateCustomLossRequest, _create_custom_loss),
        _typed("create_model", types.CreateModelRequest, _create_model),
        post("get_info", _get_info),
        post("forward_backward", _forward_backward),
        _typed("optim_step", types.OptimStepRequest, _optim_step),
        _typed("save_weights", types.SaveWeightsRequest, _save_weights),
        _typed("save_weights_for_sampler", types.SaveWeightsForSamplerRequest, _save_for_sampler),
        _typed("save_weights_external", types.SaveWeightsExternalRequest, _save_external),
        _typed("load_weights", types.LoadWeightsRequest, _load_weights),
        _typed("create_sampling_session", types.CreateSamplingSessionRequest, _create_sampling_session),
        _typed("join_sampling_session", types.JoinSamplingSessionRequest, _join_sampling_session),
        post("asample", _asample),
        post("retrieve_future", _retrieve_future),
        post("retrieve_futures", _retrieve_futures),
        post("cancel_future", _cancel_future),
        post("unload_model", _unload_model),
    ]
