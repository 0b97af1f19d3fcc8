"""The checkpoints a backend keeps: listing them with their price, and deleting them by name."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated

from mcp_types import CallToolResult
from pydantic import BaseModel, ConfigDict, Field

from ..backends.connection import connect
from ..core.errors import JobError
from ..core.foreign_text import named
from ..core.names import BackendName
from ..jobs import control
from ..jobs.job_results import trained_model
from ..jobs.registry import Registry
from .answers import answer

_SHOWN = 15


class Stored(BaseModel):
    """A stored checkpoint. ``expires`` null is never, ``usd_month`` null is unknown; times are ISO 8601."""

    model_config = ConfigDict(populate_by_name=True)

    path: str
    bytes: int | None = Field(validation_alias="size_bytes")
    created: datetime
    expires: datetime | None
    usd_month: float | None


class CheckpointList(BaseModel):
    """What is stored, largest first; sizes in bytes, prices in USD per month."""

    checkpoints: list[Stored]
    deleted: list[str]
    total_bytes: int
    usd_month: float | None
    next: str


def manage_checkpoints(
    delete: Annotated[list[str] | None, Field(description="tinker:// paths in full")] = None,
    superseded_of: Annotated[str | None, Field(description="List only what this job no longer needs")] = None,
    backend: Annotated[BackendName, Field(description="Where they are stored")] = "embedded",
    base_url: Annotated[str | None, Field(description="For backend cluster")] = None,
) -> Annotated[CallToolResult, CheckpointList]:
    """List stored checkpoints with size, age, expiry and monthly price; or delete those named, for good.

    Use it for storage and its cost; to take one home use export_checkpoint. Ask the user before deleting. superseded_of
    lists all of a job but its latest and its best.
    """
    from ..backends.prices import load_prices
    from ..backends.stored_checkpoints import delete_checkpoints, described, monthly_usd, stored_checkpoints
    from ..jobs import costs

    if delete and superseded_of:
        raise JobError("delete and superseded_of are both given", fix="List first, then delete what the user agreed to")
    wanted: set[str] | None = None
    if superseded_of:
        job = control.look(Registry(), superseded_of)
        of = trained_model(job)
        backend, base_url = of.backend, of.base_url
        wanted = set(costs.superseded(job))
    connection = connect(backend, base_url)
    if delete:
        delete_checkpoints(connection, delete)
    stored = [c for c in stored_checkpoints(connection, load_prices()) if wanted is None or c.path in wanted]
    content = CheckpointList(
        checkpoints=[Stored.model_validate(checkpoint, from_attributes=True) for checkpoint in stored],
        deleted=delete or [],
        total_bytes=sum(c.size_bytes or 0 for c in stored),
        usd_month=monthly_usd(stored),
        next="manage_checkpoints(delete=[...]) with what the user agreed to lose" if stored else "nothing to do",
    )
    return answer(content, _text(content, described(stored)))


def _text(content: CheckpointList, all_of_them: str) -> str:
    lines = [f"{len(content.deleted)} deleted."] if content.deleted else []
    lines.append(f"{all_of_them}.")
    for each in content.checkpoints[:_SHOWN]:
        lasts = f"expires {each.expires:%Y-%m-%d}" if each.expires else "never expires"
        size = "size unknown" if each.bytes is None else f"{each.bytes / 1e6:.1f} MB"
        lines.append(f"{named(each.path)}  {size}, {lasts}")
    return "\n".join([*lines, f"Next: {content.next}"])
