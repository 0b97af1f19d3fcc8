"""The tools an assistant can call, one explicit tuple in the order a piece of work needs them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from .analysis import analyze_run, compare_runs
from .benchmark import run_benchmark
from .data import check_dataset
from .evaluate import run_judge_eval, submit_verdicts
from .export_model import export_checkpoint
from .find_datasets import find_datasets
from .generate import start_generation
from .jobs import cancel_job, get_job, list_jobs, resume_job, wait_for_job
from .manage_checkpoints import manage_checkpoints
from .models import list_models, sample_model
from .prepare import prepare_dataset
from .propose_plan import propose_plan
from .start import start_dpo, start_grpo, start_sft
from .validate_capacity import validate_capacity


@dataclass(frozen=True, slots=True)
class ToolSpec:
    """A tool and what a client is told about it before it asks its user.

    Attributes:
        function: The tool itself; its docstring is what the model reads to choose it.
        title: A name for people.
        read_only: Whether it changes nothing.
        destructive: Whether it can destroy something.
        idempotent: Whether a second equal call changes nothing more.
        open_world: Whether it may reach beyond this machine.
    """

    function: Callable[..., Any]
    title: str
    read_only: bool = False
    destructive: bool = False
    idempotent: bool = False
    open_world: bool = False


TOOLS: tuple[ToolSpec, ...] = (
    ToolSpec(propose_plan, "Propose a plan", idempotent=True, open_world=True),
    ToolSpec(find_datasets, "Find data sets", read_only=True, idempotent=True, open_world=True),
    ToolSpec(check_dataset, "Check a training file", read_only=True, idempotent=True, open_world=True),
    ToolSpec(prepare_dataset, "Prepare data files"),
    ToolSpec(validate_capacity, "Check LoRA capacity", read_only=True, idempotent=True, open_world=True),
    ToolSpec(list_models, "List models", read_only=True, idempotent=True, open_world=True),
    ToolSpec(start_sft, "Start supervised fine-tuning", open_world=True),
    ToolSpec(run_judge_eval, "Judge a tuned model", open_world=True),
    ToolSpec(submit_verdicts, "Submit verdicts"),
    ToolSpec(run_benchmark, "Run a benchmark", open_world=True),
    ToolSpec(start_dpo, "Start preference training", open_world=True),
    ToolSpec(start_grpo, "Start reinforcement learning", open_world=True),
    ToolSpec(start_generation, "Make rows", open_world=True),
    ToolSpec(list_jobs, "List jobs", read_only=True, idempotent=True),
    ToolSpec(get_job, "Show a job", read_only=True, idempotent=True),
    ToolSpec(wait_for_job, "Wait for a job", read_only=True, idempotent=True),
    ToolSpec(cancel_job, "Cancel a job", destructive=True, idempotent=True),
    ToolSpec(resume_job, "Resume a job", open_world=True),
    ToolSpec(analyze_run, "Analyze a run", idempotent=True, open_world=True),
    ToolSpec(compare_runs, "Compare runs", idempotent=True),
    ToolSpec(manage_checkpoints, "List or delete checkpoints", destructive=True, open_world=True),
    ToolSpec(sample_model, "Sample a model", read_only=True, open_world=True),
    ToolSpec(export_checkpoint, "Export a checkpoint", destructive=True, open_world=True),
)
