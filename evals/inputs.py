"""What an evaluation's config names, loaded and checked: prompts, arms, canaries, judges and their prompt."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from ..backends.connection import Connect, connect
from ..core.errors import ConfigError
from ..core.names import BackendName
from ..judges.base import Judge, check_judges
from ..judges.judge_catalog import JudgeRef
from ..judges.local_judges import CHECKS
from ..judges.prompt import EvalItem, Prompter
from ..judges.rubric import load_rubric
from ..judges.services import CallLimits, service_judge
from ..models.model_ref import resolve_model
from .controls import Canary, load_canaries
from .judge_config import JudgeEvalConfig
from .questions import count_calls
from .responses import Response, open_model, read_responses, sample_responses
from .test_set import load_items

FILE_ENDINGS = (".jsonl", ".json", ".csv", ".parquet")


@dataclass(frozen=True, slots=True)
class Arm:
    """One side of an evaluation.

    Attributes:
        name: ``baseline``, ``tuned``, ``other-1``.
        model: What the user (or the tool, for a job id) wrote; results show it.
        file: The file of its answers, if they are ready.
    """

    name: str
    model: str
    file: Path | None

    def answers(
        self,
        config: JudgeEvalConfig,
        items: Sequence[EvalItem],
        *,
        connect: Connect,
        seed: int,
        on_done: Callable[[int], bool],
    ) -> list[Response] | None:
        """Its answer to each prompt, read or sampled; None when told to stop.

        Raises:
            ResearcherError: If the file does not fit the prompts, or the backend refuses.
        """
        if self.file is not None:
            return read_responses(self.file, items)
        return sample_responses(open_model(self.model, config, connect, seed=seed), items, on_done=on_done)


def resolve_arm(name: str, model: str) -> Arm:
    """The arm that a resolved config names: paths are absolute there, and job ids are tinker:// paths.

    Raises:
        ConfigError: If a file of answers does not exist.
        ModelError: If it names no model.
    """
    if model.lower().endswith(FILE_ENDINGS):
        path = Path(model)
        if not path.is_file():
            raise ConfigError(f"no such file: {model}", where=name, fix="Check the path")
        return Arm(name, model, path)
    if not model.startswith("tinker://"):
        resolve_model(model)
    return Arm(name, model, None)


@dataclass(frozen=True, slots=True)
class EvalInputs:
    """What plan and job both need to know.

    Attributes:
        items: The prompts.
        canaries: Pairs with a known answer, for the judges' calibration checks.
        arms: The arms by name, the baseline first.
        prompter: Writes the judges' questions.
        calls_per_judge: Questions to each judge, calibration checks included.
        answers_to_sample: Answers that no file holds (the response cache may).
        total_steps: Answers to sample and calls of all judges: the job's length.
    """

    items: Sequence[EvalItem]
    canaries: Sequence[Canary]
    arms: Mapping[str, Arm]
    prompter: Prompter
    calls_per_judge: int
    answers_to_sample: int
    total_steps: int


def load_inputs(config: JudgeEvalConfig) -> EvalInputs:
    """Load what a resolved config names.

    Raises:
        ResearcherError: For a test set, a rubric, canaries or an arm that cannot be used.
    """
    items = load_items(Path(config.test_set), config.num_samples, config.seed, config.columns)
    prompter = make_prompter(config)
    canaries = load_canaries(config.canaries)
    if config.canaries is None:
        canaries = _decidable(canaries, config.judges)
    arms = {name: resolve_arm(name, model) for name, model in config.arms.items()}
    pairwise = config.mode == "pairwise"
    calls = count_calls(len(arms), len(items), len(canaries), pairwise=pairwise, both_orders=config.position_debias)
    to_sample = sum(arm.file is None for arm in arms.values()) * len(items)
    return EvalInputs(items, canaries, arms, prompter, calls, to_sample, to_sample + calls * len(config.judges))


def _decidable(canaries: Sequence[Canary], judges: Sequence[JudgeRef]) -> list[Canary]:
    """The canaries that every check among the judges can tell apart: one that compares numbers knows no capitals."""
    checks = [CHECKS[judge.model] for judge in judges if judge.kind == "check"]
    return [
        canary
        for canary in canaries
        if all(
            passes(canary.good, str(canary.item.reference)) and not passes(canary.bad, str(canary.item.reference))
            for passes in checks
        )
    ]


def make_prompter(config: JudgeEvalConfig) -> Prompter:
    """What writes the judges' questions.

    Raises:
        ConfigError: If the rubric cannot be used.
    """
    return Prompter(load_rubric(config.rubric), config.mode, max_chars=config.max_response_chars)


class Asked(Protocol):
    """What a config says of how its judges are asked."""

    @property
    def backend(self) -> BackendName: ...  # noqa: D102
    @property
    def base_url(self) -> str | None: ...  # noqa: D102
    @property
    def judge_base_url(self) -> str | None: ...  # noqa: D102
    @property
    def judge_max_tokens(self) -> int: ...  # noqa: D102
    @property
    def judge_timeout_s(self) -> float: ...  # noqa: D102
    @property
    def seed(self) -> int: ...  # noqa: D102


def make_judge(ref: JudgeRef, config: Asked, prompter: Prompter, folder: Path, connect: Connect) -> Judge:
    """The judge that ``ref`` names; ``folder`` is the run's, where an assistant finds its packets.

    Raises:
        ResearcherError: If it needs a key that is not set, or its backend does not answer.
        MissingDependencyError: If the evals extra is not installed.
    """
    if ref.kind == "check":
        from ..judges.local_judges import ReferenceCheck

        return ReferenceCheck(ref, prompter.rubric)
    if ref.kind == "assistant":
        from ..judges.local_judges import AssistantJudge

        return AssistantJudge(ref, folder, seed=config.seed)
    if ref.kind == "tinker":
        from ..judges.tinker_judge import TinkerJudge

        backend = connect(config.backend, config.base_url)
        return TinkerJudge(ref, prompter.schema, backend, max_tokens=config.judge_max_tokens)
    limits = CallLimits(config.judge_max_tokens, config.judge_timeout_s)
    return service_judge(ref, prompter.schema, limits, base_url=config.judge_base_url)


async def check_services(config: JudgeEvalConfig) -> None:
    """Look up the model of each Anthropic and OpenAI-compatible judge with the key at hand.

    Raises:
        ResearcherError: If a key is missing or refused, a model is unknown or retired, or a service does not answer.
        MissingDependencyError: If the evals extra is not installed.
    """
    services = [ref for ref in config.judges if ref.is_service]
    if services:
        prompter = make_prompter(config)
        await check_judges(make_judge(ref, config, prompter, Path(), connect) for ref in services)
