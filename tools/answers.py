"""What tools answer with: typed content for programs, a short text for the model that reads it."""

from __future__ import annotations

import json
from typing import Any

from mcp_types import CallToolResult, ContentBlock, TextContent
from pydantic import BaseModel

from ..core.foreign_text import fitted, new_tag, one_line
from ..core.redaction import known_secrets, publishable, redacted

# Enough for the state, the numbers that matter and the next step; the rest is in the structured content.
MAX_TEXT = 1500
# An error may name several settings, each with what it may be.
MAX_PROBLEM = 3000


def answer(content: BaseModel, text: str, *extra: ContentBlock) -> CallToolResult:
    """A tool's result: ``content`` as structured output, ``text`` for reading.

    The text is cut at `MAX_TEXT` before its last lines, so that the next step is always read; what `foreign` marked
    stands in a fence that is new in every answer. Fields of the structured content hold such text as it is.
    """
    structured: dict[str, Any] = json.loads(content.model_dump_json())
    shown = TextContent(type="text", text=fitted(text, MAX_TEXT, new_tag()))
    return CallToolResult(content=[shown, *extra], structured_content=structured)


def published(result: CallToolResult) -> CallToolResult:
    """A result as it may leave the process: without keys, and without characters that hide or reorder text."""
    secrets = known_secrets()
    content = [
        block.model_copy(update={"text": publishable(block.text, secrets)}) if isinstance(block, TextContent) else block
        for block in result.content
    ]
    structured = publishable(result.structured_content, secrets)
    return result.model_copy(update={"content": content, "structured_content": structured})


def problem_text(message: str) -> str:
    """An error as it may be read: one line, what others wrote in a fence, no keys."""
    return redacted(fitted(one_line(message), MAX_PROBLEM, new_tag()))


def number(value: float | None, digits: int = 4) -> str:
    """A number for reading: ``12,345``, ``0.4321``, ``1.2e-05``, or ``unknown``."""
    if value is None:
        return "unknown"
    if value == round(value) and (abs(value) >= 1 or value == 0):
        return f"{int(value):,}"
    return f"{value:.{digits}g}"


def duration(seconds: float | None) -> str:
    """Seconds for reading: ``45 s``, ``3 min 20 s``, ``2 h 5 min``."""
    if seconds is None:
        return "unknown"
    total = round(seconds)
    if total < 60:
        return f"{total} s"
    if total < 3600:
        return f"{total // 60} min {total % 60} s"
    return f"{total // 3600} h {total % 3600 // 60} min"
