"""The rules of ``doctrine/rules.yaml``: every number we recommend, its conditions, its source and how sure we are.

They are read on the first tool call. Tests check the schema of both files.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from types import MappingProxyType
from typing import Any, Literal, cast

from ..core.errors import ConfigError, did_you_mean
from ..core.yaml_loading import shipped_yaml

Confidence = Literal["high", "medium", "low"]
Status = Literal["verified", "secondary", "recalled", "disputed", "chosen"]
RuleValue = float | int | bool | str | tuple[Any, ...] | Mapping[str, Any] | None


@dataclass(frozen=True, slots=True)
class Source:
    """Where a claim comes from.

    Attributes:
        key: Its short name in sources.yaml.
        authors: Who wrote it.
        title: Its title.
        year: The year it was published.
        link: An https address of the original.
        section: The section, equation, table or function that carries the claim; may be empty.
    """

    key: str
    authors: str
    title: str
    year: int
    link: str
    section: str = ""


@dataclass(frozen=True, slots=True)
class Rule:
    """One claim, with the number a program can use.

    Attributes:
        id: Dotted name, such as ``lora.lr.base``.
        claim: One sentence.
        references: ``key`` or ``key: section`` of each source, never empty; the first carries the claim.
        confidence: How far to trust it.
        status: ``verified`` against the source, ``secondary`` (a source that reports it), ``recalled`` (not confirmed),
            ``disputed`` (sources disagree, or only partly replicated: ``note`` says how), ``chosen`` (a threshold or
            practice of this project, with the source that motivates it).
        value: The number, list, mapping or word; None where the claim has none.
        unit: What the value counts; may be empty.
        when: The conditions under which the claim holds; empty means always.
        informational: Whether no program reads the value: it is there for people.
        note: What a careful reader should know besides; may be empty.
    """

    id: str
    claim: str
    references: tuple[str, ...]
    confidence: Confidence
    status: Status
    value: RuleValue = None
    unit: str = ""
    when: str = ""
    informational: bool = False
    note: str = ""

    @property
    def sources(self) -> tuple[Source, ...]:
        """The sources in full; the first carries the claim, others support or dispute it."""
        return tuple(_cited(reference) for reference in self.references)

    @property
    def source(self) -> Source:
        """The source that carries the claim."""
        return _cited(self.references[0])


@cache
def load_rules() -> Mapping[str, Rule]:
    """Every rule by id, in the order of the file. Read once per process."""
    rows: Mapping[str, Mapping[str, Any]] = shipped_yaml("doctrine", "rules.yaml")
    return MappingProxyType({rule_id: _rule(rule_id, **row) for rule_id, row in rows.items()})


@cache
def load_sources() -> Mapping[str, Source]:
    """Every source by its short name, without a section. Read once per process."""
    rows: Mapping[str, Mapping[str, Any]] = shipped_yaml("doctrine", "sources.yaml")
    return MappingProxyType({key: Source(key=key, **row) for key, row in rows.items()})


def rule(rule_id: str) -> Rule:
    """One rule.

    Raises:
        ConfigError: If there is no rule of that id.
    """
    if rule_id not in load_rules():
        fix = did_you_mean(rule_id, load_rules(), cutoff=60.0)
        raise ConfigError(f"there is no rule '{rule_id}'", fix=fix or "Read doctrine://rules for the list")
    return load_rules()[rule_id]


def _rule(rule_id: str, *, sources: Sequence[str], value: Any = None, **rest: Any) -> Rule:
    return Rule(id=rule_id, references=tuple(sources), value=_frozen(value), **rest)


def _cited(reference: str) -> Source:
    key, _, section = reference.partition(": ")
    return replace(load_sources()[key], section=section)


def _frozen(value: Any) -> RuleValue:
    if isinstance(value, list):
        return tuple(cast("list[Any]", value))
    return MappingProxyType(cast("dict[str, Any]", value)) if isinstance(value, dict) else value


def number(rule_id: str) -> float:
    """A rule's value, which must be one number.

    Raises:
        ConfigError: If there is no rule of that id.
        TypeError: If its value is not a number.
    """
    value: object = rule(rule_id).value
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"rule {rule_id} must hold one number, got {value!r}")
    return float(value)


def integer(rule_id: str) -> int:
    """A rule's value as a whole number."""
    return int(number(rule_id))
