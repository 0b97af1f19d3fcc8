"""The rules of doctrine/rules.yaml, by id."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from importlib.resources import files

import yaml


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule: its id and its value."""

    id: str
    value: object


@cache
def load_rules() -> dict[str, Rule]:
    """Every rule by id."""
    text = (files("sota_ml_researcher.doctrine") / "rules.yaml").read_text(encoding="utf-8")
    return {row["id"]: Rule(row["id"], row["value"]) for row in yaml.safe_load(text)}


def rule(rule_id: str) -> Rule:
    """The rule called ``rule_id``."""
    return load_rules()[rule_id]
