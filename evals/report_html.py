"""The report as one self-contained HTML file: the verdict, pictures, tables, and answers side by side."""
# pyright: basic
# reason: matplotlib's types are partial

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files

import matplotlib
from matplotlib.figure import Figure

from .results import EvalResult, JudgeQuality, record_json
from .statistics.estimates import Interval

matplotlib.use("Agg")
_BLUE, _GREY, _RED = "#2563eb", "#9ca3af", "#dc2626"
_CAPTIONS = {
    "forest": "Win rates with their 95% intervals. The dashed line is no difference.",
    "length": "Do longer answers win? Points are prompts, the line is the mean in fifths of the length difference.",
    "orders": "The same pair in both orders: a flip says that the verdict was the order.",
}


@dataclass(frozen=True, slots=True)
class AnswerPair:
    """One prompt with two answers, the tuned one's score (None: unscored), and the judges' reasons."""

    item: str
    prompt: str
    reference: str | None
    baseline: str
    tuned: str
    score: float | None
    reasons: Sequence[str]


def report_html(
    title: str, verdict: str, result: EvalResult, images: Mapping[str, bytes], pairs: Sequence[AnswerPair]
) -> str:
    """The page. Everything a model or a user wrote is escaped.

    Args:
        title: The heading.
        verdict: The conclusion in words.
        result: All numbers.
        images: PNG files by name, as `pictures` makes them.
        pairs: Answers to show side by side.
    """
    from jinja2 import Environment, StrictUndefined

    template = (files("sota_ml_researcher.evals") / "eval_report.jinja").read_text(encoding="utf-8")
    figures = [(_CAPTIONS.get(name, name), base64.b64encode(png).decode()) for name, png in images.items()]
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, keep_trailing_newline=True)
    return environment.from_string(template).render(
        title=title, verdict=verdict, result=result, figures=figures, pairs=pairs, numbers=record_json(result).strip()
    )


def pictures(result: EvalResult, lengths: Sequence[tuple[float, float]], *, null: float) -> dict[str, bytes]:
    """PNG files by name: the forest of win rates, length against score, and the judges' order.

    Args:
        result: All numbers.
        lengths: For each scored item the length difference in characters (tuned - baseline) and the score.
        null: The effect of no difference.
    """
    images = {"forest": _png(_forest(result, null))}
    if result.mode == "pairwise" and lengths:
        images["length"] = _png(_length_scatter(lengths))
        images["orders"] = _png(_orders(result.judges))
    return images


def _forest(result: EvalResult, null: float) -> Figure:
    """Each comparison, judge and category as a point with its interval; the line is no difference."""
    rows: list[tuple[str, float, Interval | None, str]] = []
    for c in result.comparisons:
        if c.mean is None:
            continue
        rows.append((f"{c.arm} (n {c.scored})", c.mean, c.interval, _BLUE))
        if c.length:
            rows.append(("  at equal length", c.length.rate, c.length.interval, _GREY))
        if len(c.by_judge) > 1:
            rows += [(f"  {j.judge}", j.mean, j.interval, _GREY) for j in c.by_judge]
        rows += [(f"  {k.category} (n {k.n})", k.mean, k.interval, _GREY) for k in c.categories[:20]]
    figure = Figure(figsize=(7.5, 1.2 + 0.32 * max(1, len(rows))), layout="constrained")
    axes = figure.add_subplot()
    for y, (_, mean, interval, colour) in enumerate(rows):
        axes.plot([mean], [y], "o", color=colour)
        if interval:
            axes.plot([interval.low, interval.high], [y, y], "-", color=colour, linewidth=2)
    axes.axvline(null, color=_RED, linewidth=1, linestyle="--")
    axes.set_yticks(range(len(rows)), [label for label, *_ in rows])
    axes.invert_yaxis()
    axes.set_xlabel("win rate against the baseline" if result.mode == "pairwise" else "difference of mean scores")
    if result.mode == "pairwise":
        axes.set_xlim(-0.02, 1.02)
    return figure


def _length_scatter(lengths: Sequence[tuple[float, float]]) -> Figure:
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


def _orders(judges: Sequence[JudgeQuality]) -> Figure:
    """For each judge the pairs with the same verdict in both orders, those with one tie, and the flips."""
    figure = Figure(figsize=(7.5, 1.2 + 0.4 * len(judges)), layout="constrained")
    axes = figure.add_subplot()
    for y, judge in enumerate(judges):
        same = round((judge.consistency or 0) * judge.pairs_in_both_orders)
        half = judge.pairs_in_both_orders - same - judge.flips
        left = 0
        for count, colour, label in ((same, _BLUE, "same"), (half, _GREY, "one a tie"), (judge.flips, _RED, "flip")):
            axes.barh(y, count, left=left, color=colour, label=label if y == 0 else None)
            left += count
    axes.set_yticks(range(len(judges)), [j.name for j in judges])
    axes.set_xlabel("pairs asked in both orders")
    axes.legend(loc="lower right", fontsize=8)
    return figure


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return buffer.getvalue()
