"""Looking at sessions and samplers, and what an account would be asked about: one person, one machine, no bill."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from tinker import types

from sota_ml_researcher.engine import identity
from sota_ml_researcher.engine.http import answer, engine_of, json_of, refusal, typed
from sota_ml_researcher.engine.rest import TRACES, page, signed_url
from sota_ml_researcher.engine.service import Engine
from sota_ml_researcher.engine.store import NoSuchCheckpointError

_TRACE_LIFE_S = 3600
_NO_ACCOUNT = {
    "audit": "there is no audit log here: it is kept for an organisation's administrators, and this engine has one "
    "user and no organisation",
    "billing": "there is no billing here: work on this machine costs nothing, so no usage is metered",
}


def _known_sessions(engine: Engine) -> dict[str, float]:
    """Session id -> creation time, newest first: those in memory, and those whose runs are on disk."""
    known = {run.session_id: run.created for run in engine.store.runs()}
    known |= {s.session_id: s.created for s in engine.sessions.values()}
    return dict(sorted(known.items(), key=lambda item: item[1], reverse=True))


async def _sessions(request: Request) -> Response:
    newest = list(_known_sessions(engine_of(request)))
    limit, offset, _ = page(request, len(newest))
    return answer(types.ListSessionsResponse(sessions=newest[offset : offset + limit]))


def _found(request: Request) -> tuple[Engine, str, list[str]]:
    """The engine, the session asked for, and its runs on disk.

    Raises:
        NoSuchCheckpointError: If there is no such session.
    """
    engine, session_id = engine_of(request), str(request.path_params["session_id"])
    runs = [run.run_id for run in engine.store.runs() if run.session_id == session_id]
    if session_id not in engine.sessions and not runs:
        raise NoSuchCheckpointError(f"there is no session {session_id} here")
    return engine, session_id, runs


async def _session(request: Request) -> Response:
    engine, session_id, runs = _found(request)
    session = engine.sessions.get(session_id)
    found = types.GetSessionResponse(
        training_run_ids=list(dict.fromkeys([*(session.models if session else []), *runs])),
        sampler_ids=session.samplers if session else [],
        user_metadata=_texts(session.user_metadata) if session else None,
        display_name=session.display_name if session else None,
    )
    return answer(found)


def _texts(metadata: dict[str, Any]) -> dict[str, str]:
    return {key: str(value) for key, value in metadata.items()}


async def _search(request: Request) -> Response:
    query: types.SessionSearchRequest = await typed(request, types.SessionSearchRequest)
    for project_id in query.project_ids or []:
        identity.check_project(project_id)
    engine = engine_of(request)
    found = [summary for summary in _summaries(engine) if _matches(summary, query)]
    if query.cursor is not None:
        last = (query.cursor.last_created_at, query.cursor.last_session_id)
        found = [summary for summary in found if (summary.created_at, summary.session_id) < last]
    shown, more = found[: query.limit], len(found) > query.limit
    cursor = None
    if more:
        cursor = types.SessionSearchCursor(
            last_created_at=shown[-1].created_at.replace(tzinfo=UTC), last_session_id=shown[-1].session_id
        )
    return answer(types.SessionSearchResponse(sessions=shown, next_cursor=cursor))


def _summaries(engine: Engine) -> list[types.SessionSummary]:
    runs: dict[str, list[str]] = {}
    for run in engine.store.runs():
        runs.setdefault(run.session_id, []).append(run.run_id)
    summaries = [_summary(engine, *item, runs.get(item[0], [])) for item in _known_sessions(engine).items()]
    return sorted(summaries, key=lambda summary: (summary.created_at, summary.session_id), reverse=True)


def _summary(engine: Engine, session_id: str, created: float, runs: list[str]) -> types.SessionSummary:
    session = engine.sessions.get(session_id)
    saved = [checkpoint for run_id in runs for checkpoint in engine.store.checkpoints(run_id)]
    status: Any = {"type": "active"} if session and session.finish is None else session and session.finish
    return types.SessionSummary.model_validate(
        {
            "session_id": session_id,
            "created_at": datetime.fromtimestamp(created, UTC),
            "owner": identity.USER_URN,
            "project_id": identity.PROJECT,
            "status": status,
            "checkpoints_count": len(saved),
            "display_name": session.display_name if session else None,
            "user_metadata": _texts(session.user_metadata) if session else None,
            "checkpoint_storage_bytes": sum(checkpoint.size_bytes for checkpoint in saved),
        }
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
    """A client says goodbye: what it held in memory is freed; its checkpoints stay."""
    body = await json_of(request)
    finish = {"type": "client_finished", "reason": body.get("reason") or {"type": "success"}}
    engine_of(request).finish_session(request.path_params["session_id"], finish | {"detail": body.get("detail")})
    return Response(status_code=204)


async def _trace_export(request: Request) -> Response:
    """The timeline needs no building: the address is ready at once."""
    _, session_id, _ = _found(request)
    url = signed_url(request, f"{TRACES}{session_id}.json", int(time.time()) + _TRACE_LIFE_S)
    return JSONResponse({"status": "ready", "url": url})


async def _trace(request: Request) -> Response:
    engine, session_id, _ = _found(request)
    return JSONResponse(engine.trace.of_session(session_id))


async def _sampler(request: Request) -> Response:
    sampler_id = request.path_params["sampler_id"]
    sampler = engine_of(request).sampling.samplers.get(sampler_id)
    if sampler is None:
        raise NoSuchCheckpointError(f"there is no sampling session {sampler_id} here")
    found = types.GetSamplerResponse(sampler_id=sampler_id, base_model=sampler.base_model, model_path=sampler.path)
    return answer(found)


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


async def _audit(request: Request) -> Response:
    return refusal(403, _NO_ACCOUNT["audit"])


async def _billing(request: Request) -> Response:
    return refusal(403, _NO_ACCOUNT["billing"])


async def _project(request: Request) -> Response:
    """Every session is in the one project already."""
    _found(request)
    identity.check_project((await json_of(request)).get("project_id"))
    return Response(status_code=204)


def routes() -> list[Route]:
    """The REST client's paths to sessions, samplers and the account."""
    session = "/api/v1/sessions/{session_id}"
    return [
        Route("/api/v1/sessions", _sessions),
        Route("/api/v1/sessions/search", _search, methods=["POST"]),
        Route(session, _session),
        Route(f"{session}/finish", _finish_session, methods=["POST"]),
        Route(f"{session}/project", _project, methods=["PUT"]),
        Route(f"{session}/trace_export", _trace_export),
        Route(TRACES + "{session_id}.json", _trace),
        Route("/api/v1/samplers/{sampler_id}", _sampler),
        Route("/api/v1/billing/usage/checkpoints/current", _storage),
        Route("/api/v1/billing/usage/events", _billing),
        Route("/api/v1/audit", _audit),
    ]
