"""What a model name means: a packaged model, a folder or GGUF file of this machine, or an id on the hub."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Literal

from ..core.errors import ModelError
from ..core.paths import user_path
from .gguf_folder import folder_of_gguf, is_gguf
from .smollm2 import SMOLLM2_NAME, smollm2_folder

DEMO_NAME = "demo"
# Judges the demo's answers by a rubric (`scripts/make_demo_judge.py`); it can do nothing else.
DEMO_JUDGE = "demo-judge"
PACKAGED: Mapping[str, str] = {DEMO_NAME: "model", DEMO_JUDGE: "judge"}


@dataclass(frozen=True, slots=True)
class ModelRef:
    """A base model as the user named it.

    Attributes:
        name: What the user wrote (``demo``, a path, or an id such as ``Qwen/Qwen3-8B``).
        path: Its folder on this machine (made from a GGUF file where ``name`` is one), or None for an id.
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


def is_ours(name: str) -> bool:
    """Whether only `resolve_model` knows where this model lies: a name of ours, or a GGUF file."""
    return name in (*PACKAGED, SMOLLM2_NAME) or is_gguf(Path(name))


def resolve_model(name: str) -> ModelRef:
    """Say which model ``name`` means.

    Raises:
        ModelError: If it looks like a path but is no model, is a GGUF file that cannot be read, or is not of the form
            ``org/model``.
    """
    if name in PACKAGED:
        return ModelRef(name, Path(str(files("sota_ml_researcher.demo") / PACKAGED[name])))
    if name == SMOLLM2_NAME:
        return ModelRef(name, smollm2_folder())
    folder = user_path(name)
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise ModelError("this folder has no config.json, so it is not a model", where=name)
        return ModelRef(name, folder.resolve())
    if is_gguf(folder) and not folder.is_dir():
        return ModelRef(name, folder_of_gguf(folder))
    if folder.is_file():
        raise ModelError("this is a file; a model is a folder with config.json, or a .gguf file", where=name)
    if name.startswith((".", "/", "~")) or name.count("/") != 1 or not all(name.split("/")):
        raise ModelError(
            "no such model",
            where=name or "base_model",
            fix=f"Use a model folder, a .gguf file, an id of the form org/model, '{SMOLLM2_NAME}', or '{DEMO_NAME}'",
        )
    return ModelRef(name, None)
