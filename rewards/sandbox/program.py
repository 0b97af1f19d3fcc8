# pyright: basic
# Reason: it runs alone in the sandbox, as a script, and handles whatever a model wrote.
"""Runs a model's program inside the sandbox. Standard library only.

``program.py [CHANNEL]``: first it says that it is ready, then a marshalled dict on standard input says what to
do. ``program`` runs the code as a script on the given input; ``interpreter`` runs it for whoever reads what it prints,
errors included; ``functions`` runs it and then answers calls on the file descriptor CHANNEL, one line each. At the
other end of it are the tests, in a sandbox of their own (`sandbox.row_tests`). Only plain data crosses: lines that
``ast.literal_eval`` reads. Whatever this process claims, it cannot know what the tests expect, nor reach the process
that compares. It starts for every sample, so that what takes long to import is not imported unless it is needed.
"""

import io
import marshal
import os
import sys

LONGEST = 1 << 20
MOST_ITEMS = 10_000
PLAIN = (int, float, complex, str, bytes, bool, type(None))
# What a literal may call: reading one here needs no care, since the tests of a row may do in its sandbox as they like.
LITERAL = {"__builtins__": {"set": set, "frozenset": frozenset}}


def is_plain(value, depth=0):
    """Whether a value is data through and through; subclasses are not, they can lie about themselves."""
    kind = type(value)
    if kind in PLAIN:
        return value == value and value not in (float("inf"), float("-inf")) if kind is float else True
    if depth > 50:
        return False
    if kind in (list, tuple, set, frozenset):
        return all(is_plain(item, depth + 1) for item in value)
    if kind is dict:
        return all(is_plain(k, depth + 1) and is_plain(v, depth + 1) for k, v in value.items())
    return False


class Lent:
    """The objects the tests hold a handle of."""

    def __init__(self, names):
        self.objects = {}
        self.names = names

    def encode(self, value):
        """A value as plain text, or a handle to it."""
        if type(value) is float and not is_plain(value):
            return {"float": repr(value)}
        if is_plain(value):
            text = repr(value)
            if len(text) > LONGEST:
                raise ValueError("the result is too large")
            return {"plain": text}
        self.objects[len(self.objects)] = value
        return {"handle": len(self.objects) - 1}

    def decode(self, argument):
        """The other way round."""
        if "handle" in argument:
            return self.objects[argument["handle"]]
        return float(argument["float"]) if "float" in argument else eval(argument["plain"], LITERAL)

    def answer(self, request):
        """Do what the tests ask for."""
        target = self.names[request["name"]] if "name" in request else self.objects[request["handle"]]
        operation = request["do"]
        if operation == "call":
            given = [self.decode(a) for a in request["args"]]
            return target(*given, **{k: self.decode(a) for k, a in request["kwargs"].items()})
        if operation == "attribute":
            return getattr(target, request["key"])
        if operation == "item":
            return target[self.decode(request["key"])]
        if operation == "length":
            return len(target)
        if operation == "list":
            return [item for item, _ in zip(target, range(MOST_ITEMS))]  # noqa: B905
        return target


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
        exec(compile(code, name, "exec"), {"__name__": "__main__"})  # this is what the sandbox is for
    except SystemExit:
        raise
    except BaseException as error:
        sys.stdout.flush()
        shown = traceback.TracebackException.from_exception(error)
        shown.stack = traceback.StackSummary.from_list([f for f in shown.stack if f.filename == name])
        print("".join(shown.format()), end="", file=sys.stderr)
        sys.exit(1)


def serve(code, requests, reply):
    """Run the code, then answer calls until there are no more."""
    names = {"__name__": "solution"}
    try:
        exec(compile(code, "solution.py", "exec"), names)  # this is what the sandbox is for
    except BaseException as error:
        reply({"error": type(error).__name__, "message": str(error)[:300]})
        return
    reply({"names": [name for name in names if not name.startswith("__")]})
    lent = Lent(names)
    for line in requests:
        try:
            reply({"value": lent.encode(lent.answer(eval(line, LITERAL)))})
        except BaseException as error:
            reply({"error": type(error).__name__, "message": str(error)[:300]})


def lend(code, channel):
    """Answer the tests' calls, with no other way out: what the program prints goes nowhere."""
    nothing = os.open(os.devnull, os.O_RDWR)
    for standard in (0, 1, 2):
        os.dup2(nothing, standard)
    requests = os.fdopen(channel, "r", encoding="utf-8")
    out = os.fdopen(os.dup(channel), "w", encoding="utf-8")

    def reply(answer):
        out.write(repr(answer) + "\n")
        out.flush()

    serve(code, requests, reply)


def main():
    """Read the first line and do what it says."""
    os.write(1, b'{"ready": true}\n')
    with os.fdopen(os.dup(0), "rb") as requests:
        first = marshal.load(requests)
    if first["mode"] == "functions":
        lend(first["code"], int(sys.argv[1]))
        return
    # What the program is given to read is what was sent with it: the channel of requests is not its to read.
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    sys.stdin = io.StringIO(first["input"])
    if first["mode"] == "interpreter":
        interpret(first["code"], first["seed"])
        return
    exec(compile(first["code"], "solution.py", "exec"), {"__name__": "__main__"})


if __name__ == "__main__":
    main()
