"""Tiny data and adapters, and PEFT on the same weights, for tests of the engine's arithmetic."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file
from transformers import AutoModelForCausalLM

from sota_ml_researcher.engine.compute.adapter import TrainedAdapter
from sota_ml_researcher.engine.compute.model import LoadedModel
from sota_ml_researcher.engine.interface import AdamSettings, LoadOptions, LoraSpec, TrainItem

LENGTHS = (5, 17, 12, 1)
FP32 = LoadOptions(device="cpu", dtype="float32", threads=1)
THROUGH_TRANSFORMERS = LoadOptions(device="cpu", dtype="float32", threads=1, extra={"implementation": "transformers"})


def some_items(vocabulary: int = 96, lengths: tuple[int, ...] = LENGTHS) -> list[TrainItem]:
    rng = np.random.default_rng(3)
    return [
        TrainItem(
            rng.integers(0, vocabulary, length),
            {
                "target_tokens": rng.integers(0, vocabulary, length),
                "weights": (rng.random(length) * (rng.random(length) > 0.4)).astype(np.float32),
            },
        )
        for length in lengths
    ]


def trained(model: LoadedModel, spec: LoraSpec) -> TrainedAdapter:
    """An adapter a few steps in, so that B is no longer zero."""
    adapter = model.new_adapter(spec)
    for _ in range(2):
        adapter.forward_backward(some_items(), "cross_entropy", None, backward=True)
        adapter.optim_step(AdamSettings(learning_rate=0.02))
    return adapter


def flex_on_cpu(monkeypatch: pytest.MonkeyPatch) -> Any:
    """FlexAttention traced and run as it is, with gradients: torch has them for a CPU too, and refuses them there."""
    import torch.nn.attention.flex_attention as flex

    monkeypatch.setattr(flex, "_validate_device", lambda *_: None)
    limits: Any = torch._dynamo.config
    limits.recompile_limit = 64
    return torch.compile(flex.flex_attention, backend="eager", dynamic=True, fullgraph=True)


def peft_model(model: LoadedModel, adapter: TrainedAdapter, base: Path, folder: Path):
    from peft import PeftModel

    config = model.adapter_config(adapter.spec)
    (folder / "adapter_config.json").write_text(json.dumps(config))
    save_file(adapter.export_weights(), folder / "adapter_model.safetensors")
    plain = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    return PeftModel.from_pretrained(plain, str(folder), is_trainable=True).eval()


def reference_loss(model: torch.nn.Module, items: list[TrainItem]) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """-sum(w log p) one sequence at a time, and each sequence's log-probabilities."""
    total, all_logprobs = torch.zeros(()), []
    for item in items:
        logits = model(input_ids=torch.from_numpy(item.tokens_T)[None]).logits[0].float()
        targets = torch.from_numpy(item.loss_inputs["target_tokens"])[:, None]
        logprobs = torch.log_softmax(logits, dim=-1).gather(1, targets)[:, 0]
        total = total - (logprobs * torch.from_numpy(item.loss_inputs["weights"])).sum()
        all_logprobs.append(logprobs)
    return total, all_logprobs
