import math

import pytest
from pydantic import ValidationError

from sota_ml_researcher.core.errors import ConfigError, DataError
from sota_ml_researcher.doctrine.rules import load_rules
from sota_ml_researcher.models.capacity import (
    CapacityReport,
    DataSize,
    capacity_report,
    information_of,
    verdict_band,
    verdict_of,
)
from sota_ml_researcher.models.configs import ModelConfig
from sota_ml_researcher.models.lora_params import accepted_rank, require_accepted_rank, smallest_accepted
from sota_ml_researcher.models.model_catalog import catalog_entry

TINY = ModelConfig(
    "demo",
    {
        "model_type": "qwen3",
        "hidden_size": 128,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 32,
        "intermediate_size": 384,
        "vocab_size": 102,
        "tie_word_embeddings": True,
    },
    "folder",
)
# Per rank: mlp 3 x (128 + 384) x 4 = 6,144; attn [q, o: 2 x 256; k, v: 2 x 192] x 4 = 3,584; unembed 230: 9,958


def hosted(name: str = "Qwen/Qwen3-8B") -> ModelConfig:
    entry = catalog_entry(name)
    assert entry is not None
    return ModelConfig(name, {"hidden_size": entry.hidden_size, **(entry.config or {})}, "table")


def report(tokens: int, *, rank: int = 8, backend: str = "embedded", config: ModelConfig = TINY) -> CapacityReport:
    return capacity_report(config, lora_rank=rank, data=DataSize(loss_tokens=tokens), backend=backend)


def test_capacity_and_data_are_counted_in_bits_by_the_rules() -> None:
    found = report(100_000)
    assert (found.parameters.mlp, found.parameters.attn, found.parameters.unembed) == (49_152, 28_672, 1_840)
    assert (found.parameters_total, found.capacity_bits, found.data_bits) == (79_664, 159_328, 100_000)
    assert found.ratio == pytest.approx(1.59328)
    assert found.verdict == "marginal"


def test_the_verdict_is_a_band_from_the_rule() -> None:
    low, high = verdict_band()
    assert (low, high) == (0.5, 2.0)
    assert verdict_of(low - 1e-9, (low, high)) == "insufficient"
    assert verdict_of(low, (low, high)) == verdict_of(high - 1e-9, (low, high)) == "marginal"
    assert verdict_of(high, (low, high)) == "sufficient"


def test_the_smallest_sufficient_rank_is_sufficient_and_the_next_smaller_is_not() -> None:
    for backend, config, tokens in (("embedded", TINY, 100_000), ("tinker", hosted(), 300_000_000)):
        enough = report(tokens, backend=backend, config=config).smallest_sufficient_rank
        assert enough is not None
        assert report(tokens, rank=enough, backend=backend, config=config).verdict == "sufficient"
        smaller = enough // 2 if backend == "tinker" else enough - 1
        assert report(tokens, rank=smaller, backend=backend, config=config).verdict != "sufficient"


def test_no_rank_above_the_models_width_is_ever_recommended() -> None:
    found = report(10**9)
    assert (found.verdict, found.smallest_sufficient_rank) == ("insufficient", None)
    assert "No rank has room" in found.advice
    assert any("above the model's width of 128" in w for w in report(1_000, rank=129).warnings)


def test_a_measured_nll_replaces_the_one_bit_rule() -> None:
    measured = information_of(DataSize(loss_tokens=1_000, nll_nats=3 * math.log(2)))
    assert (measured.bits, measured.basis, measured.rule_id) == (3_000, "measured", None)
    assumed = information_of(DataSize(loss_tokens=1_000))
    assert (assumed.bits, assumed.basis, assumed.rule_id) == (1_000, "tokens rule", "lora.data.bits_per_token")
    assert "not measured" in assumed.explanation


def test_loss_tokens_count_before_all_tokens_which_alone_are_called_a_bound() -> None:
    assert information_of(DataSize(loss_tokens=10, all_tokens=1_000)).bits == 10
    only_all = capacity_report(TINY, lora_rank=8, data=DataSize(all_tokens=1_000), backend="embedded")
    assert only_all.data_bits == 1_000
    assert any("upper bound" in line for line in only_all.uncertainties)


def test_more_epochs_add_no_information() -> None:
    sizes = [DataSize(loss_tokens=50_000, rows=500, epochs=epochs) for epochs in (1, 4)]
    once, often = (capacity_report(TINY, lora_rank=8, data=data, backend="embedded") for data in sizes)
    assert once.data_bits == often.data_bits
    assert any("4 epochs count once" in line for line in often.uncertainties)
    assert once.batch_size is not None
    assert often.batch_size is not None
    assert (once.batch_size.value, often.batch_size.value) == (5, 20)


def test_rl_needs_about_a_bit_an_episode_so_rank_1_is_enough() -> None:
    # 10,000 problems x 32 samples = 320,000 bits against 2 x 2,753,792 of a rank-1 adapter of Llama-3.1-8B
    llama = hosted("meta-llama/Llama-3.1-8B")
    found = capacity_report(llama, lora_rank=1, data=DataSize(episodes=320_000), backend="tinker")
    assert (found.data_bits, found.parameters_total, found.verdict) == (320_000, 2_753_792, "sufficient")
    assert found.smallest_sufficient_rank == 1
    assert found.batch_size is None
    assert any("partly replicated" in line for line in found.uncertainties)


@pytest.mark.parametrize(
    "data", [{"loss_tokens": 0}, {"all_tokens": 0}, {"episodes": 0}, {"loss_tokens": 9, "nll_nats": 0}]
)
def test_nothing_to_learn_is_an_error_and_not_a_verdict(data: dict[str, int]) -> None:
    with pytest.raises(DataError, match="nothing to learn"):
        capacity_report(TINY, lora_rank=8, data=DataSize.model_validate(data), backend="embedded")


@pytest.mark.parametrize("data", [{}, {"loss_tokens": -1}, {"loss_tokens": 5, "nll_nats": math.nan}, {"tokens": 5}])
def test_a_malformed_size_is_refused(data: dict[str, float]) -> None:
    with pytest.raises(ValidationError):
        DataSize.model_validate(data)


@pytest.mark.parametrize("rank", [0, -3])
def test_a_rank_below_1_is_refused(rank: int) -> None:
    with pytest.raises(ConfigError, match=f"at least 1, got {rank}"):
        report(1_000, rank=rank)


def test_apply_to_limits_parameters_and_the_advice_is_to_widen_it_first() -> None:
    data = DataSize(loss_tokens=400_000)
    found = capacity_report(TINY, lora_rank=8, data=data, backend="embedded", apply_to=["attn"])
    assert (found.parameters.mlp, found.parameters.attn, found.parameters.unembed) == (0, 28_672, 0)
    assert found.parameters_per_rank.mlp == 6_144
    assert found.verdict == "insufficient"
    assert "Adapt all of mlp, attn and unembed first" in found.advice


def test_every_rule_named_exists() -> None:
    for found in (report(1_000), report(10**9), report(10**9, backend="tinker", config=hosted(), rank=48)):
        assert set(found.rules) <= set(load_rules())
        assert found.rank_check.rule_id in load_rules()


def test_a_retired_model_and_a_refused_rank_are_said_on_tinker_only() -> None:
    llama = hosted("meta-llama/Llama-3.1-8B-Instruct")
    on_tinker = report(10**6, rank=48, backend="tinker", config=llama)
    assert on_tinker.warnings == (
        "Tinker retired meta-llama/Llama-3.1-8B-Instruct on 2026-06-12: take Qwen/Qwen3.5-9B instead",
    )
    assert (on_tinker.rank_check.accepted, on_tinker.rank_check.nearest) == (False, (32, 64))
    here = report(10**6, rank=48, config=llama)
    assert (here.warnings, here.rank_check.accepted) == ((), True)


def test_the_answer_is_plain_json_and_survives_a_round_trip() -> None:
    found = report(10**8, backend="tinker", config=hosted())
    assert CapacityReport.model_validate_json(found.model_dump_json()) == found
    assert isinstance(found.model_dump(mode="json")["parameters"]["mlp"], int)


@pytest.mark.parametrize(("rank", "near"), [(48, (32, 64)), (100, (64, 128)), (3, (2, 4))])
def test_tinker_takes_powers_of_two_only(rank: int, near: tuple[int, ...]) -> None:
    check = accepted_rank(rank, "tinker")
    assert (check.accepted, check.nearest) == (False, near)
    with pytest.raises(ConfigError, match=rf"lora_rank: rank {rank} is not accepted.*Use {near[0]} or {near[1]}"):
        require_accepted_rank(rank, "tinker")


def test_other_backends_take_any_positive_rank() -> None:
    for rank in (1, 48, 100):
        require_accepted_rank(rank, "embedded")
        assert accepted_rank(rank, "cluster").nearest == (rank,)
    for backend in ("embedded", "tinker"):
        with pytest.raises(ConfigError, match=r"rank 0 is not accepted: a rank is at least 1\. Use 1"):
            require_accepted_rank(0, backend)


def test_a_known_maximum_bounds_the_choices() -> None:
    assert accepted_rank(48, "tinker", max_rank=32).nearest == (32,)
    assert accepted_rank(32, "tinker", max_rank=32).accepted
    assert smallest_accepted(33, "tinker", largest=32) is None
    assert smallest_accepted(33, "tinker", largest=64) == 64
    assert smallest_accepted(33, "embedded", largest=64) == 33
