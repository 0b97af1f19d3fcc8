"""What a sampling request gets does not depend on what else is in the batch, to the last bit."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from engine_reference import some_items, trained

from sota_ml_researcher.engine.compute import kernels
from sota_ml_researcher.engine.compute.attention_layout import Heads, Rotary, make_buckets
from sota_ml_researcher.engine.compute.model import LoadedModel, load_model
from sota_ml_researcher.engine.compute.packed_attention import attention, split
from sota_ml_researcher.engine.compute.packed_cache import Cache
from sota_ml_researcher.engine.compute.row_blocks import RowBlocks
from sota_ml_researcher.engine.interface import (
    AdamSettings,
    LoadOptions,
    LoraSpec,
    SampleAsk,
    SampleOutput,
    SampleSettings,
)


@pytest.fixture
def model(tiny_model: Callable[[str], Path]) -> LoadedModel:
    return load_model("m", str(tiny_model("qwen3")), LoadOptions(dtype="bfloat16"))


def _equal(one: SampleOutput, other: SampleOutput) -> bool:
    if one.prompt_logprobs_T is None or other.prompt_logprobs_T is None:
        same = one.prompt_logprobs_T is other.prompt_logprobs_T
    else:
        same = np.array_equal(one.prompt_logprobs_T, other.prompt_logprobs_T, equal_nan=True)
    return same and all(
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


def _requests(rng: np.random.Generator, count: int) -> list[SampleSettings]:
    """Prompts of many lengths, some of them alike, with and without cuts, scores alone and long answers."""
    common = rng.integers(0, 96, 70)
    lengths = rng.integers(1, 90, count)
    prompts = [np.concatenate([common[: max(0, n - 3)], rng.integers(0, 96, min(n, 3))]) for n in lengths]
    prompts[3] = prompts[1]
    kinds = ({}, {"temperature": 0.0}, {"top_p": 0.8, "temperature": 0.7}, {"top_k": 5}, {"temperature": 1.3})
    return [
        SampleSettings(
            prompt,
            max_tokens=(1, 12, 60)[place % 3],
            num_samples=1 + place % 3,
            seed=place,
            prompt_logprobs=place % 2 == 0,
            **kinds[place % len(kinds)],
        )
        for place, prompt in enumerate(prompts)
    ]


@pytest.mark.parametrize(
    ("head", "dtype", "compiled", "implementation"),
    [
        (16, "float32", True, "auto"),
        (16, "bfloat16", True, "auto"),
        (16, "float32", False, "auto"),
        (16, "bfloat16", False, "auto"),
        (8, "float32", True, "auto"),
        (8, "bfloat16", True, "auto"),
        (16, "float32", True, "transformers"),
    ],
)
def test_samples_do_not_depend_on_who_arrives_when(
    head: int,
    dtype: str,
    compiled: bool,
    implementation: str,
    tiny_model: Callable[[str], Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if not compiled:
        monkeypatch.setattr(kernels, "library", lambda: None)
    options = LoadOptions(dtype=dtype, extra={"implementation": implementation})
    model = load_model("m", str(tiny_model(f"wide{head}")), options)
    weights = trained(model, LoraSpec(rank=8, seed=1)).weights()
    rng = np.random.default_rng(head)
    requests = _requests(rng, 18)
    waiting = [SampleAsk(place, request, weights) for place, request in enumerate(requests)]
    found: dict[int, SampleOutput] = {}

    def arrivals() -> list[SampleAsk]:
        count = int(rng.choice([0, 0, 0, 0, 0, 1, 2]))
        come, waiting[:count] = waiting[:count], []
        return come

    while waiting:
        model.sample_stream([waiting.pop(0)], arrivals, found.__setitem__)
    for place, request in enumerate(requests):
        (alone,) = model.sample([request], [weights])
        assert _equal(alone, found[place]), (place, request.max_tokens)


def test_requests_go_one_by_one_where_rows_would_not_agree(
    tiny_model: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where no block of rows holds, no two requests are ever in one batch."""
    monkeypatch.setattr(RowBlocks, "agreeing", lambda *_: None)
    model = load_model("m", str(tiny_model("qwen3")), LoadOptions(dtype="float32"))
    assert model.description["batch_invariant"] is False
    backbone, rows = model._backbone, []  # pyright: ignore[reportPrivateUsage]
    plain = backbone.step
    monkeypatch.setattr(backbone, "step", lambda s, tokens, lora: rows.append(len(tokens)) or plain(s, tokens, lora))
    rng = np.random.default_rng(0)
    requests = [SampleSettings(rng.integers(0, 96, 7), max_tokens=5, num_samples=2, seed=n) for n in range(4)]
    for request, output in zip(requests, model.sample(requests, [None] * 4), strict=True):
        assert max(rows) == 2
        (alone,) = model.sample([request], [None])
        for mine, theirs in zip(alone.continuations, output.continuations, strict=True):
            assert np.array_equal(mine.logprobs_T, theirs.logprobs_T)
