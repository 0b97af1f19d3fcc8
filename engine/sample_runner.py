"""Running the waiting sample requests of all clients together."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from sota_ml_researcher.engine import wire
from sota_ml_researcher.engine.interface import BaseModel, SampleSettings, Weights
from sota_ml_researcher.engine.models import BaseModels
from sota_ml_researcher.engine.scheduler import Result
from sota_ml_researcher.engine.state import Sampler
from sota_ml_researcher.engine.store import Saved, Store

_CACHED_WEIGHTS = 16


@dataclass(frozen=True, slots=True)
class SampleJob:
    """One request: which weights, and what to do with them. ``encode`` writes its result for the wire."""

    sampler: Sampler
    settings: SampleSettings
    encode: Callable[..., Result] = wire.encode_sample_output


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

    def run(self, jobs: Sequence[SampleJob]) -> list[Result | Exception]:
        """Sample many prompts: those on one base model in one pass, a wrong one without spoiling the others."""
        results: dict[int, Result | Exception] = {}
        groups: dict[str, list[int]] = {}
        for index, job in enumerate(jobs):
            groups.setdefault(job.sampler.base_model, []).append(index)
        for base_name, indexes in groups.items():
            results |= self._run_group(base_name, {i: jobs[i] for i in indexes})
        return [results[index] for index in range(len(jobs))]

    def _run_group(self, base_name: str, jobs: Mapping[int, SampleJob]) -> dict[int, Result | Exception]:
        try:
            base = self._models.get(base_name, in_use=self._in_use())
            weights = [self._weights_of(base, job.sampler) for job in jobs.values()]
            outputs = base.sample([job.settings for job in jobs.values()], weights)
            return {i: job.encode(o) for (i, job), o in zip(jobs.items(), outputs, strict=True)}
        except Exception as error:  # which one it was shows when each runs alone
            if len(jobs) == 1:
                return dict.fromkeys(jobs, error)
            return {i: r for index, job in jobs.items() for i, r in self._run_group(base_name, {index: job}).items()}

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
