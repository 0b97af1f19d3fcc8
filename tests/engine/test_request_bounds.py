"""Numbers, shapes, names and nesting that no request should have: refused with a sentence before anything is made."""

import json
import re
from typing import Any

import httpx2
import numpy as np
import pytest
import zstandard
from engine_support import KEY, TOKENS, Running, loss_message, post, result_of, trainer
from tinker.proto import tinker_public_pb2 as pb

SESSION = {"tags": [], "user_metadata": None, "sdk_version": "0"}
GOOD: dict[str, Any] = {
    "base_model": "tiny",
    "prompt": {"chunks": [{"type": "encoded_text", "tokens": TOKENS}]},
    "sampling_params": {"max_tokens": 2},
}
HUGE = 10**30
DEEP = b'{"a":' * 100_000 + b"1" + b"}" * 100_000
SPARSE = {"data": [], "dtype": "int64", "shape": [29, 4], "sparse_crow_indices": [0] * 30, "sparse_col_indices": []}

DENSE = {"sparse_crow_indices": None, "sparse_col_indices": None}
LORA = {"session_id": "s", "model_seq_id": 0, "base_model": "tiny", "lora_config": {"rank": 4}}


def params(**values: Any) -> dict[str, Any]:
    return {"sampling_params": {"max_tokens": 2, **values}}


def prompt(chunk: Any) -> dict[str, Any]:
    return {"prompt": {"chunks": [chunk]}}


def target(**values: Any) -> dict[str, Any]:
    return {"target_prompt_logprobs": {**SPARSE, **values}}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_samples": 10**9}, "'num_samples' must be a whole number from 1"),
        ({"num_samples": 0}, "'num_samples' must be"),
        ({"num_samples": -1}, "'num_samples' must be"),
        ({"num_samples": 1.5}, "'num_samples' must be"),
        ({"num_samples": True}, "'num_samples' must be"),
        ({"num_samples": "4"}, "'num_samples' must be"),
        ({"num_samples": HUGE}, "more than 30 digits"),
        ({"num_samples": 65536, **params(max_tokens=10**9)}, "context window"),
        ({"num_samples": 128, "topk_sample_logprobs": 10_000, **params(max_tokens=400)}, "the answer could have"),
        ({"topk_sample_logprobs": 2**40}, "'topk_sample_logprobs' must be"),
        ({"topk_prompt_logprobs": 10**6}, "topk_prompt_logprobs must be from 0 to"),
        ({"prompt_alt_tokens_k": 10**6}, "'prompt_alt_tokens_k' must be a whole number from 0 to 128"),
        ({"prompt_logprobs": 1}, "'prompt_logprobs' must be true or false"),
        ({"prompt_logprobs_last_n": -3, "prompt_logprobs": True}, "'prompt_logprobs_last_n' must be"),
        ({"record_stability_info": True}, "no stable_reinforce"),
        ({"presence_penalty": 1}, "a field 'presence_penalty' that this engine does not know"),
        ({"seq_id": -1}, "'seq_id' must be"),
        ({"base_model": ["tiny"]}, "'base_model' must be text"),
        ({"base_model": "n" * 5000}, "does not serve"),
        ({"base_model": "a\0b"}, "does not serve"),
        ({"sampling_session_id": "n" * 5000}, "there is no sampling session"),
        ({"base_model": None, "model_path": f"tinker://{'r' * 5000}/weights/x"}, "is not a path of the form"),
        (params(max_tokens="x"), "'max_tokens' must be a whole number from 1"),
        (params(max_tokens=True), "'max_tokens' must be"),
        (params(max_tokens=0), "'max_tokens' must be"),
        (params(max_tokens=HUGE), "'max_tokens' must be"),
        (params(max_tokens=[2]), "'max_tokens' must be a whole number from 1 to 2147483647, got a list"),
        (params(temperature="warm"), "'temperature' must be a number"),
        (params(temperature=-1), "temperature must be a number from 0 up"),
        (params(temperature=10**400), "'temperature' must be a number of ordinary size"),
        (params(top_p=True), "'top_p' must be a number"),
        (params(top_k=1.0), "'top_k' must be a whole number"),
        (params(top_k=-2), "'top_k' must be a whole number"),
        (params(seed=2**70), "'seed' must be a whole number"),
        (params(seed="x"), "'seed' must be a whole number"),
        (params(penalty=1), "sampling_params has a field 'penalty'"),
        (params(stop=5), "'stop' must be text"),
        (params(stop=[1.5]), "'stop' must be text"),
        (params(stop=[True]), "'stop' must be text"),
        (params(stop=[-1]), "no token id"),
        (params(stop=[""]), "a stop string is empty"),
        (params(stop=["x"] * 5000), "at most 256 texts"),
        (params(stop=["x" * 5000]), "at most 1024 bytes"),
        ({"sampling_params": [1]}, "'sampling_params' must be an object"),
        ({"prompt": None}, "must have 'chunks'"),
        ({"prompt": {"chunks": []}}, "empty"),
        ({"prompt": {"chunks": 5}}, "must have 'chunks'"),
        (prompt({"tokens": [2**63 + 1]}), "no token id"),
        (prompt({"tokens": [10**40]}), "no token id"),
        (prompt({"tokens": [-1]}), "no token id"),
        (prompt({"tokens": [1.5]}), "whole numbers, got 1.5"),
        (prompt({"tokens": [True]}), "whole numbers, got true"),
        (prompt({"tokens": ["5"]}), 'whole numbers, got "5"'),
        (prompt({"tokens": [[1]]}), "whole numbers, got a list"),
        (prompt({"tokens": "abc"}), "must be a list of token ids"),
        (prompt({"tokens": [1] * 100_000}), "context|long"),
        (prompt({"tokens": [5], "data": "aGk=", "format": "png"}), "another kind of chunk"),
        (prompt({"type": "image", "tokens": [5]}), "another kind of chunk"),
        (prompt({"data": "aGk=", "format": "png"}), "image or audio chunk"),
        (prompt(5), "image or audio chunk"),
        (target(shape=[29, 10**9]), "at most 67,108,864 entries"),
        (target(shape=[10**9, 4]), "the shape must be"),
        (target(shape=[29, -1]), "outside 0"),
        (target(sparse_crow_indices=[0, 1]), "sparse indices do not fit"),
        (target(sparse_crow_indices=[0] * 29 + [1], sparse_col_indices=[9], data=[5]), "sparse indices do not fit"),
        (target(sparse_crow_indices=[0, 5, 2] + [0] * 27), "sparse indices do not fit"),
        (target(sparse_col_indices=None), "belong together"),
        (target(**DENSE, data=[1.5], shape=None), "whole numbers"),
        (
            target(**DENSE, data=[1] * 7, shape=[29, 4]),
            "do not fit its shape",
        ),
        ({"target_prompt_logprobs": 5}, "must be a tensor"),
    ],
)
def test_a_sampling_request_out_of_bounds_is_refused(
    http_engine: Running, changes: dict[str, Any], message: str
) -> None:
    answer = post(http_engine, "asample", {**GOOD, **changes})
    said = answer.json()
    if answer.status_code == 200:  # what needs the model to be known is refused when its turn comes
        said = result_of(http_engine, said["request_id"]).json()
        assert said["category"] == "user"
    else:
        assert 400 <= answer.status_code < 500
    assert re.search(message, said["error"]), said
    assert "Traceback" not in answer.text and "unexpected" not in said["error"]


@pytest.mark.parametrize("path", ["asample", "create_model", "session_heartbeat", "sessions/search", "copy_weights"])
@pytest.mark.parametrize(
    ("body", "message"),
    [
        (DEEP, "nested too deeply"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"session_id": "\\ud800"}', "half a character pair"),
        (b'{"session_id": "\xff"}', "not JSON in UTF-8"),
        (b'{"num_samples": NaN}', "it has no NaN"),
        (b'{"num_samples": -Infinity}', "it has no -Infinity"),
        (b'{"num_samples": ' + b"9" * 5000 + b"}", "is not JSON"),
        (b"[]", "not a JSON object"),
        (b"nonsense", "is not JSON"),
        (b" " * (33 * 2**20), "larger than 33,554,432 bytes"),
    ],
    ids=["deep", "deep list", "surrogate", "latin", "nan", "infinity", "digits", "list", "text", "33 MB"],
)
def test_a_body_that_is_not_proper_json_is_refused(http_engine: Running, path: str, body: bytes, message: str) -> None:
    answer = post(http_engine, path, body)
    assert (answer.status_code in {400, 413}, message in answer.json()["detail"]) == (True, True), answer.text[:300]


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("create_session", {**SESSION, "tags": "x"}),
        ("create_session", {**SESSION, "surplus": 1}),
        ("session_heartbeat", {}),
        ("session_heartbeat", {"session_id": 5}),
        ("session_heartbeat", {"session_id": "n" * 5000}),
        ("session_heartbeat", {"session_id": "../../x"}),
        (
            "create_model",
            {"session_id": "s" * 500, "model_seq_id": 0, "base_model": "tiny", "lora_config": {"rank": 4}},
        ),
        ("create_model", {"session_id": "s", "model_seq_id": True, "base_model": "tiny", "lora_config": {"rank": 4}}),
        ("create_model", {"session_id": "s", "model_seq_id": -1, "base_model": "tiny", "lora_config": {"rank": 4}}),
        ("create_model", {"session_id": "s", "model_seq_id": HUGE, "base_model": "tiny", "lora_config": {"rank": 4}}),
        ("create_model", {"session_id": "s", "model_seq_id": 0, "base_model": "tiny", "lora_config": {"rank": 10**9}}),
        ("create_model", {"session_id": "s", "model_seq_id": 0, "base_model": "tiny", "lora_config": {"rank": 0}}),
        ("create_model", {"session_id": "s", "model_seq_id": 0, "base_model": "tiny", "lora_config": {"rank": 1.5}}),
        (
            "create_model",
            {"session_id": "s", "model_seq_id": 0, "base_model": "tiny", "lora_config": {"rank": 4, "seed": -1}},
        ),
        ("create_model", {"session_id": "s", "model_seq_id": 0, "base_model": "n" * 5000, "lora_config": {"rank": 4}}),
        ("create_sampling_session", {"session_id": "s", "sampling_session_seq_id": -5, "base_model": "tiny"}),
        ("create_sampling_session", {"session_id": "s", "sampling_session_seq_id": 0}),
        ("optim_step", {"model_id": "x", "seq_id": "1", "optim_params": {}}),
        ("optim_step", {"model_id": "x" * 5000, "seq_id": 1, "optim_params": {}}),
        ("load_weights", {"path": "tinker://a/weights/b", "optimizer": False}),
        ("retrieve_futures", {"target": {"sampling_session_id": "x"}, "prev_cursor": -1, "timeout": 0}),
        ("retrieve_future", {"request_id": None}),
        ("cancel_future", {"request_id": ["x"]}),
        ("unload_model", {}),
        ("get_info", {"model_id": "x" * 5000}),
        ("weights_info", {}),
        ("weights_info", {"tinker_path": "tinker://" + "x" * 4000}),
        ("copy_weights", {"source_path": "tinker://a/weights/b", "ttl_seconds": "3600"}),
        ("copy_weights", {"source_path": "tinker://a/weights/b", "weights_access_token": "t"}),
        ("sessions/search", {"limit": "x"}),
        ("create_custom_loss", {"session_id": "s", "custom_loss_seq_id": 0, "name": "x", "inputs": [], "graph": {}}),
    ],
)
def test_other_requests_of_wrong_types_are_refused(http_engine: Running, path: str, body: dict[str, Any]) -> None:
    answer = post(http_engine, path, body)
    assert 400 <= answer.status_code < 500, answer.text
    said = answer.json()["detail"]
    assert said and "None" not in said and "Traceback" not in said


def test_names_in_an_address_are_bounded_too(http_engine: Running) -> None:
    headers = {"X-API-Key": KEY}
    for name in ("n" * 5000, "%ED%A0%80", "%00", "..", "%2e%2e"):
        for path in (
            f"/api/v1/training_runs/{name}",
            f"/api/v1/sessions/{name}",
            f"/api/v1/samplers/{name}",
            f"/api/v1/files/{name}/weights/x/y",
            f"/api/v1/training_runs/{name}/checkpoints/weights/{name}/external_weights_urls",
        ):
            assert httpx2.get(http_engine.url + path, headers=headers).status_code in {400, 404}, (path[:60], name[:9])
    for query in ("limit=x", "limit=1e9", "offset=" + "9" * 5000):
        assert httpx2.get(f"{http_engine.url}/api/v1/checkpoints?{query}", headers=headers).status_code == 400


@pytest.mark.parametrize(
    ("path", "changes"),
    [
        ("completions", {"prompt": [1.5]}),
        ("completions", {"prompt": [True]}),
        ("completions", {"prompt": [[2**64]]}),
        ("completions", {"prompt": [["x"]]}),
        ("completions", {"prompt": 5}),
        ("completions", {"prompt": ["x"] * 5000}),
        ("completions", {"n": 10**9}),
        ("completions", {"n": 1.0}),
        ("completions", {"logprobs": 10**9}),
        ("completions", {"logprobs": True}),
        ("completions", {"echo": "yes"}),
        ("completions", {"max_tokens": 0}),
        ("completions", {"max_tokens": HUGE}),
        ("completions", {"temperature": "x"}),
        ("completions", {"seed": 1.5}),
        ("completions", {"stop": ["x"] * 5000}),
        ("completions", {"stop": [5]}),
        ("completions", {"stream": "yes"}),
        ("completions", {"stream": True, "stream_options": 5}),
        ("completions", {"stream": True, "stream_options": {"include_usage": "x"}}),
        ("completions", {"model": "n" * 5000}),
        ("chat/completions", {"messages": [5]}),
        ("chat/completions", {"messages": [{"role": "user", "content": [5]}]}),
        ("chat/completions", {"messages": [{"role": "user", "content": [{"type": "text"}]}]}),
        ("chat/completions", {"chat_template_kwargs": 5}),
        ("chat/completions", {"top_logprobs": -1}),
        ("chat/completions", {"n" * 5000: 1}),
    ],
)
def test_the_openai_endpoints_bound_their_numbers_too(http_engine: Running, path: str, changes: dict[str, Any]) -> None:
    good: dict[str, Any] = {"model": "tiny", "max_tokens": 2}
    good |= {"prompt": "hi"} if path == "completions" else {"messages": [{"role": "user", "content": "hi"}]}
    headers = {"Authorization": f"Bearer {KEY}"}
    answer = httpx2.post(f"{http_engine.url}/oai/api/v1/{path}", json={**good, **changes}, headers=headers, timeout=60)
    assert answer.status_code == 400, answer.text
    said = answer.json()["error"]["message"]
    assert said and len(said) < 500 and "Traceback" not in said


def tensor_request(model_id: str, seq: int, change: Any) -> bytes:
    """A request whose second loss input is what ``change`` makes of it."""
    message = loss_message(model_id, seq)
    weights = message.data[0].loss_fn_inputs["weights"]
    weights.dtype = pb.DTYPE_FLOAT32
    change(message, weights)
    return message.SerializeToString()


def sparse(shape: list[int], rows: list[int], columns: list[int], values: list[float]) -> Any:
    def change(_: Any, weights: Any) -> None:
        weights.shape.extend(shape)
        weights.sparse_csr.crow_indices = np.array(rows, np.int64).tobytes()
        weights.sparse_csr.col_indices = np.array(columns, np.int64).tobytes()
        weights.sparse_csr.values = np.array(values, np.float32).tobytes()

    return change


def dense(shape: list[int], content: bytes) -> Any:
    def change(_: Any, weights: Any) -> None:
        weights.shape.extend(shape)
        weights.dense = content

    return change


def cut_tokens(message: Any, _: Any) -> None:
    message.data[0].model_input[0].encoded_text.tokens += b"\1"


def text_setting(message: Any, _: Any) -> None:
    message.loss_fn_config_v2["beta"].SetInParent()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (sparse([100_000, 5000], [0] * 100_001, [], []), "entries in all"),
        (sparse([2**40, 2**40], [0, 0], [], []), "entries in all"),
        (sparse([29, 4], [0, 1], [0], [1.0]), "sparse indices do not fit"),
        (sparse([29, 4], [0] * 29 + [1], [4], [1.0]), "sparse indices do not fit"),
        (sparse([29, 4], [0] * 29 + [1], [-1], [1.0]), "sparse indices do not fit"),
        (sparse([29, 4], [1] * 30, [0], [1.0]), "sparse indices do not fit"),
        (sparse([-29, 4], [0] * 30, [], []), "shape of two sizes"),
        (sparse([29], [0] * 30, [], []), "shape of two sizes"),
        (dense([-1], bytes(4 * 29)), "do not fit its shape"),
        (dense([2**40], bytes(4 * 29)), "do not fit its shape"),
        (dense([29], bytes(4 * 29 + 1)), "no whole number of 4-byte values"),
        (dense([7, 9], bytes(4 * 29)), "do not fit its shape"),
        (cut_tokens, "no whole number of 4-byte values"),
        (text_setting, "has no value"),
    ],
)
def test_training_tensors_that_do_not_fit_are_refused(http_engine: Running, change: Any, message: str) -> None:
    client = trainer(http_engine)
    body = tensor_request(client.get_info().model_id, 1, change)
    promised = post(http_engine, "forward_backward", body).json()
    failed = result_of(http_engine, promised["request_id"]).json()
    assert (failed["category"], message in failed["error"]) == ("user", True), failed


def test_more_data_than_any_request_has_are_not_even_parsed(http_engine: Running) -> None:
    client = trainer(http_engine)
    head = pb.ForwardBackwardRequest(model_id=client.get_info().model_id, seq_id=1, loss_fn="cross_entropy")
    for part in (b"\x1a\x00" * 400_000, b"\x1a\x80\xea\x30" + b"\x0a\x00" * 400_000):
        answer = post(http_engine, "forward_backward", head.SerializeToString() + part)
        assert (answer.status_code, "parts: send fewer data" in answer.json()["detail"]) == (400, True)
    answer = post(http_engine, "forward_backward", head.SerializeToString())
    failed = result_of(http_engine, answer.json()["request_id"]).json()
    assert "needs at least one datum" in failed["error"]


def test_a_bomb_is_refused_while_others_are_served(http_engine: Running) -> None:
    bomb = zstandard.compress(bytes(2**30))
    for path in ("forward_backward", "asample", "create_session"):
        answer = post(http_engine, path, bomb, content_encoding="zstd")
        assert (answer.status_code, "larger than" in answer.json()["detail"]) == (413, True)
    answer = post(http_engine, "create_session", b"{}", content_encoding="gzip")
    assert (answer.status_code, "Content-Encoding" in answer.json()["detail"]) == (400, True)
    packed = zstandard.compress(json.dumps(SESSION).encode())
    assert post(http_engine, "create_session", packed, content_encoding="zstd").status_code == 200
