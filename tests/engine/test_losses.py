"""Each loss and its gradient against torch autograd on PEFT, from the documented formula and nothing of ours."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from engine_reference import FP32, peft_model, some_items, trained

from sota_ml_researcher.engine.compute.custom_loss import compile_custom_loss
from sota_ml_researcher.engine.compute.model import load_model
from sota_ml_researcher.engine.interface import AdamSettings, LoraSpec, LossResult, RequestRejectedError, TrainItem

Reference = Callable[[torch.Tensor, dict[str, torch.Tensor]], torch.Tensor]


def policy_items(*, mask: bool = False, thresholds: bool = False) -> list[TrainItem]:
    """Sequences with the sampler's log-probabilities and advantages of both signs; ratios on both sides of any clip."""
    rng = np.random.default_rng(11)
    items = []
    for item in some_items():
        length = len(item.tokens_T)
        inputs: dict[str, Any] = {"target_tokens": item.loss_inputs["target_tokens"]}
        inputs["logprobs"] = rng.normal(-4.6, 0.6, length).astype(np.float32)
        inputs["advantages"] = rng.normal(0, 1, length).astype(np.float32)
        if mask:
            inputs["sequence_ratio_mask"] = (rng.random(length) > 0.3).astype(np.float32)
        if thresholds:
            inputs["clip_low_threshold"] = np.full(length, 0.7, np.float32)
            inputs["clip_high_threshold"] = np.full(length, 1.1, np.float32)
        items.append(TrainItem(item.tokens_T, inputs))
    return items


def importance_sampling(p: torch.Tensor, x: dict[str, torch.Tensor]) -> torch.Tensor:
    return -(torch.exp(p - x["logprobs"]) * x["advantages"]).sum()


def ppo(low: float, high: float) -> Reference:
    def loss(p: torch.Tensor, x: dict[str, torch.Tensor]) -> torch.Tensor:
        ratio = torch.exp(p - x["logprobs"])
        clipped = torch.clamp(ratio, low, high)
        return -torch.min(ratio * x["advantages"], clipped * x["advantages"]).sum()

    return loss


def cispo(low: float, high: float) -> Reference:
    def loss(p: torch.Tensor, x: dict[str, torch.Tensor]) -> torch.Tensor:
        weight = torch.clamp(torch.exp(p - x["logprobs"]), low, high).detach()
        return -(weight * p * x["advantages"]).sum()

    return loss


def dro(beta: float) -> Reference:
    def loss(p: torch.Tensor, x: dict[str, torch.Tensor]) -> torch.Tensor:
        return -(p * x["advantages"] - 0.5 * beta * (p - x["logprobs"]) ** 2).sum()

    return loss


def gspo(low: float, high: float) -> Reference:
    """The sequence's ratio is the geometric mean over the marked tokens; its gradient goes through each token's own."""

    def loss(p: torch.Tensor, x: dict[str, torch.Tensor]) -> torch.Tensor:
        mask = x["sequence_ratio_mask"]
        mean = ((p.detach() - x["logprobs"]) * mask).sum() / max(1.0, float(mask.sum()))
        ratio = torch.exp(mean + p - p.detach())
        return -torch.min(ratio * x["advantages"], torch.clamp(ratio, low, high) * x["advantages"]).sum()

    return loss


CASES: dict[str, tuple[str, dict[str, float], Reference, dict[str, bool]]] = {
    "importance_sampling": ("importance_sampling", {}, importance_sampling, {}),
    "ppo": ("ppo", {}, ppo(0.8, 1.2), {}),
    "ppo, own bounds": ("ppo", {"clip_low_threshold": 0.5, "clip_high_threshold": 1.05}, ppo(0.5, 1.05), {}),
    "ppo, bounds a datum": ("ppo", {}, ppo(0.7, 1.1), {"thresholds": True}),
    "cispo": ("cispo", {}, cispo(0.0, 4.0), {}),
    "cispo, own bounds": ("cispo", {"clip_low_threshold": 0.9, "clip_high_threshold": 1.1}, cispo(0.9, 1.1), {}),
    "dro": ("dro", {}, dro(0.05), {}),
    "dro, own beta": ("dro", {"beta": 0.5}, dro(0.5), {}),
    "gspo": ("gspo", {}, gspo(1 - 3e-4, 1 + 4e-4), {"mask": True}),
    "gspo, wide bounds": (
        "gspo",
        {"clip_low_threshold": 0.2, "clip_high_threshold": 5.0},
        gspo(0.2, 5),
        {"mask": True},
    ),
}


def check_against(
    reference: Reference, loss: Any, config: dict[str, float], items: list[TrainItem], base: Path, folder: Path
) -> LossResult:
    model = load_model("m", str(base), FP32)
    adapter = trained(model, LoraSpec(rank=4, seed=1))
    result = adapter.forward_backward(items, loss, config or None, backward=True)
    peer = peft_model(model, adapter, base, folder)
    total = torch.zeros(())
    for item in items:
        logits = peer(input_ids=torch.from_numpy(item.tokens_T)[None]).logits[0].float()
        inputs = {key: torch.from_numpy(value) for key, value in item.loss_inputs.items()}
        logprobs = torch.log_softmax(logits, -1).gather(1, inputs["target_tokens"].reshape(len(logits), -1))
        total = total + reference(logprobs.reshape(inputs["target_tokens"].shape), inputs)
    total.backward()
    assert result.metrics["loss:sum"] == pytest.approx(total.item(), rel=2e-5)
    gradients = adapter._layout.export(adapter._grad_P)
    for name, parameter in peer.named_parameters():
        if "lora_" in name:
            ours = gradients[name.replace(".default", "")]
            scale = float(parameter.grad.abs().max())
            np.testing.assert_allclose(
                ours, parameter.grad.numpy(), atol=1e-4 * max(scale, 1e-3), rtol=1e-3, err_msg=name
            )
    return result


@pytest.mark.parametrize("case", CASES)
def test_loss_and_gradient_follow_the_documented_formula(
    case: str, tiny_model: Callable[[str], Path], tmp_path: Path
) -> None:
    loss, config, reference, options = CASES[case]
    check_against(reference, loss, config, policy_items(**options), tiny_model("qwen3"), tmp_path)


def test_cross_entropy_takes_several_weighted_targets_a_position(
    tiny_model: Callable[[str], Path], tmp_path: Path
) -> None:
    rng = np.random.default_rng(2)
    items = []
    for item in some_items():
        shape = (len(item.tokens_T), 3)
        inputs = {"target_tokens": rng.integers(0, 96, shape), "weights": rng.random(shape).astype(np.float32)}
        items.append(TrainItem(item.tokens_T, inputs))
    result = check_against(
        lambda p, x: -(p * x["weights"]).sum(), "cross_entropy", {}, items, tiny_model("qwen3"), tmp_path
    )
    assert result.outputs[1]["logprobs"].shape == items[1].loss_inputs["target_tokens"].shape


def test_a_custom_loss_graph_equals_the_function_it_was_traced_from(
    tiny_model: Callable[[str], Path], tmp_path: Path
) -> None:
    from tinker.lib.public_interfaces.custom_loss import encode_graph, trace_loss

    def loss(logprobs, advantages, logprobs_old):
        ratio = torch.exp(torch.clamp(logprobs - logprobs_old, -2.0, 2.0))
        value = -(ratio * advantages).mean() + 0.1 * (logprobs**2).sum().sqrt()
        return value, {"custom/ratio:mean": ratio.mean()}

    items = []
    for item in policy_items():
        inputs = dict(item.loss_inputs)
        inputs["logprobs_old"] = inputs.pop("logprobs")
        items.append(TrainItem(item.tokens_T, inputs))
    handle = trace_loss(loss, {"logprobs": 1, "advantages": 1, "logprobs_old": 1}, "s")
    graph = [node.model_dump() for node in encode_graph(handle).nodes]
    compiled = compile_custom_loss("loss", [(i.name, i.rank) for i in handle.inputs], graph)
    result = check_against(
        lambda p, x: loss(p, x["advantages"], x["logprobs_old"])[0], compiled, {}, items, tiny_model("qwen3"), tmp_path
    )
    assert 0.1 < result.metrics["custom/ratio:mean"] < 8


@pytest.mark.parametrize(
    "node",
    [
        {"op": "call_function", "name": "x", "target": "os.system", "args": ["true"]},
        {"op": "call_function", "name": "x", "target": "torch.load", "args": ["file"]},
        {"op": "call_function", "name": "x", "target": "builtins.getattr", "args": [{"ref": "logprobs"}, "__class__"]},
        {"op": "call_method", "name": "x", "target": "numpy", "args": [{"ref": "logprobs"}]},
        {"op": "get_attr", "name": "x", "target": "weight", "args": []},
    ],
)
def test_a_custom_loss_reaches_nothing_outside_the_allow_list(node: dict[str, Any]) -> None:
    first = {"op": "placeholder", "name": "logprobs", "target": "logprobs", "args": [], "kwargs": {}}
    with pytest.raises(RequestRejectedError, match="not among the allowed operations"):
        compile_custom_loss("bad", [("logprobs", 1)], [first, node])


def test_gradients_of_several_requests_add_up(tiny_model: Callable[[str], Path]) -> None:
    model, items = load_model("m", str(tiny_model("llama")), FP32), some_items()
    apart, together = (model.new_adapter(LoraSpec(rank=4, seed=1)) for _ in range(2))
    for item in items:
        apart.forward_backward([item], "cross_entropy", None, backward=True)
    together.forward_backward(items, "cross_entropy", None, backward=True)
    np.testing.assert_allclose(apart._grad_P.numpy(), together._grad_P.numpy(), atol=1e-5)


def test_a_refused_request_leaves_the_accumulated_gradient_alone(tiny_model: Callable[[str], Path]) -> None:
    adapter = load_model("m", str(tiny_model("llama")), FP32).new_adapter(LoraSpec(rank=4, seed=1))
    adapter.forward_backward(some_items(), "cross_entropy", None, backward=True)
    before = adapter._grad_P.clone()
    bad = TrainItem(np.array([1, 2]), {"target_tokens": np.array([3, 10**6])})
    with pytest.raises(RequestRejectedError):
        adapter.forward_backward([*some_items(), bad], "cross_entropy", None, backward=True)
    with pytest.raises(RequestRejectedError, match="learning_rate"):
        adapter.optim_step(AdamSettings(float("nan")))
    assert torch.equal(adapter._grad_P, before)


@pytest.mark.parametrize("settings", [{}, {"weight_decay": 0.1}, {"grad_clip_norm": 0.5}, {"beta1": 0.0, "eps": 1e-4}])
def test_the_optimizer_is_adamw(settings: dict[str, float], tiny_model: Callable[[str], Path]) -> None:
    adapter = load_model("m", str(tiny_model("llama")), FP32).new_adapter(LoraSpec(rank=4, seed=1))
    mine = AdamSettings(0.01, **settings)
    reference = torch.nn.Parameter(adapter._weights_P.clone())
    torch_adamw = torch.optim.AdamW(
        [reference], lr=0.01, betas=(mine.beta1, mine.beta2), eps=mine.eps, weight_decay=mine.weight_decay
    )
    for _ in range(4):
        adapter.forward_backward(some_items(), "cross_entropy", None, backward=True)
        reference.grad = adapter._grad_P.clone()
        if mine.grad_clip_norm:
            torch.nn.utils.clip_grad_norm_([reference], mine.grad_clip_norm)
        torch_adamw.step()
        adapter.optim_step(mine)
        torch.testing.assert_close(adapter._weights_P, reference.detach(), atol=2e-6, rtol=1e-5)


def test_fresh_weights_are_as_documented(tiny_model: Callable[[str], Path]) -> None:
    model = load_model("m", str(tiny_model("qwen3")), FP32)
    tensors = model.new_adapter(LoraSpec(rank=8, seed=3)).export_weights()
    again = model.new_adapter(LoraSpec(rank=8, seed=3)).export_weights()
    other = model.new_adapter(LoraSpec(rank=8, seed=4)).export_weights()
    assert model.adapter_config(LoraSpec(rank=8))["lora_alpha"] == 32
    for name, array in tensors.items():
        np.testing.assert_array_equal(array, again[name])
        if "lora_B" in name:
            assert not array.any()
        else:
            bound = 1 / np.sqrt(array.shape[1])
            assert 0.9 * bound < np.abs(array).max() <= bound
            assert abs(array.std() - bound / np.sqrt(3)) < 0.1 * bound
            assert (array != other[name]).any()


def test_training_and_sampling_repeat_bit_for_bit(tiny_model: Callable[[str], Path]) -> None:
    def run() -> tuple[list[float], bytes]:
        adapter = trained(load_model("m", str(tiny_model("qwen3")), FP32), LoraSpec(rank=4, seed=1))
        losses = [
            adapter.forward_backward(policy_items(), "ppo", None, backward=True).metrics["loss:sum"],
            adapter.optim_step(AdamSettings(0.01))["grad_norm"],
        ]
        return losses, adapter._weights_P.numpy().tobytes()

    assert run() == run()
