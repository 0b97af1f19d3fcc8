"""Checking files that are no supervised rows: preferences, and prompts for a reward. Light until it is asked."""

from __future__ import annotations

from pathlib import Path

from ...core.errors import DataError
from ...rewards.probes import RewardReport
from .config import RlConfig


def reward_report(config: RlConfig, *, sample: bool) -> RewardReport:
    """Dry-run a reward: its probes, and with ``sample`` what it gives the weights the run would start from.

    Raises:
        ConfigError: If the reward cannot be used.
        DataError: If the rows cannot be used.
        BackendError: If samples are wanted and the backend does not answer.
    """
    from ...rewards.problems import load_problems

    problems = load_problems(
        Path(config.train_file), config.parts(), system_prompt=config.system_prompt, skip_bad_rows=config.skip_bad_rows
    )
    if sample:
        from .dry_run import dry_run_once

        return dry_run_once(config, problems)
    from .plan import openings, probe_reward

    problems = openings(config, problems)
    report = probe_reward(config, problems)
    if report is None:
        raise DataError("only a model gives this reward: there is nothing to probe without sampling it")
    return report
