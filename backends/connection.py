"""Where a job trains: hosted Tinker, the embedded engine on this machine, or a Tinker-compatible cluster."""

from __future__ import annotations

import os
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol, cast
from urllib.parse import urlsplit

from ..core.errors import BackendError, ConfigError
from ..core.foreign_text import foreign, named
from ..core.names import BackendName

TINKER_KEY = "TINKER_API_KEY"
CLUSTER_KEY = "ML_RESEARCHER_CLUSTER_KEY"
# Sent to a cluster that asks for no key: the SDK wants one of the platform's form.
LOCAL_KEY = "tml-local"
TINKER_URL = "https://tinker.thinkingmachines.dev/services/tinker-prod"
_TIMEOUT_S = 15.0


# How the SDK begins the ValueError by which it gives up on a result.
_NO_RESULT = "Error retrieving result: "
# Statuses that the same request meets again, whenever it is sent.
_REFUSED_REQUESTS = frozenset({400, 413, 422})


class RequestRefusedError(BackendError):
    """The backend understood a request and refuses it as it is: to send it again cannot help."""


class TokenCounter(Protocol):
    """Hears of tokens as they are sent (or, for samples, received), by what they are billed as."""

    def __call__(self, *, train: int = 0, prefill: int = 0, sample: int = 0) -> None: ...  # noqa: D102


def _uncounted(*, train: int = 0, prefill: int = 0, sample: int = 0) -> None:
    """Outside a job nothing is counted."""


@dataclass(frozen=True, slots=True)
class Backend:
    """An address that speaks the Tinker protocol, the key for it (never shown), and who counts what is sent there."""

    name: BackendName
    base_url: str
    api_key: str = field(repr=False)
    count: TokenCounter = field(default=_uncounted, repr=False, compare=False)


# How a job connects (`jobs.context.RunContext.connect`), or `connect` itself outside one.
Connect = Callable[[BackendName, str | None], Backend]


@dataclass(frozen=True, slots=True)
class SupportedModel:
    """A model the backend says it serves. None means that it did not say."""

    name: str
    max_context_length: int | None
    trainable: bool | None
    sampleable: bool | None


def connect(name: BackendName, base_url: str | None = None) -> Backend:
    """The backend a config names; starts the embedded engine if it is not running.

    Raises:
        BackendError: If a key is missing or the engine does not start.
        ConfigError: If a cluster has no address.
    """
    if name == "embedded":
        from .embedded import engine_key, ensure_engine

        return Backend(name, ensure_engine(), engine_key())
    return remote(name, base_url)


def remote(name: BackendName, base_url: str | None = None) -> Backend:
    """Hosted Tinker or a cluster; the address and key are checked for presence only."""
    if name == "tinker":
        key = os.environ.get(TINKER_KEY, "")
        if not key:
            raise BackendError(
                f"{TINKER_KEY} is not set, and hosted Tinker needs it",
                fix=f"Export {TINKER_KEY} for the server, or use backend: embedded to train on this machine",
            )
        return Backend(name, (base_url or os.environ.get("TINKER_BASE_URL") or TINKER_URL).rstrip("/"), key)
    if not base_url:
        raise ConfigError("a cluster needs its address", where="base_url")
    return Backend(name, _cluster_url(base_url), os.environ.get(CLUSTER_KEY, LOCAL_KEY))


def _cluster_url(base_url: str) -> str:
    """The address that the SDK's paths are put behind.

    Raises:
        ConfigError: If it is none, or holds a password, which would be written to run folders and shown.
    """
    if not base_url.startswith(("http://", "https://")):
        raise ConfigError("the address must start with http:// or https://", where="base_url")
    try:
        parts = urlsplit(base_url)
        sound = bool(parts.hostname) and parts.port != 0 and " " not in base_url
    except ValueError:
        sound, parts = False, urlsplit("")
    if not sound:
        raise ConfigError("this is no address", where="base_url", fix="Write it as http://HOST:PORT")
    if parts.username is not None:
        raise ConfigError(
            "the address holds a name or a password",
            where="base_url",
            fix=f"Leave them out, and put the server's key into {CLUSTER_KEY}",
        )
    return base_url.rstrip("/").removesuffix("/api/v1")


def supported_models(backend: Backend) -> list[SupportedModel]:
    """Ask the backend what it serves; also the check that it is there and the key is right.

    Raises:
        BackendError: If it does not answer, refuses the key, or wants billing set up.
    """
    import httpx2

    url = f"{backend.base_url}/api/v1/get_server_capabilities"
    try:
        answer = httpx2.get(url, headers={"X-API-Key": backend.api_key}, timeout=_TIMEOUT_S)
    except httpx2.HTTPError as error:
        raise _unreachable(error, backend) from error
    if answer.is_redirect:
        raise BackendError(
            f"it sends on to {named(answer.headers.get('location', 'nowhere'))}",
            where=backend.base_url,
            fix="Set base_url to the address of the server itself: a key is not sent on",
        )
    if answer.status_code == 404 and _speaks_openai(backend):
        raise BackendError(
            "this is an OpenAI-compatible server: it samples, and cannot train",
            where=backend.base_url,
            fix="Give the address of a Tinker server; as a judge this one is named by judge_base_url",
        )
    if answer.status_code != 200:
        raise refusal(answer.status_code, backend)
    if "html" in answer.headers.get("content-type", ""):
        raise BackendError(
            "a web page answers here, not as a Tinker server does",
            where=backend.base_url,
            fix="Check base_url: a proxy or a login page may stand before the server",
        )
    try:
        listed = cast("list[dict[str, Any]]", answer.json()["supported_models"])
        return [_supported_model(model) for model in listed]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise BackendError("it answers, but not as a Tinker server does", where=backend.base_url) from error


def _supported_model(said: dict[str, Any]) -> SupportedModel:
    name, length = said["model_name"], said.get("max_context_length")
    if not isinstance(name, str) or not isinstance(length, int | None):
        raise TypeError(f"a model is described by {said}")
    return SupportedModel(name, length, said.get("trainable"), said.get("sampleable"))


def _unreachable(error: Exception, backend: Backend) -> BackendError:
    """The sentence for a request that no answer came to."""
    said, fix = str(error), "Check the address and the network"
    problem = f"no answer ({type(error).__name__})"
    if "CERTIFICATE_VERIFY_FAILED" in said:
        problem = "its certificate is not trusted here"
        fix = "Have its certificate signed, or name the authority's file in SSL_CERT_FILE"
    elif "SSL" in said and backend.base_url.startswith("https://"):
        problem, fix = "it does not speak TLS", "Set base_url to http:// if the network between is your own"
    elif "Timeout" in type(error).__name__:
        problem = f"no answer within {_TIMEOUT_S:.0f} s ({type(error).__name__})"
    elif type(error).__name__ in {"RemoteProtocolError", "ReadError"} and backend.base_url.startswith("http://"):
        fix = "Check the address; a server that speaks TLS alone wants https://"
    return BackendError(problem, where=backend.base_url, fix=fix)


def _speaks_openai(backend: Backend) -> bool:
    """Whether what has no Tinker API lists models as OpenAI's does. It is asked without the key."""
    import httpx2

    try:
        answer = httpx2.get(f"{backend.base_url.removesuffix('/v1')}/v1/models", timeout=_TIMEOUT_S)
        # With a key of its own, vLLM guards what is below /v1 and nothing else.
        return answer.status_code == 401 or (answer.status_code == 200 and isinstance(answer.json()["data"], list))
    except (httpx2.HTTPError, ValueError, KeyError, TypeError):
        return False


def refusal(status: int, backend: Backend) -> BackendError:
    """The sentence for an HTTP status that means no."""
    key = TINKER_KEY if backend.name == "tinker" else CLUSTER_KEY
    known = {
        401: ("the key was refused (401)", f"Check {key}; Tinker keys start with tml-"),
        402: ("billing is blocked (402)", "Top up or set up billing in the Tinker console, then try again"),
        403: ("this key may not do that (403)", f"Check what {key} is allowed to do"),
        404: ("there is no Tinker API at this address (404)", "Check base_url"),
        429: ("too many requests (429)", "Wait and try again"),
    }
    later = "Try again later" if status >= 500 else "Check base_url: another server, or another protocol, may be there"
    problem, fix = known.get(status, (f"it answered with status {status}", later))
    return BackendError(problem, where=backend.base_url, fix=fix)


@contextmanager
def backend_errors(backend: Backend) -> Generator[None]:
    """Turn what the Tinker SDK raises into a ``BackendError`` that names the backend and the way out."""
    import tinker

    try:
        yield
    except tinker.APIStatusError as error:
        if error.status_code in {401, 402, 403, 429}:
            raise refusal(error.status_code, backend) from error
        of_request = error.status_code in _REFUSED_REQUESTS
        kind = RequestRefusedError if of_request else BackendError
        raise kind(f"{foreign(error.message)} ({error.status_code})", where=backend.base_url) from error
    except tinker.APIConnectionError as error:
        raise BackendError(
            f"the connection was lost ({foreign(error.message)})",
            where=backend.base_url,
            fix="resume_job goes on from the last checkpoint",
        ) from error
    except tinker.TinkerError as error:
        raise BackendError(foreign(error), where=backend.base_url) from error
    except ValueError as error:
        if not str(error).startswith(_NO_RESULT):
            raise
        raise BackendError(
            f"it took a request, and has no result for it: {foreign(str(error).removeprefix(_NO_RESULT))}",
            where=backend.base_url,
            fix="If the server was restarted, resume_job goes on from the last checkpoint that it kept",
        ) from error
