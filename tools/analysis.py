"""Reading runs: what one run shows, and how several differ."""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING, Annotated

import anyio
import anyio.to_thread
from mcp_types import CallToolResult, ImageContent
from pydantic import BaseModel, Field

from sota_ml_researcher.core.errors import MissingDependencyError
from sota_ml_researcher.tools.answers import answer

if TYPE_CHECKING:
    from sota_ml_researcher.analysis.diagnosis import Diagnosis
    from sota_ml_researcher.analysis.report import Written


class FindingView(BaseModel):
    """One finding; ``evidence`` names metric, step, line and values."""

    kind: str
    level: str
    summary: str
    evidence: list[str]
    rule: str
    confidence: str
    next_experiment: str


class Analysis(BaseModel):
    """What a run shows, the worst first, and where the report lies."""

    run: str
    kind: str
    verdict: str
    findings: list[FindingView]
    notes: list[str]
    report: str
    analysis: str
    next: str


async def analyze_run(
    run: Annotated[str, Field(description="Job id, a run's folder, or its metrics file")],
) -> Annotated[CallToolResult, Analysis]:
    """Diagnose one run from its whole curves: causes with evidence and rule, the next experiment, plot and report.

    Reads our jobs, cookbook metrics.jsonl, TRL/transformers trainer_state.json and CSV. Use it for "why", also while
    a run goes on. Not for status or errors: get_job; for two or more runs use compare_runs.
    """
    diagnosis, png, written = await anyio.to_thread.run_sync(_analysed, run)
    shown = _analysis(diagnosis, written)
    return answer(shown, _text(shown), _image(png))


def _analysed(target: str) -> tuple[Diagnosis, bytes, Written]:
    try:
        from sota_ml_researcher.analysis.diagnosis import diagnose
        from sota_ml_researcher.analysis.plots import run_picture
        from sota_ml_researcher.analysis.report import write_report
        from sota_ml_researcher.analysis.runs import load_run
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
    from sota_ml_researcher.analysis.report import verdict

    findings = [
        FindingView(
            kind=f.kind,
            level=f.level,
            summary=f.summary,
            evidence=[str(e) for e in f.evidence],
            rule=f.rule,
            confidence=f.confidence,
            next_experiment=f.next_experiment,
        )
        for f in diagnosis.findings
    ]
    follow = findings[0].next_experiment if findings else _healthy(diagnosis)
    return Analysis(
        run=diagnosis.run.name,
        kind=diagnosis.run.kind,
        verdict=verdict(diagnosis),
        findings=findings,
        notes=diagnosis.notes,
        report=str(written.report),
        analysis=str(written.analysis),
        next=follow,
    )


def _healthy(diagnosis: Diagnosis) -> str:
    run = diagnosis.run
    if run.active:
        return f"wait_for_job(job_id='{run.name}')"
    model = run.name if run.job else "..."
    return f"run_judge_eval(finetuned_model='{model}', ...): a sound curve does not say that answers are better"


def _text(shown: Analysis) -> str:
    lines = [shown.verdict]
    lines += [f"[{f.level}] {f.summary} ({f.rule}, confidence {f.confidence})" for f in shown.findings[:4]]
    if len(shown.findings) > 4:
        lines.append(f"{len(shown.findings) - 4} more in the report.")
    if not shown.findings:
        lines.append("Nothing found.")
    if shown.notes:
        lines.append(f"The log: {'; '.join(shown.notes)}."[:250])
    tail = [f"Report: {shown.report}", f"Next: {shown.next}"]
    room = 1490 - sum(len(line) + 1 for line in tail)
    return "\n".join(["\n".join(lines)[:room], *tail])


def _image(png: bytes) -> ImageContent:
    return ImageContent(type="image", data=base64.b64encode(png).decode(), mime_type="image/png")
