"""analysis.md and report.html of one run: what was found, why, what next, and everything needed to repeat it."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from sota_ml_researcher.analysis.diagnosis import Diagnosis
from sota_ml_researcher.analysis.experiment import answer_to, experiment_of
from sota_ml_researcher.analysis.findings import Finding
from sota_ml_researcher.analysis.report_parts import Sample, Table, reproduce, samples, tables
from sota_ml_researcher.core.files import write_atomically
from sota_ml_researcher.core.paths import home, writable_folder
from sota_ml_researcher.doctrine.rules import rule

ANALYSIS, REPORT, PLOTS = "analysis.md", "report.html", "plots"


@dataclass(frozen=True, slots=True)
class Report:
    """The words of a report; ``images`` are pairs of name and base64 PNG."""

    title: str
    verdict: str
    answers: Sequence[tuple[str, str]]
    findings: Sequence[Mapping[str, Any]]
    notes: Sequence[str]
    tables: Sequence[Table]
    samples: Sequence[Sample]
    images: Sequence[tuple[str, str]]
    reproduce: str
    source: str


@dataclass(frozen=True, slots=True)
class Written:
    """Where a report lies."""

    analysis: Path
    report: Path
    picture: Path


def verdict(diagnosis: Diagnosis) -> str:
    """One or two sentences: how far the metric that counts moved, and how many things were found."""
    change, run = diagnosis.change, diagnosis.run
    steps = f"{run.last_step}" + (f" of {run.planned_steps}" if run.planned_steps else "")
    opening = f"{run.name} ({run.kind}), step {steps}"
    if run.active:
        opening += ", still going: preliminary"
    if change is None:
        return f"{opening}: no metric with two values yet."
    best = f"; best {change.best:.4g} at step {change.best_step}" if change.metric else ""
    return (
        f"{opening}: {change.metric} {change.first:.4g} to {change.last:.4g}, {change.word} "
        f"(noise floor {change.floor:.2g}){best}."
    )


def make_report(diagnosis: Diagnosis, png: bytes) -> Report:
    """Collect everything a report says."""
    run = diagnosis.run
    plan = experiment_of(run.config)
    return Report(
        title=f"Analysis of {run.name}",
        verdict=verdict(diagnosis),
        answers=answer_to(plan, diagnosis) if plan else (),
        findings=[_shown(f) for f in diagnosis.findings],
        notes=diagnosis.notes,
        tables=tables(run),
        samples=samples(run),
        images=[("Curves, with the findings marked", base64.b64encode(png).decode())],
        reproduce=reproduce(run),
        source=str(run.file),
    )


def _shown(finding: Finding) -> dict[str, Any]:
    known = rule(finding.rule)
    source = known.source
    return {
        "kind": finding.kind,
        "level": finding.level,
        "summary": finding.summary,
        "evidence": [str(e) for e in finding.evidence],
        "rule": finding.rule,
        "claim": known.claim,
        "source": f"{source.authors} {source.year}",
        "link": source.link,
        "confidence": finding.confidence,
        "next_experiment": finding.next_experiment,
    }


def as_html(report: Report) -> str:
    """The page; everything in it is escaped."""
    from jinja2 import Environment

    text = (files("sota_ml_researcher.analysis") / "report.jinja").read_text(encoding="utf-8")
    return Environment(autoescape=True).from_string(text).render(r=report)


def as_markdown(report: Report) -> str:
    """The same for terminals and version control, without pictures inside."""
    lines = [f"# {report.title}", "", report.verdict, ""]
    for question, reply in report.answers:
        lines += [f"**{question}**", "", reply, ""]
    lines += [f"![Curves]({PLOTS}/run.png)", "", "## Findings", ""]
    for f in report.findings:
        lines += [f"### {f['kind'].replace('_', ' ')} ({f['level']})", "", f["summary"], ""]
        lines += [f"- {e}" for e in f["evidence"]]
        cited = f"[{f['source']}]({f['link']})"
        lines += [
            "",
            f"Next experiment: {f['next_experiment']}",
            "",
            f"Rule `{f['rule']}`: {f['claim']} ({cited}) Confidence: {f['confidence']}.",
            "",
        ]
    if not report.findings:
        lines += ["Nothing found. That is no proof of quality: try samples and an evaluation on held-out prompts.", ""]
    if report.notes:
        lines += ["The log: " + "; ".join(report.notes) + ".", ""]
    for table in report.tables:
        lines += [f"## {table.title}", "", _row(table.head), "|" + "---|" * len(table.head)]
        lines += [_row(cells) for cells in table.rows] + [""]
    for s in report.samples:
        lines += ["## Sample", "", f"Prompt: {s.prompt}", "", f"Before: {s.before}", "", f"After: {s.after}", ""]
    lines += ["## How to reproduce", "", "```", report.reproduce, "```", "", f"Metrics read from {report.source}."]
    return "\n".join(lines) + "\n"


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(c.replace("|", "\\|").replace("\n", " ") for c in cells) + " |"


def write_report(diagnosis: Diagnosis, png: bytes) -> Written:
    """Write analysis.md, report.html and plots/run.png: into our own run's folder, else below ML_RESEARCHER_HOME.

    Raises:
        StorageError: If they cannot be written.
    """
    folder = report_folder(diagnosis)
    report = make_report(diagnosis, png)
    plots = writable_folder(folder / PLOTS)
    written = Written(folder / ANALYSIS, folder / REPORT, plots / "run.png")
    write_atomically(written.picture, png)
    write_atomically(written.analysis, as_markdown(report))
    write_atomically(written.report, as_html(report))
    return written


def report_folder(diagnosis: Diagnosis) -> Path:
    """Where a run's report goes. A folder that is not ours is never written to."""
    import hashlib

    run = diagnosis.run
    if run.job is not None:
        return writable_folder(run.file.parent)
    mark = hashlib.sha256(str(run.file.resolve()).encode()).hexdigest()[:8]
    plain = "".join(c if c.isalnum() or c in "-_." else "_" for c in run.name)[:60].lstrip(".") or "run"
    return writable_folder(home() / "analyses" / f"{plain}-{mark}")
