"""The whole question behind `validate_capacity`: count what there is to learn, then compare."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from pathlib import Path

from sota_ml_researcher.training.capacity import CapacityReport, DataSize, capacity_report
from sota_ml_researcher.training.model_configs import load_model_config
from sota_ml_researcher.training.models import resolve_model
from sota_ml_researcher.training.names import BackendName, Component
from sota_ml_researcher.training.rendering import ChatRenderer, Rendered, load_renderer
from sota_ml_researcher.training.sft_dataset import count_tokens, rendered_rows


def answer_capacity(
    *,
    base_model: str,
    lora_rank: int,
    apply_to: Sequence[Component],
    train_file: Path | None,
    dataset_tokens: int | None,
    epochs: int,
    max_seq_len: int | None,
    backend: BackendName,
    measured_rows: int,
) -> tuple[CapacityReport, int, int | None]:
    """Count tokens, measure the base model's loss if asked to, and report.

    Args:
        base_model: The model.
        lora_rank: The rank in question.
        apply_to: Parts that get adapters.
        train_file: The data; all of it is read. Or:
        dataset_tokens: How many tokens there are to learn.
        epochs: Passes over the data.
        max_seq_len: Tokens at which rows are cut.
        backend: Decides accepted ranks and how experts are adapted; the measurement runs there.
        measured_rows: Rows to measure the base model's NLL on; 0 takes the stated rule instead.

    Returns:
        The report, the tokens with loss, and all tokens (None when only ``dataset_tokens`` was given).

    Raises:
        ResearcherError: Of the kind that fits: bad data, an unknown model, a refused rank, a backend that is not there.
    """
    config = load_model_config(resolve_model(base_model))
    if train_file is None:
        tokens = dataset_tokens or 0
        data = DataSize(loss_tokens=tokens, epochs=epochs)
        report = capacity_report(config, lora_rank=lora_rank, data=data, backend=backend, apply_to=apply_to)
        return report, tokens, None
    renderer = load_renderer(base_model)
    counts = count_tokens(train_file, renderer, max_seq_len=max_seq_len)
    nll = _measure(base_model, backend, renderer, train_file, measured_rows) if measured_rows else None
    data = DataSize(loss_tokens=counts.loss_tokens, rows=counts.rows, epochs=epochs, nll_nats=nll)
    report = capacity_report(config, lora_rank=lora_rank, data=data, backend=backend, apply_to=apply_to)
    return report, counts.loss_tokens, counts.tokens


def _measure(base_model: str, backend: BackendName, renderer: ChatRenderer, path: Path, rows: int) -> float:
    from sota_ml_researcher.training.backends import connect
    from sota_ml_researcher.training.sampling_client import measure_nll

    usable = (r for _, r in rendered_rows(path, renderer) if isinstance(r, Rendered))
    chosen = list(islice(usable, rows))
    return measure_nll(connect(backend), renderer, resolve_model(base_model).wire_name, chosen).mean
