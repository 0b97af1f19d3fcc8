"""The report as one HTML file that needs nothing else: the verdict, pictures, tables, and answers side by side."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

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
