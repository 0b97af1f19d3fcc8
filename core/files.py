"""Writing files so that a kill, a power cut or a full disk never leaves half of one."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import tempfile
import time
from collections.abc import Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from .errors import StorageError

_SYNC_S = 1.0
_FREE_SPACE = "Free some space and try again; what was there before is untouched"
_REASONS = {
    errno.ENOSPC: ("no space left: the disk is full", _FREE_SPACE),
    errno.EDQUOT: ("no space left: the disk quota is used up", _FREE_SPACE),
    errno.EROFS: ("the file system is read-only", "Choose a folder on a writable disk"),
    errno.EACCES: ("permission denied", "Choose a folder you can write to"),
}


@contextmanager
def storage_errors(path: Path) -> Generator[None]:
    """Turn an ``OSError`` about ``path`` into a ``StorageError`` that says what to do."""
    try:
        yield
    except StorageError:
        raise
    except OSError as error:
        problem, fix = _REASONS.get(error.errno or 0, (error.strerror or str(error), ""))
        raise StorageError(problem, where=str(path), fix=fix) from error


def write_atomically(path: Path, content: str | bytes) -> None:
    """Replace ``path`` by ``content`` in one step: temporary file, fsync, rename, fsync of the folder.

    Raises:
        StorageError: If the disk is full or the folder not writable; the old file is then intact.
    """
    payload = content.encode() if isinstance(content, str) else content
    with storage_errors(path):
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(payload)
                file.flush()
                os.fsync(file.fileno())
            Path(temporary).replace(path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
        sync_folder(path.parent)


@contextmanager
def appending(path: Path) -> Generator[BinaryIO]:
    """A file to append to, made readable for its owner alone if it is not there, as `write_atomically` makes its own.

    Raises:
        StorageError: If the disk is full or the folder not writable.
    """
    with storage_errors(path):
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        with os.fdopen(handle, "ab") as file:
            yield file


class LineJournal:
    """Appends records to a file of JSON lines that a kill cannot corrupt.

    Each line is handed to the system in one write, which survives a kill; fsync runs once per second, so a power cut
    can lose the last second.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        if path.exists():
            drop_torn_line(path)
        self._synced = time.monotonic()
        with storage_errors(path):
            self._file = path.open("ab", buffering=0)

    def append(self, record: Mapping[str, Any]) -> None:
        """Append one record.

        Raises:
            StorageError: If the disk is full.
        """
        line = json.dumps(record, ensure_ascii=False) + "\n"
        with storage_errors(self._path):
            self._file.write(line.encode("utf-8", "replace"))
            if time.monotonic() - self._synced >= _SYNC_S:
                os.fsync(self._file.fileno())
                self._synced = time.monotonic()

    def close(self) -> None:
        """Make everything durable."""
        with storage_errors(self._path):
            os.fsync(self._file.fileno())
            self._file.close()


def sync_folder(folder: Path) -> None:
    """Make renames inside ``folder`` survive a power cut (a no-op where folders cannot be opened)."""
    if os.name != "posix":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _as_line(record: Mapping[str, Any]) -> str:
    return json.dumps(record, ensure_ascii=False, separators=(", ", ": ")) + "\n"


def write_json_lines(path: Path, records: Iterable[Mapping[str, Any]]) -> None:
    """Replace ``path`` by these records, in one step, each as `append_json_line` would have written it."""
    write_atomically(path, "".join(map(_as_line, records)))


def append_json_line(path: Path, record: dict[str, Any]) -> None:
    """Append one JSON object as one line, in one write, and fsync it."""
    with appending(path) as file:
        file.write(_as_line(record).encode())
        file.flush()
        os.fsync(file.fileno())


def read_json_lines(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the objects of a JSON-lines file that we wrote; a torn last line (a kill mid-write) ends it."""
    if not path.exists():
        return
    with path.open("rb") as file:
        for line in file:
            if not line.endswith(b"\n"):
                return
            if line.strip():
                yield json.loads(line)


def drop_torn_line(path: Path) -> None:
    """Cut off a last line that a kill or a power cut left without its end, so that the next one starts a line."""
    with storage_errors(path), path.open("rb+") as file:
        content = file.read()
        complete = content.rfind(b"\n") + 1
        if complete < len(content):
            file.truncate(complete)


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file's bytes as hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def short_digest(text: str) -> bytes:
    """12 bytes that stand for a text where repeats are looked for."""
    return hashlib.blake2b(text.encode(), digest_size=12).digest()
