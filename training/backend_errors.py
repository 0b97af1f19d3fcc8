"""The SDK's exceptions as sentences a user can act on. Heavy: imports tinker."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager

import tinker

from sota_ml_researcher.core.errors import BackendError
from sota_ml_researcher.training.backends import Backend, refusal


@contextmanager
def backend_errors(backend: Backend) -> Generator[None]:
    """Turn what the Tinker SDK raises into a ``BackendError`` that names the backend and the way out."""
    try:
        yield
    except tinker.APIStatusError as error:
        if error.status_code in {401, 402, 403, 429}:
            raise refusal(error.status_code, backend) from error
        raise BackendError(f"{error.message} ({error.status_code})", where=backend.base_url) from error
    except tinker.APIConnectionError as error:
        raise BackendError(
            f"the connection was lost ({error.message})",
            where=backend.base_url,
            fix="resume_job goes on from the last checkpoint",
        ) from error
    except tinker.TinkerError as error:
        raise BackendError(str(error), where=backend.base_url) from error
