"""analysis.md and report.html of one run: findings, reasons, what to try next, and everything needed to repeat it."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any, cast

from ..core.errors import ResearcherError
from ..core.files import read_json_lines, write_atomically
from ..core.paths import state_folder, writable_folder
from ..core.yaml_loading import load_yaml
from ..doctrine.rules import Rule, rule
from ..evals.evidence import ITEMS, RESPONSES
from ..jobs import run_files
from ..jobs.registry import Registry
from .description_length import learned_text
from .diagnosis import Diagnosis
from .experiment import answer_to, experiment_of
from .findings import RunFinding
from .runs import Run

ANALYSIS, REPORT, PLOTS = "analysis.md", "report.html", "plots"
_SAMPLES = 5
_SAMPLE_CHARS = 1500
_ALERTS = 20
_EVALUATIONS_SEARCHED = 200
_SETTING = re.compile(r"^(\w+): (.*?)(?:  # (.*))?$")


@dataclass(frozen=True, slots=True)
class ReportTable:
    """A table of texts with a title and column heads."""

    title: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True, slots=True)
class BeforeAfter:
    """One prompt, answered before and after training."""

    prompt: str
    before: str
    after: str


def tables(run: Run) -> list[ReportTable]:
    """Settings with origins, data card, checkpoints, cost and environment, as far as the folder has them."""
    folder = run.file.parent
    environment = _json(folder / run_files.ENVIRONMENT)
    all_tables = [
        _settings(folder, run.config),
        _data_card(environment, run),
        _checkpoints(folder),
        _cost(folder, run),
        _alerts(folder),
        _environment(environment),
    ]
    return [table for table in all_tables if table is not None and table.rows]


def _json(path: Path) -> dict[str, Any]:
    """A JSON object, or {} where the file is missing or broken: a report leaves out what it cannot read."""
    try:
        content: Any = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return cast("dict[str, Any]", content) if isinstance(content, dict) else {}


def _settings(folder: Path, config: Mapping[str, Any]) -> ReportTable | None:
    path = folder / run_files.CONFIG
    if not path.exists():
        rows = [(key, json.dumps(value, ensure_ascii=False, default=str)[:200], "") for key, value in config.items()]
        return ReportTable("Settings", ("setting", "value", "origin"), rows)
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    rows = [(m[1], m[2], m[3] or "") for m in map(_SETTING.match, lines) if m]
    return ReportTable("Settings", ("setting", "value", "origin: rule and reason"), rows)


def _data_card(environment: Mapping[str, Any], run: Run) -> ReportTable | None:
    rows: list[tuple[str, str]] = []
    data = environment.get("data")
    for name, facts in cast("dict[str, Any]", data).items() if isinstance(data, dict) else ():
        rows.append((name, f"{facts.get('bytes', 0):,} bytes, SHA-256 {facts.get('sha256', 'unknown')}"))
    for label, quantity in (("tokens", "tokens"), ("tokens that carry loss", "loss_tokens")):
        series = run.get(quantity)
        if series is not None:
            total = float(series.values.sum())
            rows.append((label, f"{total:,.0f} over {len(series):,} steps, {total / len(series):,.0f} per step"))
    if run.kind == "sft":
        rows.append(("excess description length", learned_text(run)))
    return ReportTable("Data", ("what", "facts"), rows)


def _saved(folder: Path) -> list[run_files.Checkpoint]:
    """A run's checkpoints; none where their list cannot be read."""
    try:
        return run_files.checkpoints(folder)
    except (ValueError, OSError):
        return []


def _checkpoints(folder: Path) -> ReportTable:
    rows = [(c.name, c.sampler_path or c.state_path or "") for c in _saved(folder)[-8:]]
    return ReportTable("Checkpoints (the last ones)", ("name", "path"), rows)


def _cost(folder: Path, run: Run) -> ReportTable | None:
    result = _json(folder / run_files.RESULT)
    rows: list[tuple[str, str]] = []
    cost = run.job.cost_usd if run.job and run.job.cost_usd else result.get("cost_usd")
    if isinstance(cost, int | float):
        rows.append(("metered", f"${cost:.4g}"))
    billed = _json(folder / run_files.BILLING).get("cost_usd")
    if isinstance(billed, int | float):
        rows.append(("billed", f"${billed:.4g}"))
    if isinstance(wall := result.get("wall_s"), int | float):
        rows.append(("wall time", f"{wall:,.1f} s"))
    if isinstance(tokens := result.get("tokens_trained"), int):
        rows.append(("tokens trained", f"{tokens:,}"))
    return ReportTable("Cost", ("what", "amount"), rows)


def _alerts(folder: Path) -> ReportTable | None:
    try:
        told = run_files.alerts(folder, limit=_ALERTS)
    except (ValueError, TypeError, OSError):
        return None
    rows = [(alert.level, "" if alert.step is None else f"{alert.step}", alert.message) for alert in told]
    return ReportTable("What the job said of itself", ("level", "step", "message"), rows)


def _environment(environment: Mapping[str, Any]) -> ReportTable | None:
    rows = [(k, str(environment[k])) for k in ("python", "platform", "git_revision") if environment.get(k)]
    packages = environment.get("packages")
    if isinstance(packages, dict):
        rows += [(str(k), str(v)) for k, v in cast("dict[str, Any]", packages).items() if v]
    return ReportTable("Environment", ("what", "version"), rows)


def samples(run: Run) -> list[BeforeAfter]:
    """Answers before and after training, from the newest judge evaluation of this job; training itself stores none."""
    if run.job is None:
        return []
    # A job's config names the checkpoint that was sampled, whatever the user wrote.
    own = [checkpoint.sampler_path for checkpoint in _saved(run.job.folder) if checkpoint.sampler_path]
    for job in Registry().find(kind="judge_eval", limit=_EVALUATIONS_SEARCHED):
        if not (job.folder / RESPONSES).exists():
            continue
        try:
            if load_yaml(job.folder / run_files.CONFIG).data.get("finetuned_model") in own:
                return _pairs(job.folder)
        except (ResearcherError, ValueError, KeyError, OSError):
            continue
    return []


def _pairs(folder: Path) -> list[BeforeAfter]:
    prompts = {str(i["id"]): str(i["messages"][-1].get("content", "")) for i in read_json_lines(folder / ITEMS)}
    answers: dict[str, dict[str, str]] = {}
    for row in read_json_lines(folder / RESPONSES):
        answers.setdefault(str(row["id"]), {})[str(row["arm"])] = str(row["text"])
    pairs: list[BeforeAfter] = []
    for item, by_arm in answers.items():
        other = next((arm for arm in by_arm if arm != "baseline"), None)
        if "baseline" in by_arm and other is not None and item in prompts:
            texts = (prompts[item], by_arm["baseline"], by_arm[other])
            pairs.append(BeforeAfter(*(text[:_SAMPLE_CHARS] for text in texts)))
    return pairs[:_SAMPLES]


def reproduce(run: Run) -> str:
    """The commands that repeat a run, or what is missing for that."""
    config = run.file.parent / run_files.CONFIG
    if not config.exists():
        return "No config lies beside the metrics: the settings of this run are not known."
    tool = {"sft": "start_sft", "dpo": "start_dpo", "rl": "start_grpo"}[run.kind]
    return (
        f"{tool}(config='{config}')\n"
        "# the resolved config: every value is set, so defaults that change later do not matter. "
        "The data's SHA-256 is above; with the same seed the embedded engine repeats the curve on the same machine."
    )


@dataclass(frozen=True, slots=True)
class RunReport:
    """What a report says: findings with their rules, and ``images`` as pairs of name and base64 PNG."""

    title: str
    verdict: str
    answers: Sequence[tuple[str, str]]
    findings: Sequence[tuple[RunFinding, Rule]]
    notes: Sequence[str]
    tables: Sequence[ReportTable]
    samples: Sequence[BeforeAfter]
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
    """One sentence: how far the metric that counts moved, and whether that is more than noise."""
    change, run = diagnosis.change, diagnosis.run
    steps = f"{run.last_step}" + (f" of {run.planned_steps}" if run.planned_steps else "")
    opening = f"{run.name} ({run.kind}), step {steps}"
    if run.active:
        opening += ", still going: preliminary"
    if diagnosis.failure is not None:
        until = f" Until then {change.metric} went from {change.first:.4g} to {change.last:.4g}." if change else ""
        return f"{opening}: FAILED: {diagnosis.failure}.{until}"
    if change is None:
        return f"{opening}: no metric with two values yet."
    return (
        f"{opening}: {change.metric} {change.first:.4g} to {change.last:.4g}, {change.word} "
        f"(noise floor {change.floor:.2g}); best {change.best:.4g} at step {change.best_step}."
    )


def make_report(diagnosis: Diagnosis, png: bytes) -> RunReport:
    """Collect everything a report says."""
    run = diagnosis.run
    plan = experiment_of(run.config)
    return RunReport(
        title=f"Analysis of {run.name}",
        verdict=verdict(diagnosis),
        answers=answer_to(plan, diagnosis) if plan else (),
        findings=[(f, rule(f.rule)) for f in diagnosis.findings],
        notes=diagnosis.notes,
        tables=tables(run),
        samples=samples(run),
        images=[("Curves, with the findings marked", base64.b64encode(png).decode())],
        reproduce=reproduce(run),
        source=str(run.file),
    )


def as_html(report: RunReport) -> str:
    """The page; everything in it is escaped."""
    return rendered("report.jinja", r=report)


def as_markdown(report: RunReport) -> str:
    """The same for terminals and version control, without pictures inside."""
    return rendered("report_markdown.jinja", r=report)


def rendered(template: str, **values: Any) -> str:
    """A template of this folder with its values; ``report.jinja`` is HTML and escapes them, the others are markdown."""
    from jinja2 import Environment, StrictUndefined

    environment = Environment(
        autoescape=template == "report.jinja",
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["cell"] = lambda text: str(text).replace("|", "\\|").replace("\n", " ")
    text = (files("sota_ml_researcher.analysis") / template).read_text(encoding="utf-8")
    return environment.from_string(text).render(values)


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
    run = diagnosis.run
    if run.job is not None:
        return writable_folder(run.file.parent)
    mark = hashlib.sha256(str(run.file.resolve()).encode()).hexdigest()[:8]
    plain = "".join(c if c.isalnum() or c in "-_." else "_" for c in run.name)[:60].lstrip(".") or "run"
    return writable_folder(state_folder("analyses") / f"{plain}-{mark}")
