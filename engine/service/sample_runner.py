"""Running the waiting sample requests of all clients together."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from .. import wire
from ..interface import BaseModel, SampleAsk, SampleOutput, SampleSettings, Weights
from .base_models import BaseModels
from .scheduler import Joint, Result
from .state import Sampler
from .store import Saved, Store

_CACHED_WEIGHTS = 16


@dataclass(frozen=True, slots=True)
class SampleJob:
    """One request: which weights, and what to do with them. ``encode`` writes its result for the wire."""

    sampler: Sampler
    settings: SampleSettings
    encode: Callable[..., Result] = wire.encode_sample_output


@dataclass(frozen=True, slots=True, eq=False)
class _Asked:
    """A job under its number in the joint."""

    number: int
    job: SampleJob


class SampleRunner:
    """Computes in the compute thread only.

    Args:
        store: Where checkpoints are.
        models: The base models.
        in_use: Names of the base models that adapters in training need.
    """

    def __init__(self, store: Store, models: BaseModels, in_use: Callable[[], frozenset[str]]) -> None:
        self._store = store
        self._models = models
        self._in_use = in_use
        self._weights: OrderedDict[str, Weights] = OrderedDict()

    def forget(self, path: str) -> None:
        """A checkpoint was written anew: do not sample from the old one."""
        self._weights.pop(path, None)

    def run(self, joint: Joint) -> None:
        """Sample what the joint has and lets in, those on one base model together, and finish every request.

        A wrong request fails alone. If the machine runs out of memory, what is unfinished runs one by one.
        """
        waiting = [_Asked(number, job) for number, job in joint.take()]
        while waiting:
            base_name = waiting[0].job.sampler.base_model
            mine = [asked for asked in waiting if asked.job.sampler.base_model == base_name]
            others = [asked for asked in waiting if asked.job.sampler.base_model != base_name]
            waiting = others + self._run_base(base_name, mine, joint)

    def _run_base(self, base_name: str, asked: Sequence[_Asked], joint: Joint) -> list[_Asked]:
        """Run those of one base model; returns what came meanwhile and is on another one."""
        try:
            base = self._models.get(base_name, in_use=self._in_use())
        except Exception as error:  # each of them is told why
            for each in asked:
                joint.finish(each.number, error)
            return []
        elsewhere: list[_Asked] = []
        running: dict[int, SampleAsk] = {}

        def check(every: Sequence[_Asked]) -> list[SampleAsk]:
            asks = [ask for each in every if (ask := self._checked(base, each, joint)) is not None]
            running.update({ask.key.number: ask for ask in asks})
            return asks

        def arrivals() -> list[SampleAsk]:
            if elsewhere:  # they wait for this to end, so that nothing may prolong it
                return []
            came = [_Asked(number, job) for number, job in joint.take()]
            elsewhere.extend(each for each in came if each.job.sampler.base_model != base_name)
            return check([each for each in came if each.job.sampler.base_model == base_name])

        def finished(key: _Asked, output: SampleOutput) -> None:
            joint.finish(key.number, key.job.encode(output))
            running.pop(key.number, None)

        try:
            base.sample_stream(check(asked), arrivals, finished)
        except Exception as error:
            alone = list(running.values())
            for ask in alone:
                _run_alone(base, ask, joint, error if len(alone) == 1 else None)
        return elsewhere

    def _checked(self, base: BaseModel, asked: _Asked, joint: Joint) -> SampleAsk | None:
        try:
            base.check_sample(asked.job.settings)
            return SampleAsk(asked, asked.job.settings, self._weights_of(base, asked.job.sampler))
        except Exception as error:  # of this request alone: the others go on
            joint.finish(asked.number, error)
            return None

    def _weights_of(self, base: BaseModel, sampler: Sampler) -> Weights | None:
        if sampler.inflight is not None:
            return sampler.inflight.weights
        if sampler.snapshot is not None or sampler.path is None:
            return sampler.snapshot
        if sampler.path not in self._weights:
            saved: Saved = self._store.find(sampler.path)
            self._weights[sampler.path] = base.frozen(saved.spec, self._store.tensors(saved))
            while len(self._weights) > _CACHED_WEIGHTS:
                self._weights.popitem(last=False)
        self._weights.move_to_end(sampler.path)
        return self._weights[sampler.path]


def _run_alone(base: BaseModel, ask: SampleAsk, joint: Joint, error: Exception | None) -> None:
    """Try one request again by itself, unless it already was when ``error`` came."""
    key: _Asked = ask.key
    try:
        if error is not None:
            raise error
        (output,) = base.sample([ask.request], [ask.weights])
        joint.finish(key.number, key.job.encode(output))
    except Exception as failure:  # the boundary of a request
        joint.finish(key.number, failure)
