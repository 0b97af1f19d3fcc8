"""Reading YAML: what a person wrote, strictly and with the line of every key at hand, and our own, quickly."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any, cast

import yaml

from .errors import ConfigError
from .files import storage_errors
from .foreign_text import one_line
from .validation import require_bounded, require_sound

# Settings are small, and our strict reader takes 3 s for a file of this size.
_MOST_BYTES = 1_000_000


@dataclass(frozen=True, slots=True)
class YamlDocument:
    """A mapping read from a file, and the line (from 1) each top-level key stands on."""

    path: Path
    data: Mapping[str, Any]
    lines: Mapping[str, int]

    def place(self, key: str) -> str:
        """``file.yaml:12: key``, for an error message."""
        line = self.lines.get(key)
        return f"{self.path}:{line}: {key}" if line else f"{self.path}: {key}"


class _StrictLoader(yaml.SafeLoader):
    """SafeLoader that refuses a key given twice (YAML would keep the last) and names the line of each fault."""

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            return cast("Any", super()).construct_object(node, deep=deep)
        except (ValueError, KeyError, ArithmeticError) as error:  # no such date, a number of 10,000 digits, !!int word
            if isinstance(error, ConfigError):
                raise
            raise ConfigError(
                f"'{one_line(str(node.value))[:80]}' is no value of the kind that YAML takes it for",
                where=f"{self.name}:{node.start_mark.line + 1}",
                fix="Put it in quotes if it is text",
            ) from error

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: dict[str, int] = {}
        for key_node, _ in node.value:
            line = key_node.start_mark.line + 1
            first = seen.setdefault(str(key_node.value), line)
            if first != line:
                raise ConfigError(
                    f"the key '{key_node.value}' is given twice (first on line {first})",
                    where=f"{self.name}:{line}",
                    fix="Keep one of them",
                )
        return super().construct_mapping(node, deep=deep)


def load_yaml(path: Path) -> YamlDocument:
    """Read the mapping in ``path``, which may also be JSON where its name ends in ``.json``.

    Raises:
        StorageError: If the file is missing or unreadable.
        ConfigError: If it is not UTF-8, not YAML, not a mapping, too large or nested too deeply, repeats a key or
            carries a Python tag.
    """
    with storage_errors(path):
        if path.is_dir():
            raise ConfigError("this is a folder; a YAML file is needed", where=str(path))
        if not path.exists():
            raise ConfigError(
                "no such file", where=str(path), fix="Check the path, or start from a template://sft resource"
            )
        if not path.is_file():
            raise ConfigError("this is not a file", where=str(path))
        with path.open("rb") as file:
            raw = file.read(_MOST_BYTES + 1)
    if len(raw) > _MOST_BYTES:
        raise ConfigError(f"the file has more than {_MOST_BYTES:,} bytes, and settings are small", where=str(path))
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        raise ConfigError("not UTF-8", where=f"{path}:{line}", fix="Save the file as UTF-8") from error
    return parse_yaml(text, path)


def parse_yaml(text: str, path: Path) -> YamlDocument:
    """Parse ``text`` as ``load_yaml`` does; ``path`` only names it in errors."""
    try:
        values, lines = _from_json(text, path) if path.suffix.lower() == ".json" else _from_yaml(text, path)
    except RecursionError:
        raise ConfigError("it is nested too deeply", where=str(path)) from None
    if not isinstance(values, dict):
        raise ConfigError("the file must hold 'key: value' lines", where=str(path))
    require_sound(cast("object", values), str(path))
    return YamlDocument(path, {str(key): value for key, value in cast("dict[object, Any]", values).items()}, lines)


def _from_json(text: str, path: Path) -> tuple[object, dict[str, int]]:
    def pairs(found: list[tuple[str, Any]]) -> dict[str, Any]:
        values = dict(found)
        if len(values) < len(found):
            twice = next(key for index, (key, _) in enumerate(found) if key in dict(found[:index]))
            raise ConfigError(
                f"the key '{one_line(twice)[:80]}' is given twice", where=str(path), fix="Keep one of them"
            )
        return values

    try:
        values: object = json.loads(text, object_pairs_hook=pairs)
    except json.JSONDecodeError as error:
        raise ConfigError(f"not valid JSON: {error.msg}", where=f"{path}:{error.lineno}") from error
    except ValueError as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError("not valid JSON: a number has too many digits", where=str(path)) from error
    return values, {}


def _from_yaml(text: str, path: Path) -> tuple[object, dict[str, int]]:
    loader: Any = None
    try:
        loader = _StrictLoader(text)
        loader.name = str(path)
        node: yaml.Node | None = loader.get_single_node()
        require_bounded(node, _inside, str(path))
        values: object = loader.construct_document(node) if node else {}
    except yaml.constructor.ConstructorError as error:
        raise _constructor_error(error, path) from error
    except yaml.reader.ReaderError as error:
        line = text[: error.position].count("\n") + 1
        raise ConfigError(
            f"the character {one_line(chr(int(error.character)))} cannot stand in YAML",
            where=f"{path}:{line}",
            fix="Remove it",
        ) from error
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        raise ConfigError(
            f"not valid YAML: {one_line(error.problem or error.context or 'it cannot be read')[:200]}",
            where=f"{path}:{mark.line + 1}" if mark else str(path),
        ) from error
    except yaml.YAMLError as error:
        raise ConfigError(f"not valid YAML: {one_line(str(error))[:200]}", where=str(path)) from error
    finally:
        if loader is not None:
            loader.dispose()
    if isinstance(node, yaml.MappingNode):
        return values, {str(key.value): key.start_mark.line + 1 for key, _ in node.value}
    return None if node is None else values, {}


def _inside(node: Any) -> Iterable[yaml.Node]:
    if isinstance(node, yaml.MappingNode):
        return [part for pair in node.value for part in pair]
    return node.value if isinstance(node, yaml.SequenceNode) else ()


def _constructor_error(error: yaml.constructor.ConstructorError, path: Path) -> ConfigError:
    mark = error.problem_mark
    where = f"{path}:{mark.line + 1}" if mark else str(path)
    if "could not determine a constructor for the tag" in (error.problem or ""):
        tag = (error.problem or "").rsplit("'", 2)[-2]
        return ConfigError(f"the tag {tag} is not allowed", where=where, fix="Write plain values: text, numbers, lists")
    return ConfigError(f"not valid YAML: {one_line(error.problem or 'it cannot be read')[:200]}", where=where)


def shipped_yaml(folder: str, name: str) -> Any:
    """The content of a YAML file that comes with the package, such as ``doctrine``, ``rules.yaml``."""
    return quick_yaml((files(f"sota_ml_researcher.{folder}") / name).read_bytes())


def quick_yaml(text: str | bytes) -> Any:
    """The content of YAML that we wrote; libyaml, where it is there, reads it eight times faster."""
    return yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
