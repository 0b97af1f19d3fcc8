"""Where files lie: state, in ``ML_RESEARCHER_HOME``, which only this module reads, and the packaged demo data."""

from __future__ import annotations

import glob
import os
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path

from .errors import ModelError, StorageError

HOME_VARIABLE = "ML_RESEARCHER_HOME"
# In the engine's folder, readable for its owner alone.
ENGINE_KEY_FILE = "api_key"


def home() -> Path:
    """The root of all state; created on first use.

    Raises:
        StorageError: If the folder cannot be created or written to.
    """
    chosen = os.environ.get(HOME_VARIABLE)
    root = (Path(chosen).expanduser() if chosen else _data_folder()).absolute()
    # A folder that the user chose and that holds other things too keeps its mode; what we make in it is private.
    is_ours = not chosen or not root.exists()
    return writable_folder(root, hint=f"Set {HOME_VARIABLE} to a folder you can write to", private=is_ours)


def _data_folder() -> Path:
    from platformdirs import user_data_path

    return user_data_path("ml-researcher", appauthor=False)


def user_path(name: str) -> Path:
    """A path as people write it: ``~`` is their home folder, and the name of nobody stays as it is."""
    try:
        return Path(name).expanduser()
    except RuntimeError:
        return Path(name)


def find_file(name: str, bases: Sequence[Path], *, where: str) -> tuple[Path | None, str]:
    """The file, folder or pattern that a name means, absolute, or None; and the places looked at, for an error.

    Args:
        name: ``demo:NAME``, an absolute path, or one relative to a base; ``~`` is the user's home.
        bases: The folders to look in, in order.
        where: The key or argument that named it.

    Raises:
        ModelError: If there is no demo data set of that name.
    """
    if name.startswith("demo:"):
        return demo_data(name.removeprefix("demo:"), where=where), ""
    path = user_path(name)
    tried = [path] if path.is_absolute() else [base / path for base in bases]
    for candidate in tried:
        if candidate.exists() or (glob.has_magic(name) and glob.glob(str(candidate))):  # noqa: PTH207
            # Of a link the name counts, which says what kind of file it is.
            return candidate.parent.resolve() / candidate.name, ""
    return None, " and ".join(str(candidate) for candidate in tried)


def jobs_database() -> Path:
    """The SQLite file with one row per job."""
    return home() / "jobs.db"


def engine_folder() -> Path:
    """The embedded engine's checkpoints, key, lock and discovery file."""
    return state_folder("engine")


def state_folder(name: str) -> Path:
    """A folder of our state, for its owner alone: it holds data, answers and checkpoints."""
    return writable_folder(home() / name, private=True)


def writable_folder(folder: Path, *, hint: str = "Choose a folder you can write to", private: bool = False) -> Path:
    """Create ``folder`` if needed and prove that it takes files. ``private``: no other user may enter it.

    Raises:
        StorageError: If it is a file, cannot be created, or is read-only.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700 if private else 0o777)
        if private and os.name == "posix" and folder.stat().st_uid == os.geteuid() and folder.stat().st_mode & 0o077:
            folder.chmod(0o700)
    except FileExistsError as error:
        raise StorageError("this is a file, and a folder is needed", where=str(folder), fix=hint) from error
    except OSError as error:
        raise StorageError(f"the folder cannot be created ({error.strerror})", where=str(folder), fix=hint) from error
    if not os.access(folder, os.W_OK | os.X_OK):
        raise StorageError("the folder is not writable", where=str(folder), fix=hint)
    return folder


def require_creatable(folder: Path, *, where: str) -> None:
    """Refuse a folder that `writable_folder` could not make; nothing is written.

    Raises:
        StorageError: If a file stands in its way, or the folder it would be made in is not writable.
    """
    existing = next((place for place in (folder, *folder.parents) if place.exists()), folder)
    if not existing.is_dir():
        raise StorageError(f"{existing} is a file, and a folder is needed", where=where, fix="Choose another folder")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise StorageError(f"{existing} is not writable", where=where, fix="Choose a folder you can write to")


def demo_data(name: str, *, where: str, suffix: str = ".jsonl") -> Path:
    """The path of a packaged demo data set such as ``sft_train``.

    Raises:
        ModelError: If there is none of that name; the message lists those there are.
    """
    folder = Path(str(files("sota_ml_researcher.demo") / "data"))
    path = folder / f"{name.removesuffix(suffix)}{suffix}"
    if not path.is_file():
        there = ", ".join(sorted(f"demo:{p.stem}" for p in folder.glob("*.jsonl")))
        raise ModelError(f"there is no demo data set '{name}'", where=where, fix=f"There are: {there}")
    return path
