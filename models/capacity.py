"""Does an adapter of this rank have room for this data set? A ratio of two order-of-magnitude estimates, in bits.

Capacity is the adapter's parameters times the bits one can store (Allen-Zhu and Li, arXiv 2404.05405). The data's
information is at most the first epoch's negative log-likelihood in bits; repeats add none (Schulman and Thinking
Machines Lab, "LoRA Without Regret", 2025). The verdict is a band and not a line, because both numbers are rough.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import Literal, cast

from pydantic import BaseModel, Field, model_validator

from ..core.errors import DataError
from ..core.names import COMPONENTS, Component
from ..doctrine.rules import integer, number, rule
from .configs import ModelConfig
from .hyperparameters import Recommendation, recommended_batch_size, recommended_learning_rate
from .lora_architectures import Scheme
from .lora_params import (
    LoraCount,
    ModuleCount,
    RankCheck,
    accepted_rank,
    check_components,
    count_lora,
    smallest_accepted,
)
from .model_catalog import CatalogEntry, ComponentCounts, catalog_entry, load_catalog, retirement_note

Verdict = Literal["sufficient", "marginal", "insufficient"]

# A policy gradient learns on the order of one bit from an episode, however long it is.
BITS_PER_EPISODE = 1


class DataSize(BaseModel, frozen=True, extra="forbid"):
    """How much there is to learn. All counts are of one epoch.

    For supervised data give ``loss_tokens`` (or, failing that, ``all_tokens``); for RL give ``episodes`` instead.
    """

    loss_tokens: int | None = Field(default=None, ge=0, description="tokens that carry loss")
    all_tokens: int | None = Field(default=None, ge=0, description="all tokens, prompts included")
    rows: int | None = Field(default=None, ge=0, description="training rows")
    epochs: int = Field(default=1, ge=1, description="passes over the data; they do not add information")
    nll_nats: float | None = Field(
        default=None,
        ge=0,
        allow_inf_nan=False,
        description="the base model's measured mean NLL of a loss token, in nats",
    )
    learned_bits: int | None = Field(
        default=None, ge=0, description="what a pilot run learned (excess description length), scaled to these rows"
    )
    episodes: int | None = Field(default=None, ge=0, description="RL: prompts x group size x passes")

    @model_validator(mode="after")
    def _has_a_size(self) -> DataSize:
        if self.loss_tokens is None and self.all_tokens is None and self.episodes is None:
            raise ValueError("give loss_tokens, all_tokens or episodes")
        return self


class Information(BaseModel, frozen=True):
    """The data's information in bits, and how it was estimated."""

    bits: int
    basis: Literal["measured", "pilot run", "tokens rule", "episodes rule"]
    explanation: str
    rule_id: str | None = None

    @property
    def bits_per_parameter(self) -> float:
        """What a trained parameter takes of it: of bits that were learned less than of bits that are stored."""
        if self.basis == "pilot run":
            return cast("dict[str, float]", rule("lora.capacity.edl").value)["teach"]
        return number("lora.capacity.bits_per_parameter")


class CapacityReport(BaseModel, frozen=True):
    """The answer. Counts are plain integers; every recommendation names its rule."""

    base_model: str
    backend: str
    lora_rank: int
    rank_check: RankCheck
    apply_to: tuple[Component, ...]
    verdict: Verdict
    margin: str = Field(description="how far the ratio is from the nearest threshold, for people")
    ratio: float = Field(description="capacity_bits / data_bits")
    insufficient_below: float
    sufficient_from: float
    smallest_sufficient_rank: int | None = Field(description="of those the backend takes; None if no rank is enough")
    parameters: ComponentCounts = Field(description="at lora_rank; parts outside apply_to are 0")
    parameters_total: int
    parameters_per_rank: ComponentCounts = Field(description="at rank 1, all parts")
    scheme: Scheme
    count_source: Literal["config", "table"]
    config_source: str
    modules: tuple[ModuleCount, ...]
    capacity_bits: int
    data_bits: int
    information: Information
    learning_rate: Recommendation
    batch_size: Recommendation | None
    rules: tuple[str, ...]
    warnings: tuple[str, ...]
    uncertainties: tuple[str, ...]
    advice: str


def capacity_report(
    config: ModelConfig,
    *,
    lora_rank: int,
    data: DataSize,
    backend: str,
    apply_to: Collection[str] = COMPONENTS,
) -> CapacityReport:
    """Compare an adapter's capacity with a data set's information and recommend rank, learning rate and batch.

    Args:
        config: The base model (``load_model_config``).
        lora_rank: The rank asked for. One that the backend refuses is reported in ``rank_check``, not raised.
        data: The size of the data.
        backend: ``embedded``, ``tinker`` or ``cluster``: decides ranks and how experts are counted.
        apply_to: Parts that get adapters.

    Raises:
        ConfigError: If the rank is below 1 or ``apply_to`` names no or unknown parts.
        DataError: If there is nothing to learn from: no token carries loss, or there is no episode.
        ModelError: If the model's matrices cannot be derived.
    """
    parts = check_components(apply_to)
    count = count_lora(config, backend=backend)
    parameters = count.parameters(lora_rank, parts)
    information = information_of(data)
    capacity_bits = int(parameters.total * information.bits_per_parameter)
    low, high = verdict_band()
    ratio = capacity_bits / information.bits
    entry = catalog_entry(config.name)
    enough = _smallest_sufficient(
        count, parts, information.bits * high / information.bits_per_parameter, config, backend
    )
    learning_rate, batch = _training_settings(config, data)
    verdict = verdict_of(ratio, (low, high))
    return CapacityReport(
        base_model=config.name,
        backend=backend,
        lora_rank=lora_rank,
        rank_check=accepted_rank(lora_rank, backend, max_rank=entry.max_rank if entry else None),
        apply_to=parts,
        verdict=verdict,
        margin=_margin(ratio, (low, high)),
        ratio=ratio,
        insufficient_below=low,
        sufficient_from=high,
        smallest_sufficient_rank=enough,
        parameters=parameters,
        parameters_total=parameters.total,
        parameters_per_rank=count.per_rank,
        scheme=count.scheme,
        count_source=count.source,
        config_source=config.source,
        modules=count.modules,
        capacity_bits=capacity_bits,
        data_bits=information.bits,
        information=information,
        learning_rate=learning_rate,
        batch_size=batch,
        rules=_rules(information, learning_rate, batch),
        warnings=tuple(_warnings(entry, backend, lora_rank, config)),
        uncertainties=tuple(_uncertainties(config, count, data, information, entry, backend)),
        advice=_advice(verdict, lora_rank, enough, parts, data),
    )


def trained_parameters(
    config: ModelConfig, lora_rank: int, *, backend: str, apply_to: Collection[str] | None = None
) -> int:
    """How many parameters an adapter of this rank trains.

    Raises:
        ConfigError: If the rank is below 1 or ``apply_to`` names no or unknown parts.
        ModelError: If the model's matrices cannot be derived.
    """
    parts = check_components(COMPONENTS if apply_to is None else apply_to)
    return count_lora(config, backend=backend).parameters(lora_rank, parts).total


def information_of(data: DataSize) -> Information:
    """The data's information: measured NLL in bits where there is one, else one bit per token (or per episode).

    Raises:
        DataError: If it is zero.
    """
    information = _information(data)
    if information.bits < 1:
        raise DataError(
            f"there is nothing to learn: {information.explanation}",
            where="dataset",
            fix="Check that answers are not empty and that the loss mask leaves tokens: check_dataset shows an example",
        )
    return information


def _information(data: DataSize) -> Information:
    if data.episodes is not None:
        bits = data.episodes * BITS_PER_EPISODE
        text = f"{data.episodes:,} episodes at about {BITS_PER_EPISODE} bit each, however long"
        return Information(bits=bits, basis="episodes rule", explanation=text, rule_id="lora.rank.rl")
    tokens = data.loss_tokens if data.loss_tokens is not None else data.all_tokens or 0
    what = "tokens with loss" if data.loss_tokens is not None else "tokens, prompts included"
    if data.learned_bits is not None:
        text = f"what the pilot run learned, at the same bits for each of {tokens:,} {what}"
        return Information(bits=data.learned_bits, basis="pilot run", explanation=text, rule_id="lora.capacity.edl")
    if data.nll_nats is not None:
        per_token = data.nll_nats / math.log(2)
        text = f"{tokens:,} {what} x {per_token:.3g} bits (the base model's NLL of {data.nll_nats:.3g} nats / ln 2)"
        return Information(bits=round(tokens * per_token), basis="measured", explanation=text)
    rule_id = "lora.data.bits_per_token"
    per_token = number(rule_id)
    text = f"{tokens:,} {what} x {per_token:g} bit (the stated rule; not measured)"
    return Information(bits=round(tokens * per_token), basis="tokens rule", explanation=text, rule_id=rule_id)


def verdict_band() -> tuple[float, float]:
    """Below the first ratio capacity is insufficient, from the second it is sufficient; between them, marginal."""
    value: object = rule("lora.capacity.margin").value
    match value:
        case [int() | float() as low, int() | float() as high]:
            return float(low), float(high)
        case _:
            raise TypeError(f"rule lora.capacity.margin must hold two ratios, got {value!r}")


def verdict_of(ratio: float, band: tuple[float, float]) -> Verdict:
    """The word for a ratio of capacity to information."""
    if ratio < band[0]:
        return "insufficient"
    return "sufficient" if ratio >= band[1] else "marginal"


def _margin(ratio: float, band: tuple[float, float]) -> str:
    low, high = band
    if ratio >= high:
        return f"{ratio / high:.3g} times the {high:g} that counts as sufficient"
    if ratio < low:
        return f"{low / ratio:.3g} times too small to be even marginal ({low:g})"
    return f"inside the marginal band {low:g} to {high:g}, {high / ratio:.3g} times below sufficient"


def _smallest_sufficient(
    count: LoraCount, parts: tuple[Component, ...], parameters: float, config: ModelConfig, backend: str
) -> int | None:
    """The smallest accepted rank with so many parameters; a rank above the model's width adds nothing."""
    per_rank = count.parameters(1, parts).total
    entry = catalog_entry(config.name)
    limits = [config.hidden_size, *([entry.max_rank] if entry and entry.max_rank and backend == "tinker" else [])]
    return smallest_accepted(math.ceil(parameters / per_rank), backend, largest=min(limits))


def _training_settings(config: ModelConfig, data: DataSize) -> tuple[Recommendation, Recommendation | None]:
    if not data.rows or data.episodes is not None:
        return recommended_learning_rate(config), None
    batch = recommended_batch_size(data.rows, data.epochs)
    return recommended_learning_rate(config, steps=max(1, data.rows * data.epochs // int(batch.value))), batch


def _rules(information: Information, rate: Recommendation, batch: Recommendation | None) -> tuple[str, ...]:
    stored = None if information.basis == "pilot run" else "lora.capacity.bits_per_parameter"
    used = [stored, "lora.capacity.margin", information.rule_id, *rate.rule_ids]
    return tuple(dict.fromkeys(r for r in (*used, *(batch.rule_ids if batch else ())) if r))


def _warnings(entry: CatalogEntry | None, backend: str, rank: int, config: ModelConfig) -> list[str]:
    warnings: list[str] = []
    if backend == "tinker" and entry is None:
        warnings.append(
            f"{config.name} is not in the table of Tinker's models of {load_catalog().as_of}: ask list_models"
        )
    if backend == "tinker" and (note := retirement_note(config.name)):
        warnings.append(note)
    if rank > config.hidden_size:
        warnings.append(f"rank {rank} is above the model's width of {config.hidden_size}: the surplus adds no capacity")
    return warnings


def _uncertainties(
    config: ModelConfig,
    count: LoraCount,
    data: DataSize,
    information: Information,
    entry: CatalogEntry | None,
    backend: str,
) -> list[str]:
    bits = information.bits_per_parameter
    of_storage = "was measured on facts stored in pre-training, not on adapters"
    of_learning = "is the most that LoRA was seen to take up when a skill was taught (second-hand)"
    doubts = [
        f"{bits:g} bits per parameter {of_learning if information.basis == 'pilot run' else of_storage}: right to "
        "within a factor of a few, which is what the band is for"
    ]
    if information.basis == "pilot run":
        doubts.append("more rows of the same kind teach less per row than the pilot's did: the bits are an upper bound")
    if information.basis == "tokens rule":
        doubts.append("bits per token were assumed, not measured: ask with measure: true for the base model's own NLL")
    if information.basis == "measured":
        doubts.append("the base model's NLL is an upper bound: what repeats or is predictable needs no room")
    if data.episodes is not None:
        doubts.append("that RL needs almost no rank is only partly replicated: in one replication full fine-tuning led")
    elif data.loss_tokens is None:
        doubts.append("tokens with loss were not counted apart from all tokens: the information is an upper bound")
    if data.epochs > 1:
        doubts.append(f"{data.epochs} epochs count once: repeats add no information, but do train longer")
    if backend == "tinker" and (entry is None or entry.max_rank is None):
        doubts.append("Tinker also caps the rank by model, and the cap is not known here: a start may be refused")
    if backend == "cluster":
        doubts.append("which layers a cluster adapts is its server's choice: start_sft with validate_only asks it")
        doubts.append("how a cluster adapts experts depends on its engine: counted as one adapter for each expert")
    if config.note:
        doubts.append(config.note)
    return [*doubts, *count.notes]


def _advice(verdict: Verdict, rank: int, enough: int | None, parts: tuple[Component, ...], data: DataSize) -> str:
    if data.episodes is not None and verdict == "sufficient":
        return f"Enough for RL: rank {integer('lora.rank.rl')} is the least, and a smaller rank costs nothing to try."
    if verdict == "sufficient":
        spare = f" Rank {enough} would do as well." if enough is not None and enough < rank else ""
        return f"Enough room: start with rank {rank}.{spare}"
    partial = "" if parts == COMPONENTS else " Adapt all of mlp, attn and unembed first (lora.apply_to.all)."
    if enough is None:
        return f"No rank has room for all of it: train on less or use full fine-tuning.{partial}"
    if verdict == "marginal":
        return f"Rank {rank} may do: watch for the training loss flattening, or take rank {enough} to be safe.{partial}"
    return f"Raise lora_rank to {enough}, the smallest with room to spare, or train on less data.{partial}"
