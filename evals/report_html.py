"""The report as one HTML file that needs nothing else: the verdict, pictures, tables, and answers side by side."""
# pyright: basic
# reason: matplotlib's types are partial

from __future__ import annotations

import base64
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import matplotlib
from matplotlib.figure import Figure

_STYLE = """
body{font:15px/1.5 system-ui,sans-serif;max-width:1100px;margin:2rem auto;padding:0 1rem;color:#111827}
pre.verdict{background:#f3f4f6;padding:1rem;white-space:pre-wrap;border-left:4px solid #2563eb}
table{border-collapse:collapse;margin:1rem 0}td,th{border:1px solid #d1d5db;padding:.3rem .6rem;text-align:left;
vertical-align:top}img{max-width:100%}.pair{display:grid;grid-template-columns:1fr 1fr;gap:1rem}
.pair pre,.prompt{white-space:pre-wrap;background:#f9fafb;padding:.6rem;overflow-wrap:anywhere;max-height:24rem;
overflow:auto}details{margin:.5rem 0}"""


@dataclass(frozen=True, slots=True)
class Sample:
    """One prompt with two answers, its score (None: unscored), and what the judges said."""

    item: str
    prompt: str
    reference: str | None
    baseline: str
    tuned: str
    score: float | None
    reasons: Sequence[str]


def report_html(
    title: str, verdict: str, metrics: Mapping[str, Any], images: Mapping[str, bytes], samples: Sequence[Sample]
) -> str:
    """The whole page. Everything a model or a user wrote is escaped."""
    captions = {
        "forest": "Win rates with their 95% intervals. The dashed line is no difference.",
        "length": "Do longer answers win? Points are prompts, the line is the mean in fifths of the length difference.",
        "orders": "The same pair in both orders: a flip says that the verdict was the order.",
    }
    parts = [f"<h1>{escape(title)}</h1>", f'<pre class="verdict">{escape(verdict)}</pre>']
    for name, png in images.items():
        data = base64.b64encode(png).decode()
        caption = captions.get(name, name)
        parts.append(f'<figure><img alt="{escape(caption)}" src="data:image/png;base64,{data}">')
        parts.append(f"<figcaption>{escape(caption)}</figcaption></figure>")
    parts += [_criteria(metrics), "<h2>Answers side by side</h2>"]
    parts += [_sample(sample) for sample in samples]
    parts.append(f"<details><summary>All numbers</summary><pre>{escape(json.dumps(metrics, indent=2))}</pre></details>")
    body = "\n".join(parts)
    head = f'<meta charset="utf-8"><title>{escape(title)}</title><style>{_STYLE}</style>'
    return f"<!doctype html>\n<html lang=en><head>{head}</head><body>\n{body}\n</body></html>\n"


def _criteria(metrics: Mapping[str, Any]) -> str:
    arms = list(metrics["arms"])
    rows = "".join(
        f"<tr><td>{escape(name)}</td>" + "".join(f"<td>{_cell(by_arm.get(arm))}</td>" for arm in arms) + "</tr>"
        for name, by_arm in metrics["criteria"].items()
    )
    head = "".join(f"<th>{escape(arm)}</th>" for arm in arms)
    return f"<h2>Mean scores by criterion</h2><table><tr><th>criterion</th>{head}</tr>{rows}</table>"


def _cell(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def _sample(sample: Sample) -> str:
    score = "unscored" if sample.score is None else f"score {sample.score:.2f}"
    reference = f"<p>Reference: {escape(sample.reference[:2000])}</p>" if sample.reference else ""
    reasons = "".join(f"<li>{escape(reason[:600])}</li>" for reason in sample.reasons if reason)
    return (
        f"<details><summary>{escape(sample.item)}: {score}</summary>"
        f'<div class="prompt">{escape(sample.prompt[:4000])}</div>{reference}'
        f'<div class="pair"><div><b>baseline</b><pre>{escape(sample.baseline[:6000])}</pre></div>'
        f"<div><b>tuned</b><pre>{escape(sample.tuned[:6000])}</pre></div></div><ul>{reasons}</ul></details>"
    )


matplotlib.use("Agg")
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


MAX_BYTES = 2048
_MAIN = "tuned"


def verdict_text(metrics: Mapping[str, Any], run: Mapping[str, Any], controls: Sequence[Mapping[str, Any]]) -> str:
    """What was found, how sure it is, and what to be careful about."""
    main = next(c for c in metrics["comparisons"] if c["arm"] == _MAIN)
    lines = [_headline(metrics, main), *_detail(metrics, main)]
    lines += [_other(c) for c in metrics["comparisons"] if c["arm"] != _MAIN]
    lines += [_judge(judge, controls) for judge in metrics["judges"]]
    if metrics["judge_agreement_alpha"] is not None:
        lines.append(f"Agreement of the judges: Krippendorff alpha {metrics['judge_agreement_alpha']:.2f}.")
    lines.append(_missing(metrics))
    if run.get("spent_usd") is not None:
        lines.append(f"The judges cost about {run['spent_usd']:.4f} USD.")
    lines += [f"Careful: {warning}." for warning in metrics["warnings"]]
    return _cut("\n".join(lines) + "\n")


def interval_text(interval: Mapping[str, Any] | None) -> str:
    """``95% interval 0.53 to 0.61``, or that there is none."""
    if interval is None:
        return "no interval"
    return f"{interval['level']:.0%} interval {interval['low']:.3f} to {interval['high']:.3f}"


def _headline(metrics: Mapping[str, Any], main: Mapping[str, Any]) -> str:
    arms = metrics["arms"]
    named = f"tuned ({_short(arms['tuned'])}) against baseline ({_short(arms['baseline'])})"
    if metrics["no_verdict_because"]:
        return f"NO VERDICT: {metrics['no_verdict_because']}. {named}."
    if main["mean"] is None:
        return f"NO VERDICT: nothing was scored. {named}."
    what = "win rate" if metrics["mode"] == "pairwise" else "difference of mean scores (0 to 1)"
    word = str(metrics["verdict"]).upper()
    return f"{word}: {named}: {what} {main['mean']:.3f}, {interval_text(main['interval'])}, {main['scored']} prompts."


def _detail(metrics: Mapping[str, Any], main: Mapping[str, Any]) -> list[str]:
    if main["mean"] is None:
        return []
    p = main.get("sign_test_p_value")
    test = f"exact sign test p {p:.2g}" if p is not None else "no pair was decided"
    lines = [f"{main['wins']} won, {main['ties']} tied, {main['losses']} lost; {test}."]
    if main["interval"]:
        lines[0] += f" Interval: {main['interval']['method']}, {main['independent_units']} independent units."
    if main["length"]:
        lines.append(f"At equal length: {main['length']['rate']:.3f}, {interval_text(main['length']['interval'])}.")
    human = main.get("human")
    if human:
        lines.append(f"Against people ({human['labelled']} labels): {human['agreement']:.0%} agreement.")
        corrected = human["corrected_share_of_decided"]
        if corrected:
            lines[-1] += f" Share of decided pairs, corrected: {corrected['rate']:.3f}, {interval_text(corrected)}."
    worst = sorted(main["categories"], key=lambda c: c["mean"])[:3]
    if worst:
        lines.append(
            "Lowest categories: " + ", ".join(f"{c['category']} {c['mean']:.2f} (n {c['n']})" for c in worst) + "."
        )
    return lines


def _other(c: Mapping[str, Any]) -> str:
    if c["mean"] is None:
        return f"{c['arm']}: nothing was scored."
    holm = c["p_value_holm"]
    corrected = f", Holm p {holm:.2g}" if holm is not None else ""
    return f"{c['arm']} against baseline: {c['verdict']}, {c['mean']:.3f}, {interval_text(c['interval'])}{corrected}."


def _judge(judge: Mapping[str, Any], controls: Sequence[Mapping[str, Any]]) -> str:
    control = next((c for c in controls if c["judge"] == judge["name"]), None)
    text = f"Judge {judge['name']}"
    models = [m for m in judge["models"] if m != judge["name"]]
    text += f" ({', '.join(models)})" if models else ""
    text += ":"
    if judge["consistency"] is not None:
        text += f" same verdict in both orders {judge['consistency']:.0%}, {judge['flips']} flips;"
    if control is not None:
        text += f" {control['canaries_right']} of {control['canaries']} known pairs right"
        text += _same(control)
    return text + "."


def _same(control: Mapping[str, Any]) -> str:
    asked = control["same_first"] + control["same_second"] + control["same_tie"]
    if not asked:
        return ""
    if control["repeat_difference"] is None:
        return f"; an answer beside itself: {control['same_tie']} of {asked} ties"
    return (
        f"; an answer scored twice: {control['same_tie']} of {asked} alike, "
        f"mean difference {control['repeat_difference']:.3f}"
    )


def _missing(metrics: Mapping[str, Any]) -> str:
    counts = metrics["unscored"]["by_arm"]
    total, asked = (sum(c[k] for c in counts.values()) for k in ("missing", "asked"))
    if not total:
        return f"Unscored: none of {asked} judgements."
    shares = ", ".join(f"{arm} {c['missing']} of {c['asked']}" for arm, c in counts.items())
    reasons = ", ".join(f"{why} {n}" for why, n in metrics["unscored"]["reasons"].items())
    return f"Unscored: {total} of {asked} judgements, by the arm shown first {shares} ({reasons})."


def _short(model: str) -> str:
    return model if len(model) <= 70 else f"...{model[-67:]}"


def _cut(text: str) -> str:
    raw = text.encode()
    return text if len(raw) <= MAX_BYTES else raw[: MAX_BYTES - 4].decode("utf-8", "ignore") + "...\n"
