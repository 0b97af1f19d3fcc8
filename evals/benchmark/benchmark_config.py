"""The settings of a benchmark that a user may give, and their defaults."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from ...core.errors import BackendError
from ...core.names import BackendName
from ...core.settings import Settings, load_settings
from ...data.hub_reference import parse_reference
from ...data.shards import hub_facts
from ...judges.judge_catalog import JudgePrice, JudgeRef, Price, judge_price, parse_judge
from ..inputs import FILE_ENDINGS
from ..judge_config import PositiveReal

Scorer = Literal["exact", "includes", "math", "model_graded"]
DEFAULT_RULES: Mapping[str, str] = {"seed": "job.seed"}
RENAMED: Mapping[str, str] = {"model": "finetuned_model"}


class BenchmarkConfig(BaseModel):
    """Settings of one benchmark. A model is a base model, a job id, or a tinker:// path."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    task: str = Field(
        min_length=1, description="task.py or task.py@name, a packaged task (inspect_evals/gsm8k), or data rows"
    )
    finetuned_model: str = Field(min_length=1, description="The model to measure")
    baseline_model: str | None = Field(None, description="Measured on the same items, for the paired difference")
    run_name: str | None = Field(None, max_length=80, description="A name for people")
    scorer: Scorer | None = Field(None, description="For data rows: how an answer is compared with its reference")
    judge_model: str | None = Field(None, description="For model_graded: claude-..., openai:MODEL or tinker:MODEL")
    judge_base_url: str | None = Field(None, description="Endpoint of an openai: judge")
    judge_price: JudgePrice | None = Field(None, description="$ per million tokens; null: the shipped table")
    max_cost_usd: PositiveReal | None = Field(None, description="Stop when the grader has cost this much")
    task_args: Mapping[str, Any] = Field(default_factory=dict, description="Arguments of the task")

    num_samples: Annotated[int, Field(gt=0)] | None = Field(None, description="Items to use; null: all")
    epochs: Annotated[int, Field(ge=1, le=64)] = Field(1, description="Answers per item; their mean is its score")
    temperature: Annotated[float, Field(ge=0, le=5)] = Field(0.7, description="As the model will be used")
    max_response_tokens: Annotated[int, Field(gt=0)] = Field(
        2048, description="Tokens an answer may have; left out, as many of 2048 as the model's context allows"
    )
    parallel_samples: Annotated[int, Field(ge=1, le=512)] = Field(16, description="Items under way at once")
    seed: Annotated[int, Field(ge=0, lt=2**31)] = Field(0, description="Items drawn, and sampling")

    renderer: str | None = Field(None, description="Cookbook renderer; null: the model's own chat template")
    backend: BackendName = Field("embedded", description="Where the models are sampled")
    base_url: str | None = Field(None, description="URL of a Tinker-compatible cluster")
    output_dir: str | None = Field(None, description="Folder for the run folder; null: below ML_RESEARCHER_HOME")

    @property
    def base_model(self) -> str:
        """What the job's row shows as its model."""
        return self.finetuned_model

    @property
    def grader(self) -> JudgeRef | None:
        """The model that grades answers, if any."""
        return parse_judge(self.judge_model) if self.judge_model else None

    @property
    def has_rows(self) -> bool:
        """Whether the task is made from data rows."""
        if self.task.startswith("demo:") or self.task.lower().endswith(FILE_ENDINGS) or hub_facts(Path(self.task)):
            return True
        return ".py@" not in self.task and parse_reference(self.task, where="task") is not None

    @property
    def arms(self) -> dict[str, str]:
        """The models by name."""
        return {"model": self.finetuned_model} | ({"baseline": self.baseline_model} if self.baseline_model else {})

    @model_validator(mode="after")
    def _consistent(self) -> BenchmarkConfig:
        if self.backend == "cluster" and not self.base_url:
            raise ValueError("backend: cluster needs base_url, the address of a Tinker-compatible server")
        if self.has_rows and self.scorer is None:
            raise ValueError("data rows need a scorer: exact, includes, math or model_graded")
        if not self.has_rows and self.scorer is not None:
            raise ValueError("scorer belongs to data rows: a task has its own")
        if self.has_rows and self.task_args:
            raise ValueError("task_args belong to a task: data rows take none")
        if self.max_cost_usd is not None and grader_price(self) is None:
            raise ValueError("max_cost_usd holds the grader's cost, and there is no grader with a known price")
        if self.max_cost_usd is not None and self.backend == "tinker":
            raise ValueError("max_cost_usd cannot be held on hosted Tinker: what a benchmark samples has no price here")
        return self

    @model_validator(mode="after")
    def _grader_is_whole(self) -> BenchmarkConfig:
        for key in ("judge_base_url", "judge_price"):
            if getattr(self, key) is not None and self.judge_model is None:
                raise ValueError(f"{key} belongs to judge_model, and none is given")
        if (self.scorer == "model_graded") != (self.judge_model is not None):
            raise ValueError("scorer: model_graded and judge_model belong together")
        if self.grader and self.grader.kind not in {"anthropic", "openai", "tinker"}:
            raise ValueError("model_graded needs a model: claude-..., openai:MODEL or tinker:MODEL")
        return self


def grader_may_cost(config: BenchmarkConfig) -> bool:
    """Whether the grader is a service that charges per token; an endpoint on this machine is not."""
    base_url = config.judge_base_url or os.environ.get("OPENAI_BASE_URL")
    return config.grader is not None and config.grader.may_cost(base_url)


def require_grader_key(config: BenchmarkConfig) -> None:
    """See that the key of a grader of Anthropic is set.

    Raises:
        BackendError: If it is not.
    """
    is_anthropic = config.grader is not None and config.grader.kind == "anthropic"
    if is_anthropic and not (os.environ.get("ANTHROPIC_API_KEY") or os.environ.get("ANTHROPIC_AUTH_TOKEN")):
        raise BackendError(
            "ANTHROPIC_API_KEY is not set, and a grader of Anthropic needs it",
            where="judge_model",
            fix="Export ANTHROPIC_API_KEY for the server, or use openai:MODEL with judge_base_url, or tinker:MODEL",
        )


def grader_price(config: BenchmarkConfig) -> Price | None:
    """What the grader charges; None when it is not paid per token here, or its price is not known."""
    return judge_price(config.grader, config.judge_price) if config.grader is not None else None


def load_benchmark_settings(config_file: Path | None, overrides: Mapping[str, Any] | None) -> Settings[BenchmarkConfig]:
    """Read and check a benchmark's config (see `load_settings` for the errors)."""
    return load_settings(
        BenchmarkConfig,
        config_file,
        overrides,
        retired={},
        default_rules=DEFAULT_RULES,
        kinds=("benchmark",),
        renamed=RENAMED,
    )
