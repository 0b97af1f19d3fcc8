from pathlib import Path

import pytest
from tinker_cookbook.exceptions import ConfigurationError
from tinker_cookbook.hyperparam_utils import get_lr

from sota_ml_researcher.core.errors import ConfigError
from sota_ml_researcher.doctrine.rules import load_rules, number
from sota_ml_researcher.models.configs import ModelConfig
from sota_ml_researcher.models.hyperparameters import (
    derive_batch_size,
    derive_checkpoint_every,
    derive_epochs,
    derive_eval_every,
    derive_learning_rate,
    derive_max_seq_len,
    model_family,
    recommended_batch_size,
    recommended_learning_rate,
)
from sota_ml_researcher.models.model_catalog import load_catalog

MODELS = {
    entry.name: ModelConfig(entry.name, {"hidden_size": entry.hidden_size, **(entry.config or {})}, "table")
    for entry in load_catalog().models
}


def named(name: str, hidden_size: int, model_type: str = "") -> ModelConfig:
    return ModelConfig(name, {"hidden_size": hidden_size, "model_type": model_type}, "folder")


@pytest.mark.parametrize("name", sorted(MODELS))
def test_the_learning_rate_is_the_cookbooks_or_admits_low_confidence(name: str) -> None:
    found = recommended_learning_rate(MODELS[name])
    try:
        expected = get_lr(name)
    except (NotImplementedError, ConfigurationError):
        assert (found.confidence, found.rule_id) == ("low", "lora.lr.uncalibrated")
        assert "no rate was fitted" in found.note
        assert found.value == number("lora.lr.uncalibrated")
    else:
        assert found.value == pytest.approx(expected, rel=1e-12)
        assert found.confidence == "high"


def test_full_fine_tuning_takes_a_tenth() -> None:
    llama = MODELS["meta-llama/Llama-3.1-8B"]
    # 5e-5 x (2000 / 4096)^0.781 = 5e-5 x 0.571283 = 2.85642e-5
    assert recommended_learning_rate(llama, method="full").value == pytest.approx(2.85642e-5, rel=1e-5)
    assert recommended_learning_rate(llama).value == pytest.approx(2.85642e-4, rel=1e-5)


def test_a_width_outside_the_fit_lowers_the_confidence() -> None:
    found = recommended_learning_rate(named("demo", 128, "qwen3"))
    # 5e-4 x (2000 / 128)^0.0775 = 5e-4 x e^(0.0775 x 2.748872) = 5e-4 x 1.237433
    assert found.value == pytest.approx(6.187167e-4, rel=1e-5)
    assert (found.confidence, found.rule_id) == ("low", "lora.lr.exponent.qwen")
    assert "outside the fitted" in found.note


def test_another_model_of_the_same_architecture_gets_medium_confidence() -> None:
    assert recommended_learning_rate(named("org/Hermes", 4096, "llama")).confidence == "medium"


@pytest.mark.parametrize(
    ("config", "family"),
    [
        (named("/data/qwen/models/gemma-2b", 2048, "gemma"), None),
        (named("google/llama-like-gemma", 2048, "gemma"), None),
        (named("Qwen/Qwen3-8B", 4096), "qwen"),
        (named("/models/run7", 4096, "qwen3_moe"), "qwen"),
        (named("/data/llama/run7", 4096), None),
    ],
)
def test_the_family_is_read_from_the_architecture_before_the_name(config: ModelConfig, family: str | None) -> None:
    assert model_family(config) == family


def test_a_short_run_is_told_of_the_higher_rate() -> None:
    llama = MODELS["meta-llama/Llama-3.1-8B"]
    assert "15 times full fine-tuning's (0.00043" in recommended_learning_rate(llama, steps=60).note
    assert "15 times" not in recommended_learning_rate(llama, steps=100).note


@pytest.mark.parametrize(
    ("rows", "epochs", "batch", "rule"),
    [
        (50_000, 1, 128, "sft.batch.default"),
        (12_800, 1, 128, "sft.batch.default"),
        (12_799, 1, 127, "sft.steps.min"),
        (1_000, 3, 30, "sft.steps.min"),
        (40, 1, 1, "sft.steps.min"),
        (20, 1_000, 20, "sft.batch.default"),
    ],
)
def test_the_batch_leaves_at_least_a_hundred_steps(rows: int, epochs: int, batch: int, rule: str) -> None:
    found = recommended_batch_size(rows, epochs)
    assert (found.value, found.rule_id) == (batch, rule)
    assert rows * epochs // batch >= 100 or batch == 1


def test_no_rows_is_an_error() -> None:
    with pytest.raises(ConfigError, match="rows and epochs must be positive"):
        recommended_batch_size(0)


def test_derived_settings_carry_a_rule_that_exists() -> None:
    derived = (
        derive_learning_rate(named("demo", 128, "qwen3"), steps=50),
        derive_batch_size(1_000, 3),
        derive_epochs(),
        derive_eval_every(1_000),
        derive_checkpoint_every(7),
    )
    assert [value for value, _, _ in derived] == [6.2e-4, 30, 1, 100, 1]
    assert all(rule_id in load_rules() and reason for _, rule_id, reason in derived)
    assert all(isinstance(value, int) for value, _, _ in derived[1:])


def test_the_longest_row_is_the_context_where_the_model_is_trained() -> None:
    local = ModelConfig("m", {"max_position_embeddings": 512}, "folder")
    assert derive_max_seq_len(local, "embedded").value == 512
    assert derive_max_seq_len(ModelConfig("gpt2", {"n_positions": 1024}, "hub"), "embedded").value == 1024
    inkling = ModelConfig("thinkingmachines/Inkling", {"max_position_embeddings": 1_048_576}, "hub")
    assert derive_max_seq_len(inkling, "tinker").value == 65_536
    assert derive_max_seq_len(inkling, "cluster").value == 1_048_576
    unknown = derive_max_seq_len(MODELS["Qwen/Qwen3-8B"], "tinker")
    assert (unknown.value, unknown.reason) == (None, "the model's context is not known here: ask the backend")


def test_no_rule_value_is_repeated_in_the_code() -> None:
    from sota_ml_researcher.models import capacity, hyperparameters

    for module in (capacity, hyperparameters):
        source = Path(str(module.__file__)).read_text(encoding="utf-8")
        assert not [digits for digits in ("0.781", "0.0775", "5e-5", "128", "0.95") if digits in source]
