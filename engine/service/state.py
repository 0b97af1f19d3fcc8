"""What an engine process holds in memory for its clients."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from tinker import types

from ..interface import Adapter, BaseModel, LoraSpec, RequestRejectedError, Weights
from .store import Run


@dataclass(slots=True)
class Session:
    """One client. ``created`` is in seconds since the epoch, ``seen`` by the monotonic clock.

    ``finish`` is how it ended, once it did. ``held``: it fell silent, and its requests wait until it is heard of.
    """

    session_id: str
    created: float
    seen: float
    user_metadata: dict[str, Any]
    display_name: str | None
    models: list[str] = field(default_factory=list[str])
    samplers: list[str] = field(default_factory=list[str])
    losses: dict[str, Any] = field(default_factory=dict[str, Any])
    finish: types.ClientSessionFinished | types.SessionCancelled | None = None
    held: bool = False


@dataclass(slots=True)
class Inflight:
    """Weights that every inflight sampler of one adapter shares; each inflight save replaces them."""

    weights: Weights | None = None


@dataclass(slots=True)
class Training:
    """One adapter in training. ``adapter`` is None until its creation was computed."""

    run: Run
    spec: LoraSpec
    base: BaseModel | None = None
    adapter: Adapter | None = None
    step: int = 0
    inflight: Inflight = field(default_factory=Inflight)

    @property
    def ready(self) -> Adapter:
        """The adapter.

        Raises:
            RequestRejectedError: If its creation failed.
        """
        if self.adapter is None:
            raise RequestRejectedError("the adapter could not be created; its create request says why")
        return self.adapter


@dataclass(slots=True)
class SamplingSession:
    """What a sampling session samples from: a base model, with saved, snapshot or inflight weights on it.

    ``asked`` is what its client named: base model and path.
    """

    sampler_id: str
    session_id: str
    base_model: str
    path: str | None = None
    snapshot: Weights | None = None
    inflight: Inflight | None = None
    clones: int = 0
    asked: tuple[str | None, str | None] = (None, None)
