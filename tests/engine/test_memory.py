"""Whether a model fits is known before its weights are read, and what a smaller memory changes is how, not what."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from engine_reference import FP32, some_items, trained
from numpy.typing import NDArray
from transformers import AutoConfig

from sota_ml_researcher.core.memory import GIB, Batch, Room, TooLargeError, estimate
from sota_ml_researcher.engine.compute import loading, memory_fit
from sota_ml_researcher.engine.compute.model import LoadedModel, load_model
from sota_ml_researcher.engine.interface import LoadOptions, LoraSpec
from sota_ml_researcher.engine.service.base_models import BaseModels
from sota_ml_researcher.models.configs import load_model_config
from sota_ml_researcher.models.lora_params import model_shape
from sota_ml_researcher.models.model_ref import resolve_model

ADAPTERS = [LoraSpec(4, 1), LoraSpec(4, 1, train_attn=False, train_unembed=False), LoraSpec(4, 1, train_mlp=False)]


def again(folder: Path, dtype: str) -> LoadedModel:
    options = LoadOptions(device="cpu", dtype=dtype, threads=1, extra={"gradient_checkpointing": True})
    return load_model("m", str(folder), options)


@pytest.mark.parametrize(
    ("family", "dtype"), [("llama", "float32"), ("qwen3", "bfloat16"), ("gemma", "float32"), ("phi3", "float32")]
)
def test_layers_that_run_again_give_the_same_bits(family: str, dtype: str, tiny_model: Callable[[str], Path]) -> None:
    folder = tiny_model(family)
    plain = load_model("m", str(folder), LoadOptions(device="cpu", dtype=dtype, threads=1))
    checkpointed = again(folder, dtype)
    assert checkpointed.description["implementation"] == "packed"
    for spec in ADAPTERS:
        first, second = trained(plain, spec), trained(checkpointed, spec)
        results = [
            adapter.forward_backward(some_items(), "cross_entropy", None, backward=True) for adapter in (first, second)
        ]
        for one, other in zip(results[0].outputs, results[1].outputs, strict=True):
            np.testing.assert_array_equal(one["logprobs"], other["logprobs"])
        assert first._grad_P is not None
        assert second._grad_P is not None
        np.testing.assert_array_equal(first._grad_P.numpy(), second._grad_P.numpy())
        for name, tensor in first.export_weights().items():
            np.testing.assert_array_equal(tensor, second.export_weights()[name])


def test_a_kept_forward_pass_holds_what_goes_into_layers_alone(tiny_model: Callable[[str], Path]) -> None:
    folder = tiny_model("qwen3")
    models = load_model("m", str(folder), FP32), again(folder, "float32")
    kept, gradients = list[int](), list[NDArray[np.float32]]()
    for model in models:
        adapter = trained(model, LoraSpec(4, 1))
        adapter.forward_backward(some_items(), "cross_entropy", None, backward=False)
        kept.append(model._forwards._bytes)
        adapter.forward_backward(some_items(), "cross_entropy", None, backward=True)
        assert not model._forwards._kept, "the kept pass was not the one that was used"
        assert adapter._grad_P is not None
        gradients.append(adapter._grad_P.numpy())
    assert kept[1] < kept[0] / 2
    np.testing.assert_array_equal(*gradients)


@pytest.mark.parametrize("family", ["llama", "qwen3", "qwen3_moe", "gemma2", "phi3", "gpt2"])
def test_both_sides_of_the_estimate_read_one_shape(family: str, tiny_model: Callable[[str], Path]) -> None:
    folder = tiny_model(family)
    ours = memory_fit.shape_of(AutoConfig.from_pretrained(folder))
    planned = model_shape(load_model_config(resolve_model(str(folder))))
    assert abs(planned.weights / ours.weights - 1) < 0.12  # norms, biases and positions weigh much in a tiny model
    assert replace(planned, weights=ours.weights) == ours


@pytest.fixture
def free(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Sets how many bytes of a machine of 16 GiB are free."""

    def set_free(size: int) -> None:
        monkeypatch.setattr(memory_fit, "free_ram", lambda: (size, 16 * GIB))

    return set_free


def need(folder: Path, batch: Batch) -> int:
    shape = memory_fit.shape_of(AutoConfig.from_pretrained(folder))
    return estimate(shape, Room("cpu", 4, 0, 16 * GIB), batch).total


def test_a_smaller_memory_makes_layers_run_again_then_lowers_the_batch_and_says_so(
    tiny_model: Callable[[str], Path], free: Callable[[int], None], caplog: pytest.LogCaptureFixture
) -> None:
    folder = tiny_model("qwen3")
    wanted = [(4096, False), (4096, True), (512, True)]
    for tokens, checkpointing in wanted:
        free(need(folder, Batch(tokens, 512, checkpointing)))
        caplog.clear()
        with caplog.at_level(logging.WARNING, logger="sota_ml_researcher.engine"):
            model = load_model("m", str(folder), FP32)
        chosen = (model.description["batch_tokens"], model.description["gradient_checkpointing"])
        assert chosen == (tokens, checkpointing)
        assert (f"a batch has at most {tokens} tokens" in caplog.text) == (tokens < 4096)
        assert ("layers run again" in caplog.text) == checkpointing


def test_a_model_without_room_is_refused_before_its_weights_are_read(
    tiny_model: Callable[[str], Path], free: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loading, "_weights", lambda *_: pytest.fail("the weights were read"))
    folder = tiny_model("qwen3")
    free(need(folder, Batch(512, 512, True)) - 1)
    with pytest.raises(TooLargeError, match=r"it needs 0\.\d+ GiB \(weights 0\.00") as raised:
        load_model("m", str(folder), FP32)
    assert "GiB are free, for other programs hold 15.5" in str(raised.value)
    assert "End what holds the memory" in str(raised.value)
    assert str(folder) in str(raised.value)


def test_a_longer_batch_than_fits_runs_its_layers_again(
    tiny_model: Callable[[str], Path], free: Callable[[int], None]
) -> None:
    folder = tiny_model("qwen3")
    free(need(folder, Batch(4096, 512)))
    running = load_model("m", str(folder), FP32)._backbone._recomputes
    assert not running(4096, 512)
    assert running(32768, 4096)


def test_models_that_nobody_uses_make_room(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text("{}")
    held = set[str]()

    class Loaded:
        def __init__(self, key: str) -> None:
            self.key = key
            held.add(key)

        def __del__(self) -> None:
            held.discard(self.key)

    def load(key: str, _path: str, _options: LoadOptions) -> Any:
        if held:
            raise TooLargeError("no room", where=key)
        return Loaded(key)

    models = BaseModels({}, any_local=True, options=LoadOptions(), load=load)
    first, second = (str(tmp_path / name) for name in ("a", "b"))
    models.get(first)
    models.get(second)
    assert held == {second}
    with pytest.raises(TooLargeError):
        models.get(first, in_use=frozenset({second}))
    assert held == {second}
