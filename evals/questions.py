"""Which questions an evaluation asks each judge, each with a key that depends on all of its content."""

from __future__ import annotations

import hashlib
import itertools
import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ..judges.asking import Call, CallKind
from ..judges.base import Judge
from ..judges.prompt import EvalItem, Prompter
from .controls import Canary, control_count
from .responses import Response

GOOD, BAD = "good", "bad"


@dataclass(frozen=True, slots=True)
class Material:
    """What is judged: prompts, each arm's answers in the order of the prompts, canaries, and the seed of orders."""

    items: Sequence[EvalItem]
    answers: Mapping[str, Sequence[Response]]
    canaries: Sequence[Canary]
    both_orders: bool
    seed: int


def pairs_of(arms: Sequence[str]) -> list[tuple[str, str]]:
    """The pairs of arms to judge, as (in question, compared with): every two arms, the baseline always second."""
    return [(second, first) for first, second in itertools.combinations(arms, 2)]


def count_calls(arms: int, items: int, canaries: int, *, pairwise: bool, both_orders: bool) -> int:
    """How many questions one judge is asked (`build_calls` makes as many)."""
    if not pairwise:
        return arms * items + 2 * canaries + 2 * control_count(items)
    pairs = arms * (arms - 1) // 2
    return pairs * items * (2 if both_orders else 1) + 2 * canaries + control_count(items)


def build_calls(material: Material, judge: Judge, prompter: Prompter) -> tuple[list[Call], list[Call]]:
    """The tests of the judge itself, and the questions that count."""
    make = _Maker(judge, prompter)
    if prompter.mode == "absolute":
        known = [make("canary", c.item, side, None, a, None) for c in material.canaries for side, a in _sides(c)]
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
        return known + twice, main
    known = [call for canary in material.canaries for call in _canary_pair(make, canary)]
    # One order: the other is the same question.
    beside = [make("control", item, arm, arm, text, text) for item, arm, text in _control_answers(material)]
    return known + beside, _pair_calls(make, material)


class _Maker:
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
        whole = json.dumps([*content, "again"] if again else content)
        key = hashlib.sha256(whole.encode("utf-8", "replace")).hexdigest()[:32]
        return Call(key, kind, item, first, second, answer_a, answer_b, again)


def _sides(canary: Canary) -> list[tuple[str, str]]:
    return [(GOOD, canary.good), (BAD, canary.bad)]


def _canary_pair(make: _Maker, canary: Canary) -> list[Call]:
    return [
        make("canary", canary.item, GOOD, BAD, canary.good, canary.bad),
        make("canary", canary.item, BAD, GOOD, canary.bad, canary.good),
    ]


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
    for (one, other), index in itertools.product(pairs_of(list(material.answers)), range(len(material.items))):
        orders = [(one, other), (other, one)]
        if not material.both_orders:
            orders = [chooser.choice(orders)]
        for first, second in orders:
            texts = material.answers[first][index].text, material.answers[second][index].text
            calls.append(make("pair", material.items[index], first, second, *texts))
    return calls
