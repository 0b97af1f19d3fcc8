"""One reward-model job: the cookbook's preference recipe, a model that answers which of two responses is better.

The pairs become comparisons in both orders, and the supervised loop does the rest. Heavy: imports torch, tinker.
"""

from __future__ import annotations

import json
from pathlib import Path

from sota_ml_researcher.core.errors import DataError
from sota_ml_researcher.core.files import write_atomically
from sota_ml_researcher.training.comparison_rows import comparison_conversations
from sota_ml_researcher.training.data_files import at_line, read_rows
from sota_ml_researcher.training.dpo_config import DpoConfig, load_dpo_settings
from sota_ml_researcher.training.preference_data import parse_pair
from sota_ml_researcher.training.run_context import Outcome, RunContext
from sota_ml_researcher.training.sft_config import SftConfig
from sota_ml_researcher.training.sft_recipe import run_sft

_OWN = {"beta", "loss", "label_smoothing", "ref_model"}
# A pair is two rows: one in each order.
ROWS_PER_PAIR = 2


def run_reward_model_job(context: RunContext, config_file: Path) -> Outcome:
    """Run the reward-model job whose resolved config lies in ``config_file``.

    Raises:
        ResearcherError: For bad data, a model that cannot be had, or a backend that refuses.
    """
    config = load_dpo_settings(config_file, None).config
    return run_sft(context, comparison_config(context.folder, config))


def comparison_config(folder: Path, config: DpoConfig) -> SftConfig:
    """The supervised job on comparisons, whose data files are written to the run's folder."""
    changes: dict[str, object] = {"train_file": str(write_comparisons(folder, "train", config.train_file, config))}
    if config.val_file is not None:
        changes["val_file"] = str(write_comparisons(folder, "val", config.val_file, config))
    if config.batch_size is not None:
        changes["batch_size"] = config.batch_size * ROWS_PER_PAIR
    return SftConfig.model_validate({**config.model_dump(exclude=_OWN), **changes})


def write_comparisons(folder: Path, name: str, file: str, config: DpoConfig) -> Path:
    """Write ``comparisons_NAME.jsonl``: each pair of a file in both orders, with the label A or B.

    Raises:
        DataError: For the first row that cannot be used, unless such rows are to be skipped.
    """
    lines: list[str] = []
    for row in read_rows(Path(file)):
        pair = parse_pair(row)
        if isinstance(pair, DataError):
            if config.skip_bad_rows:
                continue
            raise at_line(Path(file), row.number, pair)
        lines += [json.dumps({"messages": messages}) + "\n" for messages in comparison_conversations(pair)]
    path = folder / f"comparisons_{name}.jsonl"
    write_atomically(path, "".join(lines))
    return path
