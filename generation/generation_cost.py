"""What a generation job will cost: how much there is to ask, at which prices, and whether its cap can be held."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass

from ..backends.estimate import CHARS_PER_TOKEN, CostEstimate
from ..backends.meter import Usage
from ..backends.prices import load_prices
from ..core.errors import ConfigError
from ..core.settings import Settings
from ..judges.judge_catalog import Price, judge_price
from .generation_config import GenerationConfig
from .jury import VERDICT_TOKENS, prompter_of
from .recipe import Recipe
from .writers import backend_price, price_of_judge, prompt_tokens

# Shares of max_response_tokens that answers have at the low end and as expected; at the high end all of it.
_LOW, EXPECTED = 0.1, 0.5
_READ_RECIPES = frozenset({"questions", "rewrites", "eval_kit"})  # their first answers may have to be asked for again


@dataclass(frozen=True, slots=True)
class Work:
    """How much there is to ask.

    Attributes:
        config: The resolved settings.
        told: Tokens of the requests to the model, where every answer can be read.
        shortest: Tokens of the shortest first request.
        answers: Answers to them.
        per_task: Answers for one task.
        judge_calls: Questions to the judge at most.
        calls_per_task: Those on one task.
        judge_told: Tokens of one question to the judge.
    """

    config: GenerationConfig
    told: int
    shortest: int
    answers: int
    per_task: int
    judge_calls: int
    calls_per_task: int
    judge_told: float

    @classmethod
    def of(cls, config: GenerationConfig, recipe: Recipe) -> Work:
        """Count it."""
        openings = [prompt_tokens(messages) for task in recipe.tasks if (messages := recipe.opening(task))]
        calls, judge_told = _judging(config, recipe)
        return cls(
            config,
            # Samples of one prompt are one request on a backend, which is told the prompt once.
            told=sum(openings) * (1 if config.recipe == "preferences" and not config.service else recipe.answers),
            shortest=min(openings),
            answers=len(openings) * recipe.answers,
            per_task=recipe.answers,
            judge_calls=calls * len(openings),
            calls_per_task=calls,
            judge_told=judge_told,
        )

    def tokens(self, share: float, *, tries: int = 1) -> tuple[int, int]:
        """Tokens in and out, with answers of this share of what they may have."""
        return self.told * tries, round(self.answers * self.config.max_response_tokens * share) * tries

    def cost(self) -> CostEstimate:
        """US dollars of writing and judging; None where a price is unknown."""
        config, table = self.config, load_prices()
        tries = config.tries if config.recipe in _READ_RECIPES else 1
        ends = [self.tokens(_LOW), self.tokens(EXPECTED), self.tokens(1.0, tries=tries)]
        usage = Usage() if config.service else Usage(prefill=ends[1][0], sample=ends[1][1])
        unknown = [who for who, price, charged in prices_of(config) if charged and price is None]
        day = str(table.as_of)
        if unknown:
            note = f"unknown: no price of {unknown[0]} here ({_price_key(config, unknown[0])})"
            return CostEstimate(None, None, None, usage, day, None, note)
        writing, judging = (price for _, price, _ in prices_of(config))
        if writing is None and judging is None:
            return CostEstimate(0.0, 0.0, 0.0, usage, None, None, "free: neither the model nor the judge has a price")
        sums = [writing.cost(*each) if writing else 0.0 for each in ends]
        verdicts = (VERDICT_TOKENS // 2, VERDICT_TOKENS, VERDICT_TOKENS * 2)
        if judging is not None:
            sums = [
                s + self.judge_calls * judging.cost(self.judge_told, out) for s, out in zip(sums, verdicts, strict=True)
            ]
        days = sorted({price.as_of for price in (writing, judging) if price})
        note = f"answers of {EXPECTED:.0%} of max_response_tokens"
        return CostEstimate(sums[0], sums[1], sums[2], usage, ", ".join(days), None, note)

    def most_of_a_row(self) -> float:
        """US dollars that the cheapest source could cost, every answer as long as it may be."""
        (_, writing, _), (_, judging, _) = prices_of(self.config)
        row = writing.cost(self.shortest, self.config.max_response_tokens) * self.per_task if writing else 0.0
        judged = judging.cost(self.judge_told, self.config.judge_max_tokens) * self.calls_per_task if judging else 0.0
        return row + judged


def _judging(config: GenerationConfig, recipe: Recipe) -> tuple[int, float]:
    """Questions to the judge on one task at most, and the tokens of one."""
    if config.judge is None:
        return 0, 0.0
    prompter = prompter_of(config)
    pairwise = config.recipe == "preferences"
    samples = config.samples_per_prompt
    each = config.questions_per_passage if config.recipe == "questions" else 1
    chars = sum(len(task.item.prompt_text) + len(task.item.reference or "") for task in recipe.tasks) / len(
        recipe.tasks
    )
    fixed = len(prompter.system) + len(json.dumps(prompter.schema)) + 600
    answers = (2 if pairwise else 1) * config.max_response_tokens * EXPECTED
    return samples * (samples - 1) if pairwise else each, (fixed + chars) / CHARS_PER_TOKEN + answers


def prices_of(config: GenerationConfig) -> Sequence[tuple[str, Price | None, bool]]:
    """Of the model and of the judge: its name, its price, and whether it is charged for."""
    charges = load_prices().charges(config.backend)
    service, judge = config.service, config.judge
    if service is not None:
        written = judge_price(service, config.model_price)
        writer = (service.name, written, service.may_cost(openai_url(config.model_base_url)))
    else:
        writer = (str(config.base_model), backend_price(config.backend, str(config.base_model)), charges)
    if judge is None:
        return writer, ("", None, False)
    charged = charges if judge.kind == "tinker" else judge.may_cost(openai_url(config.judge_base_url))
    return writer, (judge.name, price_of_judge(judge, config.judge_price, config.backend), charged)


def openai_url(base_url: str | None) -> str | None:
    """Where an ``openai:`` model is reached that a config gives this address, or none."""
    return base_url or os.environ.get("OPENAI_BASE_URL")


def _price_key(config: GenerationConfig, name: str) -> str:
    if config.judge is not None and name == config.judge.name:
        return "give judge_price: {input: .., output: ..}"
    return "give model_price: {input: .., output: ..}" if config.service else "add it to prices.yaml"


def require_cap(settings: Settings[GenerationConfig], work: Work) -> None:
    """Refuse a cap that means nothing, cannot be held, or does not pay for one row.

    Raises:
        ConfigError: If it is one of these.
    """
    config = settings.config
    if config.max_cost_usd is None:
        return
    where = settings.place("max_cost_usd")
    prices = prices_of(config)
    unknown = next((name for name, price, charged in prices if charged and price is None), None)
    if unknown is not None:
        fix = f"To hold a cap, {_price_key(config, unknown)}; or remove max_cost_usd"
        raise ConfigError(f"the price of {unknown} is unknown, so a cap cannot be held", where=where, fix=fix)
    if all(price is None for _, price, _ in prices):
        raise ConfigError("neither the model nor the judge has a price, so a cap means nothing", where=where)
    most = work.most_of_a_row()
    if most > config.max_cost_usd:
        raise ConfigError(
            f"one row could cost ${most:.4g}, and the cap is ${config.max_cost_usd:g}: none would be written",
            where=where,
            fix="Raise it, or lower max_response_tokens",
        )
