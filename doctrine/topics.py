"""The doctrine's pages for people and assistants: markdown with front matter, a table of all rules, and each rule."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from importlib.resources import files
from typing import Any, cast

from ..core.errors import ConfigError, did_you_mean
from ..core.yaml_loading import quick_yaml
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
    if name not in _page_names():
        everything = sorted([*_page_names(), RULES_TOPIC])
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
    loaded: object = quick_yaml(parts[1])
    if not isinstance(loaded, dict):
        raise ConfigError("the front matter is not a mapping", where="doctrine")
    return cast("dict[str, Any]", loaded)


def rule_page(rule_id: str) -> str:
    """One rule with its value, conditions, note and full sources.

    Raises:
        ConfigError: If there is no rule of that id.
    """
    this = rule(rule_id)
    facts = (("value", _value(this)), ("when", this.when), ("note", this.note))
    lines = [
        f"# {this.id}",
        "",
        this.claim,
        "",
        *(f"- {name}: {text}" for name, text in facts if text),
        f"- confidence: {this.confidence}; status: {this.status}, {_STATUS[this.status]}",
        *(_citation(source) for source in this.sources),
    ]
    return "\n".join(lines) + "\n"


@cache
def rules_table() -> str:
    """All rules as one markdown table, with their sources below."""
    rules = load_rules().values()
    lines = [
        "# Rules",
        "",
        "Every number this server recommends, by the id that its answers name; `doctrine://ID` shows one rule alone, "
        "with its notes: who disagrees, and what was not read in the source. "
        f"Status: {'; '.join(f'{name}: {meaning}' for name, meaning in _STATUS.items())}.",
        "",
        "| id | claim | value | when | sources | sure |",
        "|---|---|---|---|---|---|",
        *(_row(each) for each in rules),
        "",
        "## Sources",
        "",
        *(_citation(source) for source in {s.key: replace(s, section="") for r in rules for s in r.sources}.values()),
    ]
    return "\n".join(lines) + "\n"


def _value(row: Rule) -> str:
    return "" if row.value is None else f"{_plain(row.value)} {row.unit}".strip()


def _row(row: Rule) -> str:
    cited = "; ".join(f"{s.key}, {s.section}" if s.section else s.key for s in row.sources)
    cells = (f"`{row.id}`", row.claim, _value(row), row.when, cited, f"{row.confidence}, {row.status}")
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _plain(value: object) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_plain(each)}" for key, each in cast("Mapping[str, object]", value).items())
    if isinstance(value, tuple):
        return ", ".join(_plain(each) for each in cast("tuple[object, ...]", value))
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
