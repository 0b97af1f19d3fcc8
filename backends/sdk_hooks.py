# pyright: basic
# Reason: it counts inside the SDK, where every form of a call, sync or async, whole or in chunks, comes together.
"""Counting what a worker's SDK clients send, whatever loop sends it. Heavy: imports tinker."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

from tinker.lib.public_interfaces.sampling_client import SamplingClient
from tinker.lib.public_interfaces.training_client import TrainingClient

from .meter import Meter


@contextmanager
def metered(meter: Meter) -> Generator[None]:
    """Count every training and sampling request of this process for as long as the block runs.

    A custom loss counts twice: the SDK sends a forward pass and then the gradient. A request that the SDK sends again
    after a lost connection counts once. The prompt of a request counts once, however many samples it asks for.
    """
    run_training, run_sampling = TrainingClient._run_fwd_bwd, SamplingClient._sample_async_impl

    def training(self: TrainingClient, requests: Any, *args: Any, **named: Any) -> Any:
        meter.count(train=sum(datum.model_input.length for chunk in requests for datum in chunk.data))
        return run_training(self, requests, *args, **named)

    async def sampling(self: SamplingClient, prompt: Any, *args: Any, **named: Any) -> Any:
        answer = await run_sampling(self, prompt, *args, **named)
        if answer is not None:
            meter.count(prefill=prompt.length, sample=sum(len(each.tokens) for each in answer.sequences))
        return answer

    TrainingClient._run_fwd_bwd = training
    SamplingClient._sample_async_impl = sampling
    try:
        yield
    finally:
        TrainingClient._run_fwd_bwd = run_training
        SamplingClient._sample_async_impl = run_sampling
