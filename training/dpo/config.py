"""Direct preference optimization: the settings a user may give, and how those left out are filled in."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from ...core.settings import Settings, load_settings
from ..config import DEFAULT_RULES as SHARED_RULES
from ..config import RETIRED_KEYS, OfflineConfig, PositiveReal, no_choice_of_turns, sources_without_choice

DpoLoss = Literal["dpo", "ipo", "dpo_norm"]
PreferenceLoss = Literal[DpoLoss, "reward_model"]

DEFAULT_RULES: Mapping[str, str] = {
    **SHARED_RULES,
    "lr_schedule": "dpo.schedule",
    "ref_model": "dpo.reference",
    "loss": "dpo.variants",
    "label_smoothing": "dpo.variants",
}


# The usual beta of each loss: one holds for log-ratios summed over an answer, the others for their mean per token.
BETA_RULES: Mapping[PreferenceLoss, str] = {"dpo": "dpo.beta", "dpo_norm": "dpo.beta.norm", "ipo": "dpo.beta.ipo"}


class DpoConfig(OfflineConfig):
    """Settings of one DPO or reward-model job. ``train_file`` holds pairs: prompt, chosen, rejected."""

    beta: PositiveReal | None = Field(
        None,
        description="Strength of the pull to the reference; smaller moves further from it. Null: 0.1 for dpo, 5 for "
        "dpo_norm and 1 for ipo, whose log-ratios are per token",
    )
    loss: PreferenceLoss = Field(
        "dpo",
        description="dpo: sigmoid; ipo: squared, on log-ratios per token; dpo_norm: sigmoid, on log-ratios per token; "
        "reward_model: no policy at all, but a model that says which answer is better (reward preference_model)",
    )
    label_smoothing: Annotated[float, Field(ge=0, lt=0.5)] = Field(
        0.0, description="Share of labels expected to be wrong (cDPO); loss dpo or dpo_norm"
    )
    ref_model: str | None = Field(
        None, description="Null: the weights the run starts from; 'base'; or a tinker:// sampler path"
    )

    _columns = field_validator("columns")(no_choice_of_turns)
    _sources = field_validator("train_file")(sources_without_choice)

    @model_validator(mode="after")
    def _losses_agree(self) -> DpoConfig:
        if self.loss in {"ipo", "reward_model"} and self.label_smoothing:
            raise ValueError(f"label_smoothing belongs to loss: dpo or dpo_norm; {self.loss} has no such term")
        if self.loss == "reward_model" and self.ref_model is not None:
            raise ValueError("a reward_model has no reference: remove ref_model")
        if self.ref_model not in (None, "base") and not str(self.ref_model).startswith("tinker://"):
            raise ValueError("ref_model must be null, 'base' or a tinker:// sampler path")
        return self


def load_dpo_settings(config_file: Path | None, overrides: Mapping[str, Any] | None) -> Settings[DpoConfig]:
    """Read and check a DPO config (see `load_settings` for the errors)."""
    return load_settings(
        DpoConfig,
        config_file,
        overrides,
        retired=RETIRED_KEYS,
        default_rules=DEFAULT_RULES,
        kinds=("dpo",),
    )
