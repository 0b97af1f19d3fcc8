"""Looking for data sets on the hub, and at one of them: what it holds, how large it is, and what its rows look like."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, cast

from ..core.errors import DataError
from ..core.foreign_text import foreign
from .column_proposal import unknown_shape
from .hub_catalog import HubDataset, asked, hub_api, look_up, references
from .hub_fetch import MOST_BYTES, fetch, in_bytes
from .hub_head import has_first_rows
from .hub_layout import DEFAULT
from .hub_reference import HubReference
from .row_files import read_rows
from .row_turns import kind

_FOUND = 10
_SAMPLE_ROWS = 20
# A smaller split is fetched whole for a look, as a start would do.
_LOOK_BYTES = 20 * 10**6
_PROPERTIES = ("downloads", "gated", "tags", "mainSize", "lastModified")


@dataclass(frozen=True, slots=True)
class FoundDataset:
    """A data set that a search found.

    Attributes:
        name: ``owner/name``.
        downloads: Of the last 30 days.
        licence: As the hub tags it.
        size: Of its files, or the hub's class of its number of rows, such as ``10K<n<100K rows``.
        tags: What it is for, and its languages.
        gated: Whether access has to be asked for.
    """

    name: str
    downloads: int | None
    licence: str | None
    size: str | None
    tags: tuple[str, ...]
    gated: bool


@dataclass(frozen=True, slots=True)
class SplitFacts:
    """A split: how to name it, its bytes, and its rows where the card states them or they were counted."""

    reference: str
    bytes: int
    rows: int | None


@dataclass(frozen=True, slots=True)
class DatasetLook:
    """A data set as it is at one commit.

    Attributes:
        dataset: What the hub says of it.
        licence: As its card or the hub's tags say.
        splits: All of its configurations and splits.
        shown: The one whose rows were looked at.
        columns: Its columns with their types.
        row: A row of it, as somebody else's text; nothing where none could be read.
        proposal: The ``columns:`` block that it needs, or nothing.
        problem: Why no row is shown, or what its columns lack.
    """

    dataset: HubDataset
    licence: str | None
    splits: tuple[SplitFacts, ...]
    shown: str
    columns: Mapping[str, str]
    row: str
    proposal: str
    problem: str


def search_datasets(words: str) -> list[FoundDataset]:
    """The data sets whose names hold these words, the most downloaded first.

    Raises:
        DataError: If the hub does not answer, or refuses.
    """
    api = hub_api()

    def question() -> list[FoundDataset]:
        found = api.list_datasets(search=words, sort="downloads", limit=_FOUND, expand=list(_PROPERTIES))
        return [_found(info) for info in found]

    return asked(question, "search", "main")


def _found(info: Any) -> FoundDataset:
    tags = [str(tag) for tag in info.tags or ()]
    sizes = [tag.partition(":")[2] for tag in tags if tag.startswith("size_categories:")]
    kept = tuple(tag for tag in tags if tag.startswith(("task_categories:", "language:")))
    stored = getattr(info, "main_size", None)
    size = in_bytes(int(stored)) if stored else next((f"{rows} rows" for rows in sizes), None)
    return FoundDataset(str(info.id), info.downloads, _tagged_licence(tags), size, kept, bool(info.gated))


def look_at(reference: HubReference) -> DatasetLook:
    """What a data set holds. Of a large split only the first rows are fetched.

    Raises:
        DataError: If there is no such data set, configuration or split, or it may not be seen.
        StorageError: If the disk has no room for the rows.
    """
    dataset = look_up(reference.repository, reference.revision)
    possible = references(dataset, replace(reference, rows=None))
    splits = tuple(_split_facts(dataset, each) for each in possible)
    shown, first = possible[0], splits[0]
    whole = first.bytes <= _LOOK_BYTES
    try:
        fetched = fetch(shown if whole else replace(shown, rows=_SAMPLE_ROWS))
        row, proposal, problem, columns = _first_row(fetched.path)
        if whole and first.rows is None:
            splits = (replace(first, rows=sum(1 for _ in read_rows(fetched.path))), *splits[1:])
    except DataError as error:
        row, proposal, problem, columns = "", "", str(error), dict[str, str]()
    stated = _stated(dataset, shown)
    return DatasetLook(
        dataset=dataset,
        licence=_licence(dataset),
        splits=splits,
        shown=str(shown),
        columns=_stated_columns(stated) or columns,
        row=row,
        proposal=proposal,
        problem=problem,
    )


def _first_row(path: Path) -> tuple[str, str, str, dict[str, str]]:
    """The first readable row, the columns block it needs, what is wrong with it, and its columns."""
    rows = [row.value for row in islice(read_rows(path), _SAMPLE_ROWS) if row.value]
    if not rows:
        return "", "", "its first rows cannot be read: check_dataset says why", {}
    columns = {str(key): kind(value) for row in reversed(rows) for key, value in row.items()}
    shown = foreign(json.dumps(rows[0], ensure_ascii=False, default=str, indent=1), 600, lines=True)
    unknown = unknown_shape(path, None, "preferences", "supervised")
    if unknown is None:
        return shown, "", "", columns
    proposal, refusal = unknown
    return shown, proposal.block if proposal else "", "" if proposal else str(refusal), columns


def _split_facts(dataset: HubDataset, exact: HubReference) -> SplitFacts:
    files: Sequence[str] = [str(exact.split)]
    if exact.config is not None or exact.split not in dataset.files:
        layout = dataset.layout()
        files = layout[exact.config or next(iter(layout))][str(exact.split)]
    size = sum(dataset.files[file].size for file in files)
    part = replace(exact, rows=100_000) if size > MOST_BYTES and has_first_rows(files) else exact
    return SplitFacts(str(part), size, _stated_rows(_stated(dataset, exact), str(exact.split)))


def _stated(dataset: HubDataset, exact: HubReference) -> Mapping[str, Any]:
    """What the card says of one configuration's rows; nothing where it says nothing."""
    about = dataset.card.get("dataset_info")
    entries = cast("list[Any]", about if isinstance(about, list) else [about])
    named = [cast("Mapping[str, Any]", entry) for entry in entries if isinstance(entry, Mapping)]
    if exact.config is None and len(named) == 1:
        return named[0]
    name = exact.config or DEFAULT
    return next((entry for entry in named if entry.get("config_name") == name), dict[str, Any]())


def _stated_rows(stated: Mapping[str, Any], split: str) -> int | None:
    splits = stated.get("splits")
    for entry in cast("list[Any]", splits) if isinstance(splits, list) else []:
        if isinstance(entry, Mapping) and cast("Mapping[str, Any]", entry).get("name") == split:
            rows = cast("Mapping[str, Any]", entry).get("num_examples")
            return rows if isinstance(rows, int) else None
    return None


def _stated_columns(stated: Mapping[str, Any]) -> dict[str, str]:
    """The columns that a card states, with their types: ``string``, ``list``, ``struct``, ``class_label``."""
    features = stated.get("features")
    made: dict[str, str] = {}
    for entry in cast("list[Any]", features) if isinstance(features, list) else []:
        if not isinstance(entry, Mapping):
            continue
        fields = {str(key): value for key, value in cast("Mapping[Any, Any]", entry).items()}
        name, dtype = fields.pop("name", None), fields.pop("dtype", None)
        kinds = cast("Mapping[str, Any]", dtype) if isinstance(dtype, Mapping) else fields
        if name is not None:
            made[str(name)] = dtype if isinstance(dtype, str) else next(iter(kinds), "")
    return made


def _licence(dataset: HubDataset) -> str | None:
    stated = dataset.card.get("license")
    if isinstance(stated, list):
        return ", ".join(map(str, cast("list[Any]", stated))) or None
    return str(stated) if stated else _tagged_licence(dataset.tags)


def _tagged_licence(tags: Any) -> str | None:
    named = [tag.partition(":")[2] for tag in tags if tag.startswith("license:")]
    return ", ".join(named) or None
