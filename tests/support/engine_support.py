"""A live engine process for tests, and the few calls that most of them make."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import tinker
from tinker import types
from tinker.proto import tinker_public_pb2 as pb

KEY = "tml-0123456789abcdef"
TOKENS = list(range(10, 40))
CLOSING_S = 10


class Running:
    """An engine that serves one model under the name ``tiny``, and the clients connected to it."""

    def __init__(self, model: Path, store: Path, *extra: str) -> None:
        command = [sys.executable, "-m", "sota_ml_researcher.engine", "--port", "0", "--dtype", "float32"]
        command += ["--model", f"tiny={model}", "--store", str(store), "--threads", "1", *extra]
        environment = {**os.environ, "ML_RESEARCHER_ENGINE_KEY": KEY}
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
        )
        assert self.process.stdout is not None
        self.url = self.process.stdout.readline().removeprefix("listening on ").strip()
        self._services: list[tinker.ServiceClient] = []

    def service(self) -> tinker.ServiceClient:
        self._services.append(tinker.ServiceClient(base_url=self.url, api_key=KEY))
        return self._services[-1]

    def stop(self, how: int = signal.SIGTERM) -> None:
        """End the engine; on a clean stop its clients go first, or their heartbeats would fail until pytest ends."""
        if how == signal.SIGTERM and self.process.poll() is None:
            for closing in [service.close("success") for service in self._services]:
                closing.result(timeout=CLOSING_S)
        self.process.send_signal(how)
        self.process.communicate(timeout=30)


def post(engine: Running, path: str, body: Any, **headers: str) -> httpx2.Response:
    """A request as no SDK would send it: JSON, or bytes as they are."""
    kind = "application/x-protobuf" if path == "forward_backward" else "application/json"
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    sent = {"X-API-Key": KEY, "Content-Type": kind} | {name.replace("_", "-"): value for name, value in headers.items()}
    return httpx2.post(f"{engine.url}/api/v1/{path}", content=content, headers=sent, timeout=60)


def result_of(engine: Running, request_id: str) -> httpx2.Response:
    return post(engine, "retrieve_future", {"request_id": request_id})


def loss_message(model_id: str, seq: int) -> Any:
    """The protobuf request for the loss of one sequence."""
    message = pb.ForwardBackwardRequest(model_id=model_id, seq_id=seq, loss_fn="cross_entropy")
    item = message.data.add()
    item.model_input.add().encoded_text.tokens = np.array(TOKENS[:-1], np.int32).tobytes()
    targets = item.loss_fn_inputs["target_tokens"]
    targets.dtype, targets.dense = pb.DTYPE_INT64, np.array(TOKENS[1:], np.int64).tobytes()
    targets.shape.append(len(TOKENS) - 1)
    return message


def loss_request(model_id: str, seq: int) -> bytes:
    """`loss_message` as it crosses the wire."""
    return loss_message(model_id, seq).SerializeToString()


def datum(tokens: list[int], weights: list[float] | None = None) -> types.Datum:
    """A sequence trained on in full, or by ``weights`` (one per target)."""
    targets, weights = tokens[1:], weights or [1.0] * (len(tokens) - 1)
    return types.Datum(
        model_input=types.ModelInput.from_ints(tokens[:-1]),
        loss_fn_inputs={
            "target_tokens": types.TensorData(data=targets, dtype="int64", shape=[len(targets)]),
            "weights": types.TensorData(data=weights, dtype="float32", shape=[len(weights)]),
        },
    )


def trainer(engine: Running, rank: int = 4, **options: Any) -> tinker.TrainingClient:
    return engine.service().create_lora_training_client(base_model="tiny", rank=rank, seed=1, **options).result()


def step(client: tinker.TrainingClient, lr: float = 1e-2) -> float:
    result = client.forward_backward([datum(TOKENS), datum(TOKENS[:9])], "cross_entropy")
    client.optim_step(types.AdamParams(learning_rate=lr)).result()
    return result.result().metrics["loss:sum"]
