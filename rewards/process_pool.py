"""Scoring processes: children that answer requests over a numbered, typed channel, and are killed when they hang.

Nothing that a child sends is trusted. Its first line is ``{"ready": true}``, or says why it cannot be used. An answer
is one line, ``NUMBER again|last JSON``: the request's number, whether the process may be asked again, and an object of
the type that was asked for or ``{"error": text}``. Whatever is malformed, too long or out of turn is the failure of the
sample that was asked about, and the process is killed.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
from collections.abc import AsyncGenerator, Callable, Iterable, Mapping, Sized
from contextlib import asynccontextmanager
from typing import Annotated, Any, ClassVar, TypeVar, cast

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, JsonValue, ValidationError
from pydantic_core import from_json

from ..core.errors import ConfigError
from .sandbox.modes import Sandboxed
from .sandbox.tree_memory import exceeds

AnswerT = TypeVar("AnswerT", bound="Answer")

# How long it may take until a program is loaded: on a busy machine that is not its fault.
START_S = 60.0
# Advantages are squared in float32.
LARGEST_SCORE = 1e18
_MOST_KEYS = 64
# Between two looks at the memory of a process and all it started.
_LOOK_S = 0.05


class ScoringFailedError(Exception):
    """A check broke: an exception in a reward, or a timeout. The score is missing, which is not a wrong answer."""


class NotReadyError(ScoringFailedError):
    """A process cannot be used: its file does not load, or the sandbox does not start (``for_good`` False)."""

    def __init__(self, reason: str, *, for_good: bool) -> None:
        super().__init__(reason)
        self.for_good = for_good


class RefusedError(ScoringFailedError):
    """The process says, by the protocol, that there is no answer; ``again`` is whether it may be asked for others."""

    def __init__(self, reason: str, *, again: bool) -> None:
        super().__init__(reason)
        self.again = again


def _bounded(value: float) -> float:
    if not abs(value) <= LARGEST_SCORE:
        raise ValueError(f"{value} is not a number up to {LARGEST_SCORE:g}")
    return value


def _plain(value: JsonValue) -> JsonValue:
    json.dumps(value, allow_nan=False)
    return value


def at_most(count: int) -> BeforeValidator:
    """Refuses a larger collection before each of its items is found wrong and told of."""

    def check(value: Any) -> Any:
        if isinstance(value, Sized) and len(value) > count:
            raise ValueError(f"{len(value)} items, {count} at most")
        return value

    return BeforeValidator(check)


Number = Annotated[float, AfterValidator(_bounded)]
Parts = Annotated[dict[Annotated[str, Field(max_length=100)], Number], at_most(64)]
PlainData = Annotated[JsonValue, AfterValidator(_plain)]


class Answer(BaseModel):
    """What a process may answer; nothing is converted, and nothing else may be there."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)
    longest: ClassVar[int] = 1 << 16
    """Bytes of the line it comes in."""


class Scored(Answer):
    """One response's score."""

    score: Number
    parts: Parts = Field(default_factory=dict)
    note: Annotated[str, Field(max_length=500)] = ""


class Failed(Answer):
    """Why there is no other answer."""

    error: Annotated[str, Field(max_length=2000)]


class Slots:
    """Places that are used by one task at a time each, on whichever event loop asks."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._free: asyncio.Queue[int] | None = None
        self._owner: asyncio.AbstractEventLoop | None = None

    @asynccontextmanager
    async def take(self) -> AsyncGenerator[int]:
        """Wait for a place that is free, and have it: a number below the size."""
        loop = asyncio.get_running_loop()
        if self._free is None or self._owner is not loop:
            self._free, self._owner = asyncio.Queue(), loop
            for place in range(self._size):
                self._free.put_nowait(place)
        free = self._free
        place = await free.get()
        try:
            yield place
        finally:
            free.put_nowait(place)


class Child:
    """A running process and the channel to it: its standard input and output are one socket."""

    def __init__(
        self, process: asyncio.subprocess.Process, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self._process = process
        self._reader = reader
        self._writer = writer
        self._watch: asyncio.Task[None] | None = None

    @classmethod
    async def start(cls, command: Sandboxed, *, longest: int) -> Child:
        """Start a process; `ready` says when it can be used.

        Args:
            command: How.
            longest: Bytes of its longest line.

        Raises:
            NotReadyError: If the system does not start it.
        """
        ours, theirs = socket.socketpair()
        with theirs:
            reader, writer = await asyncio.open_unix_connection(sock=ours, limit=longest)
            try:
                process = await asyncio.create_subprocess_exec(
                    *command.argv,
                    stdin=theirs.fileno(),
                    stdout=theirs.fileno(),
                    stderr=asyncio.subprocess.DEVNULL,
                    **command.options,
                )
            except OSError as error:
                writer.close()
                raise NotReadyError(f"the process did not start: {error.strerror}", for_good=False) from None
            except BaseException:
                writer.close()
                raise
        child = cls(process, reader, writer)
        if command.memory_mb is not None:
            child._watch = asyncio.create_task(child._keep_to(command.memory_mb))
        return child

    async def _keep_to(self, limit_mb: int) -> None:
        """Kill it when it and what it started hold too much memory."""
        while self._process.returncode is None:
            await asyncio.sleep(_LOOK_S)
            if exceeds(self._process.pid, limit_mb):
                self._kill_all()

    async def ready(self) -> None:
        """Wait for its first line.

        Raises:
            NotReadyError: If it says that it cannot be used, or says nothing in good time.
        """
        said: Any = None
        try:
            async with asyncio.timeout(START_S):
                said = from_json(await self.line())
        except TimeoutError:
            problem = f"it is not loaded within {START_S:g} s: move long work out of the file's top level"
            raise NotReadyError(problem, for_good=True) from None
        except (ScoringFailedError, ValueError):
            pass
        if said == {"ready": True}:
            return
        told = cast("dict[str, object]", said) if isinstance(said, dict) else {}
        if isinstance(told.get("fatal"), str):
            raise NotReadyError(str(told["fatal"]), for_good=True)
        if isinstance(told.get("unavailable"), str):
            raise NotReadyError(f"the sandbox did not start: {told['unavailable']}", for_good=False)
        raise NotReadyError("the scoring process ended before it was ready", for_good=False)

    async def send(self, request: bytes) -> None:
        """Pass a request on.

        Raises:
            ScoringFailedError: If the process has ended.
        """
        try:
            self._writer.write(request)
            await self._writer.drain()
        except ConnectionError:
            raise ScoringFailedError("the scoring process ended") from None

    async def line(self) -> bytes:
        """Its next line.

        Raises:
            ScoringFailedError: If there is none, or it is too long.
        """
        try:
            return await self._reader.readuntil(b"\n")
        except (ConnectionError, asyncio.IncompleteReadError):
            raise ScoringFailedError("the scoring process ended") from None
        except asyncio.LimitOverrunError:
            raise ScoringFailedError("the scoring process wrote too much") from None

    async def rest(self, most: int, into: bytearray) -> None:
        """Add what it still writes to ``into``, as it comes, until it ends or has written more than ``most`` bytes."""
        with contextlib.suppress(ConnectionError):
            while len(into) <= most and (chunk := await self._reader.read(most + 1 - len(into))):
                into += chunk

    async def status(self) -> int:
        """Wait for its end; its exit status as a shell would give it."""
        code = await self._process.wait()
        return code if code >= 0 else 128 - code

    def kill(self) -> None:
        """Kill it and what it started."""
        self._writer.close()
        if self._watch is not None:
            self._watch.cancel()
        self._kill_all()

    def _kill_all(self) -> None:
        if self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, signal.SIGKILL)


async def end(children: Iterable[Child]) -> None:
    """Kill processes, all of them before the first wait, and wait until they have ended."""
    killed = list(children)
    for child in killed:
        child.kill()
    for child in killed:
        await child.status()


@asynccontextmanager
async def running(*commands: Sandboxed, longest: int) -> AsyncGenerator[tuple[Child, ...]]:
    """Processes that are started side by side, ready, and ended afterwards.

    Args:
        commands: How to start each.
        longest: Bytes of their longest line.

    Raises:
        NotReadyError: If one cannot be used.
    """
    children: list[Child] = []
    try:
        for command in commands:
            child = await Child.start(command, longest=longest)
            children.append(child)
        for child in children:
            await child.ready()
        yield tuple(children)
    finally:
        await end(children)


def _request_line(request: Mapping[str, Any]) -> bytes:
    """A request as it is sent.

    Raises:
        ScoringFailedError: If the row holds what JSON cannot, such as a date.
    """
    try:
        return json.dumps(request).encode() + b"\n"
    except (TypeError, ValueError, RecursionError) as error:
        raise ScoringFailedError(f"the row cannot be passed on as JSON: {error}") from None


def read_answer(
    line: bytes, number: int, kind: type[AnswerT], *, who: str = "the scoring process"
) -> tuple[AnswerT, bool]:
    """An answer, and whether the process may be asked again; ``who`` gave it, for errors.

    Raises:
        ScoringFailedError: If it is an error, another request's, or anything but what was asked for.
    """
    head, _, rest = line.rstrip(b"\n").partition(b" ")
    mark, _, body = rest.partition(b" ")
    if head != b"%d" % number or mark not in (b"again", b"last"):
        raise ScoringFailedError(f"{who} gave another answer than the one asked for")
    again = mark == b"again"
    try:
        said: Any = from_json(body, allow_inf_nan=False)
        if not isinstance(said, dict) or len(cast("dict[str, Any]", said)) > _MOST_KEYS:
            raise ValueError("it is not an object of a few keys")
        if "error" in said:
            raise RefusedError(Failed.model_validate(said).error, again=again)
        return kind.model_validate(said), again
    except ValidationError as error:
        problem = error.errors(include_url=False, include_input=False)[0]
        reason = ": ".join([".".join(map(str, problem["loc"])) or "answer", problem["msg"]])
    except ValueError as error:
        reason = str(error)
    raise ScoringFailedError(f"{who} gave a malformed answer ({reason[:200]})")


class ScoringPool:
    """Children of one command, handed out one request each."""

    def __init__(self, command: Callable[[], Sandboxed], *, size: int, where: str, what: str = "reward") -> None:
        """Prepare a pool; nothing starts before the first request.

        Args:
            command: How to start a child.
            size: Most children at once.
            where: What the children run, for errors.
            what: What they are, for errors.
        """
        self._command = command
        self._where = where
        self._what = what
        self._children: list[Child | None] = [None] * size
        self._slots = Slots(size)
        self._asked = 0

    async def ask(self, request: dict[str, Any], kind: type[AnswerT], *, timeout_s: float) -> AnswerT:
        """Have one request answered.

        Raises:
            ScoringFailedError: If the child fails at it, ends, or takes longer than ``timeout_s``.
            ConfigError: If children cannot be used at all (a custom reward that does not load).
        """
        async with self._slots.take() as slot:
            again = False
            try:
                child = self._children[slot] or await self._start(slot, kind.longest)
                self._asked += 1
                number = self._asked
                sent = _request_line({"id": number, **request})
                async with asyncio.timeout(timeout_s):
                    await child.send(sent)
                    said = await child.line()
                answer, again = read_answer(said, number, kind)
            except TimeoutError:
                raise ScoringFailedError(f"no answer within {timeout_s:g} s") from None
            except RefusedError as error:
                again = error.again
                raise
            finally:
                if not again:
                    await self._end(slot)
        return answer

    async def close(self) -> None:
        """End every child, and wait for it."""
        children = [child for child in self._children if child is not None]
        self._children = [None] * len(self._children)
        await end(children)

    async def _start(self, slot: int, longest: int) -> Child:
        self._children[slot] = child = await Child.start(self._command(), longest=longest)
        try:
            await child.ready()
        except NotReadyError as error:
            if not error.for_good:
                raise
            raise ConfigError(f"this {self._what} cannot be used: {error}", where=self._where) from None
        return child

    async def _end(self, slot: int) -> None:
        child, self._children[slot] = self._children[slot], None
        if child is not None:
            await end([child])
