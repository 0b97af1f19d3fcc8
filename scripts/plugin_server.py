#!/usr/bin/env python3
"""Start the MCP server from a plugin folder or a clone, with nothing but the standard library.

    python3 scripts/plugin_server.py            run the server on stdin and stdout (what MCP clients call)
    python3 scripts/plugin_server.py --setup    make an environment for it, with all optional packages
    python3 scripts/plugin_server.py --setup --cpu      the same with a torch without CUDA: 2.1 GB instead of 6
    python3 scripts/plugin_server.py --setup --light    only the server: no training, evaluation or analysis here

It looks for a Python with `sota_ml_researcher` installed and becomes that. If there is none, it answers the client
itself: one tool that says which command to run. Installing while a client waits would run into the client's timeout.

Any Python 3 can run this file, also one that is too old for the server: annotations that it could not read are quoted.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = "sota_ml_researcher"
OLDEST, NEWEST = (3, 11), (3, 13)
# A plugin's options arrive under this prefix. Empty ones, and those a client did not fill in, are dropped: they must
# not hide a key that the user's own environment has.
OPTION_PREFIX = "ML_RESEARCHER_OPTION_"
PYTHON_VARIABLE, VENV_VARIABLE = "ML_RESEARCHER_PYTHON", "ML_RESEARCHER_VENV"
# Tells the server which version the plugin is of: an update leaves the environment as it was.
PLUGIN_VARIABLE = "ML_RESEARCHER_PLUGIN_VERSION"
_PROTOCOL = "2025-11-25"
# What a build needs is in the sources; an environment, an earlier build or the history would only be copied along.
_NOT_SOURCES = shutil.ignore_patterns(".venv", ".git", "build", "dist", "*.egg-info", "__pycache__")


def main(arguments: "list[str]") -> int:
    """Run or set up; returns the exit code."""
    parser = argparse.ArgumentParser(prog="plugin_server.py", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--setup", action="store_true", help="make an environment for the server")
    parser.add_argument("--cpu", action="store_true", help="with --setup: a torch without CUDA")
    parser.add_argument("--light", action="store_true", help="with --setup: without the optional packages")
    options, rest = parser.parse_known_args(arguments)
    for name in ("light", "cpu"):
        if getattr(options, name) and not options.setup:
            parser.error(f"--{name} goes with --setup")
    if options.setup:
        return set_up(light=options.light, cpu=options.cpu)
    environment = with_options(os.environ)
    python = find_python(environment)
    if python is None:
        return answer_without_server(environment)
    environment[PLUGIN_VARIABLE] = _version()
    command = [str(python), "-m", PACKAGE + ".server"] + (rest or ["serve"])
    if os.name == "posix":
        os.execve(python, command, environment)
    return subprocess.run(command, env=environment, check=False).returncode


def with_options(environment: "Mapping[str, str]") -> "dict[str, str]":
    """The environment with the plugin's options under the names the server reads; a key already set wins."""
    kept = {name: value for name, value in environment.items() if not name.startswith(OPTION_PREFIX)}
    for name, value in environment.items():
        if name.startswith(OPTION_PREFIX) and value and not value.startswith("${"):
            kept.setdefault(name.removeprefix(OPTION_PREFIX), value)
    return kept


def find_python(environment: "Mapping[str, str]") -> "Path | None":
    """The first interpreter that has the server installed."""
    return next((python for python in _candidates(environment) if _has_server(python)), None)


def _candidates(environment: "Mapping[str, str]") -> "Iterator[Path]":
    """Named by the user, beside this file, made by --setup, the running one, behind the command on the PATH."""
    chosen = environment.get(PYTHON_VARIABLE)
    if chosen:
        yield Path(chosen).expanduser()
    yield _python_in(ROOT / ".venv")
    yield _python_in(venv_folder(environment))
    yield Path(sys.executable)
    for folder in environment.get("PATH", "").split(os.pathsep):
        script = Path(folder) / ("ml-researcher.exe" if os.name == "nt" else "ml-researcher")
        if folder and script.is_file():
            yield script.resolve().parent / ("python.exe" if os.name == "nt" else "python")


def _has_server(python: Path) -> bool:
    """Looks at folders instead of starting an interpreter: a client waits."""
    if not python.is_file():
        return False
    if python == Path(sys.executable):
        packages = [Path(entry) for entry in sys.path if entry.endswith(("site-packages", "dist-packages"))]
    else:
        home = python.parent.parent
        packages = [*home.glob("lib/python3.*/site-packages"), home / "Lib" / "site-packages"]
    return any(next(folder.glob(f"{PACKAGE}-*.dist-info"), None) for folder in packages if folder.is_dir())


def _python_in(venv: Path) -> Path:
    return venv / "Scripts" / "python.exe" if os.name == "nt" else venv / "bin" / "python"


def venv_folder(environment: "Mapping[str, str]") -> Path:
    """Where --setup makes the environment: the user's data folder, so that a plugin update keeps it."""
    chosen = environment.get(VENV_VARIABLE)
    if chosen:
        return Path(chosen).expanduser()
    home = Path.home()
    if os.name == "nt":
        data = Path(environment.get("LOCALAPPDATA", home / "AppData" / "Local"))
    elif sys.platform == "darwin":
        data = home / "Library" / "Application Support"
    else:
        data = Path(environment.get("XDG_DATA_HOME") or home / ".local" / "share")
    return data / "ml-researcher" / "venv"


def set_up(*, light: bool, cpu: bool) -> int:
    """Make the environment and install this folder into it, showing pip's progress.

    An environment that an interruption left half-made is made anew, so running the command again always helps.
    """
    if not _fits():
        print("plugin_server.py: " + _wrong_python(), file=sys.stderr)
        return 2
    venv = venv_folder(os.environ)
    python = _python_in(venv)
    print(f"Environment: {venv}", file=sys.stderr)
    try:
        if not _has_pip(python):
            subprocess.run([sys.executable, "-m", "venv", "--clear", str(venv)], check=True)
        with tempfile.TemporaryDirectory() as folder:
            # pip builds in the tree, and a plugin's folder may be read-only.
            copy = Path(folder) / "source"
            shutil.copytree(str(ROOT), str(copy), ignore=_NOT_SOURCES)
            subprocess.run([str(python), "-m", "pip", "install", "--upgrade", str(copy)], check=True)
        if not light:
            setup = [str(python), "-m", PACKAGE + ".server", "setup"] + ["--cpu"] * cpu
            subprocess.run(setup, check=True)
    except (subprocess.CalledProcessError, OSError) as error:
        print(f"plugin_server.py: {error}; what pip said is above", file=sys.stderr)
        print("What was installed is kept: run the same command again.", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nInterrupted: run the same command again to go on.", file=sys.stderr)
        return 130
    print(
        "Ready. Restart the MCP client, or reconnect its ml-researcher server (/mcp in Claude Code).", file=sys.stderr
    )
    return 0


def _has_pip(python: Path) -> bool:
    if not python.is_file():
        return False
    ask = [str(python), "-m", "pip", "--version"]
    return subprocess.run(ask, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).returncode == 0


def _fits() -> bool:
    return OLDEST <= sys.version_info[:2] <= NEWEST


def _wrong_python() -> str:
    found = ".".join(map(str, sys.version_info[:2]))
    fitting = _fitting_python()
    hint = f"Run it with {fitting}" if fitting else "Install one of them first"
    return f"Python 3.11 to 3.13 is needed, this is {found}. {hint}"


def _fitting_python() -> "str | None":
    """The name of an interpreter that the server can run on, if one is on the PATH."""
    if os.name == "nt":
        return "py -3.12"
    if _fits():
        return "python3"
    names = (f"python{OLDEST[0]}.{minor}" for minor in range(NEWEST[1], OLDEST[1] - 1, -1))
    return next((name for name in names if shutil.which(name)), None)


def setup_command() -> str:
    """What a user has to run, with a fitting interpreter."""
    python = _fitting_python() or "python3.12"
    command = '{} "{}" --setup'.format(python, ROOT / "scripts" / "plugin_server.py")
    return command if _fitting_python() else command + " (install Python 3.11 to 3.13 first)"


def answer_without_server(environment: "Mapping[str, str]") -> int:
    """Speak just enough MCP to say what is missing, until the client closes stdin."""
    chosen = environment.get(PYTHON_VARIABLE)
    remark = f" {PYTHON_VARIABLE} is {chosen}, which has no server either." if chosen else ""
    text = (
        f"The ML researcher is not installed yet.{remark} Run this once in a terminal (6 GB with CUDA, 2.1 GB with "
        f"--cpu, 0.3 GB with --light, which only checks data and plans): {setup_command()} - "
        "then reconnect this server."
    )
    print(text, file=sys.stderr)
    for line in sys.stdin:
        try:
            request = json.loads(line)
        except ValueError:
            continue
        if isinstance(request, dict) and "id" in request and "method" in request:
            reply = dict(_reply(request, text), jsonrpc="2.0", id=request["id"])
            print(json.dumps(reply), flush=True)
    return 0


def _reply(request: "dict[str, Any]", text: str) -> "dict[str, Any]":
    method = request["method"]
    if method == "initialize":
        asked = (request.get("params") or {}).get("protocolVersion", _PROTOCOL)
        return {
            "result": {
                "protocolVersion": asked if re.fullmatch(r"2025-\d\d-\d\d", str(asked)) else _PROTOCOL,
                "capabilities": {"tools": {}},
                "serverInfo": {"name": "ml-researcher", "version": _version()},
                "instructions": text,
            }
        }
    if method == "ping":
        return {"result": {}}
    if method == "tools/list":
        about = "The ML researcher is not installed yet; this says which command the user has to run once."
        tool = {"name": "how_to_install", "description": about, "inputSchema": {"type": "object"}}
        return {"result": {"tools": [tool]}}
    if method == "tools/call":
        return {"result": {"content": [{"type": "text", "text": text}], "isError": True}}
    return {"error": {"code": -32601, "message": text}}


def _version() -> str:
    return json.loads((ROOT / "plugin.json").read_text(encoding="utf-8"))["version"]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
