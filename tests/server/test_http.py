"""The server over streamable HTTP, as a process: what it answers, and what it refuses."""

import os
import subprocess
import sys
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import anyio
import httpx2
import pytest
from mcp import Client

from sota_ml_researcher.core.errors import ConfigError
from sota_ml_researcher.server.app import build_server
from sota_ml_researcher.server.http_transport import KEY_VARIABLE, build_app, is_loopback
from sota_ml_researcher.tools import TOOLS

KEY = "0123456789abcdef0123"
LIST = {"jsonrpc": "2.0", "id": 1, "method": "ping"}
HEADERS = {"accept": "application/json, text/event-stream"}


@contextmanager
def serving(*arguments: str, **environment: str) -> Generator[str]:
    command = [sys.executable, "-m", "sota_ml_researcher.server", "serve", "--http", "--port", "0", *arguments]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env={**os.environ, **environment})
    try:
        assert process.stderr is not None
        yield process.stderr.readline().partition("serving ")[2].partition(";")[0].strip()
    finally:
        process.terminate()
        process.communicate(timeout=10)


def status(url: str, **headers: str) -> int:
    return httpx2.post(url, json=LIST, headers={**HEADERS, **headers}, timeout=10).status_code


def test_a_client_lists_tools_over_http_and_strangers_are_refused() -> None:
    async def names(url: str) -> list[str]:
        async with Client(url) as client:
            return [tool.name for tool in (await client.list_tools()).tools]

    with serving("--no-key") as url:
        assert url.startswith("http://127.0.0.1:")
        assert anyio.run(names, url) == [spec.function.__name__ for spec in TOOLS]
        assert status(url, host="evil.example") == 421
        assert status(url, origin="https://evil.example") == 403
        assert status(url, origin="http://localhost:3000") not in {401, 403, 421}


def test_with_a_key_only_its_bearer_is_answered() -> None:
    with serving("--host", "0.0.0.0", "--allow-host", "ml.example", **{KEY_VARIABLE: KEY}) as url:
        url = url.replace("0.0.0.0", "127.0.0.1")
        refused = httpx2.post(url, json=LIST, headers=HEADERS, timeout=10)
        assert refused.status_code == 401
        assert refused.headers["www-authenticate"] == "Bearer"
        assert KEY not in refused.text
        assert status(url, authorization=f"Bearer {KEY}x") == 401
        for host in ("ml.example", "ml.example:8765", "localhost"):
            assert status(url, authorization=f"Bearer {KEY}", host=host) not in {401, 403, 421}
        assert status(url, authorization=f"Bearer {KEY}", host="other.example") == 421


def test_on_loopback_other_users_of_the_machine_do_not_have_the_key(own_home: Path) -> None:
    with serving() as url:
        kept = own_home / "http.key"
        assert kept.stat().st_mode & 0o077 == 0
        key = kept.read_text().strip()
        assert len(key) >= 16
        assert status(url) == 401
        assert status(url, authorization=f"Bearer {key}x") == 401
        assert status(url, authorization=f"Bearer {key}") not in {401, 403, 421}
    with serving() as url:  # clients are set up once
        assert status(url, authorization=f"Bearer {key}") not in {401, 403, 421}


@pytest.mark.parametrize(
    ("host", "allowed", "key", "message"),
    [
        ("0.0.0.0", [], "", f"no key is set. Set {KEY_VARIABLE}"),
        ("ml.example", [], "", "can be reached from other machines"),
        ("0.0.0.0", [], KEY, "Add --allow-host NAME"),
        ("::", [], KEY, "Add --allow-host NAME"),
        ("127.0.0.1", [], "short", "the key has 5 characters, at least 16"),
    ],
)
def test_an_open_door_is_refused_before_it_opens(host: str, allowed: list[str], key: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build_app(build_server(), host, allowed, key)


@pytest.mark.parametrize(
    ("host", "expected"),
    [("127.0.0.1", True), ("127.8.8.8", True), ("::1", True), ("localhost", True), ("0.0.0.0", False), ("box", False)],
)
def test_what_counts_as_this_machine(host: str, expected: bool) -> None:
    assert is_loopback(host) is expected


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["serve", "--port", "1"], "--port goes with --http"),
        (["serve", "--allow-host", "x"], "--allow-host goes with --http"),
        (["serve", "--http", "--port", "99999"], "cannot listen on 127.0.0.1:99999"),
        (["serve", "--http", "--host", "192.0.2.1"], "can be reached from other machines"),
        (["serve", "--http", "--host", "192.0.2.1", "--no-key"], "can be reached from other machines"),
        (["serve", "--no-key"], "--no-key goes with --http"),
    ],
)
def test_wrong_arguments_are_one_line(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    from sota_ml_researcher.server.cli import main

    assert main(arguments) == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1


def test_a_taken_port_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    from sota_ml_researcher.server.cli import main

    with serving() as url:
        assert main(["serve", "--http", "--port", url.rpartition(":")[2].partition("/")[0]]) == 2
    assert "Choose another with --port" in capsys.readouterr().err
