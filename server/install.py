"""``ml-researcher setup``: every optional package, into the environment that this command runs in."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from importlib.metadata import requires

from ..core.extras import DISTRIBUTION, PACKAGES, installer

# Where PyTorch keeps builds without CUDA; those of the package index bring 4 GB of it on Linux.
CPU_INDEX = "https://download.pytorch.org/whl/cpu"
INDEX_VARIABLE = "ML_RESEARCHER_TORCH_INDEX"


def install_extras(*, cpu: bool, dry_run: bool) -> int:
    """Install them with pip, or with uv where there is no pip; returns the installer's exit code.

    Args:
        cpu: Take a torch without CUDA.
        dry_run: Only print the commands.

    Raises:
        MissingDependencyError: If there is neither pip nor uv.
    """
    for command in install_commands(cpu=cpu):
        print(shlex.join(command), file=sys.stderr, flush=True)
        code = 0 if dry_run else subprocess.run(command, check=False).returncode
        if code:
            again = "What was installed is kept: run the same command again once the cause above is gone."
            hint = f" {INDEX_VARIABLE} names another index with CPU builds of torch." if cpu else ""
            print(f"ml-researcher: the installer ended with code {code}. {again}{hint}", file=sys.stderr)
            return code
    return 0


def install_commands(*, cpu: bool) -> list[list[str]]:
    """The commands that install the extras' requirements, as the installed release states them.

    Not ``pip install sota-ml-researcher[all]``: that could replace an editable or unpublished copy by another one.

    Raises:
        MissingDependencyError: If neither pip nor uv is there.
    """
    command = installer()
    everything = requirements()
    commands = [[*command, *everything]]
    if cpu:  # first and alone: what is installed already fits, and the other packages are not on that index
        index = os.environ.get(INDEX_VARIABLE) or CPU_INDEX
        torch = next(r for r in everything if re.match(r"torch\b", r))
        commands.insert(0, [*command, "--index-url", index, torch])
    return commands


def requirements() -> list[str]:
    """What the extras need, each once, such as ``torch<2.14,>=2.11``."""
    wanted = "|".join(PACKAGES)
    optional = [line.split(";", 1) for line in requires(DISTRIBUTION) or [] if ";" in line]
    own = [name.strip() for name, marker in optional if re.search(rf"extra\s*==\s*['\"]({wanted})['\"]", marker)]
    return list(dict.fromkeys(own))
