"""Running the waiting sample requests of all clients together."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

from ..interface import BaseModel, SampleAsk, SampleOutput, SampleSettings, Weights
from ..sample_request import check_answer
from ..wire import encode_sample_output
from .base_models import BaseModels
from .scheduler import Joint, Work
from .state import SamplingSession
from .store import Saved, Store

_CACHED_WEIGHTS = 16
# Ends of a turn in the chat templates of common model families, beside the tokenizer's own end token.
_TURN_ENDS = ("<|im_end|>", "<|eot_id|>", "<end_of_turn>", "<|end|>")


@lru_cache(maxsize=8)
def end_tokens(tokenizer: Any) -> frozenset[int]:
    """The tokens at which a model ends by itself: its end of text, and the end of a turn of its chat format."""
    vocabulary: dict[str, int] = tokenizer.get_vocab()
    ends = {vocabulary[text] for text in _TURN_ENDS if text in vocabulary}
    return frozenset(ends | ({tokenizer.eos_token_id} if tokenizer.eos_token_id is not None else set()))


@dataclass(frozen=True, slots=True)
class SampleJob:
    """One request: which weights, and what to do with them.

    ``encode`` writes its result for the wire; with ``ends_implicitly`` the model's own ends stop it.
    """

    sampler: SamplingSession
    settings: SampleSettings
    encode: Callable[[SampleOutput], object] = encode_sample_output
    ends_implicitly: bool = False


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
        waiting = joint.take()
        while waiting:
            base_name = _base_of(waiting[0])
            mine = [work for work in waiting if _base_of(work) == base_name]
            others = [work for work in waiting if _base_of(work) != base_name]
            waiting = others + self._run_base(base_name, mine, joint)

    def _run_base(self, base_name: str, works: Sequence[Work], joint: Joint) -> list[Work]:
        """Run those of one base model; returns what came meanwhile and is on another one."""
        try:
            base = self._models.get(base_name, in_use=self._in_use())
        except Exception as error:  # each of them is told why
            for work in works:
                joint.finish(work, error)
            return []
        elsewhere: list[Work] = []
        running: dict[Work, SampleAsk] = {}

        def check(every: Sequence[Work]) -> list[SampleAsk]:
            asks = [ask for work in every if (ask := self._checked(base, work, joint)) is not None]
            running.update({ask.key: ask for ask in asks})
            return asks

        def arrivals() -> list[SampleAsk]:
            if elsewhere:  # they wait for this to end, so nothing may prolong it
                return []
            came = joint.take()
            elsewhere.extend(work for work in came if _base_of(work) != base_name)
            return check([work for work in came if _base_of(work) == base_name])

        def finished(work: Work, output: SampleOutput) -> None:
            joint.finish(work, work.payload.encode(output))
            running.pop(work, None)

        try:
            base.sample_stream(check(works), arrivals, finished)
        except Exception as error:
            alone = [ask for ask in running.values() if ask.wanted()]
            for ask in alone:
                _run_alone(base, ask, joint, error if len(alone) == 1 else None)
        return elsewhere

    def _checked(self, base: BaseModel, work: Work, joint: Joint) -> SampleAsk | None:
        job: SampleJob = work.payload
        try:
            settings, promise = job.settings, work.promise
            if job.ends_implicitly:
                settings = replace(settings, stop_tokens=end_tokens(base.tokenizer))
            check_answer(settings, base.max_context_length)
            base.check_sample(settings)
            weights = self._weights_of(base, job.sampler)
            return SampleAsk(work, settings, weights, wanted=lambda: not promise.cancelled)
        except Exception as error:  # of this request alone: the others go on
            joint.finish(work, error)
            return None

    def _weights_of(self, base: BaseModel, sampler: SamplingSession) -> Weights | None:
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


def _base_of(work: Work) -> str:
    return work.payload.sampler.base_model


def _run_alone(base: BaseModel, ask: SampleAsk, joint: Joint, error: Exception | None) -> None:
    """Try one request again by itself, unless it already was when ``error`` came."""
    try:
        if error is not None:
            raise error
        base.sample_stream([ask], list, lambda work, output: joint.finish(work, work.payload.encode(output)))
    except Exception as failure:  # the boundary of a request
        joint.finish(ask.key, failure)
