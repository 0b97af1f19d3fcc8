"""What a DPO or reward-model job will do, worked out before it starts."""

from __future__ import annotations

from pathlib import Path

from ...backends.estimate import CostEstimate
from ...backends.meter import Usage
from ...core.settings import Origin, Settings
from ...data.column_proposal import require_known_shape
from ...data.columns import ColumnMap
from ...data.mixtures import Mix
from ...data.preference_check import check_preferences
from ...data.preferences import PreferenceCounts, count_pairs, mixed_pair_counts
from ...doctrine.rules import integer, number
from ...models.chat import ChatRenderer
from ...models.configs import ModelConfig
from ...models.hyperparameters import Derived, derive_batch_size, derive_learning_rate
from ...models.renderers import load_renderer
from .. import plan as shared
from ..plan import Plan
from .config import BETA_RULES, DpoConfig

# A custom loss is a forward pass, then the gradient: the SDK sends the batch twice.
_CUSTOM_PASSES = 2
# Held-out pairs on which a reward model's accuracy is measured at the end; each in two orders.
MEASURED_PAIRS = 200


def plan_dpo(settings: Settings[DpoConfig]) -> Plan[DpoConfig]:
    """Check everything that can be checked without training, and derive what was left out.

    Raises:
        ConfigError: If a path does not exist or a setting does not fit the model or the backend.
        DataError: If the data cannot be used.
        ModelError: If the model, its tokenizer or its chat template cannot be had.
    """
    settings, model = shared.with_model(_with_beta(settings))
    config = settings.config
    renderer = load_renderer(config.base_model, config.renderer)
    each = [_count(source.file, source.columns, config, renderer) for source in config.sources]
    held_out = _count(Path(config.val_file), config.columns, config, renderer) if config.val_file else None
    shared.require_usable_rows(settings, *each, held_out)
    mix = Mix.of(config.sources, [counts.rows for counts in each])
    counts = mixed_pair_counts(each, mix, [source.label for source in config.sources])
    epochs = Derived(integer("dpo.epochs"), "dpo.epochs", "quality can fall before the first pass ends")
    defaults = shared.Defaults(
        epochs,
        lambda epochs: derive_batch_size(counts.rows, epochs, usual="dpo.batch"),
        lambda steps: _learning_rate(config, model, steps),
    )
    settings, total_steps = shared.derive_schedule(settings, counts.rows, defaults)
    visited = shared.passes(total_steps, settings.config.batch_size or 1, counts.rows)
    is_reward = config.loss == "reward_model"
    cost = dpo_cost(settings.config, counts, held_out, total_steps)
    # A pair teaches one comparison, not the words of its answers: one bit per pair is the most it can hold.
    capacity = shared.capacity_of(config, model, loss_tokens=counts.rows, rows=counts.rows, epochs=visited)
    return Plan(
        kind="reward_model" if is_reward else "dpo",
        method="Reward model" if is_reward else f"DPO ({config.loss}, beta {config.beta:g})",
        unit="pairs",
        settings=settings,
        rows=counts.rows,
        total_steps=total_steps,
        tokens=round(counts.tokens * visited),
        capacity=capacity,
        cost=cost,
        memory=shared.memory_of(settings.config, model, longest=counts.longest),
        warnings=(*_warnings(settings.config, counts, total_steps), *shared.backend_warnings(settings.config)),
        sources=shared.contributions(
            settings.config, mix, [part.tokens for part in each], rows=round(visited * counts.rows), cost=cost
        ),
        details={"answer_tokens": counts.answer_tokens},
    )


def _count(path: Path, columns: ColumnMap | None, config: DpoConfig, renderer: ChatRenderer) -> PreferenceCounts:
    require_known_shape(path, columns, "preferences")
    return count_pairs(path, renderer, max_seq_len=config.max_seq_len, columns=columns)


def _with_beta(settings: Settings[DpoConfig]) -> Settings[DpoConfig]:
    loss, beta = settings.config.loss, settings.config.beta
    if beta is not None or loss not in BETA_RULES:
        return settings
    rule_id = BETA_RULES[loss]
    origin = Origin(kind="derived", rule=rule_id, reason=f"usual for loss {loss}")
    return settings.derived({"beta": (number(rule_id), origin)})


def _learning_rate(config: DpoConfig, model: ModelConfig, steps: int) -> Derived:
    if config.loss == "reward_model":  # supervised learning of a label
        return derive_learning_rate(model, steps=steps)
    rule_id = "dpo.lr.norm" if config.loss == "dpo_norm" else "dpo.lr"
    return Derived(number(rule_id), rule_id, "the start for LoRA; far below the rate of SFT")


def _warnings(config: DpoConfig, counts: PreferenceCounts, total_steps: int) -> list[str]:
    val_file = Path(config.val_file) if config.val_file else None
    several = len(config.sources) > 1
    warnings = [
        f"{source.label}: {warning}" if several else warning
        for source in config.sources
        for warning in check_preferences(
            source.file, val_file, columns=source.columns, val_columns=config.columns or {}
        ).warnings()
    ]
    warnings += shared.shared_warnings(config, counts, total_steps, unit="pairs", unseen="held-out accuracy")
    if config.load_checkpoint is None and config.base_model != "demo" and config.loss != "reward_model":
        warnings.append(
            "it starts from the base model: an SFT checkpoint of the same kind of data is the better start "
            "(dpo.reference); give its job id or state path as load_checkpoint"
        )
    return list(dict.fromkeys(warnings))  # both readings of the file say what they did not read


def dpo_cost(
    config: DpoConfig, counts: PreferenceCounts, held_out: PreferenceCounts | None, total_steps: int
) -> CostEstimate:
    """Training twice over each pair, the reference once over all of them, and each validation once over the held-out.

    Raises:
        ConfigError: If the price file is broken.
    """
    epochs = shared.passes(total_steps, config.batch_size or 1, counts.rows)
    pairs, rows = _trained(counts), 2 * counts.rows
    tests, test_rows = (_trained(held_out), 2 * held_out.rows) if held_out else (0, 0)
    passes_over_held_out = shared.validations(config.eval_every, total_steps)
    usage = Usage(train=round(_CUSTOM_PASSES * pairs * epochs) + tests * passes_over_held_out)
    if config.loss == "reward_model" and held_out is not None:
        measured = min(1.0, MEASURED_PAIRS / max(1, held_out.rows))
        usage = usage.plus(Usage(prefill=round(shared.ORDERS * held_out.tokens * measured)))
    if config.loss != "reward_model":
        visited = min(1.0, epochs)
        seen = round((pairs + rows) * visited) + tests + test_rows
        if config.ref_model is not None and config.ref_model != "base":
            usage = usage.plus(Usage(prefill=seen, sample=round(rows * visited) + test_rows))
        else:
            usage = usage.plus(Usage(train=seen - round(rows * visited) - test_rows))
    return shared.estimated(config, [usage, usage, usage])


def _trained(counts: PreferenceCounts) -> int:
    """Both sides of every pair; a side of n tokens is n - 1 to train on."""
    return counts.tokens - 2 * counts.rows
