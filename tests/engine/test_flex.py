"""FlexAttention over a packed batch against padded sequences: on a CPU uncompiled, where torch runs it densely."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from engine_reference import FP32, flex_on_cpu, some_items, trained
from torch.nn.attention.flex_attention import create_mask, flex_attention

from sota_ml_researcher.engine.compute import flex
from sota_ml_researcher.engine.compute.attention_layout import Heads, attention_span
from sota_ml_researcher.engine.compute.model import LoadedModel, load_model
from sota_ml_researcher.engine.compute.packing import PackedTokens
from sota_ml_researcher.engine.interface import FloatArray, LoadOptions, LoraSpec, TrainItem

HOST = torch.device("cpu")
HEADS = Heads(query=4, key=2, size=16, scale=0.25)


@pytest.fixture
def attend_by_flex(monkeypatch: pytest.MonkeyPatch) -> Any:
    return flex_on_cpu(monkeypatch)


def batch_of(
    prefix: int, branches: tuple[int, ...], alone: tuple[int, ...], device: torch.device = HOST
) -> PackedTokens:
    """Sequences that stand alone, then a tree."""
    positions = [torch.arange(length) for length in (*alone, prefix)]
    positions += [torch.arange(prefix, prefix + length) for length in branches]
    zeros = torch.zeros(sum(alone) + prefix, dtype=torch.long)
    own = [torch.full((length,), branch) for branch, length in enumerate(branches, start=1)]
    lengths = (*alone, prefix + sum(branches))
    placed = torch.cat(positions).to(device)
    return PackedTokens(placed, placed, lengths, torch.cat([zeros, *own]).to(device))


def seen_by_definition(batch: PackedTokens, window: int | None) -> torch.Tensor:
    """[N, N]: the same tree, not later, on the prefix or the same branch, and within the window."""
    assert batch.branches_N is not None
    tree = torch.arange(len(batch.lengths)).repeat_interleave(torch.tensor(batch.lengths))
    place, branch, position = torch.arange(len(tree)), batch.branches_N, batch.positions_N
    seen = (tree[:, None] == tree) & (place <= place[:, None]) & ((branch == 0) | (branch == branch[:, None]))
    return seen if window is None else seen & (position[:, None] - position < window)


@pytest.mark.parametrize("window", [None, 1, 30, 200])
@pytest.mark.parametrize(
    ("prefix", "branches", "alone"),
    [(140, (3, 150, 90), (128, 7, 300)), (40, (20, 30), ()), (128, (128, 128), (128,)), (1, (1, 1), (1,))],
)
def test_the_block_mask_is_what_each_token_sees(
    prefix: int, branches: tuple[int, ...], alone: tuple[int, ...], window: int | None
) -> None:
    batch = batch_of(prefix, branches, alone)
    total = len(batch.tokens_N)
    mask = flex.block_mask(attention_span(batch, window))
    wanted = seen_by_definition(batch, window)
    assert torch.equal(create_mask(mask.mask_mod, None, None, total, total, "cpu")[0, 0], wanted)
    count = -(-total // 128)
    padded = torch.zeros(count * 128, count * 128, dtype=torch.bool)
    padded[:total, :total] = wanted
    blocks = padded.view(count, 128, count, 128)
    assert torch.equal(mask.to_dense()[0, 0].bool(), blocks.any(3).any(1)), "every block with something to see"
    assert mask.full_kv_num_blocks is not None
    assert mask.full_kv_indices is not None
    for row in range(count):
        whole = mask.full_kv_indices[0, 0, row, : mask.full_kv_num_blocks[0, 0, row]]
        assert blocks[row][:, whole].all(), "no token is asked in a block that is seen whole"


def test_a_block_mask_is_made_without_asking_the_device() -> None:
    batch = batch_of(140, (3, 150), (128, 7), torch.device("meta"))  # a device that cannot answer
    assert flex.block_mask(attention_span(batch, 30)).shape == (1, 1, 428, 428)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("key", [2, 4])
def test_the_trial_passes_attention_that_agrees(key: int, dtype: torch.dtype, attend_by_flex: Any) -> None:
    heads = Heads(query=4, key=key, size=16, scale=0.25)
    assert flex.trouble(attend_by_flex, heads, dtype, HOST) is None


def test_the_trial_finds_attention_that_is_wrong(attend_by_flex: Any) -> None:
    def without_mask(*qkv: Any, **options: Any) -> Any:
        return attend_by_flex(*qkv, **{**options, "block_mask": None})

    def not_a_number(*qkv: Any, **options: Any) -> Any:
        return attend_by_flex(*qkv, **options) * float("nan")

    def wrong_gradient(*qkv: Any, **options: Any) -> Any:
        out = attend_by_flex(*qkv, **options)
        return out + (out - out.detach())

    def raises(*_qkv: Any, **_options: Any) -> Any:
        raise ImportError("No module named 'triton'\nand more")

    for attend in (without_mask, not_a_number, wrong_gradient):
        assert (flex.trouble(attend, HEADS, torch.bfloat16, HOST) or "").startswith("it is off by ")
    assert flex.trouble(raises, HEADS, torch.bfloat16, HOST) == "ImportError: No module named 'triton'"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_where_it_does_not_work_one_line_says_why(caplog: pytest.LogCaptureFixture) -> None:
    assert flex.compiled(HEADS, torch.float32, torch.device("cuda")) is None
    (line,) = caplog.messages
    assert line.startswith("FlexAttention does not work here (")
    assert "CUDA" in line
    caplog.set_level(logging.DEBUG)
    assert flex.compiled(HEADS, torch.float32, HOST) is None
    assert caplog.messages == [line], "nothing is lost on a CPU, and nothing said"


@pytest.mark.usefixtures("attend_by_flex")
def test_batches_of_every_shape_share_their_compiled_versions() -> None:
    graphs = list[Any]()

    def backend(graph: Any, _inputs: Any) -> Any:
        graphs.append(graph)
        return graph

    attend = torch.compile(flex_attention, backend=backend, dynamic=True, fullgraph=True)
    assert flex.trouble(attend, HEADS, torch.float32, HOST) is None
    compiled = len(graphs)
    for prefix, branches, alone, window in (
        (9, (200, 5), (77, 130), None),
        (30, (20, 21), (500,), 17),
        (5, (9, 9), (), 4),
    ):
        bucket = flex.flex_bucket(batch_of(prefix, branches, alone), {window}, attend)
        rng = torch.Generator().manual_seed(1)
        qkv = torch.randn(bucket.length, 8 * 16, generator=rng, requires_grad=True)
        rotary = flex.Rotary(torch.ones(bucket.length, 1, 16), torch.zeros(bucket.length, 1, 16))
        heads = Heads(query=4, key=2, size=16, scale=0.25, window=window)
        flex.Attention.apply(qkv, rotary, heads, [bucket]).sum().backward()
    assert len(graphs) == compiled, "the trial compiles all that training needs"


def _shared_items() -> list[TrainItem]:
    """Two groups that begin alike, and sequences of other lengths."""
    rng = np.random.default_rng(4)
    common = rng.integers(0, 96, 30)
    tokens = [np.concatenate([common, rng.integers(0, 96, own)]) for own in (9, 14, 20)]
    items = [TrainItem(each, {"target_tokens": rng.integers(0, 96, len(each))}) for each in tokens]
    return items + some_items(lengths=(61, 17, 1, 44))


def _outcome(model: LoadedModel, weights: Any) -> tuple[list[FloatArray], FloatArray]:
    adapter = model.new_adapter(LoraSpec(rank=4, seed=1))
    adapter.load(weights, None)
    result = adapter.forward_backward(_shared_items(), "cross_entropy", None, backward=True)
    assert adapter._grad_P is not None
    return [output["logprobs"] for output in result.outputs], adapter._grad_P.numpy()


@pytest.mark.parametrize(
    ("family", "dtype"),
    [
        ("qwen3", "float32"),
        ("qwen3", "bfloat16"),
        ("mistral", "float32"),
        ("mistral", "bfloat16"),
        ("gemma", "float32"),
    ],
)
def test_a_model_trains_the_same_through_it(
    family: str,
    dtype: str,
    tiny_model: Callable[[str], Path],
    attend_by_flex: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    weights = trained(load_model("m", str(tiny_model(family)), FP32), LoraSpec(rank=4, seed=1)).export_weights()
    model = load_model("m", str(tiny_model(family)), LoadOptions(device="cpu", dtype=dtype, threads=1))
    assert model.description["attention"] == "padded"
    plain, plain_gradient = _outcome(model, weights)
    called = list[int]()

    def attend(*qkv: torch.Tensor, **options: Any) -> Any:
        called.append(qkv[0].shape[2])
        return attend_by_flex(*qkv, **options)

    monkeypatch.setattr(model._backbone, "_flex", attend)
    ours, gradient = _outcome(model, weights)
    assert len(called) == 4, "forward and backward of two layers, all sequences at once"
    assert called[0] < sum(len(item.tokens_T) for item in _shared_items()), "what they share is there once"
    near, share = (2e-5, 1e-5) if dtype == "float32" else (0.1, 0.03)
    for one, other in zip(ours, plain, strict=True):
        np.testing.assert_allclose(one, other, atol=near)
    assert np.linalg.norm(gradient - plain_gradient) <= share * np.linalg.norm(plain_gradient)
