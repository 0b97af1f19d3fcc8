# pyright: basic
# Reason: it runs alone in the sandbox, as a script, and handles whatever a user wrote.
"""Runs a user's reward or environment inside the sandbox: ``custom.py FILE reward|environment alone|shared``.

Standard library only. First it says whether the file can be used, then it answers JSON lines with lines of
``NUMBER again|last JSON``. Each request is answered by a child of its own, which cannot reach the channel to the
worker, this process, or the child of another request: what one row does to the file's names, or to Python, is gone with
it. ``alone`` says that all other processes here are children of this one, and that /tmp is ours: then whatever a child
leaves running is ended before the next request, and one that leaves a file was the ``last`` one of this process; so is
each one where the file keeps another file open. What the file prints goes nowhere.
"""

import contextlib
import inspect
import json
import math
import os
import random
import signal
import sys
import tempfile
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
LONGEST_REPLY = 1 << 22


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
        text = json.dumps(state, allow_nan=False)
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


def answered_by_child(functions, given, channels):
    """The answer to one request, as JSON, from a child that ends with it."""
    with tempfile.TemporaryFile() as file:
        child = os.fork()
        if child == 0:
            try:
                os.setpgid(0, 0)
                for channel in channels:
                    os.close(channel)
                file.write(tried(functions, given).encode())
                file.flush()
                os._exit(0)
            finally:
                os._exit(1)
        # It keeps its number until it is waited for, so that its process group is no other's.
        os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)
        end_group(child)
        _, status = os.waitpid(child, 0)
        reply = os.pread(file.fileno(), LONGEST_REPLY + 1, 0)
    if status != 0 or not reply:
        return json.dumps({"error": f"its process ended early (status {os.waitstatus_to_exitcode(status)})"})
    if len(reply) > LONGEST_REPLY or b"\n" in reply:
        return json.dumps({"error": "what it answers is too much, or not one answer"})
    return reply.decode(errors="replace")


def tried(functions, given):
    """What one request comes to, or why it fails, as JSON."""
    try:
        return json.dumps(act(functions, given), allow_nan=False)
    except ValueError as error:
        return refusal(f"{where(error)}{error}")
    except BaseException as error:
        return refusal(f"{where(error)}{type(error).__name__}: {error}")


def refusal(reason, kind="error"):
    """Why there is no answer, as JSON; half of a surrogate pair, which cannot be passed on, becomes a question mark."""
    return json.dumps({kind: str(reason)[:500].encode(errors="replace").decode()})


def end_group(child):
    """End what a child has left in its process group."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(child, signal.SIGKILL)


def end_all():
    """End every other process of this sandbox: orphans are children of this one, so that none is missed."""
    try:
        os.kill(-1, signal.SIGKILL)
    except ProcessLookupError:
        return
    while True:
        try:
            os.waitpid(-1, 0)
        except ChildProcessError:
            return


def traces():
    """Every folder and file in /tmp, and when a file was last changed. Not what is mounted there: that is read-only."""
    top = os.lstat("/tmp")
    seen = [("", "", top.st_mode, 0, (0, 0))]
    for folder, folders, files in os.walk("/tmp"):
        for name in (*folders, *files):
            status = os.lstat(os.path.join(folder, name))  # noqa: PTH118
            changed = (0, 0) if name in folders else (status.st_size, status.st_ctime_ns)
            seen.append((folder, name, status.st_mode, status.st_ino, changed))
            if name in folders and status.st_dev != top.st_dev:
                folders.remove(name)
    return sorted(seen)


def open_files():
    """The descriptors that are open."""
    found = set()
    for number in range(64):
        with contextlib.suppress(OSError):
            os.fstat(number)
            found.add(number)
    return found


def main():
    """Load the file, then answer until there is nothing more to read."""
    path, kind, company = sys.argv[1:4]
    tempfile.gettempdir()  # finds its folder by writing to it
    requests = os.fdopen(os.dup(0), "r", encoding="utf-8")
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    nothing = os.open(os.devnull, os.O_RDWR)
    os.dup2(nothing, 0)
    os.dup2(nothing, 1)
    os.dup2(nothing, 2)

    def say(line):
        out.write(line + "\n")
        out.flush()

    own = open_files()
    try:
        functions = load(path, kind)
    except ValueError as error:
        say(refusal(error, "fatal"))
        return
    except OSError as error:
        say(json.dumps({"fatal": error.strerror}))
        return
    say(json.dumps({"ready": True}))
    before = traces() if company == "alone" else None
    # A file that the loaded one keeps open is shared by all its children, with its contents and the place in it.
    holds = open_files() != own
    for line in requests:
        given = json.loads(line)
        reply = answered_by_child(functions, given, (requests.fileno(), out.fileno()))
        again = True
        if company == "alone":
            end_all()
            again = not holds and traces() == before
        say(f"{given['id']} {'again' if again else 'last'} {reply}")
        if not again:
            return


if __name__ == "__main__":
    main()
