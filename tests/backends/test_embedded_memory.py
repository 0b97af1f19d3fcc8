"""What a plan on the embedded engine says of this machine's memory."""

from __future__ import annotations

from pathlib import Path

import pytest

from sota_ml_researcher.backends import embedded_memory
from sota_ml_researcher.core.memory import GIB, TooLargeError
from sota_ml_researcher.core.paths import demo_data
from sota_ml_researcher.models.configs import ModelConfig
from sota_ml_researcher.tools.models import list_models
from sota_ml_researcher.tools.start import start_sft
from sota_ml_researcher.training.sft.config import load_sft_settings
from sota_ml_researcher.training.sft.plan import plan_sft

OVERRIDES = {"base_model": "demo", "train_file": str(demo_data("sft_train", where="test"))}


def machine(monkeypatch: pytest.MonkeyPatch, free: float) -> None:
    monkeypatch.setattr(embedded_memory, "free_ram", lambda: (int(free * GIB), 16 * GIB))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")


def test_a_plan_shows_the_parts_and_is_refused_where_they_do_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    machine(monkeypatch, 8)
    shown = start_sft(overrides=OVERRIDES, validate_only=True)
    content = shown.structured_content
    assert content is not None
    memory = content["memory"]
    assert memory["total"] == sum(memory[part] for part in ("process", "weights", "adapter", "activations"))
    assert (memory["free"], memory["batch_tokens"], memory["device"]) == (8 * GIB, 4096, "cpu")
    assert "Memory: about " in shown.content[0].text
    machine(monkeypatch, 0.25)
    with pytest.raises(TooLargeError, match=r"demo: it needs 0\.\d+ GiB .* 0\.25 of this machine's 16\.0 GiB are free"):
        plan_sft(load_sft_settings(None, OVERRIDES))


def test_a_gpu_that_others_fill_is_refused_with_what_they_hold(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    driver = tmp_path / "nvidia-smi"
    driver.write_text("#!/bin/sh\necho '300, 24576'\n")
    driver.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    monkeypatch.setattr(embedded_memory, "version", lambda _: "2.9.0")
    room = embedded_memory.embedded_room()
    assert (room.device, room.free, room.total) == ("cuda", 300 << 20, 24 * GIB)
    with pytest.raises(TooLargeError, match=r"0\.29 of the GPU's 24\.0 GiB are free, for other programs hold 23\.7"):
        plan_sft(load_sft_settings(None, OVERRIDES))
    driver.write_text("#!/bin/sh\nexit 9\n")
    assert embedded_memory.embedded_room().device == "cpu"


def test_an_architecture_that_is_not_known_is_said_to_be_so() -> None:
    config = ModelConfig("odd", {"model_type": "odd", "hidden_size": 8}, "folder")
    found = embedded_memory.embedded_memory(config, rank=8, length=64)
    assert found.fit is None
    assert "not known (its architecture (odd) is not one" in found.text


def test_the_list_of_models_says_what_each_takes_here() -> None:
    content = list_models().structured_content
    assert content is not None
    assert 0.4 < content["models"][0]["memory_gib"] < 2
