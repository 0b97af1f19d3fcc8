"""What is learned of a server before a job starts, and what it refuses."""

import re
import socket
import threading
import time
from collections.abc import Generator
from dataclasses import replace
from typing import Any

import pytest
from tinker_servers import NOT_FOUND, SKYRL_SCHEMA, Script, openai, scripted, skyrl
from tool_calls import call

from sota_ml_researcher.backends.connection import CLUSTER_KEY, Backend, remote, supported_models
from sota_ml_researcher.backends.sampling_client import SampleOptions, measure_nll, sample
from sota_ml_researcher.backends.server_probe import forget_servers
from sota_ml_researcher.backends.servers import Server, server_of, server_table
from sota_ml_researcher.core.errors import BackendError, ConfigError
from sota_ml_researcher.models.model_ref import resolve_model

MODEL = "org/model"
DEMO = str(resolve_model("demo").path)


@pytest.fixture(autouse=True)
def ask_anew() -> Generator[None]:
    forget_servers()
    yield
    forget_servers()


def asked(script: Script) -> Server:
    with scripted(script) as url:
        return server_of(remote("cluster", url))


def test_skyrl_is_known_and_says_itself_what_it_lacks() -> None:
    server = asked(skyrl(MODEL))
    can = server.abilities
    assert (server.kind, can.wire, can.loss_scale) == ("skyrl", "protobuf", "mean")
    assert can.losses == ("cross_entropy", "importance_sampling", "ppo", "cispo"), (
        "what its JAX backend has of its list"
    )
    assert {"wire", "losses", "chooses_layers", "grad_clip", "ttl", "sequence_ids", "prompt_logprobs"} <= server.asked
    assert (can.chooses_layers, can.grad_clip, can.ttl, can.sequence_ids, can.prompt_logprobs) == (
        False,
        False,
        False,
        False,
        True,
    )


def test_a_newer_server_of_the_same_kind_is_believed_and_not_the_table() -> None:
    grown = {"LoRAConfig": ["train_mlp"], "AdamParams": ["grad_clip_norm"], "SaveWeightsRequest": ["ttl_seconds"]}
    schemas = {name: {"properties": {field: {} for field in fields}} for name, fields in grown.items()}
    promise = {"request_id": "1", "sample_sequence_ids": ["a"]}
    schema = {**SKYRL_SCHEMA, "components": {"schemas": schemas}}
    can = asked(skyrl(MODEL, schema=(200, schema), asample=(200, promise))).abilities
    assert (can.chooses_layers, can.grad_clip, can.ttl, can.sequence_ids) == (True, True, True, True)


@pytest.mark.parametrize(
    ("status", "body", "wire"),
    [
        (404, {"detail": "Model not found"}, "protobuf"),
        (415, {"detail": "unsupported"}, "json"),
        (422, {"detail": [{"type": "json_invalid", "loc": ["body", 1]}]}, "json"),
        (*NOT_FOUND, None),
        (500, {"detail": "oh"}, None),
    ],
)
def test_how_training_data_is_read_is_told_by_a_refusal(status: int, body: Any, wire: str | None) -> None:
    schema = {**SKYRL_SCHEMA, "info": {"title": "Somebody's server"}}
    server = asked(skyrl(MODEL, schema=(200, schema), forward_backward=(status, body)))
    assert (server.kind, server.abilities.wire) == ("unknown", wire)


def test_skyrl_of_before_is_told_by_its_json() -> None:
    """SkyRL 0.3.0, as it answered on 28 November 2026."""
    error = {"type": "model_attributes_type", "loc": ["body"], "msg": "Input should be a valid dictionary or object"}
    sampled = {
        "sequences": [{"stop_reason": "length", "tokens": [11], "logprobs": [-4.0119]}],
        "prompt_logprobs": [-3.1243, -3.0963],
    }
    can = asked(skyrl(MODEL, forward_backward=(422, {"detail": [error]}), retrieve_future=(200, sampled))).abilities
    assert (can.wire, can.prompt_logprobs) == ("json", True)


def test_a_server_that_cannot_sample_says_why() -> None:
    error = (400, {"detail": "The precision 'F16_F16_F32' is not supported"})
    assert "F16_F16_F32" in asked(skyrl(MODEL, retrieve_future=error)).sampling_error


def test_a_clock_that_is_an_hour_off_is_noted_and_nothing_else_changes() -> None:
    server = asked(replace(skyrl(MODEL), clock_ahead_s=3600.0))
    assert any("60 minutes ahead" in note for note in server.notes)
    assert asked(replace(skyrl(MODEL), clock_ahead_s=-3600.0)).notes[0].count("behind") == 1
    assert replace(server, notes=()) == asked(skyrl(MODEL))


def test_a_server_is_asked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(CLUSTER_KEY, "tml-cluster")
    script = skyrl(MODEL)
    with scripted(script) as url:
        assert server_of(remote("cluster", url)) == server_of(remote("cluster", url))
    assert script.asked.count("POST /api/v1/asample") == 1
    assert set(script.keys) == {"tml-cluster"}


def test_every_kind_of_the_table_is_complete_and_dated() -> None:
    table = server_table()
    assert {"tinker", "engine", "skyrl", "open_rl", "unknown"} == set(table.servers)
    assert all(can.title and can.checked and can.ranks for can in table.servers.values())
    assert all(one.source.startswith("https://") for one in table.untried)


@pytest.mark.parametrize(
    ("script", "message"),
    [
        (Script({"GET /*": (200, "<html>log in</html>")}), "a web page answers here"),
        (openai("gpt"), "an OpenAI-compatible server: it samples, and cannot train"),
        (Script({"GET /*": (302, "")}, {"Location": "https://elsewhere.example/x"}), "sends on to https://elsewhere"),
        (Script({"GET /*": (200, {"hello": 1})}), "not as a Tinker server does"),
        (Script({}), "there is no Tinker API at this address"),
        (Script({"GET /v1/models": (401, {"error": "Unauthorized"})}), "an OpenAI-compatible server"),
        (Script({"GET /*": (400, "<html>sent to an HTTPS port</html>")}), "status 400. Check base_url"),
        (Script({"GET /*": (502, "<html>Bad Gateway</html>")}), "status 502. Try again later"),
        (Script({"GET /*": (200, {"supported_models": [{}]})}), "not as a Tinker server does"),
        (
            Script({"GET /*": (200, {"supported_models": [{"model_name": "a", "max_context_length": "4k"}]})}),
            "not as a Tinker server does",
        ),
    ],
)
def test_another_server_at_the_address_is_named(script: Script, message: str) -> None:
    with scripted(script) as url, pytest.raises(BackendError, match=message):
        supported_models(remote("cluster", url))


def test_a_key_is_not_shown_to_what_is_no_tinker_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(CLUSTER_KEY, "tml-cluster")
    script = openai("gpt")
    with scripted(script) as url, pytest.raises(BackendError):
        supported_models(remote("cluster", url))
    assert script.keys[script.asked.index("GET /v1/models")] == ""


def test_tls_where_there_is_none_is_said() -> None:
    with scripted(Script({})) as url, pytest.raises(BackendError, match="does not speak TLS"):
        supported_models(remote("cluster", url.replace("http://", "https://")))


def test_a_server_that_speaks_tls_alone_is_said() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def alert() -> None:
            connection = listener.accept()[0]
            connection.recv(1000)
            connection.sendall(b"\x15\x03\x01\x00\x02\x02\x46")  # a TLS alert: unsupported protocol version
            connection.close()

        threading.Thread(target=alert, daemon=True).start()
        with pytest.raises(BackendError, match="TLS alone wants https://"):
            supported_models(remote("cluster", f"http://127.0.0.1:{listener.getsockname()[1]}"))


@pytest.mark.parametrize("url", ["http://", "http://:80", "http://[::1", "http://a b", "http://host:port", "gpu:8000"])
def test_what_is_no_address_is_refused_by_its_key(url: str) -> None:
    with pytest.raises(ConfigError, match="base_url: "):
        remote("cluster", url)


def test_a_password_in_the_address_is_refused_and_not_shown() -> None:
    with pytest.raises(ConfigError, match=CLUSTER_KEY) as refused:
        remote("cluster", "https://me:hunter2@gpu:8000")
    assert "hunter2" not in str(refused.value)


def test_an_address_with_the_path_of_the_protocol_is_the_same_address() -> None:
    assert remote("cluster", "http://gpu:8000/api/v1/") == remote("cluster", "http://gpu:8000")


def test_a_connection_that_is_closed_at_once_is_no_traceback() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def close() -> None:
            listener.accept()[0].close()

        threading.Thread(target=close, daemon=True).start()
        with pytest.raises(BackendError, match=r"no answer.*Check the address"):
            supported_models(remote("cluster", f"http://127.0.0.1:{listener.getsockname()[1]}"))


def test_a_slow_server_is_told_from_one_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sota_ml_researcher.backends.connection._TIMEOUT_S", 0.2)
    script = replace(skyrl(MODEL), slow={"/api/v1/get_server_capabilities": 1.0})
    with scripted(script) as url, pytest.raises(BackendError, match="no answer within"):
        supported_models(remote("cluster", url))


def test_one_that_takes_long_for_a_token_is_still_usable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sota_ml_researcher.backends.server_probe._SAMPLE_S", 0.3)
    script = replace(skyrl(MODEL, retrieve_future=(408, {"detail": "Timeout"})), slow={})
    began = time.monotonic()
    server = asked(script)
    assert time.monotonic() - began < 10
    assert server.abilities.prompt_logprobs is True, "the table's word stands"
    assert any("for one token" in note for note in server.notes)


class Renderer:
    """Enough of a chat format to sample with."""

    stop = (2,)
    name = "none"

    def generation_prompt(self, messages: Any) -> list[int]:
        return [1, 2, 3]

    def decode(self, tokens: Any) -> str:
        return f"token {list(tokens)}"


def test_samples_of_a_server_that_names_no_sequences_and_cannot_end_a_session() -> None:
    script = skyrl(MODEL)
    with scripted(script) as url:
        backend = Backend("cluster", url, "tml-x")
        options = SampleOptions(max_tokens=1, temperature=1.0, top_p=1.0, num_samples=1, seed=0)
        renderer: Any = Renderer()
        ((answer,),) = sample(backend, renderer, MODEL, [[{"role": "user", "content": "x"}]], options)
        row: Any = type("Row", (), {"tokens": [1, 2, 3], "weights": [0.0, 1.0, 1.0]})
        nll = measure_nll(backend, renderer, MODEL, [row])
    assert (answer.text, answer.tokens) == ("token [11]", 1)
    assert nll.tokens == 2
    assert nll.mean == pytest.approx((3.1243 + 3.0963) / 2, abs=1e-3)
    assert any(request.endswith("/finish") for request in script.asked)


def test_a_server_that_forgot_what_it_was_asked_is_a_sentence_and_a_way_on() -> None:
    script = skyrl(MODEL)
    lost = {"detail": "Model model_1dd41ea3 not loaded (likely stale request from previous server)"}
    with scripted(script) as url:
        backend = Backend("cluster", url, "tml-x")
        server_of(backend)
        script.answers = {**script.answers, "POST /api/v1/retrieve_future": (400, lost)}
        options = SampleOptions(max_tokens=1, temperature=1.0, top_p=1.0, num_samples=1, seed=0)
        renderer: Any = Renderer()
        with pytest.raises(BackendError, match=r"has no result for it.*not loaded.*resume_job"):
            sample(backend, renderer, MODEL, [[{"role": "user", "content": "x"}]], options)


def test_what_the_server_is_stands_in_the_list_of_models() -> None:
    with scripted(skyrl(MODEL)) as url:
        failed, text, content = call("list_models", backend="cluster", base_url=url)
    assert not failed
    assert "SkyRL" in text
    assert "max_lora_rank" in content["models"][0]["ranks"]


def start(tool: str, url: str, **changes: Any) -> tuple[bool, str, dict[str, Any]]:
    data = {"start_sft": "demo:sft_train", "start_dpo": "demo:dpo_train", "start_grpo": "demo:rl_train"}[tool]
    place = {"base_model": DEMO, "backend": "cluster", "base_url": url, "train_file": data}
    return call(tool, overrides={**place, **changes}, validate_only=True)


RL = {"reward_type": "math", "force": True}


@pytest.mark.parametrize(
    ("tool", "changes", "message"),
    [
        ("start_sft", {"grad_clip": 1.0}, "grad_clip: .* does not clip gradients"),
        ("start_sft", {"apply_to": ["mlp"]}, r"apply_to: .* adapts mlp, attn whatever .* Set apply_to: \[mlp, attn\]"),
        (
            "start_grpo",
            {**RL, "loss_fn": "gspo"},
            "loss_fn: .* has no loss gspo.*It has importance_sampling, ppo, cispo",
        ),
        ("start_grpo", {**RL, "loss_fn": "dro"}, "has no loss dro"),
        ("start_grpo", {**RL, "max_steps_off_policy": 1}, "max_steps_off_policy: .* older weights"),
    ],
)
def test_a_job_that_needs_what_the_server_lacks_is_refused_before_it_starts(
    tool: str, changes: dict[str, Any], message: str
) -> None:
    with scripted(skyrl(DEMO)) as url:
        failed, text, _ = start(tool, url, **changes)
    assert failed
    assert re.search(message, text), text


def test_a_job_that_the_server_does_otherwise_says_so_and_counts_so() -> None:
    with scripted(skyrl(DEMO)) as url:
        failed, text, content = start("start_sft", url)
    assert not failed, text
    assert content["config"]["apply_to"] == ["mlp", "attn"]
    assert "whatever it is asked for" in content["origins"]["apply_to"]
    for told in ("adapts mlp, attn alone", "averages losses", "no expiry", "only while it is loaded"):
        assert any(told in warning for warning in content["warnings"]), told
    on_platform = call(
        "start_sft", overrides={"base_model": "demo", "train_file": "demo:sft_train"}, validate_only=True
    )
    assert content["lora_parameters"] < on_platform[2]["lora_parameters"], "the unembedding is not counted"


def test_held_out_rows_and_kl_need_log_probabilities_of_prompts() -> None:
    without = b"\n\x0e\x08\x01\x12\x04\x0b\x00\x00\x00\x1a\x04ua\x80\xc0"
    with scripted(skyrl(DEMO, retrieve_future=(200, without))) as url:
        assert "held-out rows are scored" in start("start_sft", url, val_file="demo:sft_val")[1]
        assert "the KL to a reference" in start("start_grpo", url, **RL, kl_coef=0.1)[1]
        assert not start("start_dpo", url, val_file="demo:dpo_val")[0], "DPO scores by forward passes"


def test_a_server_of_the_earlier_protocol_is_refused_with_what_does_work() -> None:
    with scripted(skyrl(DEMO, forward_backward=(415, {"detail": "JSON only"}))) as url:
        failed, text, _ = start("start_sft", url)
        unsampled, said, _ = call("sample_model", model=DEMO, prompts=["x"], backend="cluster", base_url=url)
    assert failed
    assert unsampled
    for refusal in (text, said):
        assert "speaks JSON alone" in refusal
        assert "0.4.0 or newer" in refusal


def test_rl_is_refused_where_nothing_can_be_sampled() -> None:
    with scripted(skyrl(DEMO, retrieve_future=(400, {"detail": "no such kernel"}))) as url:
        assert "could not sample one token" in start("start_grpo", url, **RL)[1]
        assert "could not sample one token" in start("start_sft", url, val_file="demo:sft_val")[1]
        failed, text, _ = start("start_sft", url)
    assert not failed
    assert "no such kernel" in text
