"""The protocol of training and sampling: requests in, promises out, results by long poll."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Callable
from functools import partial
from importlib.metadata import version

from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from tinker import types

from .. import wire
from ..interface import LoraSpec, RequestRejectedError
from ..json_fields import Fields
from ..sample_request import SampleRequest
from ..service.futures import Promise
from ..service.sample_runner import SampleJob
from ..service.sampling_sessions import MOST_SEQ
from ..service.service import Engine
from ..service.store import SaveOptions
from . import identity
from .http_answers import (
    MOST_JSON_BYTES,
    BodyT,
    answer,
    body_of,
    engine_of,
    parsed,
    post,
    promised,
    refusal,
    short,
    text_field,
    typed_body,
)

# The SDK gives a poll 45 s; answering "try again" well before keeps proxies and clients content.
_POLL_S = 20.0
# One that waits for room is told so soon, and may then say it to its user.
_PAUSED_POLL_S = 2.0


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
    engine_of(request).beat(await text_field(request, "session_id"))
    return answer(types.SessionHeartbeatResponse())


async def _telemetry(request: Request) -> Response:
    await body_of(request)  # taken and dropped: nothing leaves this machine
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
    _check_optimizer(body.optimizer_config)
    spec = LoraSpec(lora.rank, lora.seed, lora.train_mlp, lora.train_attn, lora.train_unembed)
    return engine.create_model(body.session_id, body.model_seq_id, body.base_model, spec, body.user_metadata)


def _check_optimizer(config: types.OptimizerConfig | None) -> None:
    if config is not None and config.type != "adamw":
        raise RequestRejectedError(
            f"this engine has no optimizer '{config.type[:80]}': its algorithm is not published. Use adamw"
        )


def _optim_step(engine: Engine, body: types.OptimStepRequest) -> Promise:
    settings = wire.adam_settings(body.optim_params) if isinstance(body.optim_params, types.AdamParams) else None
    return engine.optim_step(body.model_id, body.seq_id, settings)


def _save_weights(engine: Engine, body: types.SaveWeightsRequest) -> Promise:
    options = SaveOptions("weights", body.path, body.ttl_seconds, body.user_metadata, body.overwrite)
    return engine.save(body.model_id, body.seq_id, options)


def _save_for_sampler(engine: Engine, body: types.SaveWeightsForSamplerRequest) -> Promise:
    if body.sampling_session_seq_id is not None and body.path is None:
        if body.ttl_seconds is not None or body.user_metadata:
            why = "weights in memory have no ttl_seconds and no user_metadata: give a path to save"
            return engine.refused(body.model_id, body.seq_id, why)
        inflight = body.kind == "inflight"
        return engine.snapshot(body.model_id, body.seq_id, body.sampling_session_seq_id, inflight=inflight)
    if body.kind == "inflight":
        why = "an inflight save is kept in memory: give sampling_session_seq_id and no path"
        return engine.refused(body.model_id, body.seq_id, why)
    options = SaveOptions("sampler_weights", body.path, body.ttl_seconds, body.user_metadata)
    return engine.save(body.model_id, body.seq_id, options)


def _save_external(engine: Engine, body: types.SaveWeightsExternalRequest) -> Promise:
    options = SaveOptions("external_weights", body.path, body.ttl_seconds)
    return engine.save(body.model_id, body.seq_id, options, encrypted=bool(body.age_encryption_recipients))


async def _load_weights(request: Request) -> Response:
    body, sent = await typed_body(request, types.LoadWeightsRequest)
    engine, path = engine_of(request), request.url.path
    if body.session_id is not None and body.model_seq_id is not None and body.model_id is None:
        _check_load(body)
        promise = engine.create_from_checkpoint(
            body.session_id,
            body.model_seq_id,
            body.path,
            optimizer=body.optimizer,
            user_metadata=body.user_metadata,
            base_model=body.base_model,
        )
        return promised(promise, path, sent, model_id=f"{body.session_id}:train:{body.model_seq_id}")
    if body.model_id is None or body.session_id is not None or body.model_seq_id is not None:
        raise RequestRejectedError("give either model_id, or session_id with model_seq_id")
    try:
        _check_load(body)
        if body.base_model is not None or body.user_metadata is not None:
            raise RequestRejectedError("base_model and user_metadata belong to a new adapter: this one has its own")
    except RequestRejectedError as error:
        return promised(engine.refused(body.model_id, body.seq_id, str(error)), path, sent)
    promise = engine.load_weights(body.model_id, body.seq_id, body.path, optimizer=body.optimizer)
    return promised(promise, path, sent)


def _check_load(body: types.LoadWeightsRequest) -> None:
    _check_optimizer(body.optimizer_config)
    if body.weights_access_token is not None:
        raise RequestRejectedError(identity.NO_ACCOUNTS)


def _create_sampling_session(engine: Engine, body: types.CreateSamplingSessionRequest) -> BaseModel:
    session = engine.sampling.create(body.session_id, body.sampling_session_seq_id, body.base_model, body.model_path)
    return types.CreateSamplingSessionResponse(sampling_session_id=session.sampler_id)


def _join_sampling_session(engine: Engine, body: types.JoinSamplingSessionRequest) -> BaseModel:
    return types.JoinSamplingSessionResponse(client_counter=engine.sampling.join(body.sampling_session_id))


async def _get_info(request: Request) -> Response:
    engine = engine_of(request)
    training = engine.training(await text_field(request, "model_id"))
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
    body = await body_of(request)
    return promised(engine_of(request).loss(wire.LossRequest.parse(body)), request.url.path, body)


async def _asample(request: Request) -> Response:
    sent = await body_of(request, MOST_JSON_BYTES)
    body = parsed(sent)
    engine, asked, fields = engine_of(request), SampleRequest.parse(body), Fields(body, "the request")
    sampler_id, base_model, path = (
        fields.optional_text(key) for key in ("sampling_session_id", "base_model", "model_path")
    )
    if sampler_id is not None:
        sampler = engine.sampling.get(sampler_id)
        engine.heard_of(sampler_id)
    else:
        sampler = engine.sampling.direct(base_model, path)
    job = SampleJob(
        sampler,
        asked.settings,
        partial(wire.encode_sample_output, layout=asked.target_layout),
        ends_implicitly=asked.ends_implicitly,
    )
    promise = engine.sampling.sample(job, fields.optional_whole("seq_id", 0, MOST_SEQ))
    ids = [f"{promise.request_id}:{i}" for i in range(asked.settings.num_samples)]
    return promised(promise, request.url.path, sent, sample_sequence_ids=ids)


def _wants_json(request: Request) -> bool:
    accepted = request.headers.get("accept", "*/*").lower()
    return "json" in accepted and wire.PROTOBUF not in accepted and "*/*" not in accepted


async def _retrieve_future(request: Request) -> Response:
    request_id = await text_field(request, "request_id")
    engine_of(request).heard_of(request_id)
    promise = engine_of(request).promises.get(request_id)
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
    if isinstance(promise.result, wire.Encoded):
        if _wants_json(request):
            return JSONResponse(wire.as_json(promise.result))
        return Response(promise.result.payload, media_type=wire.PROTOBUF)
    return answer(promise.result)


async def _retrieve_futures(request: Request) -> Response:
    body, _ = await typed_body(request, types.FuturesRetrieveRequest)
    promises = engine_of(request).promises
    sampler, cursor = short(body.target.sampling_session_id, "sampling_session_id"), body.prev_cursor
    if cursor < 0:
        raise RequestRejectedError("prev_cursor is the cursor of the answer before, and never negative")
    engine_of(request).heard_of(sampler)
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
    engine_of(request).sampling.cancel(await text_field(request, "request_id"))
    return JSONResponse({"status": "ok"})


async def _unload_model(request: Request) -> Response:
    model_id = await text_field(request, "model_id")
    engine_of(request).unload(model_id)
    return answer(types.UnloadModelResponse(model_id=model_id, type="unload_model"))


def _typed(path: str, kind: type[BodyT], handle: Callable[[Engine, BodyT], Promise | BaseModel]) -> Route:
    """A route whose body is one of the SDK's requests, and whose answer one of its responses or a promise of one."""

    async def handler(request: Request) -> Response:
        body, sent = await typed_body(request, kind)
        result = handle(engine_of(request), body)
        return promised(result, request.url.path, sent) if isinstance(result, Promise) else answer(result)

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
        post("load_weights", _load_weights),
        _typed("create_sampling_session", types.CreateSamplingSessionRequest, _create_sampling_session),
        _typed("join_sampling_session", types.JoinSamplingSessionRequest, _join_sampling_session),
        post("asample", _asample),
        post("retrieve_future", _retrieve_future),
        post("retrieve_futures", _retrieve_futures),
        post("cancel_future", _cancel_future),
        post("unload_model", _unload_model),
    ]
