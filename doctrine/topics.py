"""The doctrine's pages for people and assistants: markdown files with front matter, and a table of all rules."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any, cast

import yaml

from sota_ml_researcher.core.errors import ConfigError
from sota_ml_researcher.core.suggestions import did_you_mean
from sota_ml_researcher.doctrine.rules import Rule, Source, load_rules

RULES_TOPIC = "rules"
_FENCE = "---\n"


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
    """The markdown of one page, front matter included.

    Raises:
        ConfigError: If there is no page of that name.
    """
    if name == RULES_TOPIC:
        return rules_table()
    known = _page_names()
    if name not in known:
        everything = sorted([*known, RULES_TOPIC])
        near = did_you_mean(name, everything, cutoff=50.0)
        choices = f"Topics: {', '.join(everything)}"
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


@cache
def rules_table() -> str:
    """All rules as one markdown table, with their sources below."""
    rules = load_rules().values()
    lines = [
        "# Rules",
        "",
        "Every number this server recommends, by the id that its answers name. Status: verified (read in the source or "
        "its code), secondary (others report it), recalled (not confirmed), disputed (sources disagree).",
        "",
        "| id | claim | value | when | sources | sure |",
        "|---|---|---|---|---|---|",
        *(_row(rule) for rule in rules),
        "",
        "## Notes",
        "",
        *(f"- `{rule.id}`: {rule.note}" for rule in rules if rule.note),
        "",
        "## Sources",
        "",
        *(_citation(source) for source in {s.key: s for rule in rules for s in rule.sources}.values()),
    ]
    return "\n".join(lines) + "\n"


def _row(rule: Rule) -> str:
    value = "" if rule.value is None else f"{_shown(rule.value)} {rule.unit}".strip()
    cited = "; ".join(f"{s.key}, {s.section}" if s.section else s.key for s in rule.sources)
    cells = (f"`{rule.id}`", rule.claim, value, rule.when, cited, f"{rule.confidence}, {rule.status}")
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _shown(value: object) -> str:
    if isinstance(value, Mapping):
        pairs = cast("Mapping[str, object]", value).items()
        return ", ".join(f"{key} {_shown(each)}" for key, each in pairs)
    if isinstance(value, tuple):
        return ", ".join(_shown(each) for each in cast("tuple[object, ...]", value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def _citation(source: Source) -> str:
    link = f" {source.link}" if source.link else ""
    return f"- {source.key}: {source.authors}, {source.title} ({source.year}).{link}"


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
