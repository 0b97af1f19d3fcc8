"""What the SDK's documentation promises of its arguments and statuses, against a live engine."""

import json
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest
import tinker
import torch
from engine_support import KEY, TOKENS, Running, datum, loss_request, post, result_of, step, trainer
from tinker import types
from tinker.proto import tinker_public_pb2 as pb

SESSION = {"tags": [], "user_metadata": None, "sdk_version": "0"}
PROMPT = types.ModelInput.from_ints(TOKENS)


def sampler_of(engine: Running) -> tinker.SamplingClient:
    return engine.service().create_sampling_client(base_model="tiny").result()


def test_without_stops_the_models_own_end_stops_it_and_an_empty_list_does_not(
    http_engine: Running, tiny_weights: Path
) -> None:
    from transformers import AutoTokenizer

    end = AutoTokenizer.from_pretrained(tiny_weights).eos_token_id
    sampler = sampler_of(http_engine)

    def sampled(stop: Any) -> list[types.SampledSequence]:
        params = types.SamplingParams(max_tokens=300, seed=3, temperature=1.5, stop=stop)
        return list(sampler.sample(PROMPT, 16, params).result().sequences)

    endless, ended = sampled([]), sampled(None)
    assert {len(one.tokens) for one in endless} == {300}
    cut = 0
    for whole, one in zip(endless, ended, strict=True):
        place = whole.tokens.index(end) + 1 if end in whole.tokens else 300
        assert one.tokens == whole.tokens[:place]
        assert one.stop_reason == ("stop" if end in whole.tokens else "length")
        cut += place < 300
    assert cut > 0


def optim(engine: Running, model_id: str, seq: int, rate: float) -> httpx2.Response:
    return post(engine, "optim_step", {"model_id": model_id, "seq_id": seq, "optim_params": {"learning_rate": rate}})


def test_a_sequence_number_of_another_request_is_a_conflict(http_engine: Running) -> None:
    model_id = trainer(http_engine).get_info().model_id
    first = optim(http_engine, model_id, 1, 1e-4)
    assert optim(http_engine, model_id, 1, 1e-4).json() == first.json()
    refused = optim(http_engine, model_id, 1, 2e-4)
    assert (refused.status_code, "was used before" in refused.json()["detail"]) == (409, True)
    assert refused.headers["x-should-retry"] == "false"
    assert post(http_engine, "forward_backward", loss_request(model_id, 1)).status_code == 409
    post(http_engine, "forward_backward", loss_request(model_id, 2))
    assert optim(http_engine, model_id, 2, 1e-4).status_code == 409
    assert result_of(http_engine, first.json()["request_id"]).status_code == 200


def test_numbers_of_samples_adapters_and_samplers_are_their_own_too(http_engine: Running) -> None:
    session = post(http_engine, "create_session", SESSION).json()["session_id"]
    sampler = {"session_id": session, "sampling_session_seq_id": 0, "base_model": "tiny"}
    made = [post(http_engine, "create_sampling_session", sampler).json()["sampling_session_id"] for _ in range(2)]
    assert made[0] == made[1]
    other = sampler | {"base_model": None, "model_path": "tinker://a/sampler_weights/b"}
    assert post(http_engine, "create_sampling_session", other).status_code == 409
    ask = {
        "sampling_session_id": made[0],
        "seq_id": 5,
        "prompt": {"chunks": [{"tokens": TOKENS}]},
        "sampling_params": {"max_tokens": 2, "seed": 1},
    }
    assert post(http_engine, "asample", ask).json() == post(http_engine, "asample", ask).json()
    assert post(http_engine, "asample", ask | {"num_samples": 2}).status_code == 409
    model = {"session_id": session, "model_seq_id": 0, "base_model": "tiny", "lora_config": {"rank": 4}}
    assert post(http_engine, "create_model", model).json() == post(http_engine, "create_model", model).json()
    assert post(http_engine, "create_model", model | {"lora_config": {"rank": 8}}).status_code == 409


def test_a_repeated_create_is_answered_after_its_session_ended(http_engine: Running) -> None:
    session = post(http_engine, "create_session", SESSION).json()["session_id"]
    model = {"session_id": session, "model_seq_id": 0, "base_model": "tiny", "lora_config": {"rank": 4}}
    first = post(http_engine, "create_model", model).json()
    result_of(http_engine, first["request_id"])
    post(http_engine, f"sessions/{session}/finish", {"reason": {"type": "success"}})
    assert post(http_engine, "create_model", model).json() == first
    assert post(http_engine, "create_model", model | {"model_seq_id": 1}).status_code == 410


def test_a_checkpoint_is_not_loaded_for_another_base_model_or_optimizer(http_engine: Running) -> None:
    service, client = http_engine.service(), trainer(http_engine)
    path = client.save_state("base").result().path
    assert step(service.create_training_client_from_state(path, base_model="tiny").result()) > 0
    with pytest.raises(tinker.BadRequestError, match="does not serve 'Qwen/None'"):
        service.create_training_client_from_state(path, base_model="Qwen/None").result()
    with pytest.raises(tinker.BadRequestError, match="no optimizer 'dimuon'"):
        service.create_training_client_from_state(path, optimizer=types.DimuonOptimizerConfig()).result()


def test_stability_information_is_refused_not_dropped(http_engine: Running) -> None:
    sampler = http_engine.service().create_sampling_client(base_model="tiny", record_stability_info=True).result()
    with pytest.raises(tinker.BadRequestError, match="no stable_reinforce"):
        sampler.sample(PROMPT, 1, types.SamplingParams(max_tokens=2)).result()


def rest_call(engine: Running, method: str, path: str) -> httpx2.Response:
    headers = {"X-API-Key": KEY}
    return httpx2.request(method, f"{engine.url}/api/v1/training_runs/{path}", headers=headers, timeout=60)


def test_publishing_twice_is_a_conflict_and_a_bare_id_is_no_id(http_engine: Running) -> None:
    path = trainer(http_engine).save_state("p").result().path
    run, kind, name = path.removeprefix("tinker://").split("/")
    whole = f"{run}/checkpoints/{kind}/{name}"
    done = [rest_call(http_engine, method, f"{whole}/publish") for method in ("POST", "POST", "DELETE", "DELETE")]
    assert [answer.status_code for answer in done] == [204, 409, 204, 409]
    assert "is public already" in done[1].json()["detail"] and done[1].headers["x-should-retry"] == "false"
    for method, tail in (
        ("DELETE", ""),
        ("POST", "/publish"),
        ("DELETE", "/publish"),
        ("GET", "/external_weights_urls"),
    ):
        answer = rest_call(http_engine, method, f"{run}/checkpoints/{name}{tail}")
        assert (answer.status_code, "give KIND/NAME" in answer.json()["detail"]) == (400, True), (method, tail)
    assert rest_call(http_engine, "DELETE", f"{run}/checkpoints/nonsense/{name}").status_code == 400
    assert rest_call(http_engine, "DELETE", whole).status_code == 204
    assert rest_call(http_engine, "DELETE", whole).status_code == 404


def test_a_copy_asked_for_again_by_its_key_is_one_copy(http_engine: Running) -> None:
    client = trainer(http_engine)
    path, other = (client.save_state(name).result().path for name in ("one", "two"))
    first, again = (post(http_engine, "copy_weights", {"source_path": path}, X_Idempotency_Key="k1") for _ in range(2))
    assert first.json() == again.json()
    assert post(http_engine, "copy_weights", {"source_path": other}, X_Idempotency_Key="k1").status_code == 409
    fresh = [post(http_engine, "copy_weights", {"source_path": path}, X_Idempotency_Key=key) for key in ("k2", "k3")]
    plain = [post(http_engine, "copy_weights", {"source_path": path}) for _ in range(2)]
    assert len({answer.json()["tinker_path"] for answer in [first, *fresh, *plain]}) == 5
    copied = http_engine.service().create_training_client_from_state(first.json()["tinker_path"]).result()
    assert step(copied) > 0


def test_a_copy_never_takes_the_place_of_a_run(http_engine: Running) -> None:
    client = trainer(http_engine)
    path = client.save_state("kept").result().path
    session, _, slot = client.get_info().model_id.split(":")
    body = {"source_path": path, "session_id": session, "model_seq_id": int(slot)}
    assert post(http_engine, "copy_weights", body, X_Idempotency_Key="taken").status_code == 409
    assert step(http_engine.service().create_training_client_from_state(path).result()) > 0


def test_sparse_targets_are_answered_sparse_with_the_dense_values(http_engine: Running) -> None:
    ids = torch.full((len(TOKENS) - 1, 8), -1, dtype=torch.int64)
    ids[3, 0], ids[3, 5], ids[20, 2] = 7, 11, 13
    sparse = types.TensorData.from_torch_sparse(ids, pad_value=-1)
    assert sparse.sparse_crow_indices is not None
    sampler = sampler_of(http_engine)
    params = types.SamplingParams(max_tokens=1)

    def asked(target: types.TensorData) -> types.TensorData:
        found = sampler.sample(PROMPT, 1, params, target_prompt_logprobs=target).result().target_prompt_logprobs
        assert found is not None
        return found

    answered, dense = asked(sparse), asked(types.TensorData.from_torch(ids))
    assert (answered.sparse_crow_indices, answered.sparse_col_indices) == (
        sparse.sparse_crow_indices,
        sparse.sparse_col_indices,
    )
    assert dense.sparse_crow_indices is None
    listed = ids >= 0
    assert torch.equal(answered.to_torch()[listed], dense.to_torch()[listed])
    assert (answered.to_torch()[listed] < 0).all()


def test_who_accepts_json_gets_the_same_answer_as_json(http_engine: Running) -> None:
    ask = {
        "base_model": "tiny",
        "prompt": {"chunks": [{"tokens": TOKENS}]},
        "num_samples": 2,
        "sampling_params": {"max_tokens": 3, "seed": 1, "stop": []},
        "prompt_logprobs": True,
        "topk_prompt_logprobs": 2,
    }
    request_id = post(http_engine, "asample", ask).json()["request_id"]
    packed = pb.SampleResponse.FromString(result_of(http_engine, request_id).content)
    plain = post(http_engine, "retrieve_future", {"request_id": request_id}, Accept="application/json")
    assert plain.headers["content-type"] == "application/json"
    said = plain.json()
    assert [one["tokens"] for one in said["sequences"]] == [
        np.frombuffer(one.tokens, np.int32).tolist() for one in packed.sequences
    ]
    assert said["prompt_logprobs"][0] is None
    expected = np.frombuffer(packed.prompt_logprobs, np.float32)[1:]
    assert said["prompt_logprobs"][1:] == pytest.approx(expected.tolist())
    assert [len(each) for each in said["topk_prompt_logprobs"][1:]] == [2] * (len(TOKENS) - 1)
    model_id = trainer(http_engine).get_info().model_id
    request_id = post(http_engine, "forward_backward", loss_request(model_id, 1)).json()["request_id"]
    loss = post(http_engine, "retrieve_future", {"request_id": request_id}, Accept="application/json").json()
    logprobs = loss["loss_fn_outputs"][0]["logprobs"]["data"]
    assert loss["metrics"]["loss:sum"] == pytest.approx(-sum(logprobs), rel=1e-5)
    for accept in ("*/*", "application/x-protobuf", "application/json, application/x-protobuf"):
        answer = post(http_engine, "retrieve_future", {"request_id": request_id}, Accept=accept)
        assert answer.headers["content-type"] == "application/x-protobuf"


def test_weights_can_be_loaded_in_mid_run_and_replace_what_is_there(http_engine: Running) -> None:
    client = trainer(http_engine)
    path = client.save_state("start").result().path
    before = step(client)
    for _ in range(3):
        step(client)
    with pytest.warns(FutureWarning):
        client.load_state(path).result()
    assert step(client) == before


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"weights_access_token": "t"}, "weights_access_token"),
        ({"model_id": "x"}, "either model_id, or session_id"),
        ({"session_id": None}, "either model_id, or session_id"),
        ({"optimizer_config": {"type": "dimuon", "version": 1}}, "no optimizer 'dimuon'"),
    ],
)
def test_what_a_load_cannot_honour_is_refused(http_engine: Running, changes: dict[str, Any], message: str) -> None:
    body = {"session_id": "s", "model_seq_id": 0, "path": "tinker://a/weights/b", "optimizer": False}
    answer = post(http_engine, "load_weights", {**body, **changes})
    assert (answer.status_code, message in answer.json()["detail"]) == (400, True), answer.text


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sampling_session_seq_id": 0, "ttl_seconds": 7200}, "no ttl_seconds"),
        ({"kind": "inflight", "path": "x"}, "kept in memory"),
    ],
)
def test_what_a_snapshot_cannot_honour_is_refused(http_engine: Running, changes: dict[str, Any], message: str) -> None:
    model_id = trainer(http_engine).get_info().model_id
    promised = post(http_engine, "save_weights_for_sampler", {"model_id": model_id, "seq_id": 1, **changes}).json()
    failed = result_of(http_engine, promised["request_id"]).json()
    assert (failed["category"], message in failed["error"]) == ("user", True), failed
    after = post(http_engine, "forward_backward", loss_request(model_id, 2)).json()  # it does not wait for ever
    assert result_of(http_engine, after["request_id"]).headers["content-type"] == "application/x-protobuf"


def test_a_refused_load_does_not_hold_up_what_comes_after_it(http_engine: Running) -> None:
    client = trainer(http_engine)
    path = client.save_state("s").result().path
    with pytest.warns(FutureWarning), pytest.raises(tinker.RequestFailedError, match="one user, and no tokens"):
        client.load_state(path, weights_access_token="t").result()
    assert step(client) > 0


@pytest.mark.parametrize("path", ["completions", "chat/completions"])
def test_a_stream_tells_the_usage_where_it_is_asked_for(http_engine: Running, path: str) -> None:
    body: dict[str, Any] = {"model": "tiny", "max_tokens": 5, "seed": 1, "n": 2, "stream": True}
    body |= {"prompt": TOKENS} if path == "completions" else {"messages": [{"role": "user", "content": "hi"}]}

    def chunks(**changes: Any) -> list[dict[str, Any]]:
        url, headers = f"{http_engine.url}/oai/api/v1/{path}", {"Authorization": f"Bearer {KEY}"}
        lines = httpx2.post(url, json=body | changes, headers=headers, timeout=60).text.strip().split("\n\n")
        assert lines[-1] == "data: [DONE]"
        return [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]

    whole = httpx2.post(
        f"{http_engine.url}/oai/api/v1/{path}",
        json=body | {"stream": False},
        headers={"Authorization": f"Bearer {KEY}"},
        timeout=60,
    ).json()
    plain, counted = chunks(), chunks(stream_options={"include_usage": True})
    assert [len(chunk["choices"]) for chunk in counted] == [1, 1, 0]
    assert counted[-1]["usage"] == whole["usage"]
    assert [chunk["usage"] for chunk in counted[:-1]] == [None, None]
    assert not any("usage" in chunk for chunk in plain)
    key = "message" if path == "chat/completions" else "text"
    said = [chunk["choices"][0]["delta" if key == "message" else "text"] for chunk in plain]
    assert said == [choice[key] for choice in whole["choices"]]
    kinds = {chunk["object"] for chunk in plain}
    assert kinds == {"chat.completion.chunk" if key == "message" else "text_completion"}


def test_a_failed_block_is_what_is_raised_when_the_session_cannot_end(http_engine: Running) -> None:
    from sota_ml_researcher.backends.sampling_client import closing_service

    class Stubborn(tinker.ServiceClient):
        def close(self, status: Any, detail: Any = None) -> Any:
            raise tinker.TinkerError(f"404 for {status}")

    service = Stubborn(base_url=http_engine.url, api_key=KEY)
    with pytest.raises(ZeroDivisionError), closing_service(service):
        _ = 1 / 0
    with closing_service(service) as kept:
        assert kept is service


def test_a_session_ends_with_its_block(http_engine: Running) -> None:
    from sota_ml_researcher.backends.sampling_client import closing_service

    with closing_service(tinker.ServiceClient(base_url=http_engine.url, api_key=KEY)) as service:
        client = service.create_lora_training_client("tiny", rank=4).result()
        client.forward([datum(TOKENS)], "cross_entropy").result()
        session = service.holder.get_session_id()
    assert post(http_engine, "session_heartbeat", {"session_id": session}).status_code == 410
