"""Run the tool calls shown in docs/*.md and write what they answer: no transcript is typed by hand.

    python scripts/refresh_transcripts.py           rewrite the pages
    python scripts/refresh_transcripts.py --check    exit 1 if one is out of date

A block starts with ``> tool {arguments}``; what follows up to the fence is the answer's text. Only calls that start
nothing belong there.
"""

from __future__ import annotations

import json
import os
import re
import sys
import tempfile
from pathlib import Path

import anyio
from mcp import Client
from mcp_types import TextContent

from sota_ml_researcher.server.app import build_server

DOCS = Path(__file__).resolve().parent.parent / "docs"
_DEMO_PATH = re.compile(r"[^\s'\"]*/demo/data/")
# The name of a fence is new in every answer.
_FENCE = re.compile(r"(untrusted-data-)[0-9a-f]+")
# What is free, and in which precision it is computed, is this machine's.
_MEMORY = re.compile(r"(?m)^Memory: .*\n")
_BLOCK = re.compile(r"(?ms)^```text\n> (\w+) (\{.*?\})\n.*?^```")


def main() -> int:
    """Rewrite or check every page."""
    check, stale = "--check" in sys.argv[1:], []
    for page in sorted(DOCS.glob("*.md")):
        text = page.read_text(encoding="utf-8")
        fresh = refresh(text)
        if fresh != text:
            stale.append(page.name)
            if not check:
                page.write_text(fresh, encoding="utf-8")
    print(f"{'out of date' if check else 'rewritten'}: {', '.join(stale) or 'none'}")
    return 1 if check and stale else 0


def refresh(text: str) -> str:
    """The page with each block's answer as it is now."""
    return _BLOCK.sub(lambda block: _answered(block[1], block[2]), text)


def _answered(tool: str, arguments: str) -> str:
    with tempfile.TemporaryDirectory() as home:
        os.environ["ML_RESEARCHER_HOME"] = home
        answer = anyio.run(_call, tool, json.loads(arguments))
    # A path may be cut short from the left, wherever this clone lies.
    answer = _MEMORY.sub("", _DEMO_PATH.sub("demo/data/", answer))
    shown = _FENCE.sub(r"\g<1>5f3c9a1e", answer).strip()
    return f"```text\n> {tool} {arguments}\n{shown}\n```"


async def _call(tool: str, arguments: dict[str, object]) -> str:
    async with Client(build_server()) as client:
        result = await client.call_tool(tool, arguments)
    first = result.content[0]
    if result.is_error or not isinstance(first, TextContent):
        raise SystemExit(f"{tool}: {first}")
    return first.text


if __name__ == "__main__":
    sys.exit(main())
