"""The model that grades a benchmark's answers, and what it costs.

Grades are kept in the run's folder, so that a resumed benchmark asks its grader nothing twice.
"""
# pyright: basic
# reason: Inspect's decorators hide types from type checkers

from __future__ import annotations

import os
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

from inspect_ai.hooks import Hooks, ModelCacheUsageData, ModelUsageData, hooks
from inspect_ai.model import CachePolicy, GenerateConfig, Model, ModelUsage, get_model

from ...jobs.context import RunContext
from ...judges.asking import Spending
from ...judges.base import JudgeUsage
from ...judges.judge_catalog import parse_judge
from ..responses import open_model
from .benchmark_config import BenchmarkConfig, grader_may_cost, grader_price, require_grader_key
from .inspect_provider import TinkerModelAPI

GRADES = "grades"
_MAX_TOKENS = 2048
# Inspect's decorator hides the constructor's parameters from type checkers.
_API: Any = TinkerModelAPI


class _Counter:
    """What the grader of the benchmark in this process has cost; Inspect offers no other way to hand it to a hook."""

    spending: Spending | None = None


@hooks(name="ml_researcher_grader", description="What a benchmark's grader costs")
class _GraderHooks(Hooks):
    def enabled(self) -> bool:
        return _Counter.spending is not None

    async def on_model_usage(self, data: ModelUsageData) -> None:
        _count(data.model_name, data.usage)

    async def on_model_cache_usage(self, data: ModelCacheUsageData) -> None:
        """A grade of an earlier attempt: it was paid for then, and counts again in each attempt's total."""
        _count(data.model_name, data.usage)


def _count(model: str, used: ModelUsage) -> None:
    spending = _Counter.spending
    if spending is not None and model in spending.price:
        cached = used.input_tokens_cache_read or 0, used.input_tokens_cache_write or 0
        spending.count(model, JudgeUsage(used.input_tokens, used.output_tokens, *cached))


@contextmanager
def grader_of(context: RunContext, config: BenchmarkConfig) -> Generator[Model | None]:
    """The grader, if the benchmark has one; its cost is reported to ``context`` while the block runs.

    Raises:
        ResearcherError: If the grader cannot be reached, or its key is not set.
    """
    if config.judge_model is None:
        yield None
        return
    require_grader_key(config)
    grader = _load(context, config)
    price = grader_price(config)
    if price is None and grader_may_cost(config):
        context.alert("warn", f"no price of {config.judge_model} here: what it costs is not counted")
    before = os.environ.get("INSPECT_CACHE_DIR")
    os.environ["INSPECT_CACHE_DIR"] = str(context.folder / GRADES)
    _Counter.spending = Spending({str(grader): price}, None, tell=context.judged)
    try:
        yield grader
    finally:
        _Counter.spending = None
        os.environ.pop("INSPECT_CACHE_DIR")
        if before is not None:
            os.environ["INSPECT_CACHE_DIR"] = before


def _load(context: RunContext, config: BenchmarkConfig) -> Model:
    judge = parse_judge(config.judge_model or "")
    kept = GenerateConfig(max_tokens=_MAX_TOKENS, cache=CachePolicy(expiry=None))
    if judge.kind == "anthropic":
        return get_model(f"anthropic/{judge.model}", config=kept)
    if judge.kind == "openai":
        address = config.judge_base_url or os.environ.get("OPENAI_BASE_URL")
        key = os.environ.get("OPENAI_API_KEY", "none")
        name = f"openai/{judge.model}"
        return get_model(name, config=kept, base_url=address, api_key=key, responses_api=False)
    as_grader = {"renderer": None, "max_response_tokens": _MAX_TOKENS, "temperature": 0.0}
    opened = open_model(judge.model, config.model_copy(update=as_grader), context.connect, seed=0)
    provider = _API(opened, should_stop=lambda: False, on_answer=lambda: None)
    return Model(provider, GenerateConfig(temperature=0.0, max_tokens=_MAX_TOKENS))
