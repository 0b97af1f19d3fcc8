"""Rows from documents: questions with answers, each with the words of the passage that it rests on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from ..core.foreign_text import named
from ..judges.prompt import EvalItem
from ..models.chat import Message
from .documents import passages
from .gate import Draft, Task, is_grounded, quoted_range
from .model_answers import Asking, UnreadableAnswerError, Written, json_answer, text_under
from .recipe import Ranks, Recipe, drawn, supervised_row
from .wording import QUESTIONS, asked, template_hash


class Questions(Recipe):
    """Questions on passages. An answer whose quote is not in its passage, or that goes beyond it, does not pass."""

    template_hash = template_hash(QUESTIONS)
    compares_prompts = True

    def load(self) -> Sequence[Task]:
        """Read the documents (see `Recipe.load`)."""
        found, without = passages(Path(str(self.config.documents)), self.config.passage_chars)
        if without:
            self.warnings.append(
                f"{len(without)} documents hold no words and are left out, the first: {named(without[0])}"
            )
        tasks: list[Task] = []
        for number, passage in enumerate(drawn(found, self.config)):
            turn = Message(role="user", content=passage.text)
            item = EvalItem(str(number + 1), (turn,), None, passage.document, None, passage.line)
            source = {"document": passage.document, "start": passage.start, "end": passage.end}
            tasks.append(Task(number, item, source))
        return tasks

    def opening(self, task: Task) -> Sequence[Message]:
        """The request for all questions on a passage."""
        return asked(QUESTIONS, {"text": task.item.prompt_text}, count=self.config.questions_per_passage)

    async def make(self, task: Task, ask: Asking, judge: Ranks | None) -> Sequence[Draft]:
        """A row for each question on the passage (see `Recipe.make`)."""
        found, written = await ask.read(task.number, "questions", self.opening(task), _questions)
        return [_draft(task, each, written) for each in found[: self.config.questions_per_passage]]


def _questions(text: str) -> list[Mapping[str, str]]:
    listed = json_answer(text).get("questions")
    if not isinstance(listed, list) or not listed:
        raise UnreadableAnswerError('"questions" is missing, or no list')
    found: list[Mapping[str, str]] = []
    for each in cast("list[object]", listed):
        if not isinstance(each, Mapping):
            raise UnreadableAnswerError("a question is not an object")
        fields = cast("Mapping[str, Any]", each)
        found.append({key: text_under(fields, key) for key in ("question", "answer", "quote")})
    return found


def _draft(task: Task, said: Mapping[str, str], written: Written) -> Draft:
    question, answer, passage = said["question"], said["answer"], task.item.prompt_text
    asked_of = [Message(role="user", content=question)]
    where = quoted_range(passage, said["quote"])
    start = int(task.source["start"])
    fault = "no_quote" if where is None else None if is_grounded(passage, answer) else "not_grounded"
    shown = Message(role="user", content=f"Passage:\n{passage}\n\nQuestion: {question}")
    return Draft(
        supervised_row(asked_of, answer),
        question,
        answer,
        replace(written, stop_reason="stop"),  # an answer that could be read as a whole was not cut
        judged=replace(task.item, messages=(shown,)),
        copied_from=question,
        fault=fault,
        facts={"quote": [start + where[0], start + where[1]]} if where else {"quoted": said["quote"]},
    )
