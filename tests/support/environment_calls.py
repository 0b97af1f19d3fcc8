"""Running something inside the environment that a config describes."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from sota_ml_researcher.rewards.environments import make_environment
from sota_ml_researcher.rewards.scorers import Scorers
from sota_ml_researcher.training.rl.config import RlConfig

T = TypeVar("T")


def in_environment(config: RlConfig, work: Callable[[Any], Awaitable[T]]) -> T:
    async def whole() -> T:
        scorers = Scorers(config.parts(), max_tokens=config.max_response_tokens)
        environment = make_environment(config, scorers)
        assert environment is not None
        try:
            return await work(environment)
        finally:
            await environment.close()
            await scorers.close()

    return asyncio.run(whole())
