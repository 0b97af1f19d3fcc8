"""Exporting a checkpoint: as a PEFT adapter or a merged model on disk, and to a model hub on request.

The work is done by a process of its own (``export_worker``): it needs torch and minutes, and the key for the backend
reaches it through its environment alone.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from ..backends.connection import Backend
from ..backends.servers import server_of
from ..core import errors
from ..core.errors import BackendError, ResearcherError

ExportFormat = Literal["adapter", "merged"]
# Written into every export: what it is, and the proof that a folder may be replaced by a later one.
MARKER = "export.json"
_WORKER = "sota_ml_researcher.training.export_worker"


@dataclass(frozen=True, slots=True)
class ExportRequest:
    """What to take, from where, to where.

    Attributes:
        checkpoint: Its ``tinker://`` path; a training state.
        base_model: The base model's folder or hub id.
        format: ``adapter`` (PEFT's files) or ``merged`` (a whole model).
        output: The folder to make.
        overwrite: Whether an earlier export there, and files of a hub repository, may be replaced.
        publish_to: A hub repository ``owner/name``, or None.
        private: Whether that repository is private when it is made.
        about: Lines for the model card, such as the job's id.
        from_archive: Whether the server hands its adapters out as archives, in PEFT's names.
    """

    checkpoint: str
    base_model: str
    format: ExportFormat
    output: str
    overwrite: bool = False
    publish_to: str | None = None
    private: bool = True
    about: tuple[str, ...] = ()
    from_archive: bool = False


@dataclass(frozen=True, slots=True)
class ExportResult:
    """What was made: folder, its files with their sizes in bytes, and the page on the hub."""

    folder: str
    files: dict[str, int]
    url: str | None
    reused: bool

    @property
    def size_bytes(self) -> int:
        """All files together."""
        return sum(self.files.values())


def export(request: ExportRequest, backend: Backend, *, progress: Callable[[str], None]) -> ExportResult:
    """Make the export; ``progress`` is called with what is being done. Blocks: call it from a thread.

    Raises:
        ResearcherError: Whatever the worker could not do, as it said it.
    """
    request = replace(request, from_archive=server_of(backend).abilities.exports == "archive")
    environment = {
        **os.environ,
        "TINKER_API_KEY": backend.api_key,
        "TINKER_BASE_URL": backend.base_url,
        "TINKER_TELEMETRY": "0",
    }
    command = [sys.executable, "-m", _WORKER]
    # Libraries write progress bars and warnings: to a file, since nobody reads a pipe for them.
    with (
        tempfile.TemporaryFile("w+", errors="replace") as noise,
        subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=noise, text=True, env=environment
        ) as process,
    ):
        assert process.stdin is not None and process.stdout is not None
        process.stdin.write(json.dumps(asdict(request)))
        process.stdin.close()
        last: dict[str, Any] = {}
        for line in process.stdout:
            last = json.loads(line)
            if "progress" in last:
                progress(last["progress"])
        code = process.wait()
        noise.seek(0)
        said = noise.read().strip().splitlines()
    if "result" in last:
        return ExportResult(**last["result"])
    if "error" in last:
        raise _rebuilt(**last["error"])
    raise BackendError(f"the export stopped ({code}): {said[-1] if said else 'it said nothing'}", where=request.output)


def _rebuilt(kind: str, problem: str, where: str, fix: str) -> ResearcherError:
    return getattr(errors, kind)(problem, where=where, fix=fix)
