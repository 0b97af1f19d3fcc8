"""``columns:`` of a config: which columns of somebody's rows are the prompt, the answer, the turns. Never guessed."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from string import Formatter
from typing import Annotated, Any, TypeAlias, cast

from pydantic import AfterValidator

from ..core.errors import ConfigError, DataError, did_you_mean
from .row_turns import ROLES, Fields, as_fields, from_json, key_list, kind, shown

# A path or a template for most targets; a list of roles; a mapping of roles.
Source: TypeAlias = str | list[str] | dict[str, str]
ColumnMap: TypeAlias = Mapping[str, Source]

_TEXTS = ("prompt", "completion", "instruction", "input", "output", "system", "reasoning_content", "chosen", "rejected")
_LISTS = ("responses", "ratings", "ranks", "history", "tools", "tests")
_OTHERS = ("row_weight", "messages", "answer", "entry_point", "reference", "id", "category", "cluster_id")
_SETTINGS = ("system_prompt", "roles", "train_on")
_TURN = "messages[*]."
_TURN_FIELDS = ("role", "content", "train", "reasoning_content", "tool_calls", "tool_call_id", "name")
TARGETS = (*_TEXTS, *_LISTS, *_OTHERS, *_SETTINGS, *(_TURN + name for name in _TURN_FIELDS))
_PROMPTS = {"prompt", "instruction", "question", "input", "messages", "conversations", "conversation"}
_CONVERSATIONS = {"messages", "conversations", "conversation"}
_TURN_LISTS = _CONVERSATIONS | {"prompt", "completion", "chosen", "rejected", "history"}
_ANSWERS = {"completion", "output"}
_PREFERENCES = {"chosen", "rejected", "responses", "ratings", "ranks", "scores"}
# What says the same thing twice: one of each set.
_EXCLUSIVE = (
    ("messages", "prompt", "instruction", "input"),
    ("messages", "completion", "output"),
    ("system", "system_prompt"),
    ("chosen", "responses"),
)
# Stands for the step [*]; no list has such an index.
_EACH = -(2**63)
_STEP = re.compile(r"\.?([^.\[\]]+)|\[(\*|-?\d+)\]")


@dataclass(frozen=True, slots=True)
class _Path:
    """A place in a row, as ``meta.prompt``, ``turns[0].text`` or ``turns[*].text``; ``?``: rows may lack it."""

    text: str
    steps: tuple[str | int, ...]
    optional: bool

    @classmethod
    def of(cls, written: str, target: str) -> _Path:
        text = written.removesuffix("?")
        steps, end = list[str | int](), 0
        for match in _STEP.finditer(text):
            if match.start() != end:
                break
            end = match.end()
            steps.append(match[1] if match[1] is not None else _EACH if match[2] == "*" else int(match[2]))
        if not text:
            raise ConfigError(
                f"{target} names no column",
                fix="Write a column's name, meta.prompt, turns[0].text, turns[*].text, or a template with {}",
            )
        if end != len(text) or not isinstance(steps[0], str):  # no path: a column of a spreadsheet may be called so
            steps = [text]
        return cls(text, tuple(steps), written.endswith("?"))

    @property
    def lists(self) -> int:
        """How many lists it goes through."""
        return self.steps.count(_EACH)

    def find(self, row: Fields) -> object:
        """What is there; None where an optional place is not.

        Raises:
            DataError: If the row has no such place.
        """
        return row[self.text] if self.text in row else self._walk(row, self.steps, "")

    def _walk(self, value: object, steps: Sequence[str | int], at: str) -> object:
        if not steps:
            return value
        step, rest = steps[0], steps[1:]
        if isinstance(step, str):
            fields = as_fields(value)
            if step in fields:
                return self._walk(fields[step], rest, f"{at}.{step}".lstrip("."))
            return self._absent(value, step, at)
        values = _entries(value)
        if values is None:
            return self._absent(value, None, at)
        if step == _EACH:
            return [self._walk(each, rest, f"{at}[{i}]") for i, each in enumerate(values)]
        if -len(values) <= step < len(values):
            return self._walk(values[step], rest, f"{at}[{step}]")
        return self._absent(value, None, at, f"it has {len(values)} entries")

    def _absent(self, value: object, name: str | None, at: str, found: str = "") -> None:
        if self.optional:
            return
        if not at:
            hint = did_you_mean(str(name), [str(key) for key in as_fields(value)])
            found = f"the row's columns: {key_list(as_fields(value))}"
        else:
            hint = ""
            wanted = f'an object with "{name}" is needed' if name is not None else "a list is needed"
            fields = as_fields(value)
            keys = f" with {key_list(fields)}" if fields else ""
            found = found or f"{shown(at)} is {kind(value)}{keys}, and {wanted}"
        raise DataError(
            f'columns: this row has no "{shown(self.text)}" ({found})',
            fix=hint or f'Correct the column, or write "{shown(self.text)}?" where rows may lack it',
        )


def _entries(value: object) -> list[object] | None:
    return cast("list[object]", value) if isinstance(value, list) else None


@dataclass(frozen=True, slots=True)
class _Template:
    """Text with the values of columns in it."""

    parts: tuple[tuple[str, _Path | None], ...]

    @classmethod
    def of(cls, written: str, target: str) -> _Template:
        try:
            parsed = list(Formatter().parse(written))
        except ValueError as error:
            raise ConfigError(
                f"{target}: not a template ({error})", fix="Write {{ and }} for braces that are text"
            ) from error
        if any(spec or conversion for _, _, spec, conversion in parsed):
            raise ConfigError(f"{target}: a template holds names of columns alone", fix="Remove what follows : or !")
        parts = [(text, None if name is None else _Path.of(name, target)) for text, name, _, _ in parsed]
        if any(path is not None and path.lists for _, path in parts):
            raise ConfigError(f"{target}: a template takes texts, and [*] gives a list", fix="Name one entry: [0]")
        return cls(tuple(parts))

    def fill(self, row: Fields, target: str) -> str:
        """The text for a row.

        Raises:
            DataError: If a column is missing, or is neither text nor a number.
        """
        texts = list[str]()
        for text, path in self.parts:
            texts.append(text)
            value = "" if path is None else path.find(row)
            if value is None and path is not None and path.optional:
                continue
            if not isinstance(value, str | int | float):
                name = "" if path is None else shown(path.text)
                raise DataError(f'columns: "{name}" is {kind(value)}, and {target} takes text')
            texts.append(str(value))
        return "".join(texts)


class RowMapper:
    """Makes rows that `formats.read_row` and its peers read of rows with other columns.

    Columns that nothing names stay as they are, for rewards and for the note of what is not read; one that would
    compete with a column which is named gets the prefix ``unmapped.``.

    Args:
        columns: For each target a path, a template, or what its own kind of target takes.

    Attributes:
        targets: The keys that it fills.

    Raises:
        ConfigError: If it says nothing that can be done.
    """

    def __init__(self, columns: ColumnMap) -> None:
        _check_targets(columns)
        self._sources: dict[str, _Path | _Template] = {}
        self._turns: dict[str, _Path | list[str]] = {}
        self._roles: Mapping[str, str] = {}
        self._last_only = columns.get("train_on") == "last"
        for target, source in columns.items():
            if target.startswith(_TURN):
                self._turns[target.removeprefix(_TURN)] = _turn_source(target, source)
            elif target == "roles":
                self._roles = _role_names(source)
            elif target != "train_on":
                self._sources[target] = _source(target, source)
        paths = [path for source in (*self._sources.values(), *self._turns.values()) for path in _paths_of(source)]
        self._texts = {path.text for path in paths}
        self._used = {str(path.steps[0]) for path in paths}
        self.targets = {*self._sources, *(["messages"] if self._turns else [])}
        self._hidden = _competing(self.targets)

    def __call__(self, row: Fields) -> dict[str, Any]:
        """The row under its new names.

        Raises:
            DataError: If it lacks a column, or has something else there.
        """
        made: dict[str, Any] = {}
        for target, source in self._sources.items():
            value = source.fill(row, target) if isinstance(source, _Template) else _found(source, row, target)
            if value is not None or not (isinstance(source, _Path) and source.optional):
                made[target] = value
        if self._turns:
            made["messages"] = self._made_turns(row)
        for key, value in row.items():
            if key not in self._texts and key not in self._used:
                made[f"unmapped.{key}" if key in self._hidden or key in self.targets else key] = value
        if self._roles or self._last_only:
            for key in _TURN_LISTS & made.keys():
                made[key] = self._adjusted(made[key], key)
        return made

    def _made_turns(self, row: Fields) -> list[dict[str, Any]]:
        columns: dict[str, list[object]] = {}
        for name, source in self._turns.items():
            value = source.find(row) if isinstance(source, _Path) else None
            if isinstance(source, _Path) and isinstance(value, list):
                columns[name] = cast("list[object]", value)
            elif isinstance(source, _Path) and value is not None:
                raise DataError(f'columns: "{shown(source.text)}" is {kind(value)}, and a list is needed')
        length = len(columns.get("content", []))
        for name, source in self._turns.items():
            if isinstance(source, list):
                columns[name] = [source[i % len(source)] for i in range(length)]
            elif len(columns.get(name, [])) != length and name in columns:
                raise DataError(f"columns: {_TURN}{name} has {len(columns[name])} entries, {_TURN}content {length}")
        return [{name: values[i] for name, values in columns.items()} for i in range(length)]

    def _adjusted(self, turns: object, key: str) -> object:
        """The turns with known roles, and with loss on the last answer alone where that is wanted."""
        if isinstance(turns, str) and turns.lstrip().startswith("["):
            turns = from_json(turns, f'"{key}"')
        if not isinstance(turns, list):
            return turns
        made: list[object] = []
        answers: list[dict[str, Any]] = []
        for turn in cast("list[object]", turns):
            if not isinstance(turn, Mapping):
                made.append(turn)
                continue
            fields = dict(as_fields(cast("object", turn)))
            name = "role" if fields.get("role") is not None else "from"
            fields[name] = self._roles.get(str(fields.get(name)).lower(), fields.get(name))
            made.append(fields)
            answers += [fields] if _is_answer(fields) else []
        if self._last_only and key in _CONVERSATIONS:
            for i, answer in enumerate(answers, start=1):
                answer["train"] = int(i == len(answers))
        return made


def _is_answer(turn: Fields) -> bool:
    return ROLES.get(str(turn.get("role") or turn.get("from")).lower()) == "assistant"


def _found(path: _Path, row: Fields, target: str) -> object:
    value = path.find(row)
    if target in _TEXTS and isinstance(value, int | float):
        name = shown(path.text)
        raise DataError(
            f'columns: "{name}" is {kind(value)}, and {target} takes text', fix=f'As text it is {target}: "{{{name}}}"'
        )
    return value


def _paths_of(source: _Path | _Template | list[str]) -> Iterator[_Path]:
    if isinstance(source, _Path):
        yield source
    elif isinstance(source, _Template):
        yield from (path for _, path in source.parts if path is not None)


def _competing(targets: set[str]) -> set[str]:
    """Columns of a row which would be read instead of those that are named."""
    hidden: set[str] = set()
    if targets & _PROMPTS:
        hidden |= _PROMPTS - ({"input"} if "instruction" in targets else set[str]())
    if targets & (_ANSWERS | {"messages"}):
        hidden |= _ANSWERS | _PREFERENCES
    if targets & _PREFERENCES:
        hidden |= _PREFERENCES
    return hidden | ({"system", "system_prompt"} if targets & {"system", "system_prompt"} else set[str]())


def _check_targets(columns: ColumnMap) -> None:
    for target in columns:
        if target not in TARGETS:
            fix = did_you_mean(target, TARGETS) or f"There are: {', '.join(TARGETS)}"
            raise ConfigError(f"columns fill no '{shown(target)}'", fix=fix)
    named = {target.partition("[")[0] for target in columns}
    for group in _EXCLUSIVE:
        both = [name for name in group if name in named and not ({"instruction", "input"} <= named and name == "input")]
        if len(both) > 1:
            raise ConfigError(f"{' and '.join(both)} say the same thing twice", fix="Keep one of them")
    if "messages" in columns and any(target.startswith(_TURN) for target in columns):
        raise ConfigError(f"messages and {_TURN}... say the same thing twice", fix="Keep one of them")
    if "messages" in named and "messages" not in columns and not {f"{_TURN}role", f"{_TURN}content"} <= set(columns):
        raise ConfigError(f"turns need both {_TURN}role and {_TURN}content", fix=f"{_TURN}role: [user, assistant]")
    if columns.get("train_on", "all") not in ("all", "last"):
        raise ConfigError("train_on is neither all nor last", fix='Per turn it is "messages[*].train", with 0 or 1')


def _source(target: str, source: Source) -> _Path | _Template:
    if not isinstance(source, str):
        raise ConfigError(
            f"{target} takes one column, and this is {kind(source)}",
            fix=f'Several columns in one text are a template: {target}: "{{title}}\\n\\n{{body}}"',
        )
    if target == "system_prompt" or "{" in source or "}" in source:
        return _Template.of(source, target)
    path = _Path.of(source, target)
    if path.lists > (target in _LISTS):
        raise ConfigError(
            f"{target}: '{shown(source)}' gives {'lists in a list' if path.lists > 1 else 'a list'}",
            fix='Name one entry, such as [0] or [-1]; a whole conversation is "messages[*].content"',
        )
    return path


def _turn_source(target: str, source: Source) -> _Path | list[str]:
    if isinstance(source, list) and target == f"{_TURN}role" and source:
        if unknown := [role for role in source if role.lower() not in ROLES]:
            raise ConfigError(f"{target}: '{shown(unknown[0])}' is no role", fix="Write [user, assistant]")
        return source
    if not isinstance(source, str):
        raise ConfigError(f"{target} takes one column, and this is {kind(source)}")
    path = _Path.of(source, target)
    if path.lists != 1:
        raise ConfigError(
            f"{target}: '{shown(source)}' goes through {path.lists} lists, and turns are one",
            fix="Write one [*], as in dialog[*].text",
        )
    return path


def _role_names(source: Source) -> Mapping[str, str]:
    if not isinstance(source, dict):
        raise ConfigError("roles is no mapping", fix="Write roles: {agent: assistant, customer: user}")
    for name, role in source.items():
        if role not in set(ROLES.values()):
            raise ConfigError(
                f"roles: '{shown(role)}' of '{shown(name)}' is no role", fix="user, assistant, system, tool"
            )
    return {name.lower(): role for name, role in source.items()}


def checked(columns: dict[str, Source]) -> dict[str, Source]:
    """The same columns, if a mapper can be made of them.

    Raises:
        ConfigError: If not.
    """
    RowMapper(columns)
    return columns


Columns = Annotated[dict[str, Source], AfterValidator(checked)]
