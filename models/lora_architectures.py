"""Which matrices each model family has, so that their LoRA adapters can be counted from a config.

The names are those of transformers 5. Families listed in ``_DENSE`` and ``_EXPERTS`` are checked against ``peft``'s own
count, or against the platform's table, in ``tests/models/test_lora_params.py``.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, cast

from ..core.errors import ModelError
from ..core.names import Component
from .configs import ModelConfig

Scheme = Literal["shared_outer", "fused_experts", "per_expert"]
Side = Literal["none", "in", "out"]


@dataclass(frozen=True, slots=True)
class Matrix:
    """One adapted matrix of one layer, or ``copies`` of it (experts), of which ``shared`` names the common factor."""

    name: str
    component: Component
    d_in: int
    d_out: int
    copies: int = 1
    shared: Side = "none"

    @property
    def parameters_per_rank(self) -> int:
        """LoRA parameters at rank 1: the two factors, of which one may be common to all copies."""
        ins = 1 if self.shared == "in" else self.copies
        outs = 1 if self.shared == "out" else self.copies
        return ins * self.d_in + outs * self.d_out


@dataclass(frozen=True, slots=True)
class _Names:
    """How a family splits its two blocks: several names for separate matrices, one for a fused one."""

    qkv: tuple[str, ...] = ("q_proj", "k_proj", "v_proj")
    out: str = "o_proj"
    up: tuple[str, ...] = ("gate_proj", "up_proj")
    down: str = "down_proj"
    fused_up: int = 1


_LLAMA = _Names()
_PLAIN = _Names(up=("up_proj",))
_DENSE: dict[str, _Names] = {
    **dict.fromkeys(
        (
            "llama", "mistral", "ministral3", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text", "olmo",
            "olmo2", "olmo3", "smollm3", "granite", "cohere", "cohere2", "seed_oss", "exaone4", "stablelm", "helium",
            "qwen2_vl_text", "qwen2_5_vl_text", "qwen3_vl_text", "bitnet", "cwm", "diffllama", "ernie4_5",
            "hunyuan_v1_dense", "ministral", "vaultgemma",
        ),
        _LLAMA,
    ),
    **dict.fromkeys(("nemotron", "arcee", "apertus", "jais2", "nanochat"), _PLAIN),
    "starcoder2": _Names(up=("c_fc",), down="c_proj"),
    "phi": _Names(out="dense", up=("fc1",), down="fc2"),
    "phi3": _Names(qkv=("qkv_proj",), up=("gate_up_proj",), fused_up=2),
    **dict.fromkeys(("glm", "glm4"), _Names(up=("gate_up_proj",), fused_up=2)),
    "gpt2": _Names(qkv=("c_attn",), out="c_proj", up=("c_fc",), down="c_proj"),
    **dict.fromkeys(
        ("gpt_neox", "persimmon"),
        _Names(qkv=("query_key_value",), out="dense", up=("dense_h_to_4h",), down="dense_4h_to_h"),
    ),
}  # fmt: skip
_EXPERTS = frozenset(
    {
        "mixtral", "qwen2_moe", "qwen3_moe", "qwen3_vl_moe_text", "gpt_oss", "olmoe", "glm4_moe", "deepseek_v3",
        "kimi_k2", "glm_moe_dsa", "qwen3_next", "qwen3_5_text", "qwen3_5_moe_text", "nemotron_h", "inkling_text",
    }
)  # fmt: skip
KNOWN_FAMILIES = frozenset(_DENSE) | _EXPERTS
_UNLIKE_LLAMA = frozenset({"bert-generation", "biogpt", "xlm-roberta-xl"})  # the sizes of Llama, other matrices
_OUTER_TYPES = {
    "qwen3_5": "qwen3_5_text",
    "qwen3_5_moe": "qwen3_5_moe_text",
    "qwen3_vl_moe": "qwen3_vl_moe_text",
    "qwen3_vl": "qwen3_vl_text",
    "qwen2_5_vl": "qwen2_5_vl_text",
    "inkling_mm_model": "inkling_text",
    "inkling_model": "inkling_text",
    "gemma3": "gemma3_text",
}
_LATENT_ATTENTION = frozenset({"deepseek_v3", "kimi_k2", "glm_moe_dsa"})
_GATED_QUERY = frozenset({"qwen3_next", "qwen3_5_text", "qwen3_5_moe_text"})
# Whole numbers, lists and tables that stand in the configs of models built like Llama. Any other may be the size or the
# place of a part that is not known here, whatever it is called.
_PLAIN_KEYS = frozenset(
    {
        "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
        "head_dim", "vocab_size", "max_position_embeddings", "original_max_position_embeddings", "sliding_window",
        "sliding_window_size", "max_window_layers", "rope_scaling", "rope_parameters", "rope_theta", "pretraining_tp",
        "bos_token_id", "eos_token_id", "pad_token_id", "unk_token_id", "sep_token_id", "decoder_start_token_id",
        "architectures", "auto_map", "quantization_config", "layer_types", "chunk_size_feed_forward", "id2label",
        "label2id", "keys_to_ignore_at_inference", "no_rope_layers", "no_rope_layer_interval",
    }
)  # fmt: skip
_PLAIN_LAYERS = frozenset({"full_attention", "sliding_attention"})


def adapted_matrices(config: ModelConfig, scheme: Scheme) -> tuple[list[Matrix], tuple[str, ...]]:
    """Every adapted matrix, one element for each layer that has it, and notes about how sure this is.

    Raises:
        ModelError: If the family is unknown and not plainly dense, or a size is missing.
    """
    kind = _OUTER_TYPES.get(config.model_type, config.model_type)
    notes: tuple[str, ...] = ()
    if kind not in KNOWN_FAMILIES:
        notes = (_assume_llama(config),)
    if kind == "nemotron_h":
        matrices = [m for block in _nemotron_kinds(config) for m in _nemotron_layer(config, block, scheme)]
    else:
        matrices = list[Matrix]()
        for index in range(config.integer("num_hidden_layers", "n_layer")):
            matrices += [*_attention(config, kind, index, scheme), *_feed_forward(config, kind, index, scheme)]
    head = Matrix("lm_head", "unembed", config.hidden_size, config.integer("vocab_size"))
    return [*matrices, head], notes


def _assume_llama(config: ModelConfig) -> str:
    """Allow an unknown family only if all sizes in its config are those of Llama, and say so."""
    family = config.model_type or "no model_type"
    odd = _odd_part(config)
    if odd is not None:
        raise ModelError(
            f"its architecture ({family}) is not one whose LoRA matrices are known here: {odd}",
            where=config.name,
            fix=f"Known are: {', '.join(sorted(KNOWN_FAMILIES))}",
        )
    return f"'{family}' was not checked: it is counted as if built like Llama, and may differ"


def _odd_part(config: ModelConfig) -> str | None:
    """What in the config of an unknown family speaks against a model built like Llama; None where nothing does."""
    if not config.model_type:
        return "its config has no model_type"
    if config.model_type in _UNLIKE_LLAMA:
        return "its matrices are other ones than Llama's"
    for key in ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "vocab_size"):
        if type(config.values.get(key)) is not int:
            return f"'{key}' is not a whole number in its config"
    for key, value in config.values.items():
        if key not in _PLAIN_KEYS and _may_be_a_size(value):
            return f"its config has '{key}'"
    if set(map(str, _list(config, "layer_types") or [])) - _PLAIN_LAYERS:
        return "its layer_types are not all attention"
    return None


def _may_be_a_size(value: object) -> bool:
    if isinstance(value, bool):
        return False
    return (isinstance(value, int) and value > 1) or (isinstance(value, list | dict) and bool(cast("object", value)))


def _attention(config: ModelConfig, kind: str, index: int, scheme: Scheme) -> Iterator[Matrix]:
    if kind in _LATENT_ATTENTION:
        yield from _latent_attention(config, scheme)
    elif kind in _GATED_QUERY and _is_linear_layer(config, index):
        yield from _linear_attention(config, kind, scheme)
    elif kind == "inkling_text":
        yield from _inkling_attention(config, index)
    else:
        yield from _grouped_attention(config, kind)


def _grouped_attention(config: ModelConfig, kind: str) -> Iterator[Matrix]:
    hidden, names = config.hidden_size, _DENSE.get(kind, _LLAMA)
    heads = config.integer("num_attention_heads", "n_head")
    head_dim = config.integer("head_dim", default=hidden // heads)
    keys = config.integer("num_key_value_heads", default=heads) * head_dim
    queries = heads * head_dim
    wide = queries * (2 if kind in _GATED_QUERY and config.values.get("attn_output_gate", True) else 1)
    if len(names.qkv) == 1:
        yield Matrix(names.qkv[0], "attn", hidden, wide + 2 * keys)
    else:
        for name, width in zip(names.qkv, (wide, keys, keys), strict=True):
            yield Matrix(name, "attn", hidden, width)
    yield Matrix(_qualified(names.out, names.down, "attn"), "attn", queries, hidden)


def _qualified(name: str, other: str, block: str) -> str:
    """GPT-2 calls the last matrix of both blocks c_proj."""
    return f"{block}.{name}" if name == other else name


def _latent_attention(config: ModelConfig, scheme: Scheme) -> Iterator[Matrix]:
    """Multi-head latent attention: queries, keys and values pass through a narrow waist (DeepSeek-V2)."""
    hidden, heads = config.hidden_size, config.integer("num_attention_heads")
    rope, nope = config.integer("qk_rope_head_dim"), config.integer("qk_nope_head_dim")
    value, waist = config.integer("v_head_dim"), config.integer("kv_lora_rank")
    inner = scheme != "shared_outer"
    if config.has("q_lora_rank"):
        yield Matrix("q_a_proj", "attn", hidden, config.integer("q_lora_rank"))
        if inner:
            yield Matrix("q_b_proj", "attn", config.integer("q_lora_rank"), heads * (nope + rope))
    else:
        yield Matrix("q_proj", "attn", hidden, heads * (nope + rope))
    yield Matrix("kv_a_proj_with_mqa", "attn", hidden, waist + rope)
    if inner:
        yield Matrix("kv_b_proj", "attn", waist, heads * (nope + value))
    yield Matrix("o_proj", "attn", heads * value, hidden)


def _is_linear_layer(config: ModelConfig, index: int) -> bool:
    kinds = _list(config, "layer_types")
    if kinds is not None:
        return kinds[index] == "linear_attention"
    return (index + 1) % config.integer("full_attention_interval", default=4) != 0


def _linear_attention(config: ModelConfig, kind: str, scheme: Scheme) -> Iterator[Matrix]:
    """Gated delta rule: queries, keys, values, an output gate z, and per-head scalars a and b."""
    hidden, heads = config.hidden_size, config.integer("linear_num_value_heads")
    keys = config.integer("linear_num_key_heads") * config.integer("linear_key_head_dim")
    values = heads * config.integer("linear_value_head_dim")
    if scheme == "shared_outer":
        for name, width in (("q", keys), ("k", keys), ("v", values), ("z", values)):
            yield Matrix(f"linear_attn.in_proj_{name}", "attn", hidden, width)
    elif kind == "qwen3_next":
        yield Matrix("linear_attn.in_proj_qkvz", "attn", hidden, 2 * keys + 2 * values)
        yield Matrix("linear_attn.in_proj_ba", "attn", hidden, 2 * heads)
    else:
        yield Matrix("linear_attn.in_proj_qkv", "attn", hidden, 2 * keys + values)
        yield Matrix("linear_attn.in_proj_z", "attn", hidden, values)
        yield Matrix("linear_attn.in_proj_b", "attn", hidden, heads)
        yield Matrix("linear_attn.in_proj_a", "attn", hidden, heads)
    yield Matrix("linear_attn.out_proj", "attn", values, hidden)


def _inkling_attention(config: ModelConfig, index: int) -> Iterator[Matrix]:
    """Global and sliding layers have their own head counts; r makes d_rel relative-position inputs per head."""
    local = _list(config, "local_layer_ids")
    sliding = index in local if local is not None else (index + 1) % 6 != 0
    prefix = "swa_" if sliding else ""
    hidden, heads = config.hidden_size, config.integer(f"{prefix}num_attention_heads", "num_attention_heads")
    head_dim = config.integer(f"{prefix}head_dim", "head_dim")
    keys = config.integer(f"{prefix}num_key_value_heads", "num_key_value_heads") * head_dim
    widths = (
        ("q_proj", heads * head_dim),
        ("k_proj", keys),
        ("v_proj", keys),
        ("r_proj", heads * config.integer("d_rel", default=16)),
    )
    for name, width in widths:
        yield Matrix(name, "attn", hidden, width)
    yield Matrix("o_proj", "attn", heads * head_dim, hidden)


def _feed_forward(config: ModelConfig, kind: str, index: int, scheme: Scheme) -> Iterator[Matrix]:
    hidden = config.hidden_size
    if kind in _EXPERTS and _is_expert_layer(config, kind, index):
        yield from _experts(hidden, *_expert_sizes(config), scheme, gated=True)
        yield from _shared_experts(config, kind, scheme)
        return
    names = _DENSE.get(kind, _LLAMA)
    if kind == "inkling_text" and scheme == "shared_outer":
        names = _Names(up=("gate_up_proj",), fused_up=2)
    width = config.integer("dense_intermediate_size", "intermediate_size", "n_inner", default=4 * hidden)
    for name in names.up:
        yield Matrix(name, "mlp", hidden, names.fused_up * width)
    yield Matrix(_qualified(names.down, names.out, "mlp"), "mlp", width, hidden)


def _is_expert_layer(config: ModelConfig, kind: str, index: int) -> bool:
    kinds = _list(config, "mlp_layer_types")
    if kinds is not None:
        return kinds[index] == "sparse"
    if kind == "qwen3_5_text":
        return False
    dense_ones = _list(config, "mlp_only_layers") or []
    step = config.integer("decoder_sparse_step", default=1)
    first_dense = config.integer("first_k_dense_replace", "dense_mlp_idx", default=0)
    return index >= first_dense and index not in dense_ones and (index + 1) % step == 0


def _expert_sizes(config: ModelConfig) -> tuple[int, int]:
    """Number of routed experts, and the width of one."""
    # transformers 5 writes num_local_experts for every family; a default may stand under the older name.
    count = config.integer("num_local_experts", "num_experts", "n_routed_experts")
    return count, config.integer("moe_intermediate_size", "intermediate_size")


def _experts(outer: int, count: int, width: int, scheme: Scheme, *, gated: bool) -> Iterator[Matrix]:
    """``count`` experts of ``width`` between ``outer`` inputs and outputs, as ``scheme`` adapts them."""
    into: Side = "in" if scheme == "shared_outer" else "none"
    back: Side = "out" if scheme == "shared_outer" else "none"
    if gated and scheme == "fused_experts":
        yield Matrix("experts.gate_up_proj", "mlp", outer, 2 * width, count)
    else:
        for name in ("gate_proj", "up_proj") if gated else ("up_proj",):
            yield Matrix(f"experts.{name}", "mlp", outer, width, count, into)
    yield Matrix("experts.down_proj", "mlp", width, outer, count, back)


def _shared_experts(config: ModelConfig, kind: str, scheme: Scheme) -> Iterator[Matrix]:
    """Experts that see every token: one gated block, as wide as all of them together."""
    width = config.integer("shared_expert_intermediate_size", default=0)
    if not width:
        width = config.integer("n_shared_experts", default=0) * config.integer("moe_intermediate_size", default=0)
    if width:
        for name in ("gate_proj", "up_proj"):
            yield Matrix(f"shared_expert.{name}", "mlp", config.hidden_size, width)
        yield Matrix("shared_expert.down_proj", "mlp", width, config.hidden_size)


def _nemotron_layer(config: ModelConfig, block: str, scheme: Scheme) -> Iterator[Matrix]:
    """Nemotron-H: each layer is one of attention, Mamba-2, experts or a plain block without a gate."""
    hidden = config.hidden_size
    if block == "attention":
        yield from _grouped_attention(config, "llama")
    elif block == "mamba":
        yield from _mamba(config, scheme)
    elif block == "moe":
        yield from _nemotron_experts(config, scheme)
    else:
        width = config.integer("intermediate_size")
        yield Matrix("mixer.up_proj", "mlp", hidden, width)
        yield Matrix("mixer.down_proj", "mlp", width, hidden)


def _nemotron_kinds(config: ModelConfig) -> list[str]:
    if config.has("layer_counts"):
        counts = cast("dict[str, int]", config.values["layer_counts"])
        return [kind for kind, count in counts.items() for _ in range(count)]
    kinds = _list(config, "layers_block_type")
    if kinds is not None:
        return [str(kind) for kind in kinds]
    letters = {"M": "mamba", "E": "moe", "*": "attention", "-": "mlp"}
    pattern = str(config.values.get("hybrid_override_pattern") or "")
    if not pattern or set(pattern) - set(letters):
        raise ModelError(
            "hybrid_override_pattern must name each layer by one of M, E, * and -", where=f"{config.name}/config.json"
        )
    return [letters[letter] for letter in pattern]


def _mamba(config: ModelConfig, scheme: Scheme) -> Iterator[Matrix]:
    """Mamba-2: Tinker adapts the gate and the value part of the fused input matrix, and the output."""
    hidden, heads = config.hidden_size, config.integer("mamba_num_heads")
    inner = heads * config.integer("mamba_head_dim")
    states = config.integer("n_groups", "mamba_n_groups") * config.integer("ssm_state_size")
    if scheme == "shared_outer":
        yield Matrix("mamba.in_proj_z", "attn", hidden, inner)
        yield Matrix("mamba.in_proj_x", "attn", hidden, inner)
    else:
        yield Matrix("mamba.in_proj", "attn", hidden, 2 * inner + 2 * states + heads)
    yield Matrix("mamba.out_proj", "attn", inner, hidden)


def _nemotron_experts(config: ModelConfig, scheme: Scheme) -> Iterator[Matrix]:
    """Experts without a gate; in the larger models between two projections into a narrower space."""
    hidden = config.hidden_size
    outer = config.integer("moe_latent_size", default=hidden)
    if outer != hidden:
        yield Matrix("fc1_latent_proj", "mlp", hidden, outer)
        yield Matrix("fc2_latent_proj", "mlp", outer, hidden)
    yield from _experts(outer, *_expert_sizes(config), scheme, gated=False)
    shared = config.integer("moe_shared_expert_intermediate_size", default=0)
    if shared and config.integer("n_shared_experts", default=1):
        yield Matrix("shared_experts.up_proj", "mlp", hidden, shared)
        yield Matrix("shared_experts.down_proj", "mlp", shared, hidden)


def _list(config: ModelConfig, key: str) -> list[Any] | None:
    value: object = config.values.get(key)
    return cast("list[Any]", value) if isinstance(value, list) else None
