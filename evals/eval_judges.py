"""The judges that an evaluation's config names."""

from __future__ import annotations

from pathlib import Path

from ..backends.connection import Connect, connect
from ..judges.base import Judge, check_judges
from ..judges.judge_catalog import JudgeRef
from ..judges.prompt import Prompter
from ..judges.services import CallLimits, service_judge
from .inputs import make_prompter
from .judge_config import JudgeEvalConfig


def make_judge(ref: JudgeRef, config: JudgeEvalConfig, prompter: Prompter, folder: Path, connect: Connect) -> Judge:
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
