# pyright: basic
# Reason: it runs alone in the sandbox, as a script, and runs whatever stands in a data file.
"""Runs a row's tests inside the sandbox, on a program in another one: ``row_tests.py CHANNEL [FOLDER ...]``.

First it says that it is ready, then a marshalled dict on standard input holds the tests. The program answers requests
on the file descriptor CHANNEL (`sandbox.program`, `sandbox.exchange`). The last word is one line on standard output,
``NUMBER last {"passed": bool, "note": text}``, or ``{"error": text}`` where the tests came to no verdict. Tests may
import what is installed in the FOLDERs. It starts for every sample: a row's tests cannot change how another one is
scored, and what takes long to import is not imported unless it is needed.

Everything is compared here. A program's own objects are compared with each other by the program, as its classes say;
with anything else they are equal only by the value of the built-in type their class is made from. An object that was
given a plain value to reckon with is not asked for a number afterwards: it might know which one is expected.
"""

import builtins
import json
import marshal
import operator
import os
import select
import signal
import sys
import time
import types

import exchange

PASSED = '{"passed": true, "note": ""}'
TOO_LATE = {"error": "the tests did not end in time"}
UNUSED = (
    "the tests never use the program: call what they define, name functions test_..., or give the row entry_point for "
    "check(candidate)"
)
# Ends an iteration quietly where it is raised: a program may not do that to the tests.
ENDS_QUIETLY = (StopIteration, StopAsyncIteration, GeneratorExit)
# Names under which everyone imports a package, and modules whose functions tests use without importing them.
SHORT = {"np": "numpy", "pd": "pandas", "dt": "datetime"}
USUAL = (
    "math",
    "collections",
    "itertools",
    "functools",
    "fractions",
    "decimal",
    "datetime",
    "typing",
    "copy",
    "random",
)
USUAL += ("statistics", "string", "operator", "heapq", "bisect", "dataclasses", "enum", "io", "contextlib")
# What is for comparing is Python's, also where the program defines one of its own.
COMPARING = {"isclose": "math", "allclose": "numpy", "deepcopy": "copy", "approx": "pytest"}
# What a handle says of itself as a number.
NUMERIC = ("bool", "int", "float", "complex", "round", *exchange.UNARY)


class ProgramFailedError(Exception):
    """The program did not do what was asked, or said nothing in time."""


class ProgramExit(SystemExit):
    """The program called exit."""


class LateError(BaseException):
    """The tests' time is over, and it is not the program they wait for."""


class TestsError(Exception):
    """The tests themselves cannot be used."""


class ProgramHandle(exchange.Handle):
    """An object of the program's. It is not asked whether it equals what the tests expect."""

    __slots__ = ()

    def __eq__(self, other):
        if isinstance(other, exchange.Handle):
            if self is other or not (self._based or other._based):
                return self is other or bool(self._peer.ask("eq", self, (other,)))
            return bool(plain(self) == plain(other))
        return bool(self._based in ("value", "content") and plain(self) == other)

    def __hash__(self):
        return hash(self._value) if self._based == "value" else int(self._peer.ask("hash", self))

    def __contains__(self, item):
        if self._based in ("value", "content"):
            return item in plain(self)
        if self._used:
            return bool(self._peer.ask("contains", self, (item,)))
        return any(item is each or item == each for each in self)

    @property
    def __class__(self):
        return type(self._value) if self._based == "value" else ProgramHandle


class Coroutine(ProgramHandle):
    """A coroutine of the program's, which runs it to its end when it is first asked to go on."""

    __slots__ = ()

    def __await__(self):
        return self._peer.ask("await", self)
        yield

    def send(self, value):
        """Run it."""
        raise StopIteration(self._peer.ask("await", self))

    def __next__(self):
        return self.send(None)

    def throw(self, *error):
        """It has not begun: the error is the whole of it."""
        raise error[0]

    def close(self):
        """There is nothing to end."""


def plain(value):
    """The value that a handle stands for where its class is made from a built-in type, else the handle."""
    if not isinstance(value, exchange.Handle):
        return value
    if value._based == "content":
        return value._peer.ask("content", value)
    return value._value if value._based == "value" else value


class Program(exchange.Peer):
    """The program in its sandbox, answering requests."""

    def __init__(self, channel, deadline):
        super().__init__()
        os.set_blocking(channel, False)
        self.channel = channel
        self.deadline = deadline
        self.buffer = b""
        self.origins = {}
        self.classes = {}
        self.used = False
        self.asked = False
        self.over = False

    def start(self):
        """Let it run its own text."""
        with Waiting(self):
            tag, *parts = self.receive()
            if tag == "error":
                raise self.error(exchange.Table(self), parts[:-1])
            # It says itself what it defines: no name of Python's, such as __all__, is taken from it.
            names = {str(name): str(origin) for name, origin in parts[0]}
            self.origins = {name: origin for name, origin in names.items() if name.isidentifier() and name[:2] != "__"}

    def ask(self, operation, target, args=(), kwargs=None):
        """Have one thing done; whatever happens meanwhile is the program's doing, also reading what it answers."""
        if operation in NUMERIC and target._knows:
            raise TypeError("it was given a value to reckon with, and is no number")
        # To look a function up is not yet to use it.
        self.used = self.used or operation != "name"
        with Waiting(self):
            found = super().ask(operation, target, args, kwargs)
        self.used = self.used or not isinstance(found, exchange.Handle)
        return found

    def operate(self, name, handle, other, turned):
        """A binary operation: by value where the class is made from a built-in type, else by the program."""
        if not isinstance(other, exchange.Handle):
            own = plain(handle)
            if own is not handle or name in exchange.COMPARISONS:
                sides = (other, own) if turned else (own, other)
                return NotImplemented if own is handle else getattr(operator, name)(*sides)
        found = super().operate(name, handle, other, turned)
        if not isinstance(other, exchange.Handle):
            if not isinstance(found, exchange.Handle) or found._based:
                raise TypeError(f"{name} of an object and a value gives no object")
            found._knows = True
        return found

    def handle(self, number, based, value):
        """A new handle of one of its objects."""
        return (Coroutine if based == "coroutine" else ProgramHandle)(self, number, based, value)

    def lent(self, name):
        """What the program calls by that name."""
        return self.ask("name", None, (name,))

    def lend(self, value, table, depth):
        """Functions, iterators and objects of the tests' own classes are lent; anything else does not cross."""
        if isinstance(value, exchange.Handle):
            return ["y", value._number]
        number = next((n for n, kind in self.classes.items() if kind is value), None)
        if number is not None:
            return ["y", number]
        if not (is_function(value) or is_iterator(value) or is_own(value)):
            raise TypeError(f"a {type(value).__name__} cannot be passed to the program")
        return ["o", self.number_of(value), "", None]

    def do(self, operation, target, args, kwargs):
        """Do what the program asks for of something that was lent to it; the time is the tests' again."""
        with Waiting(self, asked=False):
            if operation == "call" and is_function(target):
                return target(*args, **kwargs)
            if operation == "iter" and (is_iterator(target) or is_own(target)):
                return iter(target)
            if operation == "next" and is_iterator(target):
                for item in target:
                    return [item]
                return []
            if operation in ("get", "set") and is_own(target) and args[0][:1] != "_":
                return (getattr if operation == "get" else setattr)(target, *args)
            if operation in exchange.READINGS and is_own(target):
                return exchange.READINGS[operation](target, *args)
            if operation in OPERATORS and is_own(target):
                return getattr(operator, operation)(target, *args)
        raise TypeError(f"{operation} is not for the program to do with a {type(target).__name__}")

    def described(self, error, table):
        """An error of the tests' own, as the program is told of it."""
        base = next(c for c in type(error).__mro__ if c.__module__ == "builtins")
        return [base.__name__, str(error)[:300]]

    def error(self, table, parts):
        """The error that the program raised. It may be anything but one that ends an iteration or the tests."""
        line, number, args, text = parts
        kind = self.error_class(*line)
        args = table.unpack(args)
        if not issubclass(kind, (Exception, SystemExit)) or issubclass(kind, ENDS_QUIETLY) or type(args) is not tuple:
            return ProgramFailedError(f"{line[0]}: {text}"[:300])
        found = kind.__new__(kind, *args)
        found.args = args
        if kind in self.classes.values():
            vars(found)["program"] = (self.held(table, number, "", None), str(text))
        return found

    def error_class(self, base, place, own):
        """A kind of error: Python's own where the tests know it, else a class that stands for the program's."""
        known = place and str(place[0]).split(".")[0] in sys.stdlib_module_names
        module = sys.modules.get(place[0]) if known else None
        found = getattr(module, place[1], None) if module else None
        if isinstance(found, type) and issubclass(found, Exception) and found.__module__ == place[0]:
            return found
        found = getattr(builtins, base, None)
        if not (isinstance(found, type) and issubclass(found, BaseException)):
            raise ProgramFailedError(f"an error of an unknown kind: {base}"[:300])
        found = ProgramExit if found is SystemExit else found
        if issubclass(found, (Exception, SystemExit)) and not issubclass(found, ENDS_QUIETLY):
            for name, number in reversed(own):
                if number not in self.classes:
                    self.classes[number] = type(str(name), (found,), dict(OF_THE_PROGRAM))
                found = self.classes[number]
        return found

    def send(self, message):
        """Pass a request on, waiting no longer than the deadline."""
        data = marshal.dumps(message)
        data = memoryview(len(data).to_bytes(8, "little") + data)
        while data:
            self.wait(select.POLLOUT)
            try:
                data = data[os.write(self.channel, data) :]
            except BlockingIOError:
                continue
            except OSError:
                raise ProgramFailedError("the program ended early") from None

    def receive(self):
        """Its next message."""
        while b"\n" not in self.buffer:
            self.wait(select.POLLIN)
            try:
                chunk = os.read(self.channel, 65536)
            except ConnectionError:
                chunk = b""
            if not chunk:
                raise ProgramFailedError("the program ended early")
            self.buffer += chunk
            if len(self.buffer) > exchange.LONGEST + 1:
                raise ProgramFailedError("it answers too much")
        line, self.buffer = self.buffer.split(b"\n", 1)
        try:
            return json.loads(line)
        except (ValueError, RecursionError):
            raise ProgramFailedError("it answers what is no answer") from None

    def late(self, *_):
        """The time is over: for the program, if it is asked for something, else for the tests. It is over once."""
        if self.over:
            return
        self.over = True
        if self.asked:
            raise ProgramFailedError("no answer in time")
        raise LateError

    def wait(self, event):
        """Wait until the channel can be used."""
        poll = select.poll()
        poll.register(self.channel, event)
        if not poll.poll(1000 * max(0.0, self.deadline - time.monotonic())):
            self.over = True
            raise ProgramFailedError("no answer in time")


class Waiting:
    """While this lasts, time that passes is the program's (or, while it waits for the tests, is not)."""

    def __init__(self, program, *, asked=True):
        """Note who is waited for."""
        self.program = program
        self.asked = asked
        self.before = program.asked

    def __enter__(self):
        self.program.asked = self.asked

    def __exit__(self, *error):
        # Python sees the alarm only after it has read an answer: that time is the program's all the same.
        if self.asked and time.monotonic() >= self.program.deadline:
            self.program.over = True
            raise ProgramFailedError("no answer in time")
        self.program.asked = self.before


def _of_program(self, name):
    if name[:2] == "__" or "program" not in vars(self):
        raise AttributeError(name)
    return getattr(self.program[0], name)


def _text_of_program(self):
    return self.program[1] if "program" in vars(self) else Exception.__str__(self)


# What a class has that stands for an error of the program's.
OF_THE_PROGRAM = {"__module__": "solution", "__getattr__": _of_program, "__str__": _text_of_program}
OPERATORS = ("getitem", "setitem", "delitem", "contains", "eq", *exchange.BINARY, *exchange.COMPARISONS)
FUNCTIONS = (types.FunctionType, types.BuiltinFunctionType, types.MethodType, types.MethodDescriptorType)


def is_function(value):
    """Whether the program may call it: a function, a method, a partial function or a class of the tests' own."""
    partial = exchange.kind(("functools", "partial"))
    own = isinstance(value, type) and value.__module__ == "tests"
    return isinstance(value, FUNCTIONS) or own or (partial is not None and type(value) is partial)


def is_iterator(value):
    """Whether the program may take items from it."""
    return hasattr(type(value), "__next__") and hasattr(type(value), "__iter__")


def is_own(value):
    """Whether it is an object of a class that the tests define."""
    return type(value).__module__ == "tests" and not isinstance(value, type)


class Names(dict):
    """The tests' names: their own, then Python's, then those of the usual modules, then the program's."""

    def __init__(self, program, text, entry):
        """Find what the tests take from modules without importing it."""
        super().__init__({"__name__": "tests", "__builtins__": builtins})
        self.program = program
        self.entry = entry
        # For each name, the attributes that the tests look up on it.
        self.looked_up = _looked_up(text)
        self.words = _words(text)

    def __missing__(self, name):
        if hasattr(builtins, name):
            return getattr(builtins, name)
        found = self.of_python(name)
        if found is not None:
            return found
        if name in self.program.origins:
            return self.program.lent(name)
        raise NameError(f"name '{name}' is not defined")

    def of_python(self, name):
        """What Python or a package has by that name, or None where the tests mean the program's.

        A module that the tests look into by names it has is the module, whatever the program calls by its name. A
        function or class is Python's where the program imported it, or where it serves to compare what the program
        gives. What the program does not have at all is missing: Python's own would pass for it.

        Raises:
            TestsError: If a package is missing that the tests mean.
        """
        if name in self.looked_up and (name in SHORT or name in sys.stdlib_module_names):
            found = imported(SHORT.get(name, name))
            if found is None:
                raise TestsError(f"the tests use {SHORT.get(name, name)}, which is not installed here")
            if all(hasattr(found, each) for each in self.looked_up[name]):
                return found
        if name == self.entry:
            return None
        if name in COMPARING and (self.words & set(self.program.origins)) - {name}:
            return getattr(imported(COMPARING[name]), name, None)
        origin = self.program.origins.get(name, "").split(".")[0]
        if origin not in sys.stdlib_module_names:
            return None
        self.program.used = True
        modules = [imported(each) for each in USUAL]
        return next((getattr(module, name) for module in modules if hasattr(module, name)), None)


def imported(name):
    """A module, or None if there is none."""
    try:
        __import__(name)
    except ImportError:
        return None
    return sys.modules[name]


def _looked_up(text):
    """By name, the attributes that are looked up on it: ``math.isclose`` gives isclose for math."""
    import re

    found = {}
    for name, attribute in re.findall(r"(?<![\w.])([A-Za-z_]\w*)\s*\.\s*([A-Za-z_]\w*)", text):
        found.setdefault(name, set()).add(attribute)
    return found


def _words(text):
    """Every name in a text."""
    import re

    return set(re.findall(r"[A-Za-z_]\w*", text))


def run(text, program, entry):
    """Run every test; raises what the first one that fails does."""
    names = Names(program, text, entry)
    tests, solution = types.ModuleType("tests"), types.ModuleType("solution")
    solution.__file__ = "solution.py"

    def lookup(name):
        if name not in program.origins:
            raise AttributeError(name)
        return program.lent(name)

    def own(name):
        if not dict.__contains__(names, name):
            raise AttributeError(name)
        return dict.__getitem__(names, name)

    solution.__dict__["__getattr__"] = lookup
    tests.__dict__["__getattr__"] = own
    sys.modules["solution"], sys.modules["tests"] = solution, tests
    exec(compiled(text), names)  # this is what the sandbox is for
    if entry is not None and "check" in names:
        names["check"](program.lent(entry))
    for test in collected(names, called=program.used):
        test()
    if not program.used:
        raise TestsError(UNUSED)


def compiled(text):
    """The tests, ready to run.

    Raises:
        TestsError: If they are not Python.
    """
    try:
        return compile(text, "tests.py", "exec")
    except (SyntaxError, ValueError) as error:
        raise TestsError(f"the tests are not Python: {error}") from None


def collected(names, *, called):
    """What pytest or unittest would run: functions and methods named test..., and test cases.

    One that takes arguments is a helper where the tests have ``called`` something of the program's by themselves.
    """
    for name, value in list(names.items()):
        if isinstance(value, types.FunctionType) and name.startswith("test") and value.__globals__ is names:
            if value.__code__.co_argcount > len(value.__defaults__ or ()):
                if called:
                    continue
                raise TestsError(f"{name} takes arguments: fixtures and parameters of pytest are not supported")
            yield value
        elif isinstance(value, type) and value.__module__ == "tests":
            case = exchange.kind(("unittest", "TestCase"))
            if case is not None and issubclass(value, case):
                yield sys.modules["unittest"].defaultTestLoader.loadTestsFromTestCase(value).debug
            elif name.startswith("Test"):
                yield from _methods(value)


def _methods(kind):
    """The test methods of a class, each on an object of its own."""

    def method(name):
        def test():
            made = kind()
            getattr(made, "setup_method", lambda: None)()
            getattr(made, name)()

        return test

    return [method(name) for name in dir(kind) if name.startswith("test")]


def failed_line(text, error):
    """The line of the tests at which an assertion without a message failed."""
    number = 0
    trace = error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == "tests.py":
            number = trace.tb_lineno
        trace = trace.tb_next
    return text.split("\n")[number - 1].strip() if 0 < number <= text.count("\n") + 1 else "assertion"


def of_the_tests(error):
    """Whether a line of the tests itself imports what is not there, rather than the program."""
    trace, place = error.__traceback__, ""
    while trace is not None:
        place = trace.tb_frame.f_code.co_filename
        trace = trace.tb_next
    return place == "tests.py" or place.startswith("<frozen importlib")


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
    except TestsError as error:
        return {"error": str(error)[:300]}
    except ModuleNotFoundError as error:
        if of_the_tests(error):
            return {"error": f"the tests import {error.name}, which is not installed here"}
        return failed(f"{type(error).__name__}: {error}")
    except AssertionError as error:
        return failed(f"a test failed: {str(error) or failed_line(text, error)}")
    except Exception as error:  # whatever a test raises is a failed test
        return failed(f"{type(error).__name__}: {error}")
    except LateError:
        return TOO_LATE
    except ProgramExit as error:
        return failed(f"the program called exit({str(error)[:60]})")
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
        said = json.dumps(said)
    os.write(reply, f"{request['id']} last {said}\n".encode())
    os._exit(0)


if __name__ == "__main__":
    main()
