"""The weights of a GGUF file under the names and in the layout of a Hugging Face model.

Names and layouts are those of llama.cpp's ``convert_hf_to_gguf.py``, read backwards: for ``llama`` it interleaves the
two halves of each head's rows in the query and key matrices, which is undone here.
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import isclose, pi, prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..core.errors import ModelError
from ..core.foreign_text import foreign
from .gguf_file import GgufFile, StoredTensor

if TYPE_CHECKING:
    from numpy import ndarray

_ROPE_FACTORS = "rope_freqs.weight"
# Llama 3.1 to 3.3 store the outcome of this rule (one number per pair of dimensions) in place of its constants.
_LLAMA3_ROPE = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
_BYTES = {"F32": 4, "F16": 2, "BF16": 2}
_TORCH_NAMES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}


@dataclass(frozen=True, slots=True)
class _Family:
    """One architecture: what transformers calls it, and which vectors it has beside the matrices."""

    model_type: str
    class_name: str
    interleaved: bool = False
    head_norms: bool = False


_FAMILIES: Mapping[str, _Family] = {
    "llama": _Family("llama", "LlamaForCausalLM", interleaved=True),
    "qwen2": _Family("qwen2", "Qwen2ForCausalLM"),
    "qwen3": _Family("qwen3", "Qwen3ForCausalLM", head_norms=True),
}


@dataclass(frozen=True, slots=True)
class _Target:
    """Where a tensor goes, its shape there, and the heads whose rows are interleaved in the file (0: none)."""

    name: str
    shape: tuple[int, ...]
    heads: int = 0


class GgufModel:
    """A file's model: its ``config.json`` and its weights.

    Args:
        file: The header.

    Raises:
        ModelError: If the architecture is unknown, or the weights are not those that it has.
    """

    def __init__(self, file: GgufFile) -> None:
        self._file = file
        architecture = file.text("general.architecture") or "none"
        if architecture not in _FAMILIES:
            known = ", ".join(_FAMILIES)
            raise ModelError(
                f"its architecture is {foreign(architecture)}; from GGUF files {known} are read",
                where=str(file.path),
                fix="Use the model's folder from the Hugging Face hub",
            )
        self._family = _FAMILIES[architecture]
        self._prefix = f"{architecture}."
        if file.whole(f"{self._prefix}expert_count", 0):
            raise self._refusal("it is a mixture of experts, which is not read from GGUF files")
        self.config = self._read_config()
        self._targets = self._expected()
        self._compare()
        self._stored = self._storage()
        self.config["dtype"] = _TORCH_NAMES[self._stored]

    def write(self, path: Path) -> None:
        """Write all weights as one safetensors file, a block of rows in memory at a time."""
        entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
        position = 0
        for target in self._targets.values():
            size = prod(target.shape) * _BYTES[self._stored]
            entries[target.name] = {
                "dtype": self._stored, "shape": list(target.shape), "data_offsets": [position, position + size],
            }  # fmt: skip
            position += size
        header = json.dumps(entries).encode()
        header += b" " * (-len(header) % 8)
        with path.open("wb") as out:
            out.write(struct.pack("<Q", len(header)) + header)
            for name, target in self._targets.items():
                for block in self._blocks(self._file.tensors[name], target):
                    out.write(self._as_stored(block))
            out.flush()
            os.fsync(out.fileno())

    def _blocks(self, tensor: StoredTensor, target: _Target) -> Iterator[ndarray[Any, Any]]:
        if not target.heads:
            yield from self._file.values(tensor)
            return
        import numpy as np

        whole = np.concatenate(list(self._file.values(tensor))).reshape(target.shape)
        halves = whole.reshape(target.heads, target.shape[0] // target.heads // 2, 2, -1).swapaxes(1, 2)
        yield halves.reshape(target.shape)

    def _as_stored(self, block: ndarray[Any, Any]) -> bytes:
        import numpy as np

        if self._stored == "F32":
            return block.tobytes()
        if self._stored == "F16":
            return block.astype(np.float16).tobytes()
        bits = np.ascontiguousarray(block).view(np.uint32)
        rounded = (bits + (0x7FFF + ((bits >> 16) & 1))) >> 16  # to the nearest, ties to even
        return rounded.astype(np.uint16).tobytes()

    def _read_config(self) -> dict[str, Any]:
        file, prefix = self._file, self._prefix
        hidden, heads = file.whole(f"{prefix}embedding_length"), file.whole(f"{prefix}attention.head_count")
        embedding = file.tensors.get("token_embd.weight")
        if not heads or embedding is None:
            raise self._refusal("it has no attention heads or no token embedding")
        vocabulary = embedding.shape[0]
        special = {"bos_token_id": "bos", "eos_token_id": "eos", "pad_token_id": "padding"}
        config: dict[str, Any] = {
            "architectures": [self._family.class_name],
            "model_type": self._family.model_type,
            "hidden_size": hidden,
            "intermediate_size": file.whole(f"{prefix}feed_forward_length"),
            "num_hidden_layers": file.whole(f"{prefix}block_count"),
            "num_attention_heads": heads,
            "num_key_value_heads": file.whole(f"{prefix}attention.head_count_kv", heads),
            "head_dim": file.whole(f"{prefix}attention.key_length", hidden // heads),
            "hidden_act": "silu",
            "max_position_embeddings": file.whole(f"{prefix}context_length"),
            # As it was written before it was rounded to fp32.
            "rms_norm_eps": float(f"{file.number(f'{prefix}attention.layer_norm_rms_epsilon', 1e-6):.6g}"),
            "rope_theta": file.number(f"{prefix}rope.freq_base", 10000.0),
            "vocab_size": vocabulary,
            "tie_word_embeddings": "output.weight" not in file.tensors,
            "attention_bias": "blk.0.attn_q.bias" in file.tensors,
            **{key: file.index(f"tokenizer.ggml.{name}_token_id", vocabulary) for key, name in special.items()},
        }
        self._check_shape(config)
        if scaling := self._rope_scaling(config):
            config["rope_scaling"] = scaling
        return config

    def _check_shape(self, config: Mapping[str, Any]) -> None:
        heads, shared, size = (config[k] for k in ("num_attention_heads", "num_key_value_heads", "head_dim"))
        if not shared or heads % shared or size < 2 or size % 2:
            raise self._refusal(f"its metadata say {heads} heads of {size} numbers that share {shared} keys")
        if (rotated := self._file.whole(f"{self._prefix}rope.dimension_count", size)) != size:
            raise self._refusal(f"it rotates {rotated} of {size} dimensions, which is not read")
        if (layers := config["num_hidden_layers"]) > len(self._file.tensors):
            raise self._refusal(f"its metadata say {layers} layers, and it has {len(self._file.tensors)} tensors")

    def _rope_scaling(self, config: Mapping[str, Any]) -> dict[str, Any] | None:
        file, prefix = self._file, f"{self._prefix}rope.scaling."
        kind = file.text(f"{prefix}type") or "none"
        if _ROPE_FACTORS in file.tensors:
            return self._llama3_scaling(config)
        factor = 1.0 if kind == "none" else file.number(f"{prefix}factor", 1.0)
        if factor == 1.0:
            return None
        if kind == "linear":
            return {"rope_type": "linear", "factor": factor}
        original = file.whole(f"{prefix}original_context_length", 0)
        if kind == "yarn" and original:
            return {"rope_type": "yarn", "factor": factor, "original_max_position_embeddings": original}
        raise self._refusal(f"its positions are scaled by {foreign(kind)}, which is not read from GGUF files")

    def _llama3_scaling(self, config: Mapping[str, Any]) -> dict[str, Any]:
        stored: list[float] = next(self._file.values(self._file.tensors[_ROPE_FACTORS]))[0].tolist()
        size, factor = int(config["head_dim"]), max(stored)
        if not factor > 0:
            raise self._refusal("its positions are scaled by no positive number")
        wave_lengths = [2 * pi * float(config["rope_theta"]) ** (2 * i / size) for i in range(size // 2)]
        expected = [_llama3_factor(length, factor) for length in wave_lengths]
        if len(stored) != len(expected) or not all(
            isclose(*pair, rel_tol=1e-3) for pair in zip(stored, expected, strict=True)
        ):
            raise self._refusal("its positions are scaled in a way that is not Llama 3's")
        return {"rope_type": "llama3", "factor": factor, **_LLAMA3_ROPE}

    def _expected(self) -> dict[str, _Target]:
        """Every tensor that the model has, by its name in the file."""
        config = self.config
        hidden, inner, vocabulary = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
        heads, shared, size = (config[k] for k in ("num_attention_heads", "num_key_value_heads", "head_dim"))
        queries, keys = heads * size, shared * size
        q_heads, k_heads = (heads, shared) if self._family.interleaved else (0, 0)
        targets = {
            "token_embd.weight": _Target("model.embed_tokens.weight", (vocabulary, hidden)),
            "output_norm.weight": _Target("model.norm.weight", (hidden,)),
        }
        if not config["tie_word_embeddings"]:
            targets["output.weight"] = _Target("lm_head.weight", (vocabulary, hidden))
        layer = {
            "attn_norm.weight": _Target("input_layernorm.weight", (hidden,)),
            "attn_q.weight": _Target("self_attn.q_proj.weight", (queries, hidden), q_heads),
            "attn_k.weight": _Target("self_attn.k_proj.weight", (keys, hidden), k_heads),
            "attn_v.weight": _Target("self_attn.v_proj.weight", (keys, hidden)),
            "attn_output.weight": _Target("self_attn.o_proj.weight", (hidden, queries)),
            "ffn_norm.weight": _Target("post_attention_layernorm.weight", (hidden,)),
            "ffn_gate.weight": _Target("mlp.gate_proj.weight", (inner, hidden)),
            "ffn_up.weight": _Target("mlp.up_proj.weight", (inner, hidden)),
            "ffn_down.weight": _Target("mlp.down_proj.weight", (hidden, inner)),
        }
        if config["attention_bias"]:
            layer["attn_q.bias"] = _Target("self_attn.q_proj.bias", (queries,), q_heads)
            layer["attn_k.bias"] = _Target("self_attn.k_proj.bias", (keys,), k_heads)
            layer["attn_v.bias"] = _Target("self_attn.v_proj.bias", (keys,))
        if config["attention_bias"] and self._family.model_type == "llama":
            layer["attn_output.bias"] = _Target("self_attn.o_proj.bias", (hidden,))
        if self._family.head_norms:
            layer["attn_q_norm.weight"] = _Target("self_attn.q_norm.weight", (size,))
            layer["attn_k_norm.weight"] = _Target("self_attn.k_norm.weight", (size,))
        for index in range(config["num_hidden_layers"]):
            for name, target in layer.items():
                moved = _Target(f"model.layers.{index}.{target.name}", target.shape, target.heads)
                targets[f"blk.{index}.{name}"] = moved
        return targets

    def _compare(self) -> None:
        tensors = self._file.tensors
        if missing := [name for name in self._targets if name not in tensors]:
            raise self._refusal(f"it has no tensor {missing[0]} ({len(missing)} missing)")
        strays = [name for name in tensors if name not in self._targets and name != _ROPE_FACTORS]
        if strays:
            what = f"{self._family.class_name} has no place for its tensor {foreign(strays[0])}"
            raise self._refusal(f"{what} ({len(strays)} such)")
        for name, target in self._targets.items():
            if tensors[name].shape != target.shape:
                found, wanted = (" x ".join(map(str, shape)) for shape in (tensors[name].shape, target.shape))
                raise self._refusal(f"its tensor {name} is {found}, and its metadata say {wanted}")

    def _storage(self) -> str:
        """In which type to keep the weights: the file's own, and bf16 for quantised ones."""
        matrices = {self._file.storage_of(self._file.tensors[n]) for n, t in self._targets.items() if len(t.shape) > 1}
        return next(iter(matrices)) if len(matrices) == 1 and matrices <= set(_BYTES) else "BF16"

    def _refusal(self, problem: str) -> ModelError:
        return ModelError(problem, where=str(self._file.path), fix="Use the model's folder from the Hugging Face hub")


def _llama3_factor(wave_length: float, factor: float) -> float:
    """By how much Llama 3 slows the rotation of this wave length, in positions per turn."""
    low, high = _LLAMA3_ROPE["low_freq_factor"], _LLAMA3_ROPE["high_freq_factor"]
    turns = _LLAMA3_ROPE["original_max_position_embeddings"] / wave_length
    if turns >= high:
        return 1.0
    if turns <= low:
        return factor
    smooth = (turns - low) / (high - low)
    return 1 / ((1 - smooth) / factor + smooth)
