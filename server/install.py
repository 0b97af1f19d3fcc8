"""``ml-researcher setup``: the training packages, into the environment that this command runs in."""

from __future__ import annotations

import importlib.util
import re
import shlex
import shutil
import subprocess
import sys
from importlib.metadata import requires
from pathlib import Path

from ..core.errors import MissingDependencyError

_DISTRIBUTION, _EXTRA = "sota-ml-researcher", "train"


def setup_command() -> str:
    """What a user types to run this: the command's name, or the interpreter where it is not on the PATH."""
    command = shutil.which("ml-researcher")
    if command and Path(command).resolve().parent == Path(sys.executable).parent:
        return "ml-researcher setup"
    return f'"{sys.executable}" -m sota_ml_researcher.server setup'


def install_training(*, dry_run: bool) -> int:
    """Install them with pip, or with uv where there is no pip; returns the installer's exit code.

    Raises:
        MissingDependencyError: If there is neither.
    """
    command = install_command()
    print(shlex.join(command), file=sys.stderr, flush=True)
    return 0 if dry_run else subprocess.run(command, check=False).returncode


def install_command() -> list[str]:
    """The command that installs the training extra's requirements, as the installed release states them.

    Not ``pip install sota-ml-researcher[train]``: that could replace an editable or unpublished copy by another one.

    Raises:
        MissingDependencyError: If neither pip nor uv is there.
    """
    if importlib.util.find_spec("pip"):
        return [sys.executable, "-m", "pip", "install", *training_requirements()]
    if uv := shutil.which("uv"):
        return [uv, "pip", "install", "--python", sys.executable, *training_requirements()]
    raise MissingDependencyError(
        "this environment has no pip, and there is no uv to install with", fix=f"Run: {sys.executable} -m ensurepip"
    )


def training_requirements() -> list[str]:
    """The requirements of the training extra, such as ``torch<2.14,>=2.11``."""
    optional = [line.split(";", 1) for line in requires(_DISTRIBUTION) or [] if ";" in line]
    return [name.strip() for name, marker in optional if re.search(rf"extra\s*==\s*['\"]{_EXTRA}['\"]", marker)]
