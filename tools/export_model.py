"""Taking a checkpoint home."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import anyio.to_thread
from mcp.server.mcpserver import Context
from mcp_types import CallToolResult
from pydantic import BaseModel, Field

from ..backends.connection import connect
from ..core.errors import ConfigError
from ..core.names import BackendName
from ..core.paths import state_folder, user_path
from ..jobs.job_results import checkpoint_of, job_of, require_place_of_job, trained_model
from ..jobs.registry import Registry
from ..training.export import ExportFormat, ExportRequest
from .answers import answer
from .background import CALL_AGAIN, WorkProgress, forget, run_in_background

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


@dataclass(frozen=True, slots=True)
class ExportSource:
    """A checkpoint to export: where it is, its base model if that is known, and lines for the model card."""

    checkpoint: str
    backend: BackendName
    base_url: str | None
    base_model: str | None
    folder: Path
    about: tuple[str, ...] = ()


async def export_checkpoint(
    model: Annotated[str, Field(description="Job id, job_id:best, or tinker://RUN/weights/NAME")],
    ctx: Context,
    format: Annotated[ExportFormat, Field(description="Merged: all weights")] = "adapter",
    output_dir: Annotated[str | None, Field(description="Default: in the run's folder")] = None,
    overwrite: Annotated[bool, Field(description="Replace an earlier export, here and on the hub")] = False,
    publish_to: Annotated[str | None, Field(description="Hub repository owner/name")] = None,
    private: Annotated[bool, Field(description="On the hub")] = True,
    backend: Annotated[BackendName | None, Field(description="Of a tinker:// path")] = None,
    base_url: str | None = None,
) -> Annotated[CallToolResult, ExportAnswer]:
    """Write a checkpoint to disk as a PEFT adapter or a merged model, and publish it on Hugging Face if asked.

    Use it to serve or keep a result. publish_to only if the user asked for an upload. Not for trying it: sample_model.
    """
    source = await anyio.to_thread.run_sync(find_source, model, backend, base_url)
    output = user_path(output_dir).absolute() if output_dir else source.folder / f"{_name(source)}-{format}"
    if publish_to is not None and not re.fullmatch(r"[\w.-]+/[\w.-]+", publish_to):
        raise ConfigError(f"'{publish_to}' is not a hub repository", where="publish_to", fix="Write it as owner/name")

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

    def work(report: WorkProgress) -> ExportResult:
        return _export(source, request, report)

    key = ("export", source.backend, source.base_url, request)
    made, progress = await run_in_background(key, work, ctx)
    if made is None:
        waiting = ExportAnswer(done=False, folder=str(output), files={}, url=None, next=CALL_AGAIN)
        return answer(waiting, f"Still {progress.message or 'starting'}. {CALL_AGAIN}")
    forget(key)
    return _answer(made, format)


def find_source(model: str, backend: BackendName | None, base_url: str | None) -> ExportSource:
    """The training state that ``model`` names.

    Raises:
        JobError: If it names no job, or one without a checkpoint.
        ConfigError: If it is neither a job nor a checkpoint, or a job that trained elsewhere.
    """
    if re.fullmatch(r"tinker://[^/]+/[^/]+/.+", model):
        return ExportSource(model, backend or "embedded", base_url, None, state_folder("exports"))
    named = job_of(model)
    if named is None:
        raise ConfigError(
            f"'{model}' names no checkpoint",
            where="model",
            fix="Give a job id, job_id:best, or tinker://RUN/weights/NAME",
        )
    job_id, which = named
    job = Registry().get(job_id)
    saved, trained = checkpoint_of(job, "state_path", which), trained_model(job)
    require_place_of_job(job, trained, backend, base_url)
    about = (f"job {job.id}: {job.kind}, LoRA rank {trained.lora_rank}", f"checkpoint after step {saved.step}")
    folder = job.folder / "export"
    return ExportSource(str(saved.state_path), trained.backend, trained.base_url, trained.base_model, folder, about)


def _export(source: ExportSource, request: ExportRequest, report: WorkProgress) -> ExportResult:
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


def _name(source: ExportSource) -> str:
    run, _, name = source.checkpoint.removeprefix("tinker://").split("/", 2)
    return name if source.base_model else f"{run.replace(':', '-')}-{name}"


def _answer(made: ExportResult, format: ExportFormat) -> CallToolResult:
    use = "serve it beside its base model" if format == "adapter" else "load the folder as a model"
    following = f"{use}; {made.url}" if made.url else use
    content = ExportAnswer(done=True, folder=made.folder, files=made.files, url=made.url, next=following)
    listed = list(made.files.items())[:_SHOWN_FILES]
    lines = [f"{format} in {made.folder} ({made.size_bytes / 1e6:.1f} MB):"]
    lines += [f"  {name}  {size:,} bytes" for name, size in listed]
    if len(made.files) > len(listed):
        lines.append(f"  and {len(made.files) - len(listed)} more files")
    if made.url:
        lines.append(f"Published: {made.url}{' (the folder was there already)' if made.reused else ''}")
    return answer(content, "\n".join([*lines, f"Next: {following}"]))
