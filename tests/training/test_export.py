"""Exports of a real checkpoint from a live engine; the hub is a server on loopback."""

import json
import os
import threading
from collections.abc import Generator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import tinker
import torch
import transformers
from engine_support import KEY, Running, datum

from sota_ml_researcher.backends.connection import Backend
from sota_ml_researcher.core.errors import BackendError, ConfigError, ModelError, StorageError
from sota_ml_researcher.training.export import MARKER, ExportRequest, export
from sota_ml_researcher.training.export_worker import model_card, run

TOKENS = list(range(10, 40))
NO_COMMIT = "0" * 40


@pytest.fixture(scope="module")
def engine(tiny_weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Generator[Running]:
    running = Running(tiny_weights, tmp_path_factory.mktemp("store"))
    yield running
    running.stop()


@pytest.fixture(scope="module")
def trained(engine: Running) -> dict[str, Any]:
    """A state with every part of the model trained, the tied output layer too, and its own log-probabilities."""
    service = engine.service()
    client = service.create_lora_training_client(base_model="tiny", rank=4, seed=1).result()
    for _ in range(4):
        client.forward_backward([datum(TOKENS)], "cross_entropy").result()
        client.optim_step(tinker.AdamParams(learning_rate=3e-2)).result()
    sampler = client.save_weights_for_sampler("final").result().path
    prompt = tinker.ModelInput.from_ints(TOKENS)
    logprobs = service.create_sampling_client(model_path=sampler).result().compute_logprobs(prompt).result()
    return {"state": client.save_state("final").result().path, "sampler": sampler, "logprobs": logprobs[1:]}


@pytest.fixture(autouse=True)
def here(engine: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the worker's process gets in its environment: most tests do its work in this one."""
    monkeypatch.setenv("TINKER_BASE_URL", engine.url)
    monkeypatch.setenv("TINKER_API_KEY", KEY)


@pytest.fixture
def request_(trained: dict[str, Any], tiny_weights: Path, tmp_path: Path) -> ExportRequest:
    return ExportRequest(
        checkpoint=trained["state"], base_model=str(tiny_weights), format="adapter", output=str(tmp_path / "out")
    )


def silent(doing: str) -> None:
    """Nobody listens."""


def logprobs_of(model: Any) -> list[float]:
    tokens = torch.tensor([TOKENS])
    with torch.no_grad():
        found = model(tokens).logits.log_softmax(-1)[0, :-1].gather(1, tokens[0, 1:, None])
    return found.squeeze(1).tolist()


def largest_difference(model: Any, expected: list[float]) -> float:
    return max(abs(a - b) for a, b in zip(logprobs_of(model), expected, strict=True))


def load(folder: Path | str) -> Any:
    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


def test_peft_loads_the_adapter_and_says_what_the_engine_said(
    request_: ExportRequest, trained: dict[str, Any], tiny_weights: Path
) -> None:
    import peft

    told: list[str] = []
    made = run(request_, told.append)
    assert told == ["downloading the checkpoint", "writing the adapter"]
    assert {"adapter_model.safetensors", "adapter_config.json", "README.md", MARKER} <= set(made.files)
    base = load(tiny_weights)
    assert largest_difference(base, trained["logprobs"]) > 0.1
    model = peft.PeftModel.from_pretrained(base, made.folder)
    assert largest_difference(model, trained["logprobs"]) < 1e-4
    assert [p.name for p in Path(request_.output).parent.iterdir()] == ["out"]


def test_a_merged_model_with_a_trained_tied_head_says_the_same(
    request_: ExportRequest, trained: dict[str, Any]
) -> None:
    made = run(replace(request_, format="merged"), silent)
    assert largest_difference(load(made.folder), trained["logprobs"]) < 1e-4
    assert json.loads((Path(made.folder) / "config.json").read_bytes())["tie_word_embeddings"] is False
    assert not any(path.is_symlink() for path in Path(made.folder).rglob("*"))
    transformers.AutoTokenizer.from_pretrained(made.folder)


def test_the_worker_process_answers_for_its_result_and_its_errors(
    request_: ExportRequest, engine: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TINKER_BASE_URL", "http://127.0.0.1:9")  # the process goes where its backend is, not here
    backend = Backend("cluster", engine.url, KEY)
    told: list[str] = []
    made = export(request_, backend, progress=told.append)
    assert told == ["downloading the checkpoint", "writing the adapter"]
    assert made.files["adapter_model.safetensors"] == (Path(made.folder) / "adapter_model.safetensors").stat().st_size
    with pytest.raises(StorageError, match="the folder exists already"):
        export(request_, backend, progress=silent)


def test_a_worker_that_dies_is_a_sentence(request_: ExportRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sota_ml_researcher.training.export._WORKER", "sota_ml_researcher.no_such_worker")
    with pytest.raises(BackendError, match=r"the export stopped \(1\): .*No module named"):
        export(request_, Backend("tinker", "http://127.0.0.1:9", KEY), progress=silent)


def test_a_folder_in_the_way_is_kept(request_: ExportRequest) -> None:
    output = Path(request_.output)
    output.mkdir()
    (output / "thesis.txt").write_text("mine")
    with pytest.raises(StorageError, match=r"the folder exists already.*overwrite=true"):
        run(request_, silent)
    with pytest.raises(StorageError, match=f"no {MARKER}, so no export made it"):
        run(replace(request_, overwrite=True), silent)
    assert (output / "thesis.txt").read_text() == "mine"
    with pytest.raises(StorageError, match="this is a file"):
        run(replace(request_, output=str(output / "thesis.txt")), silent)


def test_an_earlier_export_is_replaced_when_asked(request_: ExportRequest) -> None:
    run(request_, silent)
    (Path(request_.output) / "stale").touch()
    with pytest.raises(StorageError, match="exists already"):
        run(request_, silent)
    made = run(replace(request_, overwrite=True), silent)
    assert "stale" not in made.files


@pytest.mark.parametrize(
    ("checkpoint", "message"),
    [
        ("tinker://nope:train:0/weights/final", "there is no checkpoint"),
        ("tinker://nope:train:0/sampler_weights/final", "Give a training state"),
        ("tinker://nope", "Invalid tinker path"),
    ],
)
def test_a_checkpoint_that_cannot_be_had_is_a_sentence(request_: ExportRequest, checkpoint: str, message: str) -> None:
    with pytest.raises(BackendError, match=message):
        run(replace(request_, checkpoint=checkpoint), silent)
    assert list(Path(request_.output).parent.iterdir()) == []


def test_another_base_model_is_refused(request_: ExportRequest, tmp_path: Path) -> None:
    config = transformers.LlamaConfig(
        hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=48, vocab_size=96
    )
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "other")
    wrong = replace(request_, base_model=str(tmp_path / "other"), format="merged")
    with pytest.raises(ModelError, match="the adapter does not fit"):
        run(wrong, silent)
    assert not Path(request_.output).exists()


class Hub(ThreadingHTTPServer):
    """The calls of the Hugging Face hub that an upload makes, files arriving inside the commit; and files to read."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _HubHandler)
        self.repositories: dict[str, bool] = {}
        self.files: dict[str, bytes] = {}
        self.tokens: set[str] = set()
        self.models: dict[str, Path] = {}
        self.ranges: dict[str, str | None] = {}
        self.refuses = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class _HubHandler(BaseHTTPRequestHandler):
    server: Hub

    def log_message(self, *args: object) -> None:
        pass

    def do_POST(self) -> None:
        import base64

        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        self.server.tokens.add(self.headers.get("authorization", ""))
        if self.server.refuses:
            return self.reply({"error": "no"}, self.server.refuses)
        if self.path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked.get('organization')}/{asked['name']}"
            if name in self.server.repositories:
                return self.reply({"error": "exists", "url": f"{self.server.url}/{name}"}, 409)
            self.server.repositories[name] = asked["visibility"] == "private"
            return self.reply({"url": f"{self.server.url}/{name}", "id": name})
        if "/preupload/" in self.path:
            named = [each["path"] for each in json.loads(body)["files"]]
            return self.reply(
                {"files": [{"path": name, "uploadMode": "regular", "shouldIgnore": False} for name in named]}
            )
        if "/commit/" in self.path:
            for line in body.decode().splitlines():
                entry = json.loads(line)
                if entry["key"] == "file":
                    self.server.files[entry["value"]["path"]] = base64.b64decode(entry["value"]["content"])
            return self.reply(
                {"commitUrl": f"{self.server.url}/me/mine/commit/{'0' * 40}", "commitOid": "0" * 40, "success": True}
            )
        return self.reply({}, 200)

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        repository, _, name = self.path.strip("/").partition("/resolve/main/")
        served = self.server.models.get(repository)
        if served is None or not name:
            if any(f"/api/models/{known}" in self.path for known in self.server.repositories):
                return self.reply({"id": "me/mine", "sha": NO_COMMIT, "siblings": []})
            return self.reply({"error": "Repository not found"}, 404, **{"x-error-code": "RepoNotFound"})
        if not (served / name).is_file():
            return self.reply({"error": "Entry not found"}, 404, **{"x-error-code": "EntryNotFound"})
        wanted = self.headers.get("range")
        self.server.ranges[name] = wanted
        content = (served / name).read_bytes()
        if wanted:
            first, last = map(int, wanted.removeprefix("bytes=").split("-"))
            content = content[first : last + 1]
        self.send_response(206 if wanted else 200)
        self.send_header("content-length", str(len(content)))
        self.send_header("etag", '"1"')
        self.send_header("x-repo-commit", NO_COMMIT)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    def reply(self, content: dict[str, Any], status: int = 200, **headers: str) -> None:
        payload = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(payload)))
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(payload)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Generator[Hub]:
    server = Hub()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", server.url)
    template = server.url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setenv("HF_HUB_DISABLE_XET", "1")
    yield server
    server.shutdown()
    server.server_close()


def test_a_merged_model_is_published_privately_with_its_card(request_: ExportRequest, hub: Hub) -> None:
    asked = replace(request_, format="merged", publish_to="me/mine", about=("job sft-123456",))
    made = run(asked, silent)
    assert made.url == f"{hub.url}/me/mine"
    assert hub.repositories == {"me/mine": True}
    weights = [name for name in made.files if name.endswith(".safetensors")]
    assert weights
    assert all(hub.files[name] == (Path(made.folder) / name).read_bytes() for name in weights)
    assert b"job sft-123456" in hub.files["README.md"]
    assert MARKER not in hub.files
    assert hub.tokens == {"Bearer hf_secret"}
    uploaded = b"".join(content for name, content in hub.files.items() if not name.endswith(".safetensors"))
    assert str(Path(request_.base_model).parent).encode() not in uploaded
    assert b"hf_secret" not in uploaded


def test_after_a_refused_upload_the_same_call_only_publishes(request_: ExportRequest, hub: Hub) -> None:
    asked = replace(request_, format="merged", publish_to="me/mine")
    hub.refuses = 403
    with pytest.raises(BackendError, match=r"may not write there \(403\).*the same call only publishes it") as refused:
        run(asked, silent)
    assert "hf_secret" not in str(refused.value)
    hub.refuses = 0
    made = run(asked, silent)
    assert made.reused and made.url
    with pytest.raises(BackendError, match=r"exists already \(409\)"):
        run(asked, silent)


def test_an_adapter_of_a_local_model_or_without_a_token_is_not_published(
    request_: ExportRequest, hub: Hub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="nobody else could load the adapter"):
        run(replace(request_, publish_to="me/mine"), silent)
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "empty"))
    with pytest.raises(BackendError, match="Set HF_TOKEN"):
        run(replace(request_, format="merged", publish_to="me/mine"), silent)
    assert hub.repositories == {}


def test_the_card_names_a_hub_model_and_hides_a_folder(request_: ExportRequest) -> None:
    assert "base_model: Qwen/Qwen3-8B" in model_card(replace(request_, base_model="Qwen/Qwen3-8B"))
    card = model_card(request_)
    assert os.sep not in card.replace("sota-ml-researcher", "")
    assert Path(request_.base_model).name in card


def test_an_adapter_of_a_hub_model_costs_its_headers_and_no_download(
    request_: ExportRequest,
    hub: Hub,
    tiny_weights: Path,
    trained: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    import peft

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    hub.models["me/base"] = tiny_weights
    made = run(replace(request_, base_model="me/base"), silent)
    assert hub.ranges == {"model.safetensors": "bytes=0-100000", "config.json": None}
    config = json.loads((Path(made.folder) / "adapter_config.json").read_bytes())
    assert config["base_model_name_or_path"] == "me/base"
    model = peft.PeftModel.from_pretrained(load(tiny_weights), made.folder)
    assert largest_difference(model, trained["logprobs"]) < 1e-4


def test_a_hub_model_that_cannot_be_had_is_a_sentence(
    request_: ExportRequest, hub: Hub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    for kind in ("adapter", "merged"):
        with pytest.raises(ModelError, match="the base model's files cannot be had"):
            run(replace(request_, base_model="me/missing", format=kind), silent)
    assert not Path(request_.output).exists()
