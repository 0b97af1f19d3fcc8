"""Checkpoints and training runs on disk: written whole or not at all, found again after a restart.

``checkpoints/<run>/<weights|sampler_weights>/<name>/`` holds ``adapter_model.safetensors`` and
``adapter_config.json`` under PEFT's names, ``optimizer.safetensors`` for a training state, and ``checkpoint.json``.
A folder is assembled beside its place and renamed into it: a kill at any moment leaves the old one or the new one.
"""

from __future__ import annotations

import json
import os
import shutil
import time
import uuid
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast
from urllib.parse import quote

import numpy as np
from numpy.typing import NDArray

from ...core.files import storage_errors, sync_folder, write_atomically
from ..interface import LoraSpec, RequestRejectedError

KINDS = ("weights", "sampler_weights", "external_weights")
WEIGHTS, OPTIMIZER = "adapter_model.safetensors", "optimizer.safetensors"
_LEAST_TTL_S, _MOST_TTL_S = 3600, 10 * 366 * 86_400
_CONFIG, _DETAILS, _RUN = "adapter_config.json", "checkpoint.json", "run.json"

Arrays = Mapping[str, NDArray[Any]]


class NoSuchCheckpointError(RequestRejectedError):
    """The path names no checkpoint here: it was never saved, was deleted, has expired, or is of another server."""


@dataclass(frozen=True, slots=True)
class Run:
    """A training run: one adapter from its creation on. Times are seconds since the epoch."""

    run_id: str
    session_id: str
    base_model: str
    lora: dict[str, Any]
    user_metadata: dict[str, Any]
    created: float


@dataclass(frozen=True, slots=True)
class Saved:
    """A checkpoint on disk."""

    run_id: str
    kind: str
    name: str
    base_model: str
    lora: dict[str, Any]
    created: float
    expires: float | None
    size_bytes: int
    public: bool
    user_metadata: dict[str, Any]

    @property
    def path(self) -> str:
        """Its ``tinker://`` path."""
        return f"tinker://{self.run_id}/{self.kind}/{self.name}"

    @property
    def spec(self) -> LoraSpec:
        """How its adapter is made."""
        return LoraSpec(**self.lora)


@dataclass(frozen=True, slots=True)
class Contents:
    """What a checkpoint holds: LoRA tensors under PEFT's names with PEFT's config, and the optimizer's state."""

    weights: Arrays
    adapter_config: Mapping[str, Any]
    optimizer: Arrays | None = None


@dataclass(frozen=True, slots=True)
class SaveOptions:
    """How a checkpoint is kept. ``kind`` is one of ``KINDS``; without a name, the adapter's step names it."""

    kind: str
    name: str | None
    ttl_s: int | None = None
    user_metadata: Mapping[str, Any] | None = None
    overwrite: bool = True


def check_ttl(ttl_s: int | None) -> None:
    """Refuse a checkpoint's life outside what the platform allows.

    Raises:
        RequestRejectedError: If it is shorter than an hour or longer than ten years.
    """
    if ttl_s is not None and not _LEAST_TTL_S <= ttl_s <= _MOST_TTL_S:
        raise RequestRejectedError(
            f"ttl_seconds is {ttl_s}; the least is {_LEAST_TTL_S} (an hour), the most ten years; null keeps it for ever"
        )


def parse_path(path: str) -> tuple[str, str, str]:
    """Run, kind and name of a ``tinker://`` path.

    Raises:
        RequestRejectedError: If it is not such a path.
    """
    parts = path.removeprefix("tinker://").split("/")
    if not path.startswith("tinker://") or len(parts) != 3 or parts[1] not in KINDS or not all(parts):
        raise RequestRejectedError(
            f"'{path}' is not a path of the form tinker://RUN/weights/NAME (or sampler_weights, external_weights)"
        )
    return parts[0], parts[1], parts[2]


class Store:
    """The folder with everything that outlives the engine's process."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._root = folder / "checkpoints"
        with storage_errors(self._root):
            self._root.mkdir(parents=True, exist_ok=True)
            for leftover in self._root.glob("*/*/.tmp-*"):
                shutil.rmtree(leftover, ignore_errors=True)

    def add_run(self, run: Run) -> None:
        """Record a new training run."""
        folder = self._root / quote(run.run_id, safe="")
        with storage_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
        write_atomically(folder / _RUN, json.dumps(asdict(run), indent=2))

    def run(self, run_id: str) -> Run | None:
        """A training run, or None."""
        path = self._root / quote(run_id, safe="") / _RUN
        return Run(**json.loads(path.read_bytes())) if path.is_file() else None

    def runs(self) -> list[Run]:
        """All training runs, newest first."""
        found = [Run(**json.loads(path.read_bytes())) for path in self._root.glob(f"*/{_RUN}")]
        return sorted(found, key=lambda run: run.created, reverse=True)

    def save(self, run: Run, contents: Contents, options: SaveOptions) -> Saved:
        """Write a checkpoint; with ``overwrite`` one of the same name is replaced in one step.

        Raises:
            StorageError: If the disk is full or not writable; what was there before is untouched.
            RequestRejectedError: If the name cannot be one, or is taken.
        """
        kind, name = options.kind, options.name or ""
        if not name or "/" in name or name.startswith(".") or len(name.encode()) > 200:
            raise RequestRejectedError(f"'{name[:80]}' cannot name a checkpoint: no slash, no leading dot")
        place = self._place(run.run_id, kind, name)
        if not options.overwrite and (place / _DETAILS).is_file():
            raise RequestRejectedError(f"there is a checkpoint '{name}' of this run already: say overwrite=True")
        temporary = place.parent / f".tmp-{uuid.uuid4().hex}"
        now = time.time()
        with storage_errors(place):
            temporary.mkdir(parents=True)
            try:
                _write_tensors(temporary / WEIGHTS, contents.weights)
                if contents.optimizer is not None:
                    _write_tensors(temporary / OPTIMIZER, contents.optimizer)
                write_atomically(temporary / _CONFIG, json.dumps(contents.adapter_config, indent=2))
                saved = Saved(
                    run_id=run.run_id,
                    kind=kind,
                    name=name,
                    base_model=run.base_model,
                    lora=run.lora,
                    created=now,
                    expires=now + options.ttl_s if options.ttl_s else None,
                    size_bytes=sum(file.stat().st_size for file in temporary.iterdir()),
                    public=False,
                    user_metadata=dict(options.user_metadata or {}),
                )
                write_atomically(temporary / _DETAILS, json.dumps(asdict(saved), indent=2))
                _swap(temporary, place)
            except BaseException:
                shutil.rmtree(temporary, ignore_errors=True)
                raise
        return saved

    def find(self, path: str) -> Saved:
        """The checkpoint at a ``tinker://`` path.

        Raises:
            NoSuchCheckpointError: If there is none.
            RequestRejectedError: If it is not such a path.
        """
        details = self._place(*parse_path(path)) / _DETAILS
        saved = _living(details) if details.is_file() else None
        if saved is not None:
            return saved
        raise NoSuchCheckpointError(f"there is no checkpoint {path} here: it was never saved, or deleted, or expired")

    def tensors(self, saved: Saved, *, optimizer: bool = False) -> dict[str, NDArray[Any]]:
        """The tensors of a checkpoint: its weights, or its optimizer state.

        Raises:
            NoSuchCheckpointError: If it has no optimizer state.
        """
        import safetensors.numpy as safetensors

        file = self.file(saved, OPTIMIZER if optimizer else WEIGHTS)
        if not file.is_file():
            raise NoSuchCheckpointError(f"{saved.path} has no optimizer state: it was saved for sampling")
        arrays: dict[str, NDArray[Any]] = cast("Any", safetensors).load_file(file)
        return arrays

    def file(self, saved: Saved, name: str) -> Path:
        """A file of a checkpoint."""
        return self.folder_of(saved) / name

    def files(self, saved: Saved) -> list[str]:
        """Names of the files a reader of the checkpoint needs."""
        return sorted(file.name for file in self.folder_of(saved).iterdir() if file.name != _DETAILS)

    def folder_of(self, saved: Saved) -> Path:
        """A checkpoint's folder."""
        return self._place(saved.run_id, saved.kind, saved.name)

    def checkpoints(self, run_id: str | None = None) -> list[Saved]:
        """All checkpoints, or those of one run, newest first; expired ones are deleted on the way."""
        every = self._root.glob(f"{quote(run_id, safe='') if run_id else '*'}/*/*/{_DETAILS}")
        living = [_living(details) for details in every if not details.parent.name.startswith(".tmp-")]
        return sorted((s for s in living if s is not None), key=lambda saved: saved.created, reverse=True)

    def delete(self, saved: Saved) -> None:
        """Remove a checkpoint."""
        place = self.folder_of(saved)
        with storage_errors(place):
            shutil.rmtree(place)

    def update(self, saved: Saved, **changes: Any) -> Saved:
        """Change the details of a checkpoint: ``public``, ``expires``."""
        changed = Saved(**{**asdict(saved), **changes})
        write_atomically(self.folder_of(saved) / _DETAILS, json.dumps(asdict(changed), indent=2))
        return changed

    def copy(self, saved: Saved, run: Run, *, ttl_s: int | None = None) -> Saved:
        """Copy a checkpoint into another run."""
        contents = Contents(
            self.tensors(saved),
            json.loads(self.file(saved, _CONFIG).read_bytes()),
            self.tensors(saved, optimizer=True) if self.file(saved, OPTIMIZER).is_file() else None,
        )
        return self.save(run, contents, SaveOptions(saved.kind, saved.name, ttl_s, saved.user_metadata))

    def _place(self, run_id: str, kind: str, name: str) -> Path:
        return self._root / quote(run_id, safe="") / kind / quote(name, safe="")


def _living(details: Path) -> Saved | None:
    """The checkpoint with these details; None if it has expired, and then it is deleted."""
    saved = Saved(**json.loads(details.read_bytes()))
    if saved.expires is None or saved.expires > time.time():
        return saved
    shutil.rmtree(details.parent, ignore_errors=True)
    return None


def _write_tensors(path: Path, tensors: Arrays) -> None:
    import safetensors.numpy as safetensors

    cast("Any", safetensors).save_file({name: np.ascontiguousarray(array) for name, array in tensors.items()}, path)
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _swap(temporary: Path, place: Path) -> None:
    """Put a finished folder in its place; an old one steps aside first and is removed after."""
    sync_folder(temporary)
    aside = place.parent / f".tmp-{uuid.uuid4().hex}"
    if place.exists():
        place.rename(aside)
    temporary.rename(place)
    sync_folder(place.parent)
    shutil.rmtree(aside, ignore_errors=True)
