"""Judges on loopback that answer as the real services do, errors included. Also a program of its own for benchmarks.

``python tests/support/loopback_judges.py --port 0 --delay 0.2`` prints its address as JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import itertools
import json
import random
import re
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

KEY = "sk-ant-test"
MODEL = "claude-haiku-5-5"
GRADE = "It agrees with the criterion.\n\nGRADE: C"
Answer = Callable[["Asked"], dict[str, Any] | str | None]
Write = Callable[[list[dict[str, Any]]], str | None]


@dataclass(frozen=True)
class Asked:
    """What a judge was shown: both answers, the reference, whether it is a repair."""

    request: str
    reference: str
    a: str
    b: str | None
    repair: bool
    system: str


def fenced(tag: str, text: str) -> str | None:
    found = re.search(rf"<{tag}_([0-9a-f]+)>\n(.*)\n</{tag}_\1>", text, re.DOTALL)
    return found.group(2) if found else None


def scores(schema: dict[str, Any], a: int, b: int | None) -> dict[str, Any]:
    names = schema["properties"]["scores"]["properties"]
    return {name: a if b is None else {"A": a, "B": b} for name in names}


def honest(asked: Asked) -> dict[str, Any]:
    """Prefers the answer that is the reference; an answer that holds it beats one that does not."""
    good_a, good_b = (asked.reference.strip() == (x or "").strip() for x in (asked.a, asked.b))
    if asked.b is None:
        return {"reason": "as it is", "quality": (5 if good_a else 1, None)}
    verdict = "tie" if good_a == good_b else "A" if good_a else "B"
    return {
        "reason": "compared with the reference",
        "verdict": verdict,
        "quality": (5 if good_a else 1, 5 if good_b else 1),
    }


@dataclass
class Judges:
    """The servers' behaviour and what they have seen."""

    answer: Answer = honest
    write: Write = lambda _: GRADE  # what a request without tools is answered with; None refuses
    delay_s: float = 0.0
    faults: float = 0.0
    fault_statuses: tuple[int, ...] = (429, 529)
    retry_after_s: float = 0.05
    hang_s: float = 0.0
    models: tuple[str, ...] = (MODEL, "claude-sonnet-5-5")
    batch_polls: int = 1
    answered: Counter[str] = field(default_factory=Counter)
    times: dict[str, list[tuple[float, int]]] = field(default_factory=dict)
    bodies: list[dict[str, Any]] = field(default_factory=list)
    keep_bodies: bool = True
    batches: dict[str, dict[str, Any]] = field(default_factory=dict)
    random: random.Random = field(default_factory=lambda: random.Random(0))
    peak: int = 0
    under_way: int = 0

    def app(self) -> Starlette:
        return Starlette(
            routes=[
                Route("/v1/messages", self.messages, methods=["POST"]),
                Route("/v1/models/{model}", self.model, methods=["GET"]),
                Route("/v1/messages/batches", self.create_batch, methods=["POST"]),
                Route("/v1/messages/batches/{batch}", self.get_batch, methods=["GET"]),
                Route("/v1/messages/batches/{batch}/results", self.batch_results, methods=["GET"]),
                Route("/openai/chat/completions", self.completions, methods=["POST"]),
                Route("/openai/models", self.openai_models, methods=["GET"]),
                Route("/stats", self.stats, methods=["GET"]),
            ]
        )

    # Anthropic

    async def messages(self, request: Request) -> Response:
        try:
            body = await request.json()
        except ClientDisconnect:
            return Response(status_code=499)
        if refused := self._refusal(request, body["model"]):
            return refused
        identity = hashlib.sha256(json.dumps(body["messages"]).encode()).hexdigest()
        self.under_way += 1
        self.peak = max(self.peak, self.under_way)
        try:
            fault = await self._fault(identity)
            if fault is not None:
                return fault
            await asyncio.sleep(self.delay_s)
        finally:
            self.under_way -= 1
        self._seen(identity, body)
        return JSONResponse(self._message(body))

    async def model(self, request: Request) -> Response:
        name = request.path_params["model"]
        if refused := self._refusal(request, name):
            return refused
        return JSONResponse({"type": "model", "id": name, "display_name": name, "created_at": "2026-01-01T00:00:00Z"})

    async def create_batch(self, request: Request) -> Response:
        body = await request.json()
        if refused := self._refusal(request, body["requests"][0]["params"]["model"]):
            return refused
        batch = f"msgbatch_{len(self.batches):04d}"
        self.batches[batch] = {"requests": body["requests"], "polls": 0}
        return JSONResponse(self._batch(batch, str(request.base_url)))

    async def get_batch(self, request: Request) -> Response:
        batch = request.path_params["batch"]
        self.batches[batch]["polls"] += 1
        return JSONResponse(self._batch(batch, str(request.base_url)))

    async def batch_results(self, request: Request) -> Response:
        lines = []
        for row in reversed(self.batches[request.path_params["batch"]]["requests"]):  # no order is promised
            identity = hashlib.sha256(json.dumps(row["params"]["messages"]).encode()).hexdigest()
            self._seen(identity, row["params"])
            result = {"type": "succeeded", "message": self._message(row["params"])}
            lines.append(json.dumps({"custom_id": row["custom_id"], "result": result}))
        return PlainTextResponse("\n".join(lines) + "\n", media_type="application/x-jsonl")

    def _batch(self, batch: str, base: str) -> dict[str, Any]:
        state = self.batches[batch]
        ended = state["polls"] > self.batch_polls
        counts = {
            "processing": 0 if ended else len(state["requests"]),
            "succeeded": len(state["requests"]) if ended else 0,
        }
        return {
            "id": batch,
            "type": "message_batch",
            "processing_status": "ended" if ended else "in_progress",
            "request_counts": {**counts, "errored": 0, "canceled": 0, "expired": 0},
            "created_at": "2026-01-01T00:00:00Z",
            "expires_at": "2026-01-02T00:00:00Z",
            "ended_at": "2026-01-01T01:00:00Z" if ended else None,
            "archived_at": None,
            "cancel_initiated_at": None,
            "results_url": f"{base}v1/messages/batches/{batch}/results" if ended else None,
        }

    def _message(self, body: dict[str, Any]) -> dict[str, Any]:
        is_judge = bool(body.get("tools"))  # a grader is asked for prose
        given = (
            self.answer(self.asked(body["system"][0]["text"], body["messages"])) if is_judge else self._written(body)
        )
        stop = "tool_use"
        if given is None:
            content, stop = [], "refusal"
        elif isinstance(given, str):
            content, stop = [{"type": "text", "text": given}], "end_turn"
        else:
            arguments = self._arguments(given, body["tools"][0]["input_schema"])
            content = [{"type": "tool_use", "id": "toolu_1", "name": body["tools"][0]["name"], "input": arguments}]
        usage = {
            "input_tokens": 700,
            "output_tokens": 90,
            "cache_read_input_tokens": 0,
            "cache_creation_input_tokens": 0,
        }
        message = {"id": "msg_1", "type": "message", "role": "assistant", "model": f"{body['model']}-20261007"}
        return message | {"content": content, "stop_reason": stop, "stop_sequence": None, "usage": usage}

    def _written(self, body: dict[str, Any]) -> str | None:
        system = [{"role": "system", "content": part["text"]} for part in body.get("system", [])]
        return self.write([*system, *body["messages"]])

    # OpenAI-compatible

    async def completions(self, request: Request) -> Response:
        body = await request.json()
        identity = hashlib.sha256(json.dumps(body["messages"]).encode()).hexdigest()
        fault = await self._fault(identity)
        if fault is not None:
            return fault
        self._seen(identity, body)
        given = self.answer(self.asked("", body["messages"][1:])) if "tools" in body else None
        message: dict[str, Any] = {"role": "assistant", "content": None}
        finish = "stop"
        if "tools" not in body:
            message["content"] = self.write(body["messages"])
        elif isinstance(given, dict):
            function = body["tools"][0]["function"]
            call = {"name": function["name"], "arguments": json.dumps(self._arguments(given, function["parameters"]))}
            message["tool_calls"] = [{"id": "call_1", "type": "function", "function": call}]
            finish = "tool_calls"
        elif given is None:
            message["refusal"] = "I cannot judge this."
        else:
            message["content"] = given
        choice = {"index": 0, "message": message, "finish_reason": finish}
        usage = {"prompt_tokens": 700, "completion_tokens": 90, "total_tokens": 790}
        whole = {"id": "c1", "object": "chat.completion", "created": 0, "model": body["model"], "choices": [choice]}
        return JSONResponse(whole | {"usage": usage})

    async def openai_models(self, request: Request) -> Response:
        data = [{"id": "local-judge", "object": "model", "created": 0, "owned_by": "me"}]
        return JSONResponse({"object": "list", "data": data})

    async def stats(self, request: Request) -> Response:
        found = {"answered": len(self.answered), "most": max(self.answered.values(), default=0), "peak": self.peak}
        return JSONResponse(found | {"faults": self.faults_seen(), "early": self.early()})

    # Shared

    def faults_seen(self) -> dict[str, int]:
        """How often each fault was answered; 0 is silence."""
        seen = Counter(str(status) for past in self.times.values() for _, status in past if status != 200)
        return dict(sorted(seen.items()))

    def early(self) -> int:
        """How often a question came again before the ``retry-after`` it was answered with was over."""
        pairs = [pair for past in self.times.values() for pair in itertools.pairwise(past)]
        return sum(b[0] - a[0] < self.retry_after_s for a, b in pairs if a[1] not in (0, 200))

    def _refusal(self, request: Request, model: str) -> Response | None:
        given = request.headers.get("x-api-key") or request.headers.get("authorization", "").removeprefix("Bearer ")
        if given != KEY:
            return _error(401, "authentication_error", "invalid x-api-key")
        if model not in self.models:
            return _error(404, "not_found_error", f"model: {model}")
        return None

    async def _fault(self, identity: str) -> Response | None:
        """An overload, or silence until the client's patience ends; never more than three in a row for one question."""
        past = self.times.setdefault(identity, [])
        if len(past) >= 3 or self.random.random() >= self.faults:
            past.append((time.monotonic(), 200))
            return None
        status = self.random.choice(self.fault_statuses)
        past.append((time.monotonic(), status))
        if status == 0:
            await asyncio.sleep(self.hang_s)
            return _error(500, "api_error", "too late")
        kind = {429: "rate_limit_error", 529: "overloaded_error"}.get(status, "api_error")
        response = _error(status, kind, "try later")
        if self.retry_after_s:
            response.headers["retry-after"] = str(self.retry_after_s)
        return response

    def _seen(self, identity: str, body: dict[str, Any]) -> None:
        self.answered[identity] += 1
        if self.keep_bodies:
            self.bodies.append(body)

    def asked(self, system: str, messages: list[dict[str, Any]]) -> Asked:
        """The question that a request put to a judge."""
        text = messages[0]["content"]
        alone = fenced("answer", text)
        return Asked(
            fenced("request", text) or "",
            fenced("reference", text) or "",
            alone if alone is not None else fenced("answer_A", text) or "",
            None if alone is not None else fenced("answer_B", text),
            len(messages) > 1,
            system,
        )

    def _arguments(self, given: dict[str, Any], schema: dict[str, Any]) -> dict[str, Any]:
        if "quality" not in given:
            return given
        a, b = given["quality"]
        return {k: v for k, v in given.items() if k != "quality"} | {"scores": scores(schema, a, b)}


def _error(status: int, kind: str, message: str) -> JSONResponse:
    return JSONResponse({"type": "error", "error": {"type": kind, "message": message}, "request_id": "req_1"}, status)


@contextmanager
def serving(judges: Judges) -> Generator[str]:
    """The judges behind a port on loopback; yields the address."""
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)  # else asyncio leaves Nagle on
    listener.bind(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(judges.app(), log_level="error", lifespan="off"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(10)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--delay", type=float, default=0.2)
    parser.add_argument("--faults", type=float, default=0.0)
    parser.add_argument("--retry-after", type=float, default=0.05)
    parser.add_argument("--hang", type=float, default=0.0, help="a third of the faults is silence of so many seconds")
    options = parser.parse_args()
    statuses = (429, 529, 0) if options.hang else (429, 529)
    judges = Judges(
        delay_s=options.delay,
        faults=options.faults,
        fault_statuses=statuses,
        retry_after_s=options.retry_after,
        hang_s=options.hang,
        keep_bodies=False,
    )
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)  # else asyncio leaves Nagle on
    listener.bind(("127.0.0.1", 0))
    print(json.dumps({"url": f"http://127.0.0.1:{listener.getsockname()[1]}"}), flush=True)
    server = uvicorn.Server(uvicorn.Config(judges.app(), log_level="error", lifespan="off", backlog=2048))
    server.run(sockets=[listener])


if __name__ == "__main__":
    main()
