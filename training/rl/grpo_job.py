"""One RL job, with judges behind services where its rewards name any. Heavy: only a worker imports it."""

from __future__ import annotations

from pathlib import Path

from ...jobs.context import Outcome, RunContext
from ...rewards.judge_scorer import ServiceJudge
from .config import load_rl_settings
from .recipe import run_rl


def run_grpo_job(context: RunContext, config_file: Path) -> Outcome:
    """Run the RL job whose resolved config lies in ``config_file`` (see `run_rl`)."""
    config = load_rl_settings(config_file, None).config
    costs: dict[int, float] = {}

    def told(place: int, usd: float) -> None:
        costs[place] = usd
        context.judged(sum(costs.values()))

    def judge(place: int) -> ServiceJudge:
        return ServiceJudge(config.parts()[place], context.folder, lambda usd: told(place, usd))

    return run_rl(context, config, judges=judge)
