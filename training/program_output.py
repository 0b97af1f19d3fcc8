"""What a model's program prints, as the model is shown it. The program runs in a sandbox of its own, started anew."""

from __future__ import annotations

import asyncio
import marshal
import re
from dataclasses import dataclass

from sota_ml_researcher.training.reward_code import PROGRAM
from sota_ml_researcher.training.reward_process import running
from sota_ml_researcher.training.sandbox import Limits, Mode, sandboxed

_BLOCK = re.compile(r"```(?:python3?|py)[ \t]*\n(.*?)```", re.DOTALL | re.IGNORECASE)
# A character has four bytes at most.
_BYTES = 4
_LONGEST_LINE = 1 << 16


@dataclass(frozen=True, slots=True)
class Output:
    """What is shown of a program's output, never empty, and whether it was stopped or ended with an error."""

    text: str
    failed: bool


def program_in(reply: str) -> str | None:
    """The last block of a reply that is marked as Python, or None: then the reply is an answer."""
    blocks = _BLOCK.findall(reply)
    return str(blocks[-1]) if blocks else None


async def run(code: str, *, mode: Mode, limits: Limits, wall_s: float, most: int, seed: int) -> Output:
    """Run a program and say what it printed.

    Args:
        code: The program.
        mode: The sandbox's.
        limits: What it may use.
        wall_s: Seconds it may take.
        most: Characters of its output that are shown.
        seed: For its ``random``.

    Raises:
        ScoringFailedError: If the sandbox does not start.
    """
    stopped = ""
    status = 0
    found = bytearray()
    async with running(sandboxed(mode, PROGRAM, [], limits=limits), longest=_LONGEST_LINE) as (program,):
        try:
            async with asyncio.timeout(wall_s):
                request = {"mode": "interpreter", "code": code, "input": "", "seed": seed}
                await program.send(marshal.dumps(request))
                async for chunk in program.chunks(_BYTES * most):
                    found += chunk
                if len(found) > _BYTES * most:
                    stopped = "stopped: it prints too much"
                else:
                    status = await program.status()
        except TimeoutError:
            stopped = f"stopped after {wall_s:g} s"
    return _shown(found.decode(errors="replace").rstrip(), stopped, status, most)


def _shown(text: str, stopped: str, status: int, most: int) -> Output:
    notes = [stopped] if stopped else []
    if len(text) > most:
        # The end of a long output often says what went wrong.
        text, notes = f"{text[: most - most // 2]}\n[cut]\n{text[len(text) - most // 2 :]}", []
    elif not stopped and status != 0 and not text:
        notes = [f"ended with status {status}"]
    elif not stopped and not text:
        notes = ["nothing was printed"]
    shown = "\n".join([*([text] if text else []), *(f"[{note}]" for note in notes)])
    return Output(shown, bool(stopped) or status != 0)
