"""Which kind of judge a name means, what it can do, and what it costs. Light: the server plans with it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any, Literal, cast

from ..core.errors import ConfigError

JudgeKind = Literal["anthropic", "openai", "tinker", "assistant", "check"]
CHECKS = ("exact", "includes", "number")
ASSISTANT = "assistant"
_FORMS = (
    "claude-... (Anthropic), openai:MODEL (any OpenAI-compatible endpoint), tinker:MODEL or tinker://... (a base model "
    f"or checkpoint), {ASSISTANT} (you judge), {', '.join('check:' + c for c in CHECKS)} (a program, by references)"
)


@dataclass(frozen=True, slots=True)
class JudgeRef:
    """A judge as the user named it.

    Attributes:
        name: What the user wrote; it names the judge in every result.
        kind: How it is asked.
        model: The model's id on its service, or the kind of check.
    """

    name: str
    kind: JudgeKind
    model: str

    @property
    def is_paid(self) -> bool:
        """Whether its calls may cost money: a loopback endpoint is the exception, which the plan looks at."""
        return self.kind in {"anthropic", "openai"}


@dataclass(frozen=True, slots=True)
class Price:
    """US dollars a million tokens, and the day they were seen."""

    input: float
    output: float
    as_of: str
    long_above_tokens: int | None = None
    long_input: float = 0.0
    long_output: float = 0.0

    def cost(self, input_tokens: float, output_tokens: float, *, batch: bool = False) -> float:
        """US dollars of one call."""
        is_long = self.long_above_tokens is not None and input_tokens > self.long_above_tokens
        rates = (self.long_input, self.long_output) if is_long else (self.input, self.output)
        discount = float(catalog()["batch_discount"]) if batch else 1.0
        return (input_tokens * rates[0] + output_tokens * rates[1]) / 1e6 * discount


def parse_judge(name: str, *, where: str = "judge_model") -> JudgeRef:
    """Say which judge ``name`` means.

    Raises:
        ConfigError: If it has none of the known forms.
    """
    prefix, _, rest = name.partition(":")
    if name == ASSISTANT:
        return JudgeRef(name, "assistant", name)
    if name.startswith("claude-"):
        return JudgeRef(name, "anthropic", name)
    if name.startswith("tinker://"):
        return JudgeRef(name, "tinker", name)
    if prefix == "check" and rest in CHECKS:
        return JudgeRef(name, "check", rest)
    kinds: dict[str, JudgeKind] = {"anthropic": "anthropic", "openai": "openai", "tinker": "tinker"}
    if prefix in kinds and rest:
        return JudgeRef(name, kinds[prefix], rest)
    raise ConfigError(f"'{name}' names no judge", where=where, fix=f"Use one of: {_FORMS}")


def price_of(model: str) -> Price | None:
    """The price of an Anthropic model (a dated id counts as its alias), or None if it is not in the table."""
    row = _row(model)
    if row is None:
        return None
    long = cast("dict[str, Any]", row.get("long_prompt", {}))
    return Price(
        float(row["input"]),
        float(row["output"]),
        str(catalog()["as_of"]),
        long.get("above_tokens"),
        float(long.get("input", 0)),
        float(long.get("output", 0)),
    )


def takes_temperature(model: str) -> bool:
    """Whether a temperature may be sent; models that are not in the table are taken to be newer, and refuse it."""
    return bool((_row(model) or {}).get("sampling", False))


def takes_forced_tool(model: str) -> bool:
    """Whether a tool call can be forced; newer models refuse that with 400."""
    return bool((_row(model) or {}).get("forced_tool", False))


@cache
def catalog() -> dict[str, Any]:
    """The table as it stands in ``judge_models.yaml``."""
    import yaml

    text = (files("sota_ml_researcher.judges") / "judge_models.yaml").read_text(encoding="utf-8")
    return cast("dict[str, Any]", yaml.safe_load(text))


def known_models() -> list[str]:
    """The Anthropic models in the table."""
    return list(catalog()["models"])


def _row(model: str) -> dict[str, Any] | None:
    models: dict[str, dict[str, Any]] = catalog()["models"]
    if model in models:
        return models[model]
    alias, _, date = model.rpartition("-")
    return models.get(alias) if len(date) == 8 and date.isdigit() else None
