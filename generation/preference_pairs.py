"""Preference pairs: several samples of one prompt, ranked by a judge in both orders, ties left out.

UltraFeedback (Cui et al. 2023, arXiv 2310.01377) has four completions of a prompt scored; here every two are compared,
each in both orders, since a judge's preference for a place is undone by nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence

from ..models.chat import Message
from .gate import Draft, Task, is_refusal
from .jury import Ranking
from .model_answers import Asking, Written
from .recipe import Ranks, Recipe, row_tasks, turns


class Preferences(Recipe):
    """One pair of a prompt: the answer that won most often, and the weakest of those it won against."""

    next_call = "start_dpo(overrides={{'train_file': '{rows}', 'base_model': ...}})"

    def load(self) -> Sequence[Task]:
        """Read the prompts, with references where the judge compares with them (see `Recipe.load`)."""
        self.answers = self.config.samples_per_prompt
        tasks = row_tasks(self.config)
        self.require_references(tasks)
        if self.config.temperature == 0:
            self.warnings.append("at temperature 0 all samples of a prompt are the same: no pair can come of them")
        return tasks

    def opening(self, task: Task) -> Sequence[Message]:
        """The prompt."""
        return task.item.messages

    async def make(self, task: Task, ask: Asking, judge: Ranks | None) -> Sequence[Draft]:
        """The pair of a prompt, or why there is none (see `Recipe.make`)."""
        samples = await ask.samples(task.number, self.opening(task), self.config.samples_per_prompt)
        answers = self._usable(samples)
        first = samples[0]
        if len(answers) < 2:
            return [self._without(task, first, "same_samples" if answers else "no_samples")]
        assert judge is not None, "the config needs one"
        ranked = await judge.rank(task.item, [written.answer for written in answers])
        if ranked.best is None or ranked.worst is None:
            return [self._without(task, first, "judge_unreadable" if ranked.unreadable else "judge_tie")]
        return [self._pair(task, answers[ranked.best], answers[ranked.worst], ranked)]

    def _usable(self, samples: Sequence[Written]) -> list[Written]:
        """The samples that may stand in a pair, each once."""
        passed: dict[str, Written] = {}
        for written in samples:
            cut = "cut" in self.config.gate and written.is_cut
            control = "control" in self.config.gate and written.control
            refused = "refusal" in self.config.gate and is_refusal(written)
            if written.answer and not (cut or control or refused):
                passed.setdefault(written.answer, written)
        return list(passed.values())

    def _pair(self, task: Task, chosen: Written, rejected: Written, ranked: Ranking) -> Draft:
        messages = task.item.messages
        prompt = messages[0]["content"] if len(messages) == 1 else turns(messages)
        judged = {"judge": self.config.judge_model, "wins": list(ranked.wins), "pairs_agreed": ranked.agreed}
        return Draft(
            {"prompt": prompt, "chosen": chosen.answer, "rejected": rejected.answer},
            task.item.prompt_text,
            f"{chosen.answer}\0{rejected.answer}",
            chosen,
            facts={
                **judged,
                "pairs_undecided": ranked.undecided,
                "rejected_seed": rejected.seed,
                "rejected_sample": rejected.sample,
            },
        )

    def _without(self, task: Task, written: Written, fault: str) -> Draft:
        row = {"prompt": task.item.prompt_text}
        return Draft(row, task.item.prompt_text, written.answer, written, fault=fault)
