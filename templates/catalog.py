"""The config templates by kind."""

from __future__ import annotations

import re
from importlib.resources import files
from pathlib import Path

from ..core.errors import ConfigError, did_you_mean
from ..core.paths import user_path

_SCHEME = "template://"


def template_kinds() -> list[str]:
    """The kinds of job that have a template."""
    return sorted(Path(entry.name).stem for entry in _folder().iterdir() if entry.name.endswith(".yaml"))


def read_template(kind: str) -> str:
    """The YAML text of a template.

    Raises:
        ConfigError: If there is no template of that kind.
    """
    if kind not in template_kinds():
        fix = did_you_mean(kind, template_kinds()) or f"There are: {', '.join(template_kinds())}"
        raise ConfigError(f"there is no template '{kind}'", fix=fix)
    return (_folder() / f"{kind}.yaml").read_text(encoding="utf-8")


def describe_template(kind: str) -> str:
    """The first sentence of a template's opening comment."""
    opening = " ".join(line.lstrip("# ") for line in read_template(kind).splitlines() if line.startswith("#"))
    return re.split(r"(?<=[.?]) ", opening, maxsplit=1)[0]


def template_path(kind: str) -> Path:
    """Where a template lies on disk."""
    read_template(kind)
    return Path(str(_folder() / f"{kind}.yaml"))


def config_file(name: str | None) -> Path | None:
    """The file that a ``config`` argument names: a path (``~`` is expanded), or ``template://KIND``; None stays None.

    Raises:
        ConfigError: If there is no template of that kind.
    """
    if name is None or name == "":
        return None
    if name.startswith(_SCHEME):
        return template_path(name.removeprefix(_SCHEME))
    return user_path(name)


def _folder() -> Path:
    return Path(str(files("sota_ml_researcher.templates")))
