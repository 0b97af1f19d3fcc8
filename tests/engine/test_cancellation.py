"""Work that nobody waits for any more is let go: cancelled, its client gone or silent."""

import asyncio
import json
import socket
import time
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest
from engine_support import KEY, TOKENS, Running, post, result_of

from sota_ml_researcher.engine.compute.custom_loss import compile_custom_loss
from sota_ml_researcher.engine.interface import LoadOptions
from sota_ml_researcher.engine.service.base_models import BaseModels
from sota_ml_researcher.engine.service.service import Engine, SessionFinishedError
from sota_ml_researcher.engine.service.store import Store

SESSION = {"tags": [], "user_metadata": None, "sdk_version": "0"}
# Hours of work on any machine that runs these tests.
ENDLESS: dict[str, Any] = {
    "num_samples": 65536,
    "prompt": {"chunks": [{"tokens": TOKENS}]},
    "sampling_params": {"max_tokens": 480, "stop": []},
}
QUICK = ENDLESS | {"num_samples": 1, "sampling_params": {"max_tokens": 3, "stop": []}, "base_model": "tiny"}


@pytest.fixture(scope="module")
def impatient(tiny_weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Generator[Running]:
    running = Running(tiny_weights, tmp_path_factory.mktemp("store"), "--queue-timeout", "2", "--session-timeout", "9")
    yield running
    running.stop()


def is_served(engine: Running) -> bool:
    """Whether a small request is answered; the client's time limit ends the test where it never is."""
    promised = post(engine, "asample", QUICK).json()
    return result_of(engine, promised["request_id"]).headers["content-type"] == "application/x-protobuf"


def begun(engine: Running, body: dict[str, Any]) -> str:
    """An endless request that is being computed: a training request of another client waits for it."""
    promised = post(engine, "asample", body).json()
    return promised["request_id"]


def sampler_of(engine: Running) -> tuple[str, str]:
    session = post(engine, "create_session", SESSION).json()["session_id"]
    body = {"session_id": session, "sampling_session_seq_id": 0, "base_model": "tiny"}
    return session, post(engine, "create_sampling_session", body).json()["sampling_session_id"]


def test_a_sample_under_way_is_cancelled(http_engine: Running) -> None:
    assert is_served(http_engine)
    for _ in range(2):
        request_id = begun(http_engine, ENDLESS | {"base_model": "tiny"})
        assert post(http_engine, "cancel_future", {"request_id": request_id}).status_code == 200
        failed = result_of(http_engine, request_id).json()
        assert (failed["category"], "cancelled" in failed["error"]) == ("user", True)
        assert is_served(http_engine)


def test_cancelling_one_leaves_what_runs_beside_it(http_engine: Running) -> None:
    seeded = QUICK | {"sampling_params": {"max_tokens": 200, "stop": [], "seed": 7}, "num_samples": 8}
    alone = result_of(http_engine, post(http_engine, "asample", seeded).json()["request_id"]).content
    request_id = begun(http_engine, ENDLESS | {"base_model": "tiny"})
    beside = post(http_engine, "asample", seeded).json()["request_id"]
    post(http_engine, "cancel_future", {"request_id": request_id})
    answer = result_of(http_engine, beside)
    assert answer.headers["content-type"] == "application/x-protobuf"
    assert len(answer.content) == len(alone)


def test_an_unknown_request_can_be_cancelled_without_harm(http_engine: Running) -> None:
    assert post(http_engine, "cancel_future", {"request_id": "nobody"}).status_code == 200


def test_work_of_a_client_that_fell_silent_is_let_go(impatient: Running) -> None:
    _, sampler = sampler_of(impatient)
    body = ENDLESS | {"sampling_session_id": sampler, "seq_id": 1}
    request_id = begun(impatient, body)
    assert is_served(impatient)
    # The SDK sends a request again whose promise is gone, and so loses nothing if it was only away.
    assert post(impatient, "retrieve_future", {"request_id": request_id}).status_code == 410
    again = QUICK | {"sampling_session_id": sampler, "seq_id": 1}
    del again["base_model"]
    promised = post(impatient, "asample", again).json()
    assert promised["request_id"] == request_id
    assert result_of(impatient, request_id).headers["content-type"] == "application/x-protobuf"


def test_work_of_a_session_that_ends_is_let_go(http_engine: Running) -> None:
    session, sampler = sampler_of(http_engine)
    begun(http_engine, ENDLESS | {"sampling_session_id": sampler, "seq_id": 1})
    assert post(http_engine, f"sessions/{session}/finish", {"reason": {"type": "success"}}).status_code == 204
    assert is_served(http_engine)


def test_an_openai_client_that_goes_away_takes_its_work_with_it(http_engine: Running) -> None:
    body = {"model": "tiny", "prompt": [TOKENS] * 1000, "n": 128, "max_tokens": 480, "temperature": 1.0}
    content = json.dumps(body).encode()
    host, port = http_engine.url.removeprefix("http://").split(":")
    head = (
        f"POST /oai/api/v1/completions HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer {KEY}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(content)}\r\n\r\n"
    )
    with socket.create_connection((host, int(port))) as raw:
        raw.sendall(head.encode() + content)
        assert post(http_engine, "session_heartbeat", {"session_id": "elsewhere"}).status_code == 200
    assert is_served(http_engine)


NODES: list[Any] = []


def an_engine(folder: Path) -> Engine:
    models = BaseModels({}, any_local=False, options=LoadOptions(), load=lambda *_: pytest.fail("nothing is loaded"))
    return Engine(Store(folder), models, compile_loss=compile_custom_loss)


def test_training_requests_of_a_silent_client_wait_until_it_is_heard_of(tmp_path: Path) -> None:
    async def run() -> None:
        engine = an_engine(tmp_path)
        silent, other = (engine.create_session(None, None) for _ in range(2))
        held = engine.create_custom_loss(silent.session_id, 0, "x", [], NODES)
        now = time.monotonic()
        for second in range(0, 60, 10):
            engine.heard_of(other.session_id)
            other.seen = now + second
            engine.forget_silent(now + second)
        assert (silent.held, other.held) == (True, False)
        ran = engine.create_custom_loss(other.session_id, 0, "x", [], NODES)
        working = asyncio.create_task(engine.scheduler.run())
        await ran.done.wait()
        assert not held.done.is_set()
        engine.beat(silent.session_id)
        await held.done.wait()
        working.cancel()
        engine.scheduler.close()

    asyncio.run(run())


def test_a_client_silent_for_long_is_gone_and_one_that_beats_again_is_back(tmp_path: Path) -> None:
    engine = an_engine(tmp_path)
    session = engine.create_session(None, None)
    seen = session.seen
    for second in range(0, 1000, 10):
        engine.forget_silent(seen + second)
    assert session.finish is not None
    engine.beat(session.session_id)
    assert session.finish is None


def test_an_engine_that_slept_blames_no_client(tmp_path: Path) -> None:
    engine = an_engine(tmp_path)
    session = engine.create_session(None, None)
    engine.forget_silent(session.seen + 10)
    engine.forget_silent(session.seen + 5000)  # nobody looked for more than an hour: the machine was asleep
    assert (session.finish, session.held) == (None, False)


def test_a_step_of_the_clock_ends_no_session(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = an_engine(tmp_path)
    session = engine.create_session(None, None)
    monkeypatch.setattr(time, "time", lambda: session.created + 1e6)
    engine.forget_silent(time.monotonic())
    assert session.finish is None


def test_a_session_that_its_client_ended_stays_ended(tmp_path: Path) -> None:
    from tinker import types

    engine = an_engine(tmp_path)
    session = engine.create_session(None, None)
    done = types.ClientSessionFinished.model_validate({"reason": {"type": "success"}, "detail": None})
    engine.finish_session(session.session_id, done)
    with pytest.raises(SessionFinishedError):
        engine.beat(session.session_id)
