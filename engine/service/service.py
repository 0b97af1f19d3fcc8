"""What an engine process keeps and what it does: sessions, adapters, samplers, and their requests."""

from __future__ import annotations

import re
import time
import uuid
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

from tinker import types

from .. import wire
from ..interface import AdamSettings, Adapter, LoraSpec, RequestRejectedError
from ..json_fields import shown
from .base_models import BaseModels
from .futures import Failure, Promise, Promises
from .sample_runner import SampleRunner
from .sampling_sessions import SamplingSessions, check_seq, lane_of
from .scheduler import Scheduler, Work
from .state import SamplingSession, Session, Training
from .store import Contents, Run, Saved, SaveOptions, Store, check_ttl
from .trace import Trace

# A client beats every ten seconds. What one that fell silent has queued is no longer computed; one silent for long is
# gone, and its adapters' memory is freed.
QUEUE_TIMEOUT_S, SESSION_TIMEOUT_S = 45.0, 900.0
_SWEEP_S = 10.0
_MOST_RANK = 1024
_SESSION_ID = re.compile(r"[\w.-]{1,64}", re.ASCII)
_ENDED = Failure("the client's session has ended", "user")
_SILENT = types.SessionCancelled(detail="the client fell silent")
_SAVED: Mapping[str, Callable[[Saved], object]] = {
    "weights": lambda saved: types.SaveWeightsResponse(type="save_weights", path=saved.path),
    "sampler_weights": lambda saved: types.SaveWeightsForSamplerResponseInternal(
        type="save_weights_for_sampler", path=saved.path
    ),
    "external_weights": lambda saved: types.SaveWeightsExternalResponseInternal(
        type="save_weights_external", path=saved.path, size_bytes=saved.size_bytes
    ),
}


class SessionFinishedError(RequestRejectedError):
    """The session has ended, and nothing more belongs to it."""


class Engine:
    """The state of one engine process; its methods are called from the event loop and never block it.

    Args:
        store: Checkpoints on disk.
        models: Base models by name.
        adapter_bytes: Most memory that adapters in training may hold together; more of them wait for room.
        compile_loss: `compute.custom_loss.compile_custom_loss`.
        queue_timeout_s: How long a client may be silent before what it queued is let go.
        session_timeout_s: How long it may be silent before its adapters are freed.
    """

    def __init__(
        self,
        store: Store,
        models: BaseModels,
        *,
        adapter_bytes: float = float("inf"),
        compile_loss: Callable[[str, Sequence[tuple[str, int]], Sequence[Mapping[str, Any]]], Any] | None = None,
        queue_timeout_s: float = QUEUE_TIMEOUT_S,
        session_timeout_s: float = SESSION_TIMEOUT_S,
    ) -> None:
        self.store = store
        self.models = models
        self.promises = Promises()
        self.trace = Trace()
        self._runner = SampleRunner(store, models, self.in_use)
        self.scheduler = Scheduler(self.promises, self._runner.run, self.trace, self._is_held)
        self.sessions: dict[str, Session] = {}
        self.trainings: dict[str, Training] = {}
        self.sampling = SamplingSessions(store, models, self.promises, self.scheduler, self.session)
        self._adapter_bytes = adapter_bytes
        self._held: tuple[int, tuple[int, int, Counter[str]]] | None = None
        self._compile_loss = compile_loss
        self._queue_timeout_s = queue_timeout_s
        self._session_timeout_s = session_timeout_s
        self.sweep_s = min(_SWEEP_S, queue_timeout_s / 4)
        self._swept = time.monotonic()
        self.started = time.time()

    def create_session(self, user_metadata: Mapping[str, Any] | None, display_name: str | None) -> Session:
        """Begin the session of a new client."""
        session = Session(uuid.uuid4().hex[:16], time.time(), time.monotonic(), dict(user_metadata or {}), display_name)
        self.sessions[session.session_id] = session
        return session

    def beat(self, session_id: str) -> None:
        """A client's heartbeat; one from before a restart, or one that was silent for long, is taken back.

        Raises:
            SessionFinishedError: If the client ended the session: it may stop beating.
        """
        session = self.sessions.get(session_id)
        if session is not None and session.finish == _SILENT:
            session.finish = None
        self.session(session_id)

    def has_clients(self) -> bool:
        """Whether some client's session is open and was heard of lately, even if it asks for nothing now."""
        now = time.monotonic()
        open_ones = (session for session in self.sessions.values() if session.finish is None)
        return any(now - session.seen < self._queue_timeout_s for session in open_ones)

    def heard_of(self, owned_id: str) -> None:
        """A client asked for something of its own, named ``SESSION:...``, so it is there."""
        session = self.sessions.get(owned_id.partition(":")[0])
        if session is not None:
            session.seen = time.monotonic()
            if session.held:
                session.held = False
                self.scheduler.look_again()

    def session(self, session_id: str) -> Session:
        """A client's session; one from before a restart is taken back.

        Raises:
            SessionFinishedError: If it has ended.
        """
        session = self.sessions.get(session_id)
        if session is None:
            if not _SESSION_ID.fullmatch(session_id):
                raise RequestRejectedError("that is no session of this engine: create one first")
            session = Session(session_id, time.time(), time.monotonic(), {}, None)
            self.sessions[session_id] = session
        if session.finish is not None:
            raise SessionFinishedError(f"the session {session_id} has ended: create a new ServiceClient")
        self.heard_of(session_id)
        return session

    def _is_held(self, lane: str) -> bool:
        """Whether a lane waits for its client to be heard of again."""
        session = self.sessions.get(lane.partition(":")[0])
        return session is not None and session.held

    def create_custom_loss(
        self,
        session_id: str,
        seq: int,
        name: str,
        inputs: Sequence[tuple[str, int]],
        nodes: Sequence[Mapping[str, Any]],
    ) -> Promise:
        """Check and keep a traced loss for the clients of one session."""
        session, loss_id = self.session(session_id), f"{session_id}:loss:{check_seq(seq)}"

        def compute() -> types.CreateCustomLossResponse:
            if self._compile_loss is None:
                raise RequestRejectedError("this engine runs no custom losses")
            session.losses[loss_id] = self._compile_loss(name, inputs, nodes)
            return types.CreateCustomLossResponse(loss_id=loss_id)

        return self._ordered(loss_id, None, compute, request_id=loss_id)

    def create_model(
        self, session_id: str, seq: int, base_model: str, spec: LoraSpec, user_metadata: Mapping[str, Any] | None
    ) -> Promise:
        """A fresh adapter.

        Raises:
            RequestRejectedError: If the engine does not serve the base model.
        """
        model_id = f"{session_id}:train:{check_seq(seq)}"
        known = self.promises.get(f"{model_id}:0")
        if known is not None:
            return known
        run = self._new_run(model_id, session_id, base_model, spec, user_metadata)
        return self._create(run, lambda adapter: types.CreateModelResponse(model_id=model_id))

    def create_from_checkpoint(
        self,
        session_id: str,
        seq: int,
        path: str,
        *,
        optimizer: bool,
        user_metadata: Mapping[str, Any] | None,
        base_model: str | None = None,
    ) -> Promise:
        """An adapter that goes on from a checkpoint.

        Raises:
            RequestRejectedError: If there is no such checkpoint, or it is not one of ``base_model``.
        """
        model_id = f"{session_id}:train:{check_seq(seq)}"
        known = self.promises.get(f"{model_id}:0")
        if known is not None:  # asked again, and the checkpoint may be gone by now
            return known
        saved = self.store.find(path)
        if base_model is not None and self.models.check(base_model) != self.models.check(saved.base_model):
            raise RequestRejectedError(f"{path} is a checkpoint of {saved.base_model}, not of {base_model}")
        run = self._new_run(model_id, session_id, saved.base_model, saved.spec, user_metadata)

        def load(adapter: Adapter) -> types.LoadWeightsResponse:
            self._load(adapter, saved, optimizer=optimizer)
            return types.LoadWeightsResponse(type="load_weights", path=path, model_id=run.run_id)

        return self._create(run, load)

    def _new_run(
        self, model_id: str, session_id: str, base_model: str, spec: LoraSpec, metadata: Mapping[str, Any] | None
    ) -> Run:
        self.models.check(base_model)
        if not 1 <= spec.rank <= _MOST_RANK:
            raise RequestRejectedError(f"a LoRA rank is from 1 to {_MOST_RANK:,}, got {shown(spec.rank)}")
        if spec.seed is not None and not 0 <= spec.seed < 2**64:
            raise RequestRejectedError(f"the seed of an adapter is from 0 to 2^64 - 1, got {shown(spec.seed)}")
        merged = {**self.session(session_id).user_metadata, **(metadata or {})}
        return Run(model_id, session_id, base_model, asdict(spec), merged, time.time())

    def _create(self, run: Run, begin: Callable[[Adapter], object]) -> Promise:
        """Make an adapter; ``begin`` prepares it and returns the answer."""
        training = self.trainings[run.run_id] = Training(run, LoraSpec(**run.lora))
        self.session(run.session_id).models.append(run.run_id)

        def compute() -> object:
            training.base = self.models.get(run.base_model, in_use=self.in_use())
            adapter = training.base.new_adapter(training.spec)
            answer = begin(adapter)
            training.adapter = adapter
            self.store.add_run(run)
            return answer

        return self._ordered(run.run_id, 0, compute, blocked=self._room(run.session_id))

    def _load(self, adapter: Adapter, saved: Saved, *, optimizer: bool) -> None:
        adapter.load(self.store.tensors(saved), self.store.tensors(saved, optimizer=True) if optimizer else None)

    def _room(self, session_id: str) -> Callable[[], str | None]:
        """Why a new adapter of a session must wait, asked again whenever something ends; None: it need not.

        It waits only while another client holds memory that may come free.
        """

        def blocked() -> str | None:
            nbytes, count, owners = self._held_now()
            others = count - owners[session_id]
            if nbytes < self._adapter_bytes or not others:
                return None
            return f"{others} adapters of other clients fill the memory this engine gives to them"

        return blocked

    def _held_now(self) -> tuple[int, int, Counter[str]]:
        """Bytes of all adapters, their number, and that by session; counted once however many clients wait for room."""
        if self._held is None or self._held[0] != self.scheduler.looks:
            adapters = [(t.run.session_id, t.adapter.nbytes) for t in self.trainings.values() if t.adapter is not None]
            owners = Counter(owner for owner, _ in adapters)
            self._held = self.scheduler.looks, (sum(nbytes for _, nbytes in adapters), len(adapters), owners)
        return self._held[1]

    def load_weights(self, model_id: str, seq: int | None, path: str, *, optimizer: bool) -> Promise:
        """Replace an adapter's weights by a checkpoint's, at any time; the moments too, or they start anew.

        The SDK promises it for a client's first request only. Later it does the same here, in the order of requests.
        """
        training = self.training(model_id)

        def compute() -> types.LoadWeightsResponse:
            saved = self.store.find(path)
            if self.models.check(saved.base_model) != self.models.check(training.run.base_model):
                raise RequestRejectedError(
                    f"{path} is a checkpoint of {saved.base_model}, and this adapter is on {training.run.base_model}"
                )
            self._load(training.ready, saved, optimizer=optimizer)
            return types.LoadWeightsResponse(type="load_weights", path=path)

        return self._ordered(model_id, seq, compute)

    def loss(self, request: wire.LossRequest) -> Promise:
        """Forward, and unless ``forward_only`` backward too."""
        training = self.training(request.model_id)
        session = self.session(training.run.session_id)

        def compute() -> wire.Encoded:
            loss, config = request.loss, request.config()
            if loss == "custom":
                loss_id = str(config.pop("loss_id", None))
                loss = session.losses.get(loss_id)
                if loss is None:
                    raise RequestRejectedError(f"this session has no custom loss '{loss_id}': create it first")
            items = request.items()
            result = training.ready.forward_backward(items, loss, config or None, backward=not request.forward_only)
            return wire.encode_loss_result(result)

        return self._ordered(request.model_id, request.seq_id, compute)

    def refused(self, model_id: str, seq: int | None, why: str) -> Promise:
        """A request that cannot be honoured: it fails in its place, so that the ones after it do not wait for it."""
        self.training(model_id)

        def compute() -> object:
            raise RequestRejectedError(why)

        return self._ordered(model_id, seq, compute)

    def optim_step(self, model_id: str, seq: int | None, settings: AdamSettings | None) -> Promise:
        """One optimizer step; ``settings`` None is another optimizer's."""
        training = self.training(model_id)

        def compute() -> types.OptimStepResponse:
            if settings is None:
                raise RequestRejectedError("this engine has AdamW only: send adam_params")
            metrics = training.ready.optim_step(settings)
            training.step += 1
            return types.OptimStepResponse(metrics=metrics)

        return self._ordered(model_id, seq, compute)

    def save(self, model_id: str, seq: int | None, options: SaveOptions, *, encrypted: bool = False) -> Promise:
        """Write a checkpoint: ``weights`` with the optimizer's state, ``sampler_weights`` or ``external_weights``."""
        training = self.training(model_id)

        def compute() -> object:
            check_ttl(options.ttl_s)
            if encrypted:
                raise RequestRejectedError(
                    "this engine does not encrypt exports: the files stay on this machine. Leave "
                    "age_encryption_recipients out and encrypt the files you send elsewhere"
                )
            adapter, base = training.ready, training.base
            contents = Contents(
                adapter.export_weights(),
                base.adapter_config(training.spec) if base else {},
                adapter.export_optimizer() if options.kind == "weights" else None,
            )
            named = replace(options, name=options.name or f"step-{training.step:06d}")
            saved = self.store.save(training.run, contents, named)
            self._runner.forget(saved.path)
            return _SAVED[options.kind](saved)

        return self._ordered(model_id, seq, compute)

    def snapshot(self, model_id: str, seq: int | None, sampler_seq: int, *, inflight: bool = False) -> Promise:
        """A sampling session on the adapter's weights of this moment, held in memory only.

        With ``inflight`` the session follows every later inflight save of the same adapter.
        """
        training = self.training(model_id)
        session_id = training.run.session_id
        sampler_id = f"{session_id}:sample:{check_seq(sampler_seq)}"

        def compute() -> types.SaveWeightsForSamplerResponseInternal:
            weights = training.ready.weights()
            sampler = SamplingSession(sampler_id, session_id, training.run.base_model)
            if inflight:
                training.inflight.weights = weights
                sampler.inflight = training.inflight
            else:
                sampler.snapshot = weights
            self.sampling.add(sampler)
            return types.SaveWeightsForSamplerResponseInternal(
                type="save_weights_for_sampler", sampling_session_id=sampler_id
            )

        return self._ordered(model_id, seq, compute)

    async def tokenizer(self, base_model: str) -> Any:
        """A base model's tokenizer; the model is loaded for it if need be.

        Raises:
            RequestRejectedError: If it cannot be loaded.
        """
        lane = f"tokenizer:{uuid.uuid4().hex}"
        promise = self._ordered(lane, None, lambda: self.models.get(base_model, in_use=self.in_use()).tokenizer)
        await promise.done.wait()
        self.promises.forget([promise.request_id])
        self.scheduler.drop_lane(lane, "done")
        if promise.failure is not None:
            raise RequestRejectedError(promise.failure.message)
        return promise.result

    def training(self, model_id: str) -> Training:
        """An adapter in memory.

        Raises:
            RequestRejectedError: If there is none: it never was, or its client was silent for too long.
        """
        training = self.trainings.get(model_id)
        if training is None:
            raise RequestRejectedError(
                f"there is no training client {model_id[:80]} here: the engine was restarted or the client was silent "
                f"for {self._session_timeout_s:.0f} s. Create one from its last checkpoint"
            )
        self.heard_of(model_id)
        return training

    def unload(self, model_id: str) -> None:
        """Free an adapter; its checkpoints stay."""
        self.trainings.pop(model_id, None)
        self.scheduler.drop_lane(model_id, "the training client was unloaded")

    def forget_silent(self, now: float) -> None:
        """Let go of what silent clients queued, and free what belongs to those that are gone; checkpoints stay.

        Samples are dropped: a client that comes back is told 410, and sends them again. Training requests wait for it,
        since each changes what the next one meets.

        Args:
            now: By the monotonic clock. When this comes late, the engine was the one that heard nothing.
        """
        late = now - self._swept - self.sweep_s
        self._swept = now
        for session in [s for s in self.sessions.values() if s.finish is None]:
            session.seen += max(0.0, late) if late > self.sweep_s else 0.0
            if now - session.seen > self._session_timeout_s:
                self.finish_session(session.session_id)
            elif now - session.seen > self._queue_timeout_s and not session.held:
                session.held = True
                self.promises.forget(self._cancel_samples(session, Failure(_SILENT.detail or "", "server")))

    def _cancel_samples(self, session: Session, failure: Failure) -> list[str]:
        waiting = [p for p in self.promises.started_with(f"{session.session_id}:sample:") if not p.done.is_set()]
        for promise in waiting:
            self.scheduler.cancel(promise, failure)
        return [promise.request_id for promise in waiting]

    def finish_session(
        self, session_id: str, finish: types.ClientSessionFinished | types.SessionCancelled = _SILENT
    ) -> None:
        """Free what a client held in memory. How it ended is kept; a client's first word on that counts."""
        session = self.sessions.get(session_id)
        if session is None or session.finish is not None:
            return
        session.finish = finish
        for lane in [*session.losses, *session.models]:
            self.trainings.pop(lane, None)
            self.scheduler.drop_lane(lane, "the client's session has ended")
        session.losses.clear()
        self._cancel_samples(session, _ENDED)
        self.scheduler.drop_lane(lane_of(session_id), _ENDED.message)
        for sampler_id in session.samplers:
            self.sampling.drop(sampler_id)

    def _ordered(
        self,
        lane: str,
        seq: int | None,
        compute: Callable[[], object],
        *,
        request_id: str | None = None,
        blocked: Callable[[], str | None] | None = None,
    ) -> Promise:
        """Queue an adapter's request at its place; the same seq id again is the same request.

        Raises:
            RequestRejectedError: If it was computed long ago and its result is gone.
            BusyError: If too much waits already.
        """
        request_id = request_id or f"{lane}:{uuid.uuid4().hex if seq is None else check_seq(seq)}"
        known = self.promises.get(request_id)
        if known is not None:
            return known
        if seq is not None and self.scheduler.is_past(lane, seq):
            raise RequestRejectedError(f"request {request_id} was computed before, and its result has expired")
        self.scheduler.check_room()
        promise = self.promises.open(request_id)
        self.scheduler.submit(lane, Work(promise, compute, blocked=blocked), seq=seq, first_seq=0)
        return promise

    def in_use(self) -> frozenset[str]:
        """Names of the base models that adapters in training need."""
        return frozenset(t.base.name for t in self.trainings.values() if t.base is not None)
