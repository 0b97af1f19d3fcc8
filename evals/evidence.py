"""What an evaluation gathers, and the files of its run folder that hold it (besides those of every job)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from ..core.files import read_json_lines, write_json_lines
from ..judges.journal import JUDGMENTS, Judgment, read_judgments
from ..judges.prompt import EvalItem
from ..judges.rubric import Rubric, load_rubric
from .judge_config import JudgeEvalConfig, load_judge_settings
from .responses import Response
from .test_set import read_labels

BASELINE, TUNED = "baseline", "tuned"
ITEMS = "items.jsonl"
RESPONSES = "responses.jsonl"
CONTROLS = "controls.json"
RUN = "judges.json"
METRICS = "metrics.json"
VERDICT = "verdict.json"
VERDICT_TEXT = "verdict.txt"
REPORT = "report.html"
PLOTS = "plots"
INSPECT_LOG = "inspect_log.json"


@dataclass(frozen=True, slots=True)
class Evidence:
    """All that a conclusion is drawn from.

    Attributes:
        config: The evaluation's settings.
        rubric: What the judges looked for.
        items: The prompts.
        answers: Each arm's answers, in the order of ``items``.
        judgments: All judgments, those on calibration checks included.
        human: People's winner by item id.
    """

    config: JudgeEvalConfig
    rubric: Rubric
    items: Sequence[EvalItem]
    answers: Mapping[str, Sequence[Response]]
    judgments: Sequence[Judgment]
    human: Mapping[str, str]

    @property
    def orders(self) -> int:
        """In how many orders each pair was asked."""
        return 2 if self.config.position_debias else 1

    @property
    def pairwise(self) -> bool:
        """Whether answers were compared (or scored one by one)."""
        return self.config.mode == "pairwise"

    @property
    def null(self) -> float:
        """The effect of no difference: half the pairs won, or a difference of 0."""
        return 0.5 if self.pairwise else 0.0


def write_material(folder: Path, items: Sequence[EvalItem], answers: Mapping[str, Sequence[Response]]) -> None:
    """Keep the prompts and every arm's answers in the run's folder.

    Raises:
        StorageError: If they cannot be written.
    """
    write_json_lines(folder / ITEMS, map(asdict, items))
    pairs = [(arm, i, r) for arm, responses in answers.items() for i, r in zip(items, responses, strict=True)]
    write_json_lines(folder / RESPONSES, ({"arm": arm, "id": item.id, **asdict(r)} for arm, item, r in pairs))


def read_evidence(folder: Path) -> Evidence:
    """Everything gathered in a run's folder."""
    config = load_judge_settings(folder / "config.yaml", None).config
    rows = list(read_json_lines(folder / ITEMS))
    items = [EvalItem(messages=tuple(row.pop("messages")), **row) for row in rows]
    answers: dict[str, list[Response]] = {arm: [] for arm in config.arms}
    for row in read_json_lines(folder / RESPONSES):
        answers[row["arm"]].append(Response(row["text"], row["stop_reason"], row["tokens"]))
    return Evidence(
        config=config,
        rubric=load_rubric(config.rubric),
        items=items,
        answers=answers,
        judgments=list(read_judgments(folder / JUDGMENTS)),
        human=read_labels(Path(config.human_labels), items) if config.human_labels else {},
    )
