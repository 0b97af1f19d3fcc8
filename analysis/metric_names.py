"""The names under which quantities are logged, from ``metric_names.yaml``."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache
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
STEP_NAMES = (
    *("step", "global_step", "train/global_step", "training/global_step", "trainer/global_step", "current_steps"),
    *("global_step/max_steps", "_step", "steps", "iteration", "iter", "batch"),
)
# What a row of a file with several runs says it belongs to.
RUN_NAMES = ("run_id", "run_name", "job_id", "run")
KNOWN = frozenset(name for names in ALIASES.values() for name in names) | frozenset(STEP_NAMES)
# A chart exported by Weights & Biases: "run - metric", and the same metric's lowest and highest values.
_CHART = re.compile(r"(?P<run>.+) - (?P<metric>.+)")
_CHART_BOUNDS = ("__MIN", "__MAX")


def _plain(name: str) -> str:
    return re.sub(r"[\s-]+", "_", name.strip().lower())


_BY_PLAIN_NAME: Mapping[str, str] = {_plain(name): name for name in sorted(KNOWN)}


@cache
def known_name(column: str) -> tuple[str, str]:
    """The known name of a column, and the run that a chart's column names; both empty where nothing is known.

    Capitals, blanks and hyphens do not count: ``Training Loss`` is ``training_loss``.
    """
    if column.endswith(_CHART_BOUNDS):
        return "", ""
    name = column if column in KNOWN else _BY_PLAIN_NAME.get(_plain(column), "")
    chart = None if name else _CHART.fullmatch(column.strip())
    if chart is None:
        return name, ""
    return known_name(chart["metric"])[0], chart["run"].strip()
