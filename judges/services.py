"""Judges behind a service: making one, and what its HTTP errors mean for the questions that are left."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..core.errors import MissingDependencyError
from .base import Judge
from .judge_catalog import JudgeRef

# The key is wrong, unpaid or not allowed to do this: no call can work.
REFUSED = frozenset({401, 402, 403})


@dataclass(frozen=True, slots=True)
class CallLimits:
    """Tokens a judge may write for one verdict, reasoning included, and seconds that one call may take."""

    max_tokens: int
    timeout_s: float


def is_transient(status: int) -> bool:
    """Whether a call that ended with this HTTP status may work later."""
    return status >= 408 and status not in {413, 422}


def service_judge(ref: JudgeRef, schema: Mapping[str, Any], limits: CallLimits, *, base_url: str | None) -> Judge:
    """The judge behind a service.

    Args:
        ref: Which one.
        schema: JSON schema of its verdicts.
        limits: What one call may take.
        base_url: Where an ``openai:`` judge is reached; None: ``OPENAI_BASE_URL``.

    Raises:
        BackendError: If its key is not set.
        MissingDependencyError: If the evals extra is not installed.
    """
    try:
        if ref.kind == "anthropic":
            from .anthropic_judge import AnthropicJudge

            return AnthropicJudge(ref, schema, limits)
        from .openai_judge import OpenAIJudge

        return OpenAIJudge(ref, schema, limits, base_url=base_url)
    except ImportError as error:
        if isinstance(error, MissingDependencyError):
            raise
        raise MissingDependencyError(
            f"the judge {ref.name} needs {error.name}", fix="Run: pip install 'sota-ml-researcher[evals]'"
        ) from error
