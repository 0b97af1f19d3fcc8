"""The settings that every training method shares; a method's own config extends `TrainingConfig`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from ..core.names import COMPONENTS, BackendName, Component
from ..data.columns import Columns
from ..data.columns import Source as Column
from ..data.mixtures import Sources, TrainFile, as_sources

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


def no_choice_of_turns(columns: dict[str, Column] | None) -> dict[str, Column] | None:
    """The same columns, for a method that does not train chosen turns or weighted rows.

    Raises:
        ValueError: If they choose or weigh.
    """
    for target in ("train_on", "messages[*].train", "row_weight"):
        if target in (columns or {}):
            raise ValueError(f"{target} is for SFT: nothing else trains chosen turns or weighs rows")
    return columns


def sources_without_choice(train_file: str | Sources) -> str | Sources:
    """`no_choice_of_turns`, for the columns of each source of a mixture."""
    for source in train_file if not isinstance(train_file, str) else ():
        no_choice_of_turns(source.columns)
    return train_file


class TrainingConfig(BaseModel):
    """Settings of one training job. Null means derived; ``config.yaml`` of the run shows the value and its rule."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    base_model: str = Field(min_length=1, description="'demo', a model folder, a .gguf file, or an id (Qwen/Qwen3-8B)")
    train_file: TrainFile = Field(
        description="Training rows: file, folder, pattern of shards, demo:NAME or owner/name:config/split@revision; "
        "or a list of these, mixed"
    )
    val_file: str | None = Field(None, description="Held-out rows for validation and the best checkpoint")
    columns: Columns | None = Field(
        None, description="Which columns are what: {prompt: question, completion: answer}; null: the usual names"
    )
    load_checkpoint: str | None = Field(
        None, description="Start from a job (its id) or a tinker:// state path; weights only"
    )

    run_name: str | None = Field(None, max_length=80, description="A name for people")
    hypothesis: str | None = Field(None, max_length=500, description="What this run is to show; the report answers it")
    primary_metric: str | None = Field(None, max_length=80, description="The metric that decides, as logged: test/nll")
    stop_rule: str | None = Field(None, max_length=300, description="When to stop, decided in advance; for people")

    plan_file: str | None = Field(None, description="plan.yaml of propose_plan; a start that contradicts it is refused")

    lora_rank: Positive = Field(32, description="LoRA rank; a small one suffices for RL")
    lora_alpha: Literal[32] = Field(32, description="Fixed at 32 on Tinker and on the embedded engine")
    apply_to: tuple[Component, ...] = Field(COMPONENTS, min_length=1, description="Which layers get adapters")

    batch_size: Positive | None = Field(None, description="Rows per step (RL: prompts, each a group)")
    learning_rate: PositiveReal | None = Field(None, description="Peak learning rate (RL: constant over the run)")
    num_steps: Positive | None = Field(None, description="Length in steps; not together with num_epochs")
    num_epochs: Positive | None = Field(None, description="Length in passes over the data")
    eval_every: Annotated[int, Field(ge=0)] | None = Field(None, description="Steps between validations; 0 is never")
    checkpoint_every: Annotated[int, Field(ge=0)] | None = Field(None, description="Steps between checkpoints; 0: end")
    checkpoint_ttl_hours: Annotated[int, Field(ge=1)] | None = Field(
        168, description="Life of periodic checkpoints; the final and the best never expire"
    )

    weight_decay: NonNegativeReal = Field(0.0, description="AdamW weight decay")
    grad_clip: NonNegativeReal = Field(0.0, description="Clip the global gradient norm; 0 is off")
    adam_beta1: Annotated[float, Field(ge=0, lt=1)] = Field(0.9, description="AdamW's decay of the mean gradient")
    adam_beta2: Annotated[float, Field(ge=0, lt=1)] = Field(0.95, description="AdamW's decay of the mean square")
    adam_eps: PositiveReal = Field(1e-8, description="AdamW's term that keeps the step finite")
    seed: Annotated[int, Field(ge=0, lt=2**31)] = Field(
        0, description="Data order, adapter initialization, and sampling (every sample has a seed of its own)"
    )

    max_cost_usd: PositiveReal | None = Field(None, description="Save a checkpoint and stop at this cost")

    renderer: str | None = Field(None, description="Cookbook renderer name; null: the model's own chat template")
    skip_bad_rows: bool = Field(False, description="Leave out rows that cannot be used instead of refusing the file")

    backend: BackendName = Field("embedded", description="embedded: this machine; tinker: hosted; cluster: base_url")
    base_url: str | None = Field(None, description="URL of a Tinker-compatible cluster")
    output_dir: str | None = Field(None, description="Folder for the run folder; null: below ML_RESEARCHER_HOME")

    @field_validator("apply_to")
    @classmethod
    def _no_repeats(cls, value: tuple[Component, ...]) -> tuple[Component, ...]:
        return tuple(c for c in COMPONENTS if c in value)

    @field_validator("num_epochs", mode="before")
    @classmethod
    def _whole_passes(cls, value: Any) -> Any:
        if isinstance(value, float) and not value.is_integer():
            raise ValueError(
                f"num_epochs counts whole passes over the data, got {value}: for a part of one use num_steps"
            )
        return value

    @field_validator("lora_alpha", mode="before")
    @classmethod
    def _fixed_alpha(cls, value: Any) -> Any:
        if value != 32:
            raise ValueError("lora_alpha is fixed at 32 on Tinker and on the embedded engine: remove the key")
        return value

    @model_validator(mode="after")
    def _one_length_and_one_place(self) -> TrainingConfig:
        if self.num_steps is not None and self.num_epochs is not None:
            raise ValueError("num_steps and num_epochs are both set: keep one of them")
        if self.backend == "cluster" and not self.base_url:
            raise ValueError("backend: cluster needs base_url, the address of a Tinker-compatible server")
        if self.backend == "embedded" and self.base_url:
            raise ValueError("base_url belongs to backend: cluster (or tinker); the embedded engine finds its own")
        return self

    @property
    def sources(self) -> Sources:
        """Where the training rows come from, each with its columns; one file is a mixture of one."""
        return as_sources(self.train_file, self.columns)

    def total_steps(self, rows: int) -> int:
        """Steps of the whole run over so many rows, once batch size and length are set.

        The last step of an epoch may hold fewer rows than the others.
        """
        return self.num_steps or -(-rows // (self.batch_size or 1)) * (self.num_epochs or 1)


class OfflineConfig(TrainingConfig):
    """What a method adds that learns from texts it is given and samples none: SFT and DPO."""

    max_seq_len: Positive | None = Field(None, description="Tokens; longer rows are cut. Null: the model's context")
    lr_schedule: Literal["linear", "cosine", "constant"] = Field("linear", description="Decay over the run")
