"""Job ids in a config as the checkpoints they stand for."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypeVar, cast

from pydantic import BaseModel

from ..core.errors import ConfigError
from .models import resolve_target

if TYPE_CHECKING:
    from ..core.settings import Origin, Settings

ConfigT = TypeVar("ConfigT", bound=BaseModel)
_JOB_ID = re.compile(r"^[a-z]+-[0-9a-f]{6}(:(best|final))?$")
_PLACE = ("backend", "base_url", "renderer")


def with_checkpoints(settings: Settings[ConfigT], keys: Sequence[str]) -> Settings[ConfigT]:
    """The same settings with job ids replaced by checkpoints; backend and renderer come from the jobs unless set.

    Args:
        settings: Any config with ``backend``, ``base_url`` and ``renderer``.
        keys: The keys that name a model, or a tuple of models.

    Raises:
        ConfigError: If two jobs ran in different places.
        JobError: If there is no such job, or it has no checkpoint.
    """
    from ..core.settings import Origin

    changes: dict[str, tuple[Any, Origin]] = {}
    found: dict[str, Any] = {}

    def checkpoint(key: str, model: str) -> str:
        if not _JOB_ID.match(model):
            return model
        target = resolve_target(model, None, None)
        here = {name: getattr(target, name) for name in _PLACE}
        if found and found != here:
            raise ConfigError(
                "the jobs ran on different backends, or with different renderers",
                where=settings.place(key),
                fix="Compare checkpoints of one backend, or files of responses",
            )
        found.update(here)
        return target.wire_name

    for key in keys:
        given: Any = getattr(settings.config, key)
        several = isinstance(given, tuple)
        models: list[Any] = list(cast("tuple[Any, ...]", given)) if several else [given]
        resolved = [checkpoint(key, m) if isinstance(m, str) else m for m in models]
        if resolved != models:
            value: Any = tuple(resolved) if several else resolved[0]
            changes[key] = (value, Origin(kind="derived", reason=f"the checkpoint of {', '.join(map(str, models))}"))
    for key, value in found.items():
        if settings.origins[key].kind == "default" and value != getattr(settings.config, key):
            changes[key] = (value, Origin(kind="derived", reason="as the job of the arm"))
    return settings.derived(changes)
