"""Supervised fine-tuning: the settings a user may give, and how those left out are filled in."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...core.settings import Settings, load_settings
from ..config import DEFAULT_RULES as SHARED_RULES
from ..config import RETIRED_KEYS, OfflineConfig

DEFAULT_RULES: Mapping[str, str] = {**SHARED_RULES, "lr_schedule": "sft.schedule.linear"}


class SftConfig(OfflineConfig):
    """Settings of one SFT job. ``train_file`` holds rows with one good answer each."""


def load_sft_settings(config_file: Path | None, overrides: Mapping[str, Any] | None) -> Settings[SftConfig]:
    """Read and check an SFT config (see `load_settings` for the errors)."""
    return load_settings(
        SftConfig,
        config_file,
        overrides,
        retired=RETIRED_KEYS,
        default_rules=DEFAULT_RULES,
        kinds=("sft",),
    )
