"""What lies around training and sampling: the OpenAI endpoints, files to download, sessions, every SDK method."""

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Generator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest
import tinker
import torch
from engine_support import KEY, TOKENS, Running, datum, step, trainer
from tinker import types

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def engine(tiny_weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Generator[Running]:
    running = Running(
        tiny_weights,
        tmp_path_factory.mktemp("store"),
    )
    yield running
    running.stop()


def ask(engine: Running, path: str, body: dict[str, Any], key: str = KEY) -> httpx2.Response:
    headers = {"Authorization": f"Bearer {key}"}
    return httpx2.post(f"{engine.url}/oai/api/v1/{path}", json=body, headers=headers, timeout=60)


def test_chat_completions_render_the_models_template(engine: Running, tiny_weights: Path) -> None:
    from transformers import AutoTokenizer

    messages = [{"role": "user", "content": "hello"}]
    body = {"model": "tiny", "messages": messages, "max_tokens": 6, "seed": 3, "n": 2, "logprobs": True}
    answer = ask(engine, "chat/completions", body | {"top_logprobs": 2}).json()
    tokenizer = AutoTokenizer.from_pretrained(tiny_weights)
    prompt = tokenizer.encode(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))
    assert answer["usage"]["prompt_tokens"] == len(prompt)
    sampler = engine.service().create_sampling_client(base_model="tiny").result()
    stop = [tokenizer.eos_token_id]
    params = types.SamplingParams(max_tokens=6, seed=3, stop=stop)
    direct = sampler.sample(types.ModelInput.from_ints(prompt), 2, params).result()
    for choice, sequence in zip(answer["choices"], direct.sequences, strict=True):
        tokens = [token for token in sequence.tokens if token not in stop]
        assert choice["message"]["content"] == tokenizer.decode(tokens, skip_special_tokens=True)
        scores = [entry["logprob"] for entry in choice["logprobs"]["content"]]
        assert scores == pytest.approx(sequence.logprobs, abs=1e-4)
        assert all(len(entry["top_logprobs"]) == 2 for entry in choice["logprobs"]["content"])


def test_completions_take_checkpoints_tokens_and_echo(engine: Running) -> None:
    client = trainer(engine)
    for _ in range(8):
        step(client)
    path = client.save_weights_for_sampler("oai").result().path
    body = {"model": path, "prompt": TOKENS, "max_tokens": 4, "temperature": 0, "echo": True, "logprobs": 1}
    (choice,) = ask(engine, "completions", body).json()["choices"]
    sampler = engine.service().create_sampling_client(model_path=path).result()
    scored = sampler.compute_logprobs(types.ModelInput.from_ints(TOKENS)).result()
    assert choice["logprobs"]["token_logprobs"][: len(TOKENS)] == pytest.approx(scored, abs=1e-4)
    base = ask(engine, "completions", body | {"model": "tiny"}).json()["choices"][0]["logprobs"]["token_logprobs"]
    assert sum(scored[1:]) > sum(base[1 : len(TOKENS)]) + 1  # it is the trained one
    assert ask(engine, "completions", body | {"model": f"tiny;{path}"}).json()["choices"] == [choice]
    listed = httpx2.get(f"{engine.url}/oai/api/v1/models", headers={"Authorization": f"Bearer {KEY}"}).json()
    assert {"tiny", path} <= {entry["id"] for entry in listed["data"]}


def test_a_streamed_answer_has_the_same_content(engine: Running) -> None:
    body = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 5, "seed": 1}
    whole = ask(engine, "chat/completions", body).json()["choices"][0]["message"]["content"]
    lines = ask(engine, "chat/completions", body | {"stream": True}).text.strip().split("\n\n")
    assert lines[-1] == "data: [DONE]"
    assert f'"content": "{whole}"' in lines[0] or repr(whole)[1:-1] in lines[0] or len(lines) == 2


def test_a_stop_string_is_left_out_of_the_text(engine: Running) -> None:
    body = {"model": "tiny", "prompt": "hello", "max_tokens": 12, "seed": 5}
    text = ask(engine, "completions", body).json()["choices"][0]["text"]
    stop = text[3:5]
    choice = ask(engine, "completions", body | {"stop": stop}).json()["choices"][0]
    assert (choice["text"], choice["finish_reason"]) == (text[: text.index(stop)], "stop")


@pytest.mark.parametrize(
    ("path", "body", "status", "message"),
    [
        ("chat/completions", {"messages": [{"role": "user", "content": "x"}]}, 400, "'model' is missing"),
        ("chat/completions", {"model": "tiny"}, 400, "'messages' must be"),
        ("chat/completions", {"model": "tiny", "messages": [], "tools": [{"type": "function"}]}, 400, "'tools'"),
        ("completions", {"model": "tiny", "prompt": "x", "n": 0}, 400, "'n' must be"),
        ("completions", {"model": "tiny", "prompt": "x", "presence_penalty": 1}, 400, "'presence_penalty'"),
        ("completions", {"model": "tiny", "prompt": "x", "max_tokens": 10**6}, 400, "context window"),
        ("completions", {"model": "nobody", "prompt": "x"}, 400, "does not serve"),
        ("completions", {"model": "tinker://a/sampler_weights/b", "prompt": "x"}, 404, "never saved"),
    ],
)
def test_what_the_openai_endpoints_cannot_do_is_said(
    engine: Running, path: str, body: dict[str, Any], status: int, message: str
) -> None:
    answer = ask(engine, path, body)
    assert (answer.status_code, message in answer.json()["error"]["message"]) == (status, True), answer.text
    assert ask(engine, path, body, key="tml-wrong").status_code == 401


def test_peft_loads_downloaded_weights_and_scores_as_the_engine_does(
    engine: Running, tiny_weights: Path, tmp_path: Path
) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    client = trainer(engine, train_unembed=False)
    for _ in range(3):
        step(client, lr=0.05)
    path = client.save_weights_external("out").result().path
    rest = tinker.RestClient(base_url=engine.url, api_key=KEY)
    urls = rest.get_external_weights_urls(path).result().urls
    for name, url in urls.items():
        answer = httpx2.get(url)  # no key: the address carries its own permission
        assert answer.status_code == 200
        (tmp_path / name).write_bytes(answer.content)
        assert httpx2.get(url.replace("until=", "until=9")).status_code == 401
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_weights, dtype=torch.float32), tmp_path)
    logits = model(input_ids=torch.tensor([TOKENS[:-1]])).logits[0]
    expected = torch.log_softmax(logits, -1).gather(1, torch.tensor(TOKENS[1:])[:, None])[:, 0]
    ours = client.forward([datum(TOKENS)], "cross_entropy").result().loss_fn_outputs[0]["logprobs"].to_numpy()
    np.testing.assert_allclose(ours, expected.detach().numpy(), atol=1e-4)


def test_inflight_samplers_follow_the_adapter_and_snapshots_do_not(engine: Running) -> None:
    client = trainer(engine)
    prompt = types.ModelInput.from_ints(TOKENS)
    fixed = client.save_weights_and_get_sampling_client().result()
    moving = client.save_weights_and_get_sampling_client(kind="inflight").result()
    before = fixed.compute_logprobs(prompt).result()
    assert moving.compute_logprobs(prompt).result() == before
    for _ in range(8):
        step(client)
    client.save_weights_and_get_sampling_client(kind="inflight").result()
    assert fixed.compute_logprobs(prompt).result() == before
    assert sum(moving.compute_logprobs(prompt).result()[1:]) > sum(before[1:])


def test_a_custom_loss_on_the_server_trains_as_the_builtin_does(engine: Running) -> None:
    def loss(logprobs, weights):
        return -(logprobs * weights).sum(), {"custom/mean:mean": logprobs.mean()}

    service = engine.service()
    handle = service.create_custom_loss(loss, {"logprobs": 1, "weights": 1}).result()
    assert handle.loss_id is not None
    first, second = (service.create_lora_training_client("tiny", rank=4, seed=1).result() for _ in range(2))
    for _ in range(3):
        custom = first.forward_backward_custom([datum(TOKENS)], handle).result()
        builtin = second.forward_backward([datum(TOKENS)], "cross_entropy").result()
        assert custom.metrics["loss:sum"] == pytest.approx(builtin.metrics["loss:sum"], rel=1e-5)
        assert custom.metrics["custom/mean:mean"] < 0
        for client in (first, second):
            client.optim_step(types.AdamParams(learning_rate=0.01)).result()


def test_sessions_can_be_searched_and_their_timeline_downloaded(engine: Running) -> None:
    service = tinker.ServiceClient(
        base_url=engine.url, api_key=KEY, display_name="Nightly run", user_metadata={"team": "a"}
    )
    client = service.create_lora_training_client("tiny", rank=4).result()
    step(client)
    client.save_state("s").result()
    rest = tinker.RestClient(base_url=engine.url, api_key=KEY)
    (found,) = rest.search_sessions(types.SessionSearchRequest(display_name="night")).result().sessions
    assert (found.session_id, found.checkpoints_count) == (service.holder.get_session_id(), 1)
    assert found.status is not None and found.status.type == "active"
    assert rest.search_sessions(types.SessionSearchRequest(user_metadata={"team": "b"})).result().sessions == []
    first = rest.search_sessions(types.SessionSearchRequest(limit=1)).result()
    request = types.SessionSearchRequest(limit=200, cursor=first.next_cursor)
    second = rest.search_sessions(request).result()
    assert first.sessions[0].session_id not in {one.session_id for one in second.sessions}
    events = httpx2.get(rest.export_session_trace(found.session_id).result()).json()["traceEvents"]
    assert {"compute", "wait", "thread_name"} == {event["name"] for event in events}
    service.close("errored", "on purpose").result()
    (found,) = rest.search_sessions(types.SessionSearchRequest(session_id=found.session_id)).result().sessions
    assert found.status is not None and found.status.reason.type == "errored"
    with pytest.raises(tinker.BadRequestError, match="no project 'elsewhere'"):
        elsewhere = tinker.ServiceClient(base_url=engine.url, api_key=KEY, project_id="elsewhere")
        elsewhere.create_lora_training_client("tiny", rank=4).result()


def test_clients_at_once_are_served_in_turns_and_apart(engine: Running) -> None:
    alone = trainer(engine)
    expected = [step(alone) for _ in range(4)]
    results: dict[int, list[float]] = {}

    def work(number: int) -> None:
        client = trainer(engine)
        results[number] = [step(client) for _ in range(4)]

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert results == dict.fromkeys(range(4), expected)


def test_every_method_of_the_sdk_works_or_says_why_it_cannot() -> None:
    command = [sys.executable, "-m", "benchmarks.methods", "--check"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=110, env=environment, check=False)
    assert '"gap"' not in done.stdout, done.stdout
    written_with = re.search(r"tinker (\S+);", (ROOT / "docs" / "engine-methods.md").read_text())
    assert written_with is not None
    if written_with[1] == version("tinker"):
        assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.drill
@pytest.mark.parametrize("delay_s", [0.01, 0.03, 0.05, 0.1, 0.2])
def test_a_kill_while_saving_leaves_whole_checkpoints_only(delay_s: float, tiny_weights: Path, tmp_path: Path) -> None:
    from safetensors.numpy import load_file

    running = Running(tiny_weights, tmp_path)
    client = trainer(running, rank=64)
    step(client)
    for number in range(40):
        client.save_state(f"s{number % 5}", overwrite=True)
    time.sleep(delay_s)
    running.stop(signal.SIGKILL)
    again = Running(tiny_weights, tmp_path)
    try:
        assert not list(tmp_path.rglob(".tmp-*"))
        saved = tinker.RestClient(base_url=again.url, api_key=KEY).list_user_checkpoints().result().checkpoints
        for folder in (path.parent for path in tmp_path.rglob("checkpoint.json")):
            assert load_file(folder / "adapter_model.safetensors")
            assert load_file(folder / "optimizer.safetensors")
        if saved:
            resumed = again.service().create_training_client_from_state_with_optimizer(saved[0].tinker_path).result()
            assert step(resumed) > 0
    finally:
        again.stop()
