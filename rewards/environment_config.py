"""Environments of several turns: the settings a user may give."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, model_validator

from ..doctrine.rules import integer, number
from .reward_config import refuse_unread

EnvironmentType = Literal["retry", "interpreter", "custom"]
MOST_TURNS = 64
# Keys that not every type reads.
_READ_BY: dict[str, tuple[EnvironmentType, ...]] = {
    "script": ("custom",),
    "pass_share": ("retry",),
    "feedback": ("retry",),
    "show_errors": ("retry",),
    "timeout_s": ("interpreter", "custom"),
    "max_output_chars": ("interpreter",),
}
TRY_AGAIN = "That is not right. Try again."


class EnvironmentConfig(BaseModel, extra="forbid", frozen=True):
    """What answers the model between its turns. ``environment: TYPE`` and ``environment: FILE.py`` are short."""

    type: EnvironmentType = Field(
        description="retry: after a wrong answer it may try again; interpreter: it runs programs; custom: a Python file"
    )
    script: str | None = Field(None, description="custom: a file with step(messages, reply, row) and maybe reset(row)")
    max_turns: Annotated[int, Field(ge=2, le=MOST_TURNS)] = Field(
        default_factory=lambda: integer("rl.turns"), description="Turns of the model at most"
    )
    discount: Annotated[float, Field(gt=0, le=1)] | None = Field(
        None,
        description="Reward of turn t times discount^(t-1); null: for retry that of rule rl.retry_discount, else 1",
    )
    pass_share: Annotated[float, Field(gt=0, le=1)] = Field(
        1.0, description="retry: share of the attainable reward at which an answer counts as right"
    )
    feedback: str = Field(TRY_AGAIN, min_length=1, description="retry: said after a wrong answer")
    show_errors: bool = Field(True, description="retry: add what the check says, such as the test that failed")
    max_trajectory_tokens: Annotated[int, Field(gt=0)] | None = Field(
        None, description="Tokens of a whole episode, prompt included; null: the model's context"
    )
    timeout_s: Annotated[float, Field(gt=0, le=600)] = Field(
        10.0, description="interpreter: seconds a program may run; custom: seconds for one call"
    )
    max_output_chars: Annotated[int, Field(ge=1, le=100_000)] = Field(
        2000, description="interpreter: characters of a program's output that the model is shown"
    )

    @model_validator(mode="before")
    @classmethod
    def _short_forms(cls, value: Any) -> Any:
        if isinstance(value, str):
            return {"type": "custom", "script": value} if value.endswith(".py") else {"type": value}
        return value

    @model_validator(mode="after")
    def _complete(self) -> EnvironmentConfig:
        if self.type == "custom" and not self.script:
            raise ValueError("environment custom needs script, a Python file with step(messages, reply, row)")
        refuse_unread(self, "environment", self.type, _READ_BY)
        return self

    @property
    def per_turn(self) -> float:
        """The factor on a reward for each turn before it."""
        if self.discount is not None:
            return self.discount
        return number("rl.retry_discount") if self.type == "retry" else 1.0
