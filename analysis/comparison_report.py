"""comparison.md and its picture: the settings that differ first, then the verdicts."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from ..core.files import write_atomically
from ..core.paths import state_folder, writable_folder
from ..doctrine.rules import integer
from .comparison import Comparison
from .plots import comparison_picture
from .report import rendered


@dataclass(frozen=True, slots=True)
class WrittenComparison:
    """Where a comparison lies, and its picture."""

    report: Path
    png: bytes


def settings_line(comparison: Comparison) -> str:
    """What was changed, in one sentence."""
    config = comparison.config
    if config.unknown:
        return f"The settings of {', '.join(config.unknown)} are not known."
    names = [run.name for run in comparison.runs]
    if not config.changed:
        same_seed = len({str(s) for s in config.seeds}) < len(config.seeds)
        return "The settings are the same" + (", seed included." if same_seed else " but for the seed.")
    lines = "; ".join(config.lines(names))
    if config.confounded:
        return f"{len(config.changed)} settings changed, so the comparison is confounded: {lines}."
    return f"One setting changed: {lines}."


def next_experiment(comparison: Comparison) -> str:
    """The one thing to do next."""
    config = comparison.config
    if config.confounded:
        return f"Repeat with one change alone, first {next(iter(config.changed))}; all else as in the first run."
    if config.unknown:
        return "Put the config beside the metrics, or compare jobs of this server."
    if comparison.seed_spread is None:
        seeds = integer("stats.seeds")
        return f"Repeat each setting with other seeds ({seeds} in all give a first idea of the spread), compare all."
    return "Check the better one by run_judge_eval on held-out prompts: loss is not answer quality."


def write_comparison(comparison: Comparison) -> WrittenComparison:
    """Write both files below ``ML_RESEARCHER_HOME/comparisons``.

    Raises:
        StorageError: If they cannot be written.
    """
    mark = hashlib.sha256("\n".join(str(run.file.resolve()) for run in comparison.runs).encode()).hexdigest()[:8]
    folder = writable_folder(state_folder("comparisons") / mark)
    title = " and ".join(run.name for run in comparison.runs[:3]) + (" …" if len(comparison.runs) > 3 else "")
    png = comparison_picture(title, comparison.panels)
    write_atomically(folder / "comparison.png", png)
    write_atomically(folder / "comparison.md", as_markdown(comparison))
    return WrittenComparison(folder / "comparison.md", png)


def as_markdown(comparison: Comparison) -> str:
    """The comparison as markdown."""
    return rendered(
        "comparison.jinja",
        c=comparison,
        names=[run.name for run in comparison.runs],
        settings=settings_line(comparison),
        next_experiment=next_experiment(comparison),
    )
