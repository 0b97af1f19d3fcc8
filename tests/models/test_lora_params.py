"""Counts against three independent references: peft, the platform's own table, and arithmetic by hand."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tinker_cookbook.hyperparam_utils import get_lora_param_count
from torch import nn
from transformers import CONFIG_MAPPING, AutoModel, AutoModelForCausalLM
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from transformers.pytorch_utils import Conv1D

from sota_ml_researcher.core.errors import ConfigError, ModelError
from sota_ml_researcher.core.names import COMPONENTS, Component
from sota_ml_researcher.models.configs import ModelConfig, load_model_config
from sota_ml_researcher.models.lora_architectures import KNOWN_FAMILIES
from sota_ml_researcher.models.lora_params import check_components, count_from_config, count_lora
from sota_ml_researcher.models.model_catalog import CatalogEntry, ComponentCounts, catalog_entry, load_catalog
from sota_ml_researcher.models.model_ref import resolve_model

RANK = 3
COMMON = {
    "vocab_size": 97,
    "hidden_size": 40,
    "intermediate_size": 56,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "pad_token_id": 0,
}
EXPERTS = {**COMMON, "moe_intermediate_size": 24, "num_experts": 4, "num_experts_per_tok": 2}
LATENT = {
    **COMMON,
    "num_key_value_heads": 4,
    "num_hidden_layers": 3,
    "moe_intermediate_size": 24,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "n_group": 1,
    "topk_group": 1,
    "kv_lora_rank": 12,
    "qk_rope_head_dim": 4,
    "qk_nope_head_dim": 6,
    "v_head_dim": 10,
    "first_k_dense_replace": 1,
}
HYBRID = {
    **EXPERTS,
    "num_hidden_layers": 4,
    "head_dim": 16,
    "shared_expert_intermediate_size": 20,
    "linear_num_key_heads": 2,
    "linear_key_head_dim": 8,
    "linear_num_value_heads": 4,
    "linear_value_head_dim": 6,
}
TINY: dict[str, dict[str, Any]] = {
    **dict.fromkeys(KNOWN_FAMILIES - {"kimi_k2", "inkling_text"}, COMMON),
    "llama": {**COMMON, "head_dim": 12, "attention_bias": True, "mlp_bias": True},
    "llama3.2": {**COMMON, "model_type": "llama", "tie_word_embeddings": True},
    "qwen3": {**COMMON, "head_dim": 16},
    "gemma2": {**COMMON, "head_dim": 16},
    "gemma3_text": {**COMMON, "head_dim": 16},
    "gpt_neox": {key: value for key, value in COMMON.items() if key != "num_key_value_heads"},
    "helium": {**COMMON, "head_dim": 10},
    "hunyuan_v1_dense": {**COMMON, "head_dim": 10},
    "ministral": {**COMMON, "head_dim": 10},
    "persimmon": {key: value for key, value in COMMON.items() if key != "num_key_value_heads"},
    "gpt2": {"vocab_size": 97, "n_embd": 40, "n_layer": 2, "n_head": 4},
    "mixtral": {**COMMON, "num_local_experts": 4},
    "gpt_oss": {**COMMON, "head_dim": 16, "num_local_experts": 4},
    "olmoe": {**COMMON, "num_experts": 4, "num_experts_per_tok": 2},
    "qwen3_moe": {**EXPERTS, "head_dim": 16, "num_hidden_layers": 4, "mlp_only_layers": [1], "decoder_sparse_step": 2},
    "qwen2_moe": {**EXPERTS, "shared_expert_intermediate_size": 20},
    "qwen3_vl_moe_text": EXPERTS,
    "glm4_moe": {**LATENT, "n_shared_experts": 1, "head_dim": 8},
    "deepseek_v3": {**LATENT, "q_lora_rank": 20, "n_shared_experts": 2},
    "deepseek_v3, full queries": {**LATENT, "model_type": "deepseek_v3", "q_lora_rank": None},
    "glm_moe_dsa": {**LATENT, "q_lora_rank": 20, "mlp_layer_types": ["dense", "sparse", "sparse"]},
    "qwen3_next": HYBRID,
    "qwen3_5_text": HYBRID,
    "qwen3_5_moe_text": HYBRID,
    "nemotron_h": {
        **{key: value for key, value in COMMON.items() if key != "num_hidden_layers"},
        "layers_block_type": ["mamba", "moe", "attention", "moe", "mamba"],
        "head_dim": 16,
        "mamba_num_heads": 4,
        "mamba_head_dim": 20,
        "n_groups": 2,
        "ssm_state_size": 8,
        "moe_intermediate_size": 24,
        "moe_shared_expert_intermediate_size": 28,
        "moe_latent_size": 16,
        "n_routed_experts": 4,
        "num_experts_per_tok": 2,
    },
}
ROUTERS = {"gate", "router", "shared_expert_gate"}


def peft_counts(model: nn.Module) -> dict[str, int]:
    """What peft itself allocates when every matrix but the routers gets an adapter, by component."""
    linears = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | Conv1D) and name.rsplit(".", 1)[-1] not in ROUTERS and ".indexer." not in name
    ]
    experts = [name for name, value in model.named_parameters() if value.ndim == 3 and ".experts." in name]
    pattern = "|".join(re.escape(name) for name in linears)
    config = LoraConfig(r=RANK, target_modules=f"({pattern})", target_parameters=experts or None)
    kinds = {name: _component(model, name) for name in (*linears, *experts)}
    # peft rewrites target names written for transformers 4 and then misses dense blocks beside experts; ours are of 5.
    model.config.model_type = "as it is"
    counts = dict.fromkeys(("mlp", "attn", "unembed"), 0)
    for name, value in get_peft_model(model, config).named_parameters():
        if "lora_" in name:
            place = name.removeprefix("base_model.model.").replace(".base_layer", "").split(".lora_")[0]
            counts[next(kind for key, kind in kinds.items() if key == place or key.startswith(f"{place}."))] += (
                value.numel()
            )
    return counts


def _component(model: nn.Module, name: str) -> str:
    """By the class of the block that holds the matrix, so that no table of ours is involved."""
    if name in ("lm_head", "embed_out"):
        return "unembed"
    parts = name.split(".")
    classes = [type(model.get_submodule(".".join(parts[:end]))).__name__ for end in range(1, len(parts))]
    return "attn" if any(re.search("Attention|GatedDeltaNet|Mamba2Mixer", c) for c in classes) else "mlp"


def tiny_config(name: str, keys: Mapping[str, Any]) -> tuple[ModelConfig, nn.Module]:
    model_type = keys.get("model_type", name)
    config = CONFIG_MAPPING[model_type](**{key: value for key, value in keys.items() if key != "model_type"})
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    return ModelConfig(name, config.to_dict(), "folder"), model


TEXT_PARTS = {name for name in TINY if name.endswith("vl_text") or name == "qwen3_vl_moe_text"}


@pytest.mark.parametrize("name", sorted(set(TINY) - TEXT_PARTS))
def test_the_count_from_the_config_is_what_peft_allocates(name: str) -> None:
    config, model = tiny_config(name, TINY[name])
    ours = count_from_config(config, "fused_experts").parameters(RANK)
    assert ours.model_dump() == peft_counts(model)


@pytest.mark.parametrize("name", sorted(TEXT_PARTS))
def test_the_text_part_of_a_vision_model_is_counted_as_peft_does(name: str) -> None:
    config = CONFIG_MAPPING[name](**TINY[name])
    with torch.device("meta"):
        model = AutoModel.from_config(config)
    ours = count_from_config(ModelConfig(name, config.to_dict(), "folder"), "fused_experts").parameters(RANK)
    theirs = peft_counts(model)
    assert (ours.mlp, ours.attn) == (theirs["mlp"], theirs["attn"])


def test_experts_held_apart_are_counted_as_peft_does() -> None:
    class Expert(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gate_proj, self.up_proj = nn.Linear(40, 24), nn.Linear(40, 24)
            self.down_proj = nn.Linear(24, 40)

    model = nn.ModuleList([nn.ModuleList([Expert() for _ in range(4)]) for _ in range(2)])
    adapted = get_peft_model(model, LoraConfig(r=RANK, target_modules=["gate_proj", "up_proj", "down_proj"]))
    theirs = sum(value.numel() for name, value in adapted.named_parameters() if "lora_" in name)
    config = ModelConfig("tiny", {**EXPERTS, "model_type": "qwen3_moe"}, "folder")
    assert count_from_config(config, "per_expert").parameters(RANK).mlp == theirs


CONFIGURED = [entry for entry in load_catalog().models if entry.config]


@pytest.mark.parametrize("entry", CONFIGURED, ids=lambda entry: entry.name)
def test_the_shared_outer_count_is_the_platforms_own(entry: CatalogEntry) -> None:
    config = ModelConfig(entry.name, entry.config or {}, "table")
    assert count_from_config(config, "shared_outer").per_rank == entry.lora_per_rank
    assert config.hidden_size == entry.hidden_size


def test_four_models_are_known_from_the_platforms_table_alone() -> None:
    assert {entry.name for entry in load_catalog().models if not entry.config} == {
        "deepseek-ai/DeepSeek-V4.1-Flash",
        "deepseek-ai/DeepSeek-V4.1-Flash-1017",
        "nvidia/NVIDIA-Nemotron-3-Ultra-550B-A55B-BF16",
        "zai-org/GLM-5.3-Flash",
    }


def of(name: str) -> ModelConfig:
    entry = catalog_entry(name)
    assert entry is not None
    return ModelConfig(name, {"hidden_size": entry.hidden_size, **(entry.config or {})}, "table")


def test_llama_at_rank_64_has_167_8_million_and_not_the_naive_formula_s_117() -> None:
    # 32 layers x 64 x [q, o: 2 x 8192; k, v: 2 x 5120; gate, up, down: 3 x 18432] = 32 x 64 x 81,920
    count = count_lora(of("meta-llama/Llama-3.1-8B"), backend="tinker")
    assert count.parameters(64, ("mlp", "attn")).total == 167_772_160
    assert count.parameters(1).total == 1_769_472 + 851_968 + 132_352


@pytest.mark.parametrize("name", ["Qwen/Qwen3-8B", "openai/gpt-oss-20b", "deepseek-ai/DeepSeek-V4.1-Flash"])
@pytest.mark.parametrize("apply_to", [("mlp",), ("attn", "unembed"), ("mlp", "attn", "unembed")])
def test_subsets_agree_with_the_cookbook(name: str, apply_to: tuple[Component, ...]) -> None:
    ours = count_lora(of(name), backend="tinker").parameters(16, apply_to).total
    flags = {f"train_{part}": part in apply_to for part in COMPONENTS}
    assert ours == get_lora_param_count(name, 16, **flags)


def test_the_module_table_adds_up_and_names_every_kind_of_layer() -> None:
    count = count_lora(of("Qwen/Qwen3.5-35B-A3B"), backend="tinker")
    assert sum(module.parameters_per_rank for module in count.modules) == count.per_rank.total
    experts = {module.name: module for module in count.modules if "experts." in module.name}
    assert (experts["experts.up_proj"].per_layer, experts["experts.up_proj"].layers) == (256, 40)
    assert experts["experts.up_proj"].parameters_per_rank == 40 * (2048 + 256 * 512)
    assert experts["experts.down_proj"].shared_factor == "out"
    layers = {module.name: module.layers for module in count.modules}
    assert (layers["q_proj"], layers["linear_attn.out_proj"], layers["lm_head"]) == (10, 30, 1)


def test_experts_cost_more_locally_than_on_tinker_and_the_answer_says_which_scheme() -> None:
    hosted = count_lora(of("Qwen/Qwen3-30B-A3B"), backend="tinker")
    local = count_lora(of("Qwen/Qwen3-30B-A3B"), backend="embedded")
    # E (h + 2 i) + E (i + h) = 128 x (2 x 2048 + 3 x 768), 48 layers
    assert local.per_rank.mlp == 48 * 128 * (2 * 2048 + 3 * 768)
    assert (hosted.per_rank.mlp, hosted.scheme, local.scheme) == (14_450_688, "shared_outer", "fused_experts")


def test_the_platforms_count_wins_over_a_config_that_disagrees_and_says_so() -> None:
    shorter = ModelConfig("Qwen/Qwen3-8B", {**of("Qwen/Qwen3-8B").values, "num_hidden_layers": 35}, "hub")
    count = count_lora(shorter, backend="tinker")
    assert (count.source, count.modules, count.per_rank.mlp) == ("table", (), 1_769_472)
    assert "the config gives" in count.notes[0]
    assert count_lora(shorter, backend="embedded").per_rank.mlp == 1_769_472 * 35 // 36


def test_a_model_known_by_its_total_alone_is_counted_on_tinker_only() -> None:
    flash = of("zai-org/GLM-5.3-Flash")
    count = count_lora(flash, backend="tinker")
    assert count.per_rank == ComponentCounts(mlp=75_755_520, attn=2_009_088, unembed=158_976)
    with pytest.raises(ModelError, match="not one whose LoRA matrices are known"):
        count_lora(flash, backend="embedded")


def test_tied_embeddings_are_adapted_once() -> None:
    config = ModelConfig("tiny", {**COMMON, "model_type": "llama", "tie_word_embeddings": True}, "folder")
    count = count_from_config(config, "fused_experts")
    assert count.per_rank.unembed == 40 + 97
    assert any("tied" in note for note in count.notes)


def test_an_unknown_dense_family_is_counted_like_llama_and_says_so() -> None:
    count = count_from_config(ModelConfig("tiny", {**COMMON, "model_type": "newcomer"}, "folder"), "per_expert")
    known = count_from_config(ModelConfig("tiny", {**COMMON, "model_type": "llama"}, "folder"), "per_expert")
    assert count.per_rank == known.per_rank
    assert "'newcomer' was not checked" in count.notes[0]


ODD_PARTS: dict[str, Any] = {
    "num_experts": 4,
    "moe_num_experts": 64,
    "kv_lora_rank": 12,
    "ssm_state_size": 8,
    "mamba_d_state": 128,
    "conv_L_cache": 3,
    "ffn_config": {"moe_num_experts": 16},
    "block_types": ["recurrent", "attention"],
    "a_part_of_another_name": 24,
}


@pytest.mark.parametrize("key", ODD_PARTS)
def test_an_unknown_family_with_parts_that_llama_lacks_is_refused(key: str) -> None:
    config = ModelConfig("org/new", {**COMMON, "model_type": "newcomer", key: ODD_PARTS[key]}, "folder")
    with pytest.raises(ModelError, match=rf"org/new: its architecture \(newcomer\).*'{key}'"):
        count_from_config(config, "per_expert")


def test_an_unknown_family_with_other_layers_or_sizes_is_refused() -> None:
    for changes, message in (
        ({"layer_types": ["conv", "full_attention"]}, "layer_types are not all attention"),
        ({"intermediate_size": [56, 56]}, "'intermediate_size' is not a whole number"),
        ({"model_type": None}, "no model_type"),
    ):
        config = ModelConfig("org/new", {**COMMON, "model_type": "newcomer", **changes}, "folder")
        with pytest.raises(ModelError, match=message):
            count_from_config(config, "fused_experts")


NOT_BUILT = {"qwen3_5", "qwen3_5_moe", "ministral", "hunyuan_v1_dense", "nemotron"}  # counted; checked by size in TINY


def test_every_causal_model_of_transformers_is_counted_right_or_refused(tmp_path: Path) -> None:
    counted: list[str] = []
    for name in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        if name.startswith("musicgen"):  # their configs are made from those of their parts alone
            continue
        config = CONFIG_MAPPING[name]()
        (tmp_path / "config.json").write_text(config.to_json_string(use_diff=False))
        try:
            ours = count_from_config(load_model_config(resolve_model(str(tmp_path))), "fused_experts").per_rank.total
        except ModelError as error:
            assert "is not one whose LoRA matrices are known here" in str(error)
            continue
        counted.append(name)
        if name not in NOT_BUILT:
            with torch.device("meta"):
                model = AutoModelForCausalLM.from_config(config)
            assert (name, ours) == (name, _per_rank_from_shapes(model))
    assert len(counted) >= 50


def _per_rank_from_shapes(model: nn.Module) -> int:
    """Inputs and outputs of all matrices of the language model but its routers; experts stand stacked in one."""
    total = 0
    for name, module in model.named_modules():
        last = name.rsplit(".", 1)[-1]
        if re.search("vision|visual|audio|projector", name) or last in ROUTERS or ".indexer." in name:
            continue
        if isinstance(module, nn.Linear | Conv1D):
            total += sum(module.weight.shape)
    experts = [p for name, p in model.named_parameters() if p.ndim == 3 and ".experts." in name]
    return total + sum(p.shape[0] * (p.shape[1] + p.shape[2]) for p in experts)


def test_a_missing_or_odd_size_names_the_key() -> None:
    values: dict[str, Any] = {key: value for key, value in COMMON.items() if key != "hidden_size"}
    values["model_type"] = "llama"
    with pytest.raises(ModelError, match="has no 'hidden_size'"):
        count_from_config(ModelConfig("tiny", values, "folder"), "per_expert")
    with pytest.raises(ModelError, match="'hidden_size' must be a whole number, got '40'"):
        count_from_config(ModelConfig("tiny", {**values, "hidden_size": "40"}, "folder"), "per_expert")


def test_wrong_parts_and_ranks_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"unknown part 'lm_head'.*mlp, attn, unembed"):
        check_components(["lm_head"])
    with pytest.raises(ConfigError, match="nothing to train"):
        check_components([])
    with pytest.raises(ConfigError, match="at least 1, got 0"):
        count_lora(of("Qwen/Qwen3-8B"), backend="tinker").parameters(0)
