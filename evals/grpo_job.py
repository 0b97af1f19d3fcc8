"""One RL job, with judges behind services where its rewards name any. Heavy: only a worker imports it."""

from __future__ import annotations

from pathlib import Path

from sota_ml_researcher.evals.reward_judge import ServiceJudge
from sota_ml_researcher.training.rl_config import load_rl_settings
from sota_ml_researcher.training.rl_recipe import run_rl
from sota_ml_researcher.training.run_context import Outcome, RunContext


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
