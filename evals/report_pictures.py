"""The pictures of an evaluation's report. Heavy: matplotlib, without a display."""
# pyright: basic
# reason: matplotlib's types are partial

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib

matplotlib.use("Agg")

from matplotlib.figure import Figure

_BLUE, _GREY, _RED = "#2563eb", "#9ca3af", "#dc2626"


def pictures(metrics: Mapping[str, Any], lengths: Sequence[tuple[float, float]]) -> dict[str, bytes]:
    """PNG files by name: the forest of win rates, length against score, and the judges' order.

    Args:
        metrics: As in ``metrics.json``.
        lengths: For each scored item the length difference in characters (tuned - baseline) and the score.
    """
    found = {"forest": _png(forest(metrics))}
    if metrics["mode"] == "pairwise" and lengths:
        found["length"] = _png(length_scatter(lengths))
        found["orders"] = _png(orders(metrics["judges"]))
    return found


def forest(metrics: Mapping[str, Any]) -> Figure:
    """Each comparison, judge and category as a point with its interval; the line is no difference."""
    null = 0.5 if metrics["mode"] == "pairwise" else 0.0
    rows: list[tuple[str, float, Mapping[str, Any] | None, str]] = []
    for c in metrics["comparisons"]:
        if c["mean"] is None:
            continue
        rows.append((f"{c['arm']} (n {c['scored']})", c["mean"], c["interval"], _BLUE))
        if c["length"]:
            rows.append(("  at equal length", c["length"]["rate"], c["length"]["interval"], _GREY))
        if len(c["by_judge"]) > 1:
            rows += [(f"  {j['judge']}", j["mean"], j["interval"], _GREY) for j in c["by_judge"]]
        rows += [(f"  {k['category']} (n {k['n']})", k["mean"], k["interval"], _GREY) for k in c["categories"][:20]]
    figure = Figure(figsize=(7.5, 1.2 + 0.32 * max(1, len(rows))), layout="constrained")
    axes = figure.add_subplot()
    for y, (_, mean, interval, colour) in enumerate(rows):
        axes.plot([mean], [y], "o", color=colour)
        if interval:
            axes.plot([interval["low"], interval["high"]], [y, y], "-", color=colour, linewidth=2)
    axes.axvline(null, color=_RED, linewidth=1, linestyle="--")
    axes.set_yticks(range(len(rows)), [label for label, *_ in rows])
    axes.invert_yaxis()
    axes.set_xlabel("win rate against the baseline" if null else "difference of mean scores")
    if null:
        axes.set_xlim(-0.02, 1.02)
    return figure


def length_scatter(lengths: Sequence[tuple[float, float]]) -> Figure:
    """Score against length difference, with the mean score in each fifth of the differences."""
    figure = Figure(figsize=(7.5, 3.4), layout="constrained")
    axes = figure.add_subplot()
    axes.plot([d for d, _ in lengths], [s for _, s in lengths], "o", color=_GREY, alpha=0.35, markersize=4)
    ordered = sorted(lengths)
    size = max(1, -(-len(ordered) // 5))
    parts = [ordered[i : i + size] for i in range(0, len(ordered), size)]
    centres = [sum(d for d, _ in part) / len(part) for part in parts]
    axes.plot(centres, [sum(s for _, s in part) / len(part) for part in parts], "o-", color=_BLUE)
    axes.axhline(0.5, color=_RED, linewidth=1, linestyle="--")
    axes.set_xlabel("characters, tuned minus baseline")
    axes.set_ylabel("score of tuned")
    return figure


def orders(judges: Sequence[Mapping[str, Any]]) -> Figure:
    """For each judge the pairs with the same verdict in both orders, those with one tie, and the flips."""
    figure = Figure(figsize=(7.5, 1.2 + 0.4 * len(judges)), layout="constrained")
    axes = figure.add_subplot()
    for y, judge in enumerate(judges):
        same = round((judge["consistency"] or 0) * judge["pairs_in_both_orders"])
        half = judge["pairs_in_both_orders"] - same - judge["flips"]
        left = 0
        for count, colour, label in ((same, _BLUE, "same"), (half, _GREY, "one a tie"), (judge["flips"], _RED, "flip")):
            axes.barh(y, count, left=left, color=colour, label=label if y == 0 else None)
            left += count
    axes.set_yticks(range(len(judges)), [j["name"] for j in judges])
    axes.set_xlabel("pairs asked in both orders")
    axes.legend(loc="lower right", fontsize=8)
    return figure


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return buffer.getvalue()
