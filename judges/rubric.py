"""What a judge looks for: criteria with weights and anchored scales, from YAML."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from importlib.resources import as_file, files
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from ..core.errors import ConfigError, did_you_mean
from ..core.yaml_loading import load_yaml


class Criterion(BaseModel):
    """One thing to score, on a scale of whole numbers, some of which are described."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,39}$")] = Field(description="lower case, used as a key")
    question: str = Field(min_length=1, description="What to look at")
    weight: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1.0
    anchors: Mapping[int, str] = Field(description="What each score means; at least its lowest and highest")

    @field_validator("anchors")
    @classmethod
    def _two_anchors(cls, value: Mapping[int, str]) -> Mapping[int, str]:
        if len(value) < 2:
            raise ValueError("anchors must describe at least two scores, such as 1 and 5")
        return dict(sorted(value.items()))

    @property
    def low(self) -> int:
        """The lowest score."""
        return min(self.anchors)

    @property
    def high(self) -> int:
        """The highest score."""
        return max(self.anchors)


class Rubric(BaseModel):
    """What a judge looks for: criteria, each with a weight and its own scale."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    instructions: str = Field("", description="What the answers are for, and what else the judge should know")
    use_reference: bool = Field(True, description="Show the judge the reference answer where there is one")
    criteria: tuple[Criterion, ...] = Field(min_length=1)

    @field_validator("criteria")
    @classmethod
    def _distinct(cls, value: tuple[Criterion, ...]) -> tuple[Criterion, ...]:
        names = [c.name for c in value]
        twice = next((n for n in names if names.count(n) > 1), None)
        if twice:
            raise ValueError(f"the criterion '{twice}' is given twice")
        return value

    def weighted(self, scores: Mapping[str, float]) -> float:
        """The weighted mean of scores, each scaled to 0..1 on its own anchors."""
        total = sum(c.weight for c in self.criteria)
        return sum(c.weight * (scores[c.name] - c.low) / (c.high - c.low) for c in self.criteria) / total


@cache
def default_rubric() -> Rubric:
    """The shipped rubric, for answers to any kind of question."""
    with as_file(files("sota_ml_researcher.judges") / "default_rubric.yaml") as path:
        return load_rubric(path)


def load_rubric(file: str | Path | None) -> Rubric:
    """The rubric in a YAML file, or the default one.

    Raises:
        ConfigError: If a key is unknown, or there are no criteria, or one is not complete, with file and line.
    """
    if file is None:
        return default_rubric()
    path = Path(file)
    document = load_yaml(path)
    for key in document.data:
        if key not in Rubric.model_fields:
            fix = did_you_mean(key, Rubric.model_fields) or f"Known keys: {', '.join(Rubric.model_fields)}"
            raise ConfigError("unknown key", where=document.place(key), fix=fix)
    if not document.data.get("criteria"):
        where = document.place("criteria") if "criteria" in document.data else str(path)
        raise ConfigError(
            "the rubric has no criteria",
            where=where,
            fix="Give at least one: {name, question, anchors: {1: .., 5: ..}}",
        )
    try:
        return Rubric.model_validate(document.data)
    except ValidationError as error:
        first: Any = error.errors(include_url=False, include_context=False)[0]
        inner = "".join(f"[{part}]" for part in first["loc"][1:])
        message = str(first["msg"]).removeprefix("Value error, ")
        raise ConfigError(message, where=f"{document.place(str(first['loc'][0]))}{inner}") from error
