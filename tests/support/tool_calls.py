"""Calling tools through a real client, in memory."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import anyio
from mcp import Client
from mcp_types import CallToolResult, TextContent

from sota_ml_researcher.server.app import build_server

T = TypeVar("T")


def with_client(work: Callable[[Client], Awaitable[T]]) -> T:
    """What ``work`` returns, given a client that is connected to a server of its own."""

    async def run() -> T:
        async with Client(build_server()) as client:
            return await work(client)

    return anyio.run(run)


def result_of(tool: str, **arguments: Any) -> CallToolResult:
    """The whole answer of one tool."""
    return with_client(lambda client: client.call_tool(tool, arguments))


def text_of(result: CallToolResult) -> str:
    """What a model reads of an answer."""
    assert isinstance(result.content[0], TextContent)
    return result.content[0].text


def call(tool: str, **arguments: Any) -> tuple[bool, str, dict[str, Any]]:
    """Whether it failed, its text, and its structured content."""
    result = result_of(tool, **arguments)
    return bool(result.is_error), text_of(result), dict(result.structured_content or {})
