"""Reading runs: what one run shows, and how several differ."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import anyio
import anyio.to_thread
from mcp_types import CallToolResult, ImageContent
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from ..core.extras import require_packages
from ..core.foreign_text import foreign, has_foreign, named, one_line
from .answers import MAX_TEXT, answer

if TYPE_CHECKING:
    from ..analysis.diagnosis import Diagnosis
    from ..analysis.runs import Run

# A name of so few characters says nothing.
_SHORT = 8
# Longer texts of settings are left to the report.
_MOST_SETTINGS = 500
_MORE = "The rest is in the report."


class Shown(BaseModel):
    """Something a run shows: what it is, where it is seen, and the one thing to try next."""

    kind: str
    level: str
    summary: str
    evidence: list[Annotated[str, BeforeValidator(str)]]
    rule: str
    confidence: str
    next_experiment: str


class Analysis(BaseModel):
    """What a run shows, causes first. Findings: kind, level, summary, evidence, rule, confidence, next_experiment."""

    run: str
    verdict: str
    learned: str | None
    findings: list[Shown]
    notes: list[str]
    report: str
    next: str


async def analyze_run(
    run: Annotated[str, Field(description="Job id, folder or file")],
) -> Annotated[CallToolResult, Analysis]:
    """Diagnose one run from its whole curves: causes with evidence and rule, what it learned, next experiment, report.

    Reads our jobs, cookbook metrics.jsonl, TRL/transformers trainer_state.json and CSV. Use it for what happened
    and why: a loss that went up, a reward that does not move, overfitting; also while a run goes on. Not for status or
    errors: get_job; for several runs use compare_runs, for a data file check_dataset.
    """
    analysis, png, names = await anyio.to_thread.run_sync(_analyzed, run)
    lines = [analysis.verdict]
    lines += [f"[{f.level}] {f.summary} ({f.rule}, confidence {f.confidence})" for f in analysis.findings[:4]]
    if len(analysis.findings) > 4:
        lines.append(f"{len(analysis.findings) - 4} more in the report.")
    if not analysis.findings:
        lines.append("Nothing found.")
    if analysis.learned is not None:
        lines.append(analysis.learned)
    if analysis.notes:
        lines.append(f"The log: {foreign('; '.join(analysis.notes), 250)}.")
    return answer(analysis, _text(lines, analysis, names), _image(png))


class Difference(BaseModel):
    """A run beside the first one; ``difference``: its metric minus the first run's, in the metric's unit."""

    model_config = ConfigDict(populate_by_name=True)

    run: str
    word: str
    reading: str
    left_out: str
    difference: float | None
    noise_floor: float | None = Field(validation_alias="floor")
    at_equal_tokens: float | None = Field(validation_alias="at_tokens")


class RunsCompared(BaseModel):
    """How runs differ: settings first, then the metric.

    A pair: run, word, reading, left_out (steps not compared, and why), difference (metric minus the first run's),
    noise_floor, at_equal_tokens.
    """

    settings: str
    changed: dict[str, list[Any]]
    metric: str
    pairs: list[Difference]
    findings: list[str]
    report: str
    next: str


async def compare_runs(
    runs: Annotated[list[str], Field(min_length=2, max_length=8, description="As for analyze_run; first: baseline")],
    metric: Annotated[str | None, Field(description="As logged; null: the primary")] = None,
) -> Annotated[CallToolResult, RunsCompared]:
    """Compare training runs: changed settings first, then one metric by step and tokens, within the noise; a report.

    Use it for "did that help, or is it the seed's noise?". It needs ids: list_jobs finds them. Not for one run:
    analyze_run; not for the quality of answers: run_judge_eval.
    """
    compared, png, names = await anyio.to_thread.run_sync(_compared, runs, metric)
    short = len(compared.settings) <= _MOST_SETTINGS
    settings = (
        foreign(compared.settings) if short else f"{len(compared.changed)} settings differ: the report lists them."
    )
    lines = [settings, f"{compared.metric} against the first run:"]
    lines += [
        f"- {p.run}: {'; '.join(part for part in (p.word, p.reading, p.left_out) if part)}." for p in compared.pairs[:4]
    ]
    if len(compared.pairs) > 4:
        lines.append(f"{len(compared.pairs) - 4} more in the report.")
    return answer(compared, _text([*lines, *compared.findings], compared, names), _image(png))


def _compared(targets: Sequence[str], metric: str | None) -> tuple[RunsCompared, bytes, list[str]]:
    require_packages("analysis", by="a comparison")
    from ..analysis.comparison import compare
    from ..analysis.comparison_report import next_experiment, settings_line, write_comparison
    from ..analysis.runs import load_run

    extra = [metric] if metric else []
    comparison = compare([load_run(target, extra=extra) for target in targets], metric)
    written = write_comparison(comparison)
    compared = RunsCompared(
        settings=settings_line(comparison),
        changed={key: list(values) for key, values in comparison.config.changed.items()},
        metric=comparison.metric,
        pairs=[Difference.model_validate(pair, from_attributes=True) for pair in comparison.pairs],
        findings=[f"{f.summary} ({f.rule})" for f in comparison.findings],
        report=str(written.report),
        next=next_experiment(comparison),
    )
    changed = [str(value) for values in comparison.config.changed.values() for value in values]
    return compared, written.png, [*_names(comparison.runs), *comparison.config.changed, *changed]


def _analyzed(target: str) -> tuple[Analysis, bytes, list[str]]:
    require_packages("analysis", by="an analysis")
    from ..analysis.description_length import learned_text
    from ..analysis.diagnosis import diagnose
    from ..analysis.plots import run_picture
    from ..analysis.report import verdict, write_report
    from ..analysis.runs import load_run

    diagnosis = diagnose(load_run(target))
    png = run_picture(diagnosis)
    written = write_report(diagnosis, png)
    findings = [Shown.model_validate(finding, from_attributes=True) for finding in diagnosis.findings]
    analysis = Analysis(
        run=diagnosis.run.name,
        verdict=verdict(diagnosis),
        learned=learned_text(diagnosis.run) if diagnosis.run.kind == "sft" else None,
        findings=findings,
        notes=diagnosis.notes,
        report=str(written.report),
        next=findings[0].next_experiment if findings else _healthy(diagnosis),
    )
    return analysis, png, _names([diagnosis.run])


def _names(runs: Sequence[Run]) -> list[str]:
    """What our sentences about runs take from their logs and folders."""
    return [name for run in runs for name in (run.name, run.kind, *(metric.name for metric in run.series.values()))]


def _healthy(diagnosis: Diagnosis) -> str:
    run = diagnosis.run
    if run.active:
        return f"wait_for_job(job_id='{run.name}')"
    if diagnosis.change is None:
        return "analyze it again once a loss or a reward has two finite values; nothing is known of this run yet"
    model = run.name if run.job else "..."
    return f"run_judge_eval(finetuned_model='{model}', ...): a sound curve does not say that answers are better"


def _text(lines: Sequence[str], content: Analysis | RunsCompared, names: Sequence[str]) -> str:
    """The lines that fit, whole, then report and next step; ``names`` out of logs stand as somebody else's text."""
    odd = sorted({name for name in names if len(name) > _SHORT and named(name) != name}, key=len, reverse=True)
    tail = [f"Report: {named(content.report)}", f"Next: {content.next}"]
    room = MAX_TEXT - sum(map(len, tail)) - len(_MORE) - len(tail) - 1
    kept: list[str] = []
    for line in lines:
        if len("\n".join([*kept, line])) > room:
            kept.append(_MORE)
            break
        kept.append(line)
    return "\n".join(line if has_foreign(line) else _with_quoted(one_line(line), odd) for line in [*kept, *tail])


def _with_quoted(line: str, names: Sequence[str]) -> str:
    for place, name in enumerate(names):  # in two steps, since one name may be a part of another
        line = line.replace(one_line(name), f"\0{place}\0")
    for place, name in enumerate(names):
        line = line.replace(f"\0{place}\0", named(name, 100))
    return line


def _image(png: bytes) -> ImageContent:
    return ImageContent(type="image", data=base64.b64encode(png).decode(), mime_type="image/png")
