"""What an SFT job will do, worked out before it starts: settings, tokens, steps, and what to worry about."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...backends.estimate import CostEstimate, estimate_cost
from ...backends.meter import Usage
from ...backends.prices import PriceTable, load_prices, require_price_for_cap
from ...core.settings import Origin, Settings
from ...data.supervised import TokenCounts, count_tokens
from ...doctrine.rules import integer
from ...models import hyperparameters
from ...models.capacity import CapacityReport, DataSize, capacity_report
from ...models.configs import ModelConfig, load_model_config
from ...models.hyperparameters import Derived
from ...models.lora_params import require_accepted_rank
from ...models.model_ref import resolve_model
from ...models.renderers import load_renderer
from ..plan import context_length, passes, with_paths
from .config import SftConfig

# A few seconds of tokenizing: a larger file is counted from its first rows, and every row is checked by the worker.
_EXACT_BYTES = 16_000_000
_SAMPLE_ROWS = 4000
# How far a total scaled up from the first rows may be off when the file is not shuffled.
_SAMPLED_SPREAD = 0.1


@dataclass(frozen=True, slots=True)
class SftPlan:
    """A job ready to start.

    Attributes:
        settings: The config with every null derived, and the origin of each value.
        counts: Tokens of one epoch.
        total_steps: Optimizer steps of the whole run.
        tokens_to_train: Tokens the run will process, all epochs together.
        capacity: The adapter's capacity beside the data's information.
        cost: What it will cost, as a range.
        warnings: What the user should know before spending time or money.
    """

    settings: Settings[SftConfig]
    counts: TokenCounts
    total_steps: int
    tokens_to_train: int
    capacity: CapacityReport
    warnings: tuple[str, ...]
    cost: CostEstimate


def plan_sft(settings: Settings[SftConfig]) -> SftPlan:
    """Check everything that can be checked without training, and derive what was left out.

    Raises:
        ConfigError: If a path does not exist or a setting does not fit the model or the backend.
        DataError: If the data cannot be used.
        ModelError: If the model, its tokenizer or its chat template cannot be had.
    """
    config = settings.config
    require_accepted_rank(config.lora_rank, config.backend, where=settings.place("lora_rank"))
    settings = with_paths(settings)
    model = load_model_config(resolve_model(config.base_model))
    settings = settings.derived(context_length(settings.config, model))
    table = load_prices()
    require_price_for_cap(config, table, where=settings.place("max_cost_usd"))
    counts, held_out = _count(settings.config)
    if counts.problems and not config.skip_bad_rows:
        raise counts.problems[0]
    settings, total_steps = _with_schedule(settings, counts.rows, model)
    epochs = passes(total_steps, settings.config.batch_size or 1, counts.rows)
    capacity = capacity_report(
        model,
        lora_rank=config.lora_rank,
        data=DataSize(loss_tokens=counts.loss_tokens, rows=counts.rows, epochs=max(1, round(epochs))),
        backend=config.backend,
        apply_to=config.apply_to,
    )
    warnings = tuple(_warnings(settings.config, counts, total_steps, capacity))
    # A row of n tokens is n - 1 to train on: each is asked for its successor.
    to_train = round((counts.tokens - counts.rows) * epochs)
    cost = _cost(settings.config, table, to_train, counts.exact, held_out, total_steps)
    return SftPlan(settings, counts, total_steps, to_train, capacity, warnings, cost)


def _cost(
    config: SftConfig, table: PriceTable, to_train: int, exact: bool, held_out: TokenCounts | None, total_steps: int
) -> CostEstimate:
    """Training tokens, and the held-out rows as prompts at each validation: before every n-th step, and at the end."""
    validations = -(-total_steps // config.eval_every) + 1 if config.eval_every else 1
    prefill = held_out.tokens * validations if held_out else 0
    scored = held_out.rows * validations if held_out else 0  # scoring a row samples one token that nobody reads
    spread = 0.0 if exact and (held_out is None or held_out.exact) else _SAMPLED_SPREAD
    expected = Usage(train=to_train, prefill=prefill, sample=scored)
    usages = [expected.times(factor) for factor in (1 - spread, 1.0, 1 + spread)]
    return estimate_cost(table, config.backend, config.base_model, usages)


def _count(config: SftConfig) -> tuple[TokenCounts, TokenCounts | None]:
    path = Path(config.train_file)
    renderer = load_renderer(config.base_model, config.renderer)
    sample = None if path.stat().st_size <= _EXACT_BYTES else _SAMPLE_ROWS
    counts = count_tokens(path, renderer, max_seq_len=config.max_seq_len, sample_rows=sample)
    if config.val_file is None:
        return counts, None
    held_out = Path(config.val_file)
    sample = None if held_out.stat().st_size <= _EXACT_BYTES else _SAMPLE_ROWS
    return counts, count_tokens(held_out, renderer, max_seq_len=config.max_seq_len, sample_rows=sample)


def _with_schedule(settings: Settings[SftConfig], rows: int, model: ModelConfig) -> tuple[Settings[SftConfig], int]:
    config = settings.config
    changes: dict[str, tuple[Any, Origin]] = {}

    def fill(key: str, derived: Derived) -> Any:
        changes[key] = (derived.value, Origin(kind="derived", rule=derived.rule_id, reason=derived.reason))
        return derived.value

    epochs = config.num_epochs
    if config.num_steps is None and epochs is None:
        epochs = fill("num_epochs", hyperparameters.derive_epochs())
    batch = config.batch_size or int(fill("batch_size", hyperparameters.derive_batch_size(rows, epochs or 1)))
    total_steps = config.num_steps or -(-rows // batch) * (epochs or 1)
    if config.learning_rate is None:
        fill("learning_rate", hyperparameters.derive_learning_rate(model, steps=total_steps))
    if config.eval_every is None:
        fill("eval_every", hyperparameters.derive_eval_every(total_steps))
    if config.checkpoint_every is None:
        fill("checkpoint_every", hyperparameters.derive_checkpoint_every(total_steps))
    return settings.derived(changes), total_steps


def _warnings(config: SftConfig, counts: TokenCounts, total_steps: int, capacity: CapacityReport) -> list[str]:
    found = list(capacity.warnings)
    if not counts.exact:
        found.append(f"a large file: token counts are scaled up from its first {_SAMPLE_ROWS:,} rows")
    if counts.problems:
        found.append(f"rows that cannot be used will be left out, the first: {counts.problems[0]}")
    if counts.truncated:
        found.append(f"{counts.truncated:,} rows are longer than max_seq_len {config.max_seq_len} and will be cut")
    if capacity.verdict != "sufficient":
        found.append(f"capacity is {capacity.verdict} (ratio {capacity.ratio:.2g}): {capacity.advice}")
    least = integer("sft.steps.min")
    if total_steps < least:
        found.append(f"only {total_steps} steps: below {least} a run is hard to judge (sft.steps.min)")
    if config.val_file is None:
        found.append("no val_file: overfitting cannot be seen and no best checkpoint is kept")
    return found
