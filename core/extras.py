"""The optional packages of this distribution: which are missing, and how they are installed."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping

from .errors import MissingDependencyError

# What is imported of each extra of pyproject.toml; the rest comes with these.
PACKAGES: Mapping[str, tuple[str, ...]] = {
    "train": ("torch", "transformers", "tinker", "tinker_cookbook", "fastapi", "datasets", "safetensors"),
    "evals": ("scipy", "statsmodels", "matplotlib", "inspect_ai"),
}
_INSTALL = {"train": "Run: ml-researcher setup", "evals": "Run: pip install 'sota-ml-researcher[evals]'"}


def missing_packages(extra: str) -> list[str]:
    """The packages of an extra that are not installed here."""
    return [name for name in PACKAGES[extra] if importlib.util.find_spec(name) is None]


def require_packages(*extras: str | None, by: str) -> None:
    """Refuse what would die at its first import.

    Raises:
        MissingDependencyError: If a package of these extras is missing; names it, and ``by`` as what needs it.
    """
    for extra in filter(None, extras):
        if missing := missing_packages(extra):
            raise MissingDependencyError(
                f"{by} needs packages that are not installed ({', '.join(missing)})", fix=_INSTALL[extra]
            )
