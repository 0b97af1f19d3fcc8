"""How old a dated figure is, in words."""

from __future__ import annotations

from datetime import UTC, date, datetime


def age(day: date) -> str:
    """``of today``, ``1 day old``, ``52 days old``; a day to come means that this machine's clock is wrong."""
    days = (datetime.now(UTC).date() - day).days
    if days < 0:
        return f"dated {day}, after this machine's clock"
    return "of today" if days == 0 else f"{days} day{'s' if days > 1 else ''} old"
