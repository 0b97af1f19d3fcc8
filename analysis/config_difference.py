"""How the settings of several runs differ, and which runs are the same but for their seed."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from ..doctrine.rules import number
from ..jobs import run_files
from .runs import Run

# Settings that say how a run is kept and watched, not how it trains.
_KEPT = frozenset(
    "run_name output_dir max_cost_usd checkpoint_every checkpoint_ttl_hours eval_every hypothesis primary_metric "
    "stop_rule base_url skip_bad_rows".split()
)
_SEED = "seed"


@dataclass(frozen=True, slots=True)
class ConfigDifference:
    """What differs between runs.

    Attributes:
        changed: For each setting that differs (the seed apart) its value in each run, None where a run has none.
        seeds: The seed of each run.
        unknown: Names of the runs whose settings are not known.
        groups: Indices of runs that are equal but for their seed, in order of the first of each.
    """

    changed: dict[str, tuple[Any, ...]]
    seeds: tuple[Any, ...]
    unknown: tuple[str, ...]
    groups: tuple[tuple[int, ...], ...]

    @property
    def confounded(self) -> bool:
        """Whether more settings changed than show a cause."""
        return len(self.changed) > number("diagnosis.confounded")

    @property
    def shown(self) -> dict[str, list[str]]:
        """``changed`` with each value as text."""
        return {key: [_text(value) for value in values] for key, values in self.changed.items()}

    def lines(self, names: Sequence[str]) -> list[str]:
        """Each difference in words."""
        return [
            f"{key}: " + ", ".join(f"{name} {_short(text)}" for name, text in zip(names, texts, strict=True))
            for key, texts in self.shown.items()
        ]


def config_difference(runs: Sequence[Run]) -> ConfigDifference:
    """Compare the settings of runs, and the contents of their data files."""
    facts = [_facts(run) for run in runs]
    with_config = [i for i, run in enumerate(runs) if run.config]
    keys = sorted({key for i in with_config for key in facts[i]} - {_SEED})
    changed = {
        key: tuple(facts[i].get(key) for i in range(len(runs)))
        for key in keys
        if len({_frozen(facts[i].get(key)) for i in with_config}) > 1
    }
    groups: dict[str, list[int]] = {}
    for i in range(len(runs)):
        mark = _frozen({k: v for k, v in facts[i].items() if k != _SEED}) if i in with_config else f"unknown {i}"
        groups.setdefault(mark, []).append(i)
    return ConfigDifference(
        changed,
        tuple(run.config.get(_SEED) for run in runs),
        tuple(run.name for run in runs if not run.config),
        tuple(tuple(group) for group in groups.values()),
    )


def _facts(run: Run) -> dict[str, Any]:
    facts = {k: v for k, v in run.config.items() if k not in _KEPT}
    for key in ("train_file", "val_file"):
        content = _content(run, facts.get(key))
        if content is not None:
            # The same rows under another name are the same data.
            facts[key] = content
    return facts


def _content(run: Run, name: Any) -> str | None:
    """The file's name and the start of its SHA-256, as noted when the run began; of each source with its amount."""
    if isinstance(name, list):
        sources = [_source(run, source) for source in cast("list[Any]", name)]
        return None if None in sources else " + ".join(map(str, sources))
    try:
        environment: Any = json.loads((run.file.parent / run_files.ENVIRONMENT).read_bytes())
        return f"{Path(str(name)).name}@{environment['data'][str(name)]['sha256'][:8]}"
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _source(run: Run, source: Any) -> str | None:
    fields = cast("dict[str, Any]", source) if isinstance(source, dict) else {}
    content = _content(run, fields.get("path"))
    if content is None:
        return None
    amounts = "".join(f" ({key} {fields[key]:g})" for key in ("weight", "rows", "epochs") if key in fields)
    return content + amounts + (f" (columns {_frozen(fields['columns'])})" if "columns" in fields else "")


def _frozen(value: Any) -> str:
    return json.dumps(value, sort_keys=True, default=str)


def _text(value: Any) -> str:
    return "unset" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def _short(text: str) -> str:
    return text if len(text) <= 40 else text[:37] + "…"
