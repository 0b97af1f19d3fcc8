"""What a comparison passes on to its picture."""

from __future__ import annotations

from dataclasses import dataclass

from sota_ml_researcher.analysis.series import Floats


@dataclass(frozen=True, slots=True)
class Aligned:
    """One run's curve on a common axis: positions, values and trend, each of shape [n]."""

    name: str
    label: str
    x: Floats
    y: Floats
    smooth: Floats
