"""What DPO and RL jobs will use and cost, worked out before they start."""

from __future__ import annotations

from sota_ml_researcher.training.budget import require_price_for_cap
from sota_ml_researcher.training.config_resolution import Settings
from sota_ml_researcher.training.dpo_config import DpoConfig
from sota_ml_researcher.training.estimate import CostEstimate, estimate_cost
from sota_ml_researcher.training.meter import Usage
from sota_ml_researcher.training.preference_data import PreferenceCounts
from sota_ml_researcher.training.prices import load_prices
from sota_ml_researcher.training.rl_config import RlConfig
from sota_ml_researcher.training.sft_plan import passes

# A custom loss is a forward pass, then the gradient: the SDK sends the batch twice.
_CUSTOM_PASSES = 2
# Held-out pairs on which a reward model's accuracy is measured at the end; each in two orders.
MEASURED_PAIRS = 200
_ORDERS = 2


def dpo_cost(
    settings: Settings[DpoConfig], counts: PreferenceCounts, held_out: PreferenceCounts | None, total_steps: int
) -> CostEstimate:
    """Training twice over each pair, the reference once over all of them, and each validation once over the held-out.

    Raises:
        ConfigError: If there is a cap that cannot be held, or the price file is broken.
    """
    config = settings.config
    table = load_prices()
    require_price_for_cap(config, table, where=settings.place("max_cost_usd"))
    epochs = passes(total_steps, config.batch_size or 1, counts.rows)
    pairs, rows = _trained(counts), 2 * counts.rows
    tests, test_rows = (_trained(held_out), 2 * held_out.rows) if held_out else (0, 0)
    validations = _validations(config.eval_every, total_steps)
    if config.eval_every and (total_steps - 1) % config.eval_every:
        validations += 1  # this loop also validates before its last step
    usage = Usage(train=round(_CUSTOM_PASSES * pairs * epochs) + tests * validations)
    if config.loss == "reward_model" and held_out is not None:
        measured = min(1.0, MEASURED_PAIRS / max(1, held_out.rows))
        usage = usage.plus(Usage(prefill=round(_ORDERS * held_out.tokens * measured)))
    if config.loss != "reward_model":
        visited = min(1.0, epochs)
        seen = round((pairs + rows) * visited) + tests + test_rows
        if config.ref_model is not None and config.ref_model != "base":
            usage = usage.plus(Usage(prefill=seen, sample=round(rows * visited) + test_rows))
        else:
            usage = usage.plus(Usage(train=seen - round(rows * visited) - test_rows))
    return estimate_cost(table, config.backend, config.base_model, [usage, usage, usage])


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
    validations = _validations(config.eval_every, total_steps)

    def usage(answer: float, turns: float, *, taught: float) -> Usage:
        samples = groups * config.group_size
        said = _said_between(config) * (turns - 1)
        whole = mean_prompt + answer * turns + said
        # A later turn's prompt is that episode's own: all before it, sent again.
        again = (turns - 1) * mean_prompt + (answer * turns + said) * (turns - 1) / 2
        judged = _read_by_judges(config, mean_prompt, answer)
        held_out_samples = held_out[0] * validations * _VALIDATION_SAMPLES
        reference = round(samples * whole) if config.kl_coef else 0
        return Usage(
            train=round(samples * (whole - 1) * taught),
            prefill=round(groups * mean_prompt + (samples + held_out_samples) * (again + judged * turns))
            + held_out[1] * validations
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
            total += _OPPONENTS / 2 * _ORDERS * (mean_prompt + 2 * answer + _MARKUP_TOKENS)
        elif part.type == "judge" and not part.is_service_judge:
            asked = mean_prompt + answer + _MARKUP_TOKENS + len(part.rubric or "") / _CHARS_PER_TOKEN
            total += 2 * asked if part.style == "yes_no" else asked + _INSTRUCTIONS_TOKENS
    return total


def scored_samples(config: RlConfig, groups: int, held_out: int, total_steps: int) -> int:
    """How often a response is scored: in training, in validations, and in the dry run; each turn of a retry counts."""
    turns = config.environment.max_turns if config.environment and config.environment.type == "retry" else 1
    validated = held_out * _VALIDATION_SAMPLES * _validations(config.eval_every, total_steps)
    tried = _DRY_RUN_ROWS * min(config.group_size, _DRY_RUN_SAMPLES) + _PROBES
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
# Prompts that the dry run samples, of a group's size each at most, and what its probes say.
_DRY_RUN_ROWS, _DRY_RUN_SAMPLES, _PROBES = 8, 16, 15
# Of a message's role and its ends in a chat template; and of English text.
_MARKUP_TOKENS = 8
# What a judge that writes a score is told besides; and what a preference model compares a response with at most.
_INSTRUCTIONS_TOKENS = 120
_OPPONENTS = 6
_CHARS_PER_TOKEN = 4


def _trained(counts: PreferenceCounts) -> int:
    """Both sides of every pair; a side of n tokens is n - 1 to train on."""
    return counts.tokens - 2 * counts.rows


def _validations(eval_every: int | None, total_steps: int) -> int:
    """Before every n-th step, and at the end."""
    return -(-total_steps // eval_every) + 1 if eval_every else 1
