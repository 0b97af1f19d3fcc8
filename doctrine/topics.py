"""The doctrine's pages for people and assistants: markdown with front matter, a table of all rules, and each rule."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from importlib.resources import files
from typing import Any, cast

import yaml

from ..core.errors import ConfigError, did_you_mean
from .rules import Rule, Source, Status, load_rules, rule

RULES_TOPIC = "rules"
_FENCE = "---\n"
_STATUS: Mapping[Status, str] = {
    "verified": "read in the source or its code",
    "secondary": "another source reports it",
    "recalled": "not confirmed",
    "disputed": "sources disagree, or only partly replicated",
    "chosen": "a practice of this project, with what motivates it",
}


@dataclass(frozen=True, slots=True)
class Topic:
    """One page.

    Attributes:
        name: What it is asked for by, such as ``lora``.
        title: Its title.
        description: What it holds, in one sentence.
        when_to_read: The question or moment it is for.
        size_bytes: Size of the text that ``read_topic`` returns, in UTF-8.
    """

    name: str
    title: str
    description: str
    when_to_read: str
    size_bytes: int


@cache
def topics() -> list[Topic]:
    """Every page by name, in alphabetical order, with the table of rules among them."""
    return [_topic(name) for name in sorted([*_page_names(), RULES_TOPIC])]


def read_topic(name: str) -> str:
    """The markdown of one page, front matter included; or everything about one rule, by its id.

    Raises:
        ConfigError: If there is no page and no rule of that name.
    """
    if name == RULES_TOPIC:
        return rules_table()
    if name in load_rules():
        return rule_page(name)
    known = _page_names()
    if name not in known:
        everything = sorted([*known, RULES_TOPIC])
        near = did_you_mean(name, [*everything, *load_rules()], cutoff=50.0)
        choices = f"Topics: {', '.join(everything)}, or a rule's id"
        raise ConfigError(f"there is no topic '{name}'", where="doctrine", fix=f"{near} {choices}".strip())
    return _text(name)


def front_matter(text: str) -> Mapping[str, Any]:
    """The mapping at the head of a page.

    Raises:
        ConfigError: If the page has none.
    """
    parts = text.split(_FENCE, 2)
    if len(parts) != 3 or parts[0]:
        raise ConfigError("the page has no front matter", where="doctrine")
    loaded: object = yaml.load(parts[1], Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    if not isinstance(loaded, dict):
        raise ConfigError("the front matter is not a mapping", where="doctrine")
    return cast("dict[str, Any]", loaded)


def rule_page(rule_id: str) -> str:
    """One rule with its value, conditions, note and full sources.

    Raises:
        ConfigError: If there is no rule of that id.
    """
    found = rule(rule_id)
    value = None if found.value is None else f"{_shown(found.value)} {found.unit}".strip()
    facts = (("value", value), ("when", found.when), ("note", found.note))
    lines = [
        f"# {found.id}",
        "",
        found.claim,
        "",
        *(f"- {name}: {text}" for name, text in facts if text),
        f"- confidence: {found.confidence}; status: {found.status}, {_STATUS[found.status]}",
        *(_citation(source) for source in found.sources),
    ]
    return "\n".join(lines) + "\n"


@cache
def rules_table() -> str:
    """All rules as one markdown table, with their sources below."""
    rules = load_rules().values()
    lines = [
        "# Rules",
        "",
        "Every number this server recommends, by the id that its answers name; `doctrine://ID` shows one rule alone. "
        f"Status: {'; '.join(f'{name}: {meaning}' for name, meaning in _STATUS.items())}.",
        "",
        "| id | claim | value | when | sources | sure |",
        "|---|---|---|---|---|---|",
        *(_row(each) for each in rules),
        "",
        "## Notes",
        "",
        *(f"- `{each.id}`: {each.note}" for each in rules if each.note),
        "",
        "## Sources",
        "",
        *(_citation(source) for source in {s.key: replace(s, section="") for r in rules for s in r.sources}.values()),
    ]
    return "\n".join(lines) + "\n"


def _row(row: Rule) -> str:
    value = "" if row.value is None else f"{_shown(row.value)} {row.unit}".strip()
    cited = "; ".join(f"{s.key}, {s.section}" if s.section else s.key for s in row.sources)
    cells = (f"`{row.id}`", row.claim, value, row.when, cited, f"{row.confidence}, {row.status}")
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _shown(value: object) -> str:
    if isinstance(value, Mapping):
        pairs = cast("Mapping[str, object]", value).items()
        return ", ".join(f"{key} {_shown(each)}" for key, each in pairs)
    if isinstance(value, tuple):
        return ", ".join(_shown(each) for each in cast("tuple[object, ...]", value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def _citation(source: Source) -> str:
    place = f", {source.section}" if source.section else ""
    return f"- {source.key}: {source.authors}, {source.title} ({source.year}){place}. {source.link}"


@cache
def _page_names() -> tuple[str, ...]:
    pages = files("sota_ml_researcher.doctrine").iterdir()
    return tuple(sorted(page.name.removesuffix(".md") for page in pages if page.name.endswith(".md")))


@cache
def _text(name: str) -> str:
    return (files("sota_ml_researcher.doctrine") / f"{name}.md").read_text(encoding="utf-8")


def _topic(name: str) -> Topic:
    text = read_topic(name)
    if name == RULES_TOPIC:
        head: Mapping[str, Any] = {
            "title": "Rules",
            "description": "Every recommended number with its conditions, source and confidence, by rule id",
            "when_to_read": "When an answer names a rule id",
        }
    else:
        head = front_matter(text)
    return Topic(
        name=name,
        title=head["title"],
        description=head["description"],
        when_to_read=head["when_to_read"],
        size_bytes=len(text.encode()),
    )
