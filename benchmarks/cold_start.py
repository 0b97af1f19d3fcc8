"""How long a client waits for the server: process start to the answer of the first tools/list, over stdio.

Run: ``python -m benchmarks.cold_start``. Each start of ours is followed by one of a bare ``MCPServer`` with one tool,
which is the floor; the target is at most 1.1 times that.
"""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
import time

import anyio
from mcp import Client, StdioServerParameters

_RUNS = 9
_TARGET = 1.1
_BARE = """
from mcp.server import MCPServer

server = MCPServer("bare")


@server.tool()
def nothing() -> str:
    return ""


server.run("stdio")
"""


def main() -> None:
    # As on a user's machine: what Python compiled at the first start is kept for the next ones.
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    with tempfile.TemporaryDirectory() as home:
        environment = {**os.environ, "ML_RESEARCHER_HOME": home}
        commands = {"ours": ["-m", "sota_ml_researcher.server", "serve"], "bare": ["-c", _BARE]}
        servers = {
            name: StdioServerParameters(command=sys.executable, args=arguments, env=environment)
            for name, arguments in commands.items()
        }
        seconds: dict[str, list[float]] = {name: [] for name in servers}
        for number in range(_RUNS + 1):
            for name, server in servers.items():
                took = anyio.run(_first_list, server)
                if number:  # the first start of each may still compile
                    seconds[name].append(took)
    for name, times in seconds.items():
        print(f"{name}: min {min(times):.3f} s, median {statistics.median(times):.3f} s, max {max(times):.3f} s")
    ratio = statistics.median(ours / bare for ours, bare in zip(seconds["ours"], seconds["bare"], strict=True))
    print(f"ours / bare, median of {_RUNS}: {ratio:.2f}; target {_TARGET}: {'met' if ratio <= _TARGET else 'MISSED'}")


async def _first_list(server: StdioServerParameters) -> float:
    began = time.perf_counter()
    async with Client(server) as client:
        await client.list_tools()
        return time.perf_counter() - began


if __name__ == "__main__":
    main()
