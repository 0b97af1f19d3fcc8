"""The optional packages of this distribution: which are missing, and the command that installs them here."""

from __future__ import annotations

import importlib.util
import json
import shutil
import sys
from collections.abc import Iterable, Mapping
from importlib.metadata import distribution
from pathlib import Path

from .errors import MissingDependencyError

DISTRIBUTION = "sota-ml-researcher"
# What is imported of each extra of pyproject.toml; the rest comes with these.
PACKAGES: Mapping[str, tuple[str, ...]] = {
    "train": (
        "torch", "transformers", "tinker", "tinker_cookbook", "peft", "fastapi", "uvicorn", "datasets", "safetensors",
        "jsonschema", "math_verify", "gguf",
    ),
    "evals": ("scipy", "statsmodels", "matplotlib", "inspect_ai", "anthropic", "openai"),
    "analysis": ("matplotlib", "ruptures", "pyarrow"),
}  # fmt: skip


def missing_packages(extra: str) -> list[str]:
    """The packages of an extra that are not installed here."""
    return [name for name in PACKAGES[extra] if importlib.util.find_spec(name) is None]


def require_packages(*extras: str | None, by: str) -> None:
    """Refuse what would die at its first import.

    Raises:
        MissingDependencyError: If a package of these extras is missing; names it, and ``by`` as what needs it.
    """
    missing = dict.fromkeys(name for extra in filter(None, extras) for name in missing_packages(extra))
    if missing:
        raise not_installed(missing, by=by)


def not_installed(packages: Iterable[str], *, by: str) -> MissingDependencyError:
    """The error for missing packages: who needs them, and the one command that installs all there are."""
    return MissingDependencyError(
        f"{by} needs packages that are not installed ({', '.join(packages)})", fix=f"Run once: {setup_command()}"
    )


def setup_command() -> str:
    """The command that makes this installation a full one, fitting the way it was made.

    An environment of uvx lasts for one command, and one of pipx or uv is theirs to change: those are made anew. Any
    other is completed where it is.
    """
    place = Path(sys.prefix).as_posix()
    if "/uv/tools/" in place:
        return f"uv tool install --force '{_source()}'"
    if "/archive-v0/" in place:  # uv's cache
        return f"uvx --from '{_source()}' ml-researcher serve"
    if "/pipx/venvs/" in place:
        return f"pipx install --force '{_source()}'"
    command = shutil.which("ml-researcher")
    if command and Path(command).resolve().parent == Path(sys.executable).parent:
        return "ml-researcher setup"
    return f'"{sys.executable}" -m sota_ml_researcher.server setup'


def installer() -> list[str]:
    """The command that installs packages into this environment: pip, or uv where there is no pip.

    Raises:
        MissingDependencyError: If neither is there.
    """
    if importlib.util.find_spec("pip"):
        return [sys.executable, "-m", "pip", "install"]
    if uv := shutil.which("uv"):
        return [uv, "pip", "install", "--python", sys.executable]
    raise MissingDependencyError(
        "this environment has no pip, and there is no uv to install with", fix=f"Run: {sys.executable} -m ensurepip"
    )


def _source() -> str:
    """This distribution with all its extras, from where it was installed: a file, a folder, or the index."""
    origin = distribution(DISTRIBUTION).read_text("direct_url.json")  # PEP 610; none when it came from an index
    url = str(json.loads(origin)["url"]) if origin else ""
    return f"{DISTRIBUTION}[all] @ {url}" if url else f"{DISTRIBUTION}[all]"
