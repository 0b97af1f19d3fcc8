"""Near misses: what did the user probably mean?"""

from __future__ import annotations

from collections.abc import Iterable


def did_you_mean(wrong: str, known: Iterable[str], *, cutoff: float = 70.0) -> str:
    """``Did you mean 'x'?`` for the closest known name, or an empty string when nothing is close."""
    from rapidfuzz import fuzz, process  # 20 ms; only a mistake pays it

    found = process.extractOne(wrong.lower(), list(known), scorer=fuzz.ratio, score_cutoff=cutoff)
    return f"Did you mean '{found[0]}'?" if found else ""
