"""What an SFT job will do, worked out before it starts: settings, tokens, steps, and what to worry about."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from sota_ml_researcher.core.errors import ModelError
from sota_ml_researcher.training import hyperparameters
from sota_ml_researcher.training.budget import require_price_for_cap
from sota_ml_researcher.training.capacity import CapacityReport, DataSize, capacity_report
from sota_ml_researcher.training.config_resolution import Origin, Settings
from sota_ml_researcher.training.estimate import CostEstimate, estimate_cost
from sota_ml_researcher.training.hyperparameters import Derived
from sota_ml_researcher.training.meter import Usage
from sota_ml_researcher.training.model_configs import ModelConfig, load_model_config
from sota_ml_researcher.training.models import resolve_model
from sota_ml_researcher.training.prices import PriceTable, load_prices
from sota_ml_researcher.training.ranks import require_accepted_rank
from sota_ml_researcher.training.rendering import load_renderer
from sota_ml_researcher.training.sft_config import SftConfig
from sota_ml_researcher.training.sft_dataset import TokenCounts, count_tokens

ConfigT = TypeVar("ConfigT", bound=SftConfig)
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


def passes(steps: int, batch_size: int, rows: int) -> float:
    """Passes over the data in so many steps; the last batch of a pass may be a small one."""
    whole, begun = divmod(steps, -(-rows // batch_size))
    return whole + min(1.0, begun * batch_size / rows)


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


def with_paths(settings: Settings[ConfigT]) -> Settings[ConfigT]:
    """Data paths made absolute: the worker runs in another folder."""
    config = settings.config
    found: dict[str, tuple[Any, Origin]] = {}
    for key, name in (("train_file", config.train_file), ("val_file", config.val_file)):
        if name is not None:
            found[key] = (str(settings.data_file(key, name)), settings.origins[key])
    if config.output_dir is not None:
        found["output_dir"] = (str(Path(config.output_dir).expanduser().absolute()), settings.origins["output_dir"])
    return settings.derived(found)


def context_length(config: SftConfig, model: ModelConfig) -> dict[str, tuple[Any, Origin]]:
    """``max_seq_len`` where it was left out: the model's context, if its config has it."""
    if config.max_seq_len is not None or not model.has("max_position_embeddings"):
        return {}
    length = model.integer("max_position_embeddings")
    return {"max_seq_len": (length, Origin(kind="derived", reason="the model's context length"))}


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
    least = hyperparameters.integer("sft.steps.min")
    if total_steps < least:
        found.append(f"only {total_steps} steps: below {least} a run is hard to judge (sft.steps.min)")
    if config.val_file is None:
        found.append("no val_file: overfitting cannot be seen and no best checkpoint is kept")
    return found


def check_model_trainable(config: SftConfig, served: dict[str, bool | None]) -> None:
    """Refuse a model that the backend says it does not train.

    Args:
        config: The job's settings.
        served: For each model the backend names, whether it trains it (None: it did not say).

    Raises:
        ModelError: If it is not among them.
    """
    name = resolve_model(config.base_model).wire_name
    if served.get(name, False) is False:
        known = ", ".join(sorted(served)[:10]) or "none"
        raise ModelError(
            f"{config.backend} does not train this model", where=config.base_model, fix=f"It serves: {known}"
        )
