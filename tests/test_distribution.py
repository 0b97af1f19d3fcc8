"""What is shipped: every tracked file of the package's folders and nothing else, and it runs where it is installed."""

import os
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
NAME = "sota_ml_researcher"
RELEASE = f"{NAME}-{PROJECT['project']['version']}"
FOLDERS = {name.split(".")[1] for name in PROJECT["tool"]["setuptools"]["packages"] if "." in name}
BUILD = "from setuptools import build_meta as b; b.build_sdist('dist'); b.build_wheel('dist')"


def tracked_files() -> list[str]:
    """The paths under version control (new ones too), relative to the root."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return [path for path in listed.stdout.splitlines() if (ROOT / path).is_file()]


def product_files() -> set[str]:
    own = {"__init__.py", "__main__.py", "py.typed"}
    return {path for path in tracked_files() if path.split("/")[0] in {*FOLDERS, "skills"} or path in own}


def in_wheel(wheel: Path) -> set[str]:
    return set(zipfile.ZipFile(wheel).namelist())


def build(folder: Path) -> None:
    """Build the sdist and the wheel of ``folder`` into its ``dist``, without network."""
    subprocess.run([sys.executable, "-c", BUILD], cwd=folder, env=without_paths(), capture_output=True, check=True)


def without_paths() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}


@dataclass(frozen=True)
class Built:
    clone: Path
    sdist: Path
    wheel: Path


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    """Both distributions of a copy of this clone in which an earlier build left a module that is gone now."""
    clone = tmp_path_factory.mktemp("clone")
    for path in tracked_files():
        (clone / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / path, clone / path)
    stale = clone / "build" / "lib" / NAME / "core" / "gone.py"
    stale.parent.mkdir(parents=True)
    stale.write_text("")
    build(clone)
    (sdist,), (wheel,) = (clone / "dist").glob("*.tar.gz"), (clone / "dist").glob("*.whl")
    return Built(clone, sdist, wheel)


def test_the_wheel_holds_the_package_and_nothing_else(built: Built) -> None:
    about = ("licenses/LICENSE", "METADATA", "WHEEL", "entry_points.txt", "top_level.txt", "RECORD")
    expected = {f"{NAME}/{path}" for path in product_files()} | {f"{RELEASE}.dist-info/{name}" for name in about}
    assert in_wheel(built.wheel) == expected


def test_the_sdist_holds_what_a_wheel_is_built_from(built: Built, tmp_path: Path) -> None:
    with tarfile.open(built.sdist) as archive:
        listed = {member.name.removeprefix(f"{RELEASE}/") for member in archive if member.isfile()}
        archive.extractall(tmp_path, filter="data")
    assert {path for path in listed if not path.startswith(f"{NAME}.egg-info/")} == product_files() | {
        "LICENSE", "MANIFEST.in", "PKG-INFO", "README.md", "pyproject.toml", "setup.cfg", "setup.py"
    }  # fmt: skip
    unpacked = tmp_path / RELEASE
    build(unpacked)
    (wheel,) = (unpacked / "dist").glob("*.whl")
    assert in_wheel(wheel) == in_wheel(built.wheel)


def test_an_installed_wheel_runs_from_where_it_is_installed(built: Built, tmp_path: Path) -> None:
    site = tmp_path / "site"
    install = [sys.executable, "-m", "pip", "install", "-qq", "--no-deps", "--no-index", "--target", str(site)]
    subprocess.run([*install, str(built.wheel)], env=without_paths(), check=True)
    environment = without_paths() | {"PYTHONPATH": str(site)}

    def output(*command: str) -> str:
        # In a clone, whose folders must not stand in for what is installed.
        done = subprocess.run(command, cwd=built.clone, env=environment, capture_output=True, text=True, check=False)
        return done.stdout + done.stderr

    where = output(sys.executable, "-c", f"import {NAME}.core; print({NAME}.core.__file__)")
    assert Path(where.strip()) == site / NAME / "core" / "__init__.py"
    program = str(site / "bin" / "ml-researcher")
    assert PROJECT["project"]["version"] in output(program, "--version")
    assert "Traceback" not in output(program, "doctor")


def test_run_in_the_repository_no_module_is_loaded_twice() -> None:
    """Bare names such as ``data`` or ``tools`` would find our folders there, beside the package's own modules."""
    names = (f"{NAME}.server.app", f"{NAME}.jobs.worker", f"{NAME}.evals", "transformers", "tinker_cookbook.rl.train")
    script = (
        f"import {', '.join(names)}, sys\n"
        f"files = {{n: getattr(m, '__file__', None) or '' for n, m in sys.modules.items() if n != '__main__'}}\n"
        f"ours = {{n for n, f in files.items() if f.startswith({str(ROOT)!r} + '/') and 'site-packages' not in f}}\n"
        f"print([n for n in ours if n.split('.')[0] != '{NAME}'])"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
