"""Judges with a known fault, and what an evaluation says of each: made verdicts through all that comes after a judge.

In each world the tuned model is truly better on a known share of the prompts, and its answers are the longer ones in
about three of four. A verdict against that truth is a wrong one; it must come with a "Careful" that names the cause.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np

from sota_ml_researcher.evals.compute_results import compute_results
from sota_ml_researcher.evals.evidence import BASELINE, TUNED, Evidence
from sota_ml_researcher.evals.judge_config import JudgeEvalConfig
from sota_ml_researcher.evals.responses import Response
from sota_ml_researcher.evals.results import BETTER, WORSE, EvalResult
from sota_ml_researcher.judges.journal import Judgment
from sota_ml_researcher.judges.prompt import EvalItem
from sota_ml_researcher.judges.rubric import default_rubric

RUBRIC = default_rubric()
WORDS = [f"{a}{b}{c}" for a in "bdfglmnprst" for b in "aeiou" for c in "klmnrst"]
Rng = np.random.Generator


@dataclass(frozen=True)
class Pair:
    """One pair as a judge sees it, with the truth: ``better`` is the side (0 or 1) that is truly better."""

    texts: tuple[str, str]
    arms: tuple[str, str]
    better: int
    item: int

    @property
    def longer(self) -> int:
        return int(len(self.texts[1]) > len(self.texts[0]))

    @property
    def tuned(self) -> int:
        return self.arms.index(TUNED)

    def having(self, mark: str) -> int | None:
        found = [mark in text for text in self.texts]
        return found.index(True) if sum(found) == 1 else None


Choice = int | None | str  # the chosen side, None for a tie, a text for an unscored call
JudgeRule = Callable[[Pair, Rng], Choice]


@dataclass(frozen=True)
class Planted:
    """A fault.

    Attributes:
        rule: How the judge chooses.
        cause: A pattern that a "Careful" or the reason for no verdict must match if the verdict is wrong.
        truth: Share of prompts on which the tuned model is better.
        mark: What every tuned answer begins with.
        labels: People's labels given, all of them right.
        labels_only: Label only prompts that this arm wins.
        config: Changes to the config.
        second: A second judge.
    """

    rule: JudgeRule
    cause: str = "$^"
    truth: float = 0.3
    mark: str = ""
    labels: int = 0
    labels_only: str | None = None
    config: Mapping[str, object] = field(default_factory=dict)
    second: JudgeRule | None = None


def honest(right: float) -> JudgeRule:
    return lambda pair, rng: pair.better if rng.random() < right else 1 - pair.better


def mostly(share: float, rule: JudgeRule, otherwise: JudgeRule) -> JudgeRule:
    return lambda pair, rng: (rule if rng.random() < share else otherwise)(pair, rng)


def always(side: int) -> JudgeRule:
    return lambda pair, rng: side


def longest(exceptions: float = 0.0) -> JudgeRule:
    """An exception is one of the pair, whichever order it is shown in."""
    return lambda pair, rng: pair.longer ^ int(np.random.default_rng(pair.item).random() < exceptions)


def longer_by(chars: int) -> JudgeRule:
    return lambda pair, rng: pair.tuned ^ int(len(pair.texts[pair.tuned]) - len(pair.texts[1 - pair.tuned]) < chars)


def verbose(pair: Pair, rng: Rng) -> Choice:
    ratio = np.log(len(pair.texts[0]) / len(pair.texts[1]))
    return int(rng.random() > 1 / (1 + np.exp(-6 * ratio)))


def likes(mark: str) -> JudgeRule:
    return lambda pair, rng: pair.having(mark)


def likes_tuned(pair: Pair, rng: Rng) -> Choice:
    return pair.tuned


def shortest(pair: Pair, rng: Rng) -> Choice:
    return 1 - pair.longer


def worse_one(pair: Pair, rng: Rng) -> Choice:
    return 1 - pair.better


def coin(pair: Pair, rng: Rng) -> Choice:
    return int(rng.integers(2))


def tie(pair: Pair, rng: Rng) -> Choice:
    return None


def refuses(share: float, *, tuned_first: bool = False) -> JudgeRule:
    def rule(pair: Pair, rng: Rng) -> Choice:
        refused = rng.random() < share and (not tuned_first or pair.tuned == 0)
        return "refused" if refused else honest(0.8)(pair, rng)

    return rule


def drifting(pair: Pair, rng: Rng) -> Choice:
    return pair.better if pair.item < 60 else pair.tuned


LENGTH, PEOPLE, ORDER = "length", "people|labels", "both orders|shown first|shown second"
HIDDEN = "human_labels"
CLAUDE = {"judge_model": "claude-haiku-5-5", "finetuned_model": "claude-mini-tuned"}

PLANTED: dict[str, Planted] = {
    "honest, 80% right": Planted(honest(0.8)),
    "honest, 80% right, tuned better": Planted(honest(0.8), truth=0.7),
    "honest, all right, with labels": Planted(honest(1.0), truth=0.8, labels=60),
    "noisy, 60% right": Planted(honest(0.6), ORDER),
    "random": Planted(coin, ORDER),
    "random, with labels": Planted(coin, f"{ORDER}|{PEOPLE}", labels=60),
    "always a tie": Planted(tie),
    "always the first place": Planted(always(0), ORDER),
    "always the second place": Planted(always(1), ORDER),
    "the first place in 90%": Planted(mostly(0.9, always(0), honest(1.0)), ORDER),
    "the first place in 40%": Planted(mostly(0.4, always(0), honest(1.0)), ORDER),
    "one order only, the first place in half": Planted(
        mostly(0.5, always(0), honest(0.8)), "one order", config={"position_debias": False}
    ),
    "the longest": Planted(longest(), LENGTH),
    "the longest, 1% exceptions": Planted(longest(0.01), LENGTH),
    "the longest, 3% exceptions": Planted(longest(0.03), LENGTH),
    "the longest, 6% exceptions": Planted(longest(0.06), LENGTH),
    "the longest, 15% exceptions": Planted(longest(0.15), LENGTH),
    "the longest, with labels": Planted(longest(), PEOPLE, labels=60),
    "the longest, with 3 labels": Planted(longest(), PEOPLE, labels=3),
    "tuned unless it is 100 characters shorter": Planted(longer_by(-100), f"{LENGTH}|{HIDDEN}"),
    "verbose-lover by degrees": Planted(verbose, LENGTH),
    "the longest in 60%, else honest": Planted(mostly(0.6, longest(), honest(1.0)), LENGTH),
    "the shortest": Planted(shortest, LENGTH, truth=0.7),
    "its own style": Planted(likes("Certainly!"), "certainly", mark="Certainly! "),
    "its own style, with labels": Planted(likes("Certainly!"), PEOPLE, mark="Certainly! ", labels=60),
    "its own style, labels of one side": Planted(
        likes("Certainly!"), PEOPLE, mark="Certainly! ", labels=30, labels_only=BASELINE
    ),
    "headings": Planted(likes("## "), "##", mark="## Answer\n"),
    "emoji": Planted(likes("\N{SPARKLES}"), "\N{SPARKLES}", mark="\N{SPARKLES} "),
    "sycophantic to a model's name": Planted(likes("Claude"), "claude", mark="I am Claude. "),
    "its own family": Planted(likes_tuned, "own family", config=CLAUDE),
    "its own family, with labels": Planted(likes_tuned, PEOPLE, labels=60, config=CLAUDE),
    "a taste that no mark shows": Planted(likes_tuned, HIDDEN),
    "refuses one in ten": Planted(refuses(0.1)),
    "refuses one in ten where tuned is first": Planted(refuses(0.12, tuned_first=True)),
    "the worse one, with labels": Planted(worse_one, PEOPLE, labels=60),
    "the worse one in 70%, with labels": Planted(honest(0.3), PEOPLE, labels=60),
    "the worse one, no labels": Planted(worse_one, HIDDEN),
    "honest at first, then always tuned, with labels": Planted(drifting, PEOPLE, labels=60),
    "two judges, honest and longest": Planted(honest(0.9), LENGTH, second=longest()),
    "absolute, the longest": Planted(longest(), LENGTH, config={"mode": "absolute"}),
    "absolute, its own style": Planted(
        likes("Certainly!"), "certainly", mark="Certainly! ", config={"mode": "absolute"}
    ),
}


def evaluate(planted: Planted, *, prompts: int = 120, seed: int = 0) -> EvalResult:
    """The result of one evaluation by this judge."""
    return compute_results(gather(planted, prompts=prompts, seed=seed))


def is_wrong(planted: Planted, result: EvalResult) -> bool:
    """Whether the verdict names the arm that is truly worse."""
    return result.verdict == (BETTER if planted.truth < 0.5 else WORSE)


def names_the_cause(planted: Planted, result: EvalResult) -> bool:
    return any(re.search(planted.cause, said, re.IGNORECASE) for said in result.warnings)


def gather(planted: Planted, *, prompts: int, seed: int) -> Evidence:
    """What a worker would have gathered."""
    rng = np.random.default_rng(seed)
    names = ("judge-one", "judge-two") if planted.second else ("judge-one",)
    settings: dict[str, object] = {
        "test_set": "t.jsonl",
        "baseline_model": "base.jsonl",
        "finetuned_model": "tuned.jsonl",
        "judge_model": tuple(f"openai:{name}" for name in names),
    }
    config = JudgeEvalConfig.model_validate(settings | dict(planted.config))
    better = rng.permutation(np.arange(prompts) < round(planted.truth * prompts))
    texts = {
        BASELINE: [_words(rng, 10, 60) for _ in range(prompts)],
        TUNED: [planted.mark + _words(rng, 20, 80) for _ in range(prompts)],
    }
    items = [EvalItem(str(n), ({"role": "user", "content": str(n)},), None, None, None, n) for n in range(prompts)]
    answers = {arm: [Response(text, "stop", None) for text in found] for arm, found in texts.items()}
    judgments: list[Judgment] = []
    rules = (planted.rule, planted.second) if planted.second else (planted.rule,)
    for name, rule in zip(config.judge_model, rules, strict=True):
        for n in range(prompts):
            orders = [(TUNED, BASELINE), (BASELINE, TUNED)]
            if config.mode == "absolute":
                orders = orders[:1]
            elif not config.position_debias:
                orders = [orders[int(rng.integers(2))]]
            for arms in orders:
                good = arms.index(TUNED) if better[n] else arms.index(BASELINE)
                pair = Pair((texts[arms[0]][n], texts[arms[1]][n]), arms, good, n)
                judgments += _noted(name, pair, rule(pair, rng), absolute=config.mode == "absolute")
    truth = {str(n): TUNED if better[n] else BASELINE for n in range(prompts)}
    usable = [i for i, winner in truth.items() if planted.labels_only in (None, winner)]
    labelled = rng.permutation(usable)[: planted.labels].tolist()
    return Evidence(config, RUBRIC, items, answers, judgments, {i: truth[i] for i in labelled})


def _noted(judge: str, pair: Pair, choice: Choice, *, absolute: bool) -> list[Judgment]:
    item, (first, second) = str(pair.item), pair.arms
    if absolute:
        sides = [(arm, 4 if side == choice else 3) for side, arm in enumerate(pair.arms)]
        return [
            Judgment(f"{judge}-{item}-{arm}", judge, "absolute", item, arm, None, None, _scores(score))
            for arm, score in sides
        ]
    key = f"{judge}-{item}-{first}"
    if isinstance(choice, str):
        return [Judgment(key, judge, "pair", item, first, second, None, {}, unscored=choice)]
    verdict = "tie" if choice is None else "AB"[choice]
    return [
        Judgment(key, judge, "pair", item, first, second, verdict, {c.name: {"A": 3, "B": 3} for c in RUBRIC.criteria})
    ]


def _scores(score: int) -> dict[str, int]:
    return {c.name: score for c in RUBRIC.criteria}


def _words(rng: Rng, least: int, most: int) -> str:
    return " ".join(rng.choice(WORDS, int(rng.integers(least, most))))
