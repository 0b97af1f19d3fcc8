"""Taking a checkpoint home."""

from __future__ import annotations

import re
import threading
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import anyio.to_thread
from mcp.server.mcpserver import Context
from mcp_types import CallToolResult
from pydantic import BaseModel, Field

from ..backends.connection import connect
from ..core.errors import ConfigError, JobError
from ..core.names import BackendName
from ..core.paths import home
from ..jobs import run_files
from ..jobs.registry import Registry
from ..training.export import ExportFormat, ExportRequest
from .answers import answer
from .background import CALL_AGAIN, Report, forget, run_in_background

if TYPE_CHECKING:
    from ..training.export import ExportResult

_SHOWN_FILES = 12


class ExportAnswer(BaseModel):
    """``done`` false: still working; the same call goes on waiting. Sizes are bytes."""

    done: bool
    folder: str
    files: dict[str, int]
    url: str | None
    next: str


class Source(BaseModel):
    """A checkpoint, and what is known of it."""

    checkpoint: str
    backend: BackendName
    base_url: str | None
    base_model: str | None
    folder: Path
    about: tuple[str, ...] = ()


async def export_checkpoint(
    model: Annotated[str, Field(description="Job id, job_id:best, or tinker://RUN/weights/NAME")],
    ctx: Context,
    format: ExportFormat = "adapter",
    output_dir: Annotated[str | None, Field(description="Default: in the run's folder")] = None,
    overwrite: Annotated[bool, Field(description="Replace an earlier export, here and on the hub")] = False,
    publish_to: Annotated[str | None, Field(description="Hub repository owner/name")] = None,
    private: bool = True,
    backend: Annotated[BackendName | None, Field(description="Of a tinker:// path")] = None,
    base_url: str | None = None,
) -> Annotated[CallToolResult, ExportAnswer]:
    """Write a checkpoint to disk as a PEFT adapter or a merged model, and publish it if asked.

    Use it to serve or keep a result. publish_to only if the user asked for an upload. Not for trying it: sample_model.
    """
    source = await anyio.to_thread.run_sync(find_source, model, backend, base_url)
    output = Path(output_dir).expanduser().absolute() if output_dir else source.folder / f"{_name(source)}-{format}"
    if publish_to is not None and not re.fullmatch(r"[\w.-]+/[\w.-]+", publish_to):
        raise ConfigError(f"'{publish_to}' is no hub repository", where="publish_to", fix="Write it as owner/name")

    request = ExportRequest(
        checkpoint=source.checkpoint,
        base_model=source.base_model or "",
        format=format,
        output=str(output),
        overwrite=overwrite,
        publish_to=publish_to,
        private=private,
        about=source.about,
    )

    def work(report: Report, cancelled: threading.Event) -> ExportResult:
        return _export(source, request, report)

    key = ("export", source.backend, source.base_url, request)
    made, progress = await run_in_background(key, work, ctx)
    if made is None:
        waiting = ExportAnswer(done=False, folder=str(output), files={}, url=None, next=CALL_AGAIN)
        return answer(waiting, f"Still {progress.message or 'starting'}. {CALL_AGAIN}")
    forget(key)
    return _answer(made, format)


def find_source(model: str, backend: BackendName | None, base_url: str | None) -> Source:
    """The training state that ``model`` names.

    Raises:
        JobError: If it names no job, or one without a checkpoint.
        ConfigError: If it is neither a job nor a checkpoint.
    """
    if model.startswith("tinker://"):
        folder = home() / "exports"
        return Source(
            checkpoint=model, backend=backend or "embedded", base_url=base_url, base_model=None, folder=folder
        )
    job_id, _, which = model.partition(":")
    if which not in {"", "best", "final"} or not re.fullmatch(r"[a-z]+-\w+", job_id):
        raise ConfigError(
            f"'{model}' names no checkpoint",
            where="model",
            fix="Give a job id, job_id:best, or tinker://RUN/weights/NAME",
        )
    job = Registry().get(job_id)
    key = "best_state_path" if which == "best" else "state_path"
    saved = [record for record in run_files.checkpoints(job.folder) if record.get(key)]
    if not saved:
        kind = "best checkpoint" if which == "best" else "checkpoint"
        raise JobError(f"job {job_id} ({job.state}) has no {kind} yet", fix="wait_for_job shows when it has one")
    from ..core.yaml_loading import load_yaml

    config = load_yaml(job.folder / run_files.CONFIG).data
    step = saved[-1].get("step", saved[-1].get("next_step"))
    return Source(
        checkpoint=saved[-1][key],
        backend=config["backend"],
        base_url=config.get("base_url"),
        base_model=config["base_model"],
        folder=job.folder / "export",
        about=(f"job {job.id}: {job.kind}, LoRA rank {config.get('lora_rank')}", f"checkpoint after step {step}"),
    )


def _export(source: Source, request: ExportRequest, report: Report) -> ExportResult:
    from ..models.model_ref import resolve_model
    from ..training.export import export

    report.message = "connecting to the backend"
    connection = connect(source.backend, source.base_url)
    base_model = request.base_model
    if not base_model:
        from ..backends.sampling_client import base_model_of

        base_model = base_model_of(connection, source.checkpoint)

    def progress(doing: str) -> None:
        report.message = doing

    return export(replace(request, base_model=resolve_model(base_model).wire_name), connection, progress=progress)


def _name(source: Source) -> str:
    run, _, name = source.checkpoint.removeprefix("tinker://").split("/")[:3]
    return name if source.base_model else f"{run.replace(':', '-')}-{name}"


def _answer(made: ExportResult, format: ExportFormat) -> CallToolResult:
    use = "serve it beside its base model" if format == "adapter" else "load the folder as a model"
    following = f"{use}; {made.url}" if made.url else use
    content = ExportAnswer(done=True, folder=made.folder, files=made.files, url=made.url, next=following)
    shown = list(made.files.items())[:_SHOWN_FILES]
    lines = [f"{format} in {made.folder} ({made.size_bytes / 1e6:.1f} MB):"]
    lines += [f"  {name}  {size:,} bytes" for name, size in shown]
    if len(made.files) > len(shown):
        lines.append(f"  and {len(made.files) - len(shown)} more files")
    if made.url:
        lines.append(f"Published: {made.url}{' (the folder was there already)' if made.reused else ''}")
    return answer(content, "\n".join([*lines, f"Next: {following}"]))
