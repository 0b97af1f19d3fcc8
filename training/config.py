from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

from pydantic import Field

RETIRED_KEYS: Mapping[str, str] = {
    "checkpoint_dir": "Remove it: checkpoints live on the backend; output_dir chooses where the run folder goes",
    "log_dir": "Remove it: logs are in the run folder; output_dir chooses where that goes",
    "hidden_dim": "Remove it: it is read from the model's own config",
    "num_layers": "Remove it: it is read from the model's own config",
}
DEFAULT_RULES: Mapping[str, str] = {
    "lora_rank": "lora.rank.default",
    "lora_alpha": "lora.alpha",
    "apply_to": "lora.apply_to.all",
    "lr_schedule": "sft.schedule.linear",
    "weight_decay": "sft.weight_decay",
    "grad_clip": "sft.grad_clip",
    "adam_beta1": "adam.betas",
    "adam_beta2": "adam.betas",
    "adam_eps": "adam.eps",
    "seed": "job.seed",
}
Positive = Annotated[int, Field(gt=0)]
PositiveReal = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegativeReal = Annotated[float, Field(ge=0, allow_inf_nan=False)]
