"""What the repository promises about itself."""

import ast
import re
import tomllib
from pathlib import Path

import pytest
from failure_output import shorten_sections

from sota_ml_researcher.tools import TOOLS

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
README = (ROOT / "README.md").read_text()
# Programs and tests are run in place; everything else with Python in it is part of the package.
IN_PLACE = {"tests", "benchmarks", "scripts", "build", "dist"}
# A method's folder answers the same questions as its neighbours, under the same names.
SAME_IN_METHODS = {"config.py", "plan.py", "method.py"}


def product_files() -> list[Path]:
    files = [path.relative_to(ROOT) for path in ROOT.glob("*/**/*.py")]
    return [path for path in files if path.parts[0] not in IN_PLACE and not path.parts[0].startswith(".")]


def test_every_folder_with_code_is_a_typed_part_of_the_package() -> None:
    folders = {path.parent for path in product_files()}
    listed = {name.replace(".", "/") for name in PROJECT["tool"]["setuptools"]["packages"]}
    assert {f"sota_ml_researcher/{folder}" for folder in folders} | {"sota_ml_researcher"} == listed
    assert (ROOT / "py.typed").exists()  # of the root, it holds for every folder (PEP 561)


def test_a_files_name_says_which_file_it_is() -> None:
    places: dict[str, list[Path]] = {}
    for path in product_files():
        if not path.name.startswith("__") and not (path.parts[0] == "training" and path.name in SAME_IN_METHODS):
            places.setdefault(path.name, []).append(path)
    assert {name: paths for name, paths in places.items() if len(paths) > 1} == {}


def names_in(module: Path) -> set[str]:
    """What a module defines or imports at its top level."""
    names: set[str] = set()
    for node in ast.parse(module.read_text()).body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            names |= {alias.asname or alias.name for alias in node.names}
        else:
            names |= {part.id for part in ast.walk(node) if isinstance(part, ast.Name)}
    return names


def imported(file: Path) -> list[tuple[str, str]]:
    """Each ``module, name`` that a file imports from this repository, also inside functions."""
    nodes = [node for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.ImportFrom)]
    ours = [node for node in nodes if (node.module or "").startswith(("sota_ml_researcher", "benchmarks", "tests"))]
    return [(str(node.module), alias.name) for node in ours for alias in node.names]


@pytest.mark.parametrize("folder", ["benchmarks", "scripts"])
def test_what_runs_in_place_imports_only_what_there_is(folder: str) -> None:
    """No other test runs most of these files."""
    for file in (ROOT / folder).glob("*.py"):
        for module, name in imported(file):
            path = ROOT.joinpath(*module.removeprefix("sota_ml_researcher").strip(".").split("."))
            if path.is_dir():
                known = (path / name).is_dir() or (path / f"{name}.py").exists()
                assert known or name in names_in(path / "__init__.py"), f"{file.name}: {module}.{name}"
            else:
                assert name in names_in(path.with_suffix(".py")), f"{file.name}: {module}.{name}"


def test_the_readme_opens_with_the_two_commands() -> None:
    first = README.index("```")
    block = README[first : README.index("```", first + 3)]
    assert "make demo" in block and "make test" in block


def test_the_readme_names_every_tool_and_no_other() -> None:
    table = README[README.index("| tool | does |") :].split("\n\n")[0]
    rows = re.findall(r"(?m)^\| `([a-z_]+)` \|", table)
    assert rows == [spec.function.__name__ for spec in TOOLS]


def test_the_readmes_map_has_every_folder_of_the_package() -> None:
    rows = README[README.index("## Where things are") :].split("\n## ")[0]
    on_the_map = {cell for row in re.findall(r"(?m)^\| (`.*?) \|", rows) for cell in re.findall(r"`(\w+)/`", row)}
    assert on_the_map == {path.parts[0] for path in product_files() if len(path.parts) > 1}


def test_the_readmes_links_lead_somewhere() -> None:
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", README):
        assert (ROOT / target).exists(), target


def test_a_failing_test_shows_the_end_of_what_was_captured() -> None:
    log = "".join(f"line {number}\n" for number in range(3000))
    ((name, text),) = shorten_sections([("Captured log call", log)])
    assert name == "Captured log call"
    assert text.startswith("[2960 earlier lines left out]\nline 2960\n") and text.endswith("line 2999\n")
    assert shorten_sections([("Captured stdout call", "a\nb")]) == [("Captured stdout call", "a\nb")]
