"""A model folder that is broken in one place: a sentence that names the place, and never a model made up for it."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from engine_reference import trained

from sota_ml_researcher.core.errors import ModelError
from sota_ml_researcher.engine.compute.model import load_model
from sota_ml_researcher.engine.interface import LoadOptions, LoraSpec, SampleSettings

FP32 = LoadOptions(dtype="float32")


@pytest.fixture
def folder(tiny_model: Callable[[str], Path], tmp_path: Path) -> Path:
    return shutil.copytree(tiny_model("qwen3"), tmp_path / "model")


def _edit(folder: Path, **changes: Any) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def _cut(folder: Path, keep: float) -> None:
    file = folder / "model.safetensors"
    data = file.read_bytes()
    file.write_bytes(data[: int(len(data) * keep)])


def _without(folder: Path, pattern: str) -> None:
    for file in folder.glob(pattern):
        file.unlink()


@pytest.mark.parametrize(
    ("harm", "says"),
    [
        (lambda f: _cut(f, 0.5), "weights are missing, cut"),
        (lambda f: _cut(f, 0.001), "weights are missing, cut"),
        (lambda f: _without(f, "*.safetensors"), "weights are missing, cut"),
        (lambda f: _edit(f, num_hidden_layers=3, layer_types=["full_attention"] * 3), "the weight files have no model"),
        (lambda f: _edit(f, hidden_size=64), "weights are missing, cut or of another shape"),
        (lambda f: _edit(f, hidden_size="32"), "its config.json cannot be used .*hidden_size.* expected int"),
        (lambda f: _edit(f, num_attention_heads=0), "."),
        (lambda f: (f / "config.json").write_text('{"a":'), "its config.json cannot be used"),
        (lambda f: (f / "config.json").write_text("[1]"), "its config.json cannot be used"),
        (lambda f: _without(f, "config.json"), "this folder has no config.json"),
        (lambda f: _without(f, "tokenizer*"), "the model has no"),
        (lambda f: (f / "tokenizer.json").write_text('{"x": 1}'), "no usable tokenizer"),
        (shutil.rmtree, "no such model"),
    ],
)
def test_a_broken_folder_is_refused_with_the_place(folder: Path, harm: Callable[[Path], Any], says: str) -> None:
    harm(folder)
    with pytest.raises(ModelError, match=says) as raised:
        load_model("m", str(folder), FP32)
    assert str(folder) in str(raised.value)
    assert "\n" not in str(raised.value)


def test_the_precision_taken_is_said(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="sota_ml_researcher.engine"):
        model = load_model("m", str(folder), LoadOptions(dtype="bfloat16"))
    assert (model.description["stored_dtype"], model.description["dtype"]) == ("float32", "bfloat16")
    assert "stored in float32, computed in bfloat16 (as asked)" in caplog.text
    assert "loses precision" in caplog.text
    caplog.clear()
    with caplog.at_level(logging.INFO, logger="sota_ml_researcher.engine"):
        model = load_model("m", str(folder), LoadOptions())
    assert f"computed in {model.description['dtype']} (chosen for this hardware)" in caplog.text


@pytest.mark.parametrize("family", ["gpt2", "qwen3_moe", "qwen3"])
def test_a_model_trains_in_bfloat16(family: str, tiny_model: Callable[[str], Path]) -> None:
    model = load_model("m", str(tiny_model(family)), LoadOptions(device="cpu", dtype="bfloat16", threads=1))
    adapter = trained(model, LoraSpec(rank=4, seed=1))
    (output,) = model.sample([SampleSettings(np.arange(5), max_tokens=3, seed=1)], [adapter.weights()])
    assert np.isfinite(output.continuations[0].logprobs_T).all()
