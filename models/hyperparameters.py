"""Recommended settings, each with the rule it comes from and how far to trust it.

The numbers live in ``doctrine/rules.yaml``; this module only does the arithmetic.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal, NamedTuple, get_args

from pydantic import BaseModel, Field

from ..core.errors import ConfigError
from ..doctrine.rules import Confidence, integer, number
from .configs import ModelConfig
from .model_catalog import catalog_entry

Method = Literal["sft", "full"]
# The formula's reference width and the widths it was fitted on; part of the formula, not a choice.
FITTED_WIDTHS = (2048, 8192)
Family = Literal["llama", "qwen"]


class Recommendation(BaseModel, frozen=True):
    """One recommended value, the rules behind it, and how sure we are."""

    value: float
    rule_ids: tuple[str, ...] = Field(description="first the one that decided the value")
    confidence: Confidence
    note: str = Field(description="how the value came about and when it is wrong, for people")

    @property
    def rule_id(self) -> str:
        """The rule that decided the value."""
        return self.rule_ids[0]


class Derived(NamedTuple):
    """A setting that was left to us: its value, the rule it follows, and why, in a few words."""

    value: float | int | None
    rule_id: str
    reason: str


def model_family(config: ModelConfig) -> Family | None:
    """The family whose learning rate was fitted: by architecture, or by name where that is not known."""
    evidence = config.model_type or _own_name(config)
    return next((family for family in get_args(Family) if evidence.startswith(family)), None)


def _own_name(config: ModelConfig) -> str:
    """The last part of an id or a path: a folder above it may be called anything."""
    return Path(config.name).name.lower()


def recommended_learning_rate(
    config: ModelConfig, *, method: Method = "sft", steps: int | None = None
) -> Recommendation:
    """The starting learning rate: base x 10 for LoRA x (2000 / hidden size)^p, p fitted for Llama and for Qwen.

    Args:
        config: The base model.
        method: ``sft`` for LoRA, ``full`` for training all weights (a tenth of it).
        steps: Length of the run if known; very short runs want more, which the note then says.

    Raises:
        ModelError: If the config has no hidden size.
    """
    family, width = model_family(config), config.hidden_size
    base = number("lora.lr.base") * (number("lora.lr.over_full") if method == "sft" else 1.0)
    shared = ("lora.lr.base", "lora.lr.over_full") if method == "sft" else ("lora.lr.base",)
    if family is None:
        value = number("lora.lr.uncalibrated") / (1.0 if method == "sft" else number("lora.lr.over_full"))
        note = (
            f"no rate was fitted for this family ({config.model_type or 'unknown'}): this is the start that lost least "
            "over ten models of other families. Compare a third and three times the value on a short run before "
            "trusting it."
        )
        return Recommendation(
            value=value,
            rule_ids=("lora.lr.uncalibrated", *(("lora.lr.over_full",) if method == "full" else ())),
            confidence="low",
            note=note + _short_run(value, steps),
        )
    decider = f"lora.lr.exponent.{family}"
    reference = integer("lora.lr.reference_hidden")
    value = base * (reference / width) ** number(decider)
    confidence, remark = _trust(config, family, width)
    formula = f"{base:g} x ({reference} / {width})^{number(decider):g}"
    note = f"fitted on {family.capitalize()} models: {formula}. {remark}"
    return Recommendation(
        value=value, rule_ids=(decider, *shared), confidence=confidence, note=note.strip() + _short_run(value, steps)
    )


def _trust(config: ModelConfig, family: str, width: int) -> tuple[Confidence, str]:
    low, high = FITTED_WIDTHS
    if not low <= width <= high:
        return "low", f"A hidden size of {width} is outside the fitted {low} to {high}: try a third and three times it."
    if _own_name(config).startswith(family):
        return "high", ""
    return "medium", f"Only its architecture is {family.capitalize()}'s; it may be a differently trained model."


def _short_run(value: float, steps: int | None) -> str:
    if steps is None or steps >= integer("sft.steps.min"):
        return ""
    more = value * number("lora.lr.short_run") / number("lora.lr.over_full")
    return (
        f" This run has only {steps} steps: below {integer('sft.steps.min')} the best rate is nearer "
        f"{number('lora.lr.short_run'):g} times full fine-tuning's ({more:.2g}; lora.lr.short_run)."
    )


def recommended_batch_size(rows: int, epochs: int = 1, *, usual: str = "sft.batch.default") -> Recommendation:
    """Rows per step: the usual batch, or less so that the whole run still has enough steps.

    Args:
        rows: Training rows.
        epochs: Passes over them.
        usual: The rule of the method's usual batch.

    Raises:
        ConfigError: If there are no rows or no epochs.
    """
    if rows < 1 or epochs < 1:
        raise ConfigError(f"rows and epochs must be positive, got {rows} and {epochs}", where="batch_size")
    size, least = integer(usual), integer("sft.steps.min")
    fitting = max(1, rows * epochs // least)
    rules = (usual, "sft.steps.min", "lora.batch.tolerance")
    if fitting >= size:
        steps = rows * epochs // size
        note = f"the usual {size}: {steps:,} steps in all. LoRA bears larger ones less well than full fine-tuning."
        return Recommendation(value=min(size, rows), rule_ids=rules, confidence="medium", note=note)
    value = min(fitting, rows)
    steps = rows * epochs // value
    note = f"below the usual {size}, so that {rows:,} rows x {epochs} still make about {steps} steps."
    return Recommendation(value=value, rule_ids=("sft.steps.min", *rules[:1], *rules[2:]), confidence="low", note=note)


def derive_learning_rate(config: ModelConfig, *, steps: int | None = None) -> Derived:
    """The LoRA learning rate for SFT (see ``recommended_learning_rate``), to two significant digits."""
    recommended = recommended_learning_rate(config, steps=steps)
    return Derived(
        float(f"{recommended.value:.2g}"),
        recommended.rule_id,
        f"{recommended.note} Confidence: {recommended.confidence}.",
    )


def derive_batch_size(rows: int, epochs: int = 1, *, usual: str = "sft.batch.default") -> Derived:
    """Rows per step (see ``recommended_batch_size``)."""
    recommended = recommended_batch_size(rows, epochs, usual=usual)
    return Derived(int(recommended.value), recommended.rule_id, recommended.note)


def derive_epochs() -> Derived:
    """Passes over the data when neither steps nor epochs are given."""
    value = integer("sft.epochs.default")
    return Derived(value, "sft.epochs.default", "repeats add no information, and overfit small sets")


def derive_eval_every(total_steps: int) -> Derived:
    """Steps between validations: a fixed number of them over the run."""
    return _cadence("sft.eval.cadence", total_steps, "validations")


def derive_checkpoint_every(total_steps: int) -> Derived:
    """Steps between checkpoints: a fixed number of them over the run."""
    return _cadence("sft.checkpoint.cadence", total_steps, "checkpoints")


def derive_max_seq_len(config: ModelConfig, backend: str) -> Derived:
    """Tokens a row may have: the context of the model where it is trained, or None where that is not known here."""
    entry = catalog_entry(config.name) if backend == "tinker" else None
    if entry is not None and entry.context_length is not None:
        return Derived(entry.context_length, "data.max_seq_len", "the context Tinker gives this model")
    keys = ("max_position_embeddings", "model_max_length", "n_positions")
    if any(config.has(key) for key in keys):
        return Derived(config.integer(*keys), "data.max_seq_len", "the context in the model's config")
    return Derived(None, "data.max_seq_len", "the model's context is not known here: ask the backend")


def require_within_context(max_seq_len: int | None, context: int | None, *, where: str = "max_seq_len") -> None:
    """Refuse rows longer than the model takes; a length or a context that is not known passes.

    Args:
        max_seq_len: Tokens at which rows are cut.
        context: Tokens the model takes (see ``derive_max_seq_len``).
        where: Where ``max_seq_len`` was set, for the error.

    Raises:
        ConfigError: If ``max_seq_len`` is above the context.
    """
    if max_seq_len is not None and context is not None and max_seq_len > context:
        raise ConfigError(
            f"{max_seq_len:,} is above the {context:,} tokens of the model's context",
            where=where,
            fix=f"Set max_seq_len to {context} or less, or leave it out; longer rows are cut there",
        )


def _cadence(rule_id: str, total_steps: int, what: str) -> Derived:
    times = integer(rule_id)
    return Derived(max(1, total_steps // times), rule_id, f"about {times} {what} in {total_steps} steps")
