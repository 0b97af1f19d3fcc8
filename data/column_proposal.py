"""A proposal for ``columns:`` where a file's rows have none of the known shapes: from names, then from contents."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal, cast

import yaml

from ..core.errors import DataError
from ..core.foreign_text import foreign, one_line
from .columns import ColumnMap, RowMapper, Source
from .formats import detect_format, read_row
from .preference_rows import PREFERENCE_FORMATS, detect_preference_format, is_preference_row, to_pair
from .row_files import read_rows
from .row_turns import ROLES, Fields, as_fields, is_blank

Use = Literal["supervised", "preferences", "rl", "evaluation"]
_HEAD_ROWS = 50
_CALLED: Mapping[Use, str] = {
    "supervised": "supervised rows",
    "preferences": "preference pairs",
    "rl": "RL prompts",
    "evaluation": "prompts to evaluate on",
}
# Where a row of an evaluation holds its prompt; of several the first counts, and an instruction's input belongs to it.
PROMPT_KEYS = ("messages", "prompt", "instruction", "question", "input")
_SHOWN_COLUMNS = 12
# Names that data sets use, the usual ones first. A column whose name merely holds one of them counts less.
_NAMES: Mapping[str, tuple[str, ...]] = {
    "prompt": ("prompt", "question", "instruction", "query", "problem", "user", "human", "request", "task", "input",
               "message", "ticket", "source", "text", "document", "article"),
    "completion": ("completion", "response", "answer", "output", "reply", "assistant", "bot", "gpt", "target",
                   "solution", "summary", "label"),
    "answer": ("answer", "final_answer", "solution", "target", "label", "output", "reference", "ground_truth"),
    "reference": ("reference", "answer", "completion", "response", "output", "reply", "solution", "target", "expected",
                  "gold", "ground_truth", "summary", "label"),
    "tests": ("tests", "test_list", "test_cases", "unit_tests", "test"),
    "input": ("input", "context", "passage", "background"),
    "system": ("system", "system_prompt", "system_message", "sys"),
    "chosen": ("chosen", "preferred", "accepted", "better", "best", "winner", "good", "positive"),
    "rejected": ("rejected", "dispreferred", "refused", "worse", "worst", "loser", "bad", "negative"),
    "role": ("role", "from", "speaker", "author", "sender", "user_type", "name"),
    "content": ("content", "value", "text", "message", "body", "utterance"),
    "rating": ("rating", "score", "overall_score", "reward"),
    "responses": ("responses", "generations", "completions", "answers", "outputs", "candidates"),
    "ratings": ("ratings", "scores", "rating", "score", "rewards"),
    "ranks": ("ranks", "rank", "ranking", "rankings"),
}  # fmt: skip
_SPEAKERS = {
    **dict.fromkeys(("customer", "client", "student", "patient", "questioner", "visitor", "asker", "caller"), "user"),
    **dict.fromkeys(("agent", "bot", "ai", "support", "doctor", "tutor", "expert", "chatbot", "teacher"), "assistant"),
}


@dataclass(frozen=True, slots=True)
class Proposal:
    """Columns under which the first rows can be read, for a person to confirm.

    Attributes:
        columns: The mapping.
        use: What the rows are then.
        line: The row shown.
        row: It, under the mapping.
    """

    columns: dict[str, Source]
    use: Use
    line: int
    row: Mapping[str, Any]

    @property
    def block(self) -> str:
        """What to paste into a config, on one line."""
        flow = yaml.safe_dump(self.columns, default_flow_style=True, allow_unicode=True, width=10**6, sort_keys=False)
        return f"columns: {one_line(flow.strip())}"

    def shown_row(self) -> str:
        """The row, as somebody else's text."""
        return foreign(json.dumps(self.row, ensure_ascii=False, default=str, indent=1), 600, lines=True)


def unknown_shape(
    path: Path, columns: ColumnMap | None, *uses: Use, needed: Sequence[str] = ()
) -> tuple[Proposal | None, DataError] | None:
    """What to say of a file whose rows have no known shape: a proposal, if there is one, and the refusal.

    Args:
        path: The file.
        columns: Those the user gave: they are never second-guessed.
        uses: What the rows are wanted for, in the order of preference.
        needed: Keys that rewards read.

    Returns:
        None where the shape of one of the first rows is known: the rows have errors of their own then.

    Raises:
        DataError: If the file as a whole cannot be read.
    """
    if columns:
        return None
    head = [row for row in islice(read_rows(path), _HEAD_ROWS) if row.value is not None]
    rows = [(row.number, row.value) for row in head if row.value]
    if not rows or any(_is_known(value, use, needed) for _, value in rows for use in uses):
        return None
    for use in uses:
        for proposed in _candidates([value for _, value in rows], use, needed):
            mapper = RowMapper(proposed)
            for line, value in rows:
                made = _read(mapper, value, use, needed)
                if made is not None:
                    found = Proposal(proposed, use, line, made)
                    return found, _refusal(path, rows[0][1], use, found)
    if any(_is_known(value, use, ()) for _, value in rows for use in uses):
        return None  # a prompt is there, and what a reward needs is nowhere: the reward says that better
    return None, _refusal(path, rows[0][1], uses[-1], None)


def require_known_shape(path: Path, columns: ColumnMap | None, use: Use, needed: Sequence[str] = ()) -> None:
    """Refuse a file whose rows have no known shape, with the columns that are probably meant.

    Raises:
        DataError: With a ``columns:`` block where one fits.
    """
    unknown = unknown_shape(path, columns, use, needed=needed)
    if unknown is not None:
        raise unknown[1]


def _refusal(path: Path, row: Fields, use: Use, proposal: Proposal | None) -> DataError:
    if use == "preferences" and proposal is None and _is_known(row, "supervised", ()):
        return DataError(
            "these are rows to imitate, with one answer each, and not preference pairs",
            where=path.name,
            fix=f"start_sft takes them as they are; a pair is {PREFERENCE_FORMATS['pairs']}",
        )
    there = foreign(", ".join(str(key) for key in list(row)[:_SHOWN_COLUMNS]))
    what = _CALLED[use]
    example = {
        "preferences": "{prompt: ..., chosen: ..., rejected: ...}",
        "rl": "{prompt: ..., answer: ...}",
        "evaluation": "{prompt: ..., reference: ...}",
    }
    block = proposal.block if proposal else f"columns: {example.get(use, '{prompt: ..., completion: ...}')}"
    fix = (
        f"If this is what they are, set {foreign(block, 2000)}"
        if proposal
        else f"Say which column is what: {block} (docs/data.md)"
    )
    return DataError(f"the columns are not those of {what}: {there}", where=path.name, fix=fix)


def _is_known(row: Fields, use: Use, needed: Sequence[str]) -> bool:
    try:
        if use == "supervised":
            detect_format(row)
        elif use == "preferences":
            detect_preference_format(row)
        else:
            return _has_prompt(row, use) and all(key in row for key in needed)
    except DataError:
        # Pairs given as rows to imitate, and the other way round, are another mistake than unknown columns.
        return use == "supervised" and is_preference_row(row)
    return True


def _has_prompt(row: Fields, use: Use) -> bool:
    keys = PROMPT_KEYS if use == "evaluation" else ("prompt", "question", "messages")
    return any(row.get(key) is not None for key in keys)


def _read(mapper: RowMapper, row: Fields, use: Use, needed: Sequence[str]) -> Mapping[str, Any] | None:
    """The row under a mapping, if it can be read then."""
    try:
        made = mapper(row)
        if use == "supervised":
            read_row(made)
        elif use == "preferences":
            to_pair(made)
        elif not (_has_prompt(made, use) and all(made.get(key) is not None for key in needed)):
            return None
    except DataError:
        return None
    return {key: value for key, value in made.items() if key not in row or key in mapper.targets}


def _candidates(rows: Sequence[Fields], use: Use, needed: Sequence[str]) -> Iterator[dict[str, Source]]:
    """Mappings to try, the likeliest first."""
    columns = [key for key in dict.fromkeys(key for row in rows for key in row) if _is_plain(key)]
    filled = {key: [row[key] for row in rows if not is_blank(row.get(key))] for key in columns}
    texts = [key for key in columns if filled[key] and all(isinstance(v, str) for v in filled[key])]
    lists = [key for key in columns if filled[key] and all(isinstance(v, list) for v in filled[key])]
    if use == "preferences":
        yield from _pairs(texts + lists, lists, filled)
        return
    optional = {key: "?" if len(filled[key]) < len(rows) else "" for key in columns}
    extra: dict[str, Source] = {}
    if system := _named("system", texts):
        extra["system"] = system + optional[system]
    if use in ("supervised", "evaluation"):
        for key in lists:
            if turns := _turns(key, [cast("list[object]", v) for v in filled[key]]):
                yield {**turns, **extra}
    if use == "evaluation":
        single = [key for key in columns if filled[key] and not isinstance(filled[key][0], list | dict)]
        yield from _prompts(texts, single, optional, extra)
        return
    yield from _answered(texts, filled, optional, extra, needed, supervised=use == "supervised")


def _answered(
    texts: Sequence[str],
    filled: Mapping[str, list[Any]],
    optional: Mapping[str, str],
    extra: Mapping[str, Source],
    needed: Sequence[str],
    *,
    supervised: bool,
) -> Iterator[dict[str, Source]]:
    """A prompt with its answer, or with what a reward reads."""
    prompt = _named("prompt", texts)
    wanted = needed or (("completion",) if supervised else ())
    others = {name: _named(name, [k for k in filled if k != prompt and filled[k]]) for name in wanted}
    if prompt and all(others.values()):
        made: dict[str, Source] = {"prompt": prompt, **extra}
        for name, key in others.items():
            is_number = supervised and isinstance(filled[str(key)][0], int | float)
            made[name] = f"{{{key}}}" if is_number else str(key)
        details = _named("input", [key for key in texts if key not in (prompt, *others.values())], exact=True)
        if details and supervised:
            yield {"instruction": prompt, "input": details + optional[details], "output": made["completion"], **extra}
        yield made
    elif len(texts) == 2 and supervised:  # two texts: the names say nothing, the order may
        yield {"prompt": texts[0], "completion": texts[1]}


def _prompts(
    texts: Sequence[str], columns: Sequence[str], optional: Mapping[str, str], extra: Mapping[str, Source]
) -> Iterator[dict[str, Source]]:
    """Prompts with a reference where there is one; of one or two texts the first is the prompt."""
    prompt = _named("prompt", texts) or (texts[0] if 0 < len(texts) <= 2 else None)
    if prompt is None:
        return
    reference = _named("reference", [key for key in columns if key != prompt])
    reference = reference or next((key for key in texts if key != prompt and len(texts) == 2), None)
    yield {"prompt": prompt, **({"reference": reference + optional[reference]} if reference else {}), **extra}


def _pairs(
    columns: Sequence[str], lists: Sequence[str], filled: Mapping[str, list[Any]]
) -> Iterator[dict[str, Source]]:
    chosen, rejected = _named("chosen", columns), _named("rejected", columns)
    prompt = _named("prompt", [key for key in columns if key not in (chosen, rejected)])
    if chosen and rejected and chosen != rejected:
        yield {**({"prompt": prompt} if prompt else {}), "chosen": chosen, "rejected": rejected}
    responses = _named("responses", lists)
    for target in ("ratings", "ranks"):
        values = _named(target, [key for key in lists if key != responses])
        if prompt and responses and values:
            yield {"prompt": prompt, "responses": responses, target: values}
    for key in lists:
        entry = as_fields(filled[key][0][0])
        text = _named("completion", list(entry)) or _named("content", list(entry))
        numbers = [name for name in entry if isinstance(entry[name], int | float)]
        for target, value in (("ratings", _named("rating", numbers)), ("ranks", _named("ranks", numbers))):
            if prompt and text and value:
                yield {"prompt": prompt, "responses": f"{key}[*].{text}", target: f"{key}[*].{value}"}


def _turns(key: str, values: Sequence[list[object]]) -> dict[str, Source] | None:
    """How a column of lists is a conversation, or None."""
    entries = [as_fields(entry) for value in values for entry in value]
    names = list(dict.fromkeys(name for entry in entries for name in entry if _is_plain(name)))
    role, content = _named("role", names, exact=True), _named("content", names, exact=True)
    if role is None or content is None:
        return None
    said = {str(entry.get(role)) for entry in entries}
    roles = {name: _SPEAKERS[name.lower()] for name in sorted(said) if name.lower() in _SPEAKERS}
    if any(name.lower() not in ROLES and name not in roles for name in said):
        return None
    known = (role, content) in (("role", "content"), ("from", "value"))
    made: dict[str, Source] = (
        {"messages": key}
        if known
        else {"messages[*].role": f"{key}[*].{role}", "messages[*].content": f"{key}[*].{content}"}
    )
    return {**made, "roles": roles} if roles else made


def _is_plain(name: object) -> bool:
    """Whether a column's name can be shown and written as a path."""
    return isinstance(name, str) and 0 < len(name) <= 60 and name.isprintable() and not re.search(r"[\[\]{}?]", name)


def _named(target: str, columns: Sequence[str], *, exact: bool = False) -> str | None:
    """The column whose name says that it is this: as a whole, else by one of its words."""
    plain = {column: re.sub(r"[^a-z0-9]+", "_", column.lower()).strip("_") for column in columns if _is_plain(column)}
    for name in _NAMES[target]:
        for column, words in plain.items():
            if words == name:
                return column
    for name in () if exact else _NAMES[target]:
        for column, words in plain.items():
            if name in words.split("_"):
                return column
    return None
