"""Streamable HTTP: loopback unless told otherwise, host and origin checked, and a bearer key.

Loopback is open to every user of the machine, and the tools read and start what their own user may: so there is a key
there too, made at the first start and kept where only that user can read it.
"""

from __future__ import annotations

import hmac
import os
import secrets
import socket
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mcp.server import MCPServer
from mcp.server.transport_security import TransportSecuritySettings

from ..core.errors import ConfigError
from ..core.files import storage_errors, write_atomically
from ..core.http_guard import MIN_KEY_LENGTH, HttpGuard, check_names, in_url, is_loopback
from ..core.paths import home
from ..core.redaction import keep_secret

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Receive, Scope, Send

KEY_VARIABLE = "ML_RESEARCHER_HTTP_KEY"
DEFAULT_HOST, DEFAULT_PORT, PATH = "127.0.0.1", 8765, "/mcp"


def serve(
    server: MCPServer[Any], host: str, port: int, allow_hosts: Sequence[str] = (), *, needs_key: bool = True
) -> None:
    """Answer MCP clients over HTTP until interrupted.

    Args:
        server: The server with everything registered.
        host: The address to listen on.
        port: The port; 0 takes a free one, which is printed.
        allow_hosts: Further names that clients may call it by.
        needs_key: False answers every user of this machine; refused beyond loopback.

    Raises:
        ConfigError: If the address cannot be had, or a key is needed beyond loopback and not set.
        StorageError: If the key of this machine cannot be read or kept.
    """
    import uvicorn

    key = os.environ.pop(KEY_VARIABLE, "")  # workers and the engine inherit the environment; this is not for them
    if not needs_key and key:
        raise ConfigError(f"--no-key contradicts {KEY_VARIABLE}, which is set", where="serve", fix="Leave one out")
    note = ""
    if needs_key and not key and is_loopback(host):
        key, kept = own_key()
        note = f"; clients send 'Authorization: Bearer KEY', the key in {kept}"
    app = build_app(server, host, allow_hosts, key)
    with _listen(host, port) as listener:
        url = f"http://{in_url(host)}:{listener.getsockname()[1]}{PATH}"
        print(f"ml-researcher: serving {url}{note}", file=sys.stderr, flush=True)
        uvicorn.Server(uvicorn.Config(app, log_level="warning")).run(sockets=[listener])


def build_app(server: MCPServer[Any], host: str, allow_hosts: Sequence[str], key: str) -> ASGIApp:
    """The ASGI application for one address, its checks in place.

    Raises:
        ConfigError: If the address is beyond loopback and the key is missing or short, or no name is allowed.
    """
    if key and len(key) < MIN_KEY_LENGTH:
        raise ConfigError(
            f"the key has {len(key)} characters, at least {MIN_KEY_LENGTH} are needed", where=KEY_VARIABLE
        )
    if not is_loopback(host):
        _check_exposed(host, allow_hosts, key)
    # The guard looks at Host and Origin; the SDK's own check takes any name that begins like an allowed one.
    unchecked = TransportSecuritySettings(enable_dns_rebinding_protection=False)
    app = server.streamable_http_app(streamable_http_path=PATH, host=host, transport_security=unchecked)
    guarded = HttpGuard(app, host, allow_hosts)
    return BearerKey(guarded, key) if key else guarded


def own_key() -> tuple[str, Path]:
    """The key of this user's servers on loopback, made at the first call, and the file it is kept in (mode 600).

    Raises:
        StorageError: If the file cannot be read or written.
    """
    path = home() / "http.key"
    with storage_errors(path):
        if not path.exists():
            write_atomically(path, secrets.token_urlsafe(24) + "\n")
        key = path.read_text(encoding="utf-8").strip()
    keep_secret(key)
    return key, path


class BearerKey:
    """Refuses requests without the key. A comparison in constant time tells nothing about how much of it was right."""

    def __init__(self, app: ASGIApp, key: str) -> None:
        self._app = app
        self._expected = f"Bearer {key}".encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or answer 401."""
        if scope["type"] == "http":
            header = dict(scope["headers"]).get(b"authorization", b"")
            if not hmac.compare_digest(header, self._expected):
                from starlette.responses import PlainTextResponse

                refused = PlainTextResponse(
                    f"This server needs the header 'Authorization: Bearer KEY', KEY being its {KEY_VARIABLE}, or on the"
                    " machine it runs on the one in http.key in its state folder (ml-researcher doctor names that).\n",
                    status_code=401,
                    headers={"WWW-Authenticate": "Bearer"},
                )
                await refused(scope, receive, send)
                return
        await self._app(scope, receive, send)


def _check_exposed(host: str, allow_hosts: Sequence[str], key: str) -> None:
    if not key:
        raise ConfigError(
            f"{host} can be reached from other machines, and no key is set",
            where="--host",
            fix=f"Set {KEY_VARIABLE} to at least {MIN_KEY_LENGTH} characters, or listen on {DEFAULT_HOST}",
        )
    check_names(host, allow_hosts)


def _listen(host: str, port: int) -> socket.socket:
    """Bind before anything is printed, so that a taken port is one sentence."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family)
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ConfigError(
            f"cannot listen on {host}:{port} ({reason})", where="--host/--port", fix="Choose another with --port"
        ) from error
