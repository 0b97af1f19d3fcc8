"""Ending the engine that jobs have started."""

import json
from contextlib import suppress
from pathlib import Path

import psutil

PATIENCE_S = 30


def end_engine(folder: Path) -> None:
    """End the engine whose store is ``folder``, if one runs, and wait until it is gone."""
    discovery = folder / "engine.json"
    if not discovery.exists():
        return
    with suppress(psutil.NoSuchProcess):
        process = psutil.Process(json.loads(discovery.read_bytes())["pid"])
        process.terminate()
        process.wait(PATIENCE_S)
