"""Reading YAML: what a person wrote, strictly and with the line of every key at hand, and our own, quickly."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any, cast

import yaml

from .errors import ConfigError
from .files import storage_errors


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
    """SafeLoader that refuses a key given twice: YAML would silently keep the last."""

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
    """Read the mapping in ``path``.

    Raises:
        StorageError: If the file is missing or unreadable.
        ConfigError: If it is not UTF-8, not YAML, not a mapping, repeats a key or carries a Python tag.
    """
    if path.is_dir():
        raise ConfigError("this is a folder; a YAML file is needed", where=str(path))
    if not path.exists():
        raise ConfigError(
            "no such file", where=str(path), fix="Check the path, or start from a template://sft resource"
        )
    with storage_errors(path):
        raw = path.read_bytes()
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        raise ConfigError("not UTF-8", where=f"{path}:{line}", fix="Save the file as UTF-8") from error
    return parse_yaml(text, path)


def parse_yaml(text: str, path: Path) -> YamlDocument:
    """Parse ``text`` as ``load_yaml`` does; ``path`` only names it in errors."""
    loader: Any = _StrictLoader(text)
    loader.name = str(path)
    try:
        node: yaml.Node | None = loader.get_single_node()
        data: object = loader.construct_document(node) if node else {}
    except yaml.constructor.ConstructorError as error:
        raise _constructor_error(error, path) from error
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        raise ConfigError(
            f"not valid YAML: {error.problem or error.context}", where=f"{path}:{mark.line + 1}" if mark else str(path)
        ) from error
    except yaml.YAMLError as error:
        raise ConfigError(f"not valid YAML: {error}", where=str(path)) from error
    finally:
        loader.dispose()
    if not isinstance(node, yaml.MappingNode) or not isinstance(data, dict):
        raise ConfigError("the file must hold 'key: value' lines", where=str(path))
    lines = {str(key.value): key.start_mark.line + 1 for key, _ in node.value}
    values = cast("dict[object, Any]", data)
    return YamlDocument(path, {str(key): value for key, value in values.items()}, lines)


def _constructor_error(error: yaml.constructor.ConstructorError, path: Path) -> ConfigError:
    mark = error.problem_mark
    where = f"{path}:{mark.line + 1}" if mark else str(path)
    if "could not determine a constructor for the tag" in (error.problem or ""):
        tag = (error.problem or "").rsplit("'", 2)[-2]
        return ConfigError(f"the tag {tag} is not allowed", where=where, fix="Write plain values: text, numbers, lists")
    return ConfigError(f"not valid YAML: {error.problem}", where=where)


def shipped_yaml(folder: str, name: str) -> Any:
    """The content of a YAML file that comes with the package, such as ``doctrine``, ``rules.yaml``."""
    return quick_yaml((files(f"sota_ml_researcher.{folder}") / name).read_bytes())


def quick_yaml(text: str | bytes) -> Any:
    """The content of YAML that we wrote; libyaml, where it is there, reads it eight times faster."""
    return yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
