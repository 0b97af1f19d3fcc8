"""What every recipe is: sources to start from, and how a row is made of one."""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

from ..core.errors import DataError
from ..core.files import write_json_lines
from ..data.row_turns import encodable
from ..evals.test_set import item_of, read_each
from ..judges.prompt import EvalItem
from ..models.chat import Message
from .gate import Draft, Task
from .generation_config import GenerationConfig
from .jury import Ranking
from .model_answers import Asking

T = TypeVar("T")
ROWS = "rows.jsonl"


class Ranks(Protocol):
    """A judge that ranks answers."""

    async def rank(self, item: EvalItem, answers: Sequence[str]) -> Ranking:
        """See `jury.Jury.rank`."""
        ...


class Recipe(ABC):
    """One way to make rows.

    Attributes:
        tasks: What rows are made of, one after the other.
        warnings: What to know of the sources before starting.
        template_hash: Tells wordings apart; None where a prompt is asked as it is.
        answers: Answers of the model for one task, where every one can be read.
        compares_prompts: Whether it makes prompts, so that the same prompt twice is a duplicate.
        next_call: The call that reads the rows, with ``{rows}`` for their file.
    """

    template_hash: str | None = None
    answers: int = 1
    compares_prompts: bool = False
    next_call: str = "start_sft(overrides={{'train_file': '{rows}', 'base_model': ...}})"

    def __init__(self, config: GenerationConfig) -> None:
        self.config = config
        self.warnings: list[str] = []
        self.tasks: Sequence[Task] = self.load()

    @abstractmethod
    def load(self) -> Sequence[Task]:
        """Read the sources.

        Raises:
            DataError: If one cannot be used, with its file and line.
        """

    def require_references(self, tasks: Sequence[Task]) -> None:
        """See that a judge that compares with references has one for each task.

        Raises:
            DataError: Naming the first row without one.
        """
        judge = self.config.judge
        without = next((task for task in tasks if task.item.reference is None), None)
        if judge is not None and judge.kind == "check" and without is not None:
            where = f"{without.source['file']}:{without.item.line}"
            raise DataError(f"{judge.name} needs a reference, and this row has none", where=where, fix='Add "answer"')

    @abstractmethod
    def opening(self, task: Task) -> Sequence[Message]:
        """The first request for a task."""

    @abstractmethod
    async def make(self, task: Task, ask: Asking, judge: Ranks | None) -> Sequence[Draft]:
        """Make rows of a task.

        Raises:
            NotMadeError: If none can be made of it.
            Exception: As `Asking.text`.
        """

    def write(self, folder: Path, rows: Sequence[Mapping[str, Any]]) -> list[str]:
        """Write what was made into the run's folder; the names of the files, the one that is read next first."""
        write_json_lines(folder / ROWS, rows)
        return [ROWS]


def row_tasks(config: GenerationConfig) -> list[Task]:
    """A task for each row of ``prompts``, or for ``num_samples`` of them drawn by the seed.

    Raises:
        DataError: If a row has no prompt that can be read, with its file and line.
    """
    path = Path(str(config.prompts))
    items = read_each(path, lambda row, number: _usable(item_of(row, number, number)))
    return [Task(n, item, {"file": path.name, "line": item.line}) for n, item in enumerate(drawn(items, config))]


def _usable(item: EvalItem) -> EvalItem:
    """The same item, whose texts can be written and sent."""
    for text in (*(message["content"] for message in item.messages), item.reference or ""):
        encodable(text, "a text of this row")
    return item


def drawn(found: Sequence[T], config: GenerationConfig) -> list[T]:
    """All, or ``num_samples`` of them drawn by the seed, in their order."""
    if config.num_samples is None or config.num_samples >= len(found):
        return list(found)
    return [found[i] for i in sorted(random.Random(config.seed).sample(range(len(found)), config.num_samples))]


def turns(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """A prompt's turns as a row has them: answers in it are read and not imitated."""
    kept = [{key: value for key, value in message.items() if key != "trained"} for message in messages]
    return [{**turn, "weight": 0} if turn["role"] == "assistant" else turn for turn in kept]


def supervised_row(prompt: Sequence[Message], answer: str) -> dict[str, Any]:
    """A row to imitate: its last answer."""
    return {"messages": [*turns(prompt), {"role": "assistant", "content": answer}]}
