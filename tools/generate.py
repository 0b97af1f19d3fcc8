"""Starting the jobs in which a model writes rows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import anyio.to_thread
from mcp_types import CallToolResult

from ..core.foreign_text import named
from ..core.names import short_name
from .answers import answer
from .background import config_path
from .model_arguments import with_sampled_jobs
from .plan_gate import ConfigPath, Cost, Launch, Overrides, PlanId, Planned, ValidateOnly, hub_lines, launched

if TYPE_CHECKING:
    from ..generation.generation_plan import GenerationPlan


class Generation(Planned):
    """A planned or started generation. plan: sources, answers, judge calls, cost, config, warnings."""


async def start_generation(
    config: ConfigPath = None, overrides: Overrides = None, validate_only: ValidateOnly = False, plan_id: PlanId = None
) -> Annotated[CallToolResult, Generation]:
    """Let a model write training or evaluation rows, each with its provenance; a background job.

    Needs recipe, model (base, job id, tinker://, claude-..., openai:MODEL) and prompts. Recipes: distillation (a big
    teacher's answers to train a small model on, rows without its teacher_prompt), questions (from documents: FOLDER),
    rewrites (harder variants), preferences (samples ranked by judge_model), eval_kit (rubric and canaries for
    run_judge_eval). With judge_model only correct or good answers are kept. Use it when there are only prompts, or too
    few rows. Not for data that exist (find_datasets), a few answers (sample_model) or rewards (start_grpo).
    """
    from ..generation.generation_config import load_generation_settings
    from ..generation.generation_plan import check_services, plan_generation

    def planned() -> GenerationPlan:
        settings = load_generation_settings(config_path(config), overrides)
        resolved, bases = with_sampled_jobs(settings, ("model",))
        return plan_generation(resolved, bases=bases)

    plan = await anyio.to_thread.run_sync(planned)
    await check_services(plan.settings.config)
    launch = Launch(
        kind="generation",
        settings=plan.settings,
        files=plan.files,
        total_steps=plan.tasks,
        price=plan.cost,
        bills_elsewhere=plan.bills_elsewhere,
        samples=plan.sampled_models,
    )
    generation = await anyio.to_thread.run_sync(
        lambda: launched(Generation, launch, _facts(plan), validate_only=validate_only, plan_id=plan_id)
    )
    return answer(generation, generation.text(_lines(plan)))


def _facts(plan: GenerationPlan) -> dict[str, Any]:
    return {
        "sources": plan.tasks,
        "answers": plan.answers,
        "judge_calls": plan.judge_calls,
        "service_tokens": list(plan.service_tokens),
        "cost": Cost.of(plan.cost).model_dump(),
        "warnings": list(plan.warnings),
    }


def _lines(plan: GenerationPlan) -> list[str]:
    config = plan.settings.config
    judged = f", {plan.judge_calls:,} questions to {named(config.judge_model)}" if config.judge_model else ""
    usage = plan.cost.usage
    told, said = (usage.prefill, usage.sample) if usage.sample else plan.service_tokens
    lines = [
        f"Recipe {config.recipe}, written by {named(short_name(config.model))}.",
        f"{plan.tasks:,} sources, {plan.answers:,} answers{judged}.",
        f"About {told:,} tokens to read and {said:,} to write. Cost: {Cost.of(plan.cost).text}.",
    ]
    return [*lines, *hub_lines(plan.settings), *(f"Warning: {warning}." for warning in plan.warnings)]
