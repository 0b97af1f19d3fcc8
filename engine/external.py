"""Checkpoints for other programs: PEFT's files, encrypted with age on request, behind signed links.

The SDK's ``save_weights_external`` and ``get_external_weights_urls``, which the cookbook's ``weights.download`` uses.
"""

from __future__ import annotations

import hmac
import importlib
import secrets
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Route

from sota_ml_researcher.engine.interface import RequestRejectedError
from sota_ml_researcher.engine.store import NoSuchCheckpointError, Saved, Store

KIND = "external_weights"
# Links carry their own proof instead of the key: whoever downloads by one sends no header.
FILES_PATH = "/api/v1/external_files/"
_LINK_LIFE_S = 3600
_MOST_RECIPIENTS = 10
_NOT_FILES = {"checkpoint.json"}
_secret = secrets.token_bytes(32)


def encrypter(recipients: Sequence[str]) -> Callable[[Path], None] | None:
    """What replaces each file of a folder by ``FILE.age``, readable by the recipients alone; None without any.

    Raises:
        RequestRejectedError: If a recipient is no age or SSH public key, or there are too many.
    """
    if not recipients:
        return None
    if len(recipients) > _MOST_RECIPIENTS:
        raise RequestRejectedError(f"{len(recipients)} recipients were given; {_MOST_RECIPIENTS} is the most")
    age = _age()
    keys = [_recipient(recipient) for recipient in recipients]

    def encrypt(folder: Path) -> None:
        for file in sorted(folder.iterdir()):
            age.encrypt_file(str(file), f"{file}.age", keys)
            file.unlink()

    return encrypt


def _age() -> Any:
    """The module, which comes without types and is only needed for encrypted exports."""
    return importlib.import_module("pyrage")


def _recipient(text: str) -> Any:
    age = _age()
    kind = age.x25519 if text.startswith("age1") else age.ssh
    try:
        return kind.Recipient.from_str(text)
    except age.RecipientError as error:
        raise RequestRejectedError(f"'{text[:40]}' is no age or SSH public key") from error


async def _links(request: Request) -> Response:
    store, given = _store(request), request.path_params
    saved = store.find(f"tinker://{given['run_id']}/{given['kind']}/{given['name']}")
    if saved.kind != KIND:
        raise RequestRejectedError(f"{saved.path} was not saved with save_weights_external, so it has no links")
    expires = int(time.time()) + _LINK_LIFE_S
    base = str(request.base_url).rstrip("/")
    names = [file.name for file in sorted(store.folder_of(saved).iterdir()) if file.name not in _NOT_FILES]
    return JSONResponse(
        {
            "urls": {name: base + _link(saved, name, expires) for name in names},
            "expires": datetime.fromtimestamp(expires, UTC).isoformat(),
        }
    )


async def _file(request: Request) -> Response:
    given, query = request.path_params, request.query_params
    run_id, name, file = given["run_id"], given["name"], given["file"]
    expires = query.get("expires", "")
    right = _signature(run_id, name, file, expires)
    if not hmac.compare_digest(query.get("signature", "").encode(), right.encode()):
        return JSONResponse({"detail": "the link's signature is wrong"}, status_code=403)
    if int(expires) < time.time():
        return JSONResponse({"detail": "the link has expired: ask for new ones"}, status_code=403)
    store = _store(request)
    saved = store.find(f"tinker://{run_id}/{KIND}/{name}")
    path = store.file(saved, file)
    if not path.is_file():
        raise NoSuchCheckpointError(f"{saved.path} has no file {file}")
    return FileResponse(path)


def _link(saved: Saved, file: str, expires: int) -> str:
    place = "/".join(quote(part, safe="") for part in (saved.run_id, saved.name, file))
    signature = _signature(saved.run_id, saved.name, file, str(expires))
    return f"{FILES_PATH}{place}?{urlencode({'expires': expires, 'signature': signature})}"


def _signature(run_id: str, name: str, file: str, expires: str) -> str:
    return hmac.new(_secret, "\n".join((run_id, name, file, expires)).encode(), "sha256").hexdigest()


def _store(request: Request) -> Store:
    return request.app.state.engine.store


def routes() -> list[Route]:
    """Asking for links, and following them."""
    return [
        Route("/api/v1/training_runs/{run_id}/checkpoints/{kind}/{name}/external_weights_urls", _links),
        Route(FILES_PATH + "{run_id}/{name}/{file}", _file),
    ]
