"""Whether a run's adapter had room for its data, worked out from its config and its metrics."""

from __future__ import annotations

import numpy as np

from sota_ml_researcher.analysis.runs import Run
from sota_ml_researcher.core.errors import ResearcherError
from sota_ml_researcher.training.capacity import DataSize, capacity_report
from sota_ml_researcher.training.model_configs import load_model_config
from sota_ml_researcher.training.models import resolve_model


def capacity_ratio(run: Run) -> float | None:
    """Capacity over information of an SFT run, or None where model, rank or tokens are not known."""
    rank, model, epochs = (run.config.get(k) for k in ("lora_rank", "base_model", "num_epochs"))
    tokens = run.get("loss_tokens") or run.get("tokens")
    if run.kind != "sft" or tokens is None or not isinstance(rank, int) or not isinstance(model, str):
        return None
    passes = epochs if isinstance(epochs, int) and epochs > 0 else 1
    batch = run.config.get("batch_size")
    size = batch if isinstance(batch, int) and batch > 0 else 1
    steps = len(tokens)
    seen = int(np.sum(tokens.values)) // passes
    if seen < 1:
        return None
    try:
        config = load_model_config(resolve_model(model))
        data = DataSize(loss_tokens=seen, rows=max(1, steps * size // passes), epochs=passes)
        return capacity_report(config, lora_rank=rank, data=data, backend=str(run.config.get("backend"))).ratio
    except (ResearcherError, ValueError):
        return None
