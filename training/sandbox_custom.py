# pyright: basic
# Reason: it runs alone in the sandbox, as a script, and handles whatever a user wrote.
"""Runs a user's reward or environment inside the sandbox: ``sandbox_custom.py FILE reward|environment``.

Standard library only. First it says whether the file can be used, then it answers one JSON line with one. What the
file prints goes nowhere.
"""

import inspect
import json
import math
import os
import random
import sys
import traceback

# For each kind of file: its functions, arguments to try them with, how those are named, and whether it must be there.
FUNCTIONS = {
    "reward": {"reward": (("prompt", "response", {}), "(prompt, response, row)", True)},
    "environment": {
        "step": (([], "reply", {}), "(messages, reply, row)", True),
        "reset": (({},), "(row)", False),
    },
}
STEP_KEYS = ("messages", "reward", "done", "state", "parts")
LONGEST_STATE = 1 << 20


def load(path, kind):
    """The functions of a file, checked.

    Raises:
        ValueError: With what is wrong with it.
    """
    with open(path, encoding="utf-8") as file:  # noqa: PTH123
        source = file.read()
    names = {"__name__": kind}
    try:
        exec(compile(source, path, "exec"), names)
    except SyntaxError as error:
        raise ValueError(f"line {error.lineno}: {error.msg}") from error
    except BaseException as error:
        raise ValueError(f"it fails when it is loaded: {where(error)}{type(error).__name__}: {error}") from error
    return {name: function for name in FUNCTIONS[kind] if (function := usable(names.get(name), kind, name)) is not None}


def usable(function, kind, name):
    """A function that takes what it will be given, or None where it may be missing.

    Raises:
        ValueError: If it does not, or must be there and is not.
    """
    arguments, shape, needed = FUNCTIONS[kind][name]
    if function is None and not needed:
        return None
    if not callable(function):
        raise ValueError(f"there is no function named {name}")
    given = arguments if name != "step" or not takes_state(function) else (*arguments, None)
    try:
        inspect.signature(function).bind(*given)
    except TypeError as error:
        raise ValueError(f"{name} must take {shape}: {error}") from error
    return function


def takes_state(function):
    """Whether a step wants the state as its fourth argument."""
    try:
        inspect.signature(function).bind([], "reply", {}, None)
    except TypeError:
        return False
    return True


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


def conversation(value, name):
    """Messages: text for one of the user's, or a list of them."""
    if isinstance(value, str):
        value = [{"role": "user", "content": value}]
    if not isinstance(value, (list, tuple)):
        raise ValueError(f"{name} is {type(value).__name__}, and text or a list of messages is needed")
    for i, message in enumerate(value):
        if not isinstance(message, dict) or not isinstance(message.get("content"), str) or "role" not in message:
            raise ValueError(f'{name}[{i}] must be {{"role": ..., "content": text}}; it is {str(message)[:80]}')
    return list(value)


def plain(state):
    """A state that can be sent and kept."""
    try:
        text = json.dumps(state)
    except (TypeError, ValueError) as error:
        raise ValueError(f"state cannot be kept: {error}; use numbers, text, lists and dicts") from error
    if len(text) > LONGEST_STATE:
        raise ValueError(f"state is too large ({len(text):,} characters of JSON, {LONGEST_STATE:,} at most)")
    return state


def opened(value):
    """What a reset returned: messages, or a dict of messages and a state."""
    if isinstance(value, dict):
        unknown = sorted(set(value) - {"messages", "state"})
        if unknown or "messages" not in value:
            raise ValueError(f'reset must return messages, or a dict of "messages" and "state"; it has {sorted(value)}')
        return {"messages": conversation(value["messages"], "messages"), "state": plain(value.get("state"))}
    return {"messages": conversation(value, "what reset returned"), "state": None}


def answered(value, state):
    """What a step returned."""
    if not isinstance(value, dict):
        shape = 'a dict with "messages" (or "done": True) and "reward"'
        raise ValueError(f"step must return {shape}; it returned {type(value).__name__}")
    unknown = sorted(set(map(str, value)) - set(STEP_KEYS))
    if unknown:
        raise ValueError(f"step returned the key {unknown[0]!r}; known: {', '.join(STEP_KEYS)}")
    done = value.get("done", False)
    if not isinstance(done, bool):
        raise ValueError(f"done is {type(done).__name__}, and True or False is needed")
    messages = conversation(value.get("messages") or [], "messages")
    if not done and not messages:
        raise ValueError("step returned neither messages nor done: True, so there is nothing to answer")
    if any(message["role"] == "assistant" for message in messages):
        raise ValueError("step returned an assistant's message: only the model speaks as the assistant")
    parts = value.get("parts") or {}
    if not isinstance(parts, dict):
        raise ValueError(f"parts is {type(parts).__name__}, and a dict of numbers is needed")
    return {
        "messages": messages,
        "reward": number(value.get("reward", 0.0), "reward"),
        "done": done,
        "state": plain(value.get("state", state)),
        "parts": {str(k): number(v, f"parts[{k}]") for k, v in parts.items()},
    }


def act(functions, given):
    """Do what one request asks for."""
    if "seed" in given:
        random.seed(given["seed"])
    if given["do"] == "reset":
        return opened(functions["reset"](given["row"])) if "reset" in functions else {"messages": None, "state": None}
    if given["do"] == "step":
        step, arguments = functions["step"], (given["messages"], given["reply"], given["row"])
        value = step(*arguments, given["state"]) if takes_state(step) else step(*arguments)
        return answered(value, given["state"])
    return checked(functions["reward"](given["prompt"], given["response"], given["row"]))


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
        functions = load(sys.argv[1], sys.argv[2])
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
            reply(act(functions, given))
        except ValueError as error:
            reply({"error": f"{where(error)}{error}"[:500]})
        except BaseException as error:
            reply({"error": f"{where(error)}{type(error).__name__}: {error}"[:500]})


if __name__ == "__main__":
    main()
