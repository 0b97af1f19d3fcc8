"""Tinker's models as a dated table: names, sizes, renderers, LoRA counts, retirements. Read on first use.

``model_catalog.yaml`` is generated from the installed cookbook (``scripts/make_model_catalog.py``);
``model_facts.yaml`` is kept by hand and holds what the cookbook does not say, each with its source.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, date, datetime
from functools import cache
from typing import Any

from pydantic import BaseModel, ConfigDict

from ..core.yaml_loading import shipped_yaml


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True)


class ComponentCounts(_Frozen):
    """LoRA parameters by the part of the model they adapt; the names are those of ``apply_to``."""

    mlp: int
    attn: int
    unembed: int

    @property
    def total(self) -> int:
        """The sum of the three."""
        return self.mlp + self.attn + self.unembed


class CatalogEntry(_Frozen):
    """One model of the platform.

    Attributes:
        name: Its id, without a variant suffix such as ``:peft:262144``.
        hidden_size: Width of the residual stream.
        lora_per_rank: The platform's LoRA parameters at rank 1, or None where the cookbook has no count.
        renderers: Cookbook renderers made for it, the recommended one first.
        context_length: Tokens the platform takes, or None if unknown here (ask the service).
        max_rank: Largest LoRA rank the platform takes, or None if unknown here.
        retired: The day it left the platform, or will leave it; None if no retirement is known here.
        replacement: What the platform recommends instead of it, where known.
        price: Always None: prices change too often for a table (see the prices file or the platform's page).
        config: The keys of its ``config.json`` that decide LoRA shapes, where known.
    """

    name: str
    organization: str
    version: str
    size: str
    chat: bool
    vision: bool
    audio: bool
    hidden_size: int
    lora_per_rank: ComponentCounts | None
    renderers: tuple[str, ...]
    context_length: int | None = None
    max_rank: int | None = None
    retired: date | None = None
    replacement: str | None = None
    price: None = None
    config: Mapping[str, Any] | None = None


class ModelCatalog(_Frozen):
    """The table, the day it was made, and where from."""

    as_of: date
    source: str
    models: tuple[CatalogEntry, ...]


def base_name(name: str) -> str:
    """The id without the platform's variant suffix: ``org/model:peft:262144`` is ``org/model``."""
    return name.split(":", 1)[0]


def catalog_entry(name: str) -> CatalogEntry | None:
    """The model called ``name`` (a variant suffix is ignored), or None."""
    return _by_name().get(base_name(name))


def retirement_note(name: str, today: date | None = None) -> str | None:
    """That hosted Tinker has retired a model, or will, and what to take instead; None if no retirement is known.

    Args:
        name: The platform's id; a variant suffix is ignored.
        today: The day it is asked for; None takes this machine's.
    """
    entry = catalog_entry(name)
    if entry is None or entry.retired is None:
        return None
    today = today or datetime.now(UTC).date()
    left = (entry.retired - today).days
    when = f"retired {entry.name} on {entry.retired}" if left <= 0 else f"retires {entry.name} on {entry.retired}"
    soon = f", in {left} day{'s' if left > 1 else ''}" if left > 0 else ""
    instead = entry.replacement or "a model that list_models shows"
    return f"Tinker {when}{soon}: take {instead} instead"


@cache
def load_catalog() -> ModelCatalog:
    """The whole table, with the facts kept by hand merged in."""
    generated, facts = shipped_yaml("models", "model_catalog.yaml"), shipped_yaml("models", "model_facts.yaml")

    def by_model(group: str, value: str) -> Mapping[str, Any]:
        return {name: row[value] for row in facts[group] for name in row["models"]}

    retired, contexts = by_model("retirements", "retired"), by_model("contexts", "tokens")
    configs, replacements = by_model("configs", "config"), by_model("replacements", "replacement")
    models = tuple(
        CatalogEntry(
            **row,
            retired=retired.get(name),
            replacement=replacements.get(name),
            context_length=contexts.get(name),
            config=configs.get(name),
        )
        for row in generated["models"]
        for name in (row["name"],)
    )
    return ModelCatalog(as_of=generated["as_of"], source=generated["source"], models=models)


@cache
def config_defaults() -> Mapping[str, Mapping[str, int]]:
    """For each model type, what transformers assumes where a ``config.json`` leaves a key out."""
    return shipped_yaml("models", "model_defaults.yaml")


@cache
def _by_name() -> Mapping[str, CatalogEntry]:
    return {entry.name: entry for entry in load_catalog().models}
