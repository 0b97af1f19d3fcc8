"""Starting benchmarks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

from mcp_types import CallToolResult

from ..core.foreign_text import named
from ..core.names import short_name
from .answers import answer
from .background import config_path
from .evaluate import Evaluation
from .model_arguments import with_sampled_jobs
from .plan_gate import ConfigPath, Launch, Overrides, PlanId, ValidateOnly, hub_lines, launched

if TYPE_CHECKING:
    from ..evals.benchmark.benchmark_plan import BenchmarkPlan


def run_benchmark(
    config: ConfigPath = None, overrides: Overrides = None, validate_only: ValidateOnly = False, plan_id: PlanId = None
) -> Annotated[CallToolResult, Evaluation]:
    """Run an Inspect task on a model (base, job id, tinker://) and its baseline; a background job.

    Needs task and finetuned_model; baseline_model is optional. task: task.py[@name], a packaged task
    (inspect_evals/gsm8k), or data rows with scorer exact, includes, math or model_graded (judge_model). Returns scores
    with intervals and the paired difference. Use it for tests with right answers (MMLU, code, math), before and
    after fine-tuning, and for what tuning made it forget. Not for open questions: run_judge_eval. Then wait_for_job.
    """
    from ..evals.benchmark.benchmark_config import load_benchmark_settings, require_grader_key
    from ..evals.benchmark.benchmark_plan import plan_benchmark

    settings = load_benchmark_settings(config_path(config), overrides)
    plan = plan_benchmark(*with_sampled_jobs(settings, ("finetuned_model", "baseline_model")))
    require_grader_key(plan.settings.config)
    launch = Launch(
        kind="benchmark",
        settings=plan.settings,
        files=plan.files,
        total_steps=plan.answers or 1,
        price=plan.grader_usd,
        bills_elsewhere=plan.bills_elsewhere,
        samples=list(plan.settings.config.arms.values()),
    )
    facts: dict[str, Any] = {"items": plan.items, "answers": plan.answers, "grader_usd": plan.grader_usd}
    facts["warnings"] = list(plan.warnings)
    evaluation = launched(Evaluation, launch, facts, validate_only=validate_only, plan_id=plan_id)
    return answer(evaluation, evaluation.text(_lines(plan)))


def _lines(plan: BenchmarkPlan) -> list[str]:
    config = plan.settings.config
    counted = "as many items as the task has" if plan.items is None else f"{plan.items} items, {plan.answers} answers"
    models = ", ".join(named(short_name(model)) for model in config.arms.values())
    lines = [f"Benchmark {named(config.run_name)} of {models}: {counted}."]
    if plan.grader_usd != 0:
        cost = "unknown" if plan.grader_usd is None else f"${plan.grader_usd:.3g}"
        lines[0] += f" Grader: {cost} ({plan.grader_note})."
    return [*lines, *hub_lines(plan.settings), *(f"Warning: {warning}." for warning in plan.warnings)]
