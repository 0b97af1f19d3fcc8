"""The numbers in a model's ``config.json``, from its folder, a cache, the hub or our table."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, cast

from ..core.errors import ModelError, did_you_mean
from ..core.extras import setup_command
from .hub import HUB_MEMORY_S, HUB_TIMEOUT_S
from .model_catalog import base_name, catalog_entry, config_defaults, load_catalog
from .model_ref import DEMO_NAME, ModelRef

ConfigSource = Literal["folder", "hub cache", "hub", "table"]
Values = Mapping[str, Any]

CONFIG_FILE = "config.json"

_INNER_CONFIGS = ("text_config", "llm_config", "language_config")


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """The language model's part of a ``config.json``.

    Attributes:
        name: The model as the user named it, for messages.
        values: Keys of the text model; for a multimodal model its ``text_config`` laid over the outer keys.
        source: Where they were read.
        note: Why a better source was not used, or empty.
    """

    name: str
    values: Values
    source: ConfigSource
    note: str = ""

    @property
    def model_type(self) -> str:
        """``model_type`` of the text model, or an empty string where only the hidden size is known."""
        return str(self.values.get("model_type") or "")

    @property
    def hidden_size(self) -> int:
        """Width of the residual stream."""
        return self.integer("hidden_size", "n_embd", "d_model")

    def has(self, key: str) -> bool:
        """Whether ``key`` is there and not null."""
        return self.values.get(key) is not None

    def integer(self, *keys: str, default: int | None = None) -> int:
        """The first of ``keys`` that is there.

        Raises:
            ModelError: If none is there and there is no default, or it is not a positive integer (0 passes).
        """
        key = next((key for key in keys if self.has(key)), None)
        if key is None:
            if default is not None:
                return default
            raise ModelError(
                f"its {CONFIG_FILE} has no '{keys[0]}'", where=self.name, fix="Check that the file is complete"
            )
        value: object = self.values[key]
        if not isinstance(value, int) or isinstance(value, bool) or value < 0:
            raise ModelError(f"'{key}' must be a whole number, got {value!r}", where=f"{self.name}/{CONFIG_FILE}")
        return value


def load_model_config(ref: ModelRef) -> ModelConfig:
    """Read a model's config: its folder, else the local Hugging Face cache, else the hub, else the shipped table.

    The hub gets one request with a timeout of a few seconds and no retries, and is not asked again for minutes.

    Raises:
        ModelError: If none of these knows the model, or its file is damaged; near misses are named.
    """
    if ref.path is not None:
        return ModelConfig(ref.name, _read(ref.path / CONFIG_FILE), "folder")
    name = base_name(ref.name)
    cached = _cached_file(name)
    if cached is not None:
        return ModelConfig(ref.name, _read(cached), "hub cache")
    answer = _ask_hub(name, int(time.monotonic() // HUB_MEMORY_S))
    if not isinstance(answer, str):
        return ModelConfig(ref.name, answer, "hub")
    entry = catalog_entry(name)
    if entry is not None:
        values = {"hidden_size": entry.hidden_size, **(entry.config or {})}
        return ModelConfig(
            ref.name, _with_defaults(values), "table", f"{answer}; the shipped table of {load_catalog().as_of} was used"
        )
    raise ModelError(
        f"its {CONFIG_FILE} cannot be had: {answer}",
        where=ref.name,
        fix=did_you_mean(name, [DEMO_NAME, *(e.name for e in load_catalog().models)])
        or "Check the name, or download the model and give its folder",
    )


def _read(path: Path) -> Values:
    try:
        return _text_part(json.loads(path.read_text(encoding="utf-8")), str(path))
    except json.JSONDecodeError as error:
        raise ModelError(f"not valid JSON: {error.msg}", where=f"{path}:{error.lineno}") from error
    except (OSError, UnicodeDecodeError) as error:
        raise ModelError(f"the model's config cannot be read ({error})", where=str(path)) from error


def _text_part(raw: object, where: str) -> Values:
    if not isinstance(raw, dict):
        raise ModelError("a model's config must be a JSON object", where=where)
    outer = cast("dict[str, Any]", raw)
    for key in _INNER_CONFIGS:
        inner: object = outer.get(key)
        if isinstance(inner, dict):
            return _with_defaults({**outer, **cast("dict[str, Any]", inner)})
    return _with_defaults(outer)


def _with_defaults(values: Values) -> Values:
    return {**config_defaults().get(str(values.get("model_type")), {}), **values}


def _cached_file(name: str) -> Path | None:
    try:
        from huggingface_hub import try_to_load_from_cache
        from huggingface_hub.errors import HFValidationError
    except ImportError:
        return None
    try:
        cached = try_to_load_from_cache(name, CONFIG_FILE)
    except HFValidationError:
        return None
    return Path(cached) if isinstance(cached, str) else None


@lru_cache(maxsize=256)
def _ask_hub(name: str, period: int) -> Values | str:
    """The config as the hub has it, or why it could not be had. ``period`` makes old answers expire."""
    del period
    try:
        import httpx
        from huggingface_hub import get_session, hf_hub_url
        from huggingface_hub.errors import HFValidationError, OfflineModeIsEnabled
        from huggingface_hub.utils import build_hf_headers  # pyright: ignore[reportUnknownVariableType]
    except ImportError:
        return f"huggingface_hub is not installed (run {setup_command()})"
    try:
        # One plain request: hf_hub_download retries an unreachable hub for 23 seconds.
        response = get_session().get(
            hf_hub_url(name, CONFIG_FILE), headers=build_hf_headers(), timeout=HUB_TIMEOUT_S, follow_redirects=True
        )
    except OfflineModeIsEnabled:
        return "HF_HUB_OFFLINE is set and the model is not in the local cache"
    except HFValidationError:
        return "this is no valid Hugging Face id"
    except httpx.HTTPError as error:
        return f"the Hugging Face hub is out of reach ({type(error).__name__})"
    if response.status_code in (401, 403):
        return "the hub asks for permission (accept the model's licence and set HF_TOKEN), or has no such model"
    if response.status_code != 200:
        return "the hub has no such model" if response.status_code == 404 else f"the hub said {response.status_code}"
    try:
        return _text_part(response.json(), f"{name}/{CONFIG_FILE} on the hub")
    except json.JSONDecodeError:
        return "the hub's answer was not JSON"
