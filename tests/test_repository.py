"""What the repository promises about itself."""

import re
import tomllib
from pathlib import Path

import pytest

from sota_ml_researcher.tools import TOOLS

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
README = (ROOT / "README.md").read_text()
# Programs and tests are run in place; everything else with Python in it is part of the package.
IN_PLACE = {"tests", "benchmarks", "scripts", "build"}
# One idea each, and longer than the 400 lines that files are held to.
LONG = {"engine/app.py"}


def python_folders() -> set[Path]:
    files = [p.relative_to(ROOT) for p in ROOT.glob("*/**/*.py") if not p.relative_to(ROOT).parts[0].startswith(".")]
    return {path.parent for path in files if path.parts[0] not in IN_PLACE}


def test_every_folder_with_code_is_part_of_the_package() -> None:
    mapped = set(PROJECT["tool"]["setuptools"]["package-dir"].values())
    assert {str(folder) for folder in python_folders()} <= mapped
    listed = {name.removeprefix("sota_ml_researcher.") for name in PROJECT["tool"]["setuptools"]["packages"]}
    assert {name.removeprefix("sota_ml_researcher.") for name in PROJECT["tool"]["setuptools"]["package-dir"]} == listed


@pytest.mark.parametrize("folder", sorted(python_folders()), ids=str)
def test_packages_are_typed_and_their_files_short(folder: Path) -> None:
    assert (ROOT / folder / "py.typed").exists()
    lengths = {str(p.relative_to(ROOT)): len(p.read_text().splitlines()) for p in (ROOT / folder).glob("*.py")}
    assert {name for name, length in lengths.items() if length > 400} <= LONG


def test_the_readme_opens_with_the_two_commands() -> None:
    first = README.index("```")
    block = README[first : README.index("```", first + 3)]
    assert "make demo" in block and "make test" in block


def test_the_readme_names_every_tool_and_no_other() -> None:
    table = README[README.index("| tool | does |") :].split("\n\n")[0]
    rows = re.findall(r"(?m)^\| `([a-z_]+)` \|", table)
    assert rows == [spec.function.__name__ for spec in TOOLS]


def test_the_readmes_links_lead_somewhere() -> None:
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", README):
        assert (ROOT / target).exists(), target
