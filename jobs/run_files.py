"""Reading a run's folder while a worker writes to it: the tail of a file, never the whole of a long one."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..core.files import read_json_lines

METRICS = "metrics.jsonl"
CHECKPOINTS = "checkpoints.jsonl"
ALERTS = "alerts.jsonl"
RESULT = "result.json"
CONFIG = "config.yaml"
ENVIRONMENT = "environment.json"
LOG = "log.txt"
WAITING = "waiting.json"
ROLLOUTS = "rollouts.jsonl"
BILLING = "billing.json"

_BLOCK = 64 * 1024


def lines_backwards(path: Path) -> Iterator[bytes]:
    """Complete lines of a file, last first, reading from its end in blocks."""
    if not path.exists():
        return
    with path.open("rb") as file:
        position = file.seek(0, 2)
        rest = b""
        first = True
        while position > 0:
            size = min(_BLOCK, position)
            position -= size
            file.seek(position)
            rest = file.read(size) + rest
            *_, _last = parts = rest.split(b"\n")
            if first:
                parts = parts[:-1]  # what follows the last newline is empty, or a line still being written
                first = False
            rest = parts[0] if parts else b""
            yield from reversed(parts[1:])
        if rest:
            yield rest


def recent_metrics(folder: Path, *, since_step: int | None = None, limit: int = 200) -> list[dict[str, Any]]:
    """The newest metric records in order of step: those after ``since_step``, at most ``limit`` of them."""
    records: list[dict[str, Any]] = []
    for line in lines_backwards(folder / METRICS):
        if not line.strip():
            continue
        record: dict[str, Any] = json.loads(line)
        step = record.get("step")
        if since_step is not None and isinstance(step, int) and step <= since_step:
            break
        records.append(record)
        if len(records) >= limit:
            break
    return records[::-1]


def latest_values(records: list[dict[str, Any]]) -> dict[str, float]:
    """The last finite value of each numeric metric in ``records``."""
    values: dict[str, float] = {}
    for record in records:
        values |= {name: value for name, value in record.items() if _is_finite_number(value)}
    values.pop("step", None)
    return values


def _is_finite_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def checkpoints(folder: Path) -> list[dict[str, Any]]:
    """Checkpoint records, oldest first."""
    return list(read_json_lines(folder / CHECKPOINTS))


def billing(folder: Path) -> dict[str, Any] | None:
    """What the platform had billed for a run when it was last asked (``cost_usd``, ``through``), or None."""
    try:
        return json.loads((folder / BILLING).read_bytes())
    except FileNotFoundError:
        return None


def waiting(folder: Path) -> dict[str, Any] | None:
    """What the backend makes a run wait for now (``reason``, ``since``), or None."""
    try:
        return json.loads((folder / WAITING).read_bytes())
    except FileNotFoundError:
        return None


def alerts(folder: Path, *, limit: int = 20) -> list[dict[str, Any]]:
    """The newest alerts, oldest first."""
    newest: list[dict[str, Any]] = []
    for line in lines_backwards(folder / ALERTS):
        newest.append(json.loads(line))
        if len(newest) >= limit:
            break
    return newest[::-1]


def result(folder: Path) -> dict[str, Any] | None:
    """What the worker wrote when it finished, or None."""
    path = folder / RESULT
    return json.loads(path.read_bytes()) if path.exists() else None
