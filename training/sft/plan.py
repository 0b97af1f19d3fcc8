"""What an SFT job will do, worked out before it starts."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from ...backends.estimate import CostEstimate
from ...backends.meter import Usage
from ...core.errors import DataError
from ...core.settings import Settings
from ...data.column_proposal import require_known_shape
from ...data.columns import ColumnMap
from ...data.formats import to_messages
from ...data.mixtures import Mix
from ...data.row_files import at_line, read_rows
from ...data.shards import bytes_of
from ...data.supervised import TokenCounts, count_tokens, mixed_counts
from ...models.capacity import CapacityReport
from ...models.chat import ChatRenderer
from ...models.hyperparameters import derive_batch_size, derive_epochs, derive_learning_rate
from ...models.renderers import load_renderer
from .. import plan as shared
from ..plan import Plan
from .config import SftConfig

# A few seconds of tokenizing: a larger file is counted from its first rows, and every row is checked by the worker.
_EXACT_BYTES = 16_000_000
_SAMPLE_ROWS = 4000
# How far a total scaled up from the first rows may be off when the file is not shuffled.
_SAMPLED_SPREAD = 0.1


def plan_sft(settings: Settings[SftConfig]) -> Plan[SftConfig]:
    """Check everything that can be checked without training, and derive what was left out.

    Raises:
        ConfigError: If a path does not exist or a setting does not fit the model or the backend.
        DataError: If the data cannot be used.
        ModelError: If the model, its tokenizer or its chat template cannot be had.
    """
    settings, model = shared.with_model(settings)
    config = settings.config
    renderer = load_renderer(config.base_model, config.renderer)
    each = [_count(source.file, source.columns, config, renderer) for source in config.sources]
    held_out = _count(Path(config.val_file), config.columns, config, renderer) if config.val_file else None
    shared.require_usable_rows(settings, *each, held_out)
    mix = Mix.of(config.sources, [counts.rows for counts in each])
    counts = mixed_counts(each, mix, [source.label for source in config.sources])
    defaults = shared.Defaults(
        derive_epochs(),
        lambda epochs: derive_batch_size(counts.rows, epochs),
        lambda steps: derive_learning_rate(model, steps=steps),
    )
    settings, total_steps = shared.derive_schedule(settings, counts.rows, defaults)
    config = settings.config
    epochs = shared.passes(total_steps, config.batch_size or 1, counts.rows)
    # Information is counted once, however often a row is seen; a part of a source is another part in each pass.
    known = sum(
        part.loss_tokens * min(1.0, share * max(1.0, epochs)) for part, share in zip(each, mix.shares, strict=True)
    )
    capacity = shared.capacity_of(config, model, loss_tokens=round(known), rows=counts.rows, epochs=epochs)
    # A row of n tokens is n - 1 to train on: each is asked for its successor.
    tokens = round((counts.tokens - counts.rows) * epochs)
    cost = _cost(config, tokens, counts.exact, held_out, total_steps)
    return Plan(
        kind="sft",
        method="SFT",
        unit="rows",
        settings=settings,
        rows=counts.rows,
        total_steps=total_steps,
        tokens=tokens,
        capacity=capacity,
        cost=cost,
        memory=shared.memory_of(config, model, longest=min(counts.longest, config.max_seq_len or counts.longest)),
        warnings=tuple(
            dict.fromkeys((*_warnings(config, counts, total_steps, capacity), *shared.backend_warnings(config)))
        ),
        sources=shared.contributions(
            config, mix, [part.tokens - part.rows for part in each], rows=round(epochs * counts.rows), cost=cost
        ),
        details={
            "tokens_per_epoch": counts.tokens,
            "loss_tokens_per_epoch": counts.loss_tokens,
            "counts_exact": counts.exact,
        },
    )


def _cost(
    config: SftConfig, to_train: int, exact: bool, held_out: TokenCounts | None, total_steps: int
) -> CostEstimate:
    """Training tokens, and the held-out rows as prompts at each validation."""
    times = shared.validations(config.eval_every, total_steps)
    prefill = held_out.tokens * times if held_out else 0
    scored = held_out.rows * times if held_out else 0  # scoring a row samples one token that nobody reads
    spread = 0.0 if exact and (held_out is None or held_out.exact) else _SAMPLED_SPREAD
    expected = Usage(train=to_train, prefill=prefill, sample=scored)
    return shared.estimated(config, [expected.times(factor) for factor in (1 - spread, 1.0, 1 + spread)])


def _count(path: Path, columns: ColumnMap | None, config: SftConfig, renderer: ChatRenderer) -> TokenCounts:
    require_known_shape(path, columns, "supervised")
    if bytes_of(path) <= _EXACT_BYTES:
        return count_tokens(path, renderer, max_seq_len=config.max_seq_len, columns=columns)
    counts = count_tokens(path, renderer, max_seq_len=config.max_seq_len, sample_rows=_SAMPLE_ROWS, columns=columns)
    unusable, first = _misshapen(path, columns)  # tokenizing every row takes too long here, reading it does not
    if first is None or counts.unusable > unusable:
        return counts
    return replace(counts, unusable=unusable, problems=counts.problems or (first,))


def _misshapen(path: Path, columns: ColumnMap | None) -> tuple[int, DataError | None]:
    """How many rows of a file hold no conversation, and what is wrong with the first of them."""
    count, first = 0, None
    for row in read_rows(path, columns):
        outcome = row.parsed(to_messages)
        if isinstance(outcome, DataError):
            count, first = count + 1, first or at_line(path, row.number, outcome)
    return count, first


def _warnings(config: SftConfig, counts: TokenCounts, total_steps: int, capacity: CapacityReport) -> list[str]:
    warnings = list(capacity.warnings)
    if not counts.exact:
        warnings.append(f"a large file: token counts are scaled up from its first {_SAMPLE_ROWS:,} rows")
    if capacity.verdict != "sufficient":
        warnings.append(f"capacity is {capacity.verdict} (ratio {capacity.ratio:.2g}): {capacity.advice}")
    return warnings + shared.shared_warnings(config, counts, total_steps, unit="rows", unseen="overfitting")
