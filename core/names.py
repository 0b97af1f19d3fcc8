"""The few names that tools, configs and backends share. Light: the server has them in its tools' signatures."""

from __future__ import annotations

from typing import Literal

BackendName = Literal["embedded", "tinker", "cluster"]
Component = Literal["mlp", "attn", "unembed"]
COMPONENTS: tuple[Component, ...] = ("mlp", "attn", "unembed")
