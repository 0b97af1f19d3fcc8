"""`find_datasets`: search the hub, or look at one of its data sets before training on it."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

from mcp.server.mcpserver import Context
from mcp_types import CallToolResult
from pydantic import BaseModel, Field

from ..core.errors import ConfigError
from ..core.foreign_text import foreign, has_foreign, named
from .answers import answer
from .background import CALL_AGAIN, WorkProgress, forget, run_in_background

if TYPE_CHECKING:
    from ..data.hub_search import DatasetLook, FoundDataset

_SHOWN_SPLITS = 8
_LONGEST = 300


class DatasetsAnswer(BaseModel):
    """``found``: of a search; ``dataset``: of a reference. ``done`` false: the same call goes on waiting."""

    done: bool = True
    found: list[dict[str, Any]] = []
    dataset: dict[str, Any] | None = None
    next: str = ""


async def find_datasets(
    query: Annotated[str, Field(description="Words, or owner/name[:config][/split][@revision]")], ctx: Context
) -> Annotated[CallToolResult, DatasetsAnswer]:
    """Search data sets on the Hugging Face hub by words, or look at one by its reference.

    A look shows configs, splits, columns, rows, bytes, licence, a row, the `columns` it needs, and the exact reference
    (pinned to a commit) that train_file, val_file and test_set take. Use it if there is no local file yet; with one:
    propose_plan. Not for faults in rows (check_dataset), files of a known set (prepare_dataset) or rows that a model is
    to write (start_generation). HF_TOKEN opens gated sets.
    """
    from ..data.hub_reference import parse_reference

    query = query.strip()
    if not query or len(query) > _LONGEST:
        raise ConfigError(f"give words or a reference, of at most {_LONGEST} characters", where="query")
    reference = parse_reference(query, where="query", default_revision="main")

    def work(report: WorkProgress) -> list[FoundDataset] | DatasetLook:
        from ..data.hub_search import look_at, search_datasets

        report.message = "asking the hub"
        return search_datasets(query) if reference is None else look_at(reference)

    key = ("find", query)
    try:
        result, _ = await run_in_background(key, work, ctx)
    finally:
        forget(key)
    if result is None:
        return answer(DatasetsAnswer(done=False, next=CALL_AGAIN), f"Still asking the hub. {CALL_AGAIN}")
    return _list_answer(query, result) if isinstance(result, list) else _look_answer(result)


def _list_answer(query: str, found: list[FoundDataset]) -> CallToolResult:
    if not found:
        following = "find_datasets with fewer or other words"
        return answer(
            DatasetsAnswer(next=following), f"The hub names no data set with {foreign(query)}.\nNext: {following}"
        )
    following = f"find_datasets(query='{found[0].name}') looks at one"
    lines = [_found_line(each) for each in found]
    content = DatasetsAnswer(found=[asdict(each) for each in found], next=following)
    return answer(content, "\n".join([*lines, f"Next: {following}"]))


def _found_line(found: FoundDataset) -> str:
    licence, size = _stated(found.licence), _stated(found.size)
    gated = ", access on request" if found.gated else ""
    return f"{named(found.name)}: {found.downloads or 0:,} downloads a month, licence {licence}, size {size}{gated}"


def _stated(name: str | None) -> str:
    return named(name) if name else "not stated"


def _look_answer(look: DatasetLook) -> CallToolResult:
    from ..data.hub_fetch import in_bytes

    dataset = look.dataset
    following = f"check_dataset(train_file='{look.splits[0].reference}')"
    gated = "; access has to be asked for" if dataset.gated else ""
    lines = [f"{named(dataset.repository)}@{dataset.commit}: licence {_stated(look.licence)}{gated}."]
    if dataset.note:
        lines.append(f"Note: {dataset.note}.")
    for split in look.splits[:_SHOWN_SPLITS]:
        rows = "rows not stated" if split.rows is None else f"{split.rows:,} row{'s' * (split.rows != 1)}"
        lines.append(f"{named(split.reference.rpartition('@')[0])}: {rows}, {in_bytes(split.bytes)}")
    if len(look.splits) > _SHOWN_SPLITS:
        lines.append(f"{len(look.splits) - _SHOWN_SPLITS} more splits are in the answer's content.")
    columns = ", ".join(f"{name} ({kind})" for name, kind in look.columns.items())
    if columns:
        lines.append(f"Columns: {foreign(columns)}.")
    if look.problem:
        problem = look.problem if has_foreign(look.problem) else foreign(look.problem)
        lines.append(problem if look.row else f"No row is shown: {problem}")
    if look.proposal:
        lines.append(f"Its columns are not ours; this may be what they are: {foreign(look.proposal, 2000)}")
    if look.row:
        lines.append(f"A row of {named(look.shown.rpartition('@')[0])}:\n{look.row}")
    facts = {
        "repository": dataset.repository,
        "commit": dataset.commit,
        "licence": look.licence,
        "gated": dataset.gated,
        "downloads": dataset.downloads,
        "splits": [asdict(split) for split in look.splits],
        "columns": dict(look.columns),
        "row": look.row,
        "proposal": look.proposal,
    }
    return answer(DatasetsAnswer(dataset=facts, next=following), "\n".join([*lines, f"Next: {following}"]))
