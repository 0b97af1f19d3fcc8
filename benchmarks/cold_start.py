"""How long a client waits for the server: process start to the answer of the first tools/list, over stdio.

Run: ``python -m benchmarks.cold_start``. The target is 0.6 s; the floor is what importing the MCP SDK alone takes.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time

import anyio
from mcp import Client, StdioServerParameters

_RUNS = 9
_TARGET_S = 0.6


def main() -> None:
    # As on a user's machine: what Python compiled at the first start is kept for the next ones.
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    with tempfile.TemporaryDirectory() as home:
        environment = {**os.environ, "ML_RESEARCHER_HOME": home}
        server = StdioServerParameters(
            command=sys.executable, args=["-m", "sota_ml_researcher.server", "serve"], env=environment
        )
        anyio.run(_first_list, server)
        times_s = [anyio.run(_first_list, server) for _ in range(_RUNS)]
    floor_s = [_import_sdk() for _ in range(_RUNS)]
    for name, seconds in (("to the first tools/list", times_s), ("import mcp.server alone", floor_s)):
        print(f"{name}: min {min(seconds):.3f} s, median {statistics.median(seconds):.3f} s, max {max(seconds):.3f} s")
    print(f"target {_TARGET_S} s: {'met' if statistics.median(times_s) <= _TARGET_S else 'MISSED'} (median of {_RUNS})")


async def _first_list(server: StdioServerParameters) -> float:
    began = time.perf_counter()
    async with Client(server) as client:
        await client.list_tools()
        return time.perf_counter() - began


def _import_sdk() -> float:
    began = time.perf_counter()
    subprocess.run([sys.executable, "-c", "import gc; gc.disable(); import mcp.server"], check=True)
    return time.perf_counter() - began


if __name__ == "__main__":
    main()
