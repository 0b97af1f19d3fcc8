"""Calling one tool through a real client, in memory."""

from __future__ import annotations

from typing import Any

import anyio
from mcp import Client

from sota_ml_researcher.server.app import build_server


def call(tool: str, **arguments: Any) -> tuple[bool, str, dict[str, Any]]:
    """Whether it failed, its text, and its structured content."""

    async def run() -> Any:
        async with Client(build_server()) as client:
            return await client.call_tool(tool, arguments)

    result = anyio.run(run)
    return bool(result.is_error), result.content[0].text, dict(result.structured_content or {})
