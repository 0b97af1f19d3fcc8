"""Judges behind a service: making one, and what its HTTP errors mean for the questions that are left."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..core.errors import BackendError, MissingDependencyError
from ..core.extras import not_installed
from ..models.chat import Message
from .base import Judge, Reply
from .judge_catalog import JudgeRef

# HTTP statuses after which no call can work: why, and what to do.
REFUSED: Mapping[int, tuple[str, str]] = {
    401: ("the key was refused (401)", "Check {key}"),
    402: ("billing is blocked (402)", "Top up or set up billing with the service"),
    403: ("this key may not do that (403)", "Check what {key} is allowed to do"),
}


@dataclass(frozen=True, slots=True)
class CallLimits:
    """Tokens a judge may write for one verdict, reasoning included, and seconds that one call may take."""

    max_tokens: int
    timeout_s: float


class ServiceModel(Judge):
    """A model behind a service: as a judge it answers by a tool call, as a writer in plain text."""

    @abstractmethod
    async def write(self, messages: Sequence[Message], *, temperature: float | None, seed: int) -> Reply:
        """Answer a conversation in text.

        Args:
            messages: Turns that end with the user's; a system turn may come first.
            temperature: None leaves it to the service.
            seed: For services that take one; Anthropic's does not.

        Raises:
            JudgeCallError: If this call failed and others may not.
            ResearcherError: If no call can work.
        """


def refusal(status: int, message: str, *, key: str, where: str) -> BackendError:
    """The error for an HTTP status: ``message`` unless it is one of `REFUSED`; ``key`` names the key's variable."""
    problem, fix = REFUSED.get(status, (message, ""))
    return BackendError(problem, where=where, fix=fix.format(key=key))


def is_transient(status: int) -> bool:
    """Whether a call that ended with this HTTP status may work later."""
    return status >= 408 and status not in {413, 422}


def service_judge(
    ref: JudgeRef, schema: Mapping[str, Any], limits: CallLimits, *, base_url: str | None
) -> ServiceModel:
    """The judge or writer behind a service.

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
        raise not_installed([error.name or "a client"], by=f"the model {ref.name}") from error
