"""What a sampling request gets does not depend on what else is in the batch, to the last bit."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from engine_reference import some_items

from sota_ml_researcher.engine.compute.attention_layout import Heads, Rotary, make_buckets
from sota_ml_researcher.engine.compute.model import LoadedModel, load_model
from sota_ml_researcher.engine.compute.packed_attention import attention, split
from sota_ml_researcher.engine.compute.packed_cache import Cache
from sota_ml_researcher.engine.interface import AdamSettings, LoadOptions, LoraSpec, SampleOutput, SampleSettings


@pytest.fixture
def model(tiny_model: Callable[[str], Path]) -> LoadedModel:
    loaded = load_model("m", str(tiny_model("qwen3")), LoadOptions(dtype="bfloat16"))
    if not loaded.description["batch_invariant"]:
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


def _unrotated(qkv: torch.Tensor) -> Rotary:
    """The rotation at position 0 of heads of 8."""
    return Rotary(torch.ones(len(qkv), 1, 8), torch.zeros(len(qkv), 1, 8))


@pytest.mark.parametrize("window", [None, 6])
def test_attention_without_compiled_loops_is_the_same_alone_and_in_a_crowd(window: int | None) -> None:
    """Prompts of several lengths, rows that join late and rows that end: each prompt's rows get what they get alone."""
    heads = Heads(4, 2, 8, 8**-0.5, window)
    cpu, rng = torch.device("cpu"), torch.Generator().manual_seed(0)

    def drawn(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=rng)

    def started(places: Sequence[int]) -> Cache:
        cache = Cache(1, [lengths[i] for i in places], [repeats[i] for i in places], 40, heads, torch.float32, cpu)
        cache.fill(0, torch.cat([prompts[i][0] for i in places]), torch.cat([prompts[i][1] for i in places]))
        return cache

    lengths, repeats = [3, 17, 9, 30, 5], [4, 1, 4, 2, 3]
    prompts = [(drawn(length, 2, 8), drawn(length, 2, 8)) for length in lengths]
    steps = [[drawn(rows, 8 * 8) for rows in repeats] for _ in range(70)]
    crowd, alone = started([0, 1, 2]), [started([i]) for i in range(5)]
    inside = [0, 1, 2]
    for number, step in enumerate(steps):
        if number == 7:
            crowd.join(started([3, 4]))
            inside = [0, 1, 2, 3, 4]
        if number == 20:  # the first prompt's rows have ended
            crowd.keep(torch.arange(4, crowd.rows))
            inside = [1, 2, 3, 4]
        crowd.advance()
        qkv = torch.cat([step[i] for i in inside])
        whole = crowd.attend(0, qkv, _unrotated(qkv), heads)
        # Accelerators compute all of them in one product.
        queries = qkv[:, : 4 * 8].mul(heads.scale).view(crowd.rows, 2, 2, 8)
        torch.testing.assert_close(crowd._attend_together(crowd._layers[0], queries, heads), whole)
        found = whole.split([repeats[i] for i in inside])
        for place, mine in zip(inside, found, strict=True):
            alone[place].advance()
            expected = alone[place].attend(0, step[place], _unrotated(step[place]), heads)
            assert torch.equal(mine, expected), (number, place)


def test_prompts_without_compiled_loops_are_read_the_same_alone_and_in_a_crowd() -> None:
    heads = Heads(4, 2, 8, 8**-0.5)
    rng = torch.Generator().manual_seed(1)
    lengths = [20, 21, 19, 3, 3, 40]
    qkv = torch.randn(sum(lengths), 8 * 8, generator=rng)

    def read(part: torch.Tensor, lengths: Sequence[int]) -> torch.Tensor:
        buckets = make_buckets(lengths, torch.device("cpu"), apart=True)
        return attention(split(part, _unrotated(part), heads), buckets)

    for mine, own, length in zip(read(qkv, lengths).split(lengths), qkv.split(lengths), lengths, strict=True):
        assert torch.equal(mine, read(own, [length]))


def test_few_rows_are_computed_as_many_are(tiny_model: Callable[[str], Path]) -> None:
    """In fp32 a CPU's products of one to five rows round differently: a sample must not know how many are left."""
    model = load_model("m", str(tiny_model("qwen3")), LoadOptions(dtype="float32"))
    rng = np.random.default_rng(0)
    requests = [
        SampleSettings(rng.integers(0, 96, 5 + n), max_tokens=6 + n, num_samples=1, seed=n, prompt_logprobs=True)
        for n in range(12)
    ]
    together = model.sample(requests, [None] * len(requests))
    for request, output in zip(requests, together, strict=True):
        (alone,) = model.sample([request], [None])
        assert _equal(alone, output), len(request.prompt_T)
