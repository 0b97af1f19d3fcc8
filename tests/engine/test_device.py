"""The engine's arithmetic on an accelerator, against the same model in fp32 on the CPU.

Marked ``gpu``. ``ML_RESEARCHER_TEST_DEVICE=cpu`` rehearses the same tests without one, in fp32 and in emulated bf16.
"""

from __future__ import annotations

import gc
import importlib.util
import os
import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from engine_reference import FP32, flex_on_cpu, some_items, trained

from sota_ml_researcher.engine.compute.adapter import TrainedAdapter
from sota_ml_researcher.engine.compute.losses import LOSSES
from sota_ml_researcher.engine.compute.model import LoadedModel, load_model
from sota_ml_researcher.engine.interface import (
    AdamSettings,
    FloatArray,
    LoadOptions,
    LoraSpec,
    OutOfMemoryError,
    SampleSettings,
    TrainItem,
)

DEVICE = os.environ.get("ML_RESEARCHER_TEST_DEVICE", "cuda")
gpu = pytest.mark.gpu
# Nats by which a log-probability may differ, and the share by which a gradient may, from fp32 on the CPU: fp32 sums in
# another order; bf16 has 8 bits of mantissa, so that a product of two rounded numbers is off by up to 2^-7.
BOUNDS = {"float32": (2e-4, 1e-3), "bfloat16": (0.1, 0.1)}
FAMILIES = ["llama", "qwen2", "qwen3", "qwen3_moe", "gemma2", "mistral", "gpt2"]
SPEC = LoraSpec(rank=4, seed=1)


def on_device(folder: Path, dtype: str = "float32", *, quantize: str | None = None) -> LoadedModel:
    return load_model("m", str(folder), LoadOptions(device=DEVICE, dtype=dtype, threads=1, quantize=quantize))


def gradient(adapter: TrainedAdapter) -> FloatArray:
    assert adapter._grad_P is not None
    return adapter._grad_P.float().cpu().numpy()


def items_of(loss: str) -> list[TrainItem]:
    """Rows with what the loss reads; the policy that sampled was near the model."""
    rng = np.random.default_rng(5)
    items = list[TrainItem]()
    for item in some_items():
        length = len(item.tokens_T)
        inputs = {"target_tokens": item.loss_inputs["target_tokens"]}
        values = {
            "weights": item.loss_inputs["weights"],
            "logprobs": rng.normal(-4.5, 0.2, length).astype(np.float32),
            "advantages": rng.normal(size=length).astype(np.float32),
            "sequence_ratio_mask": np.ones(length, np.float32),
        }
        wanted = {"weights"} if loss == "cross_entropy" else set(LOSSES[loss].required)
        items.append(TrainItem(item.tokens_T, inputs | {name: values[name] for name in wanted}))
    return items


@gpu
@pytest.mark.parametrize("dtype", BOUNDS)
@pytest.mark.parametrize("family", FAMILIES)
def test_forward_and_gradients_are_those_of_fp32_on_the_cpu(
    family: str, dtype: str, tiny_model: Callable[[str], Path]
) -> None:
    near, share = BOUNDS[dtype]
    reference, model = load_model("cpu", str(tiny_model(family)), FP32), on_device(tiny_model(family), dtype)
    assert model.description["device"].startswith(DEVICE)
    first, second = trained(reference, SPEC), model.new_adapter(SPEC)
    second.load(first.export_weights(), first.export_optimizer())
    ours, theirs = (
        adapter.forward_backward(some_items(), "cross_entropy", None, backward=True) for adapter in (second, first)
    )
    for one, other in zip(ours.outputs, theirs.outputs, strict=True):
        np.testing.assert_allclose(one["logprobs"], other["logprobs"], atol=near)
    wanted = gradient(first)
    assert np.linalg.norm(gradient(second) - wanted) <= share * np.linalg.norm(wanted)


@gpu
@pytest.mark.parametrize("dtype", BOUNDS)
def test_a_packed_batch_in_one_call_is_what_padded_sequences_give(
    dtype: str, tiny_model: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = on_device(tiny_model("wide16"), dtype)
    backbone: Any = model._backbone
    if DEVICE == "cpu":
        backbone._flex = flex_on_cpu(monkeypatch)
    else:
        assert model.description["attention"] == "flex", "the log says why not"
    rng = np.random.default_rng(6)
    begin = rng.integers(0, 96, 70)
    rows = [np.concatenate([begin, rng.integers(0, 96, own)]) for own in (40, 90, 130, 20)]
    rows += [rng.integers(0, 96, length) for length in (250, 128, 1)]
    items = [TrainItem(row, {"target_tokens": rng.integers(0, 96, len(row))}) for row in rows]
    weights = trained(model, SPEC).export_weights()

    def run() -> tuple[list[FloatArray], FloatArray]:
        adapter = model.new_adapter(SPEC)
        adapter.load(weights, None)
        result = adapter.forward_backward(items, "cross_entropy", None, backward=True)
        return [output["logprobs"] for output in result.outputs], gradient(adapter)

    (ours, our_gradient), (again, gradient_again) = run(), run()
    assert all(map(np.array_equal, ours, again)), "to the last bit"
    assert np.array_equal(our_gradient, gradient_again), "to the last bit"
    backbone._flex, backbone.longest_tree = None, 0
    theirs, their_gradient = run()
    share = BOUNDS[dtype][1]
    one, other = np.concatenate(ours), np.concatenate(theirs)
    # Measured in bf16: 0.004 apart, and both 0.006 from fp32.
    assert np.linalg.norm(one - other) <= 0.1 * share * np.linalg.norm(other)
    assert np.linalg.norm(our_gradient - their_gradient) <= share * np.linalg.norm(their_gradient)


@gpu
@pytest.mark.parametrize("loss", LOSSES)
def test_every_loss_is_that_of_the_cpu(loss: str, tiny_model: Callable[[str], Path]) -> None:
    models = load_model("cpu", str(tiny_model("qwen3")), FP32), on_device(tiny_model("qwen3"))
    results, gradients = list[float](), list[FloatArray]()
    weights = trained(models[0], SPEC).export_weights()
    for model in models:
        adapter = model.new_adapter(SPEC)
        adapter.load(weights, None)
        results.append(adapter.forward_backward(items_of(loss), loss, None, backward=True).metrics["loss:sum"])
        gradients.append(gradient(adapter))
    assert results[1] == pytest.approx(results[0], rel=1e-3, abs=1e-4)
    np.testing.assert_allclose(gradients[1], gradients[0], atol=2e-3, rtol=1e-2)


@gpu
@pytest.mark.parametrize("group", ["train_attn", "train_mlp", "train_unembed"])
def test_an_adapter_of_each_part_learns(group: str, tiny_model: Callable[[str], Path]) -> None:
    model = on_device(tiny_model("qwen3"), "bfloat16")
    parts = {name: name == group for name in ("train_attn", "train_mlp", "train_unembed")}
    adapter = model.new_adapter(LoraSpec(rank=8, seed=1, **parts))
    losses = list[float]()
    for _ in range(30):
        losses.append(adapter.forward_backward(some_items(), "cross_entropy", None, backward=True).metrics["loss:sum"])
        adapter.optim_step(AdamSettings(learning_rate=0.02))
    assert losses[-1] < 0.9 * losses[0]


@gpu
@pytest.mark.parametrize("dtype", BOUNDS)
@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma2", "gpt2"])
def test_sampled_log_probabilities_are_those_of_training(
    family: str, dtype: str, tiny_model: Callable[[str], Path]
) -> None:
    model = on_device(tiny_model(family), dtype)
    adapter = trained(model, SPEC)
    prompts = [np.arange(3, 3 + length) for length in (4, 11)]
    requests = [SampleSettings(prompt, num_samples=4, max_tokens=12, seed=5) for prompt in prompts]
    for request, output in zip(requests, model.sample(requests, [adapter.weights()] * 2), strict=True):
        for each in output.continuations:
            whole = np.concatenate([request.prompt_T, each.tokens_T])
            item = TrainItem(whole[:-1], {"target_tokens": whole[1:]})
            scored = adapter.forward_backward([item], "cross_entropy", None, backward=False).outputs[0]["logprobs"]
            np.testing.assert_allclose(each.logprobs_T, scored[len(request.prompt_T) - 1 :], atol=BOUNDS[dtype][0])


@gpu
def test_what_was_saved_on_one_device_goes_on_on_the_other(tiny_model: Callable[[str], Path]) -> None:
    here, there = on_device(tiny_model("qwen3")), load_model("cpu", str(tiny_model("qwen3")), FP32)
    begun = trained(here, SPEC)
    moved, kept = there.new_adapter(SPEC), here.new_adapter(SPEC)
    for adapter in (moved, kept):
        adapter.load(begun.export_weights(), begun.export_optimizer())
        adapter.forward_backward(some_items(), "cross_entropy", None, backward=True)
        adapter.optim_step(AdamSettings(learning_rate=0.01))
    for name, tensor in moved.export_weights().items():
        np.testing.assert_allclose(kept.export_weights()[name], tensor, atol=2e-3, err_msg=name)


@gpu
@pytest.mark.parametrize("dtype", BOUNDS)
def test_the_same_steps_give_the_same_bits(dtype: str, tiny_model: Callable[[str], Path]) -> None:
    def run() -> tuple[list[bytes], list[bytes]]:
        model = on_device(tiny_model("qwen3"), dtype)
        adapter = trained(model, SPEC)
        request = SampleSettings(np.arange(9), num_samples=8, max_tokens=16, seed=2)
        (output,) = model.sample([request], [adapter.weights()])
        samples = [each.tokens_T.tobytes() + each.logprobs_T.tobytes() for each in output.continuations]
        return [tensor.tobytes() for tensor in adapter.export_weights().values()], samples

    assert run() == run()


@gpu
@pytest.mark.skipif(DEVICE != "cuda", reason="4-bit weights need a CUDA device")
@pytest.mark.skipif(importlib.util.find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed")
def test_4_bit_weights_train_and_sample(tiny_model: Callable[[str], Path]) -> None:
    model = on_device(tiny_model("wide16"), "bfloat16", quantize="nf4")
    adapter = model.new_adapter(SPEC)
    losses = list[float]()
    for _ in range(10):
        losses.append(adapter.forward_backward(some_items(), "cross_entropy", None, backward=True).metrics["loss:sum"])
        adapter.optim_step(AdamSettings(learning_rate=0.02))
    assert losses[-1] < losses[0]
    (output,) = model.sample([SampleSettings(np.arange(5), max_tokens=4, seed=1)], [adapter.weights()])
    assert np.isfinite(output.continuations[0].logprobs_T).all()


@contextmanager
def little_memory(device: str, more_bytes: int) -> Iterator[None]:
    """Only so much memory beyond what is in use."""
    if device == "cuda":
        torch.cuda.empty_cache()
        total = torch.cuda.mem_get_info()[1]
        torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + more_bytes) / total)
    else:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        limits = resource.getrlimit(resource.RLIMIT_AS)
        resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + more_bytes, limits[1]))
    try:
        yield
    finally:
        if device == "cuda":
            torch.cuda.set_per_process_memory_fraction(1.0)
        else:
            resource.setrlimit(resource.RLIMIT_AS, limits)


def in_use() -> int:
    gc.collect()
    if DEVICE == "cuda":
        torch.cuda.empty_cache()
        return torch.cuda.memory_allocated()
    return 0


@pytest.mark.parametrize("device", ["cpu", pytest.param(DEVICE, marks=gpu, id="device")])
def test_a_step_that_does_not_fit_leaves_the_adapter_as_it_was(device: str, tiny_model: Callable[[str], Path]) -> None:
    model = load_model("m", str(tiny_model("qwen3")), LoadOptions(device=device, dtype="float32", threads=1))
    adapter, twin = trained(model, SPEC), trained(model, SPEC)
    # Scores against many candidates at each place: [T, K] in fp32 is more than there will be.
    rng = np.random.default_rng(0)
    item = TrainItem(rng.integers(0, 96, 60), {"target_tokens": rng.integers(0, 96, (60, 1 << 20))})
    before = in_use()
    with little_memory(device, 64 << 20), pytest.raises(OutOfMemoryError, match="does not fit this machine's memory"):
        adapter.forward_backward([item], "cross_entropy", None, backward=True)
    assert device == "cpu" or in_use() <= before
    for each in (adapter, twin):
        each.forward_backward(some_items(), "cross_entropy", None, backward=True)
        each.optim_step(AdamSettings(learning_rate=0.01))
    ours, theirs = adapter.export_weights(), twin.export_weights()
    assert all(np.array_equal(ours[name], theirs[name]) for name in theirs)
