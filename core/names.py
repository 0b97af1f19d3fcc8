"""The few names that tools, configs and backends share; they stand in the signatures of the server's tools."""

from __future__ import annotations

from typing import Literal

BackendName = Literal["embedded", "tinker", "cluster"]
Component = Literal["mlp", "attn", "unembed"]
COMPONENTS: tuple[Component, ...] = ("mlp", "attn", "unembed")
