"""What an RL job will do, worked out before it starts."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from ...core.errors import ConfigError, DataError
from ...core.settings import Origin, Settings
from ...data.column_proposal import require_known_shape
from ...data.mixtures import Mix
from ...data.row_files import read_rows
from ...doctrine.rules import integer, number, rule
from ...models.configs import load_model_config
from ...models.hyperparameters import Derived
from ...models.model_ref import resolve_model
from ...models.renderers import load_renderer
from ...rewards.environments import make_environment, opened, prober
from ...rewards.judge_scorer import check_service_judges
from ...rewards.probes import RewardReport, check_reward
from ...rewards.problems import Problem, load_mixed_problems, load_problems
from ...rewards.reward_config import NEEDS_KEY, RewardPart
from ...rewards.sandbox.modes import require_isolation, unsandboxed_warnings
from ...rewards.scorers import Scorers
from ..plan import Changes, Defaults, Plan, backend_warnings, contributions, derive_schedule, memory_of
from ..plan import prepared as with_paths
from .config import CLIP_RULES, RlConfig
from .cost import Workload, judge_cost, rl_cost

_GIVEN_BY_A_MODEL = {"judge", "preference_model"}
# Rows whose episodes are begun once before the job starts.
_TRIED_ROWS = 2000
# A config in which the environment is the only thing that gives rewards.
_ALONE = {"reward_type": None, "rewards": None}


@dataclass(frozen=True, slots=True, kw_only=True)
class RlPlan(Plan[RlConfig]):
    """An RL job ready to start. ``report``: what the reward gave to probes, or None where only a model can tell."""

    report: RewardReport | None

    def check_services(self) -> None:
        """See that each judge behind a service can be asked. Costs nothing.

        Raises:
            ResearcherError: If a key is missing or refused, a model is unknown, or a service does not answer.
        """
        asyncio.run(check_service_judges(self.settings.config.parts()))


def plan_rl(settings: Settings[RlConfig]) -> RlPlan:
    """Check everything that can be checked without a model, and derive what was left out.

    Raises:
        ConfigError: If a path does not exist, a reward cannot be used, or a setting does not fit model or backend.
        DataError: If the data cannot be used.
        ModelError: If the model, its tokenizer or its chat template cannot be had.
    """
    settings = prepared(settings)
    config = settings.config
    _check_judges(config, settings.place("rewards"))
    loaded, mix = _mixed_problems(config)
    problems = openings(config, loaded)
    tests = openings(config, _held_out(config, config.val_file)) if config.val_file is not None else []
    bounds = itertools.pairwise(itertools.accumulate(mix.sizes, initial=0))
    lengths = [_prompt_lengths(config, problems[low:high]) for low, high in bounds]
    longest = max(length for length, _ in lengths)
    settings, total_steps = _with_schedule(settings, mix.rows)
    config = settings.config
    report = probe_reward(config, problems)
    work = Workload(
        prompts=mix.rows,
        prompt_tokens=mix.per_pass([tokens for _, tokens in lengths]),
        longest_prompt=longest,
        held_out=len(tests),
        held_out_tokens=_prompt_lengths(config, tests)[1] if tests else 0,
        total_steps=total_steps,
    )
    judges = judge_cost(config, work)
    cost = rl_cost(config, work, judges)
    sampled = config.group_size * config.most_turns * config.max_response_tokens
    details: dict[str, object] = {"longest_prompt": longest}
    if report is not None:
        details["probes"] = {probe.name: probe.share for probe in report.probes}
    return RlPlan(
        kind="grpo",
        method=f"RL ({config.loss_fn}, {_rewarded_by(config)})",
        unit="prompts",
        settings=settings,
        rows=mix.rows,
        total_steps=total_steps,
        tokens=work.groups(config) * sampled,
        capacity=None,
        cost=cost,
        memory=memory_of(
            config,
            load_model_config(resolve_model(config.base_model)),
            longest=longest + config.most_turns * config.max_response_tokens,
        ),
        sources=contributions(config, mix, [size * sampled for size in mix.sizes], rows=work.groups(config), cost=cost),
        warnings=(
            *_left_out(config, sum(mix.sizes)),
            *_warnings(config, total_steps, report, longest),
            *backend_warnings(config),
        ),
        details=details,
        bills_elsewhere=judges is not None and judges.paid,
        report=report,
    )


def reward_report(config: RlConfig, *, sample: bool) -> RewardReport:
    """Dry-run a reward: its probes, and with ``sample`` what it gives the weights the run would start from.

    Raises:
        ConfigError: If the reward cannot be used.
        DataError: If the rows cannot be used, or only a model gives the reward and none may be sampled.
        BackendError: If samples are wanted and the backend does not answer.
    """
    problems, _ = _mixed_problems(config)
    if sample:
        from .dry_run import dry_run_once

        return dry_run_once(config, problems)
    report = probe_reward(config, openings(config, problems))
    if report is None:
        raise DataError("only a model gives this reward: there is nothing to probe without sampling it")
    return report


def _mixed_problems(config: RlConfig) -> tuple[list[Problem], Mix]:
    for source in config.sources:
        require_known_shape(source.file, source.columns, "rl", _needed(config))
    return load_mixed_problems(
        config.sources, config.parts(), system_prompt=config.system_prompt, skip_bad_rows=config.skip_bad_rows
    )


def _needed(config: RlConfig) -> list[str]:
    return list(dict.fromkeys(NEEDS_KEY[part.type] for part in config.parts() if part.type in NEEDS_KEY))


def _held_out(config: RlConfig, file: str) -> list[Problem]:
    require_known_shape(Path(file), config.columns, "rl", _needed(config))
    return load_problems(
        Path(file),
        config.parts(),
        system_prompt=config.system_prompt,
        skip_bad_rows=config.skip_bad_rows,
        columns=config.columns,
    )


def _rewarded_by(config: RlConfig) -> str:
    """Where the reward comes from, in a few words."""
    checks = " + ".join(part.type for part in config.parts())
    sources = [f"{checks} reward"] if checks else []
    if config.environment is not None:
        name = Path(config.environment.script).name if config.environment.script else config.environment.type
        sources.append(f"environment {name}, {config.environment.max_turns} turns at most")
    return ", ".join(sources)


def _check_judges(config: RlConfig, where: str) -> None:
    """See that judges on the run's backend can be there.

    Raises:
        ConfigError: If one is a folder on this machine and the backend is not.
        ModelError: If one is not a model.
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


def prepared(settings: Settings[RlConfig]) -> Settings[RlConfig]:
    """The settings with absolute paths and the environment's token limit.

    Raises:
        ConfigError: If a file does not exist, or the limit is more than the model's context.
        ModelError: If the model is not known.
    """
    judged = any(part.is_service_judge for part in settings.config.parts())
    return _with_limit(_with_scripts(with_paths(settings, judged=judged)))


def _with_scripts(settings: Settings[RlConfig]) -> Settings[RlConfig]:
    """The paths of reward and environment files made absolute."""
    config, origins = settings.config, settings.origins
    changes: Changes = {}
    if config.reward_script is not None:
        changes["reward_script"] = (
            str(settings.data_file("reward_script", config.reward_script)),
            origins["reward_script"],
        )

    def absolute(part: RewardPart) -> RewardPart:
        if part.script is None:
            return part
        return part.model_copy(update={"script": str(settings.data_file("rewards", part.script))})

    if config.rewards is not None:
        changes["rewards"] = (tuple(map(absolute, config.rewards)), origins["rewards"])
    if config.environment is not None and config.environment.script is not None:
        script = str(settings.data_file("environment", config.environment.script))
        changes["environment"] = (config.environment.model_copy(update={"script": script}), origins["environment"])
    return settings.derived(changes)


def _with_limit(settings: Settings[RlConfig]) -> Settings[RlConfig]:
    """The environment's token limit, which no model's context may be smaller than."""
    config = settings.config
    if config.environment is None:
        return settings
    model = load_model_config(resolve_model(config.base_model))
    if not model.has("max_position_embeddings"):
        return settings
    context = model.integer("max_position_embeddings")
    limit = config.environment.max_trajectory_tokens
    if limit is not None and limit > context:
        raise ConfigError(
            f"max_trajectory_tokens {limit} is more than the model's context of {context}",
            where=settings.place("environment"),
            fix=f"Set it to {context} or less, or leave it out",
        )
    environment = config.environment.model_copy(update={"max_trajectory_tokens": limit or context})
    return settings.derived({"environment": (environment, settings.origins["environment"])})


def probe_reward(config: RlConfig, problems: list[Problem]) -> RewardReport | None:
    """Run the reward's probes, which also finds a script that cannot be loaded; None if a model gives the reward.

    Raises:
        ConfigError: If the reward cannot be used at all.
    """
    if config.environment is not None and config.environment.type == "interpreter":
        require_isolation(allow_unsandboxed=config.allow_unsandboxed, where="environment")
    parts = [part for part in config.parts() if part.type not in _GIVEN_BY_A_MODEL]
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
    defaults = Defaults(
        Derived(1, "", "one pass over the prompts"),
        lambda _: _batch(rows),
        lambda _: Derived(number("rl.lr"), "rl.lr", "the start for LoRA and RL"),
    )
    settings, total_steps = derive_schedule(settings, rows, defaults)
    config = settings.config
    if config.clip_ratio is None and config.loss_fn in CLIP_RULES:
        rule_id = CLIP_RULES[config.loss_fn]
        low, high = (float(value) for value in cast("Sequence[float]", rule(rule_id).value))
        origin = Origin(kind="derived", rule=rule_id, reason=f"usual for {config.loss_fn}")
        settings = settings.derived({"clip_ratio": ((low, high), origin)})
    return settings, total_steps


def _batch(rows: int) -> Derived:
    usual = integer("rl.batch")
    if rows >= usual:
        return Derived(usual, "rl.batch", "the recipe's prompts per step")
    return Derived(rows, "rl.batch", f"all {rows} prompts, below the usual {usual}")


def _left_out(config: RlConfig, usable: int) -> list[str]:
    rows = sum(1 for s in config.sources for _ in read_rows(s.file)) if config.skip_bad_rows else usable
    return [f"{rows - usable:,} of {rows:,} prompts cannot be used and will be left out"] if rows > usable else []


def _warnings(config: RlConfig, total_steps: int, report: RewardReport | None, longest: int) -> list[str]:
    warnings = report.warnings if report is not None else unsandboxed_warnings(runs_code=config.runs_code)
    warnings = [*warnings, *_episode_warnings(config, longest), *_learned_warnings(config)]
    if config.num_substeps > integer("rl.substeps") and config.loss_fn == "importance_sampling":
        warnings.append(
            "several optimizer steps per batch go with loss_fn ppo, which bounds how far they move (rl.substeps)"
        )
    if config.temperature != number("rl.temperature"):
        warnings.append(
            "another temperature than 1 makes the sampled and the trained distribution differ (rl.temperature)"
        )
    if (config.max_steps_off_policy or 0) > integer("rl.staleness"):
        warnings.append(
            f"samples may be {config.max_steps_off_policy} steps old: start under {integer('rl.staleness')}, and bound "
            "what stale ones can do by loss_fn ppo or cispo (rl.staleness)"
        )
    if config.val_file is None:
        warnings.append("no val_file: held-out reward cannot be seen and no best checkpoint is kept")
    if total_steps < 10:
        warnings.append(f"only {total_steps} steps")
    return warnings


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
    warnings: list[str] = []
    if types & _GIVEN_BY_A_MODEL and config.kl_coef == 0:
        warnings.append("a learned reward without kl_coef invites reward hacking (rl.kl_coef, reward.hacking)")
    if "preference_model" in types:
        warnings.append(
            "a preference_model compares the answers of a group, so its mean stays at 0.5: watch a check with "
            "weight 0 beside it, or run_judge_eval"
        )
    return warnings
