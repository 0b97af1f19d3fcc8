"""Checking data, and whether an adapter has room for them."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from mcp.server.mcpserver import Context
from mcp_types import CallToolResult
from pydantic import BaseModel, Field

from sota_ml_researcher.core.errors import ConfigError
from sota_ml_researcher.tools.answers import answer, number
from sota_ml_researcher.tools.background import Report, run_in_background
from sota_ml_researcher.tools.start_preferences import with_reward_checkpoints
from sota_ml_researcher.training.models import demo_data
from sota_ml_researcher.training.names import COMPONENTS, BackendName, Component

if TYPE_CHECKING:
    from sota_ml_researcher.training.capacity import CapacityReport
    from sota_ml_researcher.training.data_report import DatasetReport
    from sota_ml_researcher.training.reward_check import RewardReport

TrainFile = Annotated[str, Field(description=".jsonl, .json, .csv or .parquet file, or demo:NAME")]
BaseModelName = Annotated[str, Field(description="'demo', a model folder, or an id such as Qwen/Qwen3-8B")]
_MEASURED_ROWS = 64


class DatasetAnswer(BaseModel):
    """``done`` false: the file is large and still being read; the same call goes on waiting."""

    done: bool
    rows_read: int
    report: dict[str, Any] | None
    next: str


class CapacityAnswer(BaseModel):
    """Counts are plain integers; ``details`` has the modules, the rules, the uncertainties."""

    done: bool
    verdict: str | None = None
    ratio: float | None = None
    parameters: int | None = None
    parameters_by_component: dict[str, int] | None = None
    capacity_bits: int | None = None
    data_bits: int | None = None
    loss_tokens: int | None = None
    total_tokens: int | None = None
    smallest_sufficient_rank: int | None = None
    learning_rate: float | None = None
    batch_size: int | None = None
    details: dict[str, Any] | None = None
    next: str = ""


async def check_dataset(
    train_file: TrainFile,
    ctx: Context,
    base_model: Annotated[str | None, Field(description="Counts tokens as this model sees them")] = None,
    max_seq_len: Annotated[int | None, Field(gt=0, description="Tokens at which training cuts a row")] = None,
    val_file: Annotated[str | None, Field(description="Held-out rows that must not be in train_file")] = None,
    renderer: Annotated[str | None, Field(description="Cookbook renderer, if not the model's own template")] = None,
    reward_config: Annotated[
        str | None, Field(description="An RL config: dry-runs its reward on train_file, sampling base_model if given")
    ] = None,
) -> Annotated[CallToolResult, DatasetAnswer]:
    """Check a training file (supervised rows or preference pairs), or a reward, before paying for a run.

    Finds bad rows by line, counts tokens and truncation, duplicates, overlap with the validation file and damaged
    text, and shows one example with its loss mask. Pairs: contradictions, a taste for length. Reward: distribution,
    constant groups, failures, and whether cheats score. Use it first on any new file; it says nothing about models or
    ranks. Next: validate_capacity.
    """
    train, val = data_path(train_file), data_path(val_file) if val_file else None
    if reward_config is not None:
        return await _check_reward(reward_config, train, base_model, ctx)
    if train.exists() and train.suffix != ".parquet":
        from sota_ml_researcher.training.data_questions import kind_of, preference_report

        if kind_of(train) == "preferences":
            return _preferences_answer(preference_report(train, val))

    def work(report: Report, cancelled: threading.Event) -> DatasetReport:
        from sota_ml_researcher.training.data_check import check_dataset as check
        from sota_ml_researcher.training.rendering import load_renderer

        def progress(rows: int, doing: str) -> None:
            report.done, report.message = rows, f"{rows:,} {doing}"

        return check(
            train,
            renderer=load_renderer(base_model, renderer) if base_model else None,
            max_seq_len=max_seq_len,
            val_file=val,
            progress=progress,
            cancelled=cancelled.is_set,
        )

    key = ("check", _identity(train), _identity(val), base_model, max_seq_len, renderer)
    found, progress = await run_in_background(key, work, ctx)
    if found is None:
        waiting = DatasetAnswer(done=False, rows_read=int(progress.done), report=None, next=_AGAIN)
        return answer(waiting, f"Still reading: {progress.message}. {_AGAIN}")
    following = _after_check(found, base_model)
    content = DatasetAnswer(done=True, rows_read=found.rows, report=found.model_dump(mode="json"), next=following)
    return answer(content, _dataset_text(found, following))


async def _check_reward(reward_config: str, train: Path, base_model: str | None, ctx: Context) -> CallToolResult:
    from sota_ml_researcher.training.rl_config import load_rl_settings

    changes = {"train_file": str(train)} | ({"base_model": base_model} if base_model else {})
    settings, _ = with_reward_checkpoints(load_rl_settings(Path(reward_config).expanduser(), changes))
    config_path = _identity(Path(reward_config).expanduser())

    def work(report: Report, cancelled: threading.Event) -> RewardReport:
        from sota_ml_researcher.training.data_questions import reward_report
        from sota_ml_researcher.training.rl_plan import prepared

        report.message = "scoring samples and probes"
        return reward_report(prepared(settings).config, sample=base_model is not None)

    key = ("reward", config_path, _identity(train), base_model)
    found, progress = await run_in_background(key, work, ctx)
    if found is None:
        waiting = DatasetAnswer(done=False, rows_read=0, report=None, next=_AGAIN)
        return answer(waiting, f"Still {progress.message}. {_AGAIN}")
    following = f"start_grpo(config='{reward_config}')" if not found.constant else "change the reward or the task"
    content = DatasetAnswer(done=True, rows_read=found.samples, report=found.model_dump(mode="json"), next=following)
    return answer(content, _reward_text(found, following))


def _reward_text(report: RewardReport, following: str) -> str:
    lines = [f"Reward dry run: {report.samples} samples, {report.seconds_per_call * 1000:.1f} ms a call."]
    if report.samples:
        counts = ", ".join(f"{value}: {count}" for value, count in report.distribution.items())
        lines.append(f"Mean {number(report.mean, 3)} ({counts}); constant groups {number(report.constant_groups, 3)}.")
    if report.turns is not None:
        lines.append(f"An episode has {report.turns:.1f} turns on average.")
    lines.append("Cheats earn: " + ", ".join(f"{p.name} {p.share:.0%}" for p in report.probes) + ".")
    lines += [f"Warning: {warning}" for warning in report.warnings]
    return "\n".join([*lines, f"Next: {following}"])


def _preferences_answer(report: dict[str, Any]) -> CallToolResult:
    following = f"start_dpo(overrides={{'train_file': '{report['file']}', ...}}, validate_only=True)"
    following = following if report["ok"] else "mend the rows named above and check again"
    verdict = "usable" if report["ok"] else "NOT usable as it is"
    lines = [f"{Path(report['file']).name}: {verdict}. {report['usable_rows']:,} of {report['rows']:,} pairs."]
    lines += [*report["bad_rows"], *(f"Warning: {warning}" for warning in report["warnings"])]
    content = DatasetAnswer(done=True, rows_read=report["rows"], report=report, next=following)
    return answer(content, "\n".join([*lines, f"Next: {following}"]))


_AGAIN = "Call this tool again with the same arguments to go on waiting"


async def validate_capacity(
    base_model: BaseModelName,
    ctx: Context,
    lora_rank: Annotated[int, Field(description="The rank in question")] = 32,
    apply_to: Annotated[list[Component] | None, Field(description="Layers with adapters; default all")] = None,
    train_file: Annotated[str | None, Field(description="Training file, or demo:NAME")] = None,
    dataset_tokens: Annotated[int | None, Field(gt=0, description="Instead of a file: tokens to learn")] = None,
    epochs: Annotated[int, Field(ge=1)] = 1,
    max_seq_len: Annotated[int | None, Field(gt=0)] = None,
    backend: Annotated[BackendName, Field(description="Decides accepted ranks and expert adapters")] = "embedded",
    measure: Annotated[bool, Field(description="Measure the base model's loss on 64 rows (needs the backend)")] = False,
) -> Annotated[CallToolResult, CapacityAnswer]:
    """Say whether a LoRA adapter of this rank has room for a data set, and which rank suffices.

    Exact parameter counts from the model's config; recommends learning rate and batch too. Give train_file or
    dataset_tokens. Use it before start_sft, or for "which rank do I need?". It trains nothing, and finds no faults in a
    file: that is check_dataset.
    """
    if (train_file is None) == (dataset_tokens is None):
        raise ConfigError("give either train_file or dataset_tokens", where="validate_capacity")
    path = data_path(train_file) if train_file else None
    parts = tuple(apply_to) if apply_to is not None else COMPONENTS
    if measure and path is None:
        raise ConfigError("measure needs train_file: there are no rows to measure on", where="measure")

    def work(report: Report, cancelled: threading.Event) -> tuple[CapacityReport, int, int | None]:
        from sota_ml_researcher.training.capacity_question import answer_capacity

        report.message = "counting tokens"
        return answer_capacity(
            base_model=base_model,
            lora_rank=lora_rank,
            apply_to=parts,
            train_file=path,
            dataset_tokens=dataset_tokens,
            epochs=epochs,
            max_seq_len=max_seq_len,
            backend=backend,
            measured_rows=_MEASURED_ROWS if measure else 0,
        )

    key = ("capacity", base_model, lora_rank, parts, _identity(path), dataset_tokens, epochs, max_seq_len, backend)
    found, progress = await run_in_background((*key, measure), work, ctx)
    if found is None:
        return answer(CapacityAnswer(done=False, next=_AGAIN), f"Still {progress.message}. {_AGAIN}")
    return _capacity_answer(*found)


def data_path(name: str) -> Path:
    """The file a tool argument names: ``demo:NAME``, or a path (``~`` is expanded)."""
    if name.startswith("demo:"):
        return demo_data(name.removeprefix("demo:"), where="train_file")
    return Path(name).expanduser().absolute()


def _identity(path: Path | None) -> tuple[str, int, int] | None:
    """Changes when the file does: a kept answer must never be of an older file."""
    if path is None:
        return None
    if not path.exists():
        return (str(path), 0, 0)
    status = path.stat()
    return (str(path), status.st_mtime_ns, status.st_size)


def _after_check(report: DatasetReport, base_model: str | None) -> str:
    if not report.ok:
        return "mend the rows named above and check again"
    model = f"'{base_model}'" if base_model else "..."
    return f"validate_capacity(base_model={model}, train_file='{report.file}')"


def _dataset_text(report: DatasetReport, following: str) -> str:
    verdict = "usable" if report.ok else "NOT usable as it is"
    lines = [f"{Path(report.file).name}: {verdict}. {report.usable_rows:,} of {report.rows:,} rows, {report.format}."]
    tokens = report.tokens
    if tokens is None:
        lines.append("No tokens were counted: give base_model for that.")
    else:
        lines.append(
            f"{tokens.total:,} tokens, {tokens.loss:,} of them trained; a row has {tokens.p50} (median), "
            f"{tokens.p99} (99%), {tokens.max} (longest)."
        )
    for finding in report.findings[:6]:
        at = f" Lines: {', '.join(map(str, finding.lines[:5]))}." if finding.kind != "bad_row" else ""
        lines.append(f"[{finding.severity}] {finding.message}.{at} {finding.fix}.")
    if not report.findings:
        lines.append("No problems found.")
    if report.example is not None:
        shown = report.example.text if len(report.example.text) <= 400 else report.example.text[:400] + "…"
        lines.append(f"Line {report.example.line} as the model sees it, trained between ⟦ and ⟧:\n{shown}")
    return "\n".join([*lines, f"Next: {following}"])


def _capacity_answer(report: CapacityReport, loss_tokens: int, all_tokens: int | None) -> CallToolResult:
    batch = report.batch_size
    following = f"start_sft(overrides={{'base_model': '{report.base_model}', 'lora_rank': {report.lora_rank}, ...}})"
    content = CapacityAnswer(
        done=True,
        verdict=report.verdict,
        ratio=report.ratio,
        parameters=report.parameters_total,
        parameters_by_component=report.parameters.model_dump(),
        capacity_bits=report.capacity_bits,
        data_bits=report.data_bits,
        loss_tokens=loss_tokens,
        total_tokens=all_tokens,
        smallest_sufficient_rank=report.smallest_sufficient_rank,
        learning_rate=report.learning_rate.value,
        batch_size=int(batch.value) if batch else None,
        details=report.model_dump(mode="json"),
        next=following,
    )
    return answer(content, _capacity_text(report, following))


def _capacity_text(report: CapacityReport, following: str) -> str:
    parts = ", ".join(f"{name} {count:,}" for name, count in report.parameters.model_dump().items() if count)
    rate = report.learning_rate
    lines = [
        f"Capacity {report.verdict}: ratio {number(report.ratio, 3)}, {report.margin}.",
        f"Rank {report.lora_rank}: {report.parameters_total:,} parameters ({parts}), {report.capacity_bits:,} bits.",
        f"Data: {report.data_bits:,} bits ({report.information.explanation}).",
        report.advice,
        f"Learning rate {number(rate.value)} ({rate.rule_id}, confidence {rate.confidence}).",
    ]
    if report.batch_size is not None:
        lines.append(f"Batch {int(report.batch_size.value)} ({report.batch_size.rule_id}): {report.batch_size.note}")
    if not report.rank_check.accepted:
        nearest = " or ".join(map(str, report.rank_check.nearest))
        lines.append(f"Rank {report.lora_rank} is not accepted: {report.rank_check.reason}; use {nearest}.")
    lines += [f"Warning: {warning}" for warning in report.warnings]
    lines.append("Uncertain: " + "; ".join(report.uncertainties[:3]) + ".")
    return "\n".join([*lines, f"Next: {following}"])
