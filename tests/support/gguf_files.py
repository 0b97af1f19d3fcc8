"""Small GGUF files of random weights, written with llama.cpp's own package from transformers models."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from tiny_models import CHATML, SPECIAL
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, LlamaConfig, Qwen2Config, Qwen3Config

CORPUS = [
    "the cat sat on the mat, and then the other cats sat down too",
    "I'll ask: don't they cost 12345 euros?  She'd say 67,890.\n\n\tIndented lines\n",
    "naïve café 日本語 🙂 Ünïcode — dashes … and (brackets) [of] {all} kinds",
] * 4
_CONFIGS = {"llama": LlamaConfig, "qwen2": Qwen2Config, "qwen3": Qwen3Config}
# llama.cpp's name for each tensor of a layer.
_LAYER = {
    "input_layernorm": "attn_norm", "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output", "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm", "post_attention_layernorm": "ffn_norm", "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
}  # fmt: skip


def tiny_model(architecture: str, *, tied: bool = True, **settings: Any) -> Any:
    """A random model of two layers."""
    torch.manual_seed(0)
    config = _CONFIGS[architecture](
        vocab_size=400, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=16, max_position_embeddings=256, tie_word_embeddings=tied, **settings,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name or name.endswith("bias"):
                parameter.normal_(1.0, 0.1)
    return model.eval()


def trained_vocabulary(size: int = 400) -> tuple[list[str], list[str]]:
    """Tokens and merges of a byte-level BPE that cuts as GPT-2's does, special tokens first."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokens = sorted(tokenizer.get_vocab(), key=tokenizer.get_vocab().__getitem__)
    tokens += [f"<|spare_{n}|>" for n in range(size - len(tokens))]
    merges = json.loads(tokenizer.to_str())["model"]["merges"]
    return tokens, [" ".join(pair) for pair in merges]


def write_gguf(
    path: Path,
    model: Any,
    *,
    architecture: str = "llama",
    storage: gguf.GGMLQuantizationType = gguf.GGMLQuantizationType.F32,
    metadata: dict[str, Any] | None = None,
    drop: str = "",
    extra: dict[str, np.ndarray] | None = None,
) -> Path:
    """Write ``model`` as llama.cpp's converter does.

    Args:
        path: The file.
        model: Of transformers.
        architecture: What the file says it is.
        storage: Of the matrices; vectors are fp32.
        metadata: Keys to set to another value; None leaves a key out.
        drop: A tensor to leave out.
        extra: Further tensors.
    """
    config = model.config
    tokens, merges = trained_vocabulary(config.vocab_size)
    kinds = [3 if token in SPECIAL else 5 if token.startswith("<|spare") else 1 for token in tokens]
    values: dict[str, Any] = {
        f"{architecture}.block_count": config.num_hidden_layers,
        f"{architecture}.context_length": config.max_position_embeddings,
        f"{architecture}.embedding_length": config.hidden_size,
        f"{architecture}.feed_forward_length": config.intermediate_size,
        f"{architecture}.attention.head_count": config.num_attention_heads,
        f"{architecture}.attention.head_count_kv": config.num_key_value_heads,
        f"{architecture}.attention.key_length": config.head_dim if hasattr(config, "head_dim") else 16,
        f"{architecture}.attention.layer_norm_rms_epsilon": config.rms_norm_eps,
        f"{architecture}.rope.freq_base": 10000.0,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "smollm",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": kinds,
        "tokenizer.ggml.merges": merges,
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.chat_template": CHATML,
    }
    values |= metadata or {}
    writer = gguf.GGUFWriter(path, architecture)
    for key, value in values.items():
        if isinstance(value, str):
            writer.add_string(key, value)
        elif isinstance(value, list):
            writer.add_array(key, value)
        elif isinstance(value, float):
            writer.add_float32(key, value)
        elif value is not None:
            writer.add_uint32(key, value)
    for name, array in {**_tensors(model, architecture), **(extra or {})}.items():
        if name == drop:
            continue
        if array.ndim > 1 and storage is not gguf.GGMLQuantizationType.F32:
            writer.add_tensor(name, gguf.quantize(array, storage), raw_dtype=storage)
        else:
            writer.add_tensor(name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _tensors(model: Any, architecture: str) -> dict[str, np.ndarray]:
    outer = {
        "model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight",
        "lm_head.weight": "output.weight",
    }  # fmt: skip
    found: dict[str, np.ndarray] = {}
    for name, parameter in model.named_parameters():
        array = parameter.detach().numpy()
        if name in outer:
            found[outer[name]] = array
            continue
        _, _, index, rest = name.split(".", 3)
        inner, _, kind = rest.rpartition(".")
        if architecture == "llama" and inner in ("self_attn.q_proj", "self_attn.k_proj"):
            heads = model.config.num_attention_heads if "q_proj" in inner else model.config.num_key_value_heads
            array = _interleaved(array, heads)
        found[f"blk.{index}.{_LAYER[inner]}.{kind}"] = array
    return found


def _interleaved(array: np.ndarray, heads: int) -> np.ndarray:
    """Row i of each head's first half beside row i of its second half, as convert_hf_to_gguf.py permutes them."""
    return np.ascontiguousarray(
        array.reshape(heads, 2, array.shape[0] // heads // 2, *array.shape[1:]).swapaxes(1, 2).reshape(array.shape)
    )
