"""Making checked files of rows."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import anyio.to_thread
from mcp.server.mcpserver import Context
from mcp_types import CallToolResult
from pydantic import BaseModel, Field, WithJsonSchema

from ..core.errors import ConfigError
from ..core.foreign_text import foreign, named
from ..core.paths import user_path
from ..core.validation import require_sound
from .answers import answer
from .background import CALL_AGAIN, ColumnsArgument, WorkProgress, file_identity, forget, run_in_background

if TYPE_CHECKING:
    from ..data.preparing.card import Prepared, Removed
    from ..data.preparing.prepare_config import PrepareSettings

_SHOWN_REASONS = 8
# What is wrong with a value is said by the check of the settings; a schema of it would be long.
_Source = Annotated[
    Any,
    WithJsonSchema({"type": ["string", "array"], "items": {}}),
    Field(
        description="File, folder, pattern, demo:NAME or hub reference; a list of [{'path', 'weight' or 'rows', "
        "'columns'}]; or a card.json to run again"
    ),
]
_Words = Annotated[
    Any,
    WithJsonSchema({"type": ["array", "null"], "items": {"type": "string"}}),
    Field(description="Ids of findings whose rows go; default: repeats"),
]
_Benchmarks = Annotated[
    Any,
    WithJsonSchema({"type": ["array", "null"], "items": {"type": "string"}}),
    Field(description="Test sets whose items go"),
]
_Split = Annotated[
    Any,
    WithJsonSchema({"type": ["object", "null"]}),
    Field(description="{'val': 0.1, 'test': 500}: split off these shares or rows; train is the rest"),
]


class PrepareAnswer(BaseModel):
    """``done`` false: still at work; the same call goes on waiting. ``removed``: rows by reason."""

    done: bool
    folder: str
    rows: dict[str, int] = {}
    removed: dict[str, int] = {}
    next: str


async def prepare_dataset(
    source: _Source,
    output_dir: Annotated[str, Field(description="A new folder")],
    ctx: Context,
    columns: ColumnsArgument = None,
    method: Annotated[str | None, Field(description="sft, dpo or rl; default: by the rows")] = None,
    base_model: Annotated[str | None, Field(description="Counts tokens")] = None,
    max_tokens: Annotated[int | None, Field(description="Longer rows go")] = None,
    max_rows: int | None = None,
    drop: _Words = None,
    benchmark_files: _Benchmarks = None,
    split: _Split = None,
    group_by: Annotated[str | None, Field(description="A column whose values never cross files")] = None,
    seed: int | None = None,
) -> Annotated[CallToolResult, PrepareAnswer]:
    """Write train, validation and test files with a data card: map, filter, deduplicate, split without leakage.

    Use it after check_dataset, whose finding ids `drop` takes; to look only, use check_dataset instead. Rows that
    cannot be used go, with counts and one line each. Rows with one prompt, and near duplicates, stay in one file.
    Overwrites nothing.
    """
    from ..data.preparing.prepare_config import load_prepare_settings

    given = {
        "source": source,
        "columns": columns,
        "method": method,
        "base_model": base_model,
        "max_tokens": max_tokens,
        "max_rows": max_rows,
        "drop": drop,
        "benchmark_files": benchmark_files,
        "split": split,
        "group_by": group_by,
        "seed": seed,
    }
    given = {key: value for key, value in given.items() if value is not None}
    require_sound({**given, "output_dir": output_dir}, "prepare_dataset")
    if not output_dir.strip():
        raise ConfigError("the name of the folder is empty", where="output_dir", fix="Name a new folder")
    settings, card = await anyio.to_thread.run_sync(load_prepare_settings, given)  # data of the hub is fetched
    output = user_path(output_dir).absolute()
    identities = tuple(file_identity(each.file) for each in settings.sources)
    key = ("prepare", str(output), settings.model_dump_json(), identities)
    made, progress = await run_in_background(key, lambda report: _prepare(settings, output, report), ctx)
    if made is None:
        waiting = PrepareAnswer(done=False, folder=str(output), next=CALL_AGAIN)
        return answer(waiting, f"Still at work: {progress.message}. {CALL_AGAIN}")
    forget(key)  # an equal call later must see that the folder is there
    return _answer(made, card)


def _prepare(settings: PrepareSettings, output: Path, report: WorkProgress) -> Prepared:
    from ..data.preparing.prepared_files import prepare
    from ..models.renderers import load_renderer

    report.message = "the sources are being opened"
    renderer = load_renderer(settings.base_model) if settings.base_model else None

    earlier, last = 0, 0

    def progress(rows: int, doing: str) -> None:
        nonlocal earlier, last
        if rows < last:  # rows are read more than once, and progress never goes back
            earlier += last
        last = rows
        report.done, report.message = earlier + rows, f"{rows:,} {doing}"

    return prepare(settings, output, renderer=renderer, progress=progress)


def _removed_text(removed: Removed) -> str:
    cause = f" ({foreign(removed.cause)})" if removed.cause else ""
    return f"Removed {removed.rows:,}: {removed.meaning}{cause}, such as {named(removed.example)}."


def _answer(made: Prepared, card: Mapping[str, Any]) -> CallToolResult:
    files = {file.name.removesuffix(".jsonl"): file for file in made.files}
    start = {"sft": "start_sft", "dpo": "start_dpo", "rl": "start_grpo"}[made.method]
    paths = {"train_file": str(made.folder / files["train"].name)}
    if "val" in files:
        paths["val_file"] = str(made.folder / files["val"].name)
    removed: dict[str, int] = {}
    for each in made.removed:
        removed[each.reason] = removed.get(each.reason, 0) + each.rows
    following = f"{start}(overrides={{'base_model': ..., {str(paths)[1:-1]}}}, validate_only=true)"
    rows = {name: file.rows for name, file in files.items()}
    counts = ", ".join(f"{name} {count:,}" for name, count in rows.items())
    lines = [f"{counts} of {made.rows_read:,} rows, in {named(made.folder)}."]
    lines += [_removed_text(each) for each in made.removed[:_SHOWN_REASONS]]
    if card and card.get("sources") != made.sources:
        lines.append("The sources are no longer those of the card.")
    if len(made.removed) > _SHOWN_REASONS:
        lines.append(f"{len(made.removed) - _SHOWN_REASONS} more reasons are in README.md.")
    if made.groups:
        lines.append(f"{made.groups:,} groups, none of them in two files.")
    content = PrepareAnswer(done=True, folder=str(made.folder), rows=rows, removed=removed, next=following)
    return answer(content, "\n".join([*lines, f"Next: {following}"]))
