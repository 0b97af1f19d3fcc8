"""The last part of an evaluation: ``python -m sota_ml_researcher.evals.write_report RUN_FOLDER [numbers | log]``.

Reads what the worker gathered and writes metrics.json, verdict.txt, report.html and plots (``numbers``), then the
Inspect log (``log``). It can be run again at any time: it changes nothing that was gathered. The worker runs the two
parts in processes of their own, one after the other: the libraries of both would take 300 MB together.
"""

from __future__ import annotations

import random
import sys
from collections import defaultdict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import TypeAdapter

from ..core.errors import ResearcherError
from ..core.files import write_atomically
from . import evidence as files
from .controls import ControlResult
from .evidence import BASELINE, TUNED, Evidence, read_evidence
from .results import EvalResult, JudgingFacts, Verdict, write_record
from .scoring import item_effects
from .verdict_text import verdict_text

if TYPE_CHECKING:
    from .report_html import AnswerPair

_SIDE_BY_SIDE = 10


def write_log(folder: Path) -> None:
    """Write the evaluation as a log of Inspect, from what `write_numbers` computed."""
    from .inspect_log import write_inspect_log

    result = EvalResult.model_validate_json((folder / files.METRICS).read_bytes())
    write_inspect_log(folder / files.INSPECT_LOG, read_evidence(folder), result)


def write_numbers(folder: Path) -> None:
    """Compute and write everything but the log."""
    from .compute_results import compute_results

    evidence = read_evidence(folder)
    asked = JudgingFacts.model_validate_json((folder / files.RUN).read_bytes())
    controls = TypeAdapter(list[ControlResult]).validate_json((folder / files.CONTROLS).read_bytes())
    run = JudgingFacts(**asked.model_dump(exclude={"judge_system_prompt"}))
    result = compute_results(evidence).model_copy(update={"controls": controls, "run": run})
    text = verdict_text(result)
    write_record(folder / files.METRICS, result)
    write_atomically(folder / files.VERDICT_TEXT, text)
    _write_report(folder, evidence, result, text)
    verdict = Verdict(
        verdict=result.verdict,
        verdict_text=text,
        mean=result.main.mean,
        interval=result.main.interval,
        report=str(folder / files.REPORT),
        inspect_log=str(folder / files.INSPECT_LOG),
    )
    write_record(folder / files.VERDICT, verdict)


def _write_report(folder: Path, evidence: Evidence, result: EvalResult, text: str) -> None:
    from .report_html import pictures, report_html

    effects = item_effects(evidence, TUNED)
    tuned, baseline = evidence.answers[TUNED], evidence.answers[BASELINE]
    lengths = [
        (float(len(tuned[i].text) - len(baseline[i].text)), effects[item.id])
        for i, item in enumerate(evidence.items)
        if item.id in effects
    ]
    images = pictures(result, lengths, null=evidence.null)
    (folder / files.PLOTS).mkdir(exist_ok=True)
    for name, png in images.items():
        write_atomically(folder / files.PLOTS / f"{name}.png", png)
    title = f"Judge evaluation: {evidence.config.run_name or Path(evidence.config.test_set).stem}"
    page = report_html(title, text, result, images, _answer_pairs(evidence, effects))
    write_atomically(folder / files.REPORT, page)


def _answer_pairs(evidence: Evidence, effects: Mapping[str, float]) -> list[AnswerPair]:
    """Ten prompts where the tuned model did worst, and ten drawn by the seed: to read before believing a number."""
    from .report_html import AnswerPair

    reasons: dict[str, list[str]] = defaultdict(list)
    for j in evidence.judgments:
        if j.kind in {"pair", "absolute"}:
            reasons[j.item].append(f"{j.judge} ({j.first} shown first): {j.verdict or j.unscored or ''} {j.reason}")
    order = sorted(range(len(evidence.items)), key=lambda i: effects.get(evidence.items[i].id, evidence.null))
    rest = order[_SIDE_BY_SIDE:]
    random.Random(evidence.config.seed).shuffle(rest)
    return [
        AnswerPair(
            item=(item := evidence.items[index]).id,
            prompt=item.prompt_text,
            reference=item.reference,
            baseline=evidence.answers[BASELINE][index].text,
            tuned=evidence.answers[TUNED][index].text,
            score=effects.get(item.id),
            reasons=reasons[item.id][:4],
        )
        for index in [*order[:_SIDE_BY_SIDE], *rest[:_SIDE_BY_SIDE]]
    ]


def main(arguments: list[str]) -> int:
    """Entry point: ``RUN_FOLDER`` and perhaps one of the two parts."""
    parts: dict[str, Callable[[Path], None]] = {"numbers": write_numbers, "log": write_log}
    try:
        for part in arguments[1:] or parts:
            parts[part](Path(arguments[0]))
    except ResearcherError as error:
        print(str(error), file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
