"""``ml-researcher config KIND``: every key of a kind's config, from the pydantic model that checks it."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from pkgutil import resolve_name
from typing import Any, cast

import yaml
from pydantic import BaseModel

from ..core.settings import KIND_KEY
from ..jobs.kinds import KINDS
from .run_command import config_model

_BOUNDS = {
    "minimum": "at least {}",
    "exclusiveMinimum": "above {}",
    "maximum": "at most {}",
    "exclusiveMaximum": "below {}",
    "minItems": "{} or more entries",
    "maxItems": "{} entries at most",
    "maxLength": "{} characters at most",
}
_NAMES = {"string": "text", "integer": "whole number", "boolean": "true or false", "object": "mapping"}


class Key(BaseModel):
    """One key: what it takes, its default (null may mean derived), the rule the default comes from, and its meaning.

    ``keys``: those of a mapping inside it.
    """

    name: str
    required: bool
    takes: str
    default: Any
    rule: str | None
    meaning: str
    keys: list[Key] = []


def keys_of(kind: str) -> list[Key]:
    """Every key of a kind's config, in the order of its model."""
    model = config_model(kind)
    rules: Mapping[str, str] = getattr(sys.modules[resolve_name(KINDS[kind].load).__module__], "DEFAULT_RULES", {})
    schema = model.model_json_schema(mode="validation")
    keys = list(_keys(schema, schema.get("$defs", {}), rules))
    for key in keys:
        field = model.model_fields[key.name]
        if field.default_factory:  # such a default is not in the schema
            key.default = field.get_default(call_default_factory=True)
    if kind == "reward_model":
        keys = [key.model_copy(update={"default": kind, "rule": None}) if key.name == "loss" else key for key in keys]
    return keys


def config_text(kind: str) -> str:
    """All of it as a YAML config to be filled in."""
    of = next(name for name, job in KINDS.items() if job.load == KINDS[kind].load)
    opening = (
        "# A key left out takes the value shown. Null may mean derived: the plan and the run's config.yaml show the\n"
        "# value and its rule. What a rule rests on stands in doctrine/rules.yaml; assistants read doctrine://RULE."
    )
    return "\n".join([opening, "", f"{KIND_KEY}: {of}", "", *(_block(key) for key in keys_of(kind))]) + "\n"


def _keys(schema: Mapping[str, Any], definitions: Mapping[str, Any], rules: Mapping[str, str]) -> Iterator[Key]:
    required = set(schema.get("required", ()))
    for name, found in schema.get("properties", {}).items():
        inner = [definitions[ref] for ref in _references(found)]
        yield Key(
            name=name,
            required=name in required,
            takes=_takes(found, definitions),
            default=found.get("default"),
            rule=rules.get(name),
            meaning=found.get("description", ""),
            keys=[key for one in inner if "properties" in one for key in _keys(one, definitions, {})],
        )


def _references(schema: object) -> list[str]:
    """The names of the definitions that a schema refers to, without looking into them."""
    if isinstance(schema, list):
        return [name for part in cast("list[Any]", schema) for name in _references(part)]
    if not isinstance(schema, dict):
        return []
    fields = cast("dict[str, Any]", schema)
    if "$ref" in fields:
        return [str(fields["$ref"]).rpartition("/")[2]]
    return [name for part in fields.values() for name in _references(part)]


def _takes(schema: Mapping[str, Any], definitions: Mapping[str, Any]) -> str:
    """What a value may be, in words: ``whole number, above 0, or null``."""
    if "$ref" in schema:
        return _takes(definitions[str(schema["$ref"]).rpartition("/")[2]], definitions)
    if "anyOf" in schema or "oneOf" in schema:
        branches = schema.get("anyOf", schema.get("oneOf", ()))
        options = list(dict.fromkeys(_takes(option, definitions) for option in branches))
        return ("; or " if any("," in option for option in options) else " or ").join(options)
    if "enum" in schema or "const" in schema:
        return " | ".join(map(str, schema.get("enum", [schema.get("const")])))
    kind = str(schema.get("type", "any value"))
    bounds = [words.format(schema[bound]) for bound, words in _BOUNDS.items() if bound in schema]
    if kind == "array":
        kind = _list(schema, definitions)
        bounds = [words for words in bounds if "prefixItems" not in schema]
    return ", ".join([_NAMES.get(kind, kind), *bounds])


def _list(schema: Mapping[str, Any], definitions: Mapping[str, Any]) -> str:
    if "prefixItems" in schema:
        return f"list of {len(schema['prefixItems'])}"
    return f"list of {_takes(schema.get('items', {}), definitions)}"


def _block(key: Key) -> str:
    rule = f"; rule {key.rule}" if key.rule else ""
    lines = [f"# {key.meaning}", f"# {key.takes}{rule}", *(f"#   {line}" for line in _inner(key))]
    value = "   # required" if key.required else f" {_yaml(key.default)}"
    return "\n".join([*lines, f"{key.name}:{value}", ""])


def _inner(key: Key) -> Iterator[str]:
    """The keys of a mapping, one per line, those of a mapping inside it below it."""
    for inner in key.keys:
        default = "required" if inner.required else f"default {_yaml(inner.default)}"
        yield f"{inner.name}: {'; '.join(filter(None, (inner.meaning, inner.takes, default)))}"
        yield from (f"  {line}" for line in _inner(inner))


def _yaml(value: Any) -> str:
    """A value on one line, as it would be written in a config."""
    plain: Any = json.loads(json.dumps(value))
    return yaml.safe_dump([plain], default_flow_style=True, allow_unicode=True, width=1_000_000).strip()[1:-1]
