"""The script that a plugin folder starts the server with, run as clients run it."""

import ast
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import anyio
import pytest
from mcp import Client, StdioServerParameters

from sota_ml_researcher.server.app import build_server
from sota_ml_researcher.tools import TOOLS

LAUNCHER = Path(__file__).parents[2] / "scripts" / "plugin_server.py"


@pytest.fixture
def launcher() -> ModuleType:
    spec = importlib.util.spec_from_file_location("plugin_server", LAUNCHER)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def bare_python() -> str:
    """The interpreter that this environment was made with: it has no server installed."""
    return str(Path(sys.base_prefix) / "bin" / "python3")


def copied(tmp_path: Path) -> Path:
    """The launcher in a plugin folder without an environment."""
    (tmp_path / "scripts").mkdir()
    (tmp_path / "scripts" / LAUNCHER.name).write_bytes(LAUNCHER.read_bytes())
    (tmp_path / "plugin.json").write_bytes((LAUNCHER.parents[1] / "plugin.json").read_bytes())
    return tmp_path / "scripts" / LAUNCHER.name


def test_it_becomes_the_server_of_the_environment_it_finds() -> None:
    environment = {**os.environ, "ML_RESEARCHER_PYTHON": sys.executable}
    server = StdioServerParameters(command=bare_python(), args=[str(LAUNCHER)], env=environment)

    async def run() -> list[str]:
        async with Client(server) as client:
            return [tool.name for tool in (await client.list_tools()).tools]

    assert anyio.run(run) == [spec.function.__name__ for spec in TOOLS]


@pytest.mark.skipif(not Path(bare_python()).exists(), reason="no interpreter without the server")
def test_without_an_environment_it_says_which_command_to_run(tmp_path: Path) -> None:
    environment = {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "XDG_DATA_HOME": str(tmp_path)}
    script = copied(tmp_path)
    server = StdioServerParameters(command=bare_python(), args=["-S", str(script)], env=environment)

    async def run() -> tuple[str | None, list[str], Any]:
        async with Client(server) as client:
            listed = (await client.list_tools()).tools
            return client.instructions, [tool.name for tool in listed], await client.call_tool(listed[0].name, {})

    instructions, names, result = anyio.run(run)
    assert names == ["how_to_install"]
    assert result.is_error
    assert f'"{script}" --setup' in result.content[0].text
    assert instructions == result.content[0].text


def test_noise_and_unknown_methods_do_not_stop_the_stand_in(tmp_path: Path) -> None:
    asked = "not json\n[]\n" + "".join(
        json.dumps({"jsonrpc": "2.0", "id": n, "method": method}) + "\n" for n, method in enumerate(("ping", "x/y"))
    )
    done = subprocess.run(
        [bare_python(), "-S", str(copied(tmp_path))],
        input=asked,
        capture_output=True,
        text=True,
        env={"PATH": "", "HOME": str(tmp_path)},
        check=True,
    )
    ping, unknown = (json.loads(line) for line in done.stdout.splitlines())
    assert ping == {"jsonrpc": "2.0", "id": 0, "result": {}}
    assert unknown["error"]["code"] == -32601
    assert "--setup" in unknown["error"]["message"]


def test_options_reach_the_server_unless_empty_unfilled_or_already_set(launcher: ModuleType) -> None:
    given = {
        "ML_RESEARCHER_OPTION_TINKER_API_KEY": "from-plugin",
        "ML_RESEARCHER_OPTION_HF_TOKEN": "",
        "ML_RESEARCHER_OPTION_ANTHROPIC_API_KEY": "${user_config.anthropic_api_key}",
        "HF_TOKEN": "from-shell",
        "PATH": "/bin",
    }
    assert launcher.with_options(given) == {"TINKER_API_KEY": "from-plugin", "HF_TOKEN": "from-shell", "PATH": "/bin"}
    both = {"ML_RESEARCHER_OPTION_HF_TOKEN": "a", "HF_TOKEN": "b"}
    assert launcher.with_options(both) == {"HF_TOKEN": "b"}


def test_the_environment_lies_in_the_users_data_folder(launcher: ModuleType, tmp_path: Path) -> None:
    assert launcher.venv_folder({"XDG_DATA_HOME": str(tmp_path)}).is_relative_to(tmp_path) or sys.platform != "linux"
    assert launcher.venv_folder({"ML_RESEARCHER_VENV": str(tmp_path / "v")}) == tmp_path / "v"


def test_a_python_without_the_server_is_passed_over(launcher: ModuleType, tmp_path: Path) -> None:
    python = tmp_path / "bin" / "python"
    python.parent.mkdir()
    python.touch()
    packages = tmp_path / "lib" / "python3.12" / "site-packages"
    packages.mkdir(parents=True)
    chosen = {"ML_RESEARCHER_PYTHON": str(python)}
    assert launcher.find_python(chosen) != python
    (packages / "sota_ml_researcher-0.1.0.dist-info").mkdir()
    assert launcher.find_python(chosen) == python


def test_setup_needs_a_fitting_python(
    launcher: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(launcher, "OLDEST", (3, 99))
    monkeypatch.setattr(launcher, "NEWEST", (3, 99))
    assert launcher.main(["--setup"]) == 2
    assert "Python 3.11 to 3.13 is needed" in capsys.readouterr().err


def test_a_python_of_any_age_can_read_it() -> None:
    ast.parse(LAUNCHER.read_text(encoding="utf-8"), feature_version=(3, 6))


def test_an_old_python_is_told_of_one_that_is_there(launcher: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launcher, "_fits", lambda: False)
    monkeypatch.setattr("shutil.which", lambda name: "/usr/bin/python3.12" if name == "python3.12" else None)
    assert launcher.setup_command().startswith("python3.12 ")
    monkeypatch.setattr("shutil.which", lambda name: None)
    assert launcher.setup_command().endswith("(install Python 3.11 to 3.13 first)")


class Commands(list[list[str]]):
    """Stands in for `subprocess.run`: notes each command; a new environment has pip."""

    def __call__(self, command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        self.append(command)
        if "venv" in command:
            python = Path(command[-1]) / "bin" / "python"
            python.parent.mkdir(parents=True, exist_ok=True)
            python.touch()
        return subprocess.CompletedProcess(command, 0 if "--version" not in command else self.pip)

    pip = 0


@pytest.mark.parametrize("pip", [0, 1], ids=["whole", "left without pip by an interruption"])
def test_setup_goes_on_where_an_interruption_left_it(
    launcher: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pip: int
) -> None:
    monkeypatch.setenv("ML_RESEARCHER_VENV", str(tmp_path / "venv"))
    commands = Commands()
    commands.pip = pip
    monkeypatch.setattr(launcher.subprocess, "run", commands)
    for _ in range(2):
        assert launcher.main(["--setup", "--cpu"]) == 0
    made = [command for command in commands if "venv" in command]
    assert len(made) == 1 + pip
    assert "--clear" in made[0]
    source = next(Path(command[-1]) for command in commands if "--upgrade" in command)
    assert LAUNCHER.parents[1] not in source.parents  # its folder may be read-only
    assert commands[-1][-3:] == ["sota_ml_researcher.server", "setup", "--cpu"]


def test_after_an_update_of_the_plugin_the_old_server_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "--setup" not in (build_server().instructions or "")
    monkeypatch.setenv("ML_RESEARCHER_PLUGIN_VERSION", "9.9.9")
    assert "its plugin of 9.9.9" in (build_server().instructions or "")
