"""What a DPO job will do, worked out before it starts."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...backends.estimate import CostEstimate, estimate_cost
from ...backends.meter import Usage
from ...backends.prices import load_prices, require_price_for_cap
from ...core.settings import Origin, Settings
from ...data.preference_check import check_preferences
from ...data.preferences import PreferenceCounts, count_pairs
from ...doctrine.rules import integer, number
from ...models import hyperparameters
from ...models.capacity import CapacityReport, DataSize, capacity_report
from ...models.configs import ModelConfig, load_model_config
from ...models.hyperparameters import Derived
from ...models.lora_params import require_accepted_rank
from ...models.model_ref import resolve_model
from ...models.renderers import load_renderer
from ..plan import ORDERS, context_length, passes, validations, with_paths
from .config import DpoConfig


@dataclass(frozen=True, slots=True)
class DpoPlan:
    """A job ready to start; the fields are those of `SftPlan`, and ``counts`` is of pairs."""

    settings: Settings[DpoConfig]
    counts: PreferenceCounts
    total_steps: int
    tokens_to_train: int
    capacity: CapacityReport
    warnings: tuple[str, ...]
    cost: CostEstimate


def plan_dpo(settings: Settings[DpoConfig]) -> DpoPlan:
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
    config = settings.config
    renderer = load_renderer(config.base_model, config.renderer)
    counts = count_pairs(Path(config.train_file), renderer, max_seq_len=config.max_seq_len)
    if counts.problems and not config.skip_bad_rows:
        raise counts.problems[0]
    held_out = None
    if config.val_file is not None:
        held_out = count_pairs(Path(config.val_file), renderer, max_seq_len=config.max_seq_len)
    settings, total_steps = _with_schedule(settings, counts.rows, model)
    epochs = passes(total_steps, settings.config.batch_size or 1, counts.rows)
    # A pair teaches one comparison, not the words of its answers: one bit a pair is the most it can hold.
    capacity = capacity_report(
        model,
        lora_rank=config.lora_rank,
        data=DataSize(loss_tokens=counts.rows, rows=counts.rows, epochs=max(1, round(epochs))),
        backend=config.backend,
        apply_to=config.apply_to,
    )
    warnings = tuple(_warnings(settings.config, counts, total_steps))
    cost = dpo_cost(settings, counts, held_out, total_steps)
    return DpoPlan(settings, counts, total_steps, round(counts.tokens * epochs), capacity, warnings, cost)


def _with_schedule(settings: Settings[DpoConfig], rows: int, model: ModelConfig) -> tuple[Settings[DpoConfig], int]:
    config = settings.config
    changes: dict[str, tuple[Any, Origin]] = {}

    def fill(key: str, derived: Derived) -> Any:
        changes[key] = (derived.value, Origin(kind="derived", rule=derived.rule_id, reason=derived.reason))
        return derived.value

    epochs = config.num_epochs
    if config.num_steps is None and epochs is None:
        epochs = fill("num_epochs", _rule("dpo.epochs", "quality can fall before the first pass ends"))
    batch = config.batch_size or int(fill("batch_size", _batch(rows, epochs or 1)))
    total_steps = config.num_steps or -(-rows // batch) * (epochs or 1)
    if config.learning_rate is None:
        fill("learning_rate", _learning_rate(config, model, total_steps))
    if config.eval_every is None:
        fill("eval_every", hyperparameters.derive_eval_every(total_steps))
    if config.checkpoint_every is None:
        fill("checkpoint_every", hyperparameters.derive_checkpoint_every(total_steps))
    return settings.derived(changes), total_steps


def _learning_rate(config: DpoConfig, model: ModelConfig, steps: int) -> Derived:
    if config.loss == "reward_model":  # supervised learning of a label
        return hyperparameters.derive_learning_rate(model, steps=steps)
    return Derived(number("dpo.lr"), "dpo.lr", "the start for LoRA; far below the rate of SFT")


def _rule(rule_id: str, reason: str) -> Derived:
    return Derived(integer(rule_id), rule_id, reason)


def _batch(rows: int, epochs: int) -> Derived:
    usual, least = integer("dpo.batch"), integer("sft.steps.min")
    fitting = max(1, rows * epochs // least)
    if fitting >= usual:
        return Derived(usual, "dpo.batch", "the recipe's pairs a step")
    return Derived(min(fitting, rows), "sft.steps.min", f"below the usual {usual}, so that there are {least} steps")


def _warnings(config: DpoConfig, counts: PreferenceCounts, total_steps: int) -> list[str]:
    found = check_preferences(Path(config.train_file), Path(config.val_file) if config.val_file else None).warnings()
    if counts.problems:
        found.append(f"rows that cannot be used will be left out, the first: {counts.problems[0]}")
    if counts.truncated:
        found.append(f"{counts.truncated:,} pairs are longer than max_seq_len {config.max_seq_len} and will be cut")
    least = integer("sft.steps.min")
    if total_steps < least:
        found.append(f"only {total_steps} steps: below {least} a run is hard to judge (sft.steps.min)")
    if config.load_checkpoint is None and config.base_model != "demo" and config.loss != "reward_model":
        found.append(
            "it starts from the base model: an SFT checkpoint of the same kind of data is the better start "
            "(dpo.reference); give its state path as load_checkpoint"
        )
    if config.val_file is None:
        found.append("no val_file: held-out accuracy cannot be seen and no best checkpoint is kept")
    return found


# A custom loss is a forward pass, then the gradient: the SDK sends the batch twice.
_CUSTOM_PASSES = 2
# Held-out pairs on which a reward model's accuracy is measured at the end; each in two orders.
MEASURED_PAIRS = 200


def dpo_cost(
    settings: Settings[DpoConfig], counts: PreferenceCounts, held_out: PreferenceCounts | None, total_steps: int
) -> CostEstimate:
    """Training twice over each pair, the reference once over all of them, and each validation once over the held-out.

    Raises:
        ConfigError: If there is a cap that cannot be held, or the price file is broken.
    """
    config = settings.config
    table = load_prices()
    require_price_for_cap(config, table, where=settings.place("max_cost_usd"))
    epochs = passes(total_steps, config.batch_size or 1, counts.rows)
    pairs, rows = _trained(counts), 2 * counts.rows
    tests, test_rows = (_trained(held_out), 2 * held_out.rows) if held_out else (0, 0)
    passes_over_held_out = validations(config.eval_every, total_steps)
    if config.eval_every and (total_steps - 1) % config.eval_every:
        passes_over_held_out += 1  # this loop also validates before its last step
    usage = Usage(train=round(_CUSTOM_PASSES * pairs * epochs) + tests * passes_over_held_out)
    if config.loss == "reward_model" and held_out is not None:
        measured = min(1.0, MEASURED_PAIRS / max(1, held_out.rows))
        usage = usage.plus(Usage(prefill=round(ORDERS * held_out.tokens * measured)))
    if config.loss != "reward_model":
        visited = min(1.0, epochs)
        seen = round((pairs + rows) * visited) + tests + test_rows
        if config.ref_model is not None and config.ref_model != "base":
            usage = usage.plus(Usage(prefill=seen, sample=round(rows * visited) + test_rows))
        else:
            usage = usage.plus(Usage(train=seen - round(rows * visited) - test_rows))
    return estimate_cost(table, config.backend, config.base_model, [usage, usage, usage])


def _trained(counts: PreferenceCounts) -> int:
    """Both sides of every pair; a side of n tokens is n - 1 to train on."""
    return counts.tokens - 2 * counts.rows
