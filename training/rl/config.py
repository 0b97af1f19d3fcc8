"""Reinforcement learning from rewards: the settings a user may give, and how those left out are filled in."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from ...core.settings import Settings, load_settings
from ...rewards.environment_config import EnvironmentConfig
from ...rewards.reward_config import CODE_PARTS, RewardPart, RewardType, as_entries, one_type
from ..config import DEFAULT_RULES as SHARED_RULES
from ..config import RETIRED_KEYS as SHARED_RETIRED
from ..config import NonNegativeReal, Positive, PositiveReal, TrainingConfig, no_choice_of_turns, sources_without_choice

LossName = Literal["importance_sampling", "ppo", "cispo", "gspo", "dro"]
Advantage = Literal["mean", "grpo"]

RETIRED_KEYS: Mapping[str, str] = {
    **SHARED_RETIRED,
    "max_seq_len": "Remove it: max_response_tokens bounds the response, the model's context the prompt",
    "lr_schedule": "Remove it: the loop keeps the learning rate constant",
}
DEFAULT_RULES: Mapping[str, str] = {
    **SHARED_RULES,
    "learning_rate": "rl.lr",
    "group_size": "rl.group_size",
    "temperature": "rl.temperature",
    "loss_fn": "rl.loss",
    "advantage": "rl.advantage",
    "kl_coef": "rl.kl_coef",
    "num_substeps": "rl.substeps",
    "drop_constant_groups": "rl.constant_groups",
    "overlong_buffer_tokens": "rl.overlong",
    "max_steps_off_policy": "rl.staleness",
}
# Answers to each held-out prompt in a validation, and the most that the dry run samples per prompt.
VALIDATION_SAMPLES = 4
MOST_DRY_RUN_SAMPLES = 16
# Rules of the clip range by loss; a null clip_ratio takes them.
CLIP_RULES: Mapping[LossName, str] = {"ppo": "rl.clip", "cispo": "rl.clip.cispo", "gspo": "rl.gspo"}


class RlConfig(TrainingConfig):
    """Settings of one RL job. ``train_file`` holds prompts (or questions, messages), and what to check answers by."""

    reward_type: RewardType | None = Field(None, description="The check; or give rewards")
    reward_script: str | None = Field(None, description="custom: a Python file with reward(prompt, response, row)")
    rewards: tuple[RewardPart, ...] | None = Field(None, description="Several checks, by name or with weights")
    environment: EnvironmentConfig | None = Field(
        None,
        description="Several turns: retry, interpreter, a file with step(messages, reply, row), or a mapping",
    )
    allow_unsandboxed: bool = Field(
        False, description="Where no sandbox works, let the data's tests, programs and custom files run as you"
    )
    force: bool = Field(False, description="Start although the dry run of the reward is constant")

    group_size: Annotated[int, Field(ge=2)] = Field(
        16, description="Samples per prompt; they are compared to each other"
    )
    max_response_tokens: Positive = Field(256, description="Tokens at which a response is cut")
    temperature: PositiveReal = Field(1.0, description="Of sampling")
    system_prompt: str | None = Field(None, description="Put before every prompt that has none")

    loss_fn: LossName = Field(
        "importance_sampling", description="ppo and gspo clip the ratio, cispo the weight, dro pulls to the sampler"
    )
    clip_ratio: float | tuple[float, float] | None = Field(
        None, description="ppo, gspo: below and above 1, one number or two (DAPO: [0.2, 0.28]); cispo: lowest, highest"
    )
    dro_beta: PositiveReal = Field(0.05, description="dro: strength of the pull")
    advantage: Advantage = Field(
        "mean", description="mean: reward - group mean (Dr. GRPO); grpo: also divided by the group's deviation"
    )
    drop_constant_groups: bool = Field(
        True, description="Leave groups with one reward out of the update; DAPO would draw others in their place"
    )
    overlong_buffer_tokens: Annotated[int, Field(ge=0)] = Field(
        0, description="DAPO: within this many tokens of the limit the reward falls, by up to 1"
    )
    kl_coef: NonNegativeReal = Field(0.0, description="Penalty on the KL to the reference, in the advantages")
    kl_estimator: Literal["k1"] = Field(
        "k1", description="k1: log p - log ref at the sampled tokens; its gradient is right"
    )
    ref_model: str | None = Field(
        None, description="Of the KL: null is where the run starts (if that is a job), else base; a job, or a path"
    )
    num_substeps: Positive = Field(1, description="Optimizer steps per batch; more than one wants loss_fn ppo")
    max_steps_off_policy: Positive | None = Field(
        None, description="Sample a step from the weights of this many steps before, while those are trained"
    )
    keep_rollouts: Annotated[int, Field(ge=0)] = Field(8, description="Responses per step kept in rollouts.jsonl")

    _columns = field_validator("columns")(no_choice_of_turns)
    _sources = field_validator("train_file")(sources_without_choice)
    _one_type = field_validator("reward_type", mode="before")(one_type)
    _as_entries = field_validator("rewards", mode="before")(as_entries)

    @field_validator("group_size", mode="before")
    @classmethod
    def _a_group(cls, value: Any) -> Any:
        if value == 1:
            raise ValueError("a group of 1 has nothing to be compared with and no advantage: use 2 or more")
        return value

    @model_validator(mode="after")
    def _rewards_and_loss_agree(self) -> RlConfig:
        self._check_rewards()
        if self.overlong_buffer_tokens >= self.max_response_tokens:
            raise ValueError("overlong_buffer_tokens must be smaller than max_response_tokens")
        self._check_loss()
        self.parts()
        return self

    def _check_rewards(self) -> None:
        of_its_own = self.environment is not None and self.environment.type == "custom"
        sources = (self.reward_type is not None) + (self.rewards is not None)
        if sources == 2 or (sources == 0 and not of_its_own):
            raise ValueError("give either reward_type or rewards")
        if self.environment is None:
            return
        if self.environment.type == "retry" and any(part.type == "preference_model" for part in self.parts()):
            raise ValueError(
                "environment retry needs checks that can say of one answer whether it is right; a preference_model "
                "compares answers"
            )
        if self.environment.type == "interpreter" and any(part.type == "code" for part in self.parts()):
            raise ValueError(
                "environment interpreter runs the program of a reply, so that no program is ever the answer which "
                "reward_type code would test; use environment retry with it"
            )
        limit = self.environment.max_trajectory_tokens
        if limit is not None and limit <= self.max_response_tokens:
            raise ValueError(f"max_trajectory_tokens {limit} leaves no room for a prompt and max_response_tokens")

    def _check_loss(self) -> None:
        if self.clip_ratio is not None and self.loss_fn not in CLIP_RULES:
            raise ValueError(f"clip_ratio belongs to loss_fn ppo, gspo or cispo; {self.loss_fn} does not clip")
        if self.clip_ratio is not None and min(self.clip_pair(self.clip_ratio)) < 0:
            raise ValueError("clip_ratio must not be negative")
        if self.loss_fn == "cispo" and self.clip_ratio is not None and self.clip_pair(self.clip_ratio)[1] < 1:
            raise ValueError(
                "clip_ratio of cispo is the lowest and highest weight: a highest below 1 damps every update"
            )

    @staticmethod
    def clip_pair(ratio: float | tuple[float, float]) -> tuple[float, float]:
        """One number stands for both sides."""
        return ratio if isinstance(ratio, tuple) else (ratio, ratio)

    @property
    def most_turns(self) -> int:
        """Replies an episode may have."""
        return self.environment.max_turns if self.environment else 1

    @property
    def runs_code(self) -> bool:
        """Whether text of the data, the model or a custom file is run."""
        of_environment = self.environment is not None and self.environment.type in {"interpreter", "custom"}
        return of_environment or any(part.type in CODE_PARTS for part in self.parts())

    def total_steps(self, rows: int) -> int:
        """Steps of the whole run: all alike, since an epoch's last prompts are joined by the next one's first."""
        return self.num_steps or -(-rows * (self.num_epochs or 1) // min(self.batch_size or 1, rows))

    def parts(self) -> tuple[RewardPart, ...]:
        """What is rewarded, however it was written."""
        if self.rewards is not None:
            return self.rewards
        if self.reward_type is None:
            return ()
        return (RewardPart.model_validate({"type": self.reward_type, "script": self.reward_script}),)


def load_rl_settings(config_file: Path | None, overrides: Mapping[str, Any] | None) -> Settings[RlConfig]:
    """Read and check an RL config (see `load_settings` for the errors)."""
    return load_settings(
        RlConfig,
        config_file,
        overrides,
        retired=RETIRED_KEYS,
        default_rules=DEFAULT_RULES,
        kinds=("grpo",),
    )
