"""Who gets an answer of the engine: the right Host, Origin, kind of body and key; connections that do nothing."""

import json
import os
import socket
import stat
import subprocess
import sys
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import httpx2
import psutil
import pytest
from engine_support import KEY, Running, post

from sota_ml_researcher.backends.connection import connect, supported_models
from sota_ml_researcher.backends.embedded import engine_key, ensure_engine, running_engine
from sota_ml_researcher.core.errors import BackendError, ConfigError
from sota_ml_researcher.core.paths import engine_folder
from sota_ml_researcher.engine.api.connections import BoundedConnection
from sota_ml_researcher.engine.main import KEY_VARIABLE, key_of

SESSION = {"tags": [], "user_metadata": None, "sdk_version": "0"}


def address_of(engine: Running) -> tuple[str, int]:
    host, port = engine.url.removeprefix("http://").split(":")
    return host, int(port)


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Host": "evil.example"}, 421),
        ({"Host": "127.0.0.1:1@evil.example"}, 421),
        ({"Host": "localhost.evil.example"}, 421),
        ({"Host": "127.0.0.1.nip.io:80"}, 421),
        ({"Origin": "https://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": "http://localhost:80.evil.example"}, 403),
        ({"Content-Type": "text/plain"}, 415),
        ({"Content-Type": "application/x-www-form-urlencoded"}, 415),
        ({"Content-Type": "multipart/form-data; boundary=x"}, 415),
        ({"X-API-Key": "tml-0123456789abcdeX"}, 401),
        ({"X-API-Key": ""}, 401),
        ({"Host": "LOCALHOST:1"}, 200),
        ({"Origin": "http://127.0.0.1:3000"}, 200),
        ({"Content-Type": "application/json; charset=utf-8"}, 200),
    ],
)
def test_requests_that_a_web_page_could_make_are_refused(
    http_engine: Running, headers: dict[str, str], status: int
) -> None:
    answer = post(http_engine, "create_session", SESSION, **headers)
    assert answer.status_code == status, answer.text
    assert answer.json()["detail"] if status != 200 else answer.json()["session_id"]


def test_every_path_but_the_health_check_needs_the_key(http_engine: Running) -> None:
    for path in ("/api/v1/get_server_capabilities", "/api/v1/training_runs", "/oai/api/v1/models", "/api/v1/nowhere"):
        assert httpx2.get(http_engine.url + path).status_code == 401
    assert httpx2.get(f"{http_engine.url}/api/v1/healthz").status_code == 200
    assert httpx2.get(f"{http_engine.url}/api/v1/healthz", headers={"Host": "evil.example"}).status_code == 421
    body = {"X-API-Key": KEY}
    assert httpx2.post(f"{http_engine.url}/api/v1/create_session", json=SESSION, headers=body).status_code == 200


def test_a_body_without_a_kind_is_refused(http_engine: Running) -> None:
    answer = httpx2.post(f"{http_engine.url}/api/v1/create_session", content=b"{}", headers={"X-API-Key": KEY})
    assert (answer.status_code, "Content-Type" in answer.json()["detail"]) == (415, True)


def test_the_key_is_made_once_kept_private_and_taken_from_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = key_of(tmp_path)
    assert (made.startswith("tml-"), len(made) > 40, key_of(tmp_path) == made) == (True, True, True)
    assert stat.S_IMODE((tmp_path / "api_key").stat().st_mode) == 0o600
    monkeypatch.setenv(KEY_VARIABLE, KEY)
    assert key_of(tmp_path) == KEY
    assert KEY_VARIABLE not in os.environ  # what the engine starts does not inherit it
    assert key_of(tmp_path) == KEY


@pytest.mark.parametrize(
    ("key", "message"),
    [("tml-short", "at least 16"), ("x" * 20, "begin with tml-"), (f"{KEY} x", "visible"), (f"{KEY}\u00e9", "ASCII")],
)
def test_a_key_that_cannot_work_is_refused(
    key: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(KEY_VARIABLE, key)
    with pytest.raises(ConfigError, match=message) as caught:
        key_of(tmp_path)
    assert key not in str(caught.value)
    assert not (tmp_path / "api_key").exists()


def test_who_starts_an_engine_by_hand_is_told_where_the_key_is(tiny_weights: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "sota_ml_researcher.engine", "--port", "0", "--model", str(tiny_weights)]
    process = subprocess.Popen([*command, "--store", str(tmp_path)], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        url = process.stdout.readline().removeprefix("listening on ").strip()
        line = process.stdout.readline()
        assert (str(tmp_path / "api_key") in line, "TINKER_API_KEY" in line, url in line) == (True, True, True)
        key = (tmp_path / "api_key").read_text().strip()
        assert key not in line
        headers = {"Authorization": f"Bearer {key}"}
        assert httpx2.get(f"{url}/api/v1/training_runs", headers=headers).status_code == 200
    finally:
        process.terminate()
        process.wait(30)


@pytest.mark.usefixtures("stop_engine")
def test_the_embedded_engine_has_a_key_that_no_process_list_shows() -> None:
    backend = connect("embedded")
    assert backend.base_url == running_engine() == ensure_engine()
    assert backend.api_key == engine_key()
    assert httpx2.get(f"{backend.base_url}/api/v1/get_server_capabilities").status_code == 401
    supported_models(backend)
    pid = json.loads((engine_folder() / "engine.json").read_bytes())["pid"]
    process = psutil.Process(pid)
    assert not any(backend.api_key in word for word in [*process.cmdline(), *process.environ().values()])
    assert stat.S_IMODE((engine_folder() / "api_key").stat().st_mode) == 0o600


_EARLIER = """
import http.server, json, os, sys
class Answer(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        body = json.dumps({"status": "ok", "pid": os.getpid(), "adapters": int(sys.argv[2]), "waiting": 0}).encode()
        self.send_response(200); self.send_header("Content-Length", str(len(body))); self.end_headers()
        self.wfile.write(body)
    def log_message(self, *_): pass
server = http.server.HTTPServer(("127.0.0.1", 0), Answer)
with open(sys.argv[1], "w") as file:
    json.dump({"url": f"http://127.0.0.1:{server.server_port}", "pid": os.getpid(), "started": 0}, file)
print("ready", flush=True)
server.serve_forever()
"""


@contextmanager
def earlier_engine(adapters: int) -> Generator[subprocess.Popen[str]]:
    """What an engine without a key looks like to those that come after it: its file, and its answer about itself."""
    command = [sys.executable, "-c", _EARLIER, str(engine_folder() / "engine.json"), str(adapters)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    try:
        yield process
    finally:
        process.kill()
        process.wait(30)


@pytest.mark.usefixtures("stop_engine")
def test_an_idle_engine_without_a_key_is_replaced_by_one_that_has_it() -> None:
    with earlier_engine(adapters=0) as earlier:
        assert running_engine() is None
        url = ensure_engine()
        assert not psutil.pid_exists(earlier.pid)
        assert httpx2.get(f"{url}/api/v1/training_runs").status_code == 401


def test_an_engine_without_a_key_that_is_at_work_is_named() -> None:
    with earlier_engine(adapters=2) as earlier, pytest.raises(BackendError, match="no key, is at work") as caught:
        ensure_engine()
    assert f"kill {earlier.pid}" in str(caught.value)


_SHORT = """
import sys
from sota_ml_researcher.engine.api.connections import BoundedConnection
from sota_ml_researcher.engine.api import application
from sota_ml_researcher.engine import main
BoundedConnection.head_timeout_s = float(sys.argv[1])
application.BODY_PAUSE_S = float(sys.argv[1])
real = main.most_connections = lambda: int(sys.argv[2])
import sota_ml_researcher.engine.api.connections as connections
connections.most_connections = real
sys.exit(main.main(sys.argv[3:]))
"""


@contextmanager
def impatient_engine(model: Path, store: Path, patience_s: float, most: int) -> Generator[tuple[str, int]]:
    """The engine with its limits made small: what they bound is looked at, not how large they are."""
    command = [sys.executable, "-c", _SHORT, str(patience_s), str(most), "--port", "0", "--model", str(model)]
    environment = {**os.environ, KEY_VARIABLE: KEY}
    process = subprocess.Popen([*command, "--store", str(store)], stdout=subprocess.PIPE, text=True, env=environment)
    try:
        assert process.stdout is not None
        host, port = process.stdout.readline().removeprefix("listening on http://").strip().split(":")
        yield host, int(port)
    finally:
        process.terminate()
        process.wait(60)


HALVES = [
    b"",
    b"POST /api/v1/asample HTTP/1.1\r\nHost: localhost\r\n",
    f"POST /api/v1/create_session HTTP/1.1\r\nHost: localhost\r\nX-API-Key: {KEY}\r\n"
    "Content-Type: application/json\r\nContent-Length: 100\r\n\r\n{".encode(),
    b"GET /api/v1/healthz HTTP/1.1\r\nHost: localhost\r\n\r\nGET /api/v1/heal",
]


def test_half_a_request_does_not_keep_a_connection(tiny_weights: Path, tmp_path: Path) -> None:
    with impatient_engine(tiny_weights, tmp_path, 1.0, 100) as address:
        for half in HALVES:
            with socket.create_connection(address, timeout=60) as raw:
                raw.sendall(half)
                said = b""
                while part := _received(raw):  # ends when the engine closes the connection
                    said += part
                assert (b" 408 " in said) == (b"Content-Length: 100" in half)


def _received(raw: socket.socket) -> bytes:
    try:
        return raw.recv(65536)
    except ConnectionResetError:
        return b""


def test_too_many_connections_close_the_idle_ones_and_serve_the_new(tiny_weights: Path, tmp_path: Path) -> None:
    with impatient_engine(tiny_weights, tmp_path, 3600.0, 20) as address:
        idle = [socket.create_connection(address, timeout=60) for _ in range(60)]
        url = f"http://{address[0]}:{address[1]}/api/v1/healthz"
        assert httpx2.get(url, timeout=60).status_code == 200
        closed = sum(_received(raw) == b"" for raw in idle[:30])
        assert closed == 30  # the first to come were the first to go
        for raw in idle:
            raw.close()


def test_the_limit_of_connections_leaves_room_for_files() -> None:
    from sota_ml_researcher.engine.api.connections import MOST_CONNECTIONS, most_connections

    assert 16 <= most_connections() <= MOST_CONNECTIONS
    assert BoundedConnection.head_timeout_s <= 30
