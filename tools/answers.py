"""What tools answer with: typed content for programs, a short text for the model that reads it."""

from __future__ import annotations

import json
from typing import Any

from mcp_types import CallToolResult, ContentBlock, TextContent
from pydantic import BaseModel

# Enough for the state, the numbers that matter and the next step; the rest is in the structured content.
MAX_TEXT = 1500


def answer(content: BaseModel, text: str, *extra: ContentBlock) -> CallToolResult:
    """A tool's result: ``content`` as structured output, ``text`` (cut at `MAX_TEXT`) for reading."""
    cut = text if len(text) <= MAX_TEXT else text[: MAX_TEXT - 1] + "…"
    structured: dict[str, Any] = json.loads(content.model_dump_json())
    return CallToolResult(content=[TextContent(type="text", text=cut), *extra], structured_content=structured)


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
