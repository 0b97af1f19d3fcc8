"""The REST client's side: training runs, checkpoints and their files; sessions, samplers and the account."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import time
import uuid
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any
from urllib.parse import parse_qs

from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Route
from starlette.types import Scope
from tinker import types

from ..interface import RequestRejectedError
from ..json_fields import Fields
from ..service.futures import ConflictError
from ..service.sampling_sessions import check_seq
from ..service.service import Engine
from ..service.store import NoSuchCheckpointError, Run, Saved, Store, check_ttl
from . import identity
from .http_answers import answer, engine_of, json_of, refusal, text_field, typed_body

_OWNER = "local"
_MOST = 1000
_URL_LIFE_S = 3600
_TYPES: dict[str, Any] = {"weights": "training", "sampler_weights": "sampler", "external_weights": "external"}
_NO_AUDIT = (
    "there is no audit log here: it is kept for an organisation's administrators, and this engine has one user and no "
    "organisation"
)
_NO_BILLING = "there is no billing here: work on this machine costs nothing, so no usage is metered"
# What is asked of one checkpoint by its id, and how.
_OF_CHECKPOINT = (("publish", ["POST", "DELETE"]), ("ttl", ["PUT"]), ("external_weights_urls", ["GET"]))
_FILES, _TRACES = "/api/v1/files/", "/api/v1/traces/"


def _store(request: Request) -> Store:
    return engine_of(request).store


def _page(request: Request, total: int) -> tuple[int, int, types.Cursor]:
    """The part of a list of ``total`` entries that a request asks for: how many, from where, and both as the SDK's.

    Raises:
        RequestRejectedError: If limit or offset is not a number.
    """
    try:
        limit = max(0, min(_MOST, int(request.query_params.get("limit", 100))))
        offset = max(0, int(request.query_params.get("offset", 0)))
    except ValueError as error:
        raise RequestRejectedError("limit and offset must be whole numbers") from error
    return limit, offset, types.Cursor(offset=offset, limit=limit, total_count=total)


def _time(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)


def _texts(metadata: Mapping[str, Any]) -> dict[str, str]:
    return {key: str(value) for key, value in metadata.items()}


def _checkpoint(saved: Saved) -> types.Checkpoint:
    """A stored checkpoint as the SDK describes one."""
    return types.Checkpoint(
        checkpoint_id=f"{saved.kind}/{saved.name}",
        checkpoint_type=_TYPES[saved.kind],
        time=_time(saved.created),
        tinker_path=saved.path,
        size_bytes=saved.size_bytes,
        public=saved.public,
        user_metadata=_texts(saved.user_metadata),
        expires_at=_time(saved.expires) if saved.expires else None,
    )


def _described(store: Store, run: Run) -> types.TrainingRun:
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
        last_checkpoint=_checkpoint(training) if training else None,
        last_sampler_checkpoint=_checkpoint(sampler) if sampler else None,
        user_metadata=_texts(run.user_metadata),
    )


def _run_of(request: Request) -> Run:
    """The training run that a request names.

    Raises:
        NoSuchCheckpointError: If there is none.
    """
    run = _store(request).run(request.path_params["run_id"])
    if run is None:
        raise NoSuchCheckpointError(f"there is no training run {request.path_params['run_id'][:80]} here")
    return run


async def _training_runs(request: Request) -> Response:
    store = _store(request)
    identity.check_project(request.query_params.get("project_id"))
    runs = store.runs()
    limit, offset, cursor = _page(request, len(runs))
    described = [_described(store, run) for run in runs[offset : offset + limit]]
    return answer(types.TrainingRunsResponse(training_runs=described, cursor=cursor))


async def _training_run(request: Request) -> Response:
    return answer(_described(_store(request), _run_of(request)))


async def _run_checkpoints(request: Request) -> Response:
    saved = _store(request).checkpoints(_run_of(request).run_id)
    return answer(types.CheckpointsListResponse(checkpoints=[_checkpoint(s) for s in saved]))


async def _checkpoints(request: Request) -> Response:
    saved = _store(request).checkpoints()
    limit, offset, cursor = _page(request, len(saved))
    checkpoints = [_checkpoint(s) for s in saved[offset : offset + limit]]
    return answer(types.CheckpointsListResponse(checkpoints=checkpoints, cursor=cursor))


def _saved_of(request: Request) -> Saved:
    return _store(request).find("tinker://{run_id}/{kind}/{name}".format_map(request.path_params))


async def _delete_checkpoint(request: Request) -> Response:
    _store(request).delete(_saved_of(request))
    return Response(status_code=204)


async def _publish(request: Request) -> Response:
    saved, public = _saved_of(request), request.method == "POST"
    if saved.public == public:
        raise ConflictError(f"{saved.path} is {'public' if public else 'private'} already")
    _store(request).update(saved, public=public)
    return Response(status_code=204)


async def _no_such_id(request: Request) -> Response:
    raise RequestRejectedError(
        f"'{request.path_params['checkpoint_id'][:80]}' is no checkpoint's id: give KIND/NAME, such as weights/step-10"
    )


async def _set_ttl(request: Request) -> Response:
    ttl = Fields(await json_of(request), "the request").optional_whole("ttl_seconds", 0, 2**62)
    check_ttl(ttl)
    _store(request).update(_saved_of(request), expires=time.time() + ttl if ttl else None)
    return Response(status_code=204)


async def _weights_info(request: Request) -> Response:
    saved = _store(request).find(await text_field(request, "tinker_path"))
    spec = saved.spec
    return answer(
        types.WeightsInfoResponse(
            base_model=saved.base_model,
            is_lora=True,
            lora_rank=spec.rank,
            train_unembed=spec.train_unembed,
            train_mlp=spec.train_mlp,
            train_attn=spec.train_attn,
        )
    )


async def _copy_weights(request: Request) -> Response:
    """Copy a checkpoint into a run of its own; a request that comes again, by its key, is the same copy."""
    body, _ = await typed_body(request, types.CopyWeightsRequest)
    identity.check_project(body.destination_project_id)
    if body.weights_access_token is not None or "x-tinker-weights-access-token" in request.headers:
        raise RequestRejectedError(identity.NO_ACCOUNTS)
    check_ttl(body.ttl_seconds)
    engine, key = engine_of(request), request.headers.get("x-idempotency-key")
    run = _run_of_copy(engine, body, key)
    async with request.app.state.copying:  # one at a time: the second of two equal ones then finds the first
        path = await asyncio.to_thread(_copied, engine.store, body, run)
    return answer(types.CopyWeightsResponse(tinker_path=path))


def _run_of_copy(engine: Engine, body: types.CopyWeightsRequest, key: str | None) -> Run:
    saved = engine.store.find(body.source_path)
    session = "copies" if body.session_id is None else engine.session(body.session_id).session_id
    if body.model_seq_id is not None:
        name = f"{session}:train:{check_seq(body.model_seq_id)}"
    else:
        name = f"{session}:copy:{uuid.uuid4().hex[:16] if key is None else _digest(key)}"
    metadata = {"copied_from": saved.path} | ({"idempotency_key": _digest(key)} if key else {})
    return Run(name, session, saved.base_model, saved.lora, metadata, time.time())


def _digest(key: str) -> str:
    return hashlib.blake2b(key.encode(), digest_size=8).hexdigest()


def _copied(store: Store, body: types.CopyWeightsRequest, run: Run) -> str:
    """The path of the copy, made now unless it was before.

    Raises:
        ConflictError: If the place or the key was used for something else.
    """
    saved, before = store.find(body.source_path), store.run(run.run_id)
    if before is not None:
        if before.user_metadata != run.user_metadata or "idempotency_key" not in run.user_metadata:
            raise ConflictError(f"{run.run_id} is there already, and is not this copy of {saved.path}")
        for copy in store.checkpoints(run.run_id):
            return copy.path
    store.add_run(run)
    return store.copy(saved, run, ttl_s=body.ttl_seconds).path


async def _file_urls(request: Request) -> Response:
    """A checkpoint's files, each under an address that carries its own permission for an hour."""
    saved = _saved_of(request)
    store = _store(request)
    until = int(time.time()) + _URL_LIFE_S
    place = f"{saved.run_id}/{saved.kind}/{saved.name}"
    urls = {name: _signed_url(request, f"{_FILES}{place}/{name}", until) for name in store.files(saved)}
    return answer(types.ExternalWeightsUrlsResponse(urls=urls, expires=_time(until)))


async def _file(request: Request) -> Response:
    saved, name = _saved_of(request), request.path_params["file"]
    store = _store(request)
    if name not in store.files(saved):
        raise NoSuchCheckpointError(f"{saved.path} has no file '{name[:80]}'")
    return FileResponse(store.file(saved, name), filename=name)


def _signed_url(request: Request, path: str, until: int) -> str:
    """An address on this engine that works without the key until ``until`` (seconds since the epoch)."""
    signature = identity.sign(f"{path} {until}", request.app.state.api_key)
    return str(request.base_url.replace(path=path, query=f"until={until}&signature={signature}"))


def is_signed(scope: Scope, api_key: str) -> bool:
    """Whether a request's address carries its own permission."""
    path: str = scope["path"]
    if not path.startswith((_FILES, _TRACES)):
        return False
    query = parse_qs(scope["query_string"].decode("latin-1"))
    until, signature = query.get("until", [""])[0], query.get("signature", [""])[0]
    expected = identity.sign(f"{path} {until}", api_key)
    return hmac.compare_digest(signature.encode(), expected.encode()) and int(until) > time.time()


def _known_sessions(engine: Engine) -> dict[str, float]:
    """Session id -> creation time, newest first: those in memory, and those whose runs are on disk."""
    known = {run.session_id: run.created for run in engine.store.runs()}
    known |= {s.session_id: s.created for s in engine.sessions.values()}
    return dict(sorted(known.items(), key=lambda item: item[1], reverse=True))


async def _sessions(request: Request) -> Response:
    newest = list(_known_sessions(engine_of(request)))
    limit, offset, _ = _page(request, len(newest))
    return answer(types.ListSessionsResponse(sessions=newest[offset : offset + limit]))


def _session_of(request: Request) -> tuple[Engine, str, list[str]]:
    """The engine, the session asked for, and its runs on disk.

    Raises:
        NoSuchCheckpointError: If there is no such session.
    """
    engine, session_id = engine_of(request), str(request.path_params["session_id"])
    runs = [run.run_id for run in engine.store.runs() if run.session_id == session_id]
    if session_id not in engine.sessions and not runs:
        raise NoSuchCheckpointError(f"there is no session {session_id[:80]} here")
    return engine, session_id, runs


async def _session(request: Request) -> Response:
    engine, session_id, runs = _session_of(request)
    session = engine.sessions.get(session_id)
    return answer(
        types.GetSessionResponse(
            training_run_ids=list(dict.fromkeys([*(session.models if session else []), *runs])),
            sampler_ids=session.samplers if session else [],
            user_metadata=_texts(session.user_metadata) if session else None,
            display_name=session.display_name if session else None,
        )
    )


async def _search(request: Request) -> Response:
    query, _ = await typed_body(request, types.SessionSearchRequest)
    for project_id in query.project_ids or []:
        identity.check_project(project_id)
    engine = engine_of(request)
    matching = [summary for summary in _summaries(engine) if _matches(summary, query)]
    if query.cursor is not None:
        last = (query.cursor.last_created_at, query.cursor.last_session_id)
        matching = [summary for summary in matching if (summary.created_at, summary.session_id) < last]
    page, cursor = matching[: query.limit], None
    if len(matching) > query.limit:
        cursor = types.SessionSearchCursor(
            last_created_at=page[-1].created_at.replace(tzinfo=UTC), last_session_id=page[-1].session_id
        )
    return answer(types.SessionSearchResponse(sessions=page, next_cursor=cursor))


def _summaries(engine: Engine) -> list[types.SessionSummary]:
    runs: dict[str, list[str]] = {}
    for run in engine.store.runs():
        runs.setdefault(run.session_id, []).append(run.run_id)
    summaries = [_summary(engine, *item, runs.get(item[0], [])) for item in _known_sessions(engine).items()]
    return sorted(summaries, key=lambda summary: (summary.created_at, summary.session_id), reverse=True)


def _summary(engine: Engine, session_id: str, created: float, runs: list[str]) -> types.SessionSummary:
    session = engine.sessions.get(session_id)
    saved = [checkpoint for run_id in runs for checkpoint in engine.store.checkpoints(run_id)]
    return types.SessionSummary(
        session_id=session_id,
        created_at=_time(created),
        owner=identity.USER_URN,
        project_id=identity.PROJECT,
        status=(session.finish or types.SessionActive()) if session else None,
        checkpoints_count=len(saved),
        display_name=session.display_name if session else None,
        user_metadata=_texts(session.user_metadata) if session else None,
        checkpoint_storage_bytes=sum(checkpoint.size_bytes for checkpoint in saved),
    )


def _matches(summary: types.SessionSummary, query: types.SessionSearchRequest) -> bool:
    if query.owner.type == "user" and identity.USER_URN not in query.owner.owner_urns:
        return False
    if query.session_id or query.display_name:
        name = (summary.display_name or "").lower()
        words = (query.display_name or "").lower().split()
        by_name = bool(words) and all(word in name for word in words)
        if summary.session_id != query.session_id and not by_name:
            return False
    metadata = summary.user_metadata or {}
    if any(metadata.get(key) != value for key, value in query.user_metadata.items()):
        return False
    return query.statuses is None or any(_has_status(summary, wanted) for wanted in query.statuses)


def _has_status(summary: types.SessionSummary, wanted: Any) -> bool:
    status: Any = summary.status
    if status is None or status.type != wanted.type:
        return False
    reasons = getattr(wanted, "reasons", None)
    return reasons is None or status.reason.type in reasons


async def _finish_session(request: Request) -> Response:
    """A client ends its session: what it held in memory is freed; its checkpoints stay."""
    fields = Fields(await json_of(request), "the request")
    finish = types.ClientSessionFinished.model_validate(
        {"reason": fields.mapping("reason") or {"type": "success"}, "detail": fields.optional_text("detail")}
    )
    engine_of(request).finish_session(request.path_params["session_id"], finish)
    return Response(status_code=204)


async def _trace_export(request: Request) -> Response:
    """The timeline needs no building: the address is ready at once."""
    _, session_id, _ = _session_of(request)
    url = _signed_url(request, f"{_TRACES}{session_id}.json", int(time.time()) + _URL_LIFE_S)
    return JSONResponse({"status": "ready", "url": url})


async def _trace(request: Request) -> Response:
    engine, session_id, _ = _session_of(request)
    return JSONResponse(engine.trace.of_session(session_id))


async def _sampler(request: Request) -> Response:
    sampler_id = request.path_params["sampler_id"]
    sampler = engine_of(request).sampling.samplers.get(sampler_id)
    if sampler is None:
        raise NoSuchCheckpointError(f"there is no sampling session {sampler_id[:80]} here")
    return answer(
        types.GetSamplerResponse(sampler_id=sampler_id, base_model=sampler.base_model, model_path=sampler.path)
    )


async def _storage(request: Request) -> Response:
    identity.check_project(request.query_params.get("project_id"))
    saved = engine_of(request).store.checkpoints()
    size = sum(checkpoint.size_bytes for checkpoint in saved)
    item = types.CurrentCheckpointStorageUsageItem(
        org_user_urn=identity.USER_URN,
        checkpoint_count=len(saved),
        size_bytes=size,
        size_gigabytes=size / 1e9,
        estimated_monthly_cost_usd=0.0,
    )
    return answer(types.CurrentCheckpointStorageUsageResponse(effective_rate_usd_per_gigabyte_month=0.0, data=[item]))


def _refused(path: str, why: str) -> Route:
    """A route to what only an account has."""

    async def handler(request: Request) -> Response:
        return refusal(403, why)

    return Route(path, handler)


async def _project(request: Request) -> Response:
    """Every session is in the one project already."""
    _session_of(request)
    identity.check_project(await text_field(request, "project_id"))
    return Response(status_code=204)


def routes() -> list[Route]:
    """The REST client's paths."""
    run, session = "/api/v1/training_runs/{run_id}", "/api/v1/sessions/{session_id}"
    checkpoint = run + "/checkpoints/{kind}/{name}"
    return [
        Route("/api/v1/training_runs", _training_runs),
        Route(run, _training_run),
        Route(f"{run}/checkpoints", _run_checkpoints),
        Route(f"{run}/checkpoints/{{checkpoint_id}}", _no_such_id, methods=["DELETE"]),
        *(Route(f"{run}/checkpoints/{{checkpoint_id}}/{what}", _no_such_id, methods=m) for what, m in _OF_CHECKPOINT),
        Route(checkpoint, _delete_checkpoint, methods=["DELETE"]),
        Route(f"{checkpoint}/publish", _publish, methods=["POST", "DELETE"]),
        Route(f"{checkpoint}/ttl", _set_ttl, methods=["PUT"]),
        Route("/api/v1/checkpoints", _checkpoints),
        Route("/api/v1/weights_info", _weights_info, methods=["POST"]),
        Route("/api/v1/copy_weights", _copy_weights, methods=["POST"]),
        Route(f"{checkpoint}/external_weights_urls", _file_urls),
        Route(_FILES + "{run_id}/{kind}/{name}/{file}", _file),
        Route("/api/v1/sessions", _sessions),
        Route("/api/v1/sessions/search", _search, methods=["POST"]),
        Route(session, _session),
        Route(f"{session}/finish", _finish_session, methods=["POST"]),
        Route(f"{session}/project", _project, methods=["PUT"]),
        Route(f"{session}/trace_export", _trace_export),
        Route(_TRACES + "{session_id}.json", _trace),
        Route("/api/v1/samplers/{sampler_id}", _sampler),
        Route("/api/v1/billing/usage/checkpoints/current", _storage),
        _refused("/api/v1/billing/usage/events", _NO_BILLING),
        _refused("/api/v1/audit", _NO_AUDIT),
    ]
