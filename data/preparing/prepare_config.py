"""What `prepare_dataset` is asked for."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, Strict, field_validator, model_validator

from ...core.errors import ConfigError, did_you_mean
from ...core.paths import user_path
from ...core.settings import Settings, load_settings
from ..columns import Columns
from ..finding_kinds import KINDS
from ..mixtures import Sources, TrainFile, as_sources, resolved
from ..row_turns import as_fields
from ..sources import data_source

Method: TypeAlias = Literal["sft", "dpo", "rl"]
HeldOut: TypeAlias = Literal["val", "test"]
CARD = "card.json"
_MOST_CARD_BYTES = 16 * 2**20
REPEATS = ("exact_duplicate", "near_duplicate")
# Found by comparing with a file that is not there, or looked for in the first rows alone.
_NOT_REMOVED = {"in_val", "prompt_in_val", "in_benchmark", "not_round_trip", "repeated_pair"}
REMOVABLE = tuple(kind for kind in KINDS if kind not in _NOT_REMOVED)


class PrepareSettings(BaseModel):
    """From which rows to make which files. Everything but the output folder, so that a card of it can be run again."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    source: TrainFile
    columns: Columns | None = None
    method: Method | None = None
    base_model: str | None = None
    max_tokens: Annotated[int, Field(gt=0)] | None = None
    max_rows: Annotated[int, Field(gt=0)] | None = None
    drop: tuple[str, ...] | None = None
    benchmark_files: tuple[str, ...] = ()
    split: dict[HeldOut, Annotated[int, Strict()] | Annotated[float, Strict()]] = {}
    group_by: Annotated[str, Field(min_length=1)] | None = None
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0

    @field_validator("drop")
    @classmethod
    def _known(cls, kinds: tuple[str, ...] | None) -> tuple[str, ...] | None:
        for kind in kinds or ():
            if kind not in REMOVABLE:
                raise ValueError(
                    f"no finding '{kind}' to remove rows by. "
                    + (did_you_mean(kind, REMOVABLE) or f"There are: {', '.join(REMOVABLE)}")
                )
        return kinds

    @field_validator("split")
    @classmethod
    def _sizes(cls, split: dict[HeldOut, int | float]) -> dict[HeldOut, int | float]:
        for name, size in split.items():
            if not math.isfinite(size) or size <= 0 or (size >= 1 and size != int(size)):
                raise ValueError(f"{name}: {size:g} is neither a share between 0 and 1 nor a number of rows")
        if sum(size for size in split.values() if size < 1) >= 1:
            raise ValueError("the shares leave no rows for training")
        return split

    @model_validator(mode="after")
    def _tokens_of_a_model(self) -> PrepareSettings:
        if self.max_tokens is not None and self.base_model is None:
            raise ValueError("max_tokens counts tokens as a model sees them: give base_model too")
        return self

    def complete(self, method: Method) -> PrepareSettings:
        """The settings with what was left to the rows: pairs that differ in one answer alone are no repeats."""
        drop = (REPEATS[:1] if method == "dpo" else REPEATS) if self.drop is None else self.drop
        return self.model_copy(update={"method": method, "drop": drop})

    @property
    def benchmarks(self) -> list[Path]:
        """The test sets that no row may come from."""
        return [Path(name) for name in self.benchmark_files]

    @property
    def sources(self) -> Sources:
        """The sources with their columns."""
        return as_sources(self.source, self.columns)


def load_prepare_settings(given: Mapping[str, Any]) -> tuple[PrepareSettings, Mapping[str, Any]]:
    """Settings with absolute paths; where ``source`` is the card of an earlier folder, its own, and what else is given.

    Returns:
        The settings, and the card, or nothing.

    Raises:
        ConfigError: For what cannot be, with the setting.
    """
    card = _card_at(given.get("source"))
    values = {**given, **card["settings"], **{k: v for k, v in given.items() if k != "source"}} if card else given
    settings = load_settings(PrepareSettings, None, values, retired={}, default_rules={}, kinds=())
    return _absolute(settings), card


def _card_at(source: object) -> Mapping[str, Any]:
    """The card that a source names; a data file of that name is none."""
    path = user_path(source) if isinstance(source, str) else None
    if path is None or path.name != CARD or not path.is_file() or path.stat().st_size > _MOST_CARD_BYTES:
        return {}
    try:
        card = as_fields(json.loads(path.read_bytes()))
    except (ValueError, RecursionError):
        return {}
    return card if isinstance(card.get("settings"), dict) and "made_by" in card else {}


def _absolute(settings: Settings[PrepareSettings]) -> PrepareSettings:
    config = settings.config

    def path(name: str) -> Path:
        return data_source(name, where=settings.place("source"), bases=settings.bases).path

    benchmarks = tuple(
        str(data_source(name, where=settings.place("benchmark_files"), bases=settings.bases).path)
        for name in config.benchmark_files
    )
    config = config.model_copy(update={"benchmark_files": benchmarks})
    if isinstance(config.source, str):
        return config.model_copy(update={"source": str(path(config.source))})
    for source in config.source:
        if source.epochs is not None and source.epochs > 1:
            raise ConfigError(
                f"epochs {source.epochs:g} of {source.label}: a prepared file holds no row twice",
                where="source",
                fix="Repeat a source when it is trained: train_file takes epochs too",
            )
    return config.model_copy(update={"source": resolved(config.source, path, where="source")})
