"""The checkpoints a backend stores: their sizes, what they cost, and how to delete them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

import tinker

from ..core.errors import JobError
from .connection import Backend, backend_errors, supported_models
from .prices import PriceTable
from .servers import server_of

_BYTES_PER_GB, _PAGE = 1e9, 500


@dataclass(frozen=True, slots=True)
class StoredCheckpoint:
    """A checkpoint on a backend; ``expires`` is None for never, ``usd_month`` (US dollars per month) for unknown."""

    path: str
    size_bytes: int | None
    created: datetime
    expires: datetime | None
    usd_month: float | None


def monthly_usd(stored: Sequence[StoredCheckpoint]) -> float | None:
    """What these checkpoints cost per month; None where a price is not known."""
    prices = [checkpoint.usd_month for checkpoint in stored]
    return None if None in prices else sum(price or 0.0 for price in prices)


def described(stored: Sequence[StoredCheckpoint]) -> str:
    """How many checkpoints there are, how large, and what they cost per month."""
    sizes = [checkpoint.size_bytes for checkpoint in stored if checkpoint.size_bytes is not None]
    unsized, price = len(stored) - len(sizes), monthly_usd(stored)
    size = f"{sum(sizes) / 1e9:.3g} GB" + (f" and {unsized} of unknown size" if unsized else "")
    return f"{len(stored)} checkpoints, {size}, " + ("price unknown" if price is None else f"${price:.4g} per month")


def stored_checkpoints(backend: Backend, table: PriceTable) -> list[StoredCheckpoint]:
    """Every checkpoint of the account, largest first, then oldest.

    Raises:
        BackendError: If the backend does not answer or refuses the key.
    """
    if backend.name != "embedded":  # `connect` has just seen that one answer; the SDK asks another for five minutes
        supported_models(backend)
    rate = table.storage(backend.name) if table.charges(backend.name) else 0.0
    list_all = _by_run if server_of(backend).abilities.lists_checkpoints is False else _all
    with backend_errors(backend):
        rest = tinker.RestClient(base_url=backend.base_url, api_key=backend.api_key)
        checkpoints = [_stored(checkpoint, rate) for checkpoint in list_all(rest)]
    return sorted(checkpoints, key=lambda c: (-(c.size_bytes or 0), c.created))


def _all(rest: tinker.RestClient) -> list[tinker.Checkpoint]:
    found: list[tinker.Checkpoint] = []
    while len(found) % _PAGE == 0:
        page = rest.list_user_checkpoints(limit=_PAGE, offset=len(found)).result().checkpoints
        if not page:
            break
        found += page
    return found


def _by_run(rest: tinker.RestClient) -> list[tinker.Checkpoint]:
    """The same of a server that lists the checkpoints of one run at a time."""
    runs: list[str] = []
    while len(runs) % _PAGE == 0:
        page = rest.list_training_runs(limit=_PAGE, offset=len(runs)).result().training_runs
        if not page:
            break
        runs += [run.training_run_id for run in page]
    return [checkpoint for run in runs for checkpoint in rest.list_checkpoints(run).result().checkpoints]


def delete_checkpoints(backend: Backend, paths: Sequence[str]) -> None:
    """Delete checkpoints, each named in full. They cannot be restored.

    Raises:
        JobError: If one is not a checkpoint path: nothing is deleted then.
        BackendError: If the backend refuses one; those before it are gone.
    """
    for path in paths:
        if not path.startswith("tinker://"):
            raise JobError(
                f"'{path}' is no checkpoint path", fix="Give paths such as tinker://run/weights/name, in full"
            )
    with backend_errors(backend):
        rest = tinker.RestClient(base_url=backend.base_url, api_key=backend.api_key)
        for path in paths:
            rest.delete_checkpoint_from_tinker_path(path).result()


def _stored(checkpoint: tinker.Checkpoint, rate: float | None) -> StoredCheckpoint:
    size = checkpoint.size_bytes
    price = None if rate is None or size is None else size / _BYTES_PER_GB * rate
    return StoredCheckpoint(checkpoint.tinker_path, size, checkpoint.time, checkpoint.expires_at, price)
