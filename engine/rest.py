"""Looking after what is stored: training runs, checkpoints, sessions and samplers."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Literal

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from tinker import types

from sota_ml_researcher.engine.interface import RequestRejectedError
from sota_ml_researcher.engine.store import NoSuchCheckpointError, Run, Saved, Store

_OWNER = "local"
_MOST = 1000
_TYPES: Mapping[str, Literal["training", "sampler", "external"]] = {
    "weights": "training",
    "sampler_weights": "sampler",
    "external_weights": "external",
}


def _store(request: Request) -> Store:
    return request.app.state.engine.store


def _page(request: Request, total: int) -> tuple[int, int, types.Cursor]:
    try:
        limit = max(0, min(_MOST, int(request.query_params.get("limit", 100))))
        offset = max(0, int(request.query_params.get("offset", 0)))
    except ValueError as error:
        raise RequestRejectedError("limit and offset must be whole numbers") from error
    return limit, offset, types.Cursor(offset=offset, limit=limit, total_count=total)


def _time(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)


def checkpoint_of(saved: Saved) -> types.Checkpoint:
    """A stored checkpoint as the SDK describes one."""
    return types.Checkpoint(
        checkpoint_id=f"{saved.kind}/{saved.name}",
        checkpoint_type=_TYPES[saved.kind],
        time=_time(saved.created),
        tinker_path=saved.path,
        size_bytes=saved.size_bytes,
        public=saved.public,
        user_metadata={k: str(v) for k, v in saved.user_metadata.items()},
        expires_at=_time(saved.expires) if saved.expires else None,
    )


def _run_of(store: Store, run: Run) -> types.TrainingRun:
    saved = store.checkpoints(run.run_id)
    training = next((s for s in saved if s.kind == "weights"), None)
    sampler = next((s for s in saved if s.kind == "sampler_weights"), None)
    return types.TrainingRun(
        training_run_id=run.run_id,
        base_model=run.base_model,
        model_owner=_OWNER,
        is_lora=True,
        lora_rank=run.lora["rank"],
        last_request_time=_time(max([run.created, *(s.created for s in saved)])),
        last_checkpoint=checkpoint_of(training) if training else None,
        last_sampler_checkpoint=checkpoint_of(sampler) if sampler else None,
        user_metadata={k: str(v) for k, v in run.user_metadata.items()},
    )


def _json(model: Any) -> Response:
    return JSONResponse(model.model_dump(mode="json"))


def _no_run(run_id: str) -> NoSuchCheckpointError:
    return NoSuchCheckpointError(f"there is no training run {run_id} here")


async def _training_runs(request: Request) -> Response:
    store = _store(request)
    runs = store.runs()
    limit, offset, cursor = _page(request, len(runs))
    shown = [_run_of(store, run) for run in runs[offset : offset + limit]]
    return _json(types.TrainingRunsResponse(training_runs=shown, cursor=cursor))


async def _training_run(request: Request) -> Response:
    store, run_id = _store(request), request.path_params["run_id"]
    run = store.run(run_id)
    if run is None:
        raise _no_run(run_id)
    return _json(_run_of(store, run))


async def _run_checkpoints(request: Request) -> Response:
    store, run_id = _store(request), request.path_params["run_id"]
    if store.run(run_id) is None:
        raise _no_run(run_id)
    return _json(types.CheckpointsListResponse(checkpoints=[checkpoint_of(s) for s in store.checkpoints(run_id)]))


async def _checkpoints(request: Request) -> Response:
    saved = _store(request).checkpoints()
    limit, offset, cursor = _page(request, len(saved))
    shown = [checkpoint_of(s) for s in saved[offset : offset + limit]]
    return _json(types.CheckpointsListResponse(checkpoints=shown, cursor=cursor))


def _named(request: Request) -> Saved:
    given = request.path_params
    return _store(request).find(f"tinker://{given['run_id']}/{given['kind']}/{given['name']}")


async def _delete_checkpoint(request: Request) -> Response:
    _store(request).delete(_named(request))
    return Response(status_code=204)


async def _publish(request: Request) -> Response:
    _store(request).update(_named(request), public=request.method == "POST")
    return Response(status_code=204)


async def _set_ttl(request: Request) -> Response:
    body = json.loads(await request.body() or b"{}")
    ttl = body.get("ttl_seconds")
    if ttl is not None and (not isinstance(ttl, int) or ttl < 1):
        raise RequestRejectedError(f"ttl_seconds is {ttl!r}: give a positive number of seconds, or null to keep it")
    _store(request).update(_named(request), expires=time.time() + ttl if ttl else None)
    return Response(status_code=204)


async def _weights_info(request: Request) -> Response:
    body = json.loads(await request.body() or b"{}")
    saved = _store(request).find(str(body.get("tinker_path")))
    info = types.WeightsInfoResponse(
        base_model=saved.base_model,
        is_lora=True,
        lora_rank=saved.spec.rank,
        train_unembed=saved.spec.train_unembed,
        train_mlp=saved.spec.train_mlp,
        train_attn=saved.spec.train_attn,
    )
    return _json(info)


async def _copy_weights(request: Request) -> Response:
    body = json.loads(await request.body() or b"{}")
    store = _store(request)
    saved = store.find(str(body.get("source_path")))
    session = body.get("session_id") or "copies"
    slot = body.get("model_seq_id")
    run_id = f"{session}:train:{uuid.uuid4().hex[:8] if slot is None else slot}"
    run = Run(run_id, session, saved.base_model, saved.lora, {"copied_from": saved.path}, time.time())
    store.add_run(run)
    return JSONResponse({"tinker_path": store.copy(saved, run, ttl_s=body.get("ttl_seconds")).path})


async def _sessions(request: Request) -> Response:
    engine = request.app.state.engine
    known = {run.session_id: run.created for run in engine.store.runs()}
    known |= {s.session_id: s.created for s in engine.sessions.values()}
    newest = sorted(known, key=lambda session_id: known[session_id], reverse=True)
    limit, offset, _ = _page(request, len(newest))
    return _json(types.ListSessionsResponse(sessions=newest[offset : offset + limit]))


async def _session(request: Request) -> Response:
    engine, session_id = request.app.state.engine, request.path_params["session_id"]
    session = engine.sessions.get(session_id)
    runs = [run.run_id for run in engine.store.runs() if run.session_id == session_id]
    if session is None and not runs:
        raise NoSuchCheckpointError(f"there is no session {session_id} here")
    found = types.GetSessionResponse(
        training_run_ids=list(dict.fromkeys([*(session.models if session else []), *runs])),
        sampler_ids=session.samplers if session else [],
        user_metadata={k: str(v) for k, v in session.user_metadata.items()} if session else None,
        display_name=session.display_name if session else None,
    )
    return _json(found)


async def _finish_session(request: Request) -> Response:
    """A client says goodbye: what it held in memory is freed; its checkpoints stay."""
    request.app.state.engine.finish_session(request.path_params["session_id"])
    return Response(status_code=204)


async def _sampler(request: Request) -> Response:
    sampler_id = request.path_params["sampler_id"]
    sampler = request.app.state.engine.samplers.get(sampler_id)
    if sampler is None:
        raise NoSuchCheckpointError(f"there is no sampling session {sampler_id} here")
    found = types.GetSamplerResponse(sampler_id=sampler_id, base_model=sampler.base_model, model_path=sampler.path)
    return _json(found)


def routes() -> list[Route]:
    """The REST client's paths."""
    run = "/api/v1/training_runs/{run_id}"
    checkpoint = run + "/checkpoints/{kind}/{name}"
    return [
        Route("/api/v1/training_runs", _training_runs),
        Route(run, _training_run),
        Route(f"{run}/checkpoints", _run_checkpoints),
        Route(checkpoint, _delete_checkpoint, methods=["DELETE"]),
        Route(f"{checkpoint}/publish", _publish, methods=["POST", "DELETE"]),
        Route(f"{checkpoint}/ttl", _set_ttl, methods=["PUT"]),
        Route("/api/v1/checkpoints", _checkpoints),
        Route("/api/v1/weights_info", _weights_info, methods=["POST"]),
        Route("/api/v1/copy_weights", _copy_weights, methods=["POST"]),
        Route("/api/v1/sessions", _sessions),
        Route("/api/v1/sessions/{session_id}", _session),
        Route("/api/v1/sessions/{session_id}/finish", _finish_session, methods=["POST"]),
        Route("/api/v1/samplers/{sampler_id}", _sampler),
    ]
