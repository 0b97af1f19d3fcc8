"""Jobs as a person names them: by id, or by the beginning of one that no other job shares."""

from __future__ import annotations

import re
from pathlib import Path

import click
from click.shell_completion import CompletionItem

from ..core.errors import JobError

_LOOKED_AT = 10_000
_SHOWN = 8
_BEGINNING = re.compile(r"([a-z_]+-[0-9a-f]{0,6})(:(?:best|final))?")


def full_id(beginning: str) -> str:
    """The id of the one job that begins so.

    Raises:
        JobError: If there is none, or there are several.
    """
    from ..jobs.registry import Registry

    ids = _ids(beginning)
    if beginning in ids:
        return beginning
    if len(ids) > 1:
        more = " and more" if len(ids) > _SHOWN else ""
        raise JobError(
            f"{len(ids)} jobs begin with '{beginning}': {', '.join(ids[:_SHOWN])}{more}", fix="Write more of it"
        )
    return ids[0] if ids and beginning else Registry().get(beginning).id


def full_name(name: str) -> str:
    """``JOB:best`` and the like with the job's whole id; whatever else names a model or a run stays as it is."""
    match = _BEGINNING.fullmatch(name)
    if match is None or Path(name).exists():
        return name
    return full_id(match[1]) + (match[2] or "")


def _ids(beginning: str) -> list[str]:
    from ..jobs.registry import Registry

    return [job.id for job in Registry().find(limit=_LOOKED_AT) if job.id.startswith(beginning)]


class JobId(click.ParamType):  # pyright: ignore[reportMissingTypeArgument]
    """The id of a job, or its beginning."""

    name = "job"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """The whole id."""
        return full_id(value)

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        """The jobs there are."""
        return [CompletionItem(job_id) for job_id in _ids(incomplete)]


class JobOrName(JobId):
    """A job, perhaps with ``:best``, or another name of a model or a run."""

    name = "name"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """The same with the job's whole id."""
        return full_name(value)
