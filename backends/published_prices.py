"""The prices that Tinker publishes as a file: fetched at most once a day, kept in the state folder.

The file is a JSON list with one object per model: ``tinker_id``, and as text (``"$1.87"``) USD per million tokens of
``prefill``, ``cached_prefill``, ``sample`` and ``train``; ``context`` is text such as ``"64K"``. Source:
tinker-cookbook 0.6.1, ``utils/cost_estimation.py``. Whatever keeps it from being read is kept as a sentence, and never
raised: a plan goes on with the copy that is there.
"""

from __future__ import annotations

import json
import os
import re
import threading
import time
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from importlib.metadata import version
from math import isfinite
from pathlib import Path
from typing import Any, Literal, cast

from pydantic import AwareDatetime, BaseModel, ConfigDict, ValidationError

from ..core.errors import ConfigError, StorageError
from ..core.files import write_atomically
from ..core.paths import home, state_folder

PUBLISHED_URL = "https://tinker-docs.thinkingmachines.ai/tinker/models.json"
URL_VARIABLE = "ML_RESEARCHER_PRICES_URL"
OFF = "off"
MAX_AGE = timedelta(days=1)
# After a failure nobody waits for the file again for this long.
RETRY_AFTER = timedelta(minutes=10)
TIMEOUT_S = 2.5
_TOO_SLOW = f"no whole answer within {TIMEOUT_S:g} s"
_MAX_BYTES = 1_000_000
_MAX_MODELS = 1000
_MAX_NAME = 200
_FOLDER, _CACHE = "prices", "published.json"
_KINDS = ("prefill", "cached_prefill", "sample", "train")
# Above this a number is not a price per million tokens but a change of unit.
_DEAREST_USD = 10_000.0
_CONTEXT = re.compile(r"(\d+(?:\.\d+)?)([KM]?)")
_CONTEXT_UNITS = {"": 1, "K": 1024, "M": 1024 * 1024}


class PublishedModel(BaseModel):
    """One model of the file: USD per million tokens by kind, and its context in tokens where the file says it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    usd: Mapping[Literal["prefill", "cached_prefill", "sample", "train"], float]
    context: int | None = None


class PublishedPrices(BaseModel):
    """What is kept of the published file.

    Attributes:
        url: Where it was asked for.
        etag: The server's mark of this version, or empty.
        checked: When the server last sent or confirmed it; None if it never did.
        tried: When it was last asked for.
        problem: Why the last attempt brought nothing, or empty.
        models: By the platform's id.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    url: str
    etag: str = ""
    checked: AwareDatetime | None = None
    tried: AwareDatetime
    problem: str = ""
    models: Mapping[str, PublishedModel] = {}


class _UnreadableError(Exception):
    """Why a fetch brought no prices, in a few words."""


def published_prices(*, refresh: bool = False) -> PublishedPrices | None:
    """The copy in the state folder, or None if the file was never asked for.

    Args:
        refresh: Ask for the file first if the copy is older than `MAX_AGE`; takes `TIMEOUT_S` at most.

    Raises:
        ConfigError: If the variable holds neither an address nor ``off``.
        StorageError: If there is no state folder to be had.
    """
    url = _address()
    kept = _kept(home() / _FOLDER / _CACHE)
    if kept is not None and url not in (None, kept.url):
        kept = None
    if not refresh or url is None or not _is_due(kept, now := datetime.now(UTC)):
        return kept
    fresh = _asked(url, kept, now)
    try:
        write_atomically(state_folder(_FOLDER) / _CACHE, fresh.model_dump_json())
    except StorageError as error:
        return fresh.model_copy(update={"problem": fresh.problem or f"it could not be kept ({error.problem})"})
    return fresh


def _address() -> str | None:
    """Where the file is, or None where it is not to be asked for."""
    url = os.environ.get(URL_VARIABLE) or PUBLISHED_URL
    if url == OFF:
        return None
    if not url.startswith(("http://", "https://")):
        raise ConfigError(
            "the address must start with http:// or https://", where=URL_VARIABLE, fix=f"Or set it to {OFF}"
        )
    return url


def _kept(path: Path) -> PublishedPrices | None:
    try:
        return PublishedPrices.model_validate_json(path.read_bytes())
    except (OSError, ValidationError):
        return None  # not there, or half of another version: asked for again


def _is_due(kept: PublishedPrices | None, now: datetime) -> bool:
    """Whether to ask now. A time after ``now`` says only that the clock is or was wrong."""
    if kept is None or kept.tried > now:
        return True
    if now - kept.tried < RETRY_AFTER:
        return False
    return kept.checked is None or not now - MAX_AGE < kept.checked <= now


def _asked(url: str, kept: PublishedPrices | None, now: datetime) -> PublishedPrices:
    """The file as it is now; or what was kept, with the reason why it is not newer."""
    kept = kept or PublishedPrices(url=url, tried=now)
    try:
        answer = _fetched(url, kept.etag if kept.models else "")
        if answer is None:
            return kept.model_copy(update={"checked": now, "tried": now, "problem": ""})
        body, etag = answer
        return PublishedPrices(url=url, etag=etag, checked=now, tried=now, models=_models(body))
    except _UnreadableError as error:
        return kept.model_copy(update={"tried": now, "problem": str(error)})


def _fetched(url: str, etag: str) -> tuple[bytes, str] | None:
    """The body and its ETag; None if the server says that nothing has changed. Bounded in time, names included."""
    outcome: list[tuple[bytes, str] | None] = []
    failure: list[str] = []

    def work() -> None:
        try:
            outcome.append(_download(url, etag))
        except _UnreadableError as error:
            failure.append(str(error))

    # A name server that does not answer, and a body that drips, know no timeout of a client.
    thread = threading.Thread(target=work, daemon=True, name="published prices")
    thread.start()
    thread.join(TIMEOUT_S)
    if failure:
        raise _UnreadableError(failure[0])
    if not outcome:
        raise _UnreadableError(_TOO_SLOW)
    return outcome[0]


def _download(url: str, etag: str) -> tuple[bytes, str] | None:
    import httpx2

    # The site refuses clients without a name of their own.
    headers = {"User-Agent": f"sota-ml-researcher/{version('sota-ml-researcher')}", "Accept": "application/json"}
    if etag:
        headers["If-None-Match"] = etag
    end = time.monotonic() + TIMEOUT_S
    body = bytearray()
    try:
        with httpx2.stream("GET", url, headers=headers, timeout=TIMEOUT_S, follow_redirects=True) as answer:
            if answer.status_code == 304:
                return None
            if answer.status_code != 200:
                raise _UnreadableError(f"the server answered with status {answer.status_code}")
            for part in answer.iter_bytes():
                body += part
                if len(body) > _MAX_BYTES:
                    raise _UnreadableError("the answer is too long to be a table of prices")
                if time.monotonic() > end:
                    raise _UnreadableError(_TOO_SLOW)
            return bytes(body), answer.headers.get("etag", "")[:200]
    except (httpx2.HTTPError, httpx2.InvalidURL) as error:
        raise _UnreadableError(f"no answer ({type(error).__name__})") from error


def _models(body: bytes) -> dict[str, PublishedModel]:
    """The models of the file that have a price for prompts and for samples.

    Raises:
        _UnreadableError: If it is no such list, or no model in it has a price for training.
    """
    try:
        document: object = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise _UnreadableError("the answer is not JSON") from error
    if not isinstance(document, list):
        raise _UnreadableError("the file has another shape than it had: no list of models")
    read: dict[str, PublishedModel] = {}
    for row in cast("list[object]", document):
        if not isinstance(row, dict):
            continue
        entry = cast("dict[str, Any]", row)
        name, usd = entry.get("tinker_id"), {kind: _price(entry.get(kind)) for kind in _KINDS}
        if (
            isinstance(name, str)
            and len(name) <= _MAX_NAME
            and usd["prefill"] is not None
            and usd["sample"] is not None
        ):
            known = {kind: price for kind, price in usd.items() if price is not None}
            read[name] = PublishedModel.model_validate({"usd": known, "context": _tokens(entry.get("context"))})
    if len(read) > _MAX_MODELS or not any("train" in model.usd for model in read.values()):
        raise _UnreadableError("the file has another shape than it had: no model with prices")
    return read


def _price(value: object) -> float | None:
    """USD from ``"$1.87"`` or a number; None for anything else."""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return None
    try:
        price = float(value.strip().removeprefix("$").replace(",", "")) if isinstance(value, str) else float(value)
    except ValueError:
        return None
    return price if isfinite(price) and 0 <= price <= _DEAREST_USD else None


def _tokens(value: object) -> int | None:
    """Tokens from ``"64K"``; None for anything else."""
    found = _CONTEXT.fullmatch(value.strip().upper()) if isinstance(value, str) else None
    return int(float(found[1]) * _CONTEXT_UNITS[found[2]]) or None if found else None
