"""What the engine can do, apart from how it is asked: sessions, adapters, checkpoints, sampling."""

from __future__ import annotations

import time
import uuid
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from sota_ml_researcher.engine import wire
from sota_ml_researcher.engine.futures import Promise, Promises
from sota_ml_researcher.engine.interface import (
    AdamSettings,
    Adapter,
    BaseModel,
    LoraSpec,
    RequestRejectedError,
    SampleSettings,
    Weights,
)
from sota_ml_researcher.engine.models import BaseModels
from sota_ml_researcher.engine.scheduler import SAMPLES, Result, Scheduler, Work
from sota_ml_researcher.engine.store import Run, Saved, Store

# A client beats every few seconds; one silent for this long is gone, and its adapters' memory is freed.
SILENT_SESSION_S = 900.0
_CACHED_WEIGHTS = 16
_LEAST_TTL_S = 3600
_SAVED_AS = {
    "weights": "save_weights",
    "sampler_weights": "save_weights_for_sampler",
    "external_weights": "save_weights_external",
}


@dataclass(slots=True)
class Session:
    """One client. Times are seconds since the epoch."""

    session_id: str
    created: float
    seen: float
    user_metadata: dict[str, Any]
    display_name: str | None
    models: list[str] = field(default_factory=list[str])
    samplers: list[str] = field(default_factory=list[str])


@dataclass(slots=True)
class Training:
    """One adapter in training. ``adapter`` is None until its creation was computed."""

    run: Run
    spec: LoraSpec
    base: BaseModel | None = None
    adapter: Adapter | None = None
    step: int = 0
    last_request: float = 0.0


@dataclass(frozen=True, slots=True)
class Sampler:
    """What a sampling session samples from: a base model, with saved or snapshot weights on it."""

    sampler_id: str
    session_id: str
    base_model: str
    path: str | None = None
    snapshot: Weights | None = None


@dataclass(frozen=True, slots=True)
class _SampleJob:
    sampler: Sampler
    settings: SampleSettings


class Engine:
    """The state of one engine process; its methods are called from the event loop and never block it."""

    def __init__(self, store: Store, models: BaseModels) -> None:
        self.store = store
        self.models = models
        self.promises = Promises()
        self.scheduler = Scheduler(self.promises, self._sample_together)
        self.sessions: dict[str, Session] = {}
        self.trainings: dict[str, Training] = {}
        self.samplers: dict[str, Sampler] = {}
        self._weights: OrderedDict[str, Weights] = OrderedDict()
        self.started = time.time()

    def create_session(self, user_metadata: Mapping[str, Any] | None, display_name: str | None) -> Session:
        """A new client."""
        now = time.time()
        session = Session(uuid.uuid4().hex[:16], now, now, dict(user_metadata or {}), display_name)
        self.sessions[session.session_id] = session
        return session

    def beat(self, session_id: str) -> None:
        """A sign of life of a client; one from before a restart is taken back."""
        self._session(session_id).seen = time.time()

    def _session(self, session_id: str) -> Session:
        if session_id not in self.sessions:
            now = time.time()
            self.sessions[session_id] = Session(session_id, now, now, {}, None)
        return self.sessions[session_id]

    def create_model(
        self, session_id: str, seq: int, base_model: str, spec: LoraSpec, user_metadata: Mapping[str, Any] | None
    ) -> Promise:
        """A fresh adapter.

        Raises:
            RequestRejectedError: If the engine does not serve the base model.
        """
        model_id = f"{session_id}:train:{seq}"
        base_name = self.models.check(base_model)
        known = self.promises.get(f"{model_id}:0")
        if known is not None:
            return known
        training = self._new_training(model_id, session_id, base_model, spec, user_metadata)

        def compute() -> Result:
            training.base = self.models.get(base_name, in_use=self._in_use())
            training.adapter = training.base.new_adapter(spec)
            self.store.add_run(training.run)
            return {"type": "create_model", "model_id": model_id}

        return self._ordered(model_id, 0, compute)

    def create_from_checkpoint(
        self, session_id: str, seq: int, path: str, *, optimizer: bool, user_metadata: Mapping[str, Any] | None
    ) -> Promise:
        """An adapter that goes on from a checkpoint.

        Raises:
            RequestRejectedError: If there is no such checkpoint.
        """
        model_id = f"{session_id}:train:{seq}"
        known = self.promises.get(f"{model_id}:0")
        if known is not None:
            return known
        saved = self.store.find(path)
        self.models.check(saved.base_model)
        training = self._new_training(model_id, session_id, saved.base_model, saved.spec, user_metadata)

        def compute() -> Result:
            training.base = self.models.get(saved.base_model, in_use=self._in_use())
            adapter = training.base.new_adapter(saved.spec)
            adapter.load(self.store.tensors(saved), self.store.tensors(saved, optimizer=True) if optimizer else None)
            training.adapter = adapter
            self.store.add_run(training.run)
            return {"type": "load_weights", "path": path, "model_id": model_id}

        return self._ordered(model_id, 0, compute)

    def _new_training(
        self, model_id: str, session_id: str, base_model: str, spec: LoraSpec, metadata: Mapping[str, Any] | None
    ) -> Training:
        session = self._session(session_id)
        merged = {**session.user_metadata, **(metadata or {})}
        run = Run(model_id, session_id, base_model, asdict(spec), merged, time.time())
        training = Training(run, spec, last_request=time.time())
        self.trainings[model_id] = training
        session.models.append(model_id)
        return training

    def load_weights(self, model_id: str, seq: int | None, path: str, *, optimizer: bool) -> Promise:
        """Replace an adapter's weights by a checkpoint's.

        Raises:
            RequestRejectedError: If there is no such checkpoint, or it is of another base model.
        """
        training, saved = self.training(model_id), self.store.find(path)
        if self.models.check(saved.base_model) != self.models.check(training.run.base_model):
            raise RequestRejectedError(
                f"{path} is a checkpoint of {saved.base_model}, and this adapter is on {training.run.base_model}"
            )

        def compute() -> Result:
            state = self.store.tensors(saved, optimizer=True) if optimizer else None
            _adapter(training).load(self.store.tensors(saved), state)
            return {"type": "load_weights", "path": path}

        return self._ordered(model_id, seq, compute)

    def loss(self, request: wire.LossRequest) -> Promise:
        """Forward, and unless ``forward_only`` backward too."""
        training = self.training(request.model_id)

        def compute() -> Result:
            result = _adapter(training).forward_backward(
                request.items, request.loss, request.config or None, backward=not request.forward_only
            )
            return wire.encode_loss_result(result)

        return self._ordered(request.model_id, request.seq_id, compute)

    def optim_step(self, model_id: str, seq: int | None, settings: AdamSettings) -> Promise:
        """One optimizer step."""
        training = self.training(model_id)

        def compute() -> Result:
            metrics = _adapter(training).optim_step(settings)
            training.step += 1
            return {"type": "optim_step", "metrics": metrics}

        return self._ordered(model_id, seq, compute)

    def save(
        self,
        model_id: str,
        seq: int | None,
        kind: str,
        name: str | None,
        *,
        ttl_s: int | None,
        metadata: Any = None,
        finish: Callable[[Path], None] | None = None,
    ) -> Promise:
        """Write a checkpoint: ``weights`` with the optimizer's state, ``sampler_weights`` or ``external_weights``.

        Raises:
            RequestRejectedError: If its life would be shorter than the platform allows.
        """
        training = self.training(model_id)
        if ttl_s is not None and ttl_s < _LEAST_TTL_S:
            raise RequestRejectedError(f"ttl_seconds is {ttl_s}; the least is {_LEAST_TTL_S}")

        def compute() -> Result:
            adapter, base = _adapter(training), training.base
            saved = self.store.save(
                training.run,
                kind,
                name or f"step-{training.step:06d}",
                weights=adapter.export_weights(),
                adapter_config=base.adapter_config(training.spec) if base else {},
                optimizer=adapter.export_optimizer() if kind == "weights" else None,
                ttl_s=ttl_s,
                user_metadata=metadata,
                finish=finish,
            )
            self._weights.pop(saved.path, None)
            return {"type": _SAVED_AS[kind], "path": saved.path}

        return self._ordered(model_id, seq, compute)

    def snapshot(self, model_id: str, seq: int | None, sampler_seq: int) -> Promise:
        """A sampling session on the adapter's weights of this moment, held in memory only."""
        training = self.training(model_id)
        session_id = training.run.session_id
        sampler_id = f"{session_id}:sample:{sampler_seq}"

        def compute() -> Result:
            weights = _adapter(training).weights()
            self._add_sampler(Sampler(sampler_id, session_id, training.run.base_model, snapshot=weights))
            return {"type": "save_weights_for_sampler", "path": None, "sampling_session_id": sampler_id}

        return self._ordered(model_id, seq, compute)

    def create_sampler(self, session_id: str, seq: int, base_model: str | None, path: str | None) -> Sampler:
        """A sampling session on a base model or a checkpoint.

        Raises:
            RequestRejectedError: If neither is known here.
        """
        saved = self.store.find(path) if path else None
        name = saved.base_model if saved else base_model
        if name is None:
            raise RequestRejectedError("give base_model or model_path")
        self.models.check(name)
        return self._add_sampler(Sampler(f"{session_id}:sample:{seq}", session_id, name, path))

    def _add_sampler(self, sampler: Sampler) -> Sampler:
        self.samplers[sampler.sampler_id] = sampler
        self._session(sampler.session_id).samplers.append(sampler.sampler_id)
        return sampler

    def sample(self, sampler: Sampler, seq: int | None, settings: SampleSettings) -> Promise:
        """Continue a prompt."""
        request_id = f"{sampler.sampler_id}:{uuid.uuid4().hex if seq is None else seq}"
        known = self.promises.get(request_id)
        if known is not None:
            return known
        promise = self.promises.open(request_id, sampler=sampler.sampler_id)
        self.scheduler.submit(SAMPLES, Work(promise, payload=_SampleJob(sampler, settings)))
        return promise

    def training(self, model_id: str) -> Training:
        """An adapter in memory.

        Raises:
            RequestRejectedError: If there is none: it never was, or its client was silent for too long.
        """
        training = self.trainings.get(model_id)
        if training is None:
            raise RequestRejectedError(
                f"there is no training client {model_id} here: the engine was restarted or the client was silent for "
                f"{SILENT_SESSION_S:.0f} s. Create one from its last checkpoint"
            )
        training.last_request = time.time()
        return training

    def forget_silent(self, now: float) -> None:
        """Free what belongs to clients that are gone; their checkpoints stay."""
        for session in [s for s in self.sessions.values() if now - s.seen > SILENT_SESSION_S]:
            self.finish_session(session.session_id)

    def finish_session(self, session_id: str) -> None:
        """Free what a client held in memory."""
        session = self.sessions.pop(session_id, None)
        if session is None:
            return
        for model_id in session.models:
            self.trainings.pop(model_id, None)
            self.scheduler.drop_lane(model_id, "the client's session has ended")
        for sampler_id in session.samplers:
            self.samplers.pop(sampler_id, None)

    def _ordered(self, model_id: str, seq: int | None, compute: Callable[[], Result]) -> Promise:
        """Queue an adapter's request at its place; the same seq id again is the same request."""
        request_id = f"{model_id}:{uuid.uuid4().hex if seq is None else seq}"
        known = self.promises.get(request_id)
        if known is not None:
            return known
        promise = self.promises.open(request_id)
        self.scheduler.submit(model_id, Work(promise, compute), seq=seq, first_seq=0)
        return promise

    def _in_use(self) -> frozenset[str]:
        return frozenset(t.base.name for t in self.trainings.values() if t.base is not None)

    def _sample_together(self, jobs: Sequence[_SampleJob]) -> list[Result | Exception]:
        """Sample many prompts: those on one base model in one pass, a wrong one without spoiling the others."""
        results: dict[int, Result | Exception] = {}
        groups: dict[str, list[int]] = {}
        for index, job in enumerate(jobs):
            groups.setdefault(job.sampler.base_model, []).append(index)
        for base_name, indexes in groups.items():
            results |= self._sample_group(base_name, {i: jobs[i] for i in indexes})
        return [results[index] for index in range(len(jobs))]

    def _sample_group(self, base_name: str, jobs: Mapping[int, _SampleJob]) -> dict[int, Result | Exception]:
        try:
            base = self.models.get(base_name, in_use=self._in_use())
            weights = [self._weights_of(base, job.sampler) for job in jobs.values()]
            outputs = base.sample([job.settings for job in jobs.values()], weights)
            return {i: wire.encode_sample_output(o) for i, o in zip(jobs, outputs, strict=True)}
        except Exception as error:  # which one it was shows when each runs alone
            if len(jobs) == 1:
                return dict.fromkeys(jobs, error)
            return {i: r for index, job in jobs.items() for i, r in self._sample_group(base_name, {index: job}).items()}

    def _weights_of(self, base: BaseModel, sampler: Sampler) -> Weights | None:
        if sampler.snapshot is not None or sampler.path is None:
            return sampler.snapshot
        if sampler.path not in self._weights:
            saved: Saved = self.store.find(sampler.path)
            self._weights[sampler.path] = base.frozen(saved.spec, self.store.tensors(saved))
            while len(self._weights) > _CACHED_WEIGHTS:
                self._weights.popitem(last=False)
        self._weights.move_to_end(sampler.path)
        return self._weights[sampler.path]


def _adapter(training: Training) -> Adapter:
    if training.adapter is None:
        raise RequestRejectedError("the adapter could not be created; its create request says why")
    return training.adapter
