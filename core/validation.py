"""What a validator found wrong with settings or arguments, in the words of the person who wrote them."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import date
from typing import Any, cast, get_args

from pydantic import BaseModel

from .errors import ConfigError, did_you_mean
from .foreign_text import one_line

# Far above what a config or a call needs; below what costs time or memory to walk, copy and show.
MOST_VALUES = 100_000
MOST_LEVELS = 50
_SHOWN = 80
_SURROGATE = re.compile("[\ud800-\udfff]")
_SCALARS = (str, int, float, bool, type(None), date)
_LACKS: Mapping[str, str] = {
    "string": "text is needed",
    "int": "a whole number is needed",
    "float": "a number is needed",
    "bool": "true or false is needed",
    "list": "a list is needed",
    "tuple": "a list is needed",
    "set": "a list is needed",
    "iterable": "a list is needed",
    "dict": "a mapping (key: value) is needed",
    "mapping": "a mapping (key: value) is needed",
    "model": "a mapping (key: value) is needed",
}
_LACK = re.compile(rf"({'|'.join(_LACKS)})_(?:attributes_)?(?:type|parsing|from_float|parsing_size)")


def require_bounded(root: object, inside: Callable[[Any], Iterable[Any]], where: str) -> None:
    """Refuse values that grow without bound when they are written out, such as aliases of aliases in YAML.

    Args:
        root: The outermost value.
        inside: The values directly inside of one.
        where: The file or argument, for the error.

    Raises:
        ConfigError: If there are more than `MOST_VALUES` values, or they are nested deeper than `MOST_LEVELS`.
    """
    level, values = [root], 0
    for _ in range(MOST_LEVELS):
        below: list[Any] = []
        for value in level:
            below.extend(inside(value))
            if values + len(below) > MOST_VALUES:
                raise ConfigError(
                    f"it holds more than {MOST_VALUES:,} values when its aliases are written out", where=where
                )
        values, level = values + len(below), below
        if not level:
            return
    raise ConfigError(f"it is nested more than {MOST_LEVELS} levels deep", where=where)


def require_sound(values: object, where: str) -> None:
    """Refuse values that no file name, message or log can hold, and bombs.

    Raises:
        ConfigError: If a text has a NUL or half of a surrogate pair, or as `require_bounded`.
    """
    require_bounded(values, _inside, where)
    for text in _texts(values):
        if "\0" in text or (not text.isascii() and _SURROGATE.search(text)):
            kind = "a NUL character" if "\0" in text else "half of a surrogate pair"
            raise ConfigError(f"a text holds {kind}: {shown(text)}", where=where, fix="Remove it")


def _inside(value: Any) -> Iterable[Any]:
    if isinstance(value, Mapping):
        return list(cast("Mapping[Any, Any]", value).values())
    return cast("Sequence[Any]", value) if isinstance(value, list | tuple) else ()


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        yield from (key for key in cast("Mapping[Any, Any]", value) if isinstance(key, str))
    for inner in _inside(value):
        yield from _texts(inner)


def shown(value: object) -> str:
    """A value for an error, short whatever its size."""
    if isinstance(value, str):
        text = value if len(value) <= _SHOWN else f"{value[:_SHOWN]}…"
        return f"'{one_line(text)}'"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, int) and value.bit_length() > 200:
        return f"a number of {value.bit_length():,} bits"
    if isinstance(value, list | tuple):
        items = cast("Sequence[object]", value)
        if len(items) <= 4 and all(isinstance(item, _SCALARS) for item in items):
            return f"[{', '.join(shown(item).strip(chr(39)) for item in items)}]"
        return f"a list of {len(items):,}"
    if isinstance(value, Mapping):
        return f"a mapping of {len(cast('Mapping[Any, Any]', value)):,} keys"
    return one_line(str(value))[:_SHOWN]


def problems_of(
    errors: Iterable[Any], model: type[BaseModel], data: object, place: Callable[[str], str]
) -> list[ConfigError]:
    """A validator's findings as errors, one for each place in the data.

    Args:
        errors: What pydantic's ``ValidationError.errors()`` lists.
        model: The model that was validated.
        data: What was validated.
        place: The place of a top-level key, for people.
    """
    found: dict[str, list[ConfigError]] = {}
    for error in errors:
        steps = _steps(error["loc"], data)
        where = place(str(steps[0])) + "".join(f"[{step}]" for step in steps[1:]) if steps else ""
        found.setdefault(where, []).append(_problem(error, where, steps, model))
    return [_either(where, several) for where, several in found.items()]


def _either(where: str, problems: Sequence[ConfigError]) -> ConfigError:
    """What a value of one place may be instead, where several kinds are allowed."""
    if len(problems) == 1:
        return problems[0]
    first, _, got = problems[0].problem.rpartition(", got ")
    others = [problem.problem.rpartition(", got ")[0] or problem.problem for problem in problems[1:]]
    kinds = list(dict.fromkeys([first or problems[0].problem, *others]))
    return ConfigError(" or ".join(kinds) + (f", got {got}" if got else ""), where=where, fix=problems[0].fix)


def _problem(error: Any, where: str, steps: Sequence[str | int], model: type[BaseModel]) -> ConfigError:
    kind, value = str(error["type"]), error["input"]
    if kind == "missing":
        return ConfigError("this key is required and missing", where=where)
    if kind == "extra_forbidden":
        names = _keys_at(model, steps[:-1])
        return ConfigError("unknown key", where=where, fix=known_names(str(steps[-1]), names))
    if kind == "value_error":
        return ConfigError(str(error["msg"]).removeprefix("Value error, "), where=where)
    if kind in {"too_short", "too_long"}:
        bound, wanted = ("least", "min_length") if kind == "too_short" else ("most", "max_length")
        context = error.get("ctx", {})
        return ConfigError(f"at {bound} {context[wanted]} entries are needed, got {shown(value)}", where=where)
    lack = _LACK.fullmatch(kind)
    if lack is not None:
        return ConfigError(f"{_LACKS[lack[1]]}, got {shown(value)}", where=where, fix=_quotes(lack[1], value))
    message = str(error["msg"])
    if kind == "literal_error":
        fix = did_you_mean(value, _choices(message)) if isinstance(value, str) and len(value) <= _SHOWN else ""
        return ConfigError(f"{message[0].lower()}{message[1:]}, got {shown(value)}", where=where, fix=fix)
    return ConfigError(f"{message[0].lower()}{message[1:]}, got {shown(value)}", where=where)


def known_names(wrong: str, names: Iterable[str]) -> str:
    """The nearest of the known names, or all of them."""
    known = sorted(names)
    if not known:
        return ""
    return did_you_mean(wrong[:_SHOWN], known) or f"Known keys: {', '.join(known)}"


def _choices(message: str) -> list[str]:
    return re.findall(r"'([^']*)'", message)


def _quotes(needed: str, value: object) -> str:
    """How to write a text that YAML reads as something else."""
    if needed != "string" or isinstance(value, list | tuple | Mapping) or value is None:
        return ""
    what = "a date" if isinstance(value, date) else "true or false" if isinstance(value, bool) else "a number"
    return f'To YAML this is {what}: put it in quotes, "{shown(value)}"'


def _steps(location: Sequence[str | int], data: object) -> list[str | int]:
    """The keys and positions in the data; what names a branch of a union or a validator is left out."""
    steps: list[str | int] = []
    here: Any = data
    for index, part in enumerate(location):
        last = index == len(location) - 1
        if isinstance(here, Mapping) and (part in here or last):
            here = cast("Mapping[Any, Any]", here).get(part)
        elif isinstance(here, list | tuple) and isinstance(part, int):
            items = cast("Sequence[Any]", here)
            here = items[part] if part < len(items) else None
        elif index:
            continue
        steps.append(part)
    return steps


def _keys_at(model: type[BaseModel], steps: Sequence[str | int]) -> list[str]:
    """The keys a mapping at this place may have; none where that is not known."""
    models = [model]
    for step in steps:
        if isinstance(step, int):
            continue
        annotations = [m.model_fields[step].annotation for m in models if step in m.model_fields]
        models = [inner for annotation in annotations for inner in _models_in(annotation)]
    return [name for m in models for name in m.model_fields]


def _models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in get_args(annotation):
        yield from _models_in(argument)
