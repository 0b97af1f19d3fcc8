# pyright: basic
"""The compiled loops beside the same written with torch's operations in fp64 or as the engine falls back to."""

from __future__ import annotations

import logging
import stat
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from sota_ml_researcher.engine.compute import kernels  # noqa: E402
from sota_ml_researcher.engine.compute.attention_layout import Heads, Rotary, make_buckets  # noqa: E402
from sota_ml_researcher.engine.compute.backbone import ActiveLora, LoraPair  # noqa: E402
from sota_ml_researcher.engine.compute.packed_attention import Attention, attention, split  # noqa: E402
from sota_ml_researcher.engine.compute.packed_cache import Cache  # noqa: E402
from sota_ml_researcher.engine.compute.packed_layers import (  # noqa: E402
    Linear,
    Lora,
    lora_backward,
    lora_forward,
    rms_norm,
    rms_norm_backward,
)

needs_kernels = pytest.mark.skipif(kernels.library() is None, reason="no C compiler here")
DTYPES = [torch.float32, torch.bfloat16]
TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 1.6e-2}


def _near(found, wanted, dtype, scale: float = 1.0) -> None:
    limit = TOLERANCE[dtype] * scale
    torch.testing.assert_close(found.double(), wanted.double(), rtol=limit, atol=limit)


def _random(*shape: int, dtype, seed: int = 0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


@pytest.fixture
def torch_only(monkeypatch: pytest.MonkeyPatch):
    """A way to run something with torch's operations alone."""

    def run(compute):
        with monkeypatch.context() as patched:
            patched.setattr(kernels, "library", lambda: None)
            return compute()

    return run


@needs_kernels
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", [48, 1000])
def test_the_norm_and_its_gradient(dtype, width: int, torch_only) -> None:
    x, weight, grad = (_random(n, width, dtype=dtype, seed=n) for n in (70, 1, 70))
    y, root = rms_norm(x, weight[0], 1e-6)
    wanted, wanted_root = torch_only(lambda: rms_norm(x.double(), weight[0].double(), 1e-6))
    _near(y, wanted, dtype)
    torch.testing.assert_close(root.double(), wanted_root.double(), rtol=1e-6, atol=0)
    assert torch.equal(kernels.rms_again(x, weight[0], root), y)
    found = rms_norm_backward(grad, x, root, weight[0])
    leaf = x.double().requires_grad_()
    (leaf * torch.rsqrt(leaf.square().mean(-1, keepdim=True) + 1e-6) * weight[0].double()).backward(grad.double())
    _near(found, leaf.grad, dtype, 4)


@needs_kernels
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("activation", ["silu", "gelu"])
def test_the_gate_and_its_gradient(dtype, activation: str) -> None:
    gate_up = _random(33, 2 * 40, dtype=dtype) * 3
    grad = _random(33, 40, dtype=dtype, seed=1)
    leaf = gate_up.double().requires_grad_()
    gate, up = leaf.chunk(2, -1)
    act = torch.nn.functional.silu(gate) if activation == "silu" else torch.nn.functional.gelu(gate, approximate="tanh")
    (act * up).backward(grad.double())
    found, again = kernels.gated_backward(grad, gate_up, activation)
    _near(kernels.gated(gate_up, activation), (act * up).detach(), dtype, 4)
    assert torch.equal(again, kernels.gated(gate_up, activation))
    _near(found, leaf.grad, dtype, 4)


@needs_kernels
def test_the_gate_of_extreme_values_is_finite_and_nan_stays_nan() -> None:
    gate_up = torch.tensor([[-1e4, -100.0, 100.0, 1e4, float("nan"), 1.0, 1.0, 1.0, 1.0, 1.0]])
    for activation in ("silu", "gelu"):
        y = kernels.gated(gate_up, activation)[0]
        assert torch.allclose(y[:4], torch.tensor([0.0, 0.0, 100.0, 1e4]), atol=1e-30)
        assert torch.isnan(y[4])


LENGTHS = {"equal": [12, 12, 12], "ragged": [5, 9, 8, 40], "one": [1]}


@needs_kernels
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("lengths", LENGTHS.values(), ids=list(LENGTHS))
@pytest.mark.parametrize("window", [None, 4])
@pytest.mark.parametrize("normed", [True, False])
def test_attention_and_its_gradient(dtype, lengths, window, normed) -> None:
    norm = _random(6, 16, dtype=dtype, seed=3) if normed else None
    heads = Heads(4, 2, 16, 0.25, window, norm, compiled=True)
    tokens = sum(lengths)
    qkv, grad = _random(tokens, 8 * 16, dtype=dtype), _random(tokens, 4 * 16, dtype=dtype, seed=5)
    angle = torch.randn(tokens, 1, 8, generator=torch.Generator().manual_seed(9)).repeat(1, 1, 2)
    rotary = Rotary(angle.cos().to(dtype), angle.sin().to(dtype))
    buckets = make_buckets(lengths, torch.device("cpu"))

    def both(x, rotary, g, shape):
        leaf = x.clone().requires_grad_()
        out = Attention.apply(leaf, rotary, shape, buckets)
        out.backward(g)
        return out.detach(), leaf.grad

    out, grad_qkv = both(qkv, rotary, grad, heads)
    wide = Heads(4, 2, 16, 0.25, window, None if norm is None else norm.double())
    wanted = both(qkv.double(), Rotary(*(x.double() for x in rotary)), grad.double(), wide)
    _near(out, wanted[0], dtype, 4)
    _near(grad_qkv, wanted[1], dtype, 10)


@needs_kernels
def test_attention_on_trees_sees_the_prefix_and_its_own_branch() -> None:
    heads = Heads(4, 2, 16, 0.25, 6, None, compiled=True)
    qkv = _random(9 + 7, 8 * 16, dtype=torch.float32)
    positions = torch.tensor([0, 1, 2, 3, 4, 5, 3, 4, 5, 0, 1, 2, 3, 1, 2, 3])
    branches = torch.tensor([0, 0, 0, 1, 1, 1, 2, 2, 2, 0, 1, 1, 1, 2, 2, 2])
    angle = torch.randn(16, 1, 8, generator=torch.Generator().manual_seed(9)).repeat(1, 1, 2)
    buckets = make_buckets([9, 7], torch.device("cpu"), positions, branches)
    rotary = Rotary(angle.cos(), angle.sin())
    found = Attention.apply(qkv, rotary, heads, buckets)
    wanted = Attention.apply(qkv, rotary, replace(heads, compiled=False), buckets)
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6)


@needs_kernels
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("pairs", [1, 3])
def test_log_probabilities_and_their_gradient(dtype, pairs: int) -> None:
    logits = _random(11, 777, dtype=dtype) * 5
    rows = torch.arange(1, 10, 2).repeat_interleave(pairs)
    targets = torch.randint(0, 777, (len(rows),), generator=torch.Generator().manual_seed(1))
    targets[1::3] = targets[0]  # the same target twice in a row must add up
    grads = torch.linspace(-1, 2, len(rows))
    leaf = logits.double().requires_grad_()
    logprobs = torch.log_softmax(leaf, -1)
    (logprobs[rows, targets] * grads).sum().backward()
    lse = kernels.log_sum_exp(logits)
    torch.testing.assert_close(lse.double(), torch.logsumexp(logits.double(), -1), rtol=1e-6, atol=1e-6)
    first = torch.arange(0, len(rows) + 1, pairs)
    found = kernels.logits_backward(logits, torch.arange(1, 10, 2), lse, first, targets, grads)
    _near(found, leaf.grad[1:10:2], dtype)


@needs_kernels
@pytest.mark.parametrize("dtype", DTYPES)
def test_drawing_inverts_the_distribution(dtype) -> None:
    logits = (_random(1, 300, dtype=dtype) * 3).expand(4000, -1).contiguous()
    uniform = (torch.arange(4000, dtype=torch.float64) + 0.5) / 4000
    for temperature in (1.0, 0.5):
        tokens, logprobs = kernels.choose(logits, torch.full((4000,), temperature), uniform)
        share = torch.bincount(tokens, minlength=300) / 4000
        wanted = torch.softmax(logits[0].double() / temperature, -1)
        assert (share - wanted).abs().max() <= 1 / 4000 + 1e-9
        assert torch.equal(tokens, tokens.sort().values)
        plain = torch.log_softmax(logits[0].double(), -1)[tokens]
        torch.testing.assert_close(logprobs.double(), plain, rtol=1e-5, atol=1e-5)
    greedy, _ = kernels.choose(logits[:3], torch.zeros(3), uniform[:3])
    assert greedy.tolist() == [int(logits[0].float().argmax())] * 3


@needs_kernels
def test_nothing_of_no_weight_is_drawn_at_the_edges() -> None:
    logits = torch.full((2, 400), -float("inf"))
    logits[:, [130, 131]] = 0.0
    edges = torch.tensor([0.0, 1.0 - 2.0**-53], dtype=torch.float64)
    tokens, logprobs = kernels.choose(logits, torch.ones(2), edges)
    assert tokens.tolist() == [130, 131]
    torch.testing.assert_close(logprobs, torch.full((2,), -float(np.log(2))))


@needs_kernels
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("size", "query"), [(16, 4), (64, 4), (128, 2), (64, 8)])
@pytest.mark.parametrize("window", [None, 5])
def test_attention_while_sampling(dtype, size: int, query: int, window: int | None) -> None:
    heads = Heads(query, 2, size, size**-0.5, window, _random(query + 2, size, dtype=dtype, seed=2), compiled=True)
    lengths, repeats = [3, 7], [2, 1]
    caches = [Cache(1, lengths, repeats, 12, heads, kind, torch.device("cpu")) for kind in (dtype, torch.float32)]
    prompt = [_random(10, 2, size, dtype=dtype, seed=seed) for seed in (6, 7)]
    for cache in caches:
        cache.fill(0, *prompt)
    for step in range(9):
        if step == 6:
            for cache in caches:
                cache.keep(torch.tensor([2, 1]))
        rows = caches[0].rows
        qkv = _random(rows, (query + 4) * size, dtype=dtype, seed=20 + step)
        angle = torch.randn(rows, 1, size // 2, generator=torch.Generator().manual_seed(step)).repeat(1, 1, 2)
        rotary = Rotary(angle.cos().to(dtype), angle.sin().to(dtype))
        for cache in caches:
            cache.advance()
        found, wanted = (
            cache.attend(0, qkv, rotary, kind)
            for cache, kind in zip(caches, (heads, replace(heads, compiled=False)), strict=True)
        )
        _near(found, wanted, dtype, 4)


@needs_kernels
def test_the_pairs_of_an_adapter_are_added_and_their_gradient_goes_back() -> None:
    """Two pairs of rank 8 on a stacked matrix whose middle block is not adapted."""
    pairs = {
        name: LoraPair(*(_random(*shape, dtype=torch.bfloat16).requires_grad_() for shape in ((8, 64), (32, 8))))
        for name in "ac"
    }
    linear = Linear(_random(128, 64, dtype=torch.bfloat16, seed=4), None, ("a", "b", "c"), (32, 64, 32))
    lora = Lora.of(linear, ActiveLora(pairs, 0.5))
    if lora.forward is None:
        pytest.skip("this processor has no bf16 products")
    plain = replace(lora, forward=None, backward=None)
    x, grad = _random(7, 64, dtype=torch.bfloat16, seed=1), _random(7, 128, dtype=torch.bfloat16, seed=2)
    found, low = lora_forward(x, linear, lora)
    wanted, wanted_low = lora_forward(x, linear, plain)
    _near(low, wanted_low, torch.bfloat16)
    _near(found, wanted, torch.bfloat16, 8)
    assert torch.equal(found[:, 32:96], linear.apply(x)[:, 32:96])
    assert lora.backward is not None
    (grad_x, grads), (wanted_grad_x, wanted_grads) = (
        lora_backward(grad, x, low, linear, each, want_x=True) for each in (lora, plain)
    )
    _near(grad_x, wanted_grad_x, torch.bfloat16, 8)
    for one, other in zip(grads, wanted_grads, strict=True):
        _near(one, other, torch.bfloat16, 4)


@needs_kernels
def test_long_sequences_go_through_torchs_own_attention() -> None:
    qkv = _random(1100, 4 * 16, dtype=torch.float32)
    rotary = Rotary(torch.ones(1100, 1, 16), torch.zeros(1100, 1, 16))
    buckets = make_buckets([1100], torch.device("cpu"))
    found, wanted = (
        attention(split(qkv, rotary, Heads(2, 1, 16, 0.25, compiled=compiled)), buckets) for compiled in (True, False)
    )
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


@pytest.fixture
def fresh_build(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """An empty cache, and a library that is looked for anew."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv(kernels.VARIABLE, raising=False)
    kernels.library.cache_clear()
    yield tmp_path
    kernels.library.cache_clear()


def _compiler(folder: Path, script: str) -> str:
    path = folder / "compiler"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(path)


@needs_kernels
def test_the_library_is_built_once_in_a_private_folder(fresh_build: Path) -> None:
    assert kernels.library() is not None
    folder = fresh_build / "cache" / "ml-researcher" / "kernels"
    (built,) = folder.iterdir()
    before = built.stat().st_mtime_ns
    kernels.library.cache_clear()
    assert kernels.library() is not None
    assert built.stat().st_mtime_ns == before
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("case $1 in --version) echo 1;; *) echo 'kernels.c: no such thing' >&2; exit 1;; esac", "no such thing"),
        ("exit 3", "no message"),
    ],
)
def test_a_compiler_that_fails_leaves_torchs_operations(
    fresh_build: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, script: str, said: str
) -> None:
    monkeypatch.setenv("CC", _compiler(fresh_build, script))
    with caplog.at_level(logging.INFO):
        assert kernels.library() is None
    assert said in caplog.text
    assert not list((fresh_build / "cache").rglob("*.so"))


def test_a_cache_that_others_can_write_to_is_not_trusted(fresh_build: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = fresh_build / "cache" / "ml-researcher" / "kernels"
    folder.mkdir(parents=True)
    folder.chmod(0o777)
    with caplog.at_level(logging.INFO):
        assert kernels.library() is None
    assert "by you alone" in caplog.text


def test_the_kernels_can_be_turned_off(fresh_build: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(kernels.VARIABLE, "off")
    assert kernels.library() is None
    assert not kernels.usable(torch.zeros(1))
