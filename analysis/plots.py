"""Pictures of runs: curves, with findings marked on them. Drawn without a display."""
# pyright: basic
# reason: matplotlib's types are partial

from __future__ import annotations

import io
from collections.abc import Sequence

import matplotlib

matplotlib.use("Agg")

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from .diagnosis import Diagnosis
from .findings import RunFinding
from .metric_names import LABELS
from .series import Aligned

BLUE, ORANGE, GREY, RED, GREEN = "#2563eb", "#ea580c", "#9ca3af", "#dc2626", "#059669"
PALETTE = (BLUE, ORANGE, GREEN, "#7c3aed", "#0891b2", "#be123c", "#65a30d", "#475569")
# What is drawn together, by kind of run: each panel holds a metric and its held-out counterpart.
_PANELS = {
    "sft": (("train_loss", "val_loss"), ("lr",), ("grad_norm",), ("step_time",)),
    "dpo": (("train_loss", "val_loss"), ("margin", "val_margin"), ("accuracy", "val_accuracy"), ("chosen_logprob",)),
    "rl": (("reward", "val_reward"), ("entropy",), ("kl",), ("length",), ("constant_groups", "truncated")),
}
_MOST_PANELS = 4
_MOST_MARKS = 4


def run_picture(diagnosis: Diagnosis) -> bytes:
    """The curves of a run in up to four panels, its findings marked where their evidence lies; a PNG."""
    run = diagnosis.run
    panels = [p for p in _PANELS[run.kind] if any(run.get(q, least=2) for q in p)][:_MOST_PANELS]
    rows = -(-len(panels) // 2)
    wide = len(panels) > 1
    figure = Figure(figsize=(10.5 if wide else 7.0, 1.1 + 2.9 * max(1, rows)), layout="constrained")
    figure.suptitle(f"{run.name}: {_headline(diagnosis)}", fontsize=11)
    for place, panel in enumerate(panels, 1):
        axes = figure.add_subplot(max(1, rows), 2 if wide else 1, place)
        _draw_panel(axes, diagnosis, panel)
    return _png(figure)


def _headline(diagnosis: Diagnosis) -> str:
    kinds = list(dict.fromkeys(f.kind.replace("_", " ") for f in diagnosis.findings))
    return ", ".join(kinds[:4]) or "nothing found"


def _draw_panel(axes: Axes, diagnosis: Diagnosis, panel: Sequence[str]) -> None:
    logged: set[str] = set()
    for quantity, colour in zip(panel, (BLUE, ORANGE), strict=False):
        series = diagnosis.run.get(quantity, least=2)
        if series is None:
            continue
        logged.add(series.name)
        points = series.reduced
        x = points.steps.astype(float)
        _draw_curve(axes, Aligned(series.name, "", x, points.values, series.smooth), colour, pale=0.3)
    _mark(axes, [f for f in diagnosis.findings if any(e.metric in logged for e in f.evidence)], logged)
    axes.set_axisbelow(True)
    _style(axes, "step", LABELS.get(panel[0], panel[0]))


def _style(axes: Axes, x_label: str, y_label: str) -> None:
    axes.set_xlabel(x_label, fontsize=9)
    axes.set_ylabel(y_label, fontsize=9)
    axes.tick_params(labelsize=8)
    axes.grid(color="#e5e7eb", linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(fontsize=8, frameon=False)


def _draw_curve(axes: Axes, curve: Aligned, colour: str, pale: float) -> None:
    """A curve: its points in pale, its trend in full colour; few points are joined."""
    if len(curve.x) < 20:
        axes.plot(curve.x, curve.y, "o-", color=colour, markersize=4, linewidth=1.6, label=curve.name)
        return
    axes.plot(curve.x, curve.y, color=colour, alpha=pale, linewidth=0.8)
    axes.plot(curve.x, curve.smooth, color=colour, linewidth=1.8, label=curve.name)


def _mark(axes: Axes, findings: Sequence[RunFinding], logged: set[str]) -> None:
    """A line at each finding's place. Notes near the same place are put on different heights."""
    left, right = axes.get_xlim()
    for height, finding in enumerate(findings[:_MOST_MARKS]):
        place = next(e for e in finding.evidence if e.metric in logged)
        step = (
            max(e.step for e in finding.evidence if e.metric in logged) if finding.kind == "divergence" else place.step
        )
        axes.axvline(step, color=RED, linewidth=1, linestyle="--", alpha=0.8)
        beyond_middle = step > (left + right) / 2
        axes.annotate(
            finding.kind.replace("_", " "),
            (step, 1 - 0.09 * height),
            xycoords=("data", "axes fraction"),
            xytext=(-4 if beyond_middle else 4, -2),
            textcoords="offset points",
            ha="right" if beyond_middle else "left",
            va="top",
            fontsize=8,
            color=RED,
        )


def comparison_picture(title: str, panels: Sequence[tuple[str, Sequence[Aligned]]]) -> bytes:
    """Several runs in one picture, one panel for each alignment (steps, tokens); a PNG.

    Args:
        title: The heading.
        panels: For each, what the horizontal axis counts and the curves.
    """
    figure = Figure(figsize=(5.4 * max(1, len(panels)), 4.0), layout="constrained")
    figure.suptitle(title, fontsize=11)
    for place, (axis, curves) in enumerate(panels, 1):
        axes = figure.add_subplot(1, max(1, len(panels)), place)
        for number, curve in enumerate(curves):
            _draw_curve(axes, curve, PALETTE[number % len(PALETTE)], pale=0.25)
        _style(axes, axis, curves[0].label)
    return _png(figure)


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=100)
    return buffer.getvalue()
