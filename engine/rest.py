"""Looking after what is stored: training runs, checkpoints and their files."""

from __future__ import annotations

import hmac
import time
import uuid
from datetime import UTC, datetime
from typing import Any
from urllib.parse import parse_qs

from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Route
from starlette.types import Scope
from tinker import types

from sota_ml_researcher.engine import identity
from sota_ml_researcher.engine.http import answer, json_of
from sota_ml_researcher.engine.interface import RequestRejectedError
from sota_ml_researcher.engine.store import NoSuchCheckpointError, Run, Saved, Store, check_ttl

_OWNER = "local"
_MOST = 1000
_URL_LIFE_S = 3600
_TYPES: dict[str, Any] = {"weights": "training", "sampler_weights": "sampler", "external_weights": "external"}
FILES, TRACES = "/api/v1/files/", "/api/v1/traces/"


def _store(request: Request) -> Store:
    return request.app.state.engine.store


def page(request: Request, total: int) -> tuple[int, int, types.Cursor]:
    """The part of a list of ``total`` entries that a request asks for: how many, from where, and both as the SDK's.

    Raises:
        RequestRejectedError: If limit or offset is no number.
    """
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


def _no_run(run_id: str) -> NoSuchCheckpointError:
    return NoSuchCheckpointError(f"there is no training run {run_id} here")


async def _training_runs(request: Request) -> Response:
    store = _store(request)
    identity.check_project(request.query_params.get("project_id"))
    runs = store.runs()
    limit, offset, cursor = page(request, len(runs))
    shown = [_run_of(store, run) for run in runs[offset : offset + limit]]
    return answer(types.TrainingRunsResponse(training_runs=shown, cursor=cursor))


async def _training_run(request: Request) -> Response:
    store, run_id = _store(request), request.path_params["run_id"]
    run = store.run(run_id)
    if run is None:
        raise _no_run(run_id)
    return answer(_run_of(store, run))


async def _run_checkpoints(request: Request) -> Response:
    store, run_id = _store(request), request.path_params["run_id"]
    if store.run(run_id) is None:
        raise _no_run(run_id)
    return answer(types.CheckpointsListResponse(checkpoints=[checkpoint_of(s) for s in store.checkpoints(run_id)]))


async def _checkpoints(request: Request) -> Response:
    saved = _store(request).checkpoints()
    limit, offset, cursor = page(request, len(saved))
    shown = [checkpoint_of(s) for s in saved[offset : offset + limit]]
    return answer(types.CheckpointsListResponse(checkpoints=shown, cursor=cursor))


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
    ttl = (await json_of(request)).get("ttl_seconds")
    if ttl is not None and (isinstance(ttl, bool) or not isinstance(ttl, int)):
        raise RequestRejectedError(f"ttl_seconds is {ttl!r}: give a whole number of seconds, or null to keep it")
    check_ttl(ttl)
    _store(request).update(_named(request), expires=time.time() + ttl if ttl else None)
    return Response(status_code=204)


async def _weights_info(request: Request) -> Response:
    saved = _store(request).find(str((await json_of(request)).get("tinker_path")))
    info = types.WeightsInfoResponse(
        base_model=saved.base_model,
        is_lora=True,
        lora_rank=saved.spec.rank,
        train_unembed=saved.spec.train_unembed,
        train_mlp=saved.spec.train_mlp,
        train_attn=saved.spec.train_attn,
    )
    return answer(info)


async def _copy_weights(request: Request) -> Response:
    body = await json_of(request)
    identity.check_project(body.get("destination_project_id"))
    check_ttl(body.get("ttl_seconds"))
    store = _store(request)
    saved = store.find(str(body.get("source_path")))
    session = body.get("session_id") or "copies"
    slot = body.get("model_seq_id")
    run_id = f"{session}:train:{uuid.uuid4().hex[:8] if slot is None else slot}"
    run = Run(run_id, session, saved.base_model, saved.lora, {"copied_from": saved.path}, time.time())
    store.add_run(run)
    return JSONResponse({"tinker_path": store.copy(saved, run, ttl_s=body.get("ttl_seconds")).path})


async def _file_urls(request: Request) -> Response:
    """A checkpoint's files, each under an address that carries its own permission for an hour."""
    saved = _named(request)
    store = _store(request)
    until = int(time.time()) + _URL_LIFE_S
    place = f"{saved.run_id}/{saved.kind}/{saved.name}"
    urls = {name: signed_url(request, f"{FILES}{place}/{name}", until) for name in store.files(saved)}
    return answer(types.ExternalWeightsUrlsResponse(urls=urls, expires=_time(until)))


async def _file(request: Request) -> Response:
    saved, name = _named(request), request.path_params["file"]
    store = _store(request)
    if name not in store.files(saved):
        raise NoSuchCheckpointError(f"{saved.path} has no file '{name}'")
    return FileResponse(store.file(saved, name), filename=name)


def signed_url(request: Request, path: str, until: int) -> str:
    """An address on this engine that works without the key until ``until`` (seconds since the epoch)."""
    signature = identity.sign(f"{path} {until}", request.app.state.api_key)
    return str(request.base_url.replace(path=path, query=f"until={until}&signature={signature}"))


def is_signed(scope: Scope, api_key: str) -> bool:
    """Whether a request's address carries its own permission."""
    path: str = scope["path"]
    if not path.startswith((FILES, TRACES)):
        return False
    query = parse_qs(scope["query_string"].decode("latin-1"))
    until, signature = query.get("until", [""])[0], query.get("signature", [""])[0]
    expected = identity.sign(f"{path} {until}", api_key)
    return hmac.compare_digest(signature.encode(), expected.encode()) and int(until) > time.time()


def routes() -> list[Route]:
    """The REST client's paths to runs and checkpoints."""
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
        Route(f"{checkpoint}/external_weights_urls", _file_urls),
        Route(FILES + "{run_id}/{kind}/{name}/{file}", _file),
    ]
