"""Reading runs and trying models, for a person in a terminal: the tools' answers, nothing of them cut."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import click

from ..core.errors import ConfigError, StorageError
from ..core.files import storage_errors
from ..core.names import BackendName
from .output import in_commands, show, show_json
from .run_command import answer_of, content_of, plan_text

if TYPE_CHECKING:
    from mcp.server.mcpserver import Context

    from ..training.export import ExportFormat


def analyze(target: str, *, as_json: bool) -> int:
    """Print what a run shows."""
    from ..tools.analysis import Analysis, analyze_run

    content = content_of(answer_of(analyze_run, run=target))
    if as_json:
        show_json(content)
        return 0
    analysis = Analysis.model_validate(content)
    show(analysis.verdict)
    for found in analysis.findings:
        show(f"[{found.level}] {found.summary} ({found.rule}, confidence {found.confidence})")
    if not analysis.findings:
        show("Nothing found.")
    if analysis.learned is not None:
        show(analysis.learned)
    for note in analysis.notes:
        show(f"The log: {note}")
    show(f"Report: {analysis.report}\nNext: {in_commands(analysis.next)}")
    return 0


def compare(targets: Sequence[str], metric: str | None, *, as_json: bool) -> int:
    """Print how runs differ, against the first."""
    from ..tools.analysis import RunsCompared, compare_runs

    content = content_of(answer_of(compare_runs, runs=list(targets), metric=metric))
    if as_json:
        show_json(content)
        return 0
    compared = RunsCompared.model_validate(content)
    show(f"{compared.settings}\n{compared.metric} against the first run:")
    for pair in compared.pairs:
        show(f"- {pair.run}: {pair.word}; {pair.reading}.")
    for finding in compared.findings:
        show(finding)
    show(f"Report: {compared.report}\nNext: {in_commands(compared.next)}")
    return 0


def sample(
    model: str,
    prompts: Sequence[str],
    prompt_file: Path | None,
    *,
    options: dict[str, Any],
    as_json: bool,
) -> int:
    """Print a model's answers to prompts."""
    from ..tools.models import SampleAnswer, sample_model

    asked = [*prompts, *(_lines_of(prompt_file) if prompt_file else ())]
    if not asked:
        raise click.UsageError("Give --prompt TEXT, or --prompt-file FILE with a prompt per line.")
    content = content_of(sample_model(model, prompts=asked, **options))
    if as_json:
        show_json(content)
        return 0
    for one in SampleAnswer.model_validate(content).samples:
        show(f"> {one.prompt}")
        for completion in one.completions:
            show(f"{completion.text} [{completion.stop_reason}, {completion.tokens} tokens]")
    return 0


def _lines_of(path: Path) -> list[str]:
    with storage_errors(path):
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except UnicodeDecodeError as error:
            raise ConfigError("not UTF-8", where=str(path), fix="Save the file as UTF-8") from error
    prompts = [line for line in lines if line.strip()]
    if not prompts:
        raise StorageError("the file holds no prompt", where=str(path), fix="Write one per line")
    return prompts


def plan(data: str, *, as_json: bool, columns: str | None, **options: Any) -> int:
    """Write a plan from data and a goal, and print it."""
    from ..core.yaml_loading import quick_yaml
    from ..tools.propose_plan import PlanAnswer, propose_plan

    arguments = {"train_file": data, "columns": quick_yaml(columns) if columns else None, **options}
    while True:
        answer = answer_of(propose_plan, ctx=cast("Context", Spoken()), **arguments)
        made = PlanAnswer.model_validate(content_of(answer))
        if made.done:
            break
    if as_json:
        show_json(content_of(answer))
        return 0
    show(plan_text(answer))
    show(f"Next: {in_commands(made.next)}")
    return 0


class Spoken:
    """In the place of a client's context: what is being done, on stderr."""

    def __init__(self) -> None:
        self._said: str | None = None

    async def report_progress(self, progress: float, total: float | None = None, message: str | None = None) -> None:
        """Say it once."""
        if message and message != self._said:
            show(f"{message} ...", error=True)
            self._said = message


def export(
    model: str,
    *,
    format: ExportFormat,
    output_dir: str | None,
    overwrite: bool,
    publish_to: str | None,
    private: bool,
    backend: BackendName | None,
    base_url: str | None,
    as_json: bool,
) -> int:
    """Write a checkpoint to disk, and publish it if asked; waits until it is done."""
    from ..tools.export_model import ExportAnswer, export_checkpoint

    arguments = {
        "model": model,
        "ctx": cast("Context", Spoken()),
        "format": format,
        "output_dir": output_dir,
        "overwrite": overwrite,
        "publish_to": publish_to,
        "private": private,
        "backend": backend,
        "base_url": base_url,
    }
    while True:
        content = content_of(answer_of(export_checkpoint, **arguments))
        made = ExportAnswer.model_validate(content)
        if made.done:
            break
    if as_json:
        show_json(content)
        return 0
    show(f"{format} in {made.folder} ({sum(made.files.values()) / 1e6:.1f} MB):")
    for name, size in made.files.items():
        show(f"  {name}  {size:,} bytes")
    show(f"Next: {in_commands(made.next)}")
    return 0
