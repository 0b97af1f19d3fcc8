"""What both HTTP servers of this package refuse before anything is read: foreign names, origins and kinds of body.

A page in a browser can send requests to a server on the same machine, directly or under a name it had resolved to
127.0.0.1 (DNS rebinding). Such a request carries the page's Origin, or a Host that is not ours, or a body of a kind
that browsers send unasked (``text/plain``).
"""

from __future__ import annotations

import ipaddress
import json
import re
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

from .errors import ConfigError

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Receive, Scope, Send

# A shorter key can be guessed over a network.
MIN_KEY_LENGTH = 16
_LOOPBACK_NAMES = ("127.0.0.1", "localhost", "[::1]")
_PORT = r"(?::\d{1,5})?"


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach a server on ``host``."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def is_wildcard(host: str) -> bool:
    """Whether a server on ``host`` listens on every address of the machine."""
    try:
        return ipaddress.ip_address(host).is_unspecified
    except ValueError:
        return False


def in_url(host: str) -> str:
    """A host as it stands in an address."""
    return f"[{host}]" if ":" in host else host


def check_names(host: str, allow_hosts: Sequence[str]) -> None:
    """Refuse to listen on every address without being told the names that clients use.

    Raises:
        ConfigError: If so.
    """
    if is_wildcard(host) and not allow_hosts:
        raise ConfigError(
            f"{host} listens on every address, so the names that clients call it by must be said",
            where="--host",
            fix="Add --allow-host NAME, the name or address in the clients' URL",
        )


class HttpGuard:
    """Refuses requests that were not meant for this server, or that a page in a browser made.

    Args:
        app: What answers the others.
        host: The address that is listened on.
        allow_hosts: Further names that clients may call the server by.
        media_types: Kinds of body that are taken; None leaves that to ``app``.
    """

    def __init__(
        self,
        app: ASGIApp,
        host: str,
        allow_hosts: Sequence[str] = (),
        media_types: Collection[str] | None = None,
    ) -> None:
        self._app = app
        own = () if is_wildcard(host) else (in_url(host),)
        names = "|".join(re.escape(name) for name in dict.fromkeys([*_LOOPBACK_NAMES, *own, *allow_hosts]))
        self._host = re.compile(f"(?:{names}){_PORT}", re.IGNORECASE)
        self._origin = re.compile(f"https?://(?:{names}){_PORT}", re.IGNORECASE)
        self._media_types = media_types

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or answer 421 (Host), 403 (Origin) or 415 (Content-Type)."""
        if scope["type"] == "http" and (refused := self._refusal(scope)) is not None:
            status, sentence = refused
            body = json.dumps({"error": sentence, "detail": sentence}).encode()
            headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
            await send({"type": "http.response.start", "status": status, "headers": headers})
            await send({"type": "http.response.body", "body": body})
            return
        await self._app(scope, receive, send)

    def _refusal(self, scope: Scope) -> tuple[int, str] | None:
        values: dict[str, list[str]] = {}
        for name, value in scope["headers"]:
            values.setdefault(name.decode("latin-1").lower(), []).append(value.decode("latin-1"))
        hosts = values.get("host", [])
        if len(hosts) != 1 or not self._host.fullmatch(hosts[0]):
            return 421, "this server is not called by that Host; a further name is allowed with --allow-host"
        if not all(self._origin.fullmatch(origin) for origin in values.get("origin", [])):
            return 403, "requests from pages of another Origin are refused"
        return None if self._media_types is None else self._wrong_media_type(values)

    def _wrong_media_type(self, values: dict[str, list[str]]) -> tuple[int, str] | None:
        kinds = [kind.partition(";")[0].strip().lower() for kind in values.get("content-type", [])]
        has_body = "transfer-encoding" in values or values.get("content-length", ["0"]) != ["0"]
        if all(kind in (self._media_types or ()) for kind in kinds) and (kinds or not has_body):
            return None
        return 415, f"the body must be {' or '.join(sorted(self._media_types or ()))}, and Content-Type must say so"
