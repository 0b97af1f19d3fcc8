"""The arithmetic of memory on shapes whose sizes are known, and the sentence of a refusal."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from sota_ml_researcher.core import memory
from sota_ml_researcher.core.memory import GIB, Batch, Room, cache_place, estimate, fit, free_ram, refusal
from sota_ml_researcher.models.configs import ModelConfig
from sota_ml_researcher.models.lora_params import model_shape
from sota_ml_researcher.models.model_catalog import catalog_entry, config_defaults

CARD = Room("cuda", 2, 78 * GIB, 80 * GIB)


def shape(name: str) -> memory.ModelShape:
    entry = catalog_entry(name)
    assert entry is not None
    assert entry.config is not None
    values = {**config_defaults().get(entry.config["model_type"], {}), **entry.config}
    return model_shape(ModelConfig(name, values, "table"))


@pytest.mark.parametrize(
    ("name", "billions"),
    [
        ("meta-llama/Llama-3.1-8B", 8.03),
        ("meta-llama/Llama-3.2-1B", 1.236),
        ("Qwen/Qwen3-4B-Instruct-2507", 4.02),
        ("Qwen/Qwen3-30B-A3B", 30.5),
        ("openai/gpt-oss-20b", 20.9),
    ],
)
def test_parameters_are_those_that_the_model_cards_state(name: str, billions: float) -> None:
    assert shape(name).weights == pytest.approx(billions * 1e9, rel=0.005)


def test_parts_of_a_known_model() -> None:
    llama = shape("meta-llama/Llama-3.1-8B")
    assert cache_place(llama, 2) == 131072  # 2 x 8 heads x 128 x 32 layers x 2 bytes
    rank_16, rank_32 = (estimate(llama, CARD, rank=rank) for rank in (16, 32))
    assert rank_32.adapter == 2 * rank_16.adapter
    assert rank_32.adapter == pytest.approx(84.4e6 * (16 + 6), rel=0.06)  # 83.9M parameters without the unembedding's
    quantised = estimate(llama, replace(CARD, nf4=True))
    assert quantised.weights == pytest.approx(6.98e9 * 0.55 + 1.05e9 * 2, rel=0.005)
    kept, again = (estimate(llama, CARD, Batch(4096, 512, checkpointing)) for checkpointing in (False, True))
    assert again.activations < kept.activations / 3.5
    assert estimate(llama, CARD, Batch(1024)).activations < kept.activations / 3


def test_experts_are_weights_of_which_a_token_sees_eight() -> None:
    experts = shape("Qwen/Qwen3-30B-A3B")
    assert experts.inner == 8 * 768
    assert experts.linear < experts.weights / 20  # stacked experts are not quantised
    assert not experts.packed


def test_layers_run_again_before_the_batch_is_halved() -> None:
    llama = shape("meta-llama/Llama-3.1-8B")
    chosen = [fit(llama, replace(CARD, free=size * GIB)) for size in (78, 24, 20, 10)]
    batches = [one and (one.batch.tokens, one.batch.checkpointing) for one in chosen]
    assert batches == [(4096, False), (4096, True), (2048, True), None]
    roomy, tight = chosen[0], chosen[2]
    assert roomy is not None
    assert tight is not None
    assert roomy.cache_tokens == memory.CACHE_TOKENS > tight.cache_tokens >= memory.BATCH_TOKENS


def test_a_refusal_has_the_numbers_and_the_nearest_choice_that_fits() -> None:
    llama = shape("meta-llama/Llama-3.1-70B")
    said = str(refusal(llama, CARD, "big"))
    assert "big: it needs 142.6 GiB (weights 131.4" in said
    assert "and 78.0 of the GPU's 80.0 GiB are free" in said
    assert "Give --quantize nf4, with which it needs 50." in said
    assert "other programs" not in said
    small = shape("meta-llama/Llama-3.2-3B")
    filled = str(refusal(small, replace(CARD, free=2 * GIB), "small"))
    assert "2.00 of the GPU's 80.0 GiB are free, for other programs hold 78.0" in filled
    assert "End what holds the memory" in filled
    cpu = Room("cpu", 4, 12 * GIB, 16 * GIB)
    said = str(refusal(small, cpu, "m", command="ENGINE"))
    assert "run ENGINE --dtype bfloat16, with which it needs" in said
    assert "Shorten sequences to 8,192 tokens" in str(refusal(small, replace(cpu, itemsize=2), "m", length=100_000))


def test_a_containers_limit_is_what_there_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    limit, used = tmp_path / "memory.max", tmp_path / "memory.current"
    limit.write_text(str(64 << 20))
    used.write_text(str(48 << 20))
    (tmp_path / "memory.stat").write_text(f"anon 1\ninactive_file {16 << 20}\n")
    monkeypatch.setattr(memory, "_CGROUP_FILES", ((str(limit), str(used)),))
    assert free_ram() == (32 << 20, 64 << 20)
    limit.write_text("max")
    assert free_ram()[1] > 64 << 20
