"""What the judges of an RL job's rewards will cost. Light: the server plans with it."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from ...backends.estimate import CostEstimate
from ...judges.judge_catalog import parse_judge
from ...rewards.judge_scorer import price_of_judge, prompter_of
from ...rewards.reward_config import RewardPart
from .config import RlConfig

if TYPE_CHECKING:
    from .plan import RlPlan

# As in `judge_plan`, where they are explained.
_CHARS_PER_TOKEN = 3.5
_VERDICT_TOKENS = 300


@dataclass(frozen=True, slots=True)
class JudgeCost:
    """Calls at most, their cost in US dollars (None where a price is unknown), and whether they may cost money."""

    calls: int
    usd: float | None
    note: str
    paid: bool


def judge_cost(plan: RlPlan) -> JudgeCost | None:
    """What the judges behind services will be asked at most, and what that costs; None if there are none."""
    config = plan.settings.config
    parts = [part for part in config.parts() if part.is_service_judge]
    if not parts:
        return None
    calls = plan.samples
    total, dates = 0.0, set[str]()
    for part in parts:
        price = price_of_judge(part)
        if price is None:
            note = f"no price of {part.judge_model} is known; give judge_price: {{input: .., output: ..}}"
            return JudgeCost(calls * len(parts), None, note, any(map(_is_paid, parts)))
        prompter = prompter_of(part)
        chars = len(prompter.system) + len(json.dumps(prompter.schema)) + _CHARS_PER_TOKEN * plan.longest_prompt
        tokens = chars / _CHARS_PER_TOKEN + config.max_response_tokens
        total += calls * price.cost(tokens, _VERDICT_TOKENS)
        dates.add(price.as_of)
    note = f"{calls * len(parts):,} judge calls at most, ${total:.4g} at prices of {', '.join(sorted(dates))}"
    return JudgeCost(calls * len(parts), total, note, any(map(_is_paid, parts)))


def with_judges(cost: CostEstimate, judges: JudgeCost) -> CostEstimate:
    """A job's estimate with its judges' share; unknown if theirs is."""
    if judges.usd is None or cost.expected is None:
        return replace(cost, low=None, expected=None, high=None, note=f"unknown: {judges.note}")
    low, high = cost.low or 0.0, cost.high or 0.0
    added = {"low": low, "expected": cost.expected + judges.usd, "high": high + judges.usd}
    day = cost.price_date or judges.note.rpartition(" ")[2]
    note = judges.note if cost.price_date is None else f"{cost.note}; {judges.note}"
    return replace(cost, **added, price_date=day, note=note)


def _is_paid(part: RewardPart) -> bool:
    ref = parse_judge(str(part.judge_model), where="rewards")
    return ref.may_cost(part.judge_base_url or os.environ.get("OPENAI_BASE_URL"))


def has_service_judges(config: RlConfig) -> bool:
    """Whether a reward asks a judge behind a service."""
    return any(part.is_service_judge for part in config.parts())
