"""The data card of a prepared folder: for people README.md, for programs card.json, which can be run again."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from ...core.foreign_text import foreign, named
from ..finding_kinds import BAD_ROW, KINDS
from .choice import NOT_TAKEN, TOO_LONG
from .prepare_config import Method, PrepareSettings

README = "README.md"
_REASONS: Mapping[str, str] = {
    BAD_ROW: "cannot be used",
    TOO_LONG: "more tokens than max_tokens",
    NOT_TAKEN: "left out by max_rows or by the amounts of the sources, drawn by the seed",
}
_ROWS: Mapping[Method, str] = {"sft": "supervised rows", "dpo": "preference pairs", "rl": "prompts for RL"}
_MOST_CAUSES = 40


@dataclass(frozen=True, slots=True)
class Written:
    """One of the files."""

    name: str
    rows: int
    bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Removed:
    """Rows that are in none of the files.

    Attributes:
        reason: The id of a finding, or ``bad_row``, ``too_long``, ``not_taken``.
        rows: How many.
        example: File and line of one of them.
        cause: What is wrong with unusable rows, without what they say.
    """

    reason: str
    rows: int
    example: str
    cause: str

    @property
    def meaning(self) -> str:
        """The reason in words of ours."""
        kind = KINDS.get(self.reason)
        return _REASONS[self.reason] if kind is None else kind.sentence(self.rows).partition(" ")[2]


@dataclass(frozen=True, slots=True)
class Prepared:
    """A folder that was made.

    Attributes:
        folder: Where it is.
        settings: What it was made by.
        sources: For each source its SHA-256 and bytes, of several files that of each.
        rows_read: Rows of all sources.
        files: The files, train first.
        removed: What was left out, and why.
        groups: Groups of rows that were kept together, or 0 where nothing was split.
    """

    folder: Path
    settings: PrepareSettings
    sources: Mapping[str, Mapping[str, Any]]
    rows_read: int
    files: tuple[Written, ...]
    removed: tuple[Removed, ...]
    groups: int

    @property
    def method(self) -> Method:
        """What its rows are for."""
        return self.settings.method or "sft"


def card_text(made: Prepared) -> str:
    """The card for programs: nothing in it depends on the time or on where the folder is."""
    card = {
        "made_by": f"sota-ml-researcher {version('sota-ml-researcher')}",
        "settings": made.settings.model_dump(mode="json", exclude_none=True),
        "sources": {path: dict(facts) for path, facts in made.sources.items()},
        "rows_read": made.rows_read,
        "files": {file.name: {k: v for k, v in asdict(file).items() if k != "name"} for file in made.files},
        "removed": [{k: v for k, v in asdict(each).items() if v != ""} for each in made.removed],
        "groups": made.groups,
    }
    return json.dumps(card, indent=2, ensure_ascii=False) + "\n"


def readme_text(made: Prepared) -> str:
    """The card for people; hubs read its head, which names the files."""
    return "\n".join([*_head(made), *_body(made)]) + "\n"


def _head(made: Prepared) -> Iterator[str]:
    yield "---"
    yield "configs:"
    yield "- config_name: default"
    yield "  data_files:"
    for file in made.files:
        split = {"val": "validation"}.get(stem := file.name.removesuffix(".jsonl"), stem)
        yield f"  - {{split: {split}, path: {file.name}}}"
    yield "---"


def _body(made: Prepared) -> Iterator[str]:
    kept, settings = sum(file.rows for file in made.files), made.settings
    yield f"# {_ROWS[made.method][0].upper()}{_ROWS[made.method][1:]}"
    yield ""
    yield f"{kept:,} of {made.rows_read:,} rows, made by prepare_dataset of sota-ml-researcher. `card.json` says how,"
    yield "and can be run again. Text between ⟪ and ⟫ comes from the data, not from this program."
    yield ""
    yield "| file | rows | bytes | SHA-256 |"
    yield "|---|---|---|---|"
    for file in made.files:
        yield f"| {file.name} | {file.rows:,} | {file.bytes:,} | `{file.sha256}` |"
    if made.groups:
        yield ""
        shared = f", or share a value of {named(settings.group_by)}" if settings.group_by else ""
        yield f"Split by {made.groups:,} groups, none of which is in two files: rows that open with the same words, are"
        yield f"alike by 80% of their n-grams{shared}."
    yield ""
    yield "## From"
    yield ""
    for path, facts in made.sources.items():
        yield f"- {named(path)}: {facts['bytes']:,} bytes, SHA-256 `{facts['sha256']}`"
    yield ""
    yield "## Removed"
    yield ""
    yield from _removed_table(made)
    yield ""
    yield "## Settings"
    yield ""
    for key, value in settings.model_dump(mode="json", exclude_none=True).items():
        if key != "source":
            yield f"- {key}: {foreign(json.dumps(value, ensure_ascii=False), 600)}"


def _removed_table(made: Prepared) -> Iterator[str]:
    if not made.removed:
        yield "Nothing."
        return
    yield "| rows | reason | for example | |"
    yield "|---|---|---|---|"
    for each in made.removed[:_MOST_CAUSES]:
        cause = f"{each.meaning}: {foreign(each.cause.replace('|', '/'))}" if each.cause else each.meaning
        yield f"| {each.rows:,} | {each.reason} | {named(each.example.replace('|', '/'))} | {cause} |"
    if len(made.removed) > _MOST_CAUSES:
        yield f"| {sum(each.rows for each in made.removed[_MOST_CAUSES:]):,} | for further reasons | | see card.json |"
