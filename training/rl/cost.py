"""What an RL job will use and cost: on its backend, and at the services of its judges."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, replace

from ...backends.estimate import CHARS_PER_TOKEN, CostEstimate
from ...backends.meter import Usage
from ...judges.judge_catalog import parse_judge
from ...rewards.judge_scorer import price_of_judge, prompter_of
from ...rewards.probes import PROBED_ROWS, PROBES_PER_ROW, SAMPLED_ROWS
from ...rewards.reward_config import OPPONENTS, RewardPart
from ..plan import ORDERS, estimated, validations
from .config import MOST_DRY_RUN_SAMPLES, VALIDATION_SAMPLES, RlConfig

# Of a message's role and its ends in a chat template.
_MARKUP_TOKENS = 8
# What a judge that writes a score is told besides the answer.
_INSTRUCTIONS_TOKENS = 120
# What a judge's service writes: a reason of two sentences, and the score.
_VERDICT_TOKENS = 300


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """How much an RL job goes through.

    Attributes:
        prompts: Prompts to train on.
        prompt_tokens: Tokens of all of them together.
        longest_prompt: Tokens of the longest.
        held_out: Validation prompts.
        held_out_tokens: Tokens of all of these together.
        total_steps: Steps of the run.
    """

    prompts: int
    prompt_tokens: int
    total_steps: int
    longest_prompt: int = 0
    held_out: int = 0
    held_out_tokens: int = 0

    def groups(self, config: RlConfig) -> int:
        """Groups of samples in the whole run."""
        return self.total_steps * min(config.batch_size or 1, self.prompts)

    def validated(self, config: RlConfig) -> int:
        """Samples of all validations."""
        return self.held_out * VALIDATION_SAMPLES * validations(config.eval_every, self.total_steps)

    def scored(self, config: RlConfig) -> int:
        """How often a response is scored: in training, validations and the dry run; each turn of a retry counts."""
        turns = config.most_turns if config.environment and config.environment.type == "retry" else 1
        tried = SAMPLED_ROWS * min(config.group_size, MOST_DRY_RUN_SAMPLES) + PROBED_ROWS * PROBES_PER_ROW
        return (self.groups(config) * config.group_size + self.validated(config) + tried) * turns


@dataclass(frozen=True, slots=True)
class JudgeCost:
    """The most that judges behind services cost.

    Attributes:
        usd: In US dollars; None where a price is unknown.
        note: How it was worked out.
        day: The days of the prices, ISO.
        paid: Whether a judge may charge: one on this machine does not.
    """

    usd: float | None
    note: str
    day: str
    paid: bool


def rl_cost(config: RlConfig, work: Workload, judges: JudgeCost | None = None) -> CostEstimate:
    """From answers of one token that teach nothing, over half of what is allowed (tokens and turns), to all of it.

    Args:
        config: The job's settings, all derived.
        work: How much it goes through.
        judges: What judges behind services cost at most; the total is unknown where theirs is.

    Raises:
        ConfigError: If the price file is broken.
    """
    longest, most = config.max_response_tokens, config.most_turns
    low = _usage(config, work, 1, 1, taught=0.0 if config.drop_constant_groups else 1.0)
    expected, high = _usage(config, work, longest / 2, (1 + most) / 2), _usage(config, work, longest, most)
    cost = estimated(config, [low, expected, high])
    if judges is None:
        return cost
    if judges.usd is None or cost.expected is None:
        return replace(cost, low=None, expected=None, high=None, note=f"unknown: {judges.note}")
    return replace(
        cost,
        expected=cost.expected + judges.usd,
        high=(cost.high or 0.0) + judges.usd,
        price_date=cost.price_date or judges.day,
        note=judges.note if cost.price_date is None else f"{cost.note}; {judges.note}",
    )


def _usage(config: RlConfig, work: Workload, answer: float, turns: float, *, taught: float = 1.0) -> Usage:
    """Tokens of a whole run of answers of this many tokens and turns, of whose samples this share is trained on."""
    mean_prompt = work.prompt_tokens / work.prompts
    groups, held_out_samples = work.groups(config), work.validated(config)
    samples = groups * config.group_size
    said = _said_between(config) * (turns - 1)
    episode = mean_prompt + answer * turns + said
    # A later turn's prompt is that episode's own: all before it, sent again.
    again = (turns - 1) * mean_prompt + (answer * turns + said) * (turns - 1) / 2
    judged = _read_by_judges(config, mean_prompt, answer)
    reference = round(samples * episode) if config.kl_coef else 0
    return Usage(
        train=round(samples * (episode - 1) * taught),
        prefill=round(groups * mean_prompt + (samples + held_out_samples) * (again + judged * turns))
        + work.held_out_tokens * validations(config.eval_every, work.total_steps)
        + reference,
        sample=round((samples + held_out_samples) * answer * turns),
    )


def _read_by_judges(config: RlConfig, mean_prompt: float, answer: float) -> float:
    """Tokens that judges and preference models on the backend read for one response."""
    total = 0.0
    for part in config.parts():
        if part.type == "preference_model":
            # Half of its comparisons are its own; each is asked in two orders.
            total += OPPONENTS / 2 * ORDERS * (mean_prompt + 2 * answer + _MARKUP_TOKENS)
        elif part.type == "judge" and not part.is_service_judge:
            asked = mean_prompt + answer + _MARKUP_TOKENS + len(part.rubric or "") / CHARS_PER_TOKEN
            total += 2 * asked if part.style == "yes_no" else asked + _INSTRUCTIONS_TOKENS
    return total


def _said_between(config: RlConfig) -> float:
    """Tokens the environment says between two turns: what it is known to say at most, else as many as the model may."""
    if config.environment is None:
        return 0
    if config.environment.type == "retry" and not config.environment.show_errors:
        return _MARKUP_TOKENS + len(config.environment.feedback) / CHARS_PER_TOKEN
    if config.environment.type == "interpreter":
        return _MARKUP_TOKENS + config.environment.max_output_chars / CHARS_PER_TOKEN
    return _MARKUP_TOKENS + config.max_response_tokens


def judge_cost(config: RlConfig, work: Workload) -> JudgeCost | None:
    """What the judges behind services will be asked at most, and what that costs; None if there are none."""
    parts = [part for part in config.parts() if part.is_service_judge]
    if not parts:
        return None
    paid, scored = any(map(_is_paid, parts)), work.scored(config)
    total, dates = 0.0, set[str]()
    for part in parts:
        price = price_of_judge(part)
        if price is None:
            note = f"no price of {part.judge_model} is known; give judge_price: {{input: .., output: ..}}"
            return JudgeCost(None, note, "", paid)
        prompter = prompter_of(part)
        fixed = (len(prompter.system) + len(json.dumps(prompter.schema))) / CHARS_PER_TOKEN
        total += scored * price.cost(fixed + work.longest_prompt + config.max_response_tokens, _VERDICT_TOKENS)
        dates.add(price.as_of)
    days = ", ".join(sorted(dates))
    note = f"{scored * len(parts):,} judge calls at most, ${total:.4g} at prices of {days}"
    return JudgeCost(total, note, days, paid)


def _is_paid(part: RewardPart) -> bool:
    ref = parse_judge(str(part.judge_model), where="rewards")
    return ref.may_cost(part.judge_base_url or os.environ.get("OPENAI_BASE_URL"))
