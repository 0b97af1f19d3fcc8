"""Checking data, and rewards on them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from mcp.server.mcpserver import Context
from mcp_types import CallToolResult
from pydantic import BaseModel, Field

from ..core.errors import ConfigError, ModelError
from ..core.foreign_text import foreign, named, one_line
from ..data.columns import ColumnMap
from ..data.sources import DataSource
from .answers import answer, number
from .background import (
    CALL_AGAIN,
    ColumnsArgument,
    WorkProgress,
    config_path,
    data_sources,
    file_identity,
    forget,
    run_in_background,
)
from .model_arguments import with_reward_models

if TYPE_CHECKING:
    from ..data.benchmark_overlap import BenchmarkOverlap
    from ..data.column_proposal import Proposal
    from ..data.preference_check import PreferenceReport
    from ..data.row_findings import DatasetReport
    from ..models.chat import ChatRenderer
    from ..rewards.probes import RewardReport
_SHOWN_FINDINGS = 10
TrainFile = Annotated[
    str,
    Field(description="JSONL, JSON, CSV, Parquet, Arrow; a folder or pattern of shards; demo:NAME; hub: find_datasets"),
]


class DatasetAnswer(BaseModel):
    """``done`` false: the file is large and still being read; the same call goes on waiting.

    ``columns``: proposed where the file has other columns than ours; ``report`` is then null.
    """

    done: bool
    rows_read: int
    report: dict[str, Any] | None
    columns: dict[str, Any] | None = None
    next: str


async def check_dataset(
    train_file: TrainFile,
    ctx: Context,
    base_model: Annotated[str | None, Field(description="Counts tokens as this model sees them")] = None,
    max_seq_len: Annotated[int | None, Field(gt=0, description="Tokens at which training cuts a row")] = None,
    val_file: Annotated[str | None, Field(description="Held-out rows that must not be in train_file")] = None,
    benchmark_files: Annotated[
        list[str] | None, Field(description="Test sets whose items must not be in train_file")
    ] = None,
    renderer: Annotated[str | None, Field(description="Cookbook renderer, if not the model's own template")] = None,
    reward_config: Annotated[
        str | None, Field(description="An RL config: dry-runs its reward on train_file, sampling base_model if given")
    ] = None,
    columns: ColumnsArgument = None,
) -> Annotated[CallToolResult, DatasetAnswer]:
    """Check a training file (supervised rows or preference pairs), or a reward function, before paying for a run.

    Reports bad rows by line, tokens and truncation, duplicates, overlap with the validation file and damaged text, and
    shows one example with its loss mask. Pairs: contradictions, a bias for length. With reward_config: whether a reward
    function makes sense. Reward: distribution, constant groups, failures, cheats that score. Unknown columns: proposes
    `columns`. Use it first on any new file; it says nothing about models or ranks. Next: validate_capacity.
    """
    tests = {f"benchmark_files[{index}]": file for index, file in enumerate(benchmark_files or ())}
    sources, fetching = await data_sources(ctx, train_file=train_file, val_file=val_file or None, **tests)
    if sources is None:
        return _still(fetching)
    source = sources["train_file"]
    train, val = source.path, sources["val_file"].path if val_file else None
    benchmarks = tuple(sources[name].path for name in tests)
    for name, value in {"val_file": val, "benchmark_files": benchmarks}.items():
        if reward_config is not None and value:
            raise ConfigError("a reward is tried on train_file alone", where=name, fix="Leave it out")
    needs_model = {"renderer": renderer} | ({} if reward_config else {"max_seq_len": max_seq_len})
    for name, value in needs_model.items():
        if value is not None and base_model is None:
            raise ConfigError("it says how tokens are counted, and base_model is missing", where=name, fix="Give both")
    if reward_config is not None:
        changes = {"train_file": str(train), "base_model": base_model, "renderer": renderer, "max_seq_len": max_seq_len}
        return await _check_reward(reward_config, {**changes, "columns": columns}, ctx)
    from ..data.column_proposal import Proposal
    from ..data.preference_check import PreferenceReport

    asked = _Asked(train, val, benchmarks, base_model, renderer, max_seq_len, columns)
    files = [file_identity(file) for file in (train, val, *benchmarks)]
    key = ("check", *files, base_model, max_seq_len, renderer, repr(columns))
    checked, progress = await run_in_background(key, asked.answer, ctx)
    if checked is None:
        return _still(progress)
    if isinstance(checked, Proposal):
        return _proposal_answer(checked, source)
    if isinstance(checked, PreferenceReport):
        return _preferences_answer(checked, columns, source)
    following = _after_check(checked, base_model, columns, source)
    content = DatasetAnswer(done=True, rows_read=checked.rows, report=checked.model_dump(mode="json"), next=following)
    return answer(content, _of_source(source) + _dataset_text(checked, following, has_model=base_model is not None))


def _still(progress: WorkProgress) -> CallToolResult:
    waiting = DatasetAnswer(done=False, rows_read=int(progress.done), report=None, next=CALL_AGAIN)
    return answer(waiting, f"Still reading: {progress.message}. {CALL_AGAIN}")


def _of_source(source: DataSource) -> str:
    """The line that says what of the hub was read."""
    return f"From the hub: {source.facts}.\n" if source.facts else ""


@dataclass(frozen=True, slots=True)
class _Asked:
    """What a file is to be checked for."""

    train: Path
    val: Path | None
    benchmarks: tuple[Path, ...]
    base_model: str | None
    renderer: str | None
    max_seq_len: int | None
    columns: ColumnMap | None

    def answer(self, report: WorkProgress) -> DatasetReport | PreferenceReport | Proposal:
        """Read the file: what was found in it, or the columns that it probably means."""
        report.message = "the file is being opened"
        from ..data.check import check_dataset as check
        from ..data.column_proposal import unknown_shape
        from ..data.preference_check import kind_of, preference_report

        report.message = f"{self.train.name}, its first rows"
        if (unknown := unknown_shape(self.train, self.columns, "preferences", "supervised")) is not None:
            if unknown[0] is None:
                raise unknown[1]
            return unknown[0]
        is_preference = kind_of(self.train, self.columns) == "preferences"
        chat, context = _model(self.base_model, self.renderer) if self.base_model else (None, None)

        def progress(rows: int, doing: str) -> None:
            report.done, report.message = rows, f"{self.train.name}, {rows:,} {doing}"

        return (preference_report if is_preference else check)(
            self.train,
            val_file=self.val,
            renderer=chat,
            max_seq_len=self.max_seq_len,
            context=context,
            benchmark_files=self.benchmarks,
            columns=self.columns,
            progress=progress,
        )


def _model(base_model: str, renderer: str | None) -> tuple[ChatRenderer, int | None]:
    """A model's renderer, and the tokens it takes where that is known."""
    from ..models.configs import load_model_config
    from ..models.hyperparameters import derive_max_seq_len
    from ..models.model_ref import resolve_model
    from ..models.renderers import load_renderer

    chat = load_renderer(base_model, renderer)
    try:
        context = derive_max_seq_len(load_model_config(resolve_model(base_model)), "embedded").value
    except ModelError:  # its config is out of reach, and only the check of the length needs it
        context = None
    return chat, None if context is None else int(context)


async def _check_reward(reward_config: str, given: Mapping[str, Any], ctx: Context) -> CallToolResult:
    from ..training.rl.config import load_rl_settings

    changes = {key: value for key, value in given.items() if value is not None}
    base_model, train = given["base_model"], Path(str(given["train_file"]))
    file = config_path(reward_config)

    def work(report: WorkProgress) -> RewardReport:
        from ..training.rl.plan import prepared, reward_report

        report.message = "scoring samples and probes"
        settings, _ = with_reward_models(load_rl_settings(file, changes))
        return reward_report(prepared(settings).config, sample=base_model is not None)

    key = ("reward", file_identity(file), file_identity(train), *map(str, given.values()))
    tried, progress = await run_in_background(key, work, ctx)
    if tried is None:
        waiting = DatasetAnswer(done=False, rows_read=0, report=None, next=CALL_AGAIN)
        return answer(waiting, f"Still {progress.message}. {CALL_AGAIN}")
    forget(key)  # the reward's own files may change before the next call
    following = f"start_grpo(config='{reward_config}')" if not tried.constant else "change the reward or the task"
    content = DatasetAnswer(done=True, rows_read=tried.samples, report=tried.model_dump(mode="json"), next=following)
    return answer(content, _reward_text(tried, following))


def _reward_text(report: RewardReport, following: str) -> str:
    lines = [f"Reward dry run: {report.samples} samples, {report.seconds_per_call * 1000:.1f} ms per call."]
    if report.samples:
        counts = ", ".join(f"{value}: {count}" for value, count in report.distribution.items())
        lines.append(f"Mean {number(report.mean, 3)} ({counts}); constant groups {number(report.constant_groups, 3)}.")
    if report.turns is not None:
        lines.append(f"An episode has {report.turns:.1f} turns on average.")
    lines.append("Cheats earn: " + ", ".join(f"{p.name} {p.share:.0%}" for p in report.probes) + ".")
    lines += [f"Warning: {foreign(warning)}" for warning in report.warnings]  # they quote what a program raised
    return "\n".join([*lines, f"Next: {following}"])


def _proposal_answer(proposal: Proposal, source: DataSource) -> CallToolResult:
    following = "if this is what they are, check_dataset again with these columns, which go into the config too"
    lines = [
        f"{_of_source(source)}{named(source.path.name)}: its columns are not ours. Nothing was checked; this may be "
        f"what they are ({'preference pairs' if proposal.use == 'preferences' else 'supervised rows'}):",
        foreign(proposal.block, 2000),
        f"Line {proposal.line} under it:\n{proposal.shown_row()}",
        f"Next: {following}",
    ]
    content = DatasetAnswer(done=True, rows_read=0, report=None, columns=dict(proposal.columns), next=following)
    return answer(content, "\n".join(lines))


def _preferences_answer(report: PreferenceReport, columns: ColumnMap | None, source: DataSource) -> CallToolResult:
    file = source.reference or report.file
    following = f"start_dpo(overrides={{'train_file': '{file}'{_with(columns)}, ...}}, validate_only=True)"
    following = following if report.ok else "fix the rows named above and check again"
    verdict = "usable" if report.ok else "NOT usable as it is"
    name = named(Path(report.file).name)
    lines = [f"{_of_source(source)}{name}: {verdict}. {report.usable_rows:,} of {report.rows:,} pairs."]
    lines += [
        *_overlaps(report.benchmarks),
        *map(foreign, report.bad_rows),
        *(f"Warning: {warning}" for warning in report.warnings),
    ]
    content = DatasetAnswer(done=True, rows_read=report.rows, report=report.model_dump(mode="json"), next=following)
    return answer(content, "\n".join([*lines, f"Next: {following}"]))


def _overlaps(overlaps: Sequence[BenchmarkOverlap]) -> Iterator[str]:
    for each in overlaps:
        short = f"; {each.too_short:,} are too short to compare" if each.too_short else ""
        yield f"{named(Path(each.file).name)}: {each.found:,} of its {each.items:,} items are in the rows{short}."


def _with(columns: ColumnMap | None) -> str:
    return f", 'columns': {dict(columns)}" if columns else ""


def _after_check(report: DatasetReport, base_model: str | None, columns: ColumnMap | None, source: DataSource) -> str:
    if not report.ok:
        return "fix the rows named above and check again"
    model = f"'{base_model}'" if base_model else "..."
    mapped = f", columns={dict(columns)}" if columns else ""
    return f"validate_capacity(base_model={model}, train_file='{source.reference or report.file}'{mapped})"


def _dataset_text(report: DatasetReport, following: str, *, has_model: bool) -> str:
    verdict = "usable" if report.ok else "NOT usable as it is"
    form = f", {report.format}" if report.format else ""
    lines = [f"{named(Path(report.file).name)}: {verdict}. {report.usable_rows:,} of {report.rows:,} rows{form}."]
    tokens = report.tokens
    if tokens is None:
        lines.append("No tokens were counted: " + ("no row can be used." if has_model else "give base_model for that."))
    else:
        lines.append(
            f"{tokens.total:,} tokens, {tokens.loss:,} of them trained; a row has {tokens.p50} (median), "
            f"{tokens.p99} (99%), {tokens.max} (longest)."
        )
    lines += _overlaps(report.benchmarks)
    for finding in report.findings[:_SHOWN_FINDINGS]:
        has_lines = finding.lines and finding.kind not in {"bad_row", "unread_key"}
        rule = f" ({finding.rule})" if finding.rule else ""
        at = f" Lines: {', '.join(map(str, finding.lines[:5]))}." if has_lines else ""
        lines.append(f"[{finding.severity}] {foreign(finding.message)}.{at} {one_line(finding.fix)}{rule}.")
    if len(report.findings) > _SHOWN_FINDINGS:
        lines.append(f"{len(report.findings) - _SHOWN_FINDINGS} more kinds of findings are in the report.")
    if all(finding.severity == "info" for finding in report.findings):
        lines.append("No problems found.")
    if report.example is not None:
        text = foreign(report.example.text, 400, lines=True)
        lines.append(f"Line {report.example.line} as the model sees it, trained between ⟦ and ⟧:\n{text}")
    return "\n".join([*lines, f"Next: {following}"])
