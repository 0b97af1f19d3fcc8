"""What is heard of the SDK's pauses, from the places inside it where they are noticed."""

from types import SimpleNamespace
from typing import Any

import pytest
from tinker.lib.api_future_impl import QueueState
from tinker.lib.internal_client_holder import InternalClientHolder
from tinker.lib.public_interfaces.sampling_client import SamplingClient
from tinker.lib.queue_state_logger import QueueStateLogger

from sota_ml_researcher.backends.sdk_hooks import BILLING, observed_queue


class Listener:
    def __init__(self) -> None:
        self.heard: list[tuple[str, str | None]] = []

    def waiting(self, reason: str, detail: str | None) -> None:
        self.heard.append((reason, detail))

    def going_on(self) -> None:
        self.heard.append(("going on", None))


def training_requests(state: QueueState, detail: str | None) -> None:
    QueueStateLogger("a model", "Training").on_queue_state_change(state, detail)


def sampling_requests(state: QueueState, detail: str | None) -> None:
    sampler: Any = SimpleNamespace(_last_queue_state_logged=0.0, _sampling_session_id="s")
    SamplingClient.on_queue_state_change(sampler, state, detail)


def answered(status: int) -> bool:
    holder: Any = SimpleNamespace(_last_logged_billing_exception_time=None, _first_billing_exception_time=None)
    return InternalClientHolder._should_pause_on_billing(holder, status, "no funds")


@pytest.mark.parametrize("requests", [training_requests, sampling_requests])
def test_pauses_are_told_with_their_reason_and_their_end(requests: Any) -> None:
    listener = Listener()
    with observed_queue(listener):
        requests(QueueState.PAUSED_CAPACITY, "no GPUs")
        requests(QueueState.PAUSED_RATE_LIMIT, None)
        requests(QueueState.UNKNOWN, None)
        requests(QueueState.ACTIVE, None)
    assert listener.heard == [("capacity", "no GPUs"), ("the rate limit", None), ("going on", None)]


def test_an_unpaid_bill_is_told_and_other_answers_are_not() -> None:
    listener = Listener()
    with observed_queue(listener):
        assert answered(402)
        assert not answered(500)
    assert listener.heard == [(BILLING, None)]


def test_afterwards_the_sdk_is_as_it_was() -> None:
    def hooked() -> list[Any]:
        return [
            QueueStateLogger.on_queue_state_change,
            SamplingClient.on_queue_state_change,
            InternalClientHolder._should_pause_on_billing,
        ]

    before, listener = hooked(), Listener()
    with pytest.raises(ValueError), observed_queue(listener):
        assert not set(before) & set(hooked())
        raise ValueError
    assert hooked() == before
    training_requests(QueueState.PAUSED_CAPACITY, None)
    assert listener.heard == []
