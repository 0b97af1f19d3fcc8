"""Starting training jobs."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from mcp_types import CallToolResult
from pydantic import BaseModel, Field

from sota_ml_researcher.jobs.pace import measured_pace
from sota_ml_researcher.jobs.registry import Registry
from sota_ml_researcher.jobs.start import start_sft_job
from sota_ml_researcher.tools.answers import answer, duration, number
from sota_ml_researcher.tools.spending import Gate, cost_text
from sota_ml_researcher.training import backends
from sota_ml_researcher.training.engine_process import check_installed

if TYPE_CHECKING:
    from sota_ml_researcher.training.sft_plan import SftPlan  # brings numpy, which the server does without at start


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
    from sota_ml_researcher.training.sft_config import load_sft_settings
    from sota_ml_researcher.training.sft_plan import plan_sft

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
    job = start_sft_job(Registry(), plan)
    shown = _started(plan, job.id, job.state.value, str(job.folder))
    shown.next = f"wait_for_job(job_id='{job.id}')"
    return answer(shown, _text(shown, plan))


def preflight(plan: SftPlan) -> None:
    """On a remote backend: is it there, is the key right, does it train this model?

    Raises:
        BackendError: If it does not answer or refuses the key.
        ModelError: If it does not train the model.
    """
    from sota_ml_researcher.training.sft_plan import check_model_trainable

    config = plan.settings.config
    if config.backend == "embedded":
        return
    served = backends.supported_models(backends.remote(config.backend, config.base_url))
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
