# pyright: basic
# Reason: it reaches inside the SDK, which has no public way to hear of a pause or to meet an older server.
"""The one place that reaches inside the Tinker SDK; checked on 0.38.

The SDK retries capacity pauses, rate limits and unpaid bills by itself and only logs them. Its queue observers are
built inside its clients, so they are listened to where they are defined.

The SDK insists that a promise of samples names its sequences, and needs the names for one loss alone. Servers of an
earlier protocol name none: the clients that meet one make them up.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any, Protocol

from tinker.lib.api_future_impl import QueueState
from tinker.lib.internal_client_holder import InternalClientHolder
from tinker.lib.public_interfaces.sampling_client import SamplingClient
from tinker.lib.queue_state_logger import QueueStateLogger

_REASONS = {
    QueueState.PAUSED_CAPACITY: "capacity",
    QueueState.PAUSED_RATE_LIMIT: "the rate limit",
}
BILLING = "billing (402): top up in the Tinker console"


def with_sequence_ids(client: SamplingClient) -> SamplingClient:
    """The same client, which makes up the names of sequences that the server does not name."""
    send = client._send_asample_request

    async def named(request_id: int, num_samples: int, *args: Any, **kwargs: Any) -> Any:
        promise = await send(request_id, num_samples, *args, **kwargs)
        if promise is not None and promise.sample_sequence_ids is None:
            prefix = f"{client._sampling_session_id}:{request_id}"
            return promise.model_copy(update={"sample_sequence_ids": [f"{prefix}:{n}" for n in range(num_samples)]})
        return promise

    client._send_asample_request = named
    return client


class WaitListener(Protocol):
    """Told when the backend makes a request wait, and when requests get through again; from the SDK's own threads."""

    def waiting(self, reason: str, detail: str | None) -> None: ...  # noqa: D102
    def going_on(self) -> None: ...  # noqa: D102


@contextmanager
def observed_queue(listener: WaitListener) -> Generator[None]:
    """Tell ``listener`` of the backend's pauses for as long as the block runs."""
    logger_change, sampler_change = QueueStateLogger.on_queue_state_change, SamplingClient.on_queue_state_change
    should_pause = InternalClientHolder._should_pause_on_billing

    def observe(state: QueueState, detail: str | None) -> None:
        if state in _REASONS:
            listener.waiting(_REASONS[state], detail)
        elif state == QueueState.ACTIVE:
            listener.going_on()

    def on_logger(self: QueueStateLogger, queue_state: QueueState, queue_state_reason: str | None) -> None:
        observe(queue_state, queue_state_reason)
        logger_change(self, queue_state, queue_state_reason)

    def on_sampler(self: SamplingClient, queue_state: QueueState, queue_state_reason: str | None) -> None:
        observe(queue_state, queue_state_reason)
        sampler_change(self, queue_state, queue_state_reason)

    def on_billing(self: Any, status_code: int, *args: Any, **kwargs: Any) -> bool:
        pausing = should_pause(self, status_code, *args, **kwargs)
        if status_code == 402 and pausing:
            listener.waiting(BILLING, None)
        return pausing

    QueueStateLogger.on_queue_state_change = on_logger
    SamplingClient.on_queue_state_change = on_sampler
    InternalClientHolder._should_pause_on_billing = on_billing
    try:
        yield
    finally:
        QueueStateLogger.on_queue_state_change = logger_change
        SamplingClient.on_queue_state_change = sampler_change
        InternalClientHolder._should_pause_on_billing = should_pause
