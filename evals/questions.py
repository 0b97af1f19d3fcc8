"""Which questions an evaluation asks each judge, each with a key that depends on all of its content."""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ..judges.asking import Call, CallKind, call_key
from ..judges.base import Judge
from ..judges.prompt import EvalItem, Prompter
from .controls import Canary, control_count
from .responses import Response

GOOD, BAD = "good", "bad"


@dataclass(frozen=True, slots=True)
class Material:
    """What is judged: prompts, each arm's answers in their order, canaries, and the seed for orders and controls."""

    items: Sequence[EvalItem]
    answers: Mapping[str, Sequence[Response]]
    canaries: Sequence[Canary]
    both_orders: bool
    seed: int


def count_calls(arms: int, items: int, canaries: int, *, pairwise: bool, both_orders: bool) -> int:
    """How many questions one judge is asked (`build_calls` makes as many)."""
    if not pairwise:
        return arms * items + 2 * canaries + 2 * control_count(items)
    pairs = arms * (arms - 1) // 2
    return pairs * items * (2 if both_orders else 1) + 2 * canaries + control_count(items)


def build_calls(material: Material, judge: Judge, prompter: Prompter) -> tuple[list[Call], list[Call]]:
    """The judge's calibration checks, and the questions that count."""
    make = _Maker(judge, prompter)
    if prompter.mode == "absolute":
        sides = [(c.item, *side) for c in material.canaries for side in ((GOOD, c.good), (BAD, c.bad))]
        canaries = [make("canary", item, side, None, answer, None) for item, side, answer in sides]
        twice = [
            make("control", item, arm, None, text, None, again=again)
            for item, arm, text in _control_answers(material)
            for again in (False, True)
        ]
        main = [
            make("absolute", item, arm, None, response.text, None)
            for arm, responses in material.answers.items()
            for item, response in zip(material.items, responses, strict=True)
        ]
        return canaries + twice, main
    orders = [(c.item, *o) for c in material.canaries for o in ((GOOD, BAD, c.good, c.bad), (BAD, GOOD, c.bad, c.good))]
    canaries = [make("canary", *order) for order in orders]
    # In one order: the other would be the same question.
    beside = [make("control", item, arm, arm, text, text) for item, arm, text in _control_answers(material)]
    return canaries + beside, _pair_calls(make, material)


class _Maker:
    """Makes the calls to one judge; their keys depend on its settings and the wording of its prompt."""

    def __init__(self, judge: Judge, prompter: Prompter) -> None:
        self._salt = json.dumps([judge.name, dict(judge.settings), prompter.prompt_hash], sort_keys=True)

    def __call__(
        self,
        kind: CallKind,
        item: EvalItem,
        first: str,
        second: str | None,
        answer_a: str,
        answer_b: str | None,
        *,
        again: bool = False,
    ) -> Call:
        content = [self._salt, kind, item.id, item.prompt_key, item.reference, first, second, answer_a, answer_b]
        key = call_key([*content, "again"] if again else content)
        return Call(key, kind, item, first, second, answer_a, answer_b, again)


def _control_answers(material: Material) -> list[tuple[EvalItem, str, str]]:
    """Answers to be judged against themselves, taken from the arms in turn: prompt, arm, answer."""
    chooser = random.Random(material.seed)
    chosen = sorted(chooser.sample(range(len(material.items)), control_count(len(material.items))))
    arms = list(material.answers)
    taken = [(index, arms[turn % len(arms)]) for turn, index in enumerate(chosen)]
    return [(material.items[index], arm, material.answers[arm][index].text) for index, arm in taken]


def _pair_calls(make: _Maker, material: Material) -> list[Call]:
    chooser = random.Random(material.seed)
    calls: list[Call] = []
    # Every two arms; the first order shows the arm in question first, the baseline second.
    pairs = itertools.combinations(material.answers, 2)
    for (other, one), index in itertools.product(pairs, range(len(material.items))):
        orders = [(one, other), (other, one)]
        if not material.both_orders:
            orders = [chooser.choice(orders)]
        for first, second in orders:
            texts = material.answers[first][index].text, material.answers[second][index].text
            calls.append(make("pair", material.items[index], first, second, *texts))
    return calls
