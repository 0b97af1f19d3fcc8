"""Who a client is: whoever holds the engine's key.

The SDK exchanges its key for a signed token and reads the caller's name out of it (``whoami``). The signing key is
made from the engine's own key, so that tokens outlive a restart.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import time
from collections.abc import Mapping

from ..interface import RequestRejectedError

USER_URN = "tml:organization_user:local"
ORGANISATION = "local"
PROJECT = "local"
NO_ACCOUNTS = "this engine has one user, and no tokens for the checkpoints of others: leave weights_access_token out"
_LIFE_S = 12 * 3600
_HEADER = {"alg": "HS256", "typ": "JWT"}


def check_project(project_id: object) -> None:
    """Refuse any project but the one there is.

    Raises:
        RequestRejectedError: If it is another.
    """
    if project_id not in (None, "", PROJECT):
        raise RequestRejectedError(
            f"there is no project '{str(project_id)[:80]}' here: projects share work among the members of an "
            f"organisation, and this engine has one user and the one project '{PROJECT}'"
        )


def issue_token(api_key: str, now: float | None = None) -> str:
    """A JSON web token (RFC 7519, HS256) for the engine's only user."""
    issued = int(time.time() if now is None else now)
    claims = {
        "iss": "passport-local",
        "sub": USER_URN,
        "org_id": ORGANISATION,
        "email": "",
        "iat": issued,
        "exp": issued + _LIFE_S,
    }
    content = f"{_encoded(_HEADER)}.{_encoded(claims)}"
    return f"{content}.{sign(content, api_key)}"


def is_valid_token(token: str, api_key: str) -> bool:
    """Whether this engine issued ``token`` and it has not expired."""
    content, _, signature = token.rpartition(".")
    if not hmac.compare_digest(signature.encode(), sign(content, api_key).encode()):
        return False
    claims = json.loads(_decoded(content.rpartition(".")[2]))
    return float(claims["exp"]) > time.time()


def sign(content: str, api_key: str) -> str:
    """A signature of ``content`` that only this engine can make."""
    secret = hashlib.sha256(f"engine token {api_key}".encode()).digest()
    return _base64(hmac.new(secret, content.encode(), hashlib.sha256).digest())


def _encoded(value: Mapping[str, object]) -> str:
    return _base64(json.dumps(value, separators=(",", ":")).encode())


def _base64(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def _decoded(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
