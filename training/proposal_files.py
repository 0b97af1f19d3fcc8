"""The files of a proposal: the plan, and configs that run as they are, each value with its reason beside it."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from ..core.errors import ConfigError
from ..core.files import write_atomically
from ..core.foreign_text import visible
from ..jobs.experiment_plan import PLAN_FILE, ExperimentPlan
from .ladder import CONFIG
from .proposal import Proposal

EVALUATION, NEXT_STAGE = "evaluation.yaml", "next_stage.yaml"
_REASONS = {
    "plan_file": "a start that contradicts it is refused",
    "seed": "job.seed; the real rung takes several",
    "max_cost_usd": "saves a checkpoint and stops",
    "judge_model": "check: a program; assistant: you, by submit_verdicts; or claude-..., openai:MODEL",
    "wanted_effect": "points of win rate: the smallest difference that matters",
    "num_samples": "what an assistant can judge; null: all",
    "load_checkpoint": "the SFT job's id, once it has succeeded; null starts from base_model",
    "columns": "the rows of the SFT run, read as tasks",
}


def write_proposal(proposal: Proposal, folder: Path) -> list[Path]:
    """Write the plan and its configs beside the data that `propose` wrote; the plan last.

    Raises:
        ConfigError: If the plan that is there was changed.
        StorageError: If the folder takes no files.
    """
    plan = proposal.plan
    texts = {
        CONFIG: _config(
            f"The runs of {PLAN_FILE}: {plan.method}. Started as it is, this is the real run; the ladder's rungs "
            "override a few keys.",
            proposal.config,
            {key: _reason(each.why, each.rule) for key, each in plan.settings.items()},
        ),
        EVALUATION: _config(
            f"The evaluation of {PLAN_FILE}. As it is it measures the untuned model against itself: the baseline. "
            "After training give the job's id as finetuned_model.",
            proposal.evaluation,
            {},
        ),
    }
    if proposal.next_stage is not None:
        texts[NEXT_STAGE] = _config("RL after the SFT run of the plan, on the same rows.", proposal.next_stage, {})
    texts[PLAN_FILE] = _plan(plan)
    existing = folder / PLAN_FILE
    if existing.exists() and existing.read_text(encoding="utf-8") != texts[PLAN_FILE]:
        raise ConfigError(
            "it is not as it was written; it is kept", where=str(existing), fix="Give another output_dir, or remove it"
        )
    for name, text in texts.items():
        write_atomically(folder / name, text)
    return [folder / name for name in texts]


def _reason(why: str, rule_id: str | None) -> str:
    return f"{why.rstrip('.')} ({rule_id})" if rule_id else why


def _config(head: str, values: Mapping[str, Any], reasons: Mapping[str, str]) -> str:
    lines = [f"# {line}" for line in _wrapped(head)]
    for key, value in values.items():
        reason = reasons.get(key) or _REASONS.get(key)
        lines += [f"# {line}" for line in _wrapped(reason)] if reason else []
        lines.append(_entry(key, value))
    return "\n".join(lines) + "\n"


def _plan(plan: ExperimentPlan) -> str:
    head = (
        "Written by propose_plan. It is the record of what was decided before any run: a job whose config names it is "
        "refused if it contradicts it, and the run's report answers it. Change it here first."
    )
    body = yaml.safe_dump(
        {"kind": "experiment_plan", **plan.model_dump(mode="json")}, sort_keys=False, allow_unicode=True, width=116
    )
    return "\n".join(f"# {line}" for line in _wrapped(head)) + f"\n{body}"


def _entry(key: str, value: Any) -> str:
    # A flow list of one item: the only form in which every kind of value stays on one line.
    inline = yaml.safe_dump([value], default_flow_style=True, allow_unicode=True, width=10**6).strip()[1:-1]
    return f"{key}: {inline}"


def _wrapped(text: str) -> list[str]:
    return textwrap.wrap(visible(text), 116)
