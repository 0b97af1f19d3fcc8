"""The protocol of training and sampling: requests in, promises out, results by long poll."""

from __future__ import annotations

import asyncio
import contextlib
import os
from importlib.metadata import version

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from tinker import types

from .. import wire
from ..interface import LoraSpec, RequestRejectedError
from . import identity
from .http_answers import answer, body_of, engine_of, json_of, post, promised, refusal, typed

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
    return JSONResponse({"jwt": identity.issue_token(request.app.state.api_key)})


async def _dynamic_config(request: Request) -> Response:
    return answer(types.ClientDynamicConfigResponse(sample_cancel_enabled=True))


async def _capabilities(request: Request) -> Response:
    models = engine_of(request).models
    listed = [
        types.SupportedModel(
            model_name=name, max_context_length=models.context_length(name), trainable=True, sampleable=True
        )
        for name in models.names
    ]
    return answer(types.GetServerCapabilitiesResponse(supported_models=listed))


async def _create_session(request: Request) -> Response:
    body = await typed(request, types.CreateSessionRequest)
    identity.check_project(body.project_id)
    session = engine_of(request).create_session(body.user_metadata, body.display_name)
    return answer(types.CreateSessionResponse(session_id=session.session_id))


async def _heartbeat(request: Request) -> Response:
    body = await json_of(request)
    engine_of(request).beat(str(body.get("session_id")))
    return JSONResponse({"type": "session_heartbeat"})


async def _telemetry(request: Request) -> Response:
    await request.body()  # taken and dropped: nothing leaves this machine
    return JSONResponse({"status": "accepted"})


async def _create_custom_loss(request: Request) -> Response:
    body = await typed(request, types.CreateCustomLossRequest)
    inputs = [(given.name, given.rank) for given in body.inputs]
    nodes = [node.model_dump() for node in body.graph.nodes]
    promise = engine_of(request).create_custom_loss(body.session_id, body.custom_loss_seq_id, body.name, inputs, nodes)
    return promised(promise)


async def _create_model(request: Request) -> Response:
    body = await typed(request, types.CreateModelRequest)
    lora = body.lora_config
    if lora is None:
        raise RequestRejectedError("lora_config is missing: this engine trains LoRA adapters")
    if body.optimizer_config.type != "adamw":
        raise RequestRejectedError(
            f"this engine has no optimizer '{body.optimizer_config.type}': its algorithm is not published. Use adamw"
        )
    spec = LoraSpec(lora.rank, lora.seed, lora.train_mlp, lora.train_attn, lora.train_unembed)
    engine = engine_of(request)
    return promised(engine.create_model(body.session_id, body.model_seq_id, body.base_model, spec, body.user_metadata))


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


async def _optim_step(request: Request) -> Response:
    body = await typed(request, types.OptimStepRequest)
    settings = wire.adam_settings(body.optim_params) if isinstance(body.optim_params, types.AdamParams) else None
    return promised(engine_of(request).optim_step(body.model_id, body.seq_id, settings))


async def _save_weights(request: Request) -> Response:
    body = await typed(request, types.SaveWeightsRequest)
    promise = engine_of(request).save(
        body.model_id,
        body.seq_id,
        "weights",
        body.path,
        ttl_s=body.ttl_seconds,
        metadata=body.user_metadata,
        overwrite=body.overwrite,
    )
    return promised(promise)


async def _save_for_sampler(request: Request) -> Response:
    body = await typed(request, types.SaveWeightsForSamplerRequest)
    engine = engine_of(request)
    if body.sampling_session_seq_id is not None and body.path is None:
        return promised(
            engine.snapshot(body.model_id, body.seq_id, body.sampling_session_seq_id, inflight=body.kind == "inflight")
        )
    promise = engine.save(
        body.model_id, body.seq_id, "sampler_weights", body.path, ttl_s=body.ttl_seconds, metadata=body.user_metadata
    )
    return promised(promise)


async def _save_external(request: Request) -> Response:
    body = await typed(request, types.SaveWeightsExternalRequest)
    promise = engine_of(request).save(
        body.model_id,
        body.seq_id,
        "external_weights",
        body.path,
        ttl_s=body.ttl_seconds,
        encrypted=bool(body.age_encryption_recipients),
    )
    return promised(promise)


async def _load_weights(request: Request) -> Response:
    body = await typed(request, types.LoadWeightsRequest)
    engine = engine_of(request)
    if body.session_id is not None and body.model_seq_id is not None:
        promise = engine.create_from_checkpoint(
            body.session_id, body.model_seq_id, body.path, optimizer=body.optimizer, user_metadata=body.user_metadata
        )
        return promised(promise, model_id=f"{body.session_id}:train:{body.model_seq_id}")
    if body.model_id is None:
        raise RequestRejectedError("give model_id, or session_id with model_seq_id")
    return promised(engine.load_weights(body.model_id, body.seq_id, body.path, optimizer=body.optimizer))


async def _create_sampling_session(request: Request) -> Response:
    body = await typed(request, types.CreateSamplingSessionRequest)
    sampler = engine_of(request).sampling.create(
        body.session_id, body.sampling_session_seq_id, body.base_model, body.model_path
    )
    return answer(types.CreateSamplingSessionResponse(sampling_session_id=sampler.sampler_id))


async def _join_sampling_session(request: Request) -> Response:
    body = await typed(request, types.JoinSamplingSessionRequest)
    counter = engine_of(request).sampling.join(body.sampling_session_id)
    return answer(types.JoinSamplingSessionResponse(client_counter=counter))


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
    if promise.payload is not None:
        return Response(promise.payload, media_type=wire.PROTOBUF)
    return JSONResponse(promise.answer)


async def _retrieve_futures(request: Request) -> Response:
    body = await typed(request, types.FuturesRetrieveRequest)
    promises = engine_of(request).promises
    sampler, cursor = body.target.sampling_session_id, body.prev_cursor
    promises.forget(body.retrieved_request_ids)
    if not promises.since(sampler, cursor) and body.timeout != 0:
        await promises.news(sampler, _POLL_S)
    done = promises.since(sampler, cursor)
    completions = [
        {"state": "failed" if c.failed else "finished", "request_id": c.request_id}
        | ({} if c.failed else {"response_payload_uncompressed_size": c.nbytes})
        for c in done
    ]
    return JSONResponse({"completions": completions, "cursor": cursor + len(done)})


async def _cancel_future(request: Request) -> Response:
    engine_of(request).sampling.cancel(str((await json_of(request)).get("request_id")))
    return JSONResponse({"status": "ok"})


async def _unload_model(request: Request) -> Response:
    model_id = str((await json_of(request)).get("model_id"))
    engine_of(request).unload(model_id)
    return JSONResponse({"model_id": model_id, "type": "unload_model"})


def routes() -> list[Route]:
    """The training and sampling clients' paths."""
    return [
        Route("/api/v1/healthz", _health),
        Route("/api/v1/get_server_capabilities", _capabilities),
        post("client/config", _client_config),
        post("client/dynamic_config", _dynamic_config),
        post("auth/token", _auth_token),
        post("create_session", _create_session),
        post("session_heartbeat", _heartbeat),
        post("telemetry", _telemetry),
        post("create_custom_loss", _create_custom_loss),
        post("create_model", _create_model),
        post("get_info", _get_info),
        post("forward_backward", _forward_backward),
        post("optim_step", _optim_step),
        post("save_weights", _save_weights),
        post("save_weights_for_sampler", _save_for_sampler),
        post("save_weights_external", _save_external),
        post("load_weights", _load_weights),
        post("create_sampling_session", _create_sampling_session),
        post("join_sampling_session", _join_sampling_session),
        post("asample", _asample),
        post("retrieve_future", _retrieve_future),
        post("retrieve_futures", _retrieve_futures),
        post("cancel_future", _cancel_future),
        post("unload_model", _unload_model),
    ]
