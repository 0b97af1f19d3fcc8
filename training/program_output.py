"""What a model's program prints, as the model is shown it. The program runs in a sandbox, this in a worker's child."""

from __future__ import annotations

import json
import os
import re
import select
import subprocess
import time
from typing import Any

from sota_ml_researcher.training.reward_code import PROGRAM, end_program
from sota_ml_researcher.training.sandbox import Limits, Mode, sandboxed

_BLOCK = re.compile(r"```(?:python3?|py)[ \t]*\n(.*?)```", re.DOTALL | re.IGNORECASE)
_READY = b"ready\n"


class SandboxFailedError(Exception):
    """The program was never started."""


def program_in(reply: str) -> str | None:
    """The last block of a reply that is marked as Python, or None: then the reply is an answer."""
    blocks = _BLOCK.findall(reply)
    return str(blocks[-1]) if blocks else None


def run(code: str, *, mode: Mode, limits: Limits, wall_s: float, most: int, seed: int) -> dict[str, Any]:
    """Run a program and say what it printed.

    Args:
        code: The program.
        mode: The sandbox's.
        limits: What it may use.
        wall_s: Seconds it may take.
        most: Characters of its output that are shown.
        seed: For its ``random``.

    Returns:
        ``output``, never empty, and ``failed``: whether it was stopped or ended with an error.

    Raises:
        SandboxFailedError: If the sandbox does not start.
    """
    shut_in = sandboxed(mode, PROGRAM, [], limits=limits, files={})
    starting: Any = subprocess.Popen  # its options are not known to a type checker
    with starting(
        shut_in.argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, **shut_in.options
    ) as process:
        found, stopped = _read(process, {"mode": "interpreter", "code": code, "seed": seed}, wall_s, most)
        end_program(process)
        status = process.wait()
    if not found.startswith(_READY):
        raise SandboxFailedError(f"the sandbox did not start (status {status})")
    text = found[len(_READY) :].decode(errors="replace").rstrip()
    notes = [stopped] if stopped else []
    if len(text) > most:
        # The end of a long output often says what went wrong.
        text, notes = f"{text[: most - most // 2]}\n[cut]\n{text[len(text) - most // 2 :]}", []
    elif not stopped and status != 0 and not text:
        notes = [f"ended with status {status}"]
    elif not stopped and not text:
        notes = ["nothing was printed"]
    shown = "\n".join([*([text] if text else []), *(f"[{note}]" for note in notes)])
    return {"output": shown, "failed": bool(stopped) or status != 0}


def _read(process: subprocess.Popen[bytes], request: dict[str, Any], wall_s: float, most: int) -> tuple[bytes, str]:
    """What a program writes, and why it was stopped, if it was."""
    assert process.stdin and process.stdout
    deadline = time.monotonic() + wall_s
    try:
        process.stdin.write(json.dumps(request).encode() + b"\n")
        process.stdin.close()
    except BrokenPipeError:
        pass
    found = bytearray()
    # A character has four bytes at most.
    while len(found) <= len(_READY) + 4 * most:
        ready, _, _ = select.select([process.stdout], [], [], max(0.0, deadline - time.monotonic()))
        if not ready:
            return bytes(found), f"stopped after {wall_s:g} s"
        chunk = os.read(process.stdout.fileno(), 65536)
        if not chunk:
            return bytes(found), _waited(process, deadline, wall_s)
        found += chunk
    return bytes(found), "stopped: it prints too much"


def _waited(process: subprocess.Popen[bytes], deadline: float, wall_s: float) -> str:
    """Wait for a program that has closed its output; why it was stopped, if it has to be."""
    try:
        process.wait(max(0.1, deadline - time.monotonic()))
    except subprocess.TimeoutExpired:
        return f"stopped after {wall_s:g} s"
    return ""
