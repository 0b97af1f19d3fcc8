"""Scoring processes: some children that answer JSON lines, each killed and replaced when it takes too long."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from sota_ml_researcher.core.errors import ConfigError
from sota_ml_researcher.training.sandbox import Sandboxed

_LONGEST_LINE = 1 << 22
_START_S = 60.0


class ScoringFailedError(Exception):
    """A check that itself broke: an exception in a reward, a timeout. It is missing data, not a wrong answer."""


@dataclass(slots=True)
class _Child:
    process: asyncio.subprocess.Process | None = None


class ScoringPool:
    """Children of one command, handed out one request each."""

    def __init__(
        self, command: Callable[[], Sandboxed], *, size: int, greets: bool, where: str, what: str = "reward"
    ) -> None:
        """Prepare a pool; nothing starts before the first request.

        Args:
            command: How to start a child.
            size: Most children at once.
            greets: Whether a child's first line says that it is ready, or why it cannot be.
            where: What the children run, for errors.
            what: What they are, for errors.
        """
        self._command = command
        self._greets = greets
        self._where = where
        self._what = what
        self._children = [_Child() for _ in range(size)]
        self._killed: list[asyncio.subprocess.Process] = []
        self._free: asyncio.Queue[_Child] | None = None
        self._owner: asyncio.AbstractEventLoop | None = None

    async def ask(self, request: dict[str, Any], *, timeout_s: float) -> dict[str, Any]:
        """Have one request answered.

        Raises:
            ScoringFailedError: If the child fails at it, ends, or takes longer than ``timeout_s``.
            ConfigError: If children cannot be used at all (a custom reward that does not load).
        """
        free = self._queue()
        child = await free.get()
        try:
            process = child.process or await self._start(child)
            async with asyncio.timeout(timeout_s):
                answer = await self._exchange(process, request)
        except TimeoutError:
            self._kill(child)
            raise ScoringFailedError(f"no answer within {timeout_s:g} s") from None
        except (BrokenPipeError, ConnectionResetError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            self._kill(child)
            raise ScoringFailedError("the scoring process ended or wrote too much") from None
        except BaseException:
            self._kill(child)
            raise
        finally:
            free.put_nowait(child)
        if "error" in answer:
            raise ScoringFailedError(str(answer["error"]))
        return answer

    async def close(self) -> None:
        """End every child, and wait for it."""
        for child in self._children:
            self._kill(child)
        for process in self._killed:
            await process.communicate()
        self._killed.clear()

    def _queue(self) -> asyncio.Queue[_Child]:
        loop = asyncio.get_running_loop()
        if self._free is None or self._owner is not loop:
            self._free, self._owner = asyncio.Queue(), loop
            for child in self._children:
                self._free.put_nowait(child)
        return self._free

    async def _exchange(self, process: asyncio.subprocess.Process, request: dict[str, Any]) -> dict[str, Any]:
        assert process.stdin and process.stdout
        process.stdin.write(json.dumps(request).encode() + b"\n")
        await process.stdin.drain()
        return json.loads(await process.stdout.readuntil(b"\n"))

    async def _start(self, child: _Child) -> asyncio.subprocess.Process:
        command = self._command()
        child.process = process = await asyncio.create_subprocess_exec(
            *command.argv,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
            limit=_LONGEST_LINE,
            **command.options,
        )
        if self._greets:
            hello = await self._hello(process)
            if "fatal" in hello:
                raise ConfigError(f"this {self._what} cannot be used: {hello['fatal']}", where=self._where)
        return process

    async def _hello(self, process: asyncio.subprocess.Process) -> dict[str, Any]:
        """A child's first line.

        Raises:
            ConfigError: If it does not come in good time.
        """
        assert process.stdout
        try:
            async with asyncio.timeout(_START_S):
                return json.loads(await process.stdout.readuntil(b"\n"))
        except TimeoutError:
            problem = f"this {self._what} cannot be used: it is not loaded within {_START_S:g} s"
            raise ConfigError(problem, where=self._where, fix="Move long work out of the file's top level") from None

    def _kill(self, child: _Child) -> None:
        process, child.process = child.process, None
        if process is None:
            return
        self._killed.append(process)
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(process.pid, signal.SIGKILL)
