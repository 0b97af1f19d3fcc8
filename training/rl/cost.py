"""What DPO and RL jobs will use and cost, worked out before they start."""

from __future__ import annotations

from ...backends.estimate import CostEstimate, estimate_cost
from ...backends.meter import Usage
from ...backends.prices import load_prices, require_price_for_cap
from ...core.settings import Settings
from ...rewards.probes import PROBED_ROWS, PROBES_PER_ROW, SAMPLED_ROWS
from ...rewards.reward_config import OPPONENTS
from ..plan import ORDERS, validations
from .config import RlConfig


def rl_cost(
    settings: Settings[RlConfig], prompts: int, prompt_tokens: int, held_out: tuple[int, int], total_steps: int
) -> CostEstimate:
    """From answers of one token that teach nothing, over half of what is allowed (tokens and turns), to all of it.

    Args:
        settings: The job's settings, all derived.
        prompts: Prompts to train on.
        prompt_tokens: Tokens of them all together.
        held_out: Validation prompts, and their tokens together.
        total_steps: Steps of the run.

    Raises:
        ConfigError: If there is a cap that cannot be held, or the price file is broken.
    """
    config = settings.config
    table = load_prices()
    judged = any(part.is_service_judge for part in config.parts())
    require_price_for_cap(config, table, where=settings.place("max_cost_usd"), judged=judged)
    groups = total_steps * min(config.batch_size or 1, prompts)
    mean_prompt = prompt_tokens / prompts
    passes_over_held_out = validations(config.eval_every, total_steps)

    def usage(answer: float, turns: float, *, taught: float) -> Usage:
        samples = groups * config.group_size
        said = _said_between(config) * (turns - 1)
        whole = mean_prompt + answer * turns + said
        # A later turn's prompt is that episode's own: all before it, sent again.
        again = (turns - 1) * mean_prompt + (answer * turns + said) * (turns - 1) / 2
        judged = _read_by_judges(config, mean_prompt, answer)
        held_out_samples = held_out[0] * passes_over_held_out * _VALIDATION_SAMPLES
        reference = round(samples * whole) if config.kl_coef else 0
        return Usage(
            train=round(samples * (whole - 1) * taught),
            prefill=round(groups * mean_prompt + (samples + held_out_samples) * (again + judged * turns))
            + held_out[1] * passes_over_held_out
            + reference,
            sample=round((samples + held_out_samples) * answer * turns),
        )

    longest = config.max_response_tokens
    most = config.environment.max_turns if config.environment else 1
    low = usage(1, 1, taught=0.0 if config.drop_constant_groups else 1.0)
    expected, high = usage(longest / 2, (1 + most) / 2, taught=1.0), usage(longest, most, taught=1.0)
    return estimate_cost(table, config.backend, config.base_model, [low, expected, high])


def _read_by_judges(config: RlConfig, mean_prompt: float, answer: float) -> float:
    """Tokens that judges and preference models on the backend read for one response."""
    total = 0.0
    for part in config.parts():
        if part.type == "preference_model":
            # Half of its comparisons are its own; each is asked in two orders.
            total += OPPONENTS / 2 * ORDERS * (mean_prompt + 2 * answer + _MARKUP_TOKENS)
        elif part.type == "judge" and not part.is_service_judge:
            asked = mean_prompt + answer + _MARKUP_TOKENS + len(part.rubric or "") / _CHARS_PER_TOKEN
            total += 2 * asked if part.style == "yes_no" else asked + _INSTRUCTIONS_TOKENS
    return total


def scored_samples(config: RlConfig, groups: int, held_out: int, total_steps: int) -> int:
    """How often a response is scored: in training, in validations, and in the dry run; each turn of a retry counts."""
    turns = config.environment.max_turns if config.environment and config.environment.type == "retry" else 1
    validated = held_out * _VALIDATION_SAMPLES * validations(config.eval_every, total_steps)
    tried = SAMPLED_ROWS * min(config.group_size, _DRY_RUN_SAMPLES) + PROBED_ROWS * PROBES_PER_ROW
    return (groups * config.group_size + validated + tried) * turns


def _said_between(config: RlConfig) -> float:
    """Tokens the environment says between two turns: what it is known to say at most, else as many as the model may."""
    if config.environment is None:
        return 0
    if config.environment.type == "retry" and not config.environment.show_errors:
        return _MARKUP_TOKENS + len(config.environment.feedback) / _CHARS_PER_TOKEN
    if config.environment.type == "interpreter":
        return _MARKUP_TOKENS + config.environment.max_output_chars / _CHARS_PER_TOKEN
    return _MARKUP_TOKENS + config.max_response_tokens


# Answers to each held-out prompt in a validation (`rl_validation.SAMPLES`).
_VALIDATION_SAMPLES = 4
# Samples per prompt in the dry run at most (`dry_run`).
_DRY_RUN_SAMPLES = 16
# Of a message's role and its ends in a chat template; and of English text.
_MARKUP_TOKENS = 8
# What a judge that writes a score is told besides.
_INSTRUCTIONS_TOKENS = 120
_CHARS_PER_TOKEN = 4
