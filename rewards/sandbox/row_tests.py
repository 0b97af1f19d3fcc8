# pyright: basic
# Reason: it runs alone in the sandbox, as a script, and runs whatever stands in a data file.
"""Runs a row's tests inside the sandbox, on a program in another one: ``row_tests.py CHANNEL [FOLDER ...]``.

First it says that it is ready, then a marshalled dict on standard input holds the tests. The program answers calls on
the file descriptor CHANNEL (`sandbox.program`). The last word is one line on standard output,
``NUMBER last {"passed": bool, "note": text}``, or ``{"error": text}`` where the tests came to no verdict. Tests may
import what is installed in the FOLDERs. It starts for every sample: a row's tests cannot change how another one is
scored, and what takes long to import is not imported unless it is needed.
"""

import ast
import builtins
import marshal
import os
import select
import signal
import sys
import time

LONGEST = 1 << 20
# An answer of the program's as it is sent: its text, escaped.
LONGEST_LINE = LONGEST + (1 << 18)
PASSED = '{"passed": true, "note": ""}'
TOO_LATE = {"error": "the tests did not end in time"}
# Ends an iteration quietly where it is raised: a program may not do that to the tests.
ENDS_QUIETLY = (StopIteration, StopAsyncIteration, GeneratorExit)


class ProgramFailedError(Exception):
    """The program did not do what was asked, or said nothing in time."""


class LateError(BaseException):
    """The tests' time is over, and it is not the program they wait for."""


class Program:
    """The program in its sandbox, answering calls."""

    def __init__(self, channel, deadline):
        os.set_blocking(channel, False)
        self.channel = channel
        self.deadline = deadline
        self.buffer = b""
        self.names = []
        self.asked = False
        self.over = False

    def start(self):
        """Let it run its own text."""
        # It says itself what it defines: no name of Python's, such as __all__, is taken from it.
        self.names = [name for name in self.exchange(None)["names"] if name.isidentifier() and name[:2] != "__"]

    def ask(self, **request):
        """Have one thing done, and get plain data or a handle back."""
        answer = self.exchange(request)["value"]
        if "handle" in answer:
            return Handle(self, {"handle": answer["handle"]})
        return float(answer["float"]) if "float" in answer else answer["plain"]

    def exchange(self, request):
        """Its answer to a request. Whatever happens meanwhile is its doing, also when reading the answer takes long."""
        self.asked = True
        try:
            if request is not None:
                self.send(repr(request).encode() + b"\n")
            answer = self.answer()
            if "plain" in answer.get("value", ()):
                answer["value"]["plain"] = ast.literal_eval(answer["value"]["plain"])
            return answer
        finally:
            # Python sees the alarm only after it has read the answer: that time is the program's all the same.
            if time.monotonic() >= self.deadline:
                self.over = True
                raise ProgramFailedError("no answer in time")
            self.asked = False

    def late(self, *_):
        """The time is over: for the program, if it is asked for something, else for the tests. It is over once."""
        if self.over:
            return
        self.over = True
        if self.asked:
            raise ProgramFailedError("no answer in time")
        raise LateError

    def lent(self, name):
        """A function or class as a handle, anything plain as it is."""
        value = self.ask(do="value", name=name)
        return Handle(self, {"name": name}) if isinstance(value, Handle) else value

    def encode(self, value):
        """An argument as it crosses."""
        if isinstance(value, Handle):
            return {"handle": object.__getattribute__(value, "_place").get("handle")}
        if isinstance(value, float) and (value != value or value in (float("inf"), float("-inf"))):
            return {"float": repr(value)}
        text = repr(value)
        ast.literal_eval(text)
        return {"plain": text}

    def send(self, data):
        """Pass a request on, waiting no longer than the deadline."""
        while data:
            self.wait(select.POLLOUT)
            try:
                data = data[os.write(self.channel, data) :]
            except BlockingIOError:
                continue
            except OSError:
                raise ProgramFailedError("the program ended early") from None

    def answer(self):
        """Its next answer."""
        while b"\n" not in self.buffer:
            self.wait(select.POLLIN)
            try:
                chunk = os.read(self.channel, 65536)
            except ConnectionError:
                chunk = b""
            if not chunk:
                raise ProgramFailedError("the program ended early")
            self.buffer += chunk
            if len(self.buffer) > LONGEST_LINE:
                raise ProgramFailedError("it answers too much")
        line, self.buffer = self.buffer.split(b"\n", 1)
        answer = ast.literal_eval(line.decode())
        if "error" in answer:
            kind = getattr(builtins, str(answer["error"]), ProgramFailedError)
            known = isinstance(kind, type) and issubclass(kind, Exception)
            if not known or issubclass(kind, (UnicodeError, *ENDS_QUIETLY)) or type(answer["message"]) is not str:
                kind = ProgramFailedError
            raise kind(str(answer["message"])[:300])
        return answer

    def wait(self, event):
        """Wait until the channel can be used."""
        poll = select.poll()
        poll.register(self.channel, event)
        if not poll.poll(1000 * max(0.0, self.deadline - time.monotonic())):
            self.over = True
            raise ProgramFailedError("no answer in time")


class Handle:
    """Something of the program's that is not plain data: it can be called and looked into, and equals only itself."""

    def __init__(self, program, place):
        self._program = program
        self._place = place

    def __call__(self, *args, **kwargs):
        """Call it in the program's process."""
        program = self._program
        given = {"args": [program.encode(a) for a in args], "kwargs": {k: program.encode(v) for k, v in kwargs.items()}}
        return program.ask(do="call", **self._place, **given)

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return self._program.ask(do="attribute", key=name, **self._place)

    def __getitem__(self, key):
        return self._program.ask(do="item", key=self._program.encode(key), **self._place)

    def __len__(self):
        return int(self._program.ask(do="length", **self._place))

    def __iter__(self):
        return iter(self._program.ask(do="list", **self._place))


class Names(dict):
    """The tests' names: their own, then Python's, then the program's."""

    def __init__(self, program):
        super().__init__({"__name__": "tests"})
        self.program = program

    def __missing__(self, name):
        if hasattr(builtins, name):
            return getattr(builtins, name)
        if name in self.program.names:
            return self.program.lent(name)
        raise NameError(f"name '{name}' is not defined")


def run(text, program, entry):
    """Run every test; raises what the first one that fails does."""
    names = Names(program)
    solution = type(sys)("solution")

    def lookup(name):
        if name not in program.names:
            raise AttributeError(name)
        return program.lent(name)

    solution.__dict__["__getattr__"] = lookup
    sys.modules["solution"] = solution
    exec(compile(text, "tests.py", "exec"), names)  # this is what the sandbox is for
    if entry is not None and "check" in names:
        names["check"](program.lent(entry))


def failed_line(text, error):
    """The line of the tests at which an assertion without a message failed."""
    number = 0
    trace = error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == "tests.py":
            number = trace.tb_lineno
        trace = trace.tb_next
    return text.split("\n")[number - 1].strip() if 0 < number <= text.count("\n") + 1 else "assertion"


def failed(note):
    """Why the program did not pass; half of a surrogate pair, which no one could pass on, becomes a question mark."""
    return {"passed": False, "note": note[:300].encode(errors="replace").decode()}


def verdict(text, program, entry):
    """What is said of the program: passed or not, and why not."""
    try:
        try:
            program.start()
            run(text, program, entry)
        finally:
            # What has happened is judged: an alarm that went off meanwhile and is heard only now changes nothing.
            program.over = True
    except AssertionError as error:
        return failed(f"a test failed: {str(error) or failed_line(text, error)}")
    except Exception as error:  # whatever a test raises is a failed test
        return failed(f"{type(error).__name__}: {error}")
    except LateError:
        return TOO_LATE
    except SystemExit as error:
        return {"error": f"the tests called exit({str(error)[:60]}) before their end"}
    except BaseException as error:
        return {"error": f"the tests ended with {type(error).__name__}"}
    return PASSED


def main():
    """Read the tests, run them, and say what came of it."""
    reply, own = os.dup(1), os.getpid()
    os.write(reply, b'{"ready": true}\n')
    with os.fdopen(os.dup(0), "rb") as requests:
        request = marshal.load(requests)
    nothing = os.open(os.devnull, os.O_RDWR)
    for standard in (0, 1, 2):
        os.dup2(nothing, standard)
    # One processor is what a test has; their threads would count as processes.
    os.environ.update({"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"})
    sys.path += sys.argv[2:]
    program = Program(int(sys.argv[1]), time.monotonic() + request["wall_s"])
    signal.signal(signal.SIGALRM, program.late)
    signal.setitimer(signal.ITIMER_REAL, request["wall_s"])
    try:
        said = verdict(request["tests"], program, request["entry"])
        signal.setitimer(signal.ITIMER_REAL, 0)
    except LateError:  # it came while a verdict was being put into words
        said = TOO_LATE
    if os.getpid() != own:  # one process answers: a fork of it may be killed before or after it would have
        os._exit(0)
    if said is not PASSED:
        import json

        said = json.dumps(said)
    os.write(reply, f"{request['id']} last {said}\n".encode())
    os._exit(0)


if __name__ == "__main__":
    main()
