"""What a cluster's server says of itself: a few small requests, one sampled token, and one that must be refused.

No adapter is made: a server may hold few of them, or only ones that are alike. How training data is read is told by
the way in which a request for an adapter that does not exist is refused.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any, cast

from ..core.foreign_text import foreign
from .connection import Backend, supported_models
from .servers import Exports, Server, Wire, known_server, server_table

if TYPE_CHECKING:
    import httpx2

# What was learned is asked anew after this: a server may be replaced behind its address.
_FRESH_S = 300.0
_TIMEOUT_S = 15.0
# For the sampled token: a server that compiles takes half a minute for its first.
_SAMPLE_S = 90.0
_MOST_SKEW_S = 300.0
_PROMPT = (1, 2, 3)
_SESSION: Mapping[str, Any] = {"type": "create_session", "tags": [], "user_metadata": None, "sdk_version": "0.38.0"}
# A ForwardBackwardRequest in protobuf whose only field, the first, is the model's id.
_NO_MODEL = b"\n\x0fno-such-adapter"
# A refusal for want of that model, and not for want of such a route.
_NAMES_THE_MODEL = re.compile("model|adapter", re.IGNORECASE)
# Of a SampleResponse in protobuf.
_PROMPT_LOGPROBS_FIELD = 2

_known: dict[tuple[str, str], tuple[float, Server]] = {}
_lock = threading.Lock()


def probed(backend: Backend) -> Server:
    """What is behind the address of a cluster; asked once in five minutes.

    Raises:
        BackendError: If it does not answer, refuses the key, or is no Tinker server.
    """
    key = (backend.base_url, backend.api_key)
    with _lock:
        at, server = _known.get(key, (0.0, None))
        if server is None or time.monotonic() - at > _FRESH_S:
            server = _ask(backend)
            _known[key] = (time.monotonic(), server)
    return server


def forget_servers() -> None:
    """Ask every server anew."""
    with _lock:
        _known.clear()


def _ask(backend: Backend) -> Server:
    import httpx2

    models = [model.name for model in supported_models(backend)]
    headers = {"X-API-Key": backend.api_key}
    with httpx2.Client(base_url=backend.base_url, headers=headers, timeout=_TIMEOUT_S) as client:
        health = _Answer.of(client, "GET", "/api/v1/healthz")
        if "engine" in health.fields:
            return _with_clock(known_server("engine"), health)
        schema = _Answer.of(client, "GET", "/openapi.json")
        server = _with_clock(_told_by_schema(schema.fields), schema if schema.status else health)
        server = _told_by_refusal(server, client)
        return _told_by_sample(server, client, models[0]) if models else server


class _Answer:
    """An answer, or status 0 where none came."""

    def __init__(self, status: int, fields: Mapping[str, Any], content: bytes, date: str) -> None:
        self.status = status
        self.fields = fields
        self.content = content
        self.date = date

    @classmethod
    def of(cls, client: httpx2.Client, method: str, path: str, **sent: Any) -> _Answer:
        """Send a request; what is no JSON object has no fields."""
        import httpx2

        try:
            got = client.request(method, path, **sent)
        except httpx2.HTTPError:
            return cls(0, {}, b"", "")
        try:
            fields: object = got.json()
        except ValueError:
            fields = None
        known = cast("dict[str, Any]", fields) if isinstance(fields, dict) else {}
        return cls(got.status_code, known, got.content, got.headers.get("date", ""))

    @property
    def said(self) -> str:
        """Its own words for an error."""
        names = ("detail", "error", "error_message")
        told = (self.fields[name] for name in names if self.fields.get(name))
        detail = next(told, self.content.decode(errors="replace"))
        return foreign(detail) if detail else f"status {self.status}"


def _with_clock(server: Server, answer: _Answer) -> Server:
    try:
        ahead = (parsedate_to_datetime(answer.date) - datetime.now(UTC)).total_seconds()
    except (ValueError, TypeError):
        return server
    if abs(ahead) < _MOST_SKEW_S:
        return server
    note = (
        f"the server's clock is {abs(ahead) / 60:.0f} minutes {'ahead of' if ahead > 0 else 'behind'} this machine's: "
        "the times it gives for checkpoints are its own"
    )
    return replace(server, notes=(*server.notes, note))


def _told_by_schema(schema: Mapping[str, Any]) -> Server:
    """The kind by the title of its schema, and what its requests have no field for, which it drops unsaid."""
    title = str(_mapping(schema, "info").get("title", ""))
    kinds = server_table().servers
    kind = next((kind for kind, can in kinds.items() if can.told_by and can.told_by == title), "unknown")
    server = known_server(kind)
    paths = [str(path) for path in _mapping(schema, "paths")]
    if not any(path.startswith("/api/v1/") for path in paths):
        return server
    models = _mapping(_mapping(schema, "components"), "schemas")

    def takes(field: str, *names: str) -> bool | None:
        found = next((name for name in models if name.lower() in names), None)
        return None if found is None else field in _mapping(_mapping(models, found), "properties")

    return server.answering(
        chooses_layers=takes("train_mlp", "loraconfig"),
        grad_clip=takes("grad_clip_norm", "adamparams"),
        ttl=takes("ttl_seconds", "saveweightsrequest"),
        loads_new_runs=takes("session_id", "loadweightsrequest"),
        ends_sessions=any(path.startswith("/api/v1/sessions/") and path.endswith("/finish") for path in paths),
        lists_checkpoints="/api/v1/checkpoints" in paths,
        exports=_exports(paths),
    )


def _exports(paths: Sequence[str]) -> Exports | None:
    if "/api/v1/save_weights_external" in paths:
        return "copy"
    return "archive" if any(path.endswith("/archive") for path in paths) else None


def _mapping(of: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    found: object = of.get(key)
    return cast("dict[str, Any]", found) if isinstance(found, dict) else {}


def _told_by_refusal(server: Server, client: httpx2.Client) -> Server:
    """How training data is read, and which losses there are, by a request that no server can grant."""
    headers = {"Content-Type": "application/x-protobuf"}
    answer = _Answer.of(client, "POST", "/api/v1/forward_backward", content=_NO_MODEL, headers=headers)
    text = answer.content.decode(errors="replace")
    wire: Wire | None = None
    if (answer.status in {400, 404, 409, 410} and _NAMES_THE_MODEL.search(text)) or (
        answer.status == 422 and "loss_fn" in text
    ):
        wire = "protobuf"
    elif answer.status in {415, 422}:
        wire = "json"
    named = tuple(dict.fromkeys(re.findall(r"'([a-z_]+)'", text))) if "loss_fn" in text else ()
    if "cross_entropy" not in named:
        return server.answering(wire=wire)
    known = server.abilities.losses
    return server.answering(wire=wire, losses=named if known is None else tuple(x for x in known if x in named))


def _told_by_sample(server: Server, client: httpx2.Client, model: str) -> Server:
    """Whether it samples, names the sequences, and gives log-probabilities of the prompt: by one token."""
    session = _Answer.of(client, "POST", "/api/v1/create_session", json=_SESSION).fields.get("session_id")
    body = {"session_id": session, "sampling_session_seq_id": 0, "base_model": model}
    opened = _Answer.of(client, "POST", "/api/v1/create_sampling_session", json=body)
    promise = _Answer.of(
        client,
        "POST",
        "/api/v1/asample",
        json={
            "sampling_session_id": opened.fields.get("sampling_session_id"),
            "seq_id": 0,
            "num_samples": 1,
            "prompt": {"chunks": [{"type": "encoded_text", "tokens": _PROMPT}]},
            "sampling_params": {"max_tokens": 1, "temperature": 1.0, "seed": 0},
            "prompt_logprobs": True,
        },
    )
    if "request_id" not in promise.fields:
        failed = promise if opened.status == 200 else opened
        return replace(server, sampling_error=failed.said)
    server = server.answering(sequence_ids=bool(promise.fields.get("sample_sequence_ids")))
    answer = _sampled(client, promise.fields["request_id"])
    if session is not None:
        _Answer.of(client, "POST", f"/api/v1/sessions/{session}/finish", json={"status": "success"})
    if answer is None:
        return replace(server, notes=(*server.notes, f"it took more than {_SAMPLE_S:.0f} s for one token"))
    if answer.status != 200 or "error" in answer.fields:
        return replace(server, sampling_error=answer.said)
    in_json = answer.fields.get("prompt_logprobs")
    return server.answering(prompt_logprobs=bool(in_json) or _has_field(answer.content, _PROMPT_LOGPROBS_FIELD))


def _sampled(client: httpx2.Client, request_id: object) -> _Answer | None:
    """The answer to the promise; None if it does not come in time."""
    deadline = time.monotonic() + _SAMPLE_S
    headers = {"Accept": "application/x-protobuf, application/json"}
    while time.monotonic() < deadline:
        answer = _Answer.of(
            client,
            "POST",
            "/api/v1/retrieve_future",
            json={"request_id": request_id},
            headers=headers,
            timeout=max(1.0, deadline - time.monotonic()),
        )
        if answer.status not in {0, 408} and answer.fields.get("type") != "try_again":
            return answer
        time.sleep(0.2)
    return None


def _has_field(message: bytes, number: int) -> bool:
    """Whether a protobuf message has a field of bytes with that number at its top level, before any other kind."""
    at = 0
    while at < len(message):
        tag, at = _varint(message, at)
        if tag & 7 != 2:
            return False
        if tag >> 3 == number:
            return True
        length, at = _varint(message, at)
        at += length
    return False


def _varint(message: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while at < len(message):
        byte = message[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            break
    return value, at
