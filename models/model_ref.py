"""What a model name means: the demo model, a folder on this machine, or an id on the Hugging Face hub."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Literal

from ..core.errors import ModelError
from ..core.paths import user_path

DEMO_NAME = "demo"
# Judges the demo's answers by a rubric (`scripts/make_demo_judge.py`); it can do nothing else.
DEMO_JUDGE = "demo-judge"
PACKAGED: Mapping[str, str] = {DEMO_NAME: "model", DEMO_JUDGE: "judge"}


@dataclass(frozen=True, slots=True)
class ModelRef:
    """A base model as the user named it.

    Attributes:
        name: What the user wrote (``demo``, a path, or an id such as ``Qwen/Qwen3-8B``).
        path: Its folder on this machine, or None for an id.
    """

    name: str
    path: Path | None

    @property
    def source(self) -> Literal["folder", "id"]:
        """Where its files come from."""
        return "folder" if self.path else "id"

    @property
    def wire_name(self) -> str:
        """The name to send to a backend: the absolute folder, or the id."""
        return str(self.path) if self.path else self.name


def resolve_model(name: str) -> ModelRef:
    """Say which model ``name`` means.

    Raises:
        ModelError: If it looks like a path but is not a model folder, or is not of the form ``org/model``.
    """
    if name in PACKAGED:
        return ModelRef(name, Path(str(files("sota_ml_researcher.demo") / PACKAGED[name])))
    folder = user_path(name)
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise ModelError("this folder has no config.json, so it is not a model", where=name)
        return ModelRef(name, folder.resolve())
    if folder.is_file():
        raise ModelError("this is a file; a model is a folder with config.json", where=name)
    if name.startswith((".", "/", "~")) or name.count("/") != 1 or not all(name.split("/")):
        raise ModelError(
            "no such model",
            where=name or "base_model",
            fix=f"Use a model folder, an id of the form org/model, or '{DEMO_NAME}' for the packaged demo model",
        )
    return ModelRef(name, None)
