"""The names under which quantities are logged, from ``metric_names.yaml``."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.resources import files

import yaml
from pydantic import BaseModel, TypeAdapter


class _Quantity(BaseModel):
    label: str | None = None
    names: tuple[str, ...]


def _quantities() -> dict[str, _Quantity]:
    text = (files("sota_ml_researcher.analysis") / "metric_names.yaml").read_text(encoding="utf-8")
    return TypeAdapter(dict[str, _Quantity]).validate_python(yaml.safe_load(text))


_QUANTITIES = _quantities()
# For each quantity the names it is logged under; the first one present in a run is taken.
ALIASES: Mapping[str, tuple[str, ...]] = {key: quantity.names for key, quantity in _QUANTITIES.items()}
# What a plot calls a quantity, with its unit.
LABELS: Mapping[str, str] = {key: quantity.label for key, quantity in _QUANTITIES.items() if quantity.label}
STEP_NAMES = ("step", "global_step", "train/global_step", "_step", "iteration", "iter", "batch")
# What a row of a file with several runs says it belongs to.
RUN_NAMES = ("run_id", "run_name", "job_id", "run")
KNOWN = frozenset(name for names in ALIASES.values() for name in names) | frozenset(STEP_NAMES)
