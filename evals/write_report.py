"""The last part of an evaluation: ``python -m sota_ml_researcher.evals.write_report RUN_FOLDER [numbers | log]``.

Reads what the worker gathered and writes metrics.json, verdict.txt, report.html and plots (``numbers``), then the
Inspect log (``log``). It can be run again at any time: it changes nothing that was gathered. The worker runs the two
parts in processes of their own, one after the other: the libraries of both would take 300 MB together.
"""

from __future__ import annotations

import json
import random
import sys
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..core.errors import ResearcherError
from ..core.files import read_json_lines, write_atomically
from ..judges.journal import JUDGMENTS, read_judgments
from ..judges.prompt import EvalItem
from ..judges.rubric import load_rubric
from . import arms
from .human_labels import read_labels
from .judge_config import load_judge_settings
from .report_html import Sample, report_html, verdict_text
from .responses import Response
from .results import BASELINE, TUNED, Evidence, conclude, item_effects

_SHOWN = 10


def read_evidence(folder: Path) -> Evidence:
    """Everything gathered in a run's folder."""
    config = load_judge_settings(folder / "config.yaml", None).config
    rows = list(read_json_lines(folder / arms.ITEMS))
    items = [_item(row) for row in rows]
    answers: dict[str, list[Response]] = {arm: [] for arm in config.arms}
    for row in read_json_lines(folder / arms.RESPONSES):
        answers[row["arm"]].append(Response(row["text"], row["stop_reason"], row["tokens"]))
    return Evidence(
        config=config,
        rubric=load_rubric(Path(config.rubric) if config.rubric else None),
        items=items,
        answers=answers,
        judgments=list(read_judgments(folder / JUDGMENTS)),
        human=read_labels(Path(config.human_labels), items) if config.human_labels else {},
    )


NUMBERS, LOG = "numbers", "log"


def conclude_run(folder: Path) -> dict[str, Any]:
    """Compute and write everything; returns what ``verdict.json`` holds."""
    verdict = write_numbers(folder)
    write_log(folder)
    return verdict


def write_log(folder: Path) -> None:
    """Write the evaluation as a log of Inspect, from what `write_numbers` found."""
    from .inspect_log import write_inspect_log

    metrics, run = (json.loads((folder / name).read_bytes()) for name in (arms.METRICS, arms.RUN))
    write_inspect_log(folder / arms.INSPECT_LOG, read_evidence(folder), metrics, run)


def write_numbers(folder: Path) -> dict[str, Any]:
    """Compute and write everything but the log; returns what ``verdict.json`` holds."""
    evidence = read_evidence(folder)
    metrics = conclude(evidence)
    run = json.loads((folder / arms.RUN).read_bytes())
    controls = json.loads((folder / arms.CONTROLS).read_bytes())
    metrics |= {"controls": controls, "run": {k: v for k, v in run.items() if k != "judge_system_prompt"}}
    text = verdict_text(metrics, run, controls)
    _write_json(folder / arms.METRICS, metrics)
    write_atomically(folder / arms.VERDICT_TEXT, text)
    _write_report(folder, evidence, metrics, text)
    main = next(c for c in metrics["comparisons"] if c["arm"] == TUNED)
    verdict = {
        "verdict": metrics["verdict"],
        "verdict_text": text,
        "mean": main["mean"],
        "interval": main["interval"],
        "report": str(folder / arms.REPORT),
        "inspect_log": str(folder / arms.INSPECT_LOG),
    }
    _write_json(folder / arms.VERDICT, verdict)
    return verdict


def _write_report(folder: Path, evidence: Evidence, metrics: Mapping[str, Any], text: str) -> None:
    effects = item_effects(evidence, TUNED)
    tuned, baseline = evidence.answers[TUNED], evidence.answers[BASELINE]
    lengths = [
        (float(len(tuned[i].text) - len(baseline[i].text)), effects[item.id])
        for i, item in enumerate(evidence.items)
        if item.id in effects
    ]
    from .report_html import pictures

    images = pictures(metrics, lengths)
    (folder / arms.PLOTS).mkdir(exist_ok=True)
    for name, png in images.items():
        write_atomically(folder / arms.PLOTS / f"{name}.png", png)
    title = f"Judge evaluation: {evidence.config.run_name or Path(evidence.config.test_set).stem}"
    write_atomically(folder / arms.REPORT, report_html(title, text, metrics, images, _samples(evidence, effects)))


def _samples(evidence: Evidence, effects: Mapping[str, float]) -> list[Sample]:
    """Ten prompts where the tuned model did worst, and ten drawn by the seed: to read before believing a number."""
    reasons: dict[str, list[str]] = defaultdict(list)
    for j in evidence.judgments:
        if j.kind in {"pair", "absolute"}:
            reasons[j.item].append(f"{j.judge} ({j.first} shown first): {j.verdict or j.unscored or ''} {j.reason}")
    order = sorted(range(len(evidence.items)), key=lambda i: effects.get(evidence.items[i].id, 0.5))
    rest = order[_SHOWN:]
    random.Random(evidence.config.seed).shuffle(rest)
    found: list[Sample] = []
    for index in [*order[:_SHOWN], *rest[:_SHOWN]]:
        item = evidence.items[index]
        sample = Sample(
            item=item.id,
            prompt=item.prompt_text,
            reference=item.reference,
            baseline=evidence.answers[BASELINE][index].text,
            tuned=evidence.answers[TUNED][index].text,
            score=effects.get(item.id),
            reasons=reasons[item.id][:4],
        )
        found.append(sample)
    return found


def _item(row: dict[str, Any]) -> EvalItem:
    messages = tuple(row.pop("messages"))
    return EvalItem(messages=messages, **row)


def _write_json(path: Path, value: Any) -> None:
    write_atomically(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def main(arguments: list[str]) -> int:
    """Entry point: ``RUN_FOLDER`` and perhaps one of the two parts."""
    parts = {NUMBERS: write_numbers, LOG: write_log}
    try:
        for part in arguments[1:] or parts:
            parts[part](Path(arguments[0]))
    except ResearcherError as error:
        print(str(error), file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
