"""Which base models the engine serves, and loading them when they are first asked for."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path

from ...core.memory import TooLargeError
from ..interface import BaseModel, LoadOptions, RequestRejectedError


class BaseModels:
    """Base models by the names clients may use. Loading and eviction happen in the compute thread only.

    Args:
        named: Names given on the command line, and the folder or id behind each.
        any_local: Whether a client may also name any other model folder of this machine.
        options: How to load.
        load: `compute.model.load_model`.
        most_loaded: Base models kept in memory at once.
    """

    def __init__(
        self,
        named: Mapping[str, str],
        *,
        any_local: bool,
        options: LoadOptions,
        load: Callable[[str, str, LoadOptions], BaseModel],
        most_loaded: int = 2,
    ) -> None:
        self._named = dict(named)
        self._any_local = any_local
        self._options = options
        self._load = load
        self._most_loaded = most_loaded
        self._loaded: dict[str, tuple[BaseModel, float]] = {}

    @property
    def names(self) -> list[str]:
        """The names a client can choose from."""
        return list(dict.fromkeys([*self._named, *self._loaded]))

    def context_length(self, name: str) -> int | None:
        """A loaded model's context length, or None."""
        entry = self._loaded.get(self._key(name))
        return entry[0].max_context_length if entry else None

    def source(self, name: str) -> str:
        """The folder or id behind a name: what a client loads the tokenizer from."""
        return self._named.get(name, name)

    def check(self, name: str) -> str:
        """The name under which a model is kept.

        Raises:
            RequestRejectedError: If clients may not use it here.
        """
        if name in self._named or (self._any_local and _is_model_folder(name)):
            return self._key(name)
        known = ", ".join(self.names) or "none"
        raise RequestRejectedError(f"this engine does not serve '{name[:200]}'. It serves: {known}")

    def get(self, name: str, *, in_use: frozenset[str] = frozenset()) -> BaseModel:
        """The model, loaded if need be; the one unused for longest makes room, unless an adapter needs it."""
        key = self.check(name)
        if key not in self._loaded:
            idle = sorted((when, k) for k, (_, when) in self._loaded.items() if k not in in_use)
            while len(self._loaded) >= self._most_loaded and idle:
                del self._loaded[idle.pop(0)[1]]
            while key not in self._loaded:
                try:
                    self._loaded[key] = (self._load(key, self._named.get(key, key), self._options), time.monotonic())
                except TooLargeError:
                    if not idle:
                        raise
                    del self._loaded[idle.pop(0)[1]]
        model = self._loaded[key][0]
        self._loaded[key] = (model, time.monotonic())
        return model

    def describe(self) -> dict[str, object]:
        """What is loaded, for the health answer."""
        return {name: model.description for name, (model, _) in self._loaded.items()}

    def _key(self, name: str) -> str:
        """One folder has one key, whichever name it was asked for by."""
        target = self._named.get(name, name)
        return str(Path(target).resolve()) if Path(target).is_dir() else name


def _is_model_folder(name: str) -> bool:
    try:
        return (Path(name) / "config.json").is_file()
    except OSError:  # a name that no file system takes
        return False
