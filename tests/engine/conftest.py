"""Tiny random models of every supported family, and a tokenizer, written once a session; an engine that runs."""

from __future__ import annotations

from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import pytest
import torch
from engine_support import Running

VOCABULARY = 96
_SMALL = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 48,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 64,
}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", {**_SMALL, "tie_word_embeddings": False, "attention_bias": True, "mlp_bias": True}),
    "qwen2": ("Qwen2Config", {**_SMALL, "tie_word_embeddings": True}),
    "qwen3": ("Qwen3Config", {**_SMALL, "head_dim": 16, "tie_word_embeddings": True}),
    "qwen3_moe": (
        "Qwen3MoeConfig",
        {**_SMALL, "head_dim": 16, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24},
    ),
    "gemma": ("GemmaConfig", {**_SMALL, "head_dim": 16}),
    "gemma2": ("Gemma2Config", {**_SMALL, "head_dim": 16, "sliding_window": 8, "query_pre_attn_scalar": 16}),
    "phi": ("PhiConfig", {**_SMALL, "num_key_value_heads": 4}),
    "phi3": ("Phi3Config", {**_SMALL, "pad_token_id": 0}),
    "mistral": ("MistralConfig", {**_SMALL, "sliding_window": 8}),
    "gpt2": ("GPT2Config", {"n_embd": 32, "n_layer": 2, "n_head": 4, "vocab_size": VOCABULARY, "n_positions": 64}),
}
# Products of 512 columns round by how many rows they have. Heads of 8 are none that the compiled loops take.
_WIDE = {"hidden_size": 512, "intermediate_size": 776, "num_attention_heads": 6, "max_position_embeddings": 256}
FAMILIES |= {
    f"wide{size}": ("Qwen3Config", {**_SMALL, **_WIDE, "head_dim": size, "tie_word_embeddings": False})
    for size in (8, 16)
}


def _save_tokenizer(folder: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {f"w{index}": index for index in range(VOCABULARY - 1)} | {"<eos>": VOCABULARY - 1}
    raw = Tokenizer(models.WordLevel(words, unk_token="w0"))
    raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="<eos>", pad_token="w0").save_pretrained(folder)


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a tiny random model of a family (a key of ``FAMILIES``)."""
    import transformers

    made: dict[str, Path] = {}

    def make(family: str) -> Path:
        if family not in made:
            class_name, settings = FAMILIES[family]
            torch.manual_seed(0)
            config = getattr(transformers, class_name)(**settings)
            model = transformers.AutoModelForCausalLM.from_config(config)
            for parameter in model.parameters():
                # The default initialisation leaves biases and norms at 0 and 1, where mistakes hide.
                parameter.data.add_(torch.randn_like(parameter) * 0.1)
            folder = tmp_path_factory.mktemp(family)
            model.save_pretrained(folder)
            _save_tokenizer(folder)
            made[family] = folder
        return made[family]

    return make


@pytest.fixture(scope="session")
def http_engine(tiny_weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Generator[Running]:
    """One engine process for the tests that look at its HTTP alone."""
    running = Running(tiny_weights, tmp_path_factory.mktemp("store"))
    yield running
    running.stop()
