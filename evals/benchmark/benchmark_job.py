"""One benchmark from its resolved config to its numbers, through Inspect."""
# pyright: basic
# reason: Inspect's task and log types are wide unions

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from inspect_ai import Task, eval
from inspect_ai.dataset import Sample
from inspect_ai.log import EvalLog
from inspect_ai.model import ChatMessageAssistant, ChatMessageSystem, ChatMessageUser, GenerateConfig, Model
from inspect_ai.scorer import (
    CORRECT,
    INCORRECT,
    Score,
    Scorer,
    Target,
    accuracy,
    includes,
    math,
    model_graded_qa,
    scorer,
    stderr,
    value_to_float,
)
from inspect_ai.solver import TaskState

from ...core.errors import ConfigError, ResearcherError
from ...core.files import write_atomically
from ...core.foreign_text import foreign
from ...doctrine.rules import number
from ...jobs.context import Outcome, Progress, RunContext
from ...judges.local_judges import check_exact
from ...judges.prompt import EvalItem
from ..evidence import METRICS, VERDICT_TEXT
from ..responses import open_model
from ..results import write_record
from ..test_set import final_answer, load_items
from .benchmark_config import BenchmarkConfig, load_benchmark_settings
from .benchmark_results import ItemScores, benchmark_numbers, benchmark_text
from .grader import grader_of
from .inspect_provider import StoppedError, TinkerModelAPI

LOGS = "inspect"
# Inspect's decorator hides the constructor's parameters from type checkers.
_API: Any = TinkerModelAPI
_MESSAGES = {"system": ChatMessageSystem, "user": ChatMessageUser, "assistant": ChatMessageAssistant}


def run_benchmark_job(context: RunContext, config_file: Path) -> Outcome:
    """Run the benchmark whose resolved config lies in ``config_file``.

    Raises:
        ResearcherError: For a task or model that does not exist here, a backend that refuses, or a task that fails.
    """
    config = load_benchmark_settings(config_file, None).config
    items = load_items(Path(config.task), config.num_samples, config.seed) if config.has_rows else None
    progress = Progress(context)
    per_arm = (len(items) if items else config.num_samples or 0) * config.epochs
    context.started(max(1, per_arm * len(config.arms)))
    logs: dict[str, EvalLog] = {}
    with grader_of(context, config) as grader:
        for name, model in config.arms.items():
            task: Any = _task(config, items, grader) if items is not None else config.task
            opened = open_model(model, config, context.connect, seed=config.seed)
            provider = _API(opened, should_stop=lambda: context.stop_requested() is not None, on_answer=progress.one)
            log = _run_arm(config, provider, task, context.folder / LOGS / name)
            if context.stop_requested() is not None:
                return Outcome(False, context.stop_requested(), progress.done, {})
            if log.status != "success":
                raise _task_failed(log, context.folder)
            logs[name] = log
    scores = {name: item_scores(log) for name, log in logs.items()}
    numbers = benchmark_numbers(scores, arms=config.arms, limit=number("judge.unscored.limit"))
    text = benchmark_text(numbers, task=Path(config.task).name)
    write_record(context.folder / METRICS, numbers)
    write_atomically(context.folder / VERDICT_TEXT, text)
    summary = {
        "verdict_text": text,
        "logs": str(context.folder / LOGS),
        "numbers": numbers.model_dump(exclude_unset=True),
    }
    return Outcome(True, None, progress.done, summary)


def item_scores(log: EvalLog) -> dict[str, ItemScores]:
    """For each scorer of a log the score of each item, the mean over its epochs; what is unscored is None."""
    to_float = value_to_float()
    gathered: dict[str, dict[str, list[float | None]]] = {}
    clusters: dict[str, str | None] = {}
    for sample in log.samples or []:
        item = str(sample.id)
        cluster = (sample.metadata or {}).get("cluster_id")
        clusters[item] = None if cluster is None else str(cluster)
        for name, score in (sample.scores or {}).items():
            value = to_float(score.value) if isinstance(score.value, str | int | float | bool) else None
            usable = value if value is not None and value == value and not sample.error else None
            gathered.setdefault(name, {}).setdefault(item, []).append(usable)
    return {
        name: ItemScores({i: _mean(values) for i, values in by_item.items()}, clusters)
        for name, by_item in gathered.items()
    }


def _mean(values: Sequence[float | None]) -> float | None:
    present = [v for v in values if v is not None]
    return fmean(present) if present else None


def _run_arm(config: BenchmarkConfig, provider: TinkerModelAPI, task: Any, log_dir: Path) -> EvalLog:
    try:
        (log,) = eval(
            task,
            model=Model(provider, GenerateConfig()),
            task_args={} if config.has_rows else dict(config.task_args),
            log_dir=str(log_dir),
            log_format="json",
            epochs=config.epochs,
            limit=None if config.has_rows else config.num_samples,
            max_samples=config.parallel_samples,
            temperature=config.temperature,
            max_tokens=config.max_response_tokens,
            fail_on_error=True,
            display="none",
            ctl_server=False,
            acp_server=False,
        )
    except ResearcherError:
        raise
    except (StoppedError, KeyboardInterrupt):
        return EvalLog.model_construct(status="cancelled")
    except Exception as error:  # whatever a user's task raises while it is loaded
        message = str(error).strip().splitlines()
        raise ConfigError(
            f"the task cannot be run: {foreign(message[0] if message else type(error).__name__)}",
            where=f"task: {config.task}",
            fix="Try it with `inspect eval` to see where it fails",
        ) from error
    return log


def _task(config: BenchmarkConfig, items: Sequence[EvalItem], grader: Model | None) -> Task:
    samples = [
        Sample(
            id=item.id,
            input=[_MESSAGES[m["role"]](content=m["content"]) for m in item.messages],
            target=_target(item.reference or "", config.scorer),
            metadata={"cluster_id": item.cluster, "category": item.category},
        )
        for item in items
    ]
    return Task(dataset=samples, scorer=_scorer(config, grader), name=Path(config.task).stem)


def _target(reference: str, scorer: str | None) -> str:
    """What a scorer compares with: of a worked solution, `math` is given the number it ends in."""
    return final_answer(reference) if scorer == "math" else reference


def _scorer(config: BenchmarkConfig, grader: Model | None) -> Scorer:
    if grader is not None:
        return model_graded_qa(model=grader)
    plain: Mapping[str, Any] = {"exact": exact, "includes": includes, "math": math}
    return plain[str(config.scorer)]()


@scorer(metrics=[accuracy(), stderr()])
def exact() -> Scorer:
    """Equal to the reference as `check:exact` means it; Inspect's own scorer of this name ignores case and marks."""

    async def score(state: TaskState, target: Target) -> Score:
        answer = state.output.completion
        return Score(value=CORRECT if check_exact(answer, target.text) else INCORRECT, answer=answer)

    return score


def _task_failed(log: EvalLog, folder: Path) -> ResearcherError:
    message = log.error.message if log.error else f"it ended as {log.status}"
    return ResearcherError(
        f"the task failed: {foreign(message)}", where=str(folder / LOGS), fix="inspect view shows where"
    )
