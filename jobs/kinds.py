"""The kinds of job, and who reads the settings of each, plans it and runs it: by name, so that little is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class JobKind:
    """One kind of job.

    Attributes:
        tool: The tool that starts it.
        load: ``package.module:function`` that reads a config: (file or None, overrides or None) -> ``Settings``.
        plan: ``package.module:function`` that works out what the job will do: (``Settings``) -> its plan.
        run: ``package.module:function`` that does it, in the worker: (``RunContext``, config file) -> ``Outcome``.
        extra: The extra of this distribution that it needs besides ``train``, or None.
    """

    tool: str
    load: str
    plan: str
    run: str
    extra: str | None = None


_GENERATION = "sota_ml_researcher.generation"
_TRAINING, _EVALS = "sota_ml_researcher.training", "sota_ml_researcher.evals"
_LOAD_DPO, _PLAN_DPO = f"{_TRAINING}.dpo.config:load_dpo_settings", f"{_TRAINING}.dpo.plan:plan_dpo"
KINDS: Mapping[str, JobKind] = {
    "sft": JobKind(
        "start_sft",
        f"{_TRAINING}.sft.config:load_sft_settings",
        f"{_TRAINING}.sft.plan:plan_sft",
        f"{_TRAINING}.sft.method:run_sft_job",
    ),
    "dpo": JobKind("start_dpo", _LOAD_DPO, _PLAN_DPO, f"{_TRAINING}.dpo.method:run_dpo_job"),
    "reward_model": JobKind("start_dpo", _LOAD_DPO, _PLAN_DPO, f"{_TRAINING}.dpo.reward_model:run_reward_model_job"),
    "grpo": JobKind(
        "start_grpo",
        f"{_TRAINING}.rl.config:load_rl_settings",
        f"{_TRAINING}.rl.plan:plan_rl",
        f"{_TRAINING}.rl.method:run_grpo_job",
    ),
    "generation": JobKind(
        "start_generation",
        f"{_GENERATION}.generation_config:load_generation_settings",
        f"{_GENERATION}.generation_plan:plan_generation",
        f"{_GENERATION}.generation_job:run_generation_job",
    ),
    "judge_eval": JobKind(
        "run_judge_eval",
        f"{_EVALS}.judge_config:load_judge_settings",
        f"{_EVALS}.judge_plan:plan_judge_eval",
        f"{_EVALS}.judge_job:run_judge_eval_job",
        "evals",
    ),
    "benchmark": JobKind(
        "run_benchmark",
        f"{_EVALS}.benchmark.benchmark_config:load_benchmark_settings",
        f"{_EVALS}.benchmark.benchmark_plan:plan_benchmark",
        f"{_EVALS}.benchmark.benchmark_job:run_benchmark_job",
        "evals",
    ),
}
