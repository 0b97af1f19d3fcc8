from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

from ..core.errors import ModelError
from ..core.settings import Origin, Settings
from ..models.configs import ModelConfig
from ..models.model_ref import resolve_model
from .config import OfflineConfig, TrainingConfig

ORDERS = 2


def validations(eval_every: int | None, total_steps: int) -> int:
    """Before every n-th step, and at the end."""
    return -(-total_steps // eval_every) + 1 if eval_every else 1


ConfigT = TypeVar("ConfigT", bound=TrainingConfig)


def passes(steps: int, batch_size: int, rows: int) -> float:
    """Passes over the data in so many steps; the last batch of a pass may be a small one."""
    whole, begun = divmod(steps, -(-rows // batch_size))
    return whole + min(1.0, begun * batch_size / rows)


def with_paths(settings: Settings[ConfigT]) -> Settings[ConfigT]:
    """Data paths made absolute: the worker runs in another folder."""
    config = settings.config
    found: dict[str, tuple[Any, Origin]] = {}
    for key, name in (("train_file", config.train_file), ("val_file", config.val_file)):
        if name is not None:
            found[key] = (str(settings.data_file(key, name)), settings.origins[key])
    if config.output_dir is not None:
        found["output_dir"] = (str(Path(config.output_dir).expanduser().absolute()), settings.origins["output_dir"])
    return settings.derived(found)


def context_length(config: OfflineConfig, model: ModelConfig) -> dict[str, tuple[Any, Origin]]:
    """``max_seq_len`` where it was left out: the model's context, if its config has it."""
    if config.max_seq_len is not None or not model.has("max_position_embeddings"):
        return {}
    length = model.integer("max_position_embeddings")
    return {"max_seq_len": (length, Origin(kind="derived", reason="the model's context length"))}


def check_model_trainable(config: TrainingConfig, served: dict[str, bool | None]) -> None:
    """Refuse a model that the backend says it does not train.

    Args:
        config: The job's settings.
        served: For each model the backend names, whether it trains it (None: it did not say).

    Raises:
        ModelError: If it is not among them.
    """
    name = resolve_model(config.base_model).wire_name
    if served.get(name, False) is False:
        known = ", ".join(sorted(served)[:10]) or "none"
        raise ModelError(
            f"{config.backend} does not train this model", where=config.base_model, fix=f"It serves: {known}"
        )
