"""Reading configs from folders, the local cache, a hub (a real server on loopback) and the shipped table."""

import json
import socket
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest
from huggingface_hub import constants
from loopback_server import serving

from sota_ml_researcher.core.errors import ModelError
from sota_ml_researcher.models import configs
from sota_ml_researcher.models.configs import load_model_config
from sota_ml_researcher.models.model_ref import ModelRef, resolve_model

LLAMA = {"model_type": "llama", "hidden_size": 64, "num_hidden_layers": 2, "vocab_size": 100}


def point_to(monkeypatch: pytest.MonkeyPatch, port: int) -> None:
    """What HF_ENDPOINT would have done before huggingface_hub was imported."""
    template = f"http://127.0.0.1:{port}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)


class Hub(BaseHTTPRequestHandler):
    """Answers ``/org/<what>/resolve/main/config.json`` by what is asked for."""

    def do_GET(self) -> None:
        what = self.path.split("/")[2]
        status = int(what) if what.isdigit() else 200
        body = b"<html>" if what == "page" else json.dumps({**LLAMA, "hidden_size": 96}).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        del format, args


@pytest.fixture(autouse=True)
def _fresh(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    configs._ask_hub.cache_clear()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    point_to(monkeypatch, 9)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with serving(Hub) as url:
        point_to(monkeypatch, int(url.rpartition(":")[2]))
        yield


def folder(path: Path, text: str) -> ModelRef:
    (path / "config.json").write_text(text, encoding="utf-8")
    return resolve_model(str(path))


def test_a_folder_is_read(tmp_path: Path) -> None:
    config = load_model_config(folder(tmp_path, json.dumps(LLAMA)))
    assert (config.source, config.hidden_size, config.model_type) == ("folder", 64, "llama")


def test_a_multimodal_config_is_read_down_to_its_text_model(tmp_path: Path) -> None:
    outer = {"model_type": "gemma3", "text_config": {"model_type": "gemma3_text", "hidden_size": 2560}}
    config = load_model_config(folder(tmp_path, json.dumps(outer)))
    assert (config.model_type, config.hidden_size) == ("gemma3_text", 2560)


def test_keys_that_a_published_config_leaves_out_are_those_transformers_assumes(tmp_path: Path) -> None:
    from transformers import Gemma3TextConfig

    config = load_model_config(folder(tmp_path, json.dumps({"model_type": "gemma3_text", "hidden_size": 2560})))
    theirs = Gemma3TextConfig(hidden_size=2560)
    for key in ("num_attention_heads", "num_key_value_heads", "head_dim", "vocab_size"):
        assert config.integer(key) == getattr(theirs, key)


def test_an_explicit_null_is_not_filled_in(tmp_path: Path) -> None:
    config = load_model_config(folder(tmp_path, json.dumps({**LLAMA, "model_type": "gemma", "head_dim": None})))
    assert not config.has("head_dim")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{\n "hidden_size": 64,\n oops}', r"config\.json:3: not valid JSON"),
        ("[1]", "must be a JSON object"),
        ("", r"config\.json:1: not valid JSON"),
    ],
)
def test_a_damaged_config_names_its_place(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        load_model_config(folder(tmp_path, text))


def test_a_config_that_is_not_utf_8_is_a_model_error(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes(b'{"a": "\xff"}')
    with pytest.raises(ModelError, match="cannot be read"):
        load_model_config(resolve_model(str(tmp_path)))


def test_the_local_cache_comes_before_the_hub(tmp_path: Path) -> None:
    snapshot = tmp_path / "cache" / "models--org--cached" / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text(json.dumps(LLAMA), encoding="utf-8")
    refs = tmp_path / "cache" / "models--org--cached" / "refs"
    refs.mkdir()
    (refs / "main").write_text("abc", encoding="utf-8")
    config = load_model_config(ModelRef("org/cached", None))
    assert (config.source, config.hidden_size) == ("hub cache", 64)


def test_the_hub_is_asked_for_what_is_not_cached(hub: None) -> None:
    config = load_model_config(ModelRef("org/fine", None))
    assert (config.source, config.hidden_size) == ("hub", 96)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("org/404", "the hub has no such model"),
        ("org/401", "asks for permission .*HF_TOKEN"),
        ("org/503", "the hub said 503"),
        ("org/page", "the hub's answer was not JSON"),
    ],
)
def test_what_the_hub_refuses_is_said(hub: None, name: str, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        load_model_config(ModelRef(name, None))


def test_without_a_hub_the_shipped_table_is_used_and_the_config_says_so() -> None:
    config = load_model_config(ModelRef("Qwen/Qwen3-8B", None))
    assert (config.source, config.integer("num_hidden_layers")) == ("table", 36)
    assert "out of reach" in config.note
    assert "shipped table of 20" in config.note
    assert load_model_config(ModelRef("thinkingmachines/Inkling:peft:262144", None)).hidden_size == 6144


def test_an_unknown_model_gets_a_near_miss() -> None:
    with pytest.raises(ModelError, match=r"Qwen/Qwen3-8b-bas: .*out of reach.*Did you mean 'Qwen/Qwen3-8B-Base'"):
        load_model_config(ModelRef("Qwen/Qwen3-8b-bas", None))


def test_a_silent_hub_costs_one_timeout_and_then_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(configs, "HUB_TIMEOUT_S", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        point_to(monkeypatch, silent.getsockname()[1])
        for _ in range(2):
            assert load_model_config(ModelRef("Qwen/Qwen3-8B", None)).source == "table"
        silent.setblocking(False)
        silent.accept()[0].close()
        with pytest.raises(BlockingIOError):  # one question, not two
            silent.accept()


def test_offline_mode_is_respected(monkeypatch: pytest.MonkeyPatch, hub: None) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE is set" in load_model_config(ModelRef("Qwen/Qwen3-8B", None)).note


def test_a_name_the_hub_would_not_take_is_a_model_error() -> None:
    with pytest.raises(ModelError, match="no valid Hugging Face id"):
        load_model_config(ModelRef("org/white space", None))
