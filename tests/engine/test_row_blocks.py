"""Rows that are computed together get what each gets alone, to the last bit."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from sota_ml_researcher.engine.compute.backbone import ActiveLora, Head, LoraPair
from sota_ml_researcher.engine.compute.head import LoraHead
from sota_ml_researcher.engine.compute.packed_layers import Linear, Lora, can_pack, layer_blocks, lora_forward, pack
from sota_ml_researcher.engine.compute.row_blocks import EVERY_SIZE, REFERENCE, RowBlocks, zero_sums
from sota_ml_researcher.engine.compute.sampling_choice import Cuts, choose

WITHOUT_ONEDNN = "this build of torch does not keep matrices in oneDNN's order, so there is nothing to test"
PACKED = pytest.param("packed", marks=pytest.mark.skipif(not can_pack(), reason=WITHOUT_ONEDNN))
COUNTS = (*range(1, 21), 33, 57, 130, 257)


def _draw(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


@pytest.mark.parametrize("kind", ["float32", "bfloat16", PACKED])
@pytest.mark.parametrize("shape", [(512, 512), (1000, 777), (1536, 64), (64, 130)])
def test_a_layer_with_lora_gives_each_row_the_same(kind: str, shape: tuple[int, int]) -> None:
    dtype = torch.float32 if kind == "float32" else torch.bfloat16
    inner, width = shape
    x, weight = zero_sums(300, inner, width, torch.empty(0, dtype=dtype))
    held = (pack(weight), pack(weight.t())) if kind == "packed" else None
    linear = Linear(None if held else weight, None, ("q", "k"), (width // 2, width - width // 2), held, inner)
    pairs = {
        name: LoraPair(_draw(6, inner, dtype=dtype), _draw(wide, 6, dtype=dtype))
        for name, wide in zip(linear.names, linear.widths, strict=True)
    }
    lora = ActiveLora(pairs, 4.0)
    blocks = layer_blocks(linear, lora, EVERY_SIZE)
    assert blocks is not None
    active = Lora.of(linear, lora)
    every = blocks.apply(lambda rows: lora_forward(rows, linear, active)[0], x)
    for count in COUNTS:
        for first in (0, 5, 41):
            some = blocks.apply(lambda rows: lora_forward(rows, linear, active)[0], x[first : first + count])
            assert torch.equal(some, every[first : first + count]), (count, first)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("vocabulary", [100, 32_000])
@pytest.mark.parametrize("softcap", [None, 30.0])
def test_logits_with_lora_are_the_same_for_each_row(dtype: torch.dtype, vocabulary: int, softcap: float | None) -> None:
    x, weight = zero_sums(100, 512, vocabulary, torch.empty(0, dtype=dtype))
    pair = LoraPair(_draw(8, 512, dtype=dtype), _draw(vocabulary, 8, dtype=dtype))
    head = LoraHead(Head("lm_head", weight, softcap=softcap), pair, 4.0)
    blocks = head.agreeing(EVERY_SIZE)
    assert blocks is not None
    held = LoraHead(head.head, pair, 4.0, blocks)
    every = held.logits(x)
    rows, targets = torch.arange(100), torch.arange(100)
    scores = held.score(x, rows, targets, keep=False).logprobs_M
    for count in (1, 2, 7, 15, 16, 17, 33):
        assert torch.equal(held.logits(x[5 : 5 + count]), every[5 : 5 + count])
        some = held.score(x[5 : 5 + count], rows[:count], targets[5 : 5 + count], keep=False).logprobs_M
        assert torch.equal(some, scores[5 : 5 + count])


def test_a_trial_finds_another_order_of_adding_up() -> None:
    x, weight = zero_sums(REFERENCE, 64, 24, torch.empty(0, dtype=torch.bfloat16))

    def product(rows: Tensor) -> Tensor:
        if len(rows) < 64:
            return F.linear(rows, weight)
        return F.linear(rows.flip(1), weight.flip(1))

    fine = EVERY_SIZE.agreeing(lambda rows: (rows.float()[:, None] * weight.float()).sum(-1).bfloat16(), x)
    assert fine == EVERY_SIZE
    found = EVERY_SIZE.agreeing(product, x)
    assert found is not None
    assert max(found.sizes) == 32
    assert EVERY_SIZE.agreeing(lambda rows: rows * torch.arange(len(rows))[:, None], x) is None


@pytest.mark.parametrize("sizes", [(16,), (2, 16, 32), (8, 16, 32, 64, 128)])
def test_blocks_cover_every_row_once_and_in_order(sizes: tuple[int, ...]) -> None:
    seen: list[int] = []

    def twice(rows: Tensor, others: Tensor) -> Tensor:
        seen.append(len(rows))
        return rows + others

    for count in (*range(1, 70), 200):
        seen.clear()
        rows = torch.arange(count, dtype=torch.float32)[:, None]
        assert torch.equal(RowBlocks(sizes).apply(twice, rows, rows), 2 * rows)
        assert set(seen) <= set(sizes)
        assert sum(seen) < max(count + REFERENCE, 1.3 * count)


@pytest.mark.parametrize("vocabulary", [100, 50_257])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_draw_does_not_depend_on_what_the_others_ask_for(vocabulary: int, dtype: torch.dtype) -> None:
    settings = [(1.0, 1.0, -1), (0.7, 1.0, -1), (0.0, 1.0, -1), (1.0, 0.8, -1), (0.7, 0.9, 40), (1.0, 1.0, 3)]
    asked = [settings[place % len(settings)] for place in range(18)]
    logits = _draw(18, vocabulary, dtype=dtype) * 3
    uniform = torch.rand(18, generator=torch.Generator().manual_seed(1), dtype=torch.float64)

    def drawn(rows: list[int]) -> tuple[Tensor, Tensor]:
        columns = ([asked[row][field] for row in rows] for field in range(3))
        cuts = Cuts.of(*columns, vocabulary, torch.device("cpu"))  # pyright: ignore[reportArgumentType]
        return choose(logits[rows].contiguous(), cuts, uniform[rows])

    tokens, logprobs = drawn(list(range(18)))
    for rows in ([0], [1, 7], [2, 3], [0, 6, 12], [4, 5, 9, 10, 11], list(range(1, 16))):
        some, values = drawn(rows)
        assert torch.equal(some, tokens[rows])
        assert torch.equal(values, logprobs[rows]), rows
