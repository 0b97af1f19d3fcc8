"""The rules of ``doctrine/rules.yaml``: every number we recommend, its conditions, its source and how sure we are.

Light on purpose: the server reads them on the first tool call. The schema of both files is held by tests.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from importlib.resources import files
from types import MappingProxyType
from typing import Any, Literal, cast

import yaml

from ..core.errors import ConfigError, did_you_mean

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
        value: The number, list, mapping or word; None where the claim has none.
        unit: What the value counts; may be empty.
        when: The conditions under which the claim holds; empty means always.
        references: ``key`` or ``key: section`` of each source, never empty; the first carries the claim.
        confidence: How far to trust it.
        status: ``verified`` against the source, ``secondary`` (a source that reports it), ``recalled`` (not confirmed),
            ``disputed`` (sources disagree, or only partly replicated: ``note`` says how), ``chosen`` (a threshold or
            practice of this project, with the source that motivates it).
        informational: Whether no program reads the value: it is there for people.
        note: What a careful reader should know besides; may be empty.
    """

    id: str
    claim: str
    value: RuleValue
    unit: str
    when: str
    references: tuple[str, ...]
    confidence: Confidence
    status: Status
    informational: bool
    note: str

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
    return MappingProxyType({rule_id: _rule(rule_id, row) for rule_id, row in _read("rules.yaml").items()})


@cache
def load_sources() -> Mapping[str, Source]:
    """Every source by its short name, without a section. Read once per process."""
    return MappingProxyType({key: Source(key=key, **row) for key, row in _read("sources.yaml").items()})


def rule(rule_id: str) -> Rule:
    """One rule.

    Raises:
        ConfigError: If there is no rule of that id.
    """
    found = load_rules().get(rule_id)
    if found is None:
        fix = did_you_mean(rule_id, load_rules(), cutoff=60.0)
        raise ConfigError(f"there is no rule '{rule_id}'", fix=fix or "Read doctrine://rules for the list")
    return found


def _read(name: str) -> dict[str, dict[str, Any]]:
    text = (files("sota_ml_researcher.doctrine") / name).read_bytes()
    return yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))


def _rule(rule_id: str, row: Mapping[str, Any]) -> Rule:
    return Rule(
        id=rule_id,
        claim=row["claim"],
        value=_frozen(row.get("value")),
        unit=row.get("unit", ""),
        when=row.get("when", ""),
        references=tuple(row["sources"]),
        confidence=row["confidence"],
        status=row["status"],
        informational=row.get("informational", False),
        note=row.get("note", ""),
    )


def _cited(reference: str) -> Source:
    key, _, section = reference.partition(": ")
    return replace(load_sources()[key], section=section)


def _frozen(value: Any) -> RuleValue:
    if isinstance(value, list):
        return tuple(cast("list[Any]", value))
    return MappingProxyType(cast("dict[str, Any]", value)) if isinstance(value, dict) else value


def number(rule_id: str) -> float:
    """A rule's value, which must be one number."""
    value: object = rule(rule_id).value
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"rule {rule_id} must hold one number, got {value!r}")
    return float(value)


def integer(rule_id: str) -> int:
    """A rule's value as a whole number."""
    return int(number(rule_id))
