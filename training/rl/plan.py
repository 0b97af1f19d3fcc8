"""What an RL job will do, worked out before it starts."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from ...backends.estimate import CostEstimate
from ...core.errors import ConfigError, DataError
from ...core.settings import Origin, Settings
from ...doctrine.rules import integer, number, rule
from ...models import hyperparameters
from ...models.configs import load_model_config
from ...models.hyperparameters import Derived
from ...models.lora_params import require_accepted_rank
from ...models.model_ref import resolve_model
from ...models.renderers import load_renderer
from ...rewards.environments import make_environment, opened, prober
from ...rewards.probes import RewardReport, check_reward
from ...rewards.problems import Problem, load_problems
from ...rewards.reward_config import RewardPart
from ...rewards.sandbox.modes import require_isolation, unsandboxed_warnings
from ...rewards.scorers import Scorers
from .config import CLIP_RULES, RlConfig
from .cost import rl_cost, scored_samples

_MODEL_GIVEN = {"judge", "preference_model"}
# Rows whose episodes are begun once before the job starts.
_TRIED_ROWS = 2000
# A config in which the environment is the only thing that gives rewards.
_ALONE = {"reward_type": None, "rewards": None}


@dataclass(frozen=True, slots=True)
class RlPlan:
    """A job ready to start.

    Attributes:
        settings: The config with every null derived, and the origin of each value.
        rows: Usable prompts.
        total_steps: Steps of the whole run.
        most_sampled_tokens: Tokens the run will sample at most.
        longest_prompt: Tokens of the longest prompt.
        samples: Responses that will be scored at most, validations and dry run included.
        report: What the reward gave to probes, or None where only a model can tell.
        warnings: What the user should know before spending time or money.
    """

    settings: Settings[RlConfig]
    rows: int
    total_steps: int
    most_sampled_tokens: int
    longest_prompt: int
    samples: int
    report: RewardReport | None
    warnings: tuple[str, ...]
    cost: CostEstimate


def plan_rl(settings: Settings[RlConfig]) -> RlPlan:
    """Check everything that can be checked without a model, and derive what was left out.

    Raises:
        ConfigError: If a path does not exist, a reward cannot be used, or a setting does not fit model or backend.
        DataError: If the data cannot be used.
        ModelError: If the model, its tokenizer or its chat template cannot be had.
    """
    settings = prepared(settings)
    config = settings.config
    require_accepted_rank(config.lora_rank, config.backend, where=settings.place("lora_rank"))
    _check_judges(config, settings.place("rewards"))
    problems = load_problems(
        Path(config.train_file), config.parts(), system_prompt=config.system_prompt, skip_bad_rows=config.skip_bad_rows
    )
    tests: list[Problem] = []
    if config.val_file is not None:
        tests = load_problems(Path(config.val_file), config.parts(), skip_bad_rows=config.skip_bad_rows)
    problems, tests = openings(config, problems), openings(config, tests)
    longest, prompt_tokens = _prompt_lengths(config, problems)
    held_out = (len(tests), _prompt_lengths(config, tests)[1] if tests else 0)
    settings, total_steps = _with_schedule(settings, len(problems))
    report = probe_reward(settings.config, problems)
    config = settings.config
    turns = config.environment.max_turns if config.environment else 1
    groups = total_steps * min(config.batch_size or 1, len(problems))
    sampled = groups * config.group_size * turns * config.max_response_tokens
    warnings = tuple(_warnings(config, total_steps, report, longest))
    cost = rl_cost(settings, len(problems), prompt_tokens, held_out, total_steps)
    scored = scored_samples(config, groups, len(tests), total_steps)
    return RlPlan(settings, len(problems), total_steps, sampled, longest, scored, report, warnings, cost)


def _check_judges(config: RlConfig, where: str) -> None:
    """See that judges on the run's backend can be there.

    Raises:
        ConfigError: If one is a folder on this machine and the backend is not.
        ModelError: If one is no model.
    """
    for part in config.parts():
        if part.type != "judge" or part.is_service_judge or part.judge_model is None:
            continue
        if part.judge_model.startswith("tinker://"):
            continue
        if resolve_model(part.judge_model).path is not None and config.backend != "embedded":
            raise ConfigError(
                f"the judge {part.judge_model} is a folder on this machine, and backend {config.backend} cannot see it",
                where=where,
                fix="Name a model that the backend serves, a tinker:// sampler path, or claude-...",
            )


def openings(config: RlConfig, problems: list[Problem]) -> list[Problem]:
    """The problems as their episodes begin; the first thousands of rows are tried, the rest stay as they are.

    Raises:
        ConfigError: If the environment cannot be used.
        DataError: If it cannot begin an episode for some row, unless bad rows are to be skipped.
    """
    if config.environment is None or config.environment.type != "custom" or not problems:
        return problems

    async def begin() -> list[Problem]:
        scorers = Scorers((), max_tokens=config.max_response_tokens)
        environment = make_environment(config.model_copy(update=_ALONE), scorers)
        assert environment is not None
        try:
            return await opened(environment, problems[:_TRIED_ROWS], seed=config.seed)
        finally:
            await environment.close()

    try:
        return [*asyncio.run(begin()), *problems[_TRIED_ROWS:]]
    except DataError:
        if not config.skip_bad_rows:
            raise
        return problems


def _with_limit(settings: Settings[RlConfig]) -> Settings[RlConfig]:
    """The environment's token limit, which no model's context may be smaller than."""
    config = settings.config
    if config.environment is None:
        return settings
    model = load_model_config(resolve_model(config.base_model))
    if not model.has("max_position_embeddings"):
        return settings
    context = model.integer("max_position_embeddings")
    given = config.environment.max_trajectory_tokens
    if given is not None and given > context:
        raise ConfigError(
            f"max_trajectory_tokens {given} is more than the model's context of {context}",
            where=settings.place("environment"),
            fix=f"Set it to {context} or less, or leave it out",
        )
    environment = config.environment.model_copy(update={"max_trajectory_tokens": given or context})
    return settings.derived({"environment": (environment, settings.origins["environment"])})


def prepared(settings: Settings[RlConfig]) -> Settings[RlConfig]:
    """The settings with absolute paths and the environment's token limit.

    Raises:
        ConfigError: If a file does not exist, or the limit is more than the model's context.
        ModelError: If the model is not known.
    """
    return _with_limit(_with_paths(settings))


def probe_reward(config: RlConfig, problems: list[Problem]) -> RewardReport | None:
    """Run the reward's probes, which also finds a script that cannot be loaded; None if a model gives the reward.

    Raises:
        ConfigError: If the reward cannot be used at all.
    """
    if config.environment is not None and config.environment.type == "interpreter":
        require_isolation(allow_unsandboxed=config.allow_unsandboxed, where="environment")
    parts = [part for part in config.parts() if part.type not in _MODEL_GIVEN]
    of_its_own = config.environment is not None and config.environment.type == "custom"
    if not parts and not of_its_own:
        return None
    config = config.model_copy(update={"reward_type": None, "reward_script": None, "rewards": tuple(parts) or None})

    async def probe() -> RewardReport:
        scorers = Scorers(parts, max_tokens=config.max_response_tokens, allow_unsandboxed=config.allow_unsandboxed)
        environment = make_environment(config, scorers)
        try:
            probed = prober(config, environment, scorers)
            unsafe = unsandboxed_warnings(runs_code=config.runs_code)
            return await check_reward(probed, parts, problems, group_size=config.group_size, warnings=unsafe)
        finally:
            await scorers.close()
            if environment is not None:
                await environment.close()

    return asyncio.run(probe())


def _with_paths(settings: Settings[RlConfig]) -> Settings[RlConfig]:
    """Paths made absolute: the worker runs in another folder."""
    config = settings.config
    found: dict[str, tuple[Any, Origin]] = {}
    for key, name in (
        ("train_file", config.train_file),
        ("val_file", config.val_file),
        ("reward_script", config.reward_script),
    ):
        if name is not None:
            found[key] = (str(settings.data_file(key, name)), settings.origins[key])
    if config.rewards is not None:
        found["rewards"] = (tuple(_absolute(settings, part) for part in config.rewards), settings.origins["rewards"])
    if config.environment is not None and config.environment.script is not None:
        script = str(settings.data_file("environment", config.environment.script))
        found["environment"] = (
            config.environment.model_copy(update={"script": script}),
            settings.origins["environment"],
        )
    if config.output_dir is not None:
        found["output_dir"] = (str(Path(config.output_dir).expanduser().absolute()), settings.origins["output_dir"])
    return settings.derived(found)


def _absolute(settings: Settings[RlConfig], part: RewardPart) -> RewardPart:
    if part.script is None:
        return part
    return part.model_copy(update={"script": str(settings.data_file("rewards", part.script))})


def _prompt_lengths(config: RlConfig, problems: list[Problem]) -> tuple[int, int]:
    """Tokens of the longest prompt, and of all together.

    Raises:
        ConfigError: If it leaves no room for a response.
    """
    renderer = load_renderer(config.base_model, config.renderer)
    lengths = [(len(renderer.generation_prompt(problem.messages)), problem.line) for problem in problems]
    longest, line = max(lengths)
    model = load_model_config(resolve_model(config.base_model))
    own = config.environment.max_trajectory_tokens if config.environment else None
    if own is not None or model.has("max_position_embeddings"):
        context = own or model.integer("max_position_embeddings")
        name = "max_trajectory_tokens" if own is not None else "the model's context"
        if longest + config.max_response_tokens > context:
            raise ConfigError(
                f"the prompt of line {line} has {longest} tokens; with max_response_tokens "
                f"{config.max_response_tokens} that is more than {name} of {context}",
                where="max_response_tokens",
                fix=f"Set it to {max(1, context - longest)} or less, or shorten the prompt",
            )
    return longest, sum(length for length, _ in lengths)


def _with_schedule(settings: Settings[RlConfig], rows: int) -> tuple[Settings[RlConfig], int]:
    config = settings.config
    changes: dict[str, tuple[Any, Origin]] = {}

    def fill(key: str, derived: Derived) -> Any:
        changes[key] = (derived.value, Origin(kind="derived", rule=derived.rule_id, reason=derived.reason))
        return derived.value

    batch = config.batch_size or int(fill("batch_size", _batch(rows)))
    epochs = config.num_epochs
    if config.num_steps is None and epochs is None:
        epochs = 1
        changes["num_epochs"] = (1, Origin(kind="derived", reason="one pass over the prompts"))
    total_steps = config.num_steps or -(-rows * (epochs or 1) // min(batch, rows))
    if config.learning_rate is None:
        fill("learning_rate", Derived(number("rl.lr"), "rl.lr", "the start for LoRA and RL"))
    if config.eval_every is None:
        fill("eval_every", hyperparameters.derive_eval_every(total_steps))
    if config.checkpoint_every is None:
        fill("checkpoint_every", hyperparameters.derive_checkpoint_every(total_steps))
    if config.clip_ratio is None and config.loss_fn in CLIP_RULES:
        rule_id = CLIP_RULES[config.loss_fn]
        low, high = (float(value) for value in cast("Sequence[float]", rule(rule_id).value))
        changes["clip_ratio"] = (
            (low, high),
            Origin(kind="derived", rule=rule_id, reason=f"usual for {config.loss_fn}"),
        )
    return settings.derived(changes), total_steps


def _batch(rows: int) -> Derived:
    usual = integer("rl.batch")
    if rows >= usual:
        return Derived(usual, "rl.batch", "the recipe's prompts a step")
    return Derived(rows, "rl.batch", f"all {rows} prompts, below the usual {usual}")


def _warnings(config: RlConfig, total_steps: int, report: RewardReport | None, longest: int) -> list[str]:
    found = report.warnings if report is not None else unsandboxed_warnings(runs_code=config.runs_code)
    found = [*found, *_episode_warnings(config, longest)]
    found += _learned_warnings(config)
    if config.num_substeps > integer("rl.substeps") and config.loss_fn == "importance_sampling":
        found.append(
            "several optimizer steps a batch go with loss_fn ppo, which bounds how far they move (rl.substeps)"
        )
    if config.temperature != number("rl.temperature"):
        found.append(
            "another temperature than 1 makes the sampled and the trained distribution differ (rl.temperature)"
        )
    if (config.max_steps_off_policy or 0) > integer("rl.staleness"):
        found.append(f"samples may be {config.max_steps_off_policy} steps old; under 5 is safe (rl.staleness)")
    if config.max_steps_off_policy and config.drop_constant_groups:
        found.append("overlapping steps: a resumed run draws other samples than an undisturbed one")
    if config.val_file is None:
        found.append("no val_file: held-out reward cannot be seen and no best checkpoint is kept")
    if total_steps < 10:
        found.append(f"only {total_steps} steps")
    return found


def _episode_warnings(config: RlConfig, longest: int) -> list[str]:
    if config.environment is None or config.environment.max_trajectory_tokens is None:
        return []
    limit = config.environment.max_trajectory_tokens
    needed = longest + config.environment.max_turns * config.max_response_tokens
    if needed <= limit:
        return []
    return [f"an episode of all its turns may need {needed:,} tokens and ends at {limit:,} (environment)"]


def _learned_warnings(config: RlConfig) -> list[str]:
    types = {part.type for part in config.parts()}
    found: list[str] = []
    if types & _MODEL_GIVEN and config.kl_coef == 0:
        found.append("a learned reward without kl_coef invites reward hacking (rl.kl_coef, reward.hacking)")
    if "preference_model" in types:
        found.append(
            "a preference_model compares the answers of a group, so its mean stays at 0.5: watch a check with "
            "weight 0 beside it, or run_judge_eval"
        )
    return found
