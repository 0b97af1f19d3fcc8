"""Everything a client may get wrong, against a live engine: a sentence, and the engine lives on."""

import resource
import socket
import subprocess
import sys
import time
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest
import tinker
import zstandard
from engine_support import KEY, TOKENS, Running, datum, loss_request, post, result_of, step, trainer
from tinker import types
from tinker.proto import tinker_public_pb2 as pb


@pytest.fixture(scope="module")
def engine(tiny_weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Generator[Running]:
    running = Running(tiny_weights, tmp_path_factory.mktemp("store"))
    yield running
    running.stop()


def model_id_of(client: tinker.TrainingClient) -> str:
    return client.get_info().model_id


def with_input(name: str, data: list[float], dtype: Any = "float32") -> types.Datum:
    good = datum(TOKENS)
    extra = types.TensorData(data=data, dtype=dtype, shape=[len(data)])
    return types.Datum(model_input=good.model_input, loss_fn_inputs={**good.loss_fn_inputs, name: extra})


N = len(TOKENS) - 1
_HEAD = (
    "POST /api/v1/forward_backward HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/x-protobuf\r\n"
    f"X-API-Key: {KEY}\r\n"
).encode()


@pytest.mark.parametrize(
    ("items", "loss", "config", "message"),
    [
        ([with_input("target_tokens", [1] * 3, "int64")], "cross_entropy", None, "target_tokens has shape"),
        ([with_input("target_tokens", [999_999] * N, "int64")], "cross_entropy", None, "outside the vocabulary"),
        ([with_input("weights", [float("inf")] * N)], "cross_entropy", None, "nan or infinite|finite"),
        ([with_input("surplus", [1.0] * N)], "cross_entropy", None, "surplus"),
        ([datum(TOKENS)], "ppo", None, "logprobs|advantages"),
        ([datum(TOKENS)], "cross_entropy", {"beta": 1.0}, "no setting 'beta'"),
        ([datum(TOKENS)], "cross_entropy", {"mode": "text"}, "is text"),
        ([datum(TOKENS)], "custom", {"loss_id": "nowhere"}, "no custom loss 'nowhere'"),
    ],
)
def test_wrong_training_data_are_refused_by_name(
    engine: Running, items: list[types.Datum], loss: Any, config: Any, message: str
) -> None:
    client = trainer(engine)
    with pytest.raises(tinker.RequestFailedError, match=message):
        client.forward_backward(items, loss, config).result()
    assert step(client) > 0  # the requests after it run


def test_an_empty_datum_is_refused(engine: Running) -> None:
    empty = types.Datum(
        model_input=types.ModelInput.from_ints([]),
        loss_fn_inputs={"target_tokens": types.TensorData(data=[], dtype="int64", shape=[0])},
    )
    client = trainer(engine)
    with pytest.raises(tinker.RequestFailedError, match="empty"):
        client.forward_backward([empty], "cross_entropy").result()


def test_a_request_sent_twice_is_computed_once(engine: Running) -> None:
    client = trainer(engine)
    model_id = model_id_of(client)
    body = loss_request(model_id, 1)
    first, second = (post(engine, "forward_backward", body).json()["request_id"] for _ in range(2))
    assert first == second
    assert result_of(engine, first).content == result_of(engine, second).content
    done = post(engine, "optim_step", {"model_id": model_id, "seq_id": 2, "adam_params": {"learning_rate": 0.0}})
    once = result_of(engine, done.json()["request_id"]).json()["metrics"]["grad_norm"]
    other = trainer(engine)
    result_of(engine, post(engine, "forward_backward", loss_request(model_id_of(other), 1)).json()["request_id"])
    done = post(
        engine, "optim_step", {"model_id": model_id_of(other), "seq_id": 2, "adam_params": {"learning_rate": 0.0}}
    )
    assert result_of(engine, done.json()["request_id"]).json()["metrics"]["grad_norm"] == once


def test_requests_that_arrive_out_of_order_run_in_order(engine: Running) -> None:
    client = trainer(engine)
    model_id = model_id_of(client)
    late = post(engine, "optim_step", {"model_id": model_id, "seq_id": 2, "adam_params": {"learning_rate": 0.1}})
    early = post(engine, "forward_backward", loss_request(model_id, 1))
    assert result_of(engine, early.json()["request_id"]).status_code == 200
    assert result_of(engine, late.json()["request_id"]).json()["metrics"]["grad_norm"] > 0


def test_a_refused_request_does_not_hold_up_those_after_it(engine: Running) -> None:
    client = trainer(engine)
    model_id = model_id_of(client)
    message = pb.ForwardBackwardRequest(model_id=model_id, seq_id=1, loss_fn="cross_entropy")
    message.data.add().model_input.add().image.data = b"not text"
    bad = post(engine, "forward_backward", message.SerializeToString())
    good = post(engine, "forward_backward", loss_request(model_id, 2))
    assert "trains on text" in result_of(engine, bad.json()["request_id"]).json()["error"]
    assert result_of(engine, good.json()["request_id"]).headers["content-type"] == "application/x-protobuf"
    with pytest.raises(tinker.RequestFailedError, match="ttl_seconds is 60"):
        trainer(engine).save_state("short", ttl_seconds=60).result()


def test_a_taken_name_is_refused_unless_overwriting_is_meant(engine: Running) -> None:
    client = trainer(engine)
    client.save_state("twice").result()
    with pytest.raises(tinker.RequestFailedError, match="overwrite"):
        client.save_state("twice").result()
    client.save_state("twice", overwrite=True).result()
    with pytest.raises(tinker.RequestFailedError, match="cannot name a checkpoint"):
        client.save_state("../escape").result()


def test_paths_that_are_gone_or_of_another_kind_are_named(engine: Running) -> None:
    service, client = engine.service(), trainer(engine)
    weights = client.save_weights_for_sampler("w").result().path
    with pytest.raises(tinker.NotFoundError, match="never saved"):
        service.create_sampling_client(model_path="tinker://gone/sampler_weights/x").result()
    with pytest.raises(tinker.RequestFailedError, match="never saved"):
        client.load_state("tinker://gone/weights/x").result()
    with pytest.raises(tinker.BadRequestError, match="not a path of the form"):
        service.create_sampling_client(model_path="tinker://x").result()
    with pytest.raises(tinker.RequestFailedError, match="no optimizer state"):
        client.load_state_with_optimizer(weights).result()


def test_a_checkpoint_of_another_model_is_refused(tiny_weights: Path, tmp_path: Path) -> None:
    import shutil

    copy = shutil.copytree(tiny_weights, tmp_path / "other")
    running = Running(tiny_weights, tmp_path / "store", "--model", f"other={copy}")
    try:
        path = trainer(running).save_state("s").result().path
        other = running.service().create_lora_training_client("other", rank=4).result()
        with pytest.raises(tinker.RequestFailedError, match="is a checkpoint of tiny, and this adapter is on other"):
            other.load_state(path).result()
    finally:
        running.stop()


def test_a_finished_session_takes_no_more_work(engine: Running) -> None:
    service = engine.service()
    client = service.create_lora_training_client("tiny", rank=4).result()
    model_id, session = model_id_of(client), service.holder.get_session_id()
    assert post(engine, f"sessions/{session}/finish", {"reason": {"type": "success"}}).status_code == 204
    refused = post(engine, "optim_step", {"model_id": model_id, "seq_id": 1, "adam_params": {}})
    assert (refused.status_code, "no training client" in refused.json()["detail"]) == (400, True)
    spec = {"rank": 4}
    body = {"session_id": session, "model_seq_id": 5, "base_model": "tiny", "lora_config": spec}
    refused = post(engine, "create_model", body)
    assert (refused.status_code, "has ended" in refused.json()["detail"]) == (410, True)
    assert post(engine, "session_heartbeat", {"session_id": session}).status_code == 410  # the SDK then stops beating


def test_oversized_and_undecodable_bodies_are_refused_unread(engine: Running) -> None:
    refused = post(engine, "forward_backward", zstandard.compress(bytes(300 * 2**20)), **{"content-encoding": "zstd"})
    assert (refused.status_code, "larger than" in refused.json()["detail"]) == (413, True)
    refused = post(engine, "forward_backward", b"xx", **{"content-encoding": "zstd"})
    assert "not zstd" in refused.json()["detail"]
    host, port = engine.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as raw:
        raw.sendall(_HEAD + f"Content-Length: {10**12}\r\n\r\n".encode())
        assert b" 413 " in raw.recv(200)


def test_a_client_that_vanishes_mid_request_disturbs_nobody(engine: Running) -> None:
    host, port = engine.url.removeprefix("http://").split(":")
    for _ in range(3):
        raw = socket.create_connection((host, int(port)))
        raw.sendall(_HEAD + b"Content-Length: 1000\r\n\r\nhalf")
        raw.close()
    script = (
        "import os, sys; sys.path.insert(0, sys.argv[2]); import tinker\n"
        "from engine_support import datum, TOKENS, KEY\n"
        "s = tinker.ServiceClient(base_url=sys.argv[1], api_key=KEY)\n"
        "c = s.create_lora_training_client('tiny', rank=4).result()\n"
        "[c.forward_backward([datum(TOKENS)] * 8, 'cross_entropy') for _ in range(5)]\n"
        "import time; time.sleep(0.2); os._exit(9)\n"
    )
    support = str(Path(__file__).parents[1] / "support")
    assert subprocess.run([sys.executable, "-c", script, engine.url, support], timeout=60).returncode == 9
    assert step(trainer(engine)) > 0


def test_running_out_of_memory_fails_the_request_and_not_the_engine(tiny_weights: Path, tmp_path: Path) -> None:
    running = Running(tiny_weights, tmp_path)
    try:
        client = trainer(running)
        before = step(client, lr=0.0)
        status = Path(f"/proc/{running.process.pid}/status")
        if not status.exists():
            pytest.skip("needs /proc")
        used = next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith("VmSize"))
        unlimited = resource.prlimit(running.process.pid, resource.RLIMIT_AS)
        resource.prlimit(running.process.pid, resource.RLIMIT_AS, ((used + 60_000) * 1024, unlimited[1]))
        long = [datum([(i + start) % 200 + 5 for i in range(500)]) for start in range(64)]  # nothing to share
        with pytest.raises(tinker.RequestFailedError, match="memory"):
            client.forward_backward(long, "cross_entropy").result()
        resource.prlimit(running.process.pid, resource.RLIMIT_AS, unlimited)
        assert step(client, lr=0.0) == before
    finally:
        running.stop()


def test_an_adapter_waits_while_others_fill_the_memory(tiny_weights: Path, tmp_path: Path) -> None:
    running = Running(tiny_weights, tmp_path, "--adapter-memory", "0.000001")
    try:
        first = running.service()
        first.create_lora_training_client("tiny", rank=4).result()
        first.create_lora_training_client("tiny", rank=4).result()  # nobody else's: its own are never a reason to wait
        second = running.service()
        waiting = second.create_lora_training_client("tiny", rank=4)
        time.sleep(1)
        request_id = f"{second.holder.get_session_id()}:train:0:0"
        state = post(running, "retrieve_future", {"request_id": request_id}).json()
        assert (state["queue_state"], "fill the memory" in state["queue_state_reason"]) == ("paused_capacity", True)
        first.close("success").result()
        assert step(waiting.result()) > 0
    finally:
        running.stop()
