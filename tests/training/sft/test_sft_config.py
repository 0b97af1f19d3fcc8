from pathlib import Path
from typing import Any

import pytest
import yaml

from sota_ml_researcher.core.errors import ConfigError, ModelError
from sota_ml_researcher.core.settings import Origin, render_config
from sota_ml_researcher.training.sft.config import SftConfig, load_sft_settings

BASE = {"base_model": "demo", "train_file": "train.jsonl"}


def config_file(folder: Path, **settings: Any) -> Path:
    path = folder / "sft.yaml"
    path.write_text(yaml.safe_dump({**BASE, **settings}, sort_keys=False))
    return path


def test_every_value_knows_where_it_came_from(tmp_path: Path) -> None:
    settings = load_sft_settings(config_file(tmp_path, lora_rank=8), {"seed": 3})
    assert settings.config.lora_rank == 8
    assert settings.config.seed == 3
    assert settings.origins["lora_rank"].kind == "file"
    assert settings.origins["seed"].kind == "override"
    assert settings.origins["lora_alpha"] == Origin(kind="default", rule="lora.alpha")
    assert set(settings.origins) == set(SftConfig.model_fields)


def test_overrides_win_and_need_no_file() -> None:
    settings = load_sft_settings(None, {**BASE, "learning_rate": 3e-4})
    assert settings.config.learning_rate == 3e-4


def test_a_learning_rate_in_scientific_notation_is_a_number(tmp_path: Path) -> None:
    path = tmp_path / "sft.yaml"
    path.write_text("base_model: demo\ntrain_file: a.jsonl\nlearning_rate: 1e-4\n")  # YAML 1.1 reads this as text
    assert load_sft_settings(path, None).config.learning_rate == 1e-4


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"lora_rank": 0}, "sft.yaml:3: lora_rank: input should be greater than 0, got 0"),
        ({"lora_rank": -4}, "lora_rank: input should be greater than 0, got -4"),
        ({"learning_rate": float("nan")}, "learning_rate: input should be a finite number, got nan"),
        ({"learning_rate": float("inf")}, "learning_rate: input should be a finite number"),
        ({"learning_rate": 0}, "learning_rate: input should be greater than 0"),
        ({"num_steps": 10, "num_epochs": 1}, "num_steps and num_epochs are both set"),
        ({"lerning_rate": 1e-4}, "sft.yaml:3: lerning_rate: unknown key. Did you mean 'learning_rate'?"),
        ({"frobnicate": 1}, "frobnicate: unknown key. Known keys: adam_beta1"),
        ({"lora_alpha": 64}, "lora_alpha is fixed at 32"),
        ({"apply_to": ["mlp", "embed"]}, "apply_to[1]: input should be 'mlp', 'attn' or 'unembed', got 'embed'"),
        ({"apply_to": []}, "apply_to"),
        ({"backend": "cluster"}, "backend: cluster needs base_url"),
        ({"backend": "embedded", "base_url": "http://x"}, "base_url belongs to backend: cluster"),
        ({"backend": "gpu"}, "backend: input should be 'embedded', 'tinker' or 'cluster'"),
        ({"hidden_dim": 4096}, "hidden_dim: this key is no longer used. Remove it"),
        ({"batch_size": "many"}, "batch_size: a whole number is needed, got 'many'"),
        ({"seed": 2**31}, "seed"),
    ],
)
def test_a_wrong_setting_is_refused_with_its_place(tmp_path: Path, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_sft_settings(config_file(tmp_path, **settings), None)
    assert message in str(caught.value)


def test_all_problems_of_a_file_come_at_once(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load_sft_settings(config_file(tmp_path, lora_rank=0, batch_size=0), None)
    assert "lora_rank" in str(caught.value)
    assert "batch_size" in str(caught.value)


def test_a_missing_key_is_named(tmp_path: Path) -> None:
    path = tmp_path / "sft.yaml"
    path.write_text("base_model: demo\n")
    with pytest.raises(ConfigError, match="train_file: this key is required and missing"):
        load_sft_settings(path, None)


def test_data_paths_are_looked_up_beside_the_file_first(tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_text("")
    settings = load_sft_settings(config_file(tmp_path), None)
    assert settings.data_file("train_file", "train.jsonl") == (tmp_path / "train.jsonl").resolve()
    with pytest.raises(ConfigError) as caught:
        settings.data_file("train_file", "nowhere.jsonl")
    assert "sft.yaml:2: train_file: no such file: nowhere.jsonl (looked at" in str(caught.value)


def test_an_unknown_demo_set_lists_those_there_are(tmp_path: Path) -> None:
    settings = load_sft_settings(config_file(tmp_path), None)
    assert settings.data_file("train_file", "demo:sft_train").name == "sft_train.jsonl"
    with pytest.raises(ModelError, match="demo:sft_train"):
        settings.data_file("train_file", "demo:nothing")


def test_the_rendered_config_can_be_run_again_and_shows_origins(tmp_path: Path) -> None:
    settings = load_sft_settings(config_file(tmp_path, lora_rank=8, run_name="a: b # c"), None)
    text = render_config(settings.config, settings.origins)
    assert "lora_rank: 8  # file" in text
    assert "lora_alpha: 32  # default (lora.alpha)" in text
    again = tmp_path / "again.yaml"
    again.write_text(text)
    assert load_sft_settings(again, None).config == settings.config
