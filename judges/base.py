"""What every judge can do, however it is reached."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from .prompt import Question


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of one call. ``input_tokens`` are those paid in full: cached ones are counted apart."""

    input_tokens: int = 0
    output_tokens: int = 0
    cache_read_tokens: int = 0
    cache_write_tokens: int = 0

    def __add__(self, other: Usage) -> Usage:
        return Usage(
            self.input_tokens + other.input_tokens,
            self.output_tokens + other.output_tokens,
            self.cache_read_tokens + other.cache_read_tokens,
            self.cache_write_tokens + other.cache_write_tokens,
        )


@dataclass(frozen=True, slots=True)
class Reply:
    """What came back.

    Attributes:
        arguments: The structured answer, or None where the judge wrote prose or refused.
        text: What it wrote besides; used to ask again.
        stop_reason: Why it ended, as the service says it.
        model: The exact model that answered, as the service says it.
        usage: What it took.
    """

    arguments: Mapping[str, Any] | None
    text: str
    stop_reason: str
    model: str
    usage: Usage = Usage()


@dataclass(frozen=True, slots=True)
class Repair:
    """A second attempt: what the judge said first, and what to tell it now."""

    said: str
    request: str


class JudgeCallError(Exception):
    """One call failed for good, after the retries that its service asks for; the evaluation goes on without it.

    Args:
        reason: Why, in a few words.
        transient: Whether the same call may work later (an outage), or not (a prompt that is too long).
    """

    def __init__(self, reason: str, *, transient: bool) -> None:
        super().__init__(reason)
        self.reason = reason
        self.transient = transient


class Judge(Protocol):
    """A judge that answers one question at a time."""

    @property
    def name(self) -> str:
        """Its name in every result."""
        ...

    @property
    def settings(self) -> Mapping[str, Any]:
        """Everything that decides its verdicts besides the prompt: the exact model and how it is asked."""
        ...

    @property
    def at_once(self) -> int | None:
        """How many questions it takes at once; None: as many as the config says."""
        ...

    async def check(self) -> None:
        """See that it can be asked: the key, the model, the address. Costs nothing.

        Raises:
            ResearcherError: If it cannot; the message says what to do.
        """
        ...

    async def ask(self, key: str, question: Question, repair: Repair | None) -> Reply:
        """Ask one question.

        Args:
            key: Names the call.
            question: What to ask.
            repair: Set on the second attempt.

        Raises:
            JudgeCallError: If this call failed and others may not.
            ResearcherError: If no call can work.
        """
        ...

    async def close(self) -> None:
        """Let go of connections."""
        ...
