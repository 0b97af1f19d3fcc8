"""Plans that were shown and wait for a yes: each is bound to one exact job, holds for an hour, and works once."""

from __future__ import annotations

import hashlib
import json
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..core.errors import JobError
from ..core.files import write_atomically
from ..core.paths import state_folder
from ..data.shards import digest_of

VALID_S = 3600.0
# Clocks of one machine are set back by moments; a plan from further in the future is not trusted.
_SKEW_S = 60.0


def fingerprint(kind: str, config: Mapping[str, Any], files: Sequence[Path], *, prices: str) -> str:
    """What a plan is bound to: every setting, the bytes of the data, and the prices it was worked out with."""
    content = {
        "kind": kind,
        "config": config,
        "data": {str(path): digest_of(path) for path in files},
        "prices": prices,
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()


def offer(kind: str, mark: str, *, clock: Callable[[], float] = time.time) -> str:
    """Store a plan; returns its id, to be handed back within an hour."""
    plan_id = f"plan-{secrets.token_hex(6)}"
    record = {"kind": kind, "fingerprint": mark, "created": clock()}
    write_atomically(_folder() / f"{plan_id}.json", json.dumps(record) + "\n")
    _sweep(clock())
    return plan_id


def redeem(plan_id: str, kind: str, mark: str, *, clock: Callable[[], float] = time.time) -> None:
    """Use a plan up.

    Raises:
        JobError: If there is no such plan (never made, used before, or of another home), it is older than an hour,
            or the job is not exactly the one it was made for.
    """
    again = "Call it without plan_id for a new plan"
    path = _folder() / f"{plan_id}.json"
    if not plan_id.startswith("plan-") or path.parent != _folder() or not path.exists():
        raise JobError(f"there is no open plan '{plan_id}': it was used, has expired, or was never made", fix=again)
    record: dict[str, Any] = json.loads(path.read_bytes())
    age = clock() - float(record["created"])
    if not -_SKEW_S <= age <= VALID_S:
        path.unlink(missing_ok=True)
        raise JobError(f"plan '{plan_id}' has expired: plans hold for an hour", fix=again)
    if record["kind"] != kind:
        raise JobError(f"plan '{plan_id}' is for a job of kind {record['kind']}", fix=again)
    if record["fingerprint"] != mark:
        raise JobError(
            f"the settings, the data or the prices are not those of plan '{plan_id}'", fix=f"{again} and confirm that"
        )
    try:
        path.unlink()  # of two that hand it back at once, one gets here first
    except FileNotFoundError as error:
        raise JobError(f"plan '{plan_id}' was used a moment ago", fix=again) from error


def withdraw(plan_id: str) -> None:
    """Make a plan void that somebody said no to."""
    path = _folder() / f"{plan_id}.json"
    if plan_id.startswith("plan-") and path.parent == _folder():
        path.unlink(missing_ok=True)


def _folder() -> Path:
    return state_folder("plans")


def _sweep(now: float) -> None:
    for path in _folder().glob("plan-*.json"):
        try:
            if now - path.stat().st_mtime > 24 * VALID_S:
                path.unlink(missing_ok=True)
        except FileNotFoundError:
            continue
