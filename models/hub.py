"""Files of a model on the Hugging Face hub: from the local cache, else downloaded, else a sentence what to do."""

from __future__ import annotations

import os
import time
from collections.abc import Generator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from threading import Lock
from typing import Any

from ..core.errors import ModelError
from ..core.extras import not_installed

_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "chat_template.json")
_TIMEOUT_S = "10"
HUB_TIMEOUT_S = 3.0
# An answer of the hub, or its silence, is reused for this long: offline, not every call may wait for the timeout.
HUB_MEMORY_S = 300.0
# What the user set for the hub's client, once for each thread that is within `cache_if_offline`: the last restores it.
_settings: list[bool] = []
_lock = Lock()


@contextmanager
def cache_if_offline() -> Generator[None]:
    """Within it the hub's client asks its cache alone if the hub is out of reach; `huggingface_hub` must be installed.

    By itself it asks an unreachable hub six times in 23 seconds, for each file, whether it is cached or not.
    """
    from huggingface_hub import constants

    with _lock:
        offline = _settings[0] if _settings else constants.HF_HUB_OFFLINE
        _settings.append(offline)
    try:
        period = int(time.monotonic() // HUB_MEMORY_S)
        constants.HF_HUB_OFFLINE = offline or not _hub_answers(constants.ENDPOINT, period)
        yield
    finally:
        with _lock:
            _settings.pop()
            if not _settings:
                constants.HF_HUB_OFFLINE = offline


@lru_cache(maxsize=1)
def _hub_answers(endpoint: str, period: int) -> bool:
    """Whether the hub answers one plain request, with whatever. ``period`` makes an old answer expire."""
    del period
    import httpx
    from huggingface_hub import get_session

    try:
        get_session().head(endpoint, timeout=HUB_TIMEOUT_S)
    except httpx.HTTPError:
        return False
    return True


def hub_client(by: str) -> Any:
    """The package ``huggingface_hub``, with time-outs after which a person still waits; ``by`` needs it.

    Raises:
        MissingDependencyError: If it is not installed.
    """
    os.environ.setdefault("HF_HUB_DOWNLOAD_TIMEOUT", _TIMEOUT_S)
    os.environ.setdefault("HF_HUB_ETAG_TIMEOUT", _TIMEOUT_S)
    try:
        import huggingface_hub
    except ImportError as error:
        raise not_installed(["huggingface_hub"], by=by) from error
    return huggingface_hub


def hub_file(repository: str, name: str) -> Path:
    """The local path of one file of a repository.

    Raises:
        ModelError: If it is neither cached nor to be had.
        MissingDependencyError: If ``huggingface_hub`` is not installed.
    """
    hub = hub_client("a model on the hub")
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        with cache_if_offline():
            return Path(hub.hf_hub_download(repository, name))
    except LocalEntryNotFoundError as error:
        raise ModelError(
            f"{name} is not in the local cache and the Hugging Face hub is out of reach",
            where=repository,
            fix="Go online, set HF_ENDPOINT to a mirror, or give a model folder",
        ) from error
    except HfHubHTTPError as error:
        status = error.response.status_code
        problem = {401: "the hub wants a login", 403: "access was not granted", 404: f"there is no {name}"}.get(
            status, f"the hub answered {status}"
        )
        raise ModelError(problem, where=repository, fix="Check the id; gated models need HF_TOKEN") from error
    except (OSError, ValueError) as error:
        raise ModelError(f"{name} cannot be had: {error}", where=repository) from error


def tokenizer_folder(repository: str) -> Path:
    """A folder with the repository's tokenizer and chat template.

    Raises:
        ModelError: If there is no ``tokenizer.json`` to be had.
    """
    folder = hub_file(repository, _TOKENIZER_FILES[0]).parent
    for name in _TOKENIZER_FILES[1:]:
        try:
            hub_file(repository, name)
        except ModelError:
            continue  # not every repository has each of them; what is missing is said when it is needed
    return folder
