"""The few names that tools, configs and backends share; they stand in the signatures of the server's tools."""

from __future__ import annotations

from typing import Literal

BackendName = Literal["embedded", "tinker", "cluster"]
Component = Literal["mlp", "attn", "unembed"]
COMPONENTS: tuple[Component, ...] = ("mlp", "attn", "unembed")


def short_name(name: str, limit: int = 60) -> str:
    """The end of a long path or id, which tells it from others, with a mark where it was cut."""
    return name if len(name) <= limit else f"…{name[1 - limit :]}"
