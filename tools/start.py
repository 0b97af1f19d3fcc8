"""Starting training jobs: one path for every method."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from pkgutil import resolve_name
from typing import TYPE_CHECKING, Annotated, Any

from mcp_types import CallToolResult

from ..core.foreign_text import named
from ..jobs.job_results import measured_pace
from ..jobs.kinds import KINDS
from ..jobs.registry import Registry
from .answers import answer, duration, number
from .background import config_path
from .model_arguments import with_reference, with_reward_models, with_start
from .plan_gate import ConfigPath, Cost, Launch, Overrides, PlanId, Standing, ValidateOnly, hub_lines, pass_gate

if TYPE_CHECKING:
    from ..core.settings import Settings
    from ..jobs.states import Link
    from ..training.config import TrainingConfig
    from ..training.plan import Plan


class Started(Standing):
    """A planned or started job: every setting with its origin, and what it will process.

    ``tokens_to_train``: all passes together; in RL the tokens to sample at most. ``details``: the method's own facts.
    ``memory``: bytes on this machine.
    """

    config: dict[str, Any]
    origins: dict[str, str]
    total_steps: int
    rows: int
    tokens_to_train: int
    lora_parameters: int | None
    capacity_verdict: str | None
    capacity_ratio: float | None
    cost: Cost
    expected_s: float | None
    memory: dict[str, Any] | None
    details: dict[str, Any]
    warnings: list[str]


def start_sft(
    config: ConfigPath = None, overrides: Overrides = None, validate_only: ValidateOnly = False, plan_id: PlanId = None
) -> Annotated[CallToolResult, Started]:
    """Start supervised fine-tuning (LoRA) as a background job that outlives this session.

    Use it for rows with one good answer each, after check_dataset. To go on with a stopped job use resume_job instead.
    Needs base_model and train_file, from the config, the overrides, or both. Null settings are derived, and the answer
    shows each value with where it came from. Call with validate_only=true first: it starts nothing and says how much it
    would cost to fine-tune this model on this file. Then wait_for_job.
    Where it costs money, the first call returns the plan alone: show it, and call again with its plan_id.
    """
    return _start("sft", config, overrides, validate_only=validate_only, plan_id=plan_id)


def start_dpo(
    config: ConfigPath = None, overrides: Overrides = None, validate_only: ValidateOnly = False, plan_id: PlanId = None
) -> Annotated[CallToolResult, Started]:
    """Start preference training (DPO, cDPO, IPO, length-normalized), or a reward model, as a background job.

    Use it for pairs or comparisons of a better and a worse answer (loss: reward_model learns to score). Not for single
    answers (start_sft) or a score (start_grpo). Needs base_model and train_file (prompt, chosen, rejected);
    load_checkpoint takes an SFT job's id. Missing pairs: find_datasets, start_generation.
    """
    return _start("dpo", config, overrides, validate_only=validate_only, plan_id=plan_id)


def start_grpo(
    config: ConfigPath = None, overrides: Overrides = None, validate_only: ValidateOnly = False, plan_id: PlanId = None
) -> Annotated[CallToolResult, Started]:
    """Start reinforcement learning from rewards (GRPO, Dr. GRPO, DAPO, PPO, CISPO, GSPO) as a background job.

    Use it if a program, a reward model or a judge with a rubric can score answers. Not for pairs: start_dpo.
    Needs base_model, train_file (prompts, and answer or tests), and reward_type, rewards or environment, which
    check_dataset tries first (reward_config). Then wait_for_job; rollouts.jsonl shows what the model said.
    """
    return _start("grpo", config, overrides, validate_only=validate_only, plan_id=plan_id)


def _start(
    kind: str, config: str | None, overrides: dict[str, Any] | None, *, validate_only: bool, plan_id: str | None
) -> CallToolResult:
    settings, parents = _with_jobs(kind, resolve_name(KINDS[kind].load)(config_path(config), overrides))
    plan: Plan[Any] = resolve_name(KINDS[kind].plan)(settings)
    if plan.settings.config.plan_file is not None:
        from ..jobs.experiment_plan import require_kept

        require_kept(Path(plan.settings.config.plan_file), plan.kind, plan.settings)
    plan.check_services()
    launch = Launch(
        kind=plan.kind,
        settings=plan.settings,
        files=plan.files,
        total_steps=plan.total_steps,
        price=(plan.cost.low, plan.cost.expected, plan.cost.high),
        bills_elsewhere=plan.bills_elsewhere,
        trains=[plan.settings.config.base_model],
        parents=parents,
        starts_from=_checkpoints(plan.settings.config),
    )
    started = _started(plan, pass_gate(launch, validate_only=validate_only, plan_id=plan_id))
    return answer(started, _text(started, plan))


def _checkpoints(config: TrainingConfig) -> dict[str, str]:
    """The checkpoints of its own base model that a job loads, by setting."""
    named = {key: getattr(config, key, None) for key in ("load_checkpoint", "ref_model")}
    return {key: path for key, path in named.items() if path is not None and path.startswith("tinker://")}


def _with_jobs(kind: str, settings: Settings[Any]) -> tuple[Settings[Any], list[Link]]:
    """The settings with checkpoints for the jobs they name, and those jobs: start, rewards, reference."""
    rewards: list[Link] = []
    reference: list[Link] = []
    if kind == "grpo":
        settings, reference = with_reference(settings)
        settings, rewards = with_reward_models(settings)
    settings, start = with_start(settings)
    return settings, [*start, *rewards, *reference]


def _started(plan: Plan[Any], standing: Standing) -> Started:
    config, capacity = plan.settings.config, plan.capacity
    # In RL the tokens of a plan are the most there can be, so no time follows from them.
    pace = measured_pace(Registry(), plan.kind, config.backend, config.base_model) if capacity else None
    return Started(
        **standing.model_dump(),
        config=config.model_dump(mode="json"),
        origins={key: str(origin) for key, origin in plan.settings.origins.items()},
        total_steps=plan.total_steps,
        rows=plan.rows,
        tokens_to_train=plan.tokens,
        lora_parameters=capacity.parameters_total if capacity else None,
        capacity_verdict=capacity.verdict if capacity else None,
        capacity_ratio=round(capacity.ratio, 3) if capacity else None,
        cost=Cost.of(plan.cost),
        expected_s=round(plan.tokens / pace, 1) if pace else None,
        memory=plan.memory.facts if plan.memory else None,
        details={**plan.details, **({"sources": [*plan.sources]} if plan.sources else {})},
        warnings=list(plan.warnings),
    )


def _sources(sources: Sequence[Mapping[str, Any]]) -> list[str]:
    """What each source of several gives, in a line."""
    parts = [
        f"{named(source['name'])} {source['rows_in_run']:,} ({source['share_of_rows']:.0%}, {source['epochs']:.3g} "
        f"epochs, {source['tokens']:,} tokens{f', ${cost:.4g}' if (cost := source['cost_usd']) else ''})"
        for source in sources
    ]
    return [f"Rows of the run: {', '.join(parts)}."] if parts else []


def _first_sentence(text: str) -> str:
    """What stands before the first full stop; the whole is in the answer's content."""
    first = text.partition(". ")[0]
    return first + ")" * (first.count("(") - first.count(")"))


def _text(started: Started, plan: Plan[Any]) -> str:
    config = plan.settings.config
    tokens = f"{started.tokens_to_train:,} tokens to " + ("train in all" if plan.capacity else "sample at most")
    rank = f"LoRA rank {config.lora_rank}"
    if plan.capacity:
        rank += f": {started.lora_parameters:,} parameters, capacity {started.capacity_verdict}"
        rank += f" (ratio {number(started.capacity_ratio, 3)})"
    lines = [
        f"{started.head}. {plan.method} of {config.base_model} on {config.backend}.",
        f"{started.total_steps:,} steps of {config.batch_size} {plan.unit}.",
        f"{started.rows:,} {plan.unit}, {tokens}. Cost: {started.cost.text}.",
        *_sources(plan.sources),
        *hub_lines(plan.settings),
        *([f"About {duration(started.expected_s)} at the pace of earlier runs."] if started.expected_s else []),
        f"{rank}.",
        *([f"{plan.memory.text}."] if plan.memory else []),
        f"Learning rate {number(config.learning_rate)} ({_first_sentence(started.origins['learning_rate'])}).",
        *(f"Warning: {warning}" for warning in started.warnings),
        *([f"Files: {started.run_folder}"] if started.run_folder else []),
    ]
    return "\n".join([*lines, f"Next: {started.next}"])
