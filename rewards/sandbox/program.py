# pyright: basic
# Reason: it runs alone in the sandbox, as a script, and handles whatever a model wrote.
"""Runs a model's program inside the sandbox. Standard library only.

``program.py [DESCRIPTOR]``: first it says that it is ready, then a marshalled dict on standard input says what to
do. ``program`` runs the code as a script that reads the file DESCRIPTOR as its standard input; ``interpreter`` runs it
for whoever reads what it prints, errors included; ``functions`` runs it and then answers requests on the socket
DESCRIPTOR. At the other end of that are the tests, in a sandbox of their own (`sandbox.row_tests`, `sandbox.exchange`).
Whatever this process claims, it cannot know what the tests expect, nor reach the process that compares. It starts for
every sample, so that what takes long to import is not imported unless it is needed.
"""

import builtins
import contextlib
import marshal
import os
import sys
from _json import encode_basestring_ascii
from _thread import RLock

import exchange


def module(name):
    """A new module of that name: dataclasses, pickle and type hints look up where a class was defined."""
    sys.modules[name] = made = type(sys)(name)
    made.__builtins__ = builtins
    return made.__dict__


def add_exit():
    """The two names that Python adds for people, and that programs use."""
    from _sitebuiltins import Quitter

    builtins.exit, builtins.quit = Quitter("exit", "end of file"), Quitter("quit", "end of file")


def run(code, name, shown="solution.py"):
    """Run the code as the module of that name, and return its names."""
    names = module(name)
    exec(compile(code, shown, "exec"), names)  # this is what the sandbox is for
    return names


def interpret(code, seed):
    """Run a program as a person would read it: all it prints, and for an error the traceback through its own lines."""
    import linecache
    import random
    import traceback

    os.dup2(1, 2)
    random.seed(seed)
    name = "program.py"
    linecache.cache[name] = (len(code), None, code.splitlines(keepends=True), name)
    try:
        run(code, "__main__", name)
    except SystemExit:
        raise
    except BaseException as error:
        sys.stdout.flush()
        shown = traceback.TracebackException.from_exception(error)
        shown.stack = traceback.StackSummary.from_list([f for f in shown.stack if f.filename == name])
        print("".join(shown.format()), end="", file=sys.stderr)
        sys.exit(1)


def lend(code, channel):
    """Answer the tests' requests, with no other way out: what the program prints goes nowhere."""
    nothing = os.open(os.devnull, os.O_RDWR)
    for standard in (0, 1, 2):
        os.dup2(nothing, standard)
    names = module("solution")
    tests = Tests(channel, names)
    try:
        with contextlib.suppress(SystemExit):  # it has come to its end: its names are those it has by now
            exec(compile(code, "solution.py", "exec"), names)  # this is what the sandbox is for
    except BaseException as error:
        tests.send(["error", *tests.described(error, exchange.Table(tests)), []])
        return
    tests.send(["names", [[name, origin(name, value)] for name, value in list(names.items()) if name[:2] != "__"]])
    while True:
        tests.serve(tests.receive()[1:])


def origin(name, value):
    """The module that a function or class was imported from, or an empty text."""
    found = getattr(value, "__module__", None)
    return found if isinstance(found, str) and getattr(value, "__name__", None) == name else ""


class Tests(exchange.Peer):
    """The tests at the other end of a socket, which may ask for everything here."""

    reported = BaseException

    def __init__(self, channel, names):
        """Hear them on that channel; the program's names are those."""
        super().__init__()
        self.channel = channel
        self.names = names
        self.requests = os.fdopen(channel, "rb")
        self.lock = RLock()

    def ask(self, operation, target, args=(), kwargs=None):
        """Have one thing done there, for one thread at a time."""
        with self.lock:
            return super().ask(operation, target, args, kwargs)

    def send(self, message):
        """Pass one message on, as JSON."""
        text = written(message)
        if len(text) > exchange.LONGEST:
            raise ValueError("the result is too large")
        data = memoryview(text.encode() + b"\n")
        while data:
            data = data[os.write(self.channel, data) :]

    def receive(self):
        """The next message; without one there is nothing left to do."""
        size = self.requests.read(8)
        if len(size) < 8:
            os._exit(0)
        return marshal.loads(self.requests.read(int.from_bytes(size, "little")))

    def lend(self, value, table, depth):
        """A handle as it crosses, with the value of the built-in type its class is made from, if that never changes."""
        if isinstance(value, exchange.Handle):
            return ["y", value._number]
        if isinstance(value, type) and issubclass(value, BaseException):
            return ["e", *line_of(self, value)]
        base = None if isinstance(value, type) else exchange.base_of(value)
        if base is None:
            return ["o", self.number_of(value), "coroutine" if type(value).__name__ == "coroutine" else "", None]
        if base in (list, dict, set, bytearray):
            return ["o", self.number_of(value), "content", None]
        return ["o", self.number_of(value), "value", table.pack(exchange.bare(value), depth + 1)]

    def error(self, table, parts):
        """The error that a function of the tests raised."""
        name, text = parts
        found = getattr(builtins, name, None)
        return found(text) if isinstance(found, type) and issubclass(found, Exception) else RuntimeError(text)

    def described(self, error, table):
        """An error as it crosses: its kind, itself, its arguments and its text."""
        try:
            args = table.pack(error.args)
        except Exception:  # an argument of the program's own class can raise anything while it is looked at
            args = ["t", [str(error)[:300]]]
        return [line_of(self, type(error)), self.number_of(error), args, str(error)[:300]]

    def do(self, operation, target, args, kwargs):
        """Do what the tests ask for."""
        if operation == "name":
            return self.names[args[0]]
        if operation == "call":
            return target(*args, **kwargs)
        if operation in ("isinstance", "issubclass"):
            return exchange.READINGS[operation](*args)
        known = {**exchange.READINGS, **OPERATIONS}
        if operation in known:
            return known[operation](target, *args)
        import operator

        return getattr(operator, operation)(target, *args)


def written(node):
    """A message as JSON: lists, text, numbers, true, false and null."""
    if isinstance(node, list):
        return "[" + ",".join(map(written, node)) + "]"
    if node is None or node is True or node is False:
        return {None: "null", True: "true", False: "false"}[node]
    return encode_basestring_ascii(node) if isinstance(node, str) else repr(node)


def line_of(tests, kind):
    """A kind of error: the built-in one it is made from, its module and name if it is Python's, and its own classes."""
    base = next(c for c in kind.__mro__ if c.__module__ == "builtins")
    own = [[c.__name__, tests.number_of(c)] for c in kind.__mro__ if issubclass(c, base) and c is not base]
    place = [kind.__module__, kind.__qualname__] if kind.__module__.split(".")[0] in sys.stdlib_module_names else None
    return [base.__name__, place, own]


def _next(target):
    """The next item, in a list, or an empty list."""
    try:
        return [next(target)]
    except StopIteration:
        return []


def _await(target):
    """What a coroutine comes to."""
    import asyncio

    return asyncio.run(target)


def _copied(target, name):
    import copy

    return getattr(copy, name)(target)


OPERATIONS = {
    "content": exchange.bare,
    "get": getattr,
    "set": setattr,
    "next": _next,
    "await": _await,
    "copy": lambda target: _copied(target, "copy"),
    "deepcopy": lambda target: _copied(target, "deepcopy"),
    "enter": lambda target: type(target).__enter__(target),
    "exit": lambda target, *error: type(target).__exit__(target, *(error if len(error) == 3 else _error(error[0]))),
    "contains": lambda target, item: item in target,
}


def _error(name):
    """A plain error of that name, as a context manager is told of it."""
    kind = getattr(builtins, name, RuntimeError)
    return kind, kind(), None


def main():
    """Read the first line and do what it says."""
    os.write(1, b'{"ready": true}\n')
    with os.fdopen(os.dup(0), "rb") as requests:
        first = marshal.load(requests)
    add_exit()
    if first["mode"] == "functions":
        lend(first["code"], int(sys.argv[1]))
        return
    # What the program may read is a file of its own: the channel of requests is not its to read.
    os.dup2(int(sys.argv[1]) if len(sys.argv) > 1 else os.open(os.devnull, os.O_RDONLY), 0)
    sys.stdin = sys.__stdin__ = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115
    sys.argv = ["solution.py"]
    if first["mode"] == "interpreter":
        interpret(first["code"], first["seed"])
        return
    run(first["code"], "__main__")


if __name__ == "__main__":
    main()
