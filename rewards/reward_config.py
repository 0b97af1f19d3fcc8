"""What is rewarded: one check, or several with weights."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, cast, get_args

from pydantic import BaseModel, Field, model_validator

from ..judges.judge_catalog import JudgePrice

RewardType = Literal["math", "exact", "regex", "format", "code", "length", "judge", "preference_model", "custom"]
NEEDS_KEY = {"math": "answer", "exact": "answer", "code": "tests"}
# Checks that run text of a data file, a model or a user.
CODE_PARTS = frozenset({"code", "custom"})
_PositiveSeconds = Annotated[float, Field(gt=0, le=600)]
# A preference model compares each response of a group with this many others at most.
OPPONENTS = 6
# How the names of judges behind a service begin; `judges.judge_catalog` reads the whole name.
_SERVICES = ("claude-", "anthropic:", "openai:")
# Keys that not every type reads.
_READ_BY: Mapping[str, Sequence[RewardType]] = {
    "pattern": ("regex",),
    "ignore_case": ("exact",),
    "tags": ("format",),
    "json_schema": ("format",),
    "target_tokens": ("length",),
    "script": ("custom",),
    "rubric": ("judge",),
    "judge_model": ("judge",),
    "judge_style": ("judge",),
    "judge_base_url": ("judge",),
    "judge_price": ("judge",),
    "judge_max_tokens": ("judge",),
    "judge_timeout_s": ("judge",),
    "checkpoint": ("preference_model",),
    "timeout_s": ("math", "exact", "regex", "format", "code", "custom"),
}


def refuse_unread(settings: BaseModel, what: str, kind: str, read_by: Mapping[str, Sequence[str]]) -> None:
    """Refuse a key that is set to something and that this kind of reward or environment does not read.

    Raises:
        ValueError: With the key and the kinds that read it.
    """
    for key, kinds in read_by.items():
        if kind not in kinds and getattr(settings, key) != type(settings).model_fields[key].default:
            raise ValueError(f"{key} belongs to {what} {' or '.join(kinds)}, not to {kind}")


def as_entries(value: Any) -> Any:
    """What ``rewards`` is given, before each entry is read.

    Raises:
        ValueError: If it is not a list with something in it, with what to write instead.
    """
    if value is None or (isinstance(value, list | tuple) and value):
        return cast("Any", value)
    if isinstance(value, str) and value in get_args(RewardType):
        return (value,)
    weights: Mapping[Any, Any] = cast("Mapping[Any, Any]", value) if isinstance(value, Mapping) else {}
    meant = {name: weight for name, weight in weights.items() if name in get_args(RewardType)}
    raise ValueError(f"it is a list of checks: write {_example(meant or dict.fromkeys(('math', 'format')))}")


def one_type(value: Any) -> Any:
    """What ``reward_type`` is given.

    Raises:
        ValueError: If it is a list, with what to write instead.
    """
    if not isinstance(value, list | tuple):
        return value
    names = [name for name in cast("Sequence[object]", value) if isinstance(name, str)]
    raise ValueError(
        f"it is one check; for several write, in its place, {_example(dict.fromkeys(names or ('math', 'format')))}"
    )


def _example(weights: Mapping[str, Any]) -> str:
    """A ``rewards`` of these checks to paste into a config; a weight of None is the usual one."""
    usual = {name: 0.1 if name == "format" else 1 for name in weights}
    numbers = {name: weight if isinstance(weight, int | float) else usual[name] for name, weight in weights.items()}
    return f"rewards: [{', '.join(f'{{type: {name}, weight: {number:g}}}' for name, number in numbers.items())}]"


class RewardPart(BaseModel, extra="forbid", frozen=True):
    """One check and its weight. A name alone is short for ``{type: NAME}``, a file for a custom check."""

    type: RewardType = Field(description="Which check")
    weight: Annotated[float, Field(allow_inf_nan=False)] | None = Field(
        None, description="Null: 1, and for format the fraction of rule reward.format"
    )
    pattern: str | None = Field(None, description="regex: must match the whole response")
    ignore_case: bool = Field(False, description="exact: upper and lower case are the same")
    tags: tuple[str, ...] = Field(("think", "answer"), description="format: the tags, in this order")
    json_schema: dict[str, Any] | None = Field(None, description="format: instead of tags, a JSON schema")
    target_tokens: Annotated[int, Field(gt=0)] | None = Field(None, description="length: full score up to here")
    script: str | None = Field(None, description="custom: a Python file with reward(prompt, response, row)")
    rubric: str | None = Field(None, description="judge: what a good response is, in words")
    judge_model: str | None = Field(
        None,
        description="judge: claude-... (Anthropic), openai:MODEL, or on the run's backend a model or tinker:// sampler "
        "path; null: the base model",
    )
    judge_style: Literal["score", "yes_no"] | None = Field(
        None,
        description="judge: it writes a score; or its probability of yes against no (no sampling), which is the "
        "default for a rubric that is a question, where the judge has probabilities to give",
    )
    judge_base_url: str | None = Field(None, description="judge: endpoint of openai:MODEL; null: OPENAI_BASE_URL")
    judge_price: JudgePrice | None = Field(None, description="judge: $ per million tokens; null: the shipped table")
    judge_max_tokens: Annotated[int, Field(ge=64, le=64_000)] = Field(2048, description="judge: thought and verdict")
    judge_timeout_s: _PositiveSeconds = Field(120.0, description="judge: seconds one call of a service may take")
    checkpoint: str | None = Field(None, description="preference_model: a reward_model job or tinker:// sampler path")
    timeout_s: _PositiveSeconds = Field(10.0, description="Seconds for one check; past it the check counts as failed")

    @model_validator(mode="before")
    @classmethod
    def _short_forms(cls, value: Any) -> Any:
        if isinstance(value, str):
            return {"type": "custom", "script": value} if value.endswith(".py") else {"type": value}
        keys = list(cast("Mapping[str, object]", value)) if isinstance(value, Mapping) else []
        if not isinstance(value, RewardPart) and "type" not in keys:
            name = keys[0] if len(keys) == 1 and keys[0] in get_args(RewardType) else "math"
            raise ValueError(f"an entry is the name of a check, or a mapping such as {{type: {name}, weight: 1}}")
        return cast("Any", value)

    @model_validator(mode="after")
    def _complete(self) -> RewardPart:
        needed = {
            "regex": ("pattern", self.pattern, "'[0-9]+'"),
            "custom": ("script (reward_script)", self.script, "reward.py"),
            "length": ("target_tokens", self.target_tokens, "200"),
            "judge": ("rubric", self.rubric, "Is the answer polite?"),
            "preference_model": ("checkpoint", self.checkpoint, "JOB"),
        }
        name, value, such = needed.get(self.type, ("", "given", ""))
        if not value:
            entry = f"{{type: {self.type}, {name.split()[0]}: {such}}}"
            raise ValueError(f"reward {self.type} needs {name}; as an entry of rewards: {entry}")
        refuse_unread(self, "reward", self.type, _READ_BY)
        if self.is_service_judge and self.judge_style == "yes_no":
            raise ValueError(
                f"judge_style yes_no reads probabilities, which {self.judge_model} does not give: use score"
            )
        if self.pattern is not None:
            try:
                re.compile(self.pattern)
            except re.error as error:
                raise ValueError(f"pattern is no regular expression: {error}") from error
        return self

    @property
    def is_service_judge(self) -> bool:
        """Whether a service outside of the training backend gives the score."""
        return self.type == "judge" and (self.judge_model or "").startswith(_SERVICES)

    @property
    def style(self) -> Literal["score", "yes_no"]:
        """How the judge answers."""
        if self.judge_style is not None:
            return self.judge_style
        return "yes_no" if (self.rubric or "").rstrip().endswith("?") and not self.is_service_judge else "score"

    @property
    def name(self) -> str:
        """Its name in metrics and rollouts."""
        return self.type
