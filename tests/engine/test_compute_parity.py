"""The engine's forward, gradients and exports against transformers + PEFT on the same weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from engine_reference import FP32, THROUGH_TRANSFORMERS, peft_model, reference_loss, some_items, trained
from transformers import AutoModelForCausalLM

from sota_ml_researcher.engine.compute.model import load_model
from sota_ml_researcher.engine.interface import AdamSettings, LoraSpec, SampleSettings, TrainItem

FAMILIES = ["llama", "qwen2", "qwen3", "qwen3_moe", "gemma", "gemma2", "phi", "phi3", "mistral", "gpt2"]


@pytest.mark.parametrize("family", FAMILIES)
def test_logprobs_and_gradients_equal_those_of_peft_on_the_exported_adapter(
    family: str, tiny_model: Callable[[str], Path], tmp_path: Path
) -> None:
    base = tiny_model(family)
    model = load_model(family, str(base), FP32)
    adapter = trained(model, LoraSpec(rank=4, seed=1))
    result = adapter.forward_backward(some_items(), "cross_entropy", None, backward=True)
    peer = peft_model(model, adapter, base, tmp_path)
    loss, logprobs = reference_loss(peer, some_items())
    loss.backward()

    assert result.metrics["loss:sum"] == pytest.approx(loss.item(), rel=1e-5)
    for ours, theirs in zip(result.outputs, logprobs, strict=True):
        np.testing.assert_allclose(ours["logprobs"], theirs.detach().numpy(), atol=1e-4)
    gradients = adapter._layout.export(adapter._grad_P)
    seen = 0
    for name, parameter in peer.named_parameters():
        if "lora_" in name:
            ours = gradients[name.replace(".default", "")]
            np.testing.assert_allclose(ours, parameter.grad.numpy(), atol=2e-4, rtol=2e-4, err_msg=name)
            seen += 1
    assert seen == len(gradients)


@pytest.mark.parametrize("family", FAMILIES)
def test_sampled_logprobs_equal_those_of_a_training_forward(family: str, tiny_model: Callable[[str], Path]) -> None:
    model = load_model(family, str(tiny_model(family)), FP32)
    adapter = trained(model, LoraSpec(rank=4, seed=1))
    rng = np.random.default_rng(0)
    requests = [
        SampleSettings(rng.integers(0, 96, length), num_samples=3, max_tokens=9, seed=5, prompt_logprobs=True)
        for length in (4, 11, 4)
    ]
    outputs = model.sample(requests, [adapter.weights()] * 3)
    for request, output in zip(requests, outputs, strict=True):
        for continuation in output.continuations:
            whole = np.concatenate([request.prompt_T, continuation.tokens_T])
            item = TrainItem(whole[:-1], {"target_tokens": whole[1:]})
            scored = adapter.forward_backward([item], "cross_entropy", None, backward=False).outputs[0]["logprobs"]
            start = len(request.prompt_T) - 1
            np.testing.assert_allclose(continuation.logprobs_T, scored[start:], atol=1e-4)
            assert output.prompt_logprobs_T is not None and np.isnan(output.prompt_logprobs_T[0])
            np.testing.assert_allclose(output.prompt_logprobs_T[1:], scored[:start], atol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_packed_and_the_transformers_forward_agree(family: str, tiny_model: Callable[[str], Path]) -> None:
    base = str(tiny_model(family))
    spec = LoraSpec(rank=3, seed=2)
    fast, plain = load_model("fast", base, FP32), load_model("plain", base, THROUGH_TRANSFORMERS)
    assert plain.description["implementation"] == "transformers"
    first, second = fast.new_adapter(spec), plain.new_adapter(spec)
    for _ in range(3):
        ours = first.forward_backward(some_items(), "cross_entropy", None, backward=True)
        theirs = second.forward_backward(some_items(), "cross_entropy", None, backward=True)
        assert ours.metrics["loss:sum"] == pytest.approx(theirs.metrics["loss:sum"], rel=1e-5)
        norms = [adapter.optim_step(AdamSettings(0.01, eps=1e-4))["grad_norm"] for adapter in (first, second)]
        assert norms[0] == pytest.approx(norms[1], rel=1e-4)


def test_training_one_group_leaves_the_other_groups_out(tiny_model: Callable[[str], Path]) -> None:
    model = load_model("m", str(tiny_model("qwen3")), FP32)
    names = {}
    for group in ("train_attn", "train_mlp", "train_unembed"):
        spec = LoraSpec(rank=2, **{key: key == group for key in ("train_attn", "train_mlp", "train_unembed")})
        names[group] = {name.split(".")[-3] for name in model.new_adapter(spec).export_weights()}
    assert names == {
        "train_attn": {"q_proj", "k_proj", "v_proj", "o_proj"},
        "train_mlp": {"gate_proj", "up_proj", "down_proj"},
        "train_unembed": {"lm_head"},
    }


def test_adapting_a_tied_unembedding_leaves_the_input_embedding_alone(tiny_model: Callable[[str], Path]) -> None:
    model = load_model("m", str(tiny_model("qwen2")), FP32)
    adapter = trained(model, LoraSpec(rank=2, seed=0, train_attn=False, train_mlp=False))
    item = some_items()[1]
    plain = AutoModelForCausalLM.from_pretrained(tiny_model("qwen2"), dtype=torch.float32)
    hidden = plain.base_model(input_ids=torch.from_numpy(item.tokens_T)[None]).last_hidden_state[0]
    tensors = adapter.export_weights()
    a, b = (torch.from_numpy(tensors[f"base_model.model.lm_head.lora_{side}.weight"]) for side in "AB")
    logits = hidden @ (plain.lm_head.weight + 16.0 * b @ a).t()
    expected = torch.log_softmax(logits, -1).gather(1, torch.from_numpy(item.loss_inputs["target_tokens"])[:, None])
    result = adapter.forward_backward([item], "cross_entropy", None, backward=False)
    np.testing.assert_allclose(result.outputs[0]["logprobs"], expected[:, 0].detach().numpy(), atol=1e-4)
