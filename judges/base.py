"""What every judge can do, whatever answers behind it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import astuple, dataclass
from typing import Any

from ..models.chat import Message
from .judge_catalog import JudgeRef
from .prompt import Question


@dataclass(frozen=True, slots=True)
class JudgeUsage:
    """Tokens of one call. ``input_tokens`` are those charged in full; cached ones are counted separately."""

    input_tokens: int = 0
    output_tokens: int = 0
    cache_read_tokens: int = 0
    cache_write_tokens: int = 0

    def __add__(self, other: JudgeUsage) -> JudgeUsage:
        return JudgeUsage(*(a + b for a, b in zip(astuple(self), astuple(other), strict=True)))


@dataclass(frozen=True, slots=True)
class Reply:
    """A judge's answer to one question, before it is read as a verdict.

    Attributes:
        arguments: The structured answer, or None where the judge wrote prose or refused.
        text: Any prose beside it; it is quoted when the question is asked again.
        stop_reason: Why generation ended, in the service's words.
        model: The exact model that answered, in the service's words.
        usage: Tokens of the call.
    """

    arguments: Mapping[str, Any] | None
    text: str
    stop_reason: str
    model: str
    usage: JudgeUsage = JudgeUsage()


@dataclass(frozen=True, slots=True)
class Repair:
    """A second attempt: what the judge said first, what to tell it now, and the tokens spent so far."""

    said: str
    request: str
    usage: JudgeUsage = JudgeUsage()


class JudgeCallError(Exception):
    """One call failed for good, after the retries that its service asks for; the evaluation continues without it.

    Args:
        reason: Why, in a few words.
        transient: Whether the same call may work later (an outage), or not (a prompt that is too long).
    """

    def __init__(self, reason: str, *, transient: bool) -> None:
        super().__init__(reason)
        self.reason = reason
        self.transient = transient


class Judge(ABC):
    """A judge that answers one question at a time.

    Attributes:
        ref: How the user named it; ``ref.name`` stands in every result.
        settings: Everything besides the prompt that decides its verdicts: the exact model and how it is asked.
        at_once: How many questions it takes at the same time; None: as many as the config says.
    """

    at_once: int | None = None

    def __init__(self, ref: JudgeRef, **settings: Any) -> None:
        """Remember which judge this is; ``settings`` are added to its kind and model."""
        self.ref = ref
        self.settings: Mapping[str, Any] = {"kind": ref.kind, "model": ref.model, **settings}

    @property
    def name(self) -> str:
        """Its name in every result."""
        return self.ref.name

    async def check(self) -> None:  # noqa: B027 (a judge without a service has nothing to check)
        """See that it can be asked: the key, the model, the address. Costs nothing.

        Raises:
            ResearcherError: If it cannot; the message says what to do.
        """

    @abstractmethod
    async def ask(self, key: str, question: Question, repair: Repair | None) -> Reply:
        """Ask one question.

        Args:
            key: Identifies the call.
            question: What to ask.
            repair: Set on the second attempt.

        Raises:
            JudgeCallError: If this call failed and others may not.
            ResearcherError: If no call can work.
        """

    async def close(self) -> None:  # noqa: B027 (nor to close)
        """Close connections."""


async def check_judges(judges: Iterable[Judge]) -> None:
    """Check each judge and close it again. ``judges`` may be lazy: each is made when its turn comes.

    Raises:
        ResearcherError: If a key is missing or refused, a model is unknown or retired, or a service does not answer.
    """
    for judge in judges:
        try:
            await judge.check()
        finally:
            await judge.close()


def conversation_with(text: str, repair: Repair | None) -> Sequence[Message]:
    """The turns of one call: the question, and on a second attempt what was said and what is wrong with it."""
    asked = [Message(role="user", content=text)]
    if repair is None:
        return asked
    said = Message(role="assistant", content=repair.said or "(no verdict)")
    return [*asked, said, Message(role="user", content=repair.request)]
