# pyright: basic
# Reason: it runs alone in the sandbox, as a script, and handles whatever a user wrote.
"""Runs a custom reward inside the sandbox: ``sandbox_custom.py REWARD_FILE``. Standard library only.

First it says whether the file can be used, then it answers one JSON line with one. What the file prints goes nowhere.
"""

import inspect
import json
import math
import os
import sys
import traceback


def load(path):
    """The reward function of a file, checked.

    Raises:
        ValueError: With what is wrong with it.
    """
    with open(path, encoding="utf-8") as file:  # noqa: PTH123
        source = file.read()
    names = {"__name__": "reward"}
    try:
        exec(compile(source, path, "exec"), names)
    except SyntaxError as error:
        raise ValueError(f"line {error.lineno}: {error.msg}") from error
    except BaseException as error:
        raise ValueError(f"it fails when it is loaded: {where(error)}{type(error).__name__}: {error}") from error
    function = names.get("reward")
    if not callable(function):
        raise ValueError("there is no function named reward")
    try:
        inspect.signature(function).bind("prompt", "response", {})
    except TypeError as error:
        raise ValueError(f"reward must take (prompt, response, row): {error}") from error
    return function


def where(error):
    """The line of the user's file at which an error came up."""
    frames = [f for f in traceback.extract_tb(error.__traceback__) if f.filename == sys.argv[1]]
    return f"line {frames[-1].lineno}: " if frames else ""


def number(value, name):
    """A finite number.

    Raises:
        ValueError: If it is none.
    """
    if isinstance(value, bool):
        return float(value)
    if not isinstance(value, (int, float)):
        raise ValueError(f"{name} is {type(value).__name__} ({str(value)[:60]!r}), and a number is needed")
    if not math.isfinite(value):
        raise ValueError(f"{name} is {value}, and a finite number is needed")
    return float(value)


def checked(value):
    """What a reward returned, as a score and its parts."""
    if isinstance(value, dict):
        if "reward" not in value:
            raise ValueError('the dict it returned has no "reward"')
        parts = {str(k): number(v, str(k)) for k, v in value.items() if isinstance(v, (int, float)) and k != "reward"}
        return {"score": number(value["reward"], "reward"), "parts": parts}
    return {"score": number(value, "what it returned"), "parts": {}}


def main():
    """Load the file, then answer until there is nothing more to read."""
    requests = os.fdopen(os.dup(0), "r", encoding="utf-8")
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    nothing = os.open(os.devnull, os.O_RDWR)
    os.dup2(nothing, 0)
    os.dup2(nothing, 1)
    os.dup2(nothing, 2)

    def reply(answer):
        out.write(json.dumps(answer) + "\n")
        out.flush()

    try:
        function = load(sys.argv[1])
    except ValueError as error:
        reply({"fatal": str(error)[:500]})
        return
    except OSError as error:
        reply({"fatal": error.strerror})
        return
    reply({"ready": True})
    for line in requests:
        given = json.loads(line)
        try:
            reply(checked(function(given["prompt"], given["response"], given["row"])))
        except ValueError as error:
            reply({"error": f"{where(error)}{error}"[:500]})
        except BaseException as error:
            reply({"error": f"{where(error)}{type(error).__name__}: {error}"[:500]})


if __name__ == "__main__":
    main()
