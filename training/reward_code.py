"""Running a row's tests on a model's program. The tests run here, the program in a sandbox, and only data crosses.

This runs in a child of the worker, which may be killed. The program cannot see the tests, stop them early or change
what they compare: it is another process, shut in, that answers calls and nothing else.
"""

from __future__ import annotations

import ast
import builtins
import contextlib
import json
import os
import re
import select
import signal
import subprocess
import sys
import time
import traceback
import types
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from sota_ml_researcher.training.sandbox import Limits, Mode, sandboxed

_FENCE = re.compile(r"```(?:python|py|python3)?[ \t]*\n(.*?)```", re.DOTALL | re.IGNORECASE)
PROGRAM = Path(__file__).with_name("sandbox_program.py")
_LONGEST = 1 << 20


class ProgramFailedError(Exception):
    """The program did not do what was asked, or said nothing in time."""


def code_in(response: str) -> str:
    """The last fenced block of a response, or all of it where there is none."""
    blocks = _FENCE.findall(response)
    return str(blocks[-1]) if blocks else response


def run_tests(code: str, tests: Any, *, mode: Mode, limits: Limits, wall_s: float, entry: str | None = None) -> str:
    """Run every test; returns why the first one fails, or an empty text.

    Args:
        code: The model's program.
        tests: Python text with asserts (or a list of such), or a list of ``{"input", "output"}`` for a whole program.
        mode: The sandbox's.
        limits: What the program may use.
        wall_s: Seconds for all the tests together.
        entry: The function that a ``check(candidate)`` in the tests is given.
    """
    deadline = time.monotonic() + wall_s
    if isinstance(tests, list) and tests and isinstance(tests[0], Mapping):
        return _run_examples(code, cast("Sequence[Mapping[str, Any]]", tests), mode, limits, deadline)
    text = "\n".join(map(str, cast("list[Any]", tests))) if isinstance(tests, list) else str(tests)
    with _Program(code, mode, limits, deadline) as program:
        try:
            program.start()
            _run_asserts(text, program, entry)
        except AssertionError as error:
            return f"a test failed: {str(error) or _failed_line(text, error)}"[:300]
        except Exception as error:  # whatever a test raises is a failed test
            return f"{type(error).__name__}: {error}"[:300]
    return ""


def _failed_line(text: str, error: BaseException) -> str:
    """The line of the tests at which an assertion without a message failed."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename == "tests.py"]
    lines = text.splitlines()
    return lines[frames[-1].lineno - 1].strip() if frames and frames[-1].lineno else "assertion"


def _run_examples(code: str, examples: Sequence[Mapping[str, Any]], mode: Mode, limits: Limits, deadline: float) -> str:
    for number, example in enumerate(examples, 1):
        shut_in = sandboxed(mode, PROGRAM, [], limits=limits, files={})
        request = json.dumps({"mode": "program", "code": code, "input": str(example.get("input", ""))})
        starting: Any = subprocess.Popen  # its options are not known to a type checker
        with starting(
            shut_in.argv,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            **shut_in.options,
        ) as process:
            out = _communicate(process, request.encode() + b"\n", deadline)
        if out is None:
            return f"example {number}: no answer in time, or too much output"
        if process.returncode != 0:
            return f"example {number}: the program ended with status {process.returncode}"
        if out.decode(errors="replace").split() != str(example["output"]).split():
            return f"example {number}: another output than expected"
    return ""


def _communicate(process: subprocess.Popen[bytes], request: bytes, deadline: float) -> bytes | None:
    """What a program writes, or None if it takes too long or writes too much; it is killed then."""
    assert process.stdin and process.stdout
    try:
        process.stdin.write(request)
        process.stdin.close()
    except BrokenPipeError:
        pass
    found = b""
    while True:
        ready, _, _ = select.select([process.stdout], [], [], max(0.0, deadline - time.monotonic()))
        chunk = os.read(process.stdout.fileno(), 65536) if ready else None
        if chunk is None or len(found) > _LONGEST:
            end_program(process)
            return None
        if not chunk:
            break
        found += chunk
    try:
        process.wait(max(0.1, deadline - time.monotonic()))
    except subprocess.TimeoutExpired:
        end_program(process)
        return None
    return found


def end_program(process: subprocess.Popen[bytes]) -> None:
    """Kill a program and whatever it started in its session."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.kill()


class _Program:
    """A model's program in its sandbox, answering calls."""

    def __init__(self, code: str, mode: Mode, limits: Limits, deadline: float) -> None:
        self._code = code
        self._deadline = deadline
        self._buffer = b""
        shut_in = sandboxed(mode, PROGRAM, [], limits=limits, files={})
        starting: Any = subprocess.Popen  # its options are not known to a type checker
        self._process: subprocess.Popen[bytes] = starting(
            shut_in.argv,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            **shut_in.options,
        )
        self.names: list[str] = []

    def __enter__(self) -> _Program:
        return self

    def __exit__(self, *_: object) -> None:
        end_program(self._process)
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                try:
                    pipe.close()
                except BrokenPipeError:
                    continue
        self._process.wait()

    def start(self) -> None:
        """Run the program's own text."""
        self.names = list(self._exchange({"mode": "functions", "code": self._code})["names"])

    def ask(self, **request: Any) -> Any:
        """Have one thing done, and get plain data or a handle back."""
        return self._decode(self._exchange(request)["value"])

    def encode(self, value: object) -> dict[str, Any]:
        """An argument as it crosses."""
        if isinstance(value, Handle):
            return {"handle": object.__getattribute__(value, "_place").get("handle")}
        if isinstance(value, float) and (value != value or value in (float("inf"), float("-inf"))):
            return {"float": repr(value)}
        text = repr(value)
        ast.literal_eval(text)
        return {"plain": text}

    def _decode(self, answer: Mapping[str, Any]) -> Any:
        if "handle" in answer:
            return Handle(self, {"handle": answer["handle"]})
        return float(answer["float"]) if "float" in answer else ast.literal_eval(answer["plain"])

    def _exchange(self, request: Mapping[str, Any]) -> Mapping[str, Any]:
        assert self._process.stdin
        try:
            self._process.stdin.write(json.dumps(request).encode() + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise ProgramFailedError("the program ended early") from None
        answer = json.loads(self._line())
        if "error" in answer:
            kind = getattr(builtins, str(answer["error"]), ProgramFailedError)
            known = isinstance(kind, type) and issubclass(kind, Exception) and not issubclass(kind, UnicodeError)
            raise (kind if known else ProgramFailedError)(answer["message"])
        return answer

    def _line(self) -> bytes:
        assert self._process.stdout
        while b"\n" not in self._buffer:
            ready, _, _ = select.select([self._process.stdout], [], [], max(0.0, self._deadline - time.monotonic()))
            if not ready:
                raise ProgramFailedError("no answer in time")
            chunk = os.read(self._process.stdout.fileno(), 65536)
            if not chunk:
                raise ProgramFailedError("the program ended early")
            self._buffer += chunk
            if len(self._buffer) > 4 * _LONGEST:
                raise ProgramFailedError("it answers too much")
        line, self._buffer = self._buffer.split(b"\n", 1)
        return line


class Handle:
    """Something of the program's that is not plain data: it can be called and looked into, and equals only itself."""

    def __init__(self, program: _Program, place: dict[str, Any]) -> None:
        self._program = program
        self._place = place

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call it in the program's process."""
        program = self._program
        given = {"args": [program.encode(a) for a in args], "kwargs": {k: program.encode(v) for k, v in kwargs.items()}}
        return program.ask(do="call", **self._place, **given)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return self._program.ask(do="attribute", key=name, **self._place)

    def __getitem__(self, key: Any) -> Any:
        return self._program.ask(do="item", key=self._program.encode(key), **self._place)

    def __len__(self) -> int:
        return int(self._program.ask(do="length", **self._place))

    def __iter__(self) -> Any:
        return iter(self._program.ask(do="list", **self._place))


class _Names(dict[str, Any]):
    """The tests' names: their own, then Python's, then the program's."""

    def __init__(self, program: _Program) -> None:
        super().__init__({"__name__": "tests"})
        self._program = program

    def __missing__(self, name: str) -> Any:
        if hasattr(builtins, name):
            return getattr(builtins, name)
        if name in self._program.names:
            return _lent(self._program, name)
        raise NameError(f"name '{name}' is not defined")


def _lent(program: _Program, name: str) -> Any:
    """A function or class as a handle, anything plain as it is."""
    value = program.ask(do="value", name=name)
    return Handle(program, {"name": name}) if isinstance(value, Handle) else value


def _run_asserts(text: str, program: _Program, entry: str | None) -> None:
    names = _Names(program)
    solution = types.ModuleType("solution")

    def lookup(name: str) -> Any:
        if name not in program.names:
            raise AttributeError(name)
        return _lent(program, name)

    solution.__dict__["__getattr__"] = lookup
    sys.modules["solution"] = solution
    try:
        exec(compile(text, "tests.py", "exec"), names)  # the data set's own tests, in a child of the worker
        if entry is not None and "check" in names:
            names["check"](_lent(program, entry))
    finally:
        sys.modules.pop("solution", None)
