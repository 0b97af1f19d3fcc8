"""A reward model: one that answers which of two responses is better, as in the cookbook's preference recipe.

The pairs become comparisons in both orders, and supervised fine-tuning does the rest.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from statistics import fmean
from typing import Any

from ...backends.connection import Backend, backend_errors
from ...core.files import append_json_line, write_atomically
from ...data.mixtures import Source, as_sources
from ...data.preference_rows import PreferencePair, comparison_conversations, to_pair
from ...data.row_files import read_rows, usable_rows
from ...jobs.context import Outcome, RunContext
from ...jobs.run_files import METRICS
from ...models.renderers import load_renderer
from ...rewards.model_scorers import preference_model
from ..sft.config import SftConfig
from ..sft.method import run_sft
from .config import DpoConfig, load_dpo_settings
from .plan import MEASURED_PAIRS

# The comparisons are written in our own columns.
_OWN = {"columns", "beta", "loss", "label_smoothing", "ref_model"}
# A pair is two rows: one in each order.
ROWS_PER_PAIR = 2
PAIR_ACCURACY = "test/pair_accuracy"
_AT_ONCE = 16


def run_reward_model_job(context: RunContext, config_file: Path) -> Outcome:
    """Run the reward-model job whose resolved config lies in ``config_file``.

    Raises:
        ResearcherError: For bad data, a model that cannot be had, or a backend that refuses.
    """
    config = load_dpo_settings(config_file, None).config
    outcome = run_sft(context, comparison_config(context.folder, config))
    final: Any = outcome.summary.get("final_checkpoint")
    if not outcome.finished or config.val_file is None or final is None:
        return outcome
    backend = context.connect(config.backend, config.base_url)
    with backend_errors(backend):
        accuracy = asyncio.run(pair_accuracy(config, backend, final["sampler_path"]))
    append_json_line(context.folder / METRICS, {"step": outcome.step, PAIR_ACCURACY: accuracy})
    return replace(outcome, summary={**outcome.summary, PAIR_ACCURACY: accuracy})


async def pair_accuracy(config: DpoConfig, backend: Backend, sampler_path: str) -> float:
    """Share of the held-out pairs (the first hundreds) whose better answer the model prefers, both orders averaged."""
    held_out = _held_out(config)
    pairs = list(islice(_pairs(held_out, config), MEASURED_PAIRS)) if held_out else []
    judge = preference_model(backend, sampler_path, load_renderer(config.base_model, config.renderer))
    places = asyncio.Semaphore(_AT_ONCE)

    async def one(pair: PreferencePair) -> float:
        async with places:
            chance = await judge.prefers(pair.prompt, pair.chosen_text, pair.rejected_text)
        return 1.0 if chance > 0.5 else 0.5 if chance == 0.5 else 0.0

    return fmean(await asyncio.gather(*[one(pair) for pair in pairs]))


def comparison_config(folder: Path, config: DpoConfig) -> SftConfig:
    """The supervised job on comparisons, whose data files are written to the run's folder."""
    trained = [
        source.model_copy(
            update={
                "path": str(write_comparisons(folder, f"train{i or ''}", source, config)),
                "rows": source.rows and source.rows * ROWS_PER_PAIR,
                "columns": None,
            }
        )
        for i, source in enumerate(config.sources)
    ]
    single = isinstance(config.train_file, str)
    changes: dict[str, object] = {"train_file": trained[0].path if single else tuple(trained)}
    if (held_out := _held_out(config)) is not None:
        changes["val_file"] = str(write_comparisons(folder, "val", held_out, config))
    if config.batch_size is not None:
        changes["batch_size"] = config.batch_size * ROWS_PER_PAIR
    return SftConfig.model_validate({**config.model_dump(exclude=_OWN), **changes})


def write_comparisons(folder: Path, name: str, source: Source, config: DpoConfig) -> Path:
    """Write ``comparisons_NAME.jsonl``: each pair of a file in both orders, with the label A or B.

    Raises:
        DataError: For the first row that cannot be used, unless such rows are to be skipped.
    """
    lines = [
        json.dumps({"messages": messages}) + "\n"
        for pair in _pairs(source, config)
        for messages in comparison_conversations(pair)
    ]
    path = folder / f"comparisons_{name}.jsonl"
    write_atomically(path, "".join(lines))
    return path


def _held_out(config: DpoConfig) -> Source | None:
    return as_sources(config.val_file, config.columns)[0] if config.val_file is not None else None


def _pairs(source: Source, config: DpoConfig) -> Iterator[PreferencePair]:
    outcomes = ((row.number, row.parsed(to_pair)) for row in read_rows(source.file, source.columns))
    return usable_rows(source.file, outcomes, skip_bad_rows=config.skip_bad_rows)
