"""A session with the server through a real MCP client that prints each call and its answer, for the pages of docs."""

from __future__ import annotations

import os
import sys
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from mcp import Client, StdioServerParameters
from mcp_types import TextContent


class PrintedSession:
    """Calls of tools, printed with the folder that everything lies in as ``~``."""

    def __init__(self, client: Client, home: Path) -> None:
        self._client = client
        self._home = str(home)

    async def call(self, tool: str, **arguments: Any) -> dict[str, Any]:
        """Call a tool and print it; returns the structured answer."""
        self._print(f"> {tool}({', '.join(f'{k}={v!r}' for k, v in arguments.items())})")
        result = await self._client.call_tool(tool, arguments)
        self._print("".join(block.text for block in result.content if isinstance(block, TextContent)) + "\n")
        return result.structured_content or {}

    async def ended(self, job_id: str) -> dict[str, Any]:
        """Wait for a job's end without a word, then show it."""
        while True:
            found = await self._client.call_tool("wait_for_job", {"job_id": job_id, "timeout_s": 50})
            if (found.structured_content or {})["state"] not in {"queued", "starting", "running"}:
                return await self.call("get_job", job_id=job_id)

    def _print(self, text: str) -> None:
        print(text.replace(self._home, "~"), flush=True)


@asynccontextmanager
async def printed_session(home: Path, environment: Mapping[str, str]) -> AsyncGenerator[PrintedSession]:
    """A server that works in ``home``, and a client of it."""
    server = StdioServerParameters(
        command=sys.executable,
        args=["-m", "sota_ml_researcher.server", "serve"],
        env={**os.environ, **environment},
        cwd=home,
    )
    async with Client(server) as client:
        yield PrintedSession(client, home)
