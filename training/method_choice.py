"""Which method fits the signal in a file, by doctrine page ``method_choice``; words of the goal only break ties."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from ..doctrine.rules import integer
from .file_shape import FileShape, Signal

Kind = Literal["sft", "dpo", "grpo"]


@dataclass(frozen=True, slots=True)
class Choice:
    """A method with its reason.

    Attributes:
        kind: The job that it is, a key of `jobs.kinds.KINDS`.
        rule: The rule that decided.
        why: The reason, from the data.
        then: The job to follow when the first one has succeeded, or None.
        alternatives: What would change the choice: (what to take, when).
    """

    kind: Kind
    rule: str
    why: str
    then: Kind | None
    alternatives: tuple[tuple[str, str], ...]


# Words of a goal that lean to one side where the data allow both.
_LEANS: Mapping[Kind, re.Pattern[str]] = {
    "grpo": re.compile(r"\b(reason\w*|think\w*|step by step|generali[sz]\w*|forget\w*|solve\w*|rl|reward\w*)\b", re.I),
    "sft": re.compile(r"\b(format\w*|style|tone|imitat\w*|like (us|ours|our)|classif\w*|label\w*|extract\w*)\b", re.I),
}
_TIED: frozenset[Signal] = frozenset({"solutions", "answers", "labels"})
_SHAPES: Mapping[Signal, str] = {
    "pairs": "each row prefers one answer to another",
    "demonstrations": "each row shows one good answer",
    "solutions": "each row shows a solution that ends in a final answer",
    "labels": "a few short answers come back again and again",
    "answers": "each row gives a final answer and no way to it",
    "tests": "each row brings tests that run the answer",
}
_BY_SIGNAL: Mapping[Signal, tuple[Kind, str, str]] = {
    "pairs": ("dpo", "method.pairs", "a contrast says what to stop, too"),
    "demonstrations": ("sft", "method.demonstrations", "an answer to imitate teaches at every token"),
    "solutions": ("sft", "method.demonstrations", "the way is there to be imitated, and RL starts best from that"),
    "labels": ("sft", "method.demonstrations", "the answer is all there is to show"),
    "answers": ("grpo", "method.checkable", "a program can score what the model finds by itself"),
    "tests": ("grpo", "method.checkable", "a program scores the answers, and there is nothing to imitate"),
}
_DPO = ("DPO on pairs of the tuned model's own answers", "it can do the task and does unwanted things too (dpo.stages)")
_SFT_FIRST = (
    "SFT on worked examples first",
    "the untuned model solves next to none of the tasks: groups without a success teach nothing (rl.constant_groups)",
)
_DISTIL = ("distillation", "a better model may be asked for answers (method.distillation)")


def choose_method(shape: FileShape, goal: str) -> Choice:
    """The method for a file and a goal.

    Args:
        shape: What the file's rows hold.
        goal: What the model is to do better, in the user's words.
    """
    usual, rule_id, because = _BY_SIGNAL[shape.signal]
    kind: Kind = usual
    if shape.signal in _TIED:
        leaning: dict[Kind, str] = {side: found[0] for side, words in _LEANS.items() if (found := words.search(goal))}
        if len(leaning) == 1:
            kind, word = next(iter(leaning.items()))
            if kind != usual:
                because = f"the data allow SFT and RL, and the goal's word '{word}' decided"
                rule_id = "method.checkable" if kind == "grpo" else "method.demonstrations"
    return Choice(
        kind=kind,
        rule=rule_id,
        why=f"{_SHAPES[shape.signal]} ({shape.rows:,} rows): {because}",
        then="grpo" if kind == "sft" and shape.signal == "solutions" else None,
        alternatives=_alternatives(kind, shape)[:2],
    )


def _alternatives(kind: Kind, shape: FileShape) -> tuple[tuple[str, str], ...]:
    few = integer("data.min_rows")
    found: list[tuple[str, str]] = []
    if shape.rows < few:
        found.append(
            ("examples in the prompt", f"always first below {few} rows, and there are {shape.rows} (data.min_rows)")
        )
    if kind == "dpo":
        found.append(
            ("SFT on the chosen answers first", "the start is no SFT model of such data (method.sft_before_preference)")
        )
    if kind == "grpo":
        found.append(_SFT_FIRST)
    if kind == "sft" and shape.check:
        found.append(
            (
                "GRPO on top",
                "the tuned model is right sometimes and not always, and a program can tell (method.checkable)",
            )
        )
    if kind == "sft":
        found.append(_DPO)
    return (*found, _DISTIL)
