"""Checking files that are no supervised rows: preferences, and prompts for a reward. Light until it is asked."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from sota_ml_researcher.core.errors import DataError
from sota_ml_researcher.training.data_files import read_rows
from sota_ml_researcher.training.preference_check import PreferenceFindings, check_preferences
from sota_ml_researcher.training.preference_rows import is_preference_row
from sota_ml_researcher.training.reward_check import RewardReport
from sota_ml_researcher.training.rl_config import RlConfig

DataKind = Literal["supervised", "preferences"]


def kind_of(path: Path) -> DataKind:
    """What the first readable row of a file is for.

    Raises:
        DataError: If the file cannot be read.
    """
    for row in read_rows(path):
        if row.value is not None:
            return "preferences" if is_preference_row(row.value) else "supervised"
    return "supervised"


def preference_report(train_file: Path, val_file: Path | None) -> dict[str, Any]:
    """Everything found in a file of preferences.

    Raises:
        DataError: If the file as a whole cannot be read.
    """
    found: PreferenceFindings = check_preferences(train_file, val_file)
    return {
        "file": str(train_file),
        "format": "preferences",
        "ok": found.usable > 0 and found.bad_count == 0,
        "rows": found.rows,
        "usable_rows": found.usable,
        "bad_rows": [f"line {line}: {error}" for line, error in found.bad],
        "contradictory": found.contradictory[:10],
        "repeated": found.repeated[:10],
        "leaked": found.leaked[:10],
        "chosen_longer_share": found.longer_share,
        "warnings": found.warnings(),
    }


def reward_report(config: RlConfig, *, sample: bool) -> RewardReport:
    """Dry-run a reward: its probes, and with ``sample`` what it gives the weights the run would start from.

    Raises:
        ConfigError: If the reward cannot be used.
        DataError: If the rows cannot be used.
        BackendError: If samples are wanted and the backend does not answer.
    """
    from sota_ml_researcher.training.rl_rows import load_problems

    problems = load_problems(
        Path(config.train_file), config.parts(), system_prompt=config.system_prompt, skip_bad_rows=config.skip_bad_rows
    )
    if sample:
        from sota_ml_researcher.training.rl_dry_run import dry_run_once

        return dry_run_once(config, problems)
    from sota_ml_researcher.training.rl_plan import openings, probe_reward

    problems = openings(config, problems)
    report = probe_reward(config, problems)
    if report is None:
        raise DataError("only a model gives this reward: there is nothing to probe without sampling it")
    return report
