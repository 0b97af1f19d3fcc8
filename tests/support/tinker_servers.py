"""Servers on this machine that answer as others were seen to: by recorded answers, and without computing anything."""

from __future__ import annotations

import json
import time
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler
from typing import Any

from loopback_server import serving

PROTOBUF, JSON = "application/x-protobuf", "application/json"
NOT_FOUND = (404, {"detail": "Not Found"})
# One token of a prompt of three, with two log-probabilities of the prompt: SkyRL 0.4.0, 28 November 2026.
SKYRL_SAMPLE = b"\n\x0e\x08\x01\x12\x04\x0b\x00\x00\x00\x1a\x04ua\x80\xc0\x12\x08N\xf4G\xc0p*F\xc0"

Answer = tuple[int, Any]


@dataclass
class Script:
    """What a server answers, by method and path; a path that ends in ``*`` stands for all that begin so.

    Attributes:
        answers: Status and body: bytes as protobuf, text as HTML, the rest as JSON.
        headers: Sent with every answer.
        clock_ahead_s: How far its clock is ahead.
        slow: Seconds until it answers, by path.
        asked: Method and path of every request so far.
        keys: Every key that it was given.
    """

    answers: Mapping[str, Answer]
    headers: Mapping[str, str] = field(default_factory=dict[str, str])
    clock_ahead_s: float = 0.0
    slow: Mapping[str, float] = field(default_factory=dict[str, float])
    asked: list[str] = field(default_factory=list[str])
    keys: list[str] = field(default_factory=list[str])

    def answer(self, request: str) -> Answer:
        """The answer to ``GET /path``; 404 as FastAPI says it where there is none."""
        if request in self.answers:
            return self.answers[request]
        wide = (name for name in self.answers if name.endswith("*") and request.startswith(name[:-1]))
        return self.answers.get(next(wide, ""), NOT_FOUND)


@contextmanager
def scripted(script: Script) -> Generator[str]:
    """Serve it; yields the address."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _answer(self) -> None:
            length = int(self.headers.get("Content-Length") or 0)
            self.rfile.read(length)
            script.asked.append(f"{self.command} {self.path}")
            script.keys.append(self.headers.get("X-API-Key", ""))
            time.sleep(script.slow.get(self.path, 0.0))
            status, body = script.answer(f"{self.command} {self.path}")
            kind = PROTOBUF if isinstance(body, bytes) else "text/html" if isinstance(body, str) else JSON
            content = (
                body if isinstance(body, bytes) else (body if isinstance(body, str) else json.dumps(body)).encode()
            )
            self.send_response_only(status)
            self.send_header("Date", formatdate(time.time() + script.clock_ahead_s, usegmt=True))
            for name, value in {"Content-Type": kind, "Content-Length": str(len(content)), **script.headers}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_POST = do_DELETE = _answer

        def log_message(self, format: str, *args: Any) -> None:
            """Keep the test's output clean."""

    with serving(Handler) as url:
        yield url


def skyrl(model: str, **changed: Answer) -> Script:
    """SkyRL 0.4.0 with its JAX backend, as it answered; ``changed`` answers by their name below."""
    losses = "'cross_entropy', 'importance_sampling', 'ppo', 'gspo', 'cispo', 'ppo_critic' or 'dppo'"
    error = {
        "type": "literal_error",
        "loc": ["forward_backward_input", "loss_fn"],
        "msg": f"Input should be {losses}",
        "input": "",
        "ctx": {"expected": losses},
    }
    named: dict[str, Answer] = {
        "capabilities": (200, {"supported_models": [{"model_name": model}]}),
        "schema": (200, SKYRL_SCHEMA),
        "forward_backward": (422, {"detail": [error]}),
        "asample": (200, {"future_id": "1", "status": "pending", "request_id": "1"}),
        "retrieve_future": (200, SKYRL_SAMPLE),
        **changed,
    }
    return Script(
        {
            "GET /api/v1/get_server_capabilities": named["capabilities"],
            "GET /api/v1/healthz": (200, {"status": "ok"}),
            "GET /openapi.json": named["schema"],
            "POST /api/v1/client/config": (200, {"pjwt_auth_enabled": False}),
            "POST /api/v1/create_session": (200, {"type": "create_session", "session_id": "session_8ed47d50"}),
            "POST /api/v1/session_heartbeat": (200, {"type": "session_heartbeat"}),
            "POST /api/v1/create_sampling_session": (
                200,
                {"type": "create_sampling_session", "sampling_session_id": "sampling_86f2c982"},
            ),
            "GET /api/v1/samplers/*": (200, {"sampler_id": "sampling_86f2c982", "base_model": model}),
            "POST /api/v1/telemetry": (200, {"status": "accepted"}),
            "POST /api/v1/asample": named["asample"],
            "POST /api/v1/retrieve_future": named["retrieve_future"],
            "POST /api/v1/forward_backward": named["forward_backward"],
        }
    )


def _fields(*names: str) -> dict[str, Any]:
    return {"properties": {name: {} for name in names}}


# What SkyRL's /openapi.json says of the requests that matter, and of its routes.
SKYRL_SCHEMA: dict[str, Any] = {
    "openapi": "3.1.0",
    "info": {"title": "Tinker API Mock", "version": "0.0.1"},
    "paths": {
        f"/api/v1/{path}": {}
        for path in (
            "asample client/config create_model create_sampling_session create_session forward_backward get_info "
            "get_server_capabilities healthz load_weights optim_step retrieve_future save_weights "
            "save_weights_for_sampler session_heartbeat telemetry training_runs unload_model weights_info "
            "samplers/{sampler_id} training_runs/{model_id} training_runs/{unique_id}/checkpoints "
            "training_runs/{unique_id}/checkpoints/{checkpoint_id}/archive"
        ).split()
    },
    "components": {
        "schemas": {
            "LoRAConfig": _fields("rank", "seed"),
            "AdamParams": _fields("learning_rate", "beta1", "beta2", "eps", "weight_decay"),
            "SaveWeightsRequest": _fields("model_id", "path", "type"),
            "LoadWeightsRequest": _fields("model_id", "path", "optimizer", "seq_id", "type"),
        }
    },
}


def openai(model: str) -> Script:
    """A server of OpenAI's protocol, which knows nothing of Tinker's."""
    return Script({"GET /v1/models": (200, {"object": "list", "data": [{"id": model, "object": "model"}]})})
