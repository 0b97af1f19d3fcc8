import json
from collections.abc import Generator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from typing import Any

import pytest
from loopback_server import serving

from sota_ml_researcher.backends import connection
from sota_ml_researcher.core.errors import BackendError, ConfigError

SECRET = "tml-secret-0123456789"


@contextmanager
def loopback(status: int, body: Any) -> Generator[tuple[str, list[str]]]:
    """A server that answers the capabilities request as Tinker does; yields its URL and the keys it was given."""
    keys: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            keys.append(self.headers.get("X-API-Key", ""))
            payload = json.dumps(body).encode() if not isinstance(body, bytes) else body
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(payload)))
            self.end_headers()
            self.wfile.write(payload)

        def log_message(self, format: str, *args: Any) -> None:
            """Keep the test's output clean."""

    with serving(Handler) as url:
        yield url, keys


def test_hosted_tinker_without_a_key_says_what_to_do() -> None:
    with pytest.raises(BackendError, match="TINKER_API_KEY is not set"):
        connection.connect("tinker")


@pytest.mark.parametrize(
    ("status", "message"),
    [(401, "key was refused"), (402, "billing is blocked"), (403, "may not do that"), (429, "too many"), (500, "500")],
)
def test_a_refusal_is_one_sentence_without_the_key(status: int, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TINKER_API_KEY", SECRET)
    with loopback(status, {"detail": "no"}) as (url, keys):
        monkeypatch.setenv("TINKER_BASE_URL", url)
        with pytest.raises(BackendError) as caught:
            connection.supported_models(connection.remote("tinker"))
    assert message in str(caught.value)
    assert keys == [SECRET]
    assert SECRET not in str(caught.value)
    assert SECRET not in repr(connection.remote("tinker"))


def test_the_models_a_backend_names_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TINKER_API_KEY", SECRET)
    listed = [{"model_name": "Qwen/Qwen3-8B", "max_context_length": 32768, "trainable": True}, {"model_name": "x/y"}]
    with loopback(200, {"supported_models": listed}) as (url, _):
        found = connection.supported_models(connection.remote("tinker", url))
    assert found[0] == connection.SupportedModel("Qwen/Qwen3-8B", 32768, True, None)
    assert found[1].max_context_length is None


@pytest.mark.parametrize("body", [{"hello": 1}, [], b"<html>"])
def test_a_server_of_another_kind_is_recognised(body: Any) -> None:
    with loopback(200, body) as (url, _), pytest.raises(BackendError, match="not as a Tinker server does"):
        connection.supported_models(connection.remote("cluster", url))


def test_nobody_at_the_address_is_not_a_traceback() -> None:
    with loopback(200, {}) as (url, _):
        pass
    with pytest.raises(BackendError, match="no answer"):
        connection.supported_models(connection.remote("cluster", url))


def test_the_tinker_key_is_never_sent_to_a_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TINKER_API_KEY", SECRET)
    with loopback(200, {"supported_models": []}) as (url, keys):
        connection.supported_models(connection.remote("cluster", url))
    assert keys == [connection.LOCAL_KEY]


def test_a_cluster_needs_a_proper_address() -> None:
    with pytest.raises(ConfigError, match="base_url"):
        connection.remote("cluster", None)
    with pytest.raises(ConfigError, match="http://"):
        connection.remote("cluster", "cluster:8000")
