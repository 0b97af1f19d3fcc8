"""Which kind of judge a name means, what it can do, and what it costs."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date
from functools import cache
from importlib.resources import files
from typing import Annotated, Literal
from urllib.parse import urlparse

from pydantic import BaseModel, ConfigDict, Field

from ..core.errors import ConfigError

JudgeKind = Literal["anthropic", "openai", "tinker", "assistant", "check"]
CHECKS = ("exact", "includes", "number")
ASSISTANT = "assistant"
_LOOPBACK = {"localhost", "127.0.0.1", "::1"}
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
        where: The setting that names it, for errors.
    """

    name: str
    kind: JudgeKind
    model: str
    where: str = "judge_model"

    @property
    def is_service(self) -> bool:
        """Whether it is reached over HTTP; such calls cost money unless the endpoint is on this machine."""
        return self.kind in {"anthropic", "openai"}

    @property
    def takes_temperature(self) -> bool:
        """Whether its service lets a caller choose one, as far as the table knows."""
        model = anthropic_model(self.model) if self.kind == "anthropic" else None
        return self.kind != "anthropic" or bool(model and model.sampling)

    def may_cost(self, base_url: str | None) -> bool:
        """Whether its calls may be charged per token. ``base_url`` is where an ``openai:`` judge is reached."""
        on_this_machine = urlparse(base_url or "").hostname in _LOOPBACK
        return self.kind == "anthropic" or (self.kind == "openai" and not on_this_machine)


class JudgePrice(BaseModel):
    """A judge's price in US dollars per million tokens, where the shipped table has none or an old one."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    input: Annotated[float, Field(ge=0)]
    output: Annotated[float, Field(ge=0)]


@dataclass(frozen=True, slots=True)
class Price:
    """US dollars per million tokens, and where they come from: a date of the shipped table, or the config."""

    input: float
    output: float
    as_of: str
    long_above_tokens: int | None = None
    long_input: float = 0.0
    long_output: float = 0.0

    def cost(self, input_tokens: float, output_tokens: float, *, batch: bool = False) -> float:
        """US dollars for one call."""
        is_long = self.long_above_tokens is not None and input_tokens > self.long_above_tokens
        rates = (self.long_input, self.long_output) if is_long else (self.input, self.output)
        discount = catalog().batch_discount if batch else 1.0
        return (input_tokens * rates[0] + output_tokens * rates[1]) / 1e6 * discount


def parse_judge(name: str, *, where: str = "judge_model") -> JudgeRef:
    """The judge that ``name`` means.

    Raises:
        ConfigError: If it has none of the known forms.
    """
    prefix, _, rest = name.partition(":")
    if name == ASSISTANT:
        return JudgeRef(name, "assistant", name, where)
    if name.startswith("claude-"):
        return JudgeRef(name, "anthropic", name, where)
    if name.startswith("tinker://"):
        return JudgeRef(name, "tinker", name, where)
    if prefix == "check" and rest in CHECKS:
        return JudgeRef(name, "check", rest, where)
    kinds: dict[str, JudgeKind] = {"anthropic": "anthropic", "openai": "openai", "tinker": "tinker"}
    if prefix in kinds and rest:
        return JudgeRef(name, kinds[prefix], rest, where)
    raise ConfigError(f"'{name}' names no judge", where=where, fix=f"Use one of: {_FORMS}")


def judge_price(judge: JudgeRef, configured: JudgePrice | None) -> Price | None:
    """What a service charges for a judge: the configured price, else the table's; None where neither is known."""
    if not judge.is_service:
        return None
    if configured is not None:
        return Price(configured.input, configured.output, "the config")
    return price_of(judge.model) if judge.kind == "anthropic" else None


def price_of(model: str) -> Price | None:
    """The price of an Anthropic model, or None if it is not in the table."""
    row = anthropic_model(model)
    if row is None:
        return None
    long = row.long_prompt
    above = (long.above_tokens, long.input, long.output) if long else (None, 0.0, 0.0)
    return Price(row.input, row.output, str(catalog().as_of), *above)


class _LongPrompt(BaseModel):
    above_tokens: int
    input: float
    output: float


class AnthropicModel(BaseModel):
    """One model: US dollars per million tokens, and whether it takes a temperature and can be forced to a tool call."""

    input: float
    output: float
    long_prompt: _LongPrompt | None = None
    sampling: bool
    forced_tool: bool


class Catalog(BaseModel):
    """``judge_models.yaml``: Anthropic's models with their prices, and what caching and batches cost."""

    as_of: date
    batch_discount: float
    cache_read_share: float
    cache_write_share: float
    models: dict[str, AnthropicModel]


@cache
def catalog() -> Catalog:
    """The shipped table."""
    import yaml

    text = (files("sota_ml_researcher.judges") / "judge_models.yaml").read_text(encoding="utf-8")
    return Catalog.model_validate(yaml.safe_load(text))


def known_models() -> list[str]:
    """The Anthropic models in the table."""
    return list(catalog().models)


def anthropic_model(model: str) -> AnthropicModel | None:
    """A model of the table (a dated id counts as its alias), or None: then it is taken to be newer than the table."""
    models = catalog().models
    alias, _, day = model.rpartition("-")
    dated = len(day) == 8 and day.isdigit()
    return models.get(model) or (models.get(alias) if dated else None)
