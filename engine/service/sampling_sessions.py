"""Sampling sessions, and the requests made in them."""

from __future__ import annotations

import uuid
from collections.abc import Callable

from ..interface import RequestRejectedError
from .base_models import BaseModels
from .futures import ConflictError, Failure, Promise, Promises
from .sample_runner import SampleJob
from .scheduler import Scheduler, Work
from .state import SamplingSession, Session
from .store import Store

_CANCELLED = Failure("the client cancelled this request", "user")
MOST_SEQ = 2**62


def check_seq(seq: int) -> int:
    """A sequence number that one can be.

    Raises:
        RequestRejectedError: If it is negative or beyond 2^62.
    """
    if not 0 <= seq <= MOST_SEQ:
        raise RequestRejectedError(f"a sequence number is from 0 to {MOST_SEQ}")
    return seq


def lane_of(session_id: str) -> str:
    """The scheduler's lane for the samples of a client."""
    return f"{session_id}:sample"


class SamplingSessions:
    """Every sampling session of an engine. ``session_of`` gives the client a session id belongs to."""

    def __init__(
        self,
        store: Store,
        models: BaseModels,
        promises: Promises,
        scheduler: Scheduler,
        session_of: Callable[[str], Session],
    ) -> None:
        self._store = store
        self._models = models
        self._promises = promises
        self._scheduler = scheduler
        self._session = session_of
        self.samplers: dict[str, SamplingSession] = {}

    def drop(self, sampler_id: str) -> None:
        """Forget a sampling session and what it still waits for."""
        self.samplers.pop(sampler_id, None)
        self._promises.drop_sampler(sampler_id)

    def create(self, session_id: str, seq: int, base_model: str | None, path: str | None) -> SamplingSession:
        """A sampling session on a base model or a checkpoint; asked for again, it is the same one.

        Raises:
            RequestRejectedError: If neither is known here.
            ConflictError: If the number is that of a session on something else.
        """
        sampler_id = f"{session_id}:sample:{check_seq(seq)}"
        known = self.samplers.get(sampler_id)
        if known is not None:
            if known.asked != (base_model, path):
                raise ConflictError(
                    f"the sequence number of {sampler_id} was used before, for another sampling session"
                )
            return known
        sampler = self.direct(base_model, path)
        sampler.sampler_id, sampler.session_id, sampler.asked = sampler_id, session_id, (base_model, path)
        return self.add(sampler)

    def direct(self, base_model: str | None, path: str | None) -> SamplingSession:
        """What one request outside any session samples from; it is not kept.

        Raises:
            RequestRejectedError: If neither is known here, or they do not belong together.
        """
        saved = self._store.find(path) if path else None
        name = saved.base_model if saved else base_model
        if name is None:
            raise RequestRejectedError("give base_model or model_path")
        if saved and base_model and self._models.check(base_model) != self._models.check(saved.base_model):
            raise RequestRejectedError(f"{path} is a checkpoint of {saved.base_model}, not of {base_model}")
        self._models.check(name)
        return SamplingSession(f"direct:{uuid.uuid4().hex}", "direct", name, path)

    def add(self, sampler: SamplingSession) -> SamplingSession:
        """Keep a sampling session."""
        self.samplers[sampler.sampler_id] = sampler
        self._session(sampler.session_id).samplers.append(sampler.sampler_id)
        return sampler

    def get(self, sampler_id: str) -> SamplingSession:
        """A sampling session.

        Raises:
            RequestRejectedError: If there is none.
        """
        sampler = self.samplers.get(sampler_id)
        if sampler is None:
            raise RequestRejectedError(
                f"there is no sampling session {sampler_id[:80]} here: create a new sampling client"
            )
        return sampler

    def join(self, sampler_id: str) -> int:
        """A number of its own for one more client of a sampling session (the first has 0)."""
        sampler = self.get(sampler_id)
        sampler.clones += 1
        return sampler.clones

    def sample(self, job: SampleJob, seq: int | None) -> Promise:
        """Continue a prompt; the promise's result is what the job's ``encode`` makes of the output."""
        sampler_id = job.sampler.sampler_id
        request_id = f"{sampler_id}:{uuid.uuid4().hex if seq is None else check_seq(seq)}"
        known = self._promises.get(request_id)
        if known is not None:
            return known
        self._scheduler.check_room()
        promise = self._promises.open(request_id, sampler=sampler_id if sampler_id in self.samplers else None)
        self._scheduler.submit(lane_of(job.sampler.session_id), Work(promise, payload=job))
        return promise

    def cancel(self, request_id: str) -> None:
        """A client no longer wants a result: it is not computed, or no further."""
        promise = self._promises.get(request_id)
        if promise is not None:
            self._scheduler.cancel(promise, _CANCELLED)
