"""The settings of a judge evaluation that a user may give, and their defaults."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from ..core.names import BackendName
from ..core.settings import Settings, load_settings
from ..data.columns import Columns, Source
from ..judges.judge_catalog import JudgePrice, JudgeRef, parse_judge

RETIRED_KEYS: Mapping[str, str] = {
    "api_key": "Remove it: keys come from the environment (ANTHROPIC_API_KEY, OPENAI_API_KEY), never from a file",
    "bootstrap_draws": "Remove it: intervals are computed by formula, docs/judge-eval.md says which",
    "judge_temperature": "Remove it: the judge runs at temperature 0 where its model takes one",
}
DEFAULT_RULES: Mapping[str, str] = {
    "position_debias": "judge.both_orders",
    "seed": "job.seed",
}

# What an evaluation reads of a row, as targets of columns.
_TARGETS = (
    "prompt", "instruction", "input", "messages", "messages[*].role", "messages[*].content", "roles", "reference",
    "system", "system_prompt", "id", "category", "cluster_id",
)  # fmt: skip

Positive = Annotated[int, Field(gt=0)]
PositiveReal = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class JudgeEvalConfig(BaseModel):
    """Settings of one judge evaluation. An arm is a base model, a job id, a tinker:// path, or a file of responses."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    test_set: str = Field(min_length=1, description="Prompts: a file of rows, a data set of the hub, or demo:NAME")
    columns: Columns | None = Field(
        None, description="Which columns of test_set are what: {prompt: question, reference: answer}; null: usual names"
    )
    baseline_model: str = Field(min_length=1, description="The arm to compare with")
    finetuned_model: str = Field(min_length=1, description="The arm in question")
    other_models: tuple[str, ...] = Field((), max_length=6, description="Further arms")
    run_name: str | None = Field(None, max_length=80, description="A name for people")
    num_samples: Positive | None = Field(None, description="Prompts to use, drawn by seed; null: all")

    judge_model: tuple[str, ...] = Field(min_length=1, description="One judge or several")
    judge_base_url: str | None = Field(None, description="Endpoint of openai: judges; null: OPENAI_BASE_URL")
    judge_batch: bool = Field(False, description="Anthropic Message Batches: half price, minutes to hours")
    judge_max_tokens: Annotated[int, Field(ge=64, le=64_000)] = Field(4096, description="Room for thought and verdict")
    judge_timeout_s: PositiveReal = Field(120.0, description="Seconds one call may take")
    judge_price: JudgePrice | None = Field(None, description="$ per million tokens; null: the shipped table")
    max_cost_usd: PositiveReal | None = Field(None, description="Stop when the judges' calls have cost this much")
    parallel_judges: Annotated[int, Field(ge=1, le=512)] = Field(16, description="Judge calls under way at once")
    position_debias: bool = Field(True, description="Ask each pair in both orders; false: one order, by the seed")
    max_response_chars: Annotated[int, Field(ge=1000)] = Field(
        60_000, description="Longer answers are cut in the middle for the judge"
    )

    mode: Literal["pairwise", "absolute"] = Field("pairwise", description="absolute: each answer scored on its own")
    rubric: str | None = Field(None, description="YAML of criteria with anchors; null: a general one")
    canaries: str | None = Field(
        None, description="Pairs with known answers (prompt, good, bad); null: the shipped ones"
    )
    human_labels: str | None = Field(
        None, description="People's verdicts (id or prompt, winner) on a part of the prompts"
    )

    max_response_tokens: Positive = Field(512, description="Tokens an arm may answer with")
    temperature: Annotated[float, Field(ge=0, le=5)] = Field(0.7, description="Of the arms, as they will be used")
    renderer: str | None = Field(None, description="Cookbook renderer of the arms; null: the model's own template")

    expected_deviation: PositiveReal | None = Field(
        None, description="Of item scores, for planning; null: pilot or the worst case"
    )
    pilot: str | None = Field(None, description="metrics.json of an earlier evaluation, for its deviation")
    wanted_effect: PositiveReal | None = Field(
        None, description="Points of win rate (absolute: of mean score) worth finding"
    )
    seed: Annotated[int, Field(ge=0, lt=2**31)] = Field(
        0, description="Sampling, orders, and intervals of three and more arms"
    )

    backend: BackendName = Field("embedded", description="Where the arms are sampled")
    base_url: str | None = Field(None, description="URL of a Tinker-compatible cluster")
    output_dir: str | None = Field(None, description="Folder for the run folder; null: below ML_RESEARCHER_HOME")

    @property
    def base_model(self) -> str:
        """What the job's row shows as its model: the arm in question."""
        return self.finetuned_model

    @property
    def arms(self) -> dict[str, str]:
        """The arms by name, the baseline first."""
        others = {f"other-{n}": model for n, model in enumerate(self.other_models, start=1)}
        return {"baseline": self.baseline_model, "tuned": self.finetuned_model, **others}

    @property
    def judges(self) -> list[JudgeRef]:
        """The judges in order."""
        return [parse_judge(name) for name in self.judge_model]

    @property
    def judges_of_own_family(self) -> list[str]:
        """Judges whose model seems to be of one family with an arm, by their names."""
        families = {family_of(model) for model in self.arms.values()}
        asked = [judge for judge in self.judges if judge.kind not in {"check", "assistant"}]
        return [judge.name for judge in asked if family_of(judge.model) in families]

    def in_batches(self, judge: JudgeRef) -> bool:
        """Whether this judge is asked through Message Batches."""
        return self.judge_batch and judge.kind == "anthropic"

    @field_validator("judge_model", mode="before")
    @classmethod
    def _one_or_several(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value

    @field_validator("columns")
    @classmethod
    def _read_here(cls, value: dict[str, Source] | None) -> dict[str, Source] | None:
        for target in value or {}:
            if target not in _TARGETS:
                raise ValueError(f"an evaluation reads no {target}: it takes {', '.join(_TARGETS)}")
        return value

    @field_validator("judge_model")
    @classmethod
    def _distinct_judges(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(value)) != len(value):
            raise ValueError("a judge is named twice")
        return value

    @model_validator(mode="after")
    def _consistent(self) -> JudgeEvalConfig:
        if self.backend == "cluster" and not self.base_url:
            raise ValueError("backend: cluster needs base_url, the address of a Tinker-compatible server")
        if self.judge_batch and not any(j.kind == "anthropic" for j in map(parse_judge, self.judge_model)):
            raise ValueError("judge_batch belongs to Anthropic judges (claude-...)")
        if self.mode == "absolute" and not self.position_debias:
            raise ValueError("position_debias is about the order of two answers: it belongs to mode: pairwise")
        if self.mode == "absolute" and self.human_labels:
            raise ValueError("human_labels say which of two answers is better: they belong to mode: pairwise")
        return self


def family_of(model: str) -> str:
    """The family a model seems to belong to, by its name."""
    name = model.split("/")[-1].lower()
    known = ("claude", "gpt", "qwen", "llama", "deepseek", "kimi", "gemma", "gemini", "mistral", "nemotron")
    return next((family for family in known if family in name), name)


def load_judge_settings(config_file: Path | None, overrides: Mapping[str, Any] | None) -> Settings[JudgeEvalConfig]:
    """Read and check a judge evaluation's config (see `load_settings` for the errors)."""
    return load_settings(
        JudgeEvalConfig,
        config_file,
        overrides,
        retired=RETIRED_KEYS,
        default_rules=DEFAULT_RULES,
        kinds=("judge_eval",),
    )
