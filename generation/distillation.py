"""Prompt distillation: a teacher answers with a long prompt, the row is written without it.

Askell et al. 2021 (arXiv 2112.00861, Section on context distillation) train on the teacher's distribution; here its
samples are trained on, as supervised rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ..core.errors import DataError
from ..models.chat import Message
from .documents import read_document
from .gate import Draft, Task
from .model_answers import Asking
from .recipe import Ranks, Recipe, row_tasks, supervised_row
from .wording import template_hash


class Distillation(Recipe):
    """Answers of the teacher to given prompts; a row's own system turn stays, the teacher's prompt does not."""

    def load(self) -> Sequence[Task]:
        """Read the prompts and what the teacher is told (see `Recipe.load`)."""
        file = self.config.teacher_prompt_file
        self._told = (read_document(Path(file)) if file else str(self.config.teacher_prompt)).strip()
        if not self._told:
            raise DataError("the teacher's prompt is empty", where=str(file))
        self.template_hash = template_hash(self._told)
        tasks = row_tasks(self.config)
        self.require_references(tasks)
        return tasks

    def opening(self, task: Task) -> Sequence[Message]:
        """The prompt after the teacher's own, which comes before the row's system turn if it has one."""
        first, *rest = task.item.messages
        if first["role"] == "system":
            told = f"{self._told}\n\n{first['content']}"
            return [Message(role="system", content=told), *rest]
        return [Message(role="system", content=self._told), *task.item.messages]

    async def make(self, task: Task, ask: Asking, judge: Ranks | None) -> Sequence[Draft]:
        """One row, with the teacher's answer (see `Recipe.make`)."""
        written = await ask.text(task.number, "answer", self.opening(task))
        answer = written.text.strip() if self.config.keep_thinking else written.answer
        return [
            Draft(
                supervised_row(task.item.messages, answer),
                task.item.prompt_text,
                answer,
                written,
                judged=task.item,
                copied_from=task.item.messages[-1]["content"],
            )
        ]
