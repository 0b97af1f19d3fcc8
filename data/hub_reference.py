"""How a data set of the hub is written: ``owner/name[:config][/split or /file][[:rows]]@revision``."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import PurePosixPath

from ..core.errors import ConfigError
from .shards import KINDS, kind_of_file

FORM = "owner/name[:config][/split]@revision"
MAIN = "main"
# As the hub itself asks for, but for spaces: a name is one word wherever it is shown.
CONFIG = r"[\w.+,=~-]{1,100}"
_REPOSITORY = r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*"
_PATTERN = re.compile(
    rf"(?P<repository>{_REPOSITORY})(?::(?P<config>{CONFIG}))?(?:/(?P<split>[^@\[\]]+))?"
    r"(?:\[(?P<part>[^\]@]*)\])?(?:@(?P<revision>[\w./-]+))?"
)
_LONGEST = 500
_FIRST_ROWS = re.compile(r":([1-9]\d{0,11})")


@dataclass(frozen=True, slots=True)
class HubReference:
    """One data set of the hub, or a part of it.

    Attributes:
        repository: ``owner/name``.
        config: The configuration, or None.
        split: The split, or a file in the repository, or None.
        rows: How many of its first rows are meant; None is all.
        revision: Branch, tag or commit.
    """

    repository: str
    config: str | None = None
    split: str | None = None
    rows: int | None = None
    revision: str = MAIN

    def __str__(self) -> str:
        config = f":{self.config}" if self.config else ""
        split = f"/{self.split}" if self.split else ""
        part = f"[:{self.rows}]" if self.rows else ""
        return f"{self.repository}{config}{split}{part}@{self.revision}"


def parse_reference(name: str, *, where: str, default_revision: str | None = None) -> HubReference | None:
    """The data set of the hub that a name means, or None where it can only be a path.

    Args:
        name: What was given.
        where: The key or argument, for errors.
        default_revision: For a name without one; by default such a name is a path.

    Raises:
        ConfigError: If it names a part that is not the first rows.
    """
    found = _PATTERN.fullmatch(name) if len(name) <= _LONGEST else None
    if found is None:
        return None
    revision = found["revision"] or default_revision
    if revision is None or _is_data_file(revision):
        return None
    rows = None
    if found["part"] is not None:
        first = _FIRST_ROWS.fullmatch(found["part"])
        if first is None:
            raise ConfigError(f"[{found['part']}] is not the first rows", where=where, fix="Write [:1000]")
        rows = int(first[1])
    return HubReference(found["repository"], found["config"], found["split"], rows, revision)


def hub_reading(name: str) -> str:
    """For the error about a path that is not there: how the data set of the hub would be written, or nothing."""
    found = _PATTERN.fullmatch(name)
    if found is None or found["revision"] or _is_data_file(name):
        return ""
    return f"A data set of the hub is written with its revision: {name}@{MAIN}"


def _is_data_file(name: str) -> bool:
    return kind_of_file(PurePosixPath(name)) in KINDS
