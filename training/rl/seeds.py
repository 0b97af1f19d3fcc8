"""Seeds of samples: the same in every run of a job, another for every group and turn."""

from __future__ import annotations

import hashlib
from contextvars import ContextVar
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class GroupKey:
    """Which group a sample belongs to: its seed, and how many samples it has."""

    seed: int
    members: int


group_key: ContextVar[GroupKey | None] = ContextVar("group_key", default=None)


def seed_of(*parts: int) -> int:
    """A seed for one request: the same in every run of a job, another for every group."""
    digest = hashlib.blake2b(",".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") % (2**31 - 1)
