"""Running a model's program: to show what it prints, or to see whether it passes a row's tests.

Nothing is run in this process: programs and tests are untrusted text. Each program and each row's tests get a sandbox
of their own, started anew for every sample. The program cannot see the
tests, stop them early or change what they compare; the tests cannot reach this process, or another row. Between the two
sandboxes only calls and plain data cross, and from the tests only a verdict comes out.
"""

from __future__ import annotations

import asyncio
import contextlib
import marshal
import math
import os
import re
import socket
import tempfile
import time
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, cast

from pydantic import Field

from .process_pool import Answer, ScoringFailedError, read_answer, running
from .response_text import after_thinking, blocks_in, program_of, shown
from .sandbox.modes import Limits, Mode, installed, sandboxed

PROGRAM = Path(__file__).with_name("sandbox") / "program.py"
TESTS = PROGRAM.with_name("row_tests.py")
EXCHANGE = PROGRAM.with_name("exchange.py")
# Beyond their own time, what tests may take to stop a program that does not answer.
GRACE_S = 5.0
# Tests may import what is installed, such as NumPy.
_TESTS_MEMORY_MB = 2048
_LONGEST_OUTPUT = 1 << 20
_LONGEST_VERDICT = 1 << 16
# A character has four bytes at most.
_BYTES = 4
_LONGEST_LINE = 1 << 16
# Relative and absolute difference up to which a number with a decimal point counts as the one expected.
_DECIMALS = 1e-6
_DECIMAL = re.compile(r"[-+]?(?:\d+\.\d*|\.\d+|\d+(?=[eE]))(?:[eE][-+]?\d+)?")
_NUMBER = re.compile(r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?")
_NAME = re.compile(r"[A-Za-z_]\w*")


class Verdict(Answer):
    """What tests say of a program."""

    passed: bool
    note: Annotated[str, Field(max_length=300)]


def code_in(response: str, tests: Any = (), entry: str | None = None) -> str:
    """The program in a response: the last block of Python that defines what the tests use (`program_of`)."""
    if entry is not None:
        return program_of(response, [entry])
    whole = isinstance(tests, list) and any(isinstance(test, Mapping) for test in cast("list[Any]", tests))
    return program_of(response, () if whole else _NAME.findall(_text_of(tests)))


def _text_of(tests: Any) -> str:
    return "\n".join(map(str, cast("list[Any]", tests))) if isinstance(tests, list) else str(tests)


async def run_tests(
    code: str, tests: Any, *, mode: Mode, limits: Limits, wall_s: float, entry: str | None = None
) -> str:
    """Run every test; returns why the first one fails, or an empty text.

    Args:
        code: The model's program.
        tests: Python text with asserts (or a list of such), or a list of ``{"input", "output"}`` for a whole program.
        mode: The sandboxes'.
        limits: What the program may use.
        wall_s: Seconds for all the tests together, from when the sandboxes stand.
        entry: The function that a ``check(candidate)`` in the tests is given.

    Raises:
        ScoringFailedError: If a sandbox does not start, or the tests come to no verdict: they loop, end their process,
            or say something else than a verdict.
    """
    if isinstance(tests, list) and tests and isinstance(tests[0], Mapping):
        return await _run_examples(code, cast("Sequence[Mapping[str, Any]]", tests), mode, limits, wall_s)
    verdict = await _run_asserts(code, _text_of(tests), mode, limits, wall_s, entry)
    return "" if verdict.passed else verdict.note or "a test failed"


async def _run_asserts(code: str, tests: str, mode: Mode, limits: Limits, wall_s: float, entry: str | None) -> Verdict:
    said = bytearray()
    ours, theirs = socket.socketpair()
    with ours, theirs:
        # They look at the clock themselves: a program that keeps them busy past its time has failed.
        cpu_s = limits.cpu_s + round(GRACE_S)
        roomy = replace(limits, cpu_s=cpu_s, memory_mb=max(limits.memory_mb, _TESTS_MEMORY_MB))
        commands = [
            sandboxed(mode, script, arguments, limits=most, modules=[EXCHANGE], share=[end.fileno()])
            for script, arguments, most, end in (
                (TESTS, [str(ours.fileno()), *installed()], roomy, ours),
                (PROGRAM, [str(theirs.fileno())], limits, theirs),
            )
        ]
        async with running(*commands, longest=_LONGEST_VERDICT) as (tester, program):
            # Each sandbox has its end now; with ours closed, one notices when the other has ended.
            ours.close()
            theirs.close()
            try:
                async with asyncio.timeout(wall_s + GRACE_S):
                    await program.send(marshal.dumps({"mode": "functions", "code": code}))
                    await tester.send(marshal.dumps({"id": 1, "tests": tests, "entry": entry, "wall_s": wall_s}))
                    await tester.rest(_LONGEST_VERDICT, into=said)
                    status = 0 if said else await tester.status()
            except TimeoutError:
                raise ScoringFailedError(f"the tests came to no verdict within {wall_s:g} s") from None
    if not said:
        raise ScoringFailedError(f"the tests ended their process, or went beyond its limits (status {status})")
    verdict, _ = read_answer(bytes(said), 1, Verdict, who="the tests")
    return verdict


@dataclass(frozen=True, slots=True)
class _Ran:
    """What a program wrote, how it ended (status None: it was stopped), and the seconds it took."""

    out: bytes
    status: int | None
    seconds: float


async def _ran(
    request: dict[str, Any], mode: Mode, limits: Limits, *, wall_s: float, most: int, reads: int | None = None
) -> _Ran:
    """Run one program in a sandbox until it ends, its time is over, or it has written more than ``most`` bytes.

    It reads the file that is open as ``reads``, or nothing.
    """
    out, status = bytearray(), None
    shared = [] if reads is None else [reads]
    command = sandboxed(mode, PROGRAM, list(map(str, shared)), limits=limits, modules=[EXCHANGE], share=shared)
    async with running(command, longest=_LONGEST_LINE) as (program,):
        began = time.monotonic()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(wall_s):
                await program.send(marshal.dumps(request))
                await program.rest(most, into=out)
                if len(out) <= most:
                    status = await program.status()
        seconds = time.monotonic() - began
    return _Ran(bytes(out), status, seconds)


async def _run_examples(
    code: str, examples: Sequence[Mapping[str, Any]], mode: Mode, limits: Limits, wall_s: float
) -> str:
    left = wall_s
    for number, example in enumerate(examples, 1):
        request = {"mode": "program", "code": code}
        with _input(str(example.get("input", ""))) as reads:
            ran = await _ran(request, mode, limits, wall_s=max(0.0, left), most=_LONGEST_OUTPUT, reads=reads)
        left -= ran.seconds
        if len(ran.out) > _LONGEST_OUTPUT:
            return f"example {number}: too much output"
        if ran.status is None:
            return f"example {number}: no answer in time"
        if ran.status != 0:
            return f"example {number}: the program ended with status {ran.status}"
        if not same_output(ran.out.decode(errors="replace"), str(example["output"])):
            return f"example {number}: another output than expected"
    return ""


@contextlib.contextmanager
def _input(text: str) -> Generator[int]:
    """A file that holds a text, open to be read and no more: whoever is given it can change nothing."""
    with tempfile.NamedTemporaryFile() as file:
        file.write(text.encode(errors="surrogatepass"))
        file.flush()
        reads = os.open(file.name, os.O_RDONLY)
    try:
        yield reads
    finally:
        os.close(reads)


def same_output(printed: str, expected: str) -> bool:
    """Whether a program printed what was expected, word by word.

    White space separates words and counts for nothing else. Where a number is expected with a decimal point or an
    exponent, any number that differs from it by at most 1e-6, or by that share of it, will do; everything else must be
    equal to the letter.
    """
    said, wanted = printed.split(), expected.split()
    return len(said) == len(wanted) and all(map(_same_word, said, wanted))


def _same_word(said: str, wanted: str) -> bool:
    if said == wanted:
        return True
    if _DECIMAL.fullmatch(wanted) is None or _NUMBER.fullmatch(said) is None:
        return False
    return math.isclose(float(said), float(wanted), rel_tol=_DECIMALS, abs_tol=_DECIMALS)


@dataclass(frozen=True, slots=True)
class Output:
    """What is shown of a program's output, never empty, and whether it was stopped or ended with an error."""

    text: str
    failed: bool


def program_in(reply: str) -> str | None:
    """The last block of a reply that is marked as Python and closed, or None: then the reply is an answer."""
    blocks = [block for block in blocks_in(after_thinking(reply)) if block.is_python and block.closed]
    return blocks[-1].text if blocks else None


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
    request = {"mode": "interpreter", "code": code, "seed": seed}
    ran = await _ran(request, mode, limits, wall_s=wall_s, most=_BYTES * most)
    text, notes = shown(ran.out.decode(errors="replace").replace("\r\n", "\n").rstrip()), list[str]()
    if len(ran.out) > _BYTES * most:
        notes = ["stopped: it prints too much"]
    elif ran.status is None:
        notes = [f"stopped after {wall_s:g} s"]
    elif not text:
        notes = [f"ended with status {ran.status}" if ran.status else "nothing was printed"]
    if len(text) > most:
        # The end of a long output often says what went wrong.
        text, notes = f"{text[: most - most // 2]}\n[cut]\n{text[len(text) - most // 2 :]}", []
    return Output("\n".join([*([text] if text else []), *(f"[{note}]" for note in notes)]), ran.status != 0)
