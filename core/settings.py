"""From a YAML file and inline overrides to one checked config that records the origin of every value."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from .errors import ConfigError
from .validation import known_names, problems_of, require_sound
from .yaml_loading import YamlDocument, load_yaml

ConfigT = TypeVar("ConfigT", bound=BaseModel)
OriginKind = Literal["file", "override", "default", "derived"]


class Origin(BaseModel, frozen=True):
    """Where one setting's value came from."""

    kind: OriginKind
    rule: str | None = None
    reason: str = ""

    def __str__(self) -> str:
        rule = f" ({self.rule})" if self.rule else ""
        return f"{self.kind}{rule}{': ' + self.reason if self.reason else ''}"


@dataclass(frozen=True, slots=True)
class Settings(Generic[ConfigT]):
    """A checked config, the origin of each value, and a way to name a key's place in an error."""

    config: ConfigT
    origins: Mapping[str, Origin]
    document: YamlDocument | None

    def place(self, key: str) -> str:
        """``sft.yaml:12: key`` where it came from a file, else the key."""
        from_file = self.document is not None and self.origins.get(key, _UNSET).kind == "file"
        return self.document.place(key) if from_file and self.document else key

    def derived(self, changes: Mapping[str, tuple[Any, Origin]]) -> Settings[ConfigT]:
        """The same settings with derived values filled in."""
        config = self.config.model_copy(update={key: value for key, (value, _) in changes.items()})
        return Settings(config, {**self.origins, **{key: o for key, (_, o) in changes.items()}}, self.document)

    def data_file(self, key: str, name: str) -> Path:
        """The absolute path of a file: ``demo:NAME``, absolute, beside the config file, or below the current folder.

        Rows may come from the hub, too: see `data.sources.data_source`.

        Raises:
            ConfigError: If there is no such file in any of these places.
        """
        from .paths import find_file

        where = self.place(key)
        found, looked_at = find_file(name, self.bases, where=where)
        if found is None:
            raise ConfigError(f"no such file: {name} (looked at {looked_at})", where=where, fix="Check the path")
        return found

    @property
    def bases(self) -> list[Path]:
        """The folders in which a relative path is looked for, in order."""
        beside = [self.document.path.parent.resolve()] if self.document else []
        return list(dict.fromkeys([*beside, Path.cwd()]))


_UNSET = Origin(kind="default")
# In a config it says what kind of job it is for.
KIND_KEY = "kind"


def load_settings(
    model: type[ConfigT],
    config_file: Path | None,
    overrides: Mapping[str, Any] | None,
    *,
    retired: Mapping[str, str],
    default_rules: Mapping[str, str],
    kinds: Collection[str],
    renamed: Mapping[str, str] | None = None,
) -> Settings[ConfigT]:
    """Read and check a config.

    Args:
        model: The pydantic model of this kind of job.
        config_file: A YAML file, or None when everything is in ``overrides``.
        overrides: Settings that win over the file's.
        retired: Keys of older files and, for each, what to do instead.
        default_rules: For each key with a default from the doctrine, the rule's id.
        kinds: The kinds of job that may stand in the file's key ``kind``, which says what the config is for.
        renamed: Keys of older files, and the key that each is now.

    Raises:
        ConfigError: For the first problem, with its file and line, and all further ones in the same message.
    """
    document = load_yaml(config_file) if config_file else None
    overrides = overrides or {}
    require_sound(overrides, "overrides")
    if document and renamed:
        data, lines = _renamed(document.data, renamed, document.place), _renamed(document.lines, renamed, str)
        document = YamlDocument(document.path, data, lines)
    overrides = _renamed(overrides, renamed or {}, str)
    values = {**(document.data if document else {}), **overrides}
    _check_kind(values.pop(KIND_KEY, None), kinds, document)
    origins = {key: Origin(kind="override" if key in overrides else "file") for key in values}
    fields = set(model.model_fields)

    def place(key: str) -> str:
        return document.place(key) if document and key not in overrides else key

    problems = [_unknown_key(key, place(key), fields, retired) for key in values if key not in fields]
    if not problems:
        try:
            config = model.model_validate(values)
        except ValidationError as error:
            problems = problems_of(error.errors(include_url=False), model, values, place)
        else:
            origins |= {key: Origin(kind="default", rule=default_rules.get(key)) for key in fields - set(values)}
            return Settings(config, origins, document)
    first, *rest = problems
    if rest:
        first = ConfigError("; ".join([str(first).rstrip("."), *(str(p).rstrip(".") for p in rest)]))
    raise first


def _check_kind(named: object, kinds: Collection[str], document: YamlDocument | None) -> None:
    if named is not None and named not in kinds:
        where = document.place(KIND_KEY) if document and KIND_KEY in document.data else KIND_KEY
        raise ConfigError(f"this is a config for '{named}', and {' or '.join(kinds)} is to be started", where=where)


def _unknown_key(key: str, where: str, fields: set[str], retired: Mapping[str, str]) -> ConfigError:
    if key in retired:
        return ConfigError("this key is no longer used", where=where, fix=retired[key])
    return ConfigError("unknown key", where=where, fix=known_names(key, fields))


def _renamed(values: Mapping[str, Any], renamed: Mapping[str, str], place: Callable[[str], str]) -> dict[str, Any]:
    for old, new in renamed.items():
        if old in values and new in values:
            raise ConfigError(f"{old} is the earlier name of {new}, and both are given", where=place(old))
    return {renamed.get(key, key): value for key, value in values.items()}


def render_config(config: BaseModel, origins: Mapping[str, Origin]) -> str:
    """The resolved config as YAML that can be run again, each line ending in where its value came from."""
    lines: list[str] = []
    for key, value in config.model_dump(mode="json").items():
        # A flow list of one item: the only form in which every kind of value stays on one line.
        inline = yaml.safe_dump([value], default_flow_style=True, allow_unicode=True, width=1_000_000).strip()[1:-1]
        lines.append(f"{key}: {inline}  # {origins.get(key, _UNSET)}")
    return "\n".join(lines) + "\n"
