"""What a server of the Tinker protocol can do: a dated table by kind, corrected by what the server itself answers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import date
from functools import cache
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict

from ..core.errors import BackendError
from ..core.names import Component

if TYPE_CHECKING:
    from .connection import Backend

Wire = Literal["protobuf", "json"]
LossScale = Literal["sum", "mean"]
Exports = Literal["copy", "archive"]


class _Frozen(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, defer_build=True)


class Abilities(_Frozen):
    """What a kind of server can do; the fields are explained at the head of ``servers.yaml``. None is not known."""

    title: str
    checked: str
    source: str
    told_by: str = ""
    wire: Wire | None
    losses: tuple[str, ...] | None
    loss_scale: LossScale | None
    chooses_layers: bool | None
    adapts: tuple[Component, ...] | None
    alpha: int | None
    ranks: str
    optimizers: tuple[str, ...]
    grad_clip: bool | None
    prompt_logprobs: bool | None
    top_k_logprobs: bool | None
    sequence_ids: bool | None
    older_weights: bool | None
    ended_runs: bool | None
    loads_new_runs: bool | None
    ttl: bool | None
    ends_sessions: bool | None
    lists_checkpoints: bool | None
    exports: Exports | None


class Untried(_Frozen):
    """A server that is known by name alone."""

    title: str
    source: str


class ServerTable(_Frozen):
    """Every kind, by its short name."""

    as_of: date
    servers: Mapping[str, Abilities]
    untried: tuple[Untried, ...]


@dataclass(frozen=True, slots=True)
class Server:
    """One server, as far as it is known.

    Attributes:
        kind: A key of the table.
        abilities: The table's facts, with what the server answered laid over them.
        asked: Names of the abilities that it answered itself.
        sampling_error: Why it could not sample one token when it was asked to; empty where it could, or was not asked.
        notes: What else is worth telling, such as that its clock is off.
    """

    kind: str
    abilities: Abilities
    asked: frozenset[str] = frozenset()
    sampling_error: str = ""
    notes: tuple[str, ...] = ()

    @property
    def title(self) -> str:
        """Its name for people."""
        return self.abilities.title

    def answering(self, **found: Any) -> Server:
        """The same server with abilities that it answered itself."""
        known = {name: value for name, value in found.items() if value is not None}
        return replace(self, abilities=self.abilities.model_copy(update=known), asked=self.asked | set(known))


@cache
def server_table() -> ServerTable:
    """The packaged facts."""
    from ..core.yaml_loading import shipped_yaml

    return ServerTable.model_validate(shipped_yaml("backends", "servers.yaml"))


def known_server(kind: str) -> Server:
    """A server of a kind, by the table alone."""
    return Server(kind, server_table().servers[kind])


def server_of(backend: Backend) -> Server:
    """What is behind a backend: hosted Tinker and the embedded engine by the table, a cluster by asking it once.

    Raises:
        BackendError: If a cluster does not answer, or not as a Tinker server does.
    """
    if backend.name != "cluster":
        return known_server("tinker" if backend.name == "tinker" else "engine")
    from .server_probe import probed

    return probed(backend)


def require_protobuf(server: Server, *, where: str) -> None:
    """Refuse a server of the earlier protocol, to which the SDK can send no data and whose samples it does not read.

    Raises:
        BackendError: If it speaks JSON alone.
    """
    if server.abilities.wire == "json":
        raise BackendError(
            f"{server.title} speaks JSON alone, and the Tinker SDK of this program protobuf: nothing can be trained or "
            "sampled there",
            where=where,
            fix="Update the server (SkyRL: 0.4.0 or newer), or use backend: embedded",
        )


_LACKS = {
    "grad_clip": "gradient clipping",
    "prompt_logprobs": "log-probabilities of prompts",
    "top_k_logprobs": "top-k log-probabilities",
    "older_weights": "samples of older weights while a run trains on",
    "ttl": "expiry",
    "lists_checkpoints": "a list of all checkpoints",
}


def described(server: Server) -> str:
    """A server in one sentence: its losses, layers, and what it is known to lack."""
    can = server.abilities
    losses = "losses not known" if can.losses is None else f"losses {', '.join(can.losses)}"
    scale = {"sum": "summed", "mean": "averaged", None: "whether summed is not known"}[can.loss_scale]
    layers = "" if can.chooses_layers is not False or not can.adapts else f"; adapts {', '.join(can.adapts)} alone"
    lacking = [words for name, words in _LACKS.items() if getattr(can, name) is False]
    lacks = f"; lacks {', '.join(lacking)}" if lacking else ""
    wire = "; speaks JSON alone, so that nothing can be trained or sampled there" if can.wire == "json" else ""
    failed = f"; cannot sample: {server.sampling_error}" if server.sampling_error else ""
    return f"{server.title}: {losses} ({scale}){layers}{lacks}{wire}{failed}" + "".join(f"; {n}" for n in server.notes)
