"""Random-weight Qwen3 models and their tokenizer, for benchmarks and probes: real speed, meaningless text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# name -> hidden, layers, heads, key heads, head size, intermediate, vocabulary
SHAPES: dict[str, tuple[int, ...]] = {
    "tiny": (32, 2, 4, 2, 8, 64, 1024),
    "135m": (576, 30, 9, 3, 64, 1536, 49152),
    "29m": (512, 8, 8, 4, 64, 1536, 8192),
    "0.6b": (1024, 28, 16, 8, 128, 3072, 151936),
    "1.7b": (2048, 28, 16, 8, 128, 6144, 151936),
}


def _tokenizer(vocabulary: int) -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=min(vocabulary, 8000),
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    raw.train_from_iterator((f"{a} plus {b} equals {a + b}." for a in range(200) for b in range(20)), trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="<|im_end|>", pad_token="<|endoftext|>")
    tokenizer.chat_template = CHATML
    return tokenizer


def write_model(folder: Path, shape: str) -> Path:
    """Write the model named by ``shape`` (a key of ``SHAPES``) with random weights of seed 0."""
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    hidden, layers, heads, key_heads, size, intermediate, vocabulary = SHAPES[shape]
    torch.manual_seed(0)
    config = Qwen3Config(
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=key_heads,
        head_dim=size,
        intermediate_size=intermediate,
        vocab_size=vocabulary,
        max_position_embeddings=4096,
        tie_word_embeddings=True,
        eos_token_id=2,
        pad_token_id=0,
    )
    Qwen3ForCausalLM(config).save_pretrained(folder)
    _tokenizer(vocabulary).save_pretrained(folder)
    return folder
