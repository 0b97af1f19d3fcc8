"""Holding a generation job to its cap: no request is sent that could pass it, however many are under way."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager


class CapReachedError(Exception):
    """The next request could pass the cap; the message says so in dollars."""


class Ledger:
    """What a job has cost, and what the requests under way may cost at most (US dollars).

    Args:
        cap: The most it may cost, or None.
        tell: Told what others than the backend have cost so far; the backend's tokens are metered where they are sent.
    """

    def __init__(self, cap: float | None, tell: Callable[[float], None]) -> None:
        self._cap = cap
        self._tell = tell
        self._backend = 0.0
        self._service = 0.0
        self._judges = 0.0
        self._reserved = 0.0
        self._changed = asyncio.Condition()

    @property
    def spent(self) -> float:
        """Everything that was answered so far, earlier attempts of the job included."""
        return self._backend + self._service + self._judges

    def wrote(self, usd: float, *, metered: bool) -> None:
        """An answer of the writing model has cost so much; ``metered``: the backend's meter counts its tokens."""
        if metered:
            self._backend += usd
            return
        self._service += usd
        self._tell(self._service + self._judges)

    def judged(self, total_usd: float) -> None:
        """What all verdicts have cost so far."""
        self._judges = total_usd
        self._tell(self._service + self._judges)

    @asynccontextmanager
    async def room(self, most_usd: float) -> AsyncGenerator[None]:
        """Hold room for a request that costs so much at most, once there is room for it.

        Raises:
            CapReachedError: If there is none, and nothing under way can leave any.
        """
        if self._cap is None or not most_usd:
            yield
            return
        async with self._changed:
            while self.spent + self._reserved + most_usd > self._cap:
                if not self._reserved:
                    raise CapReachedError(
                        f"the next request could cost ${most_usd:.4g} and pass the cap of ${self._cap:g} "
                        f"(${self.spent:.4g} spent)"
                    )
                await self._changed.wait()
            self._reserved += most_usd
        try:
            yield
        finally:
            async with self._changed:
                self._reserved -= most_usd
                if self._reserved < 1e-12:  # what is left of sums of floats
                    self._reserved = 0.0
                self._changed.notify_all()
