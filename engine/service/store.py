"""Checkpoints and training runs on disk: written whole or not at all, found again after a restart.

``checkpoints/<run>/<weights|sampler_weights>/<name>/`` holds ``adapter_model.safetensors`` and
``adapter_config.json`` under PEFT's names, ``optimizer.safetensors`` for a training state, and ``checkpoint.json``.
A folder is assembled beside its place (``.tmp-*``) and renamed into it. One that was there steps aside first
(``.old-*``), and the next start puts it back if its place is empty: a kill at any moment leaves the old one or the new
one.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import re
import shutil
import time
import uuid
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar, cast
from urllib.parse import quote

import numpy as np
from numpy.typing import NDArray

from ...core.errors import StorageError
from ...core.files import storage_errors, sync_folder, write_atomically
from ..interface import LoraSpec, RequestRejectedError

KINDS = ("weights", "sampler_weights", "external_weights")
WEIGHTS, OPTIMIZER = "adapter_model.safetensors", "optimizer.safetensors"
_TTL_RANGE_S = 3600, 10 * 366 * 86_400
_CONFIG, _DETAILS, _RUN = "adapter_config.json", "checkpoint.json", "run.json"

_TEMPORARY, _ASIDE = ".tmp-", ".old-"
# Longest name of a file that every usual file system takes, less what our own prefixes need.
_LONGEST_NAME = 200

Arrays = Mapping[str, NDArray[Any]]
RecordT = TypeVar("RecordT", "Run", "Saved")
logger = logging.getLogger(__name__)


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
    least, most = _TTL_RANGE_S
    if ttl_s is not None and not least <= ttl_s <= most:
        raise RequestRejectedError(
            f"ttl_seconds is {ttl_s}; the least is {least} (an hour), the most ten years; null keeps it for ever"
        )


def parse_path(path: str) -> tuple[str, str, str]:
    """Run, kind and name of a ``tinker://`` path.

    Raises:
        RequestRejectedError: If it is not such a path.
    """
    parts = path.removeprefix("tinker://").split("/")
    usable = all(part and not part.startswith(".") and len(quote(part, safe="")) <= _LONGEST_NAME for part in parts)
    if not path.startswith("tinker://") or len(parts) != 3 or parts[1] not in KINDS or not usable:
        raise RequestRejectedError(
            f"'{path[:200]}' is not a path of the form tinker://RUN/weights/NAME (or sampler_weights, external_weights)"
        )
    return parts[0], parts[1], parts[2]


class Store:
    """The folder with everything that outlives the engine's process."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._root = folder / "checkpoints"
        with storage_errors(self._root):
            self._root.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._recover()

    def _recover(self) -> None:
        """Put back what a killed process had moved aside, and remove what it had not finished."""
        for aside in self._root.glob(f"*/*/{_ASIDE}*"):
            saved = _read(aside / _DETAILS, Saved)
            if saved is not None and not (place := self.folder_of(saved)).exists():
                aside.rename(place)
                sync_folder(place.parent)
        for pattern in (_ASIDE, _TEMPORARY):
            for leftover in self._root.glob(f"*/*/{pattern}*"):
                shutil.rmtree(leftover, ignore_errors=True)

    def add_run(self, run: Run) -> None:
        """Record a new training run."""
        folder = self._root / quote(run.run_id, safe="")
        with storage_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
        write_atomically(folder / _RUN, json.dumps(asdict(run), indent=2))

    def run(self, run_id: str) -> Run | None:
        """A training run, or None."""
        name = quote(run_id, safe="")
        return _read(self._root / name / _RUN, Run) if len(name) <= _LONGEST_NAME else None

    def runs(self) -> list[Run]:
        """All training runs, newest first."""
        found = [_read(path, Run) for path in self._root.glob(f"*/{_RUN}")]
        return sorted((run for run in found if run is not None), key=lambda run: run.created, reverse=True)

    def save(self, run: Run, contents: Contents, options: SaveOptions) -> Saved:
        """Write a checkpoint; with ``overwrite`` one of the same name is replaced in one step.

        Raises:
            StorageError: If the disk is full or not writable; what was there before is untouched.
            RequestRejectedError: If the name cannot be one, or is taken.
        """
        kind, name = options.kind, options.name or ""
        _check_name(name)
        place = self._place(run.run_id, kind, name)
        if not options.overwrite and (place / _DETAILS).is_file():
            raise RequestRejectedError(f"there is a checkpoint '{name}' of this run already: say overwrite=True")
        temporary = place.parent / f"{_TEMPORARY}{uuid.uuid4().hex}"
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
        saved = self._living(self._place(*parse_path(path)) / _DETAILS)
        if saved is not None:
            return saved
        raise NoSuchCheckpointError(f"there is no checkpoint {path} here: it was never saved, or deleted, or expired")

    def tensors(self, saved: Saved, *, optimizer: bool = False) -> dict[str, NDArray[Any]]:
        """The tensors of a checkpoint: its weights, or its optimizer state.

        Raises:
            NoSuchCheckpointError: If it has no optimizer state.
            StorageError: If its file cannot be read, or is damaged.
        """
        import safetensors.numpy as safetensors
        from safetensors import SafetensorError

        file = self.file(saved, OPTIMIZER if optimizer else WEIGHTS)
        if not file.is_file():
            raise NoSuchCheckpointError(f"{saved.path} has no optimizer state: it was saved for sampling")
        try:
            with storage_errors(file):
                arrays: dict[str, NDArray[Any]] = cast("Any", safetensors).load_file(file)
        except SafetensorError as error:
            raise StorageError(
                f"the file of {saved.path} is damaged ({error})", where=str(file), fix="Use another checkpoint"
            ) from error
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
        living = [self._living(details) for details in every if not details.parent.name.startswith(".")]
        return sorted((s for s in living if s is not None), key=lambda saved: saved.created, reverse=True)

    def delete(self, saved: Saved) -> None:
        """Remove a checkpoint."""
        place = self.folder_of(saved)
        gone = place.parent / f"{_TEMPORARY}{uuid.uuid4().hex}"
        with storage_errors(place):
            place.rename(gone)  # in one step: a kill leaves no half of it
            sync_folder(place.parent)
            shutil.rmtree(gone)

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

    def _living(self, details: Path) -> Saved | None:
        """The checkpoint with these details; None if there is none, or it has expired, and then it is deleted."""
        saved = _read(details, Saved)
        if saved is None or saved.expires is None or saved.expires > time.time():
            return saved
        self.delete(saved)
        return None


def _check_name(name: str) -> None:
    """Refuse what cannot name a checkpoint.

    Raises:
        RequestRejectedError: Saying why.
    """
    if len(quote(name, safe="")) > _LONGEST_NAME:
        raise RequestRejectedError(
            f"a checkpoint's name of {len(name):,} characters is too long: at most {_LONGEST_NAME}, and what is not a "
            "letter or a digit counts more"
        )
    if not name or "/" in name or name.startswith("."):
        raise RequestRejectedError(f"'{name}' cannot name a checkpoint: no slash, no leading dot")


def _read(path: Path, kind: type[RecordT]) -> RecordT | None:
    """What a file says; None if it is not there, or is not such a record (one broken file must not hide the others)."""
    try:
        return kind(**json.loads(path.read_bytes()))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (ValueError, TypeError) as error:
        logger.warning("%s is damaged and left out: %s", path, error)
        return None


def system_error(error: Exception) -> OSError:
    """What the system refused to a writer that has it in words alone; which it is decides what can be done."""
    number = re.search(r"os error (\d+)", str(error))
    code = int(number[1]) if number else errno.EIO
    return OSError(code, os.strerror(code))


def _write_tensors(path: Path, tensors: Arrays) -> None:
    import safetensors.numpy as safetensors
    from safetensors import SafetensorError

    arrays = {name: np.ascontiguousarray(array) for name, array in tensors.items()}
    try:
        cast("Any", safetensors).save_file(arrays, path)
    except SafetensorError as error:
        raise system_error(error) from error
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _swap(temporary: Path, place: Path) -> None:
    """Put a finished folder in its place; an old one steps aside first and is removed after."""
    sync_folder(temporary)
    aside = place.parent / f"{_ASIDE}{uuid.uuid4().hex}"
    replaces = place.exists()
    if replaces:
        place.rename(aside)
    try:
        temporary.rename(place)
    except BaseException:
        if replaces:
            aside.rename(place)
        raise
    sync_folder(place.parent)
    shutil.rmtree(aside, ignore_errors=True)
