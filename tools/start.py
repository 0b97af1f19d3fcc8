"""Starting training jobs."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

from mcp_types import CallToolResult
from pydantic import BaseModel, Field

from ..backends.connection import remote, supported_models
from ..backends.embedded import check_installed
from ..core.errors import ModelError
from ..core.names import BackendName
from ..jobs.create import start_job
from ..jobs.job_results import measured_pace, resolve_checkpoint
from ..jobs.registry import Registry
from ..jobs.states import Link
from ..models.model_ref import resolve_model
from .answers import answer, duration, number
from .plan_gate import Gate, cost_text

if TYPE_CHECKING:
    from ..training.sft.plan import SftPlan  # brings numpy, which the server does without at start


class Started(BaseModel):
    """A planned or started job: every setting with its origin, and what it will process."""

    job_id: str | None
    state: str
    run_folder: str | None
    config: dict[str, Any]
    origins: dict[str, str]
    total_steps: int
    rows: int
    tokens_per_epoch: int
    loss_tokens_per_epoch: int
    tokens_to_train: int
    counts_exact: bool
    lora_parameters: int
    capacity_verdict: str
    capacity_ratio: float
    cost: dict[str, Any]
    expected_s: float | None
    plan_id: str | None
    warnings: list[str]
    next: str


def start_sft(
    config: Annotated[str | None, Field(description="Path of a YAML config; template://sft is one")] = None,
    overrides: Annotated[dict[str, Any] | None, Field(description="Settings that win over the file's")] = None,
    validate_only: Annotated[bool, Field(description="Only show the plan")] = False,
    plan_id: Annotated[str | None, Field(description="From the plan the user agreed to")] = None,
) -> Annotated[CallToolResult, Started]:
    """Start supervised fine-tuning (LoRA) as a background job that outlives this session.

    Use it for rows with one good answer each, after check_dataset. To go on with a stopped job use resume_job instead.
    Needs base_model and train_file, from the config, the overrides, or both. Null settings are derived, and the answer
    shows each value with where it came from. Call with validate_only=true first. Then wait_for_job.
    On a backend that charges, the first call only returns the plan: show it, and call again with its plan_id.
    """
    from ..training.sft.config import load_sft_settings
    from ..training.sft.plan import plan_sft

    settings = load_sft_settings(Path(config).expanduser() if config else None, overrides)
    plan = plan_sft(settings)
    preflight(plan)
    config_now = plan.settings.config
    gate = Gate("sft", config_now, [Path(f) for f in (config_now.train_file, config_now.val_file) if f])
    if validate_only or gate.needs_plan(plan_id):
        shown = _started(plan, None, "planned", None)
        shown.plan_id = None if validate_only else gate.offer()
        shown.next = gate.next_call(shown.plan_id)
        return answer(shown, _text(shown, plan))
    if config_now.backend == "embedded":
        check_installed()
    gate.redeem(plan_id)
    shown = plan.settings.config
    files = [Path(f) for f in (shown.train_file, shown.val_file) if f]
    job = start_job(Registry(), "sft", shown, plan.settings.origins, files=files, total_steps=plan.total_steps)
    shown = _started(plan, job.id, job.state.value, str(job.folder))
    shown.next = f"wait_for_job(job_id='{job.id}')"
    return answer(shown, _text(shown, plan))


def preflight(plan: SftPlan) -> None:
    """On a remote backend: is it there, is the key right, does it train this model?

    Raises:
        BackendError: If it does not answer or refuses the key.
        ModelError: If it does not train the model.
    """
    from ..training.plan import check_model_trainable

    config = plan.settings.config
    if config.backend == "embedded":
        return
    served = supported_models(remote(config.backend, config.base_url))
    check_model_trainable(config, {m.name: m.trainable if m.trainable is not None else True for m in served})


def _started(plan: SftPlan, job_id: str | None, state: str, folder: str | None) -> Started:
    config = plan.settings.config
    pace = measured_pace(Registry(), "sft", config.backend, config.base_model)
    return Started(
        job_id=job_id,
        state=state,
        run_folder=folder,
        config=config.model_dump(mode="json"),
        origins={key: str(origin) for key, origin in plan.settings.origins.items()},
        total_steps=plan.total_steps,
        rows=plan.counts.rows,
        tokens_per_epoch=plan.counts.tokens,
        loss_tokens_per_epoch=plan.counts.loss_tokens,
        tokens_to_train=plan.tokens_to_train,
        counts_exact=plan.counts.exact,
        lora_parameters=plan.capacity.parameters_total,
        capacity_verdict=plan.capacity.verdict,
        capacity_ratio=round(plan.capacity.ratio, 3),
        cost=asdict(plan.cost),
        expected_s=round(plan.tokens_to_train / pace, 1) if pace else None,
        plan_id=None,
        warnings=list(plan.warnings),
        next="",
    )


def _text(shown: Started, plan: SftPlan) -> str:
    config = plan.settings.config
    head = f"{shown.job_id}: {shown.state}" if shown.job_id else "Plan only, nothing was started"
    lines = [
        f"{head}. SFT of {config.base_model} on {config.backend}.",
        f"{shown.total_steps:,} steps of {config.batch_size} rows.",
        f"{shown.rows:,} rows, {shown.tokens_to_train:,} tokens to train in all. Cost: {cost_text(plan.cost)}.",
        f"About {duration(shown.expected_s)} at the pace of earlier runs." if shown.expected_s else "",
        f"LoRA rank {config.lora_rank}: {shown.lora_parameters:,} parameters, capacity {shown.capacity_verdict} "
        f"(ratio {number(shown.capacity_ratio, 3)}).",
        f"Learning rate {number(config.learning_rate)} ({shown.origins['learning_rate'][:160]}).",
        *(f"Warning: {warning}" for warning in shown.warnings),
    ]
    if shown.run_folder:
        lines.append(f"Files: {shown.run_folder}")
    return "\n".join([*(line for line in lines if line), f"Next: {shown.next}"])


if TYPE_CHECKING:
    from ..core.settings import Origin, Settings
    from ..rewards.reward_config import RewardPart
    from ..training.dpo.config import DpoConfig
    from ..training.dpo.plan import DpoPlan
    from ..training.rl.config import RlConfig
    from ..training.rl.plan import RlPlan
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
    from ..training.dpo.config import load_dpo_settings
    from ..training.dpo.plan import plan_dpo

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
    from ..rewards.judge_scorer import check_service_judges
    from ..training.rl.config import load_rl_settings
    from ..training.rl.judge_cost import judge_cost, with_judges
    from ..training.rl.plan import plan_rl

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
    from ..core.settings import Origin

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
    from ..core.settings import Origin

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


def _preflight(base_model: str, backend: BackendName, base_url: str | None) -> None:
    """On a remote backend: is it there, is the key right, does it train this model?

    Raises:
        BackendError: If it does not answer or refuses the key.
        ModelError: If it does not train the model.
    """
    if backend == "embedded":
        return
    served = {m.name: m.trainable for m in supported_models(remote(backend, base_url))}
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
