"""Small test sets, and running an evaluation in this process as a worker would."""

from __future__ import annotations

import json
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

from loopback_judges import Asked

from sota_ml_researcher.backends.connection import Backend, connect
from sota_ml_researcher.core.files import read_json_lines
from sota_ml_researcher.core.names import BackendName
from sota_ml_researcher.core.settings import render_config
from sota_ml_researcher.evals import evidence, judge_job
from sota_ml_researcher.evals.judge_config import load_judge_settings
from sota_ml_researcher.evals.judge_plan import plan_judge_eval
from sota_ml_researcher.evals.results import Verdict
from sota_ml_researcher.evals.write_report import main as write_report
from sota_ml_researcher.jobs.context import Outcome
from sota_ml_researcher.judges.journal import JUDGMENTS


@dataclass
class Context:
    """Stands where the worker stands."""

    folder: Path
    attempt: int = 1
    job_id: str = "judge_eval-000000"
    total: int = 0
    step: int = 0
    stop_at: int | None = None
    alerts: list[tuple[str, str]] = field(default_factory=list)

    def started(self, total_steps: int) -> None:
        self.total = total_steps

    def progress(self, step: int) -> None:
        self.step = step

    def connect(self, name: BackendName, base_url: str | None = None) -> Backend:
        return connect(name, base_url)

    def alert(self, level: str, message: str, *, step: int | None = None) -> None:
        self.alerts.append((level, message))

    def judged(self, total_usd: float) -> None:
        self.judges_usd = total_usd

    def stop_requested(self) -> str | None:
        return "cancel" if self.stop_at is not None and self.step >= self.stop_at else None


def write_lines(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def sums(folder: Path, count: int, *, tuned_right: float = 1.0, base_right: float = 0.0) -> dict[str, Any]:
    """A test set of sums and two files of answers, the first of which are right."""
    prompts = [{"prompt": f"{n}+{n}=", "reference": str(2 * n)} for n in range(count)]

    def answers(share: float) -> list[dict[str, Any]]:
        right = round(share * count)
        return [
            {"prompt": p["prompt"], "response": p["reference"] if n < right else "?"} for n, p in enumerate(prompts)
        ]

    return {
        "test_set": str(write_lines(folder / "test.jsonl", prompts)),
        "baseline_model": str(write_lines(folder / "base.jsonl", answers(base_right))),
        "finetuned_model": str(write_lines(folder / "tuned.jsonl", answers(tuned_right))),
        "judge_model": "check:exact",
    }


def evaluate(
    folder: Path, config: dict[str, Any], context: Context | None = None, *, own_process: bool = False
) -> tuple[Outcome, Context]:
    """Plan, write the resolved config, and run; analyse in this process unless ``own_process`` (4 s of imports)."""
    context = context or Context(folder / "run")
    context.folder.mkdir(exist_ok=True)
    plan = plan_judge_eval(load_judge_settings(None, config))
    file = context.folder / "config.yaml"
    file.write_text(render_config(plan.settings.config, plan.settings.origins))
    with nullcontext() if own_process else patch.object(judge_job, "conclude", conclude):
        outcome = judge_job.run_judge_eval_job(context, file)
    if outcome.finished:
        assert context.step == context.total == plan.total_steps
    return outcome, context


def conclude(folder: Path) -> Verdict:
    """As the job does it, in this process."""
    assert write_report([str(folder)]) == 0
    return Verdict.model_validate_json((folder / evidence.VERDICT).read_bytes())


def metrics(context: Context) -> dict[str, Any]:
    return json.loads((context.folder / evidence.METRICS).read_text())


def comparison(context: Context, arm: str = "tuned") -> dict[str, Any]:
    return next(c for c in metrics(context)["comparisons"] if c["arm"] == arm)


def lines(context: Context) -> list[dict[str, Any]]:
    """The verdicts that an evaluation kept."""
    return list(read_json_lines(context.folder / JUDGMENTS))


def is_test(asked: Asked) -> bool:
    """Whether this is a question that tests the judge."""
    return "=" not in asked.request
