"""Starting jobs that learn from preferences and from rewards."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

from mcp_types import CallToolResult
from pydantic import BaseModel, Field

from sota_ml_researcher.core.errors import ModelError
from sota_ml_researcher.jobs.checkpoints import resolve_checkpoint
from sota_ml_researcher.jobs.registry import Registry
from sota_ml_researcher.jobs.start import start_job
from sota_ml_researcher.jobs.states import Link
from sota_ml_researcher.tools.answers import answer, number
from sota_ml_researcher.tools.spending import Gate, cost_text
from sota_ml_researcher.training import backends
from sota_ml_researcher.training.models import resolve_model

if TYPE_CHECKING:
    from sota_ml_researcher.training.config_resolution import Origin, Settings
    from sota_ml_researcher.training.dpo_config import DpoConfig
    from sota_ml_researcher.training.dpo_plan import DpoPlan
    from sota_ml_researcher.training.reward_config import RewardPart
    from sota_ml_researcher.training.rl_config import RlConfig
    from sota_ml_researcher.training.rl_plan import RlPlan

ConfigT = TypeVar("ConfigT", "DpoConfig", "RlConfig")
ConfigPath = Annotated[str | None, Field(description="Path of a YAML config, as template:// has them")]
Overrides = Annotated[dict[str, Any] | None, Field(description="Settings that win over the file's")]
ValidateOnly = Annotated[bool, Field(description="Only show the plan")]
PlanId = Annotated[str | None, Field(description="From the plan the user agreed to")]


class StartedRun(BaseModel):
    """A planned or started job."""

    job_id: str | None
    state: str
    run_folder: str | None
    config: dict[str, Any]
    origins: dict[str, str]
    total_steps: int
    rows: int
    tokens: int
    cost: dict[str, Any]
    plan_id: str | None
    details: dict[str, Any]
    warnings: list[str]
    next: str


def start_dpo(
    config: ConfigPath = None, overrides: Overrides = None, validate_only: ValidateOnly = False, plan_id: PlanId = None
) -> Annotated[CallToolResult, StartedRun]:
    """Start preference training (DPO, cDPO, IPO, length-normalised; or loss: reward_model) as a background job.

    Use it for pairs of a better and a worse answer. Not for single answers (start_sft) or a score (start_grpo). Needs
    base_model and train_file (prompt, chosen, rejected); load_checkpoint takes an SFT job's id.
    """
    from sota_ml_researcher.training.dpo_config import load_dpo_settings
    from sota_ml_researcher.training.dpo_plan import plan_dpo

    settings = load_dpo_settings(_path(config), overrides)
    settings, parents = _from_jobs(settings)
    plan = plan_dpo(settings)
    shown = plan.settings.config
    _preflight(shown.base_model, shown.backend, shown.base_url)
    run = _planned(plan.settings, plan.total_steps, plan.counts.rows, plan.tokens_to_train, plan.warnings)
    run.details = {"lora_parameters": plan.capacity.parameters_total, "answer_tokens": plan.counts.answer_tokens}
    what = "Reward model" if shown.loss == "reward_model" else f"DPO ({shown.loss}, beta {shown.beta:g})"
    kind = "reward_model" if shown.loss == "reward_model" else "dpo"
    return _finish(run, plan, kind, parents, what, "pairs", validate_only=validate_only, plan_id=plan_id)


def start_grpo(
    config: ConfigPath = None, overrides: Overrides = None, validate_only: ValidateOnly = False, plan_id: PlanId = None
) -> Annotated[CallToolResult, StartedRun]:
    """Start reinforcement learning from rewards (GRPO, Dr. GRPO, DAPO, PPO, CISPO, GSPO) as a background job.

    Use it if a program can score answers. Not for pairs: start_dpo.
    Needs base_model, train_file (prompts, and answer or tests), and reward_type, rewards or environment. Try the reward
    first: check_dataset with reward_config. Then wait_for_job; rollouts.jsonl shows what the model said.
    """
    from sota_ml_researcher.evals.reward_judge import check_service_judges
    from sota_ml_researcher.evals.reward_judge_plan import judge_cost, with_judges
    from sota_ml_researcher.training.rl_config import load_rl_settings
    from sota_ml_researcher.training.rl_plan import plan_rl

    settings = load_rl_settings(_path(config), overrides)
    settings, reference = _with_reference(settings)
    settings, parents = _from_jobs(settings)
    settings, rewards = with_reward_checkpoints(settings)
    parents = [*parents, *rewards, *reference]
    plan = plan_rl(settings)
    shown = plan.settings.config
    _preflight(shown.base_model, shown.backend, shown.base_url)
    judges = judge_cost(plan)
    if judges is not None:
        asyncio.run(check_service_judges(shown.parts()))
        plan = replace(plan, cost=with_judges(plan.cost, judges))
    run = _planned(plan.settings, plan.total_steps, plan.rows, plan.most_sampled_tokens, plan.warnings)
    run.details = {"longest_prompt": plan.longest_prompt}
    if plan.report is not None:
        run.details["probes"] = {probe.name: probe.share for probe in plan.report.probes}
    what = f"RL ({shown.loss_fn}, {_rewarded_by(shown)})"
    paid = judges is not None and judges.paid
    return _finish(run, plan, "grpo", parents, what, "prompts", validate_only=validate_only, plan_id=plan_id, paid=paid)


def with_reward_checkpoints(settings: Settings[RlConfig]) -> tuple[Settings[RlConfig], list[Link]]:
    """The same settings with the jobs of preference models replaced by their checkpoints, and those jobs."""
    config = settings.config
    if config.rewards is None:
        return settings, []
    links: list[Link] = []

    def resolved(part: RewardPart) -> RewardPart:
        if part.checkpoint is None:
            return part
        path, job = resolve_checkpoint(
            part.checkpoint, "sampler_path", base_model=config.base_model, backend=config.backend, where="rewards"
        )
        links.extend([Link(job, "reward")] if job else [])
        return part.model_copy(update={"checkpoint": path})

    return settings.derived({"rewards": (tuple(map(resolved, config.rewards)), settings.origins["rewards"])}), links


def _rewarded_by(config: RlConfig) -> str:
    """Where the reward comes from, in a few words."""
    checks = " + ".join(part.type for part in config.parts())
    found = [f"{checks} reward"] * bool(checks)
    if config.environment is not None:
        name = Path(config.environment.script).name if config.environment.script else config.environment.type
        found.append(f"environment {name}, {config.environment.max_turns} turns at most")
    return ", ".join(found)


def _with_reference(settings: Settings[RlConfig]) -> tuple[Settings[RlConfig], list[Link]]:
    """``ref_model`` as a path. Null is where the run starts, if a job is named there; ``base`` the base model."""
    from sota_ml_researcher.training.config_resolution import Origin

    config = settings.config
    name, key = config.ref_model, "ref_model"
    if not config.kl_coef or name == "base":
        return settings, []
    start = config.load_checkpoint
    if name is None and (start is None or start.startswith("tinker://")):
        return settings, []
    wanted = name or str(start)
    where = settings.place(key if name else "load_checkpoint")
    path, job = resolve_checkpoint(
        wanted, "sampler_path", base_model=config.base_model, backend=config.backend, where=where
    )
    reason = f"of job {job}" + ("" if name else ", where the run starts")
    origin = Origin(kind=settings.origins[key].kind if name else "derived", reason=reason)
    return settings.derived({key: (path, origin)}), [Link(job, "reference")] if job else []


def _from_jobs(settings: Settings[ConfigT]) -> tuple[Settings[ConfigT], list[Link]]:
    """``load_checkpoint`` as a path, and the job it names."""
    from sota_ml_researcher.training.config_resolution import Origin

    config = settings.config
    if config.load_checkpoint is None:
        return settings, []
    path, job = resolve_checkpoint(
        config.load_checkpoint,
        "state_path",
        base_model=config.base_model,
        backend=config.backend,
        where=settings.place("load_checkpoint"),
    )
    if job is None:
        return settings, []
    origin = Origin(kind=settings.origins["load_checkpoint"].kind, reason=f"of job {config.load_checkpoint}")
    return settings.derived({"load_checkpoint": (path, origin)}), [Link(job, "weights")]


def _path(config: str | None) -> Path | None:
    return Path(config).expanduser() if config else None


def _preflight(base_model: str, backend: backends.BackendName, base_url: str | None) -> None:
    """On a remote backend: is it there, is the key right, does it train this model?

    Raises:
        BackendError: If it does not answer or refuses the key.
        ModelError: If it does not train the model.
    """
    if backend == "embedded":
        return
    served = {m.name: m.trainable for m in backends.supported_models(backends.remote(backend, base_url))}
    name = resolve_model(base_model).wire_name
    if served.get(name, False) is False:
        known = ", ".join(sorted(served)[:10]) or "none"
        raise ModelError(f"{backend} does not train this model", where=base_model, fix=f"It serves: {known}")


def _planned(
    settings: Settings[DpoConfig] | Settings[RlConfig], steps: int, rows: int, tokens: int, warnings: tuple[str, ...]
) -> StartedRun:
    origins: Mapping[str, Origin] = settings.origins
    return StartedRun(
        job_id=None,
        state="planned",
        run_folder=None,
        config=settings.config.model_dump(mode="json"),
        origins={key: str(origin) for key, origin in origins.items()},
        total_steps=steps,
        rows=rows,
        tokens=tokens,
        cost={},
        plan_id=None,
        details={},
        warnings=list(warnings),
        next="call this tool again without validate_only to start it",
    )


def _finish(
    run: StartedRun,
    plan: DpoPlan | RlPlan,
    kind: str,
    parents: Sequence[Link],
    what: str,
    unit: str,
    *,
    validate_only: bool,
    plan_id: str | None,
    paid: bool = False,
) -> CallToolResult:
    config = plan.settings.config
    files = [Path(f) for f in (config.train_file, config.val_file) if f]
    gate = Gate("grpo" if kind == "grpo" else "dpo", config, files, paid)
    run.cost = asdict(plan.cost)
    if validate_only or gate.needs_plan(plan_id):
        run.plan_id = None if validate_only else gate.offer()
        run.next = gate.next_call(run.plan_id)
    else:
        gate.redeem(plan_id)
        origins = plan.settings.origins
        steps = plan.total_steps
        job = start_job(Registry(), kind, config, origins, files=files, total_steps=steps, parents=parents)
        run.job_id, run.state, run.run_folder = job.id, job.state.value, str(job.folder)
        run.next = f"wait_for_job(job_id='{job.id}')"
    head = f"{run.job_id}: {run.state}" if run.job_id else "Plan only, nothing was started"
    lines = [
        f"{head}. {what} of {config.base_model} on {config.backend}.",
        f"{run.total_steps:,} steps of {config.batch_size} {unit} from {run.rows:,}; about {run.tokens:,} tokens at "
        f"most. Cost: {cost_text(plan.cost)}.",
        f"LoRA rank {config.lora_rank}, learning rate {number(config.learning_rate)} "
        f"({run.origins['learning_rate'][:120]}).",
        *(f"Warning: {warning}" for warning in run.warnings),
    ]
    if run.run_folder:
        lines.append(f"Files: {run.run_folder}")
    return answer(run, "\n".join([*lines, f"Next: {run.next}"]))
