"""`validate_capacity`: count what there is to learn, then compare it with what an adapter can hold."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from mcp.server.mcpserver import Context
from mcp_types import CallToolResult
from pydantic import BaseModel, Field

from ..core.errors import ConfigError
from ..core.extras import require_packages
from ..core.names import COMPONENTS, BackendName, Component
from ..data.columns import ColumnMap
from .answers import answer, number
from .background import CALL_AGAIN, ColumnsArgument, WorkProgress, data_sources, file_identity, run_in_background

if TYPE_CHECKING:
    from ..models.capacity import CapacityReport
    from ..models.chat import ChatRenderer

BaseModelName = Annotated[str, Field(description="'demo', a model folder, a .gguf file, or an id (owner/name)")]
_MEASURED_ROWS = 64


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


async def validate_capacity(
    base_model: BaseModelName,
    ctx: Context,
    lora_rank: Annotated[int, Field(description="The rank in question")] = 32,
    apply_to: Annotated[list[Component] | None, Field(description="Layers with adapters; default all")] = None,
    train_file: Annotated[str | None, Field(description="Training file, or demo:NAME")] = None,
    dataset_tokens: Annotated[int | None, Field(gt=0, description="Instead of a file: tokens to learn")] = None,
    epochs: Annotated[int, Field(ge=1, description="Passes over the data")] = 1,
    max_seq_len: Annotated[int | None, Field(gt=0, description="Tokens at which rows are cut")] = None,
    backend: Annotated[BackendName, Field(description="Decides accepted ranks and expert adapters")] = "embedded",
    measure: Annotated[bool, Field(description="Measure the base model's loss on 64 rows (needs the backend)")] = False,
    columns: ColumnsArgument = None,
    pilot: Annotated[str | None, Field(description="SFT run on such rows, as for analyze_run")] = None,
) -> Annotated[CallToolResult, CapacityAnswer]:
    """Say whether a LoRA adapter of this rank has room for a data set, and which rank suffices.

    Returns how many parameters the adapter has, learning rate and batch too; with pilot it counts what a run learned.
    Give train_file or dataset_tokens. Use it before start_sft, or for "which rank do I need?". It trains nothing; for
    faults in a file use check_dataset.
    """
    if (train_file is None) == (dataset_tokens is None):
        raise ConfigError("give either train_file or dataset_tokens", where="validate_capacity")
    if measure and train_file is None:
        raise ConfigError("measure needs train_file: there are no rows to measure on", where="measure")
    if measure and pilot is not None:
        raise ConfigError("measure and pilot are two answers to one question: give one of them", where="pilot")
    sources, fetching = await data_sources(ctx, train_file=train_file or None)
    if sources is None:
        return answer(CapacityAnswer(done=False, next=CALL_AGAIN), f"Still {fetching.message}. {CALL_AGAIN}")
    question = CapacityQuestion(
        base_model,
        lora_rank,
        apply_to=tuple(apply_to) if apply_to is not None else COMPONENTS,
        train_file=sources["train_file"].path if train_file else None,
        dataset_tokens=dataset_tokens,
        epochs=epochs,
        max_seq_len=max_seq_len,
        backend=backend,
        measured_rows=_MEASURED_ROWS if measure else 0,
        columns=columns,
        pilot=pilot,
    )

    def work(report: WorkProgress) -> tuple[CapacityReport, int, int | None]:
        report.message = "counting tokens"
        return question.answer()

    key = ("capacity", repr(question), file_identity(question.train_file))
    answered, progress = await run_in_background(key, work, ctx)
    if answered is None:
        return answer(CapacityAnswer(done=False, next=CALL_AGAIN), f"Still {progress.message}. {CALL_AGAIN}")
    return _capacity_answer(*answered)


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


@dataclass(frozen=True, slots=True)
class CapacityQuestion:
    """What `validate_capacity` is asked.

    Attributes:
        base_model: The model.
        lora_rank: The rank in question.
        apply_to: Parts that get adapters.
        train_file: The data; all of it is read. Or:
        dataset_tokens: How many tokens there are to learn.
        epochs: Passes over the data.
        max_seq_len: Tokens at which rows are cut.
        backend: Decides accepted ranks and how experts are adapted; the measurement runs there.
        measured_rows: Rows to measure the base model's NLL on; 0 takes the stated rule instead.
        columns: Which columns of the data are what.
        pilot: A run whose log says what such rows teach, as `analyze_run` takes it.
    """

    base_model: str
    lora_rank: int
    apply_to: tuple[Component, ...]
    train_file: Path | None
    dataset_tokens: int | None
    epochs: int
    max_seq_len: int | None
    backend: BackendName
    measured_rows: int
    columns: ColumnMap | None = None
    pilot: str | None = None

    def answer(self) -> tuple[CapacityReport, int, int | None]:
        """Count tokens, measure the base model's loss if asked to, and report.

        Returns:
            The report, the tokens with loss, and all tokens (None when only ``dataset_tokens`` was given).

        Raises:
            ResearcherError: Of the kind that fits: bad data, an unknown model, a refused rank, a backend that is not
                there.
        """
        from ..data.column_proposal import require_known_shape
        from ..data.supervised import count_tokens
        from ..models.capacity import DataSize, capacity_report
        from ..models.configs import load_model_config
        from ..models.model_ref import resolve_model
        from ..models.renderers import load_renderer

        config = load_model_config(resolve_model(self.base_model))
        if self.train_file is None:
            loss_tokens, all_tokens = self.dataset_tokens or 0, None
            data = DataSize(loss_tokens=loss_tokens, epochs=self.epochs, learned_bits=self._learned(loss_tokens))
        else:
            renderer = load_renderer(self.base_model)
            require_known_shape(self.train_file, self.columns, "supervised")
            counts = count_tokens(self.train_file, renderer, max_seq_len=self.max_seq_len, columns=self.columns)
            loss_tokens, all_tokens = counts.loss_tokens, counts.tokens
            nll = self._measured_nll(renderer, self.train_file) if self.measured_rows else None
            data = DataSize(
                loss_tokens=loss_tokens,
                rows=counts.rows,
                epochs=self.epochs,
                nll_nats=nll,
                learned_bits=self._learned(loss_tokens),
            )
        report = capacity_report(
            config, lora_rank=self.lora_rank, data=data, backend=self.backend, apply_to=self.apply_to
        )
        return report, loss_tokens, all_tokens

    def _learned(self, loss_tokens: int) -> int | None:
        """What so many tokens teach if each teaches as much as in the pilot, in bits; None without a pilot.

        Raises:
            DataError: If the pilot's log cannot tell.
        """
        if self.pilot is None:
            return None
        require_packages("analysis", by="reading a pilot run")
        from ..analysis.description_length import bits_per_token
        from ..analysis.runs import load_run

        return max(1, round(bits_per_token(load_run(self.pilot)) * loss_tokens))

    def _measured_nll(self, renderer: ChatRenderer, path: Path) -> float:
        """The base model's mean NLL in nats per trained token of the first usable rows."""
        from ..backends.connection import connect
        from ..backends.sampling_client import measure_nll
        from ..data.supervised import rendered_rows
        from ..models.chat import Rendered
        from ..models.model_ref import resolve_model

        usable = (r for _, r in rendered_rows(path, renderer, columns=self.columns) if isinstance(r, Rendered))
        rows = list(islice(usable, self.measured_rows))
        return measure_nll(connect(self.backend), renderer, resolve_model(self.base_model).wire_name, rows).mean
