"""Reading runs: what one run shows, and how several differ."""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING, Annotated, Any

import anyio
import anyio.to_thread
from mcp_types import CallToolResult, ImageContent
from pydantic import BaseModel, Field

from ..core.errors import MissingDependencyError
from .answers import MAX_TEXT, answer

if TYPE_CHECKING:
    from ..analysis.comparison import Comparison
    from ..analysis.comparison_report import WrittenComparison
    from ..analysis.diagnosis import Diagnosis
    from ..analysis.report import Written


class Analysis(BaseModel):
    """What a run shows, worst first. Findings: kind, level, summary, evidence, rule, confidence, next_experiment."""

    run: str
    verdict: str
    findings: list[dict[str, Any]]
    notes: list[str]
    report: str
    next: str


async def analyze_run(
    run: Annotated[str, Field(description="Job id, folder or file")],
) -> Annotated[CallToolResult, Analysis]:
    """Diagnose one run from its whole curves: causes with evidence and rule, the next experiment, plot and report.

    Reads our jobs, cookbook metrics.jsonl, TRL/transformers trainer_state.json and CSV. Use it for "why", also while
    a run goes on. Not for status or errors: get_job; for several runs use compare_runs, for a data file check_dataset.
    """
    diagnosis, png, written = await anyio.to_thread.run_sync(_analysed, run)
    shown = _analysis(diagnosis, written)
    return answer(shown, _text(shown), _image(png))


class RunsCompared(BaseModel):
    """How runs differ: settings first, then the metric.

    A pair: run, word, reading, difference (metric minus the first run's), noise_floor, at_equal_tokens.
    """

    settings: str
    changed: dict[str, list[Any]]
    metric: str
    pairs: list[dict[str, Any]]
    findings: list[str]
    report: str
    next: str


async def compare_runs(
    runs: Annotated[list[str], Field(min_length=2, max_length=8, description="As for analyze_run; first: baseline")],
    metric: Annotated[str | None, Field(description="As logged; null: the primary")] = None,
) -> Annotated[CallToolResult, RunsCompared]:
    """Compare training runs: changed settings first, then one metric by step and by tokens, within the noise.

    Use it for "did that help?". It needs ids: list_jobs finds them. Not for one run: analyze_run; not for the quality
    of answers: run_judge_eval.
    """
    comparison, written = await anyio.to_thread.run_sync(_compared, runs, metric)
    shown = _comparison(comparison, written)
    return answer(shown, _comparison_text(shown), _image(written.png))


def _compared(targets: list[str], metric: str | None) -> tuple[Comparison, WrittenComparison]:
    try:
        from ..analysis.comparison import compare
        from ..analysis.comparison_report import write_comparison
        from ..analysis.runs import load_run
    except ImportError as error:
        raise _missing(error) from error
    extra = [metric] if metric else []
    comparison = compare([load_run(target, extra=extra) for target in targets], metric)
    return comparison, write_comparison(comparison)


def _comparison(comparison: Comparison, written: WrittenComparison) -> RunsCompared:
    from ..analysis.comparison_report import next_experiment, settings_line

    pairs = [
        {
            "run": p.run,
            "word": p.word,
            "reading": p.reading,
            "difference": p.difference,
            "noise_floor": p.floor,
            "at_equal_tokens": p.at_tokens,
        }
        for p in comparison.pairs
    ]
    return RunsCompared(
        settings=settings_line(comparison),
        changed={k: list(v) for k, v in comparison.config.changed.items()},
        metric=comparison.metric,
        pairs=pairs,
        findings=[f"{f.summary} ({f.rule})" for f in comparison.findings],
        report=str(written.report),
        next=next_experiment(comparison),
    )


def _comparison_text(shown: RunsCompared) -> str:
    lines = [shown.settings[:500], f"{shown.metric} against the first run:"]
    lines += [f"- {p['run']}: {p['word']}; {p['reading']}."[:260] for p in shown.pairs[:4]]
    if len(shown.pairs) > 4:
        lines.append(f"{len(shown.pairs) - 4} more in the report.")
    return _fitted([*lines, *shown.findings], [f"Report: {shown.report}", f"Next: {shown.next}"])


def _fitted(lines: list[str], tail: list[str]) -> str:
    """The lines, cut where needed so that the tail is always read."""
    room = MAX_TEXT - sum(len(line) + 1 for line in tail) - 1
    return "\n".join(["\n".join(lines)[:room], *tail])


def _analysed(target: str) -> tuple[Diagnosis, bytes, Written]:
    try:
        from ..analysis.diagnosis import diagnose
        from ..analysis.plots import run_picture
        from ..analysis.report import write_report
        from ..analysis.runs import load_run
    except ImportError as error:
        raise _missing(error) from error
    diagnosis = diagnose(load_run(target))
    png = run_picture(diagnosis)
    return diagnosis, png, write_report(diagnosis, png)


def _missing(error: ImportError) -> MissingDependencyError:
    return MissingDependencyError(
        f"analysis needs {error.name or 'a package'} that is not installed",
        fix="pip install 'sota-ml-researcher[analysis]'",
    )


def _analysis(diagnosis: Diagnosis, written: Written) -> Analysis:
    from ..analysis.report import verdict

    findings: list[dict[str, Any]] = [
        {
            "kind": f.kind,
            "level": f.level,
            "summary": f.summary,
            "evidence": [str(e) for e in f.evidence],
            "rule": f.rule,
            "confidence": f.confidence,
            "next_experiment": f.next_experiment,
        }
        for f in diagnosis.findings
    ]
    follow = findings[0]["next_experiment"] if findings else _healthy(diagnosis)
    return Analysis(
        run=diagnosis.run.name,
        verdict=verdict(diagnosis),
        findings=findings,
        notes=diagnosis.notes,
        report=str(written.report),
        next=follow,
    )


def _healthy(diagnosis: Diagnosis) -> str:
    run = diagnosis.run
    if run.active:
        return f"wait_for_job(job_id='{run.name}')"
    if diagnosis.change is None:
        return "analyse it again once a loss or a reward has two finite values; nothing is known of this run yet"
    model = run.name if run.job else "..."
    return f"run_judge_eval(finetuned_model='{model}', ...): a sound curve does not say that answers are better"


def _text(shown: Analysis) -> str:
    lines = [shown.verdict]
    lines += [f"[{f['level']}] {f['summary']} ({f['rule']}, confidence {f['confidence']})" for f in shown.findings[:4]]
    if len(shown.findings) > 4:
        lines.append(f"{len(shown.findings) - 4} more in the report.")
    if not shown.findings:
        lines.append("Nothing found.")
    if shown.notes:
        lines.append(f"The log: {'; '.join(shown.notes)}."[:250])
    return _fitted(lines, [f"Report: {shown.report}", f"Next: {shown.next}"])


def _image(png: bytes) -> ImageContent:
    return ImageContent(type="image", data=base64.b64encode(png).decode(), mime_type="image/png")
