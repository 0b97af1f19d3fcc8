# pyright: basic
# Reason: it runs alone in the sandbox, as a script, and handles whatever a model wrote.
"""Runs a model's program inside the sandbox and lends its functions to the tests outside. Standard library only.

One JSON line in names the mode: ``program`` runs the code as a script on the given input; ``interpreter`` runs it for
whoever reads what it prints, errors included; ``functions`` runs it and then answers calls, one JSON line each. There
only plain data crosses: text that ``ast.literal_eval`` reads. Whatever this process claims, it cannot know what the
tests expect, nor reach the process that compares.
"""

import ast
import io
import json
import linecache
import os
import random
import sys
import traceback

LONGEST = 1 << 20
MOST_ITEMS = 10_000
PLAIN = (int, float, complex, str, bytes, bool, type(None))


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
        return float(argument["float"]) if "float" in argument else ast.literal_eval(argument["plain"])

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
    os.write(1, b"ready\n")
    os.dup2(1, 2)
    sys.stdin = io.StringIO()
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
            reply({"value": lent.encode(lent.answer(json.loads(line)))})
        except BaseException as error:
            reply({"error": type(error).__name__, "message": str(error)[:300]})


def main():
    """Read the first line and do what it says."""
    requests = os.fdopen(os.dup(0), "r", encoding="utf-8")
    first = json.loads(requests.readline())
    if first["mode"] == "program":
        sys.stdin = io.StringIO(first["input"])
        exec(compile(first["code"], "solution.py", "exec"), {"__name__": "__main__"})
        return
    if first["mode"] == "interpreter":
        interpret(first["code"], first["seed"])
        return
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    nothing = os.open(os.devnull, os.O_RDWR)
    os.dup2(nothing, 0)
    os.dup2(nothing, 1)

    def reply(answer):
        out.write(json.dumps(answer) + "\n")
        out.flush()

    serve(first["code"], requests, reply)


if __name__ == "__main__":
    main()
