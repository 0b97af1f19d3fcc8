"""The optional packages: the table agrees with pyproject.toml, and the command fits the installation."""

import json
import sys
import tomllib
from pathlib import Path
from types import SimpleNamespace

import pytest

from sota_ml_researcher.core import extras
from sota_ml_researcher.server.install import install_commands, requirements

PROJECT = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]


def test_all_is_every_extra_that_a_user_needs() -> None:
    (everything,) = PROJECT["optional-dependencies"]["all"]
    assert everything == f"{PROJECT['name']}[{','.join(extras.PACKAGES)}]"


def test_setup_installs_what_the_extras_need_each_once() -> None:
    wanted = {line.split(">")[0].split("[")[0] for e in extras.PACKAGES for line in PROJECT["optional-dependencies"][e]}
    installed = [line.split(">")[0].split("<")[0].split("[")[0] for line in requirements()]
    assert sorted(wanted) == sorted(set(installed))
    assert len(requirements()) == len(set(requirements()))
    (command,) = install_commands(cpu=False)
    assert command[-len(requirements()) :] == requirements()


def test_without_cuda_torch_comes_first_and_from_its_own_index(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ML_RESEARCHER_TORCH_INDEX", "https://mirror.example/cpu")
    first, second = install_commands(cpu=True)
    assert first[-3:-1] == ["--index-url", "https://mirror.example/cpu"]
    assert first[-1].startswith("torch")
    assert [second] == install_commands(cpu=False)


@pytest.mark.parametrize(
    ("prefix", "origin", "expected"),
    [
        (
            "/home/u/.cache/uv/archive-v0/x",
            "file:///w/a.whl",
            "uvx --from 'sota-ml-researcher[all] @ file:///w/a.whl' ml",
        ),
        ("/home/u/.cache/uv/archive-v0/x", None, "uvx --from 'sota-ml-researcher[all]' ml-researcher serve"),
        ("/home/u/.local/share/uv/tools/x", None, "uv tool install --force 'sota-ml-researcher[all]'"),
        ("/home/u/.local/share/pipx/venvs/x", None, "pipx install --force 'sota-ml-researcher[all]'"),
        ("/home/u/p/.venv", None, "setup"),
    ],
)
def test_the_command_fits_the_way_it_was_installed(
    prefix: str, origin: str | None, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "prefix", prefix)
    about = json.dumps({"url": origin}) if origin else None
    monkeypatch.setattr(extras, "distribution", lambda name: SimpleNamespace(read_text=lambda file: about))
    assert expected in extras.setup_command()


def test_a_missing_package_is_named_with_who_needs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extras.importlib.util, "find_spec", lambda name: None if name == "scipy" else True)
    with pytest.raises(extras.MissingDependencyError, match=r"a job needs .* \(scipy\)\. Run once: "):
        extras.require_packages("train", None, "evals", by="a job")
