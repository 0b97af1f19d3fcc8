"""Arguments of the SDK's methods beyond the plain call, and requests whose status is documented: what `methods` tries.

Each argument has one value under its name, and a few have another for one method. Where the engine cannot honour a
value, the refusal is what is expected.
"""

from __future__ import annotations

import inspect
import json
import re
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import date
from typing import Any

# Values by argument, or by "Client.method.argument"; functions are given the probe's fixture.
VALUES: Mapping[str, Any] = {
    "access_scope": "owned",
    "age_encryption_recipients": ["age1example"],
    "base_model": "tiny",
    "day": lambda _: date(2026, 7, 13),
    "destination_project_id": "local",
    "detail": "as planned",
    "event_type": "all",
    "include_prompt_logprobs": True,
    "kind": "inflight",
    "limit": 5,
    "loss_fn_config": {},
    "loss_type_input": "logprobs",
    "name": lambda _: f"probe-{uuid.uuid4().hex[:8]}",
    "num_samples": 3,
    "offset": 1,
    "optimizer": lambda _: _types().DimuonOptimizerConfig(),
    "overwrite": True,
    "project_id": "local",
    "prompt_alt_tokens_k": 2,
    "prompt_logprobs_last_n": 3,
    "rank": 4,
    "record_stability_info": True,
    "retry_config": lambda _: _retries(),
    "sampling_session_id": lambda f: f.sampler._sampling_session_id,
    "seed": 3,
    "target_prompt_logprobs": lambda _: _targets(),
    "topk_prompt_logprobs": 2,
    "topk_sample_logprobs": 2,
    "train_attn": False,
    "train_mlp": False,
    "train_unembed": False,
    "ttl_seconds": 7200,
    "user_metadata": {"team": "a"},
    "weights_access_token": "token",
    "ServiceClient.create_sampling_client.model_path": lambda f: f.weights,
    "SamplingClient.create.model_path": lambda f: f.weights,
    "TrainingClient.optim_step.adam_params": lambda _: _types().AdamParams(learning_rate=1e-3),
}
# Of two that exclude each other, the one that the plain call passes is left out for the other.
INSTEAD_OF = {
    "TrainingClient.optim_step.adam_params": "optim_params",
    "ServiceClient.create_sampling_client.model_path": "base_model",
    "SamplingClient.create.model_path": "base_model",
    "SamplingClient.create.sampling_session_id": "base_model",
}
# Refused for what this engine is; any other refusal is a gap.
REFUSED = frozenset(
    "age_encryption_recipients day event_type optimizer record_stability_info weights_access_token".split()
)


def _types() -> Any:
    from tinker import types

    return types


def _retries() -> Any:
    from tinker.lib.retry_handler import RetryConfig

    return RetryConfig()


def _targets() -> Any:
    import torch

    ids = torch.full((13, 8), -1, dtype=torch.int64)
    ids[2, 1] = 5
    return _types().TensorData.from_torch_sparse(ids, pad_value=-1)


def untried(member: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[str]:
    """Arguments of a method that a plain call does not pass."""
    if not callable(member):
        return []
    names = list(inspect.signature(member).parameters)
    return [name for name in names[len(args) :] if name not in kwargs]


def value_of(fixture: Any, qualified: str, name: str) -> Any:
    """What to pass for an argument.

    Raises:
        LookupError: If nothing is known to try.
    """
    key = f"{qualified}.{name}"
    value = VALUES[key] if key in VALUES else VALUES[name]
    return value(fixture) if callable(value) else value


@dataclass(frozen=True)
class Status:
    """A request and the status that answers it. ``body`` None sends none; bytes are sent as they are."""

    what: str
    expected: int
    method: str
    path: str
    body: Callable[[Any], Any] | None = None
    headers: Mapping[str, str] | None = None

    def call(self, fixture: Any, key: str) -> tuple[int, str]:
        """The status, and the sentence that came with it."""
        import httpx2

        body = None if self.body is None else self.body(fixture)
        sent: dict[str, str] = {"X-API-Key": key, **({} if body is None else {"Content-Type": "application/json"})}
        answer = httpx2.request(
            self.method,
            f"{fixture.url}/api/v1/{self.path.format_map(_places(fixture))}",
            content=body if body is None or isinstance(body, bytes) else json.dumps(body).encode(),
            headers={**sent, **(self.headers or {})},
            timeout=60,
        )
        said: Any = answer.json() if answer.content else {}
        words = str(said.get("detail", "")) if isinstance(said, dict) else ""
        return answer.status_code, _SESSION_ID.sub("SESSION", words)


# Another one in each run, and the page must not differ for that.
_SESSION_ID = re.compile("[0-9a-f]{16}")


def _places(fixture: Any) -> dict[str, str]:
    run, kind, name = fixture.state.removeprefix("tinker://").split("/")
    return {"run": run, "kind": kind, "name": name, "session": fixture.ended}


def _sample(**changes: Any) -> Callable[[Any], Any]:
    plain = {"base_model": "tiny", "prompt": {"chunks": [{"tokens": [5, 6, 7]}]}, "sampling_params": {"max_tokens": 2}}
    return lambda _: {**plain, **changes}


def _step(rate: float) -> Callable[[Any], Any]:
    return lambda f: {"model_id": f.numbered, "seq_id": 1, "optim_params": {"learning_rate": rate}}


STATUSES = (
    Status("a sample", 200, "POST", "asample", _sample()),
    Status("no key", 401, "GET", "get_server_capabilities", headers={"X-API-Key": ""}),
    Status("a Host that is not the engine's", 421, "GET", "healthz", headers={"Host": "example.com"}),
    Status("the Origin of a page elsewhere", 403, "GET", "healthz", headers={"Origin": "https://example.com"}),
    Status("a body of another kind", 415, "POST", "asample", _sample(), {"Content-Type": "text/plain"}),
    Status("a body that is no JSON", 400, "POST", "asample", lambda _: b"nonsense"),
    Status("a body of 33 MiB", 413, "POST", "asample", lambda _: b" " * (33 * 2**20)),
    Status("a body without what it needs", 422, "POST", "create_model", lambda _: {}),
    Status("a number out of range", 400, "POST", "asample", _sample(num_samples=10**9)),
    Status("a field that is unknown", 400, "POST", "asample", _sample(presence_penalty=1)),
    Status("a path that is unknown", 404, "POST", "nowhere", lambda _: {}),
    Status(
        "a checkpoint that is not there", 404, "POST", "weights_info", lambda _: {"tinker_path": "tinker://a/weights/b"}
    ),
    Status("a checkpoint's id without its kind", 400, "DELETE", "training_runs/{run}/checkpoints/{name}"),
    Status("an optimizer step", 200, "POST", "optim_step", _step(1e-4)),
    Status("its sequence number, for another step", 409, "POST", "optim_step", _step(2e-4)),
    Status("publishing", 204, "POST", "training_runs/{run}/checkpoints/{kind}/{name}/publish"),
    Status("publishing again", 409, "POST", "training_runs/{run}/checkpoints/{kind}/{name}/publish"),
    Status("taking it back", 204, "DELETE", "training_runs/{run}/checkpoints/{kind}/{name}/publish"),
    Status("ending a session", 204, "POST", "sessions/{session}/finish", lambda _: {"reason": {"type": "success"}}),
    Status("its heartbeat afterwards", 410, "POST", "session_heartbeat", lambda f: {"session_id": f.ended}),
    Status("a request that is gone", 410, "POST", "retrieve_future", lambda _: {"request_id": "gone"}),
    Status("cancelling", 200, "POST", "cancel_future", lambda _: {"request_id": "gone"}),
    Status("billing", 403, "GET", "billing/usage/events"),
)
