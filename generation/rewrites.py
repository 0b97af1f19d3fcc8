"""Rewrites and harder variants of given rows.

The operations are those of Evol-Instruct (Xu et al. 2023, arXiv 2304.12244, Section 3.2 and Appendix A), with
paraphrases beside them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from ..core.errors import DataError
from ..models.chat import Message
from .gate import Draft, Task, is_copy
from .model_answers import Asking, json_answer, text_under
from .recipe import Ranks, Recipe, row_tasks, supervised_row, turns
from .wording import OPERATIONS, REWRITE, asked, template_hash


class Rewrites(Recipe):
    """A new last turn for each row and operation, and an answer to it. Turns before it stay."""

    template_hash = template_hash(REWRITE, *OPERATIONS.values())
    compares_prompts = True

    def load(self) -> Sequence[Task]:
        """Read the rows; each is a task once for every operation (see `Recipe.load`)."""
        rows = row_tasks(self.config)
        if self.config.answers == "source":
            without = next((task for task in rows if task.item.reference is None), None)
            if without is not None:
                where = f"{without.source['file']}:{without.item.line}"
                raise DataError("this row has no answer to keep", where=where, fix='Add "answer", or answers: model')
        if self.config.answers == "none":
            self.next_call = "start_generation(overrides={{'recipe': 'distillation', 'prompts': '{rows}', ...}})"
        self.answers = 2 if self.config.answers == "model" else 1
        each = [(task, operation) for task in rows for operation in self.config.operations]
        return [replace(task, number=n, operation=operation) for n, (task, operation) in enumerate(each)]

    def opening(self, task: Task) -> Sequence[Message]:
        """The request for the new prompt."""
        data = {"request": task.item.messages[-1]["content"]}
        if len(task.item.messages) > 1:
            before = replace(task.item, messages=task.item.messages[:-1])
            data = {"before": "\n\n".join(f"[{m['role']}]\n{m['content']}" for m in before.messages), **data}
        return asked(REWRITE, data, operation=OPERATIONS[task.operation])

    async def make(self, task: Task, ask: Asking, judge: Ranks | None) -> Sequence[Draft]:
        """One row (see `Recipe.make`)."""
        prompt, written = await ask.read(task.number, "request", self.opening(task), _request)
        old = task.item.messages[-1]["content"]
        messages = (*task.item.messages[:-1], Message(role="user", content=prompt))
        facts = {"operation": task.operation}
        if is_copy(old, prompt):
            rewritten = replace(written, stop_reason="stop")
            return [Draft({"prompt": prompt}, prompt, prompt, rewritten, copied_from=old, facts=facts)]
        if self.config.answers == "none":
            row = {"prompt": prompt} if len(messages) == 1 else {"messages": turns(messages)}
            return [Draft(row, prompt, prompt, replace(written, stop_reason="stop"), facts=facts)]
        item = replace(task.item, messages=messages, reference=None)
        answer, answered = str(task.item.reference), replace(written, stop_reason="stop")
        if self.config.answers == "model":
            answered = await ask.text(task.number, "answer", messages)
            answer = answered.answer
        return [
            Draft(
                supervised_row(messages, answer),
                prompt,
                answer,
                answered,
                judged=item,
                copied_from=prompt,
                facts=facts,
            )
        ]


def _request(text: str) -> str:
    return text_under(json_answer(text), "request")
