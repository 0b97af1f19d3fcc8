"""What a sampling request gets does not depend on what else is in the batch, to the last bit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from engine_reference import some_items

from sota_ml_researcher.engine.interface import AdamSettings, LoadOptions, LoraSpec, SampleOutput, SampleSettings
from sota_ml_researcher.engine.model import LoadedModel, load_model


@pytest.fixture
def model(tiny_model: Callable[[str], Path]) -> LoadedModel:
    loaded = load_model("m", str(tiny_model("qwen3")), LoadOptions(dtype="bfloat16"))
    if not loaded.description["rows_alone"]:
        pytest.skip("products on this machine depend on the number of rows, and the engine says so")
    return loaded


def _equal(one: SampleOutput, other: SampleOutput) -> bool:
    if one.prompt_logprobs_T is None or other.prompt_logprobs_T is None:
        return False
    return np.array_equal(one.prompt_logprobs_T, other.prompt_logprobs_T, equal_nan=True) and all(
        np.array_equal(mine.tokens_T, theirs.tokens_T) and np.array_equal(mine.logprobs_T, theirs.logprobs_T)
        for mine, theirs in zip(one.continuations, other.continuations, strict=True)
    )


def test_a_request_gets_the_same_alone_and_in_a_crowd(model: LoadedModel) -> None:
    adapter = model.new_adapter(LoraSpec(rank=4, seed=1))
    adapter.forward_backward(some_items(), "cross_entropy", None, backward=True)
    adapter.optim_step(AdamSettings(0.05))
    weights = adapter.weights()
    rng = np.random.default_rng(0)
    common = rng.integers(0, 96, 40)
    requests = [
        SampleSettings(
            np.concatenate([common[:shared], rng.integers(0, 96, own)]),
            max_tokens=new,
            num_samples=2,
            seed=3,
            prompt_logprobs=True,
        )
        for shared, own in ((40, 1), (40, 7), (40, 8), (33, 20), (0, 5), (9, 2), (12, 40), (0, 58), (0, 57))
        for new in (1, 6)
    ]
    together = model.sample(requests, [weights] * len(requests))
    for request, output in zip(requests, together, strict=True):
        (alone,) = model.sample([request], [weights])
        assert _equal(alone, output), (len(request.prompt_T), request.max_tokens)


def test_scores_share_what_prompts_begin_with(model: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """32 prompts of 50 tokens that differ in the last ten are not 1,600 tokens of work."""
    seen: list[int] = []
    backbone = model._backbone  # pyright: ignore[reportPrivateUsage]
    plain = backbone.hidden
    monkeypatch.setattr(backbone, "hidden", lambda batch, lora: seen.append(len(batch.tokens_N)) or plain(batch, lora))
    rng = np.random.default_rng(0)
    common = rng.integers(0, 96, 40)
    prompts = [np.concatenate([common, rng.integers(0, 96, 10)]) for _ in range(32)]
    model.sample([SampleSettings(prompt, max_tokens=1, prompt_logprobs=True) for prompt in prompts], [None] * 32)
    assert sum(seen) == 40 + 32 * 10
