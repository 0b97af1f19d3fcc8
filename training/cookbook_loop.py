"""Running one of the cookbook's loops under steering: what every recipe does the same way. Heavy: imports tinker."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, TypeVar, cast

import tinker
from tinker_cookbook import tokenizer_utils

from ..backends.connection import Backend
from ..backends.embedded import engine_died
from ..core.errors import BackendError
from ..core.files import append_json_line
from ..models.model_ref import ModelRef
from . import resume_point
from .steering import SteeredServiceClient, Steering

T = TypeVar("T")
_WATCH_S = 2.0


def tokenizer_of(model: ModelRef) -> Any:
    """The tokenizer for a loop's own displays; code that lies beside a local model is never run."""
    if model.path is None:
        return tokenizer_utils.get_tokenizer(model.name)
    from transformers import AutoTokenizer

    return cast("Any", AutoTokenizer).from_pretrained(model.path, trust_remote_code=False)


def service_client_factory(
    job_id: str,
    backend: Backend,
    steering: Steering,
    steered: Callable[[tinker.ServiceClient, Steering], Any] = SteeredServiceClient,
) -> Callable[..., Any]:
    """What takes the place of ``tinker.ServiceClient`` inside a loop."""

    def service_client(**given: Any) -> Any:
        metadata: dict[str, str] = {**(given.get("user_metadata") or {}), "ml_researcher_job": job_id}
        client = tinker.ServiceClient(
            user_metadata=metadata,
            display_name=given.get("display_name"),
            base_url=backend.base_url,
            api_key=backend.api_key,
        )
        steering.rest = tinker.RestClient(base_url=backend.base_url, api_key=backend.api_key)
        return steered(client, steering)

    return service_client


@contextmanager
def injected(loop: ModuleType, /, *, ServiceClient: Callable[..., Any], **functions: Any) -> Generator[None]:
    """Let a loop build our service client where it asks the SDK for one, and use our form of its named functions.

    The loops have no parameters for these. Everything is put back afterwards.
    """
    module: Any = loop
    original = {name: getattr(module, name) for name in ("tinker", *functions)}
    names: dict[str, Any] = {name: getattr(module.tinker, name) for name in dir(module.tinker)}
    module.tinker = SimpleNamespace(**{**names, "ServiceClient": ServiceClient})
    for name, function in functions.items():
        setattr(module, name, function)
    try:
        yield
    finally:
        for name, value in original.items():
            setattr(module, name, value)


def watched(run: Callable[[], T], backend: Backend, steering: Steering) -> T:
    """Run something that talks to the backend, and give up when the embedded engine dies: the SDK would call for ever.

    It runs in a thread, because some of the SDK's calls block, and in one that cannot keep a finished worker alive.

    Raises:
        BackendError: If the engine's process ended.
    """
    results: list[T] = []
    failures: list[BaseException] = []

    def body() -> None:
        try:
            results.append(run())
        except BaseException as error:  # carried over to the caller's thread, whatever it is
            failures.append(error)

    thread = threading.Thread(target=body, name="training-loop", daemon=True)
    thread.start()
    while thread.is_alive():
        thread.join(_WATCH_S)
        if thread.is_alive():
            require_engine(backend, steering)
    if failures:
        raise failures[0]
    return results[0]


def require_engine(backend: Backend, steering: Steering) -> None:
    """Check that the embedded engine, where it is the backend, is alive.

    Raises:
        BackendError: If its process ended.
    """
    if backend.name == "embedded" and engine_died(backend.base_url):
        raise BackendError(
            f"the embedded engine ended at step {steering.next_step}",
            where=backend.base_url,
            fix="resume_job starts a new one and goes on from the last checkpoint; engine/log.txt says why",
        )


async def save_stopped(folder: Path, steering: Steering, *, batches_per_epoch: int | None) -> None:
    """Save what a run has when it must stop early, and record it. Without epochs a batch is counted from the start."""
    client, step = steering.client, steering.next_step
    if client is None or step == 0:
        return
    name = f"stopped-{step:06d}"
    state = await (await client.save_state_async(name)).result_async()
    sampler = await (await client.save_weights_for_sampler_async(name)).result_async()
    place = resume_point.loop_place(step, batches_per_epoch)
    paths = {"state_path": state.path, "sampler_path": sampler.path, "next_step": step}
    append_json_line(folder / resume_point.CHECKPOINTS, {"name": name, **place, **paths})
