"""The settings of a generation job that a user may give, and their defaults."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from ..core.errors import ConfigError
from ..core.names import BackendName
from ..core.settings import Settings, load_settings
from ..judges.judge_catalog import JudgePrice, JudgeRef, parse_judge

RecipeName = Literal["distillation", "questions", "rewrites", "preferences", "eval_kit"]
Operation = Literal["paraphrase", "constrain", "deepen", "concretize", "reason", "mutate"]
GateRule = Literal["empty", "cut", "control", "refusal", "copy", "one_answer", "duplicate"]
GATE_RULES: tuple[GateRule, ...] = ("empty", "cut", "control", "refusal", "copy", "one_answer", "duplicate")

RETIRED_KEYS: Mapping[str, str] = {
    "api_key": "Remove it: keys come from the environment (ANTHROPIC_API_KEY, OPENAI_API_KEY), never from a file",
}
DEFAULT_RULES: Mapping[str, str] = {
    "seed": "job.seed",
    "samples_per_prompt": "data.made.samples",
    "judge_threshold": "data.made.threshold",
    "tries": "data.made.tries",
}
# Keys that mean something to some recipes only.
_RECIPES_OF: Mapping[str, tuple[RecipeName, ...]] = {
    "prompts": ("distillation", "rewrites", "preferences", "eval_kit"),
    "documents": ("questions",),
    "teacher_prompt": ("distillation",),
    "teacher_prompt_file": ("distillation",),
    "keep_thinking": ("distillation",),
    "passage_chars": ("questions",),
    "questions_per_passage": ("questions",),
    "operations": ("rewrites",),
    "answers": ("rewrites",),
    "samples_per_prompt": ("preferences",),
    "num_canaries": ("eval_kit",),
    "rubric": ("distillation", "questions", "rewrites", "preferences"),
    "judge_model": ("distillation", "questions", "rewrites", "preferences"),
    "judge_threshold": ("distillation", "questions", "rewrites"),
    "output_file": ("distillation", "questions", "rewrites", "preferences"),
}
_JUDGE_KEYS = ("judge_base_url", "judge_price", "rubric", "judge_threshold", "judge_max_tokens", "judge_timeout_s")
_MODEL_FORMS = (
    "a base model, a job id, tinker://..., or a service: claude-... (Anthropic), openai:MODEL (any OpenAI-compatible "
    "endpoint)"
)
LEAST_PASSAGE = 200
Positive = Annotated[int, Field(gt=0)]
PositiveReal = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class GenerationConfig(BaseModel):
    """Settings of one generation job: a recipe, the model that writes, what it starts from, and what may pass."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())

    recipe: RecipeName = Field(description="What is made of what")
    model: str = Field(min_length=1, description=f"Who writes: {_MODEL_FORMS}")
    base_model: str | None = Field(None, description="Of a checkpoint in model; null: looked up")
    run_name: str | None = Field(None, max_length=80, description="A name for people")

    prompts: str | None = Field(None, description="Rows to start from: prompt or messages, perhaps with an answer")
    documents: str | None = Field(None, description="questions: a text (.txt, .md, .rst) or a folder of them")
    num_samples: Positive | None = Field(None, description="Rows or passages to use, drawn by seed; null: all")

    teacher_prompt: str | None = Field(None, min_length=1, description="distillation: what the teacher is told")
    teacher_prompt_file: str | None = Field(None, description="distillation: the same, from a text file")
    keep_thinking: bool = Field(False, description="distillation: the row keeps what stands before </think>")
    passage_chars: Annotated[int, Field(ge=LEAST_PASSAGE, le=100_000)] = Field(
        2000, description="questions: of one passage"
    )
    questions_per_passage: Annotated[int, Field(ge=1, le=20)] = Field(3, description="questions: asked for at once")
    operations: tuple[Operation, ...] = Field(
        ("constrain", "deepen", "concretize", "reason"),
        min_length=1,
        description="rewrites: what is done to each row, one new row for each",
    )
    answers: Literal["model", "source", "none"] = Field(
        "model", description="rewrites: who answers the new prompt; source: the row's own answer (paraphrase only)"
    )
    samples_per_prompt: Annotated[int, Field(ge=2, le=8)] = Field(4, description="preferences: answers to rank")
    num_canaries: Annotated[int, Field(ge=1, le=100)] = Field(8, description="eval_kit: pairs to propose")

    max_response_tokens: Positive = Field(512, description="Tokens of one answer of the model")
    temperature: Annotated[float, Field(ge=0, le=5)] | None = Field(
        None, description="null: 0.7 on a backend, a service's own"
    )
    tries: Annotated[int, Field(ge=1, le=10)] = Field(3, description="For an answer that can be read, each its seed")
    parallel_requests: Annotated[int, Field(ge=1, le=256)] = Field(16, description="Rows under way at once")
    renderer: str | None = Field(None, description="Cookbook renderer of model; null: its own template")
    model_base_url: str | None = Field(None, description="Endpoint of an openai: model; null: OPENAI_BASE_URL")
    model_price: JudgePrice | None = Field(None, description="$ per million tokens of a service; null: the table")
    model_timeout_s: PositiveReal = Field(120.0, description="Seconds one call of a service may take")

    gate: tuple[GateRule, ...] = Field(GATE_RULES, description="Rules that a row must pass")
    judge_model: str | None = Field(
        None, description="Scores each row (preferences: ranks): claude-..., openai:, tinker:, check:exact"
    )
    judge_threshold: Annotated[float, Field(ge=0, le=1)] = Field(0.7, description="Least weighted score, 0 to 1")
    rubric: str | None = Field(None, description="YAML of criteria with anchors; null: one for the recipe")
    judge_base_url: str | None = Field(None, description="Endpoint of an openai: judge; null: OPENAI_BASE_URL")
    judge_price: JudgePrice | None = Field(None, description="$ per million tokens; null: the shipped table")
    judge_max_tokens: Annotated[int, Field(ge=64, le=64_000)] = Field(4096, description="Room for thought and verdict")
    judge_timeout_s: PositiveReal = Field(120.0, description="Seconds one call may take")

    output_file: str | None = Field(None, description="A second place for the rows (.jsonl); must not exist")
    max_cost_usd: PositiveReal | None = Field(None, description="Stop before a request could pass this")
    seed: Annotated[int, Field(ge=0, lt=2**31)] = Field(0, description="Of drawing rows and of every sample")
    backend: BackendName = Field("embedded", description="Where model is sampled, and a tinker: judge")
    base_url: str | None = Field(None, description="URL of a Tinker-compatible cluster")
    output_dir: str | None = Field(None, description="Folder for the run folder; null: below ML_RESEARCHER_HOME")

    @property
    def service(self) -> JudgeRef | None:
        """The service that writes, or None where a backend samples the model."""
        ref = parse_model(self.model)
        return ref if ref and ref.is_service else None

    @property
    def weights(self) -> str:
        """What a backend samples: a base model or a ``tinker://`` path."""
        ref = parse_model(self.model)
        return ref.model if ref else self.model

    @property
    def judge(self) -> JudgeRef | None:
        """The judge that is named, or None."""
        return parse_judge(self.judge_model) if self.judge_model else None

    @field_validator("model")
    @classmethod
    def _writes(cls, value: str) -> str:
        parse_model(value)
        return value

    @field_validator("judge_model")
    @classmethod
    def _judges(cls, value: str | None) -> str | None:
        if value is not None and parse_judge(value).kind == "assistant":
            raise ValueError("an assistant does not judge made rows: name a model, or check:exact with references")
        return value

    @model_validator(mode="after")
    def _consistent(self) -> GenerationConfig:
        for key, recipes in _RECIPES_OF.items():
            default = type(self).model_fields[key].default
            if self.recipe not in recipes and getattr(self, key) != default:
                raise ValueError(f"{key} belongs to recipe {' and '.join(recipes)}, and this one is {self.recipe}")
        if self.judge_model is None:
            named = [key for key in _JUDGE_KEYS if getattr(self, key) != type(self).model_fields[key].default]
            if named:
                raise ValueError(f"{named[0]} belongs to a judge, and judge_model names none")
        if self.service is None and (self.model_base_url or self.model_price):
            raise ValueError("model_base_url and model_price belong to a service, and model names none")
        if self.service is not None and self.renderer:
            raise ValueError("renderer belongs to a model of a backend, and model names a service")
        if self.backend == "cluster" and not self.base_url:
            raise ValueError("backend: cluster needs base_url, the address of a Tinker-compatible server")
        self._complete()
        return self

    def _complete(self) -> None:
        """Refuse a recipe without what it starts from."""
        source = "documents" if self.recipe == "questions" else "prompts"
        if getattr(self, source) is None:
            raise ValueError(f"recipe {self.recipe} needs {source}")
        if self.recipe == "distillation" and (self.teacher_prompt is None) == (self.teacher_prompt_file is None):
            given = "both are given" if self.teacher_prompt else "neither is given"
            raise ValueError(f"recipe distillation needs teacher_prompt or teacher_prompt_file, and {given}")
        if self.teacher_prompt is not None and not self.teacher_prompt.strip():
            raise ValueError("teacher_prompt is empty")
        if self.recipe == "preferences" and self.judge_model is None:
            raise ValueError("recipe preferences needs judge_model, who ranks the answers")
        if self.recipe == "rewrites" and self.answers == "none" and self.judge_model is not None:
            raise ValueError("answers: none leaves no answer to judge: leave judge_model out")
        if self.recipe in {"rewrites", "questions"} and self.judge is not None and self.judge.kind == "check":
            raise ValueError(f"{self.judge.name} compares with references, and made prompts have none")
        if self.answers == "source" and set(self.operations) != {"paraphrase"}:
            raise ValueError("answers: source holds for operations: [paraphrase] only: others change what is right")
        if len(set(self.operations)) != len(self.operations):
            raise ValueError("an operation is named twice")
        if "empty" not in self.gate:
            raise ValueError("gate: the rule empty cannot be left out")


def parse_model(name: str) -> JudgeRef | None:
    """The service, or the ``tinker:`` model, that a name means; None for a name of a backend's own.

    Raises:
        ConfigError: If it means a judge that writes nothing.
    """
    prefix, colon, rest = name.partition(":")
    if name == "assistant" or prefix == "check":
        raise ConfigError(f"'{name}' judges and does not write", where="model", fix=f"Use {_MODEL_FORMS}")
    is_service = name.startswith("claude-") or prefix in {"anthropic", "openai"}
    if not (is_service or (prefix == "tinker" and not rest.startswith("//"))):
        return None
    if colon and not rest:
        raise ConfigError(f"'{name}' names no model", where="model", fix=f"Use {_MODEL_FORMS}")
    return parse_judge(name, where="model")


def load_generation_settings(
    config_file: Path | None, overrides: Mapping[str, Any] | None
) -> Settings[GenerationConfig]:
    """Read and check a generation job's config (see `load_settings` for the errors)."""
    return load_settings(
        GenerationConfig,
        config_file,
        overrides,
        retired=RETIRED_KEYS,
        default_rules=DEFAULT_RULES,
        kinds=("generation",),
    )
