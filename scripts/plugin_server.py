#!/usr/bin/env python3
"""Start the MCP server from a plugin folder or a clone, with nothing but the standard library.

    python3 scripts/plugin_server.py            run the server on stdin and stdout (what MCP clients call)
    python3 scripts/plugin_server.py --setup    make an environment for it, training packages included
    python3 scripts/plugin_server.py --setup --light    the same without torch: no training on this machine

It looks for a Python with `sota_ml_researcher` installed and becomes that. If there is none, it answers the client
itself: one tool that says which command to run. Installing while a client waits would run into the client's timeout.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
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
_PROTOCOL = "2025-11-25"


def main(arguments: list[str]) -> int:
    """Run or set up; returns the exit code."""
    parser = argparse.ArgumentParser(prog="plugin_server.py", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--setup", action="store_true", help="make an environment for the server")
    parser.add_argument("--light", action="store_true", help="with --setup: without the training packages")
    options, rest = parser.parse_known_args(arguments)
    if options.light and not options.setup:
        parser.error("--light goes with --setup")
    if options.setup:
        return set_up(light=options.light)
    environment = with_options(os.environ)
    python = find_python(environment)
    if python is None:
        return answer_without_server(environment)
    command = [str(python), "-m", f"{PACKAGE}.server", *(rest or ["serve"])]
    if os.name == "posix":
        os.execve(python, command, environment)
    return subprocess.run(command, env=environment, check=False).returncode


def with_options(environment: Mapping[str, str]) -> dict[str, str]:
    """The environment with the plugin's options under the names the server reads; a key already set wins."""
    kept = {name: value for name, value in environment.items() if not name.startswith(OPTION_PREFIX)}
    for name, value in environment.items():
        if name.startswith(OPTION_PREFIX) and value and not value.startswith("${"):
            kept.setdefault(name.removeprefix(OPTION_PREFIX), value)
    return kept


def find_python(environment: Mapping[str, str]) -> Path | None:
    """The first interpreter that has the server installed."""
    return next((python for python in _candidates(environment) if _has_server(python)), None)


def _candidates(environment: Mapping[str, str]) -> Iterator[Path]:
    """Named by the user, beside this file, made by --setup, the running one, behind the command on the PATH."""
    if chosen := environment.get(PYTHON_VARIABLE):
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


def venv_folder(environment: Mapping[str, str]) -> Path:
    """Where --setup makes the environment: the user's data folder, so that a plugin update keeps it."""
    if chosen := environment.get(VENV_VARIABLE):
        return Path(chosen).expanduser()
    home = Path.home()
    if os.name == "nt":
        data = Path(environment.get("LOCALAPPDATA", home / "AppData" / "Local"))
    elif sys.platform == "darwin":
        data = home / "Library" / "Application Support"
    else:
        data = Path(environment.get("XDG_DATA_HOME") or home / ".local" / "share")
    return data / "ml-researcher" / "venv"


def set_up(*, light: bool) -> int:
    """Make the environment and install this folder into it, showing pip's progress."""
    if not OLDEST <= sys.version_info[:2] <= NEWEST:
        print(f"plugin_server.py: {_wrong_python()}", file=sys.stderr)
        return 2
    venv = venv_folder(os.environ)
    python = _python_in(venv)
    print(f"Environment: {venv}", file=sys.stderr)
    try:
        if not python.exists():
            subprocess.run([sys.executable, "-m", "venv", str(venv)], check=True)
        target = str(ROOT) if light else f"{ROOT}[train]"
        subprocess.run([str(python), "-m", "pip", "install", "--upgrade", target], check=True)
    except subprocess.CalledProcessError as error:
        print(f"plugin_server.py: the command failed ({error.returncode}); its message is above", file=sys.stderr)
        return 1
    print(
        "Ready. Restart the MCP client, or reconnect its ml-researcher server (/mcp in Claude Code).", file=sys.stderr
    )
    return 0


def _wrong_python() -> str:
    found = ".".join(map(str, sys.version_info[:2]))
    return f"Python 3.11 to 3.13 is needed, this is {found}. Run it with one of them, such as python3.12"


def setup_command() -> str:
    """What a user has to run, with a fitting interpreter."""
    fitting = OLDEST <= sys.version_info[:2] <= NEWEST
    python = "python3" if fitting and os.name != "nt" else "py -3.12" if os.name == "nt" else "python3.12"
    return f'{python} "{ROOT / "scripts" / "plugin_server.py"}" --setup'


def answer_without_server(environment: Mapping[str, str]) -> int:
    """Speak just enough MCP to say what is missing, until the client closes stdin."""
    chosen = environment.get(PYTHON_VARIABLE)
    remark = f" {PYTHON_VARIABLE} is {chosen}, which has no server either." if chosen else ""
    text = (
        f"The ML researcher is not installed yet.{remark} Run this once in a terminal (some GB, with torch; --light "
        f"leaves that out): {setup_command()} - then reconnect this server."
    )
    print(text, file=sys.stderr)
    for line in sys.stdin:
        try:
            request = json.loads(line)
        except ValueError:
            continue
        if isinstance(request, dict) and "id" in request and "method" in request:
            reply = {"jsonrpc": "2.0", "id": request["id"], **_reply(request, text)}
            print(json.dumps(reply), flush=True)
    return 0


def _reply(request: dict[str, Any], text: str) -> dict[str, Any]:
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
