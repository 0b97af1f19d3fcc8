"""Starting benchmarks."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from mcp_types import CallToolResult
from pydantic import Field

from ..jobs import plan_store
from ..jobs.create import start_job
from ..jobs.registry import Registry
from .answers import answer
from .evaluate import Evaluation
from .model_arguments import with_checkpoints

if TYPE_CHECKING:
    from ..evals.benchmark.benchmark_plan import BenchmarkPlan


def run_benchmark(
    overrides: Annotated[dict[str, Any], Field(description="task, model, baseline_model, scorer, epochs, ...")],
    config: Annotated[str | None, Field(description="YAML file with the same keys")] = None,
    plan_id: Annotated[str | None, Field(description="The plan's; starts what costs money")] = None,
) -> Annotated[CallToolResult, Evaluation]:
    """Run an Inspect task on a model (base, job id, tinker://) and its baseline; a background job.

    task: task.py[@name], a packaged task (inspect_evals/gsm8k), or data rows with scorer exact, includes, math or
    model_graded (judge_model). Gives scores with intervals and the paired difference. Use it for tasks with right
    answers. Not for open questions: run_judge_eval. Then wait_for_job.
    """
    from ..evals.benchmark.benchmark_config import load_benchmark_settings, require_grader_key
    from ..evals.benchmark.benchmark_plan import named, plan_benchmark

    settings = load_benchmark_settings(Path(config).expanduser() if config else None, overrides)
    plan = plan_benchmark(with_checkpoints(settings, ("model", "baseline_model")))
    chosen = plan.settings.derived(named(plan))
    facts: dict[str, Any] = {"items": plan.items, "answers": plan.answers, "grader_usd": plan.grader_usd}
    facts["config"] = chosen.config.model_dump(mode="json")
    counted = "as many items as the task has" if plan.items is None else f"{plan.items} items, {plan.answers} answers"
    what = (
        f"Benchmark {chosen.config.run_name} of {', '.join(m[-60:] for m in chosen.config.arms.values())}: {counted}."
    )
    if plan.grader_usd != 0:
        cost = "unknown" if plan.grader_usd is None else f"${plan.grader_usd:.3g}"
        what += f" Grader: {cost} ({plan.grader_note})."
    if plan.needs_confirmation and plan_id is None:
        offered = plan_store.offer("benchmark", _mark(plan))
        following = f"run_benchmark with the same arguments and plan_id='{offered}' starts it"
        shown = Evaluation(job_id=None, plan_id=offered, plan=facts | {"state": "planned"}, next=following)
        return answer(shown, f"Plan only, it may cost money. {what}\nNext: {following}")
    require_grader_key(chosen.config)
    if plan_id is not None:
        plan_store.redeem(plan_id, "benchmark", _mark(plan))
    steps = plan.answers or 1
    job = start_job(Registry(), "benchmark", chosen.config, chosen.origins, files=plan.files, total_steps=steps)
    following = f"wait_for_job(job_id='{job.id}')"
    facts |= {"state": job.state.value, "run_folder": str(job.folder)}
    shown = Evaluation(job_id=job.id, plan_id=None, plan=facts, next=following)
    return answer(shown, f"{job.id}: {job.state.value}. {what}\nFiles: {job.folder}\nNext: {following}")


def _mark(plan: BenchmarkPlan) -> str:
    """What the yes is bound to: every setting, every byte of the task's file, and the price that was shown."""
    return f"{plan.plan_id} {plan.grader_usd}"
