"""Make the packaged demo model and its data sets: ``python scripts/make_demo_model.py``.

A Qwen3 of 0.8 million parameters with one token per character, trained from scratch on the tasks of
``demo_tasks`` with loss on the answers only. Deterministic for a seed on one kind of CPU.
"""

from __future__ import annotations

import argparse
import json
import random
import string
import time
from collections.abc import Callable
from pathlib import Path

import demo_tasks as tasks
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch.nn.functional import cross_entropy
from transformers import Qwen3Config, Qwen3ForCausalLM

from sota_ml_researcher.models.chat import ChatRenderer
from sota_ml_researcher.models.renderers import load_renderer
from sota_ml_researcher.models.template_renderer import TemplateRenderer

FOLDER = Path(__file__).parent.parent / "demo"
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|unk|>"]
CHATML = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
BATCH, PEAK_LR, WARMUP = 64, 2e-3, 50
Draw = Callable[[random.Random], tuple[str, str]]


def write_tokenizer(folder: Path) -> int:
    """One token per character: printable ASCII and the newline; anything else is ``<|unk|>``."""
    characters = [*SPECIAL, *string.printable[:95], "\n"]
    tokenizer = Tokenizer(models.WordLevel({c: i for i, c in enumerate(characters)}, unk_token="<|unk|>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens(SPECIAL)
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "unk_token": "<|unk|>",
        "model_max_length": 512,
        "clean_up_tokenization_spaces": False,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n")
    (folder / "chat_template.jinja").write_text(CHATML)
    return len(characters)


def new_model(vocabulary: int) -> Qwen3ForCausalLM:
    """The untrained model."""
    config = Qwen3Config(
        vocab_size=vocabulary,
        hidden_size=128,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        intermediate_size=384,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        eos_token_id=2,
        pad_token_id=0,
        bos_token_id=None,
    )
    return Qwen3ForCausalLM(config)


def batch(renderer: ChatRenderer, draw: Draw, rng: random.Random) -> tuple[torch.Tensor, torch.Tensor]:
    """Input ids and labels (-100 where there is no loss) of drawn questions and answers, both [B, T]."""
    rendered = renderer.render_many([tasks.messages(*draw(rng))["messages"] for _ in range(BATCH)])
    longest = max(len(r.tokens) for r in rendered)
    ids = torch.zeros(BATCH, longest, dtype=torch.long)
    labels = torch.full((BATCH, longest), -100)
    for i, row in enumerate(rendered):
        tokens = torch.tensor(row.tokens)
        ids[i, : len(tokens)] = tokens
        labels[i, : len(tokens)] = torch.where(torch.tensor(row.weights, dtype=torch.bool), tokens, -100)
    return ids, labels


def train(
    model: Qwen3ForCausalLM, renderer: ChatRenderer, draw: Draw, steps: int, seed: int, peak_lr: float = PEAK_LR
) -> None:
    """AdamW with warm-up and cosine decay."""
    rng = random.Random(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=peak_lr, betas=(0.9, 0.95), weight_decay=0.01)
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps, eta_min=peak_lr / 20)
    began = time.monotonic()
    for step in range(steps):
        ids, labels = batch(renderer, draw, rng)
        logits = model(input_ids=ids).logits[:, :-1]
        loss = cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = decay.get_last_lr()[0] * min(1.0, (step + 1) / WARMUP)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        decay.step()
        if step % 200 == 0 or step == steps - 1:
            print(f"step {step}: loss {loss.item():.4f}, {time.monotonic() - began:.0f} s", flush=True)


def main() -> None:
    """Write ``demo/model`` and ``demo/data``."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=1600)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    model_folder, data_folder = FOLDER / "model", FOLDER / "data"
    for folder in (model_folder, data_folder):
        folder.mkdir(parents=True, exist_ok=True)
    for name, rows in tasks.all_sets().items():
        (data_folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    torch.manual_seed(options.seed)
    model = new_model(write_tokenizer(model_folder))
    model.config.save_pretrained(model_folder)
    renderer = load_renderer(str(model_folder))
    if not isinstance(renderer, TemplateRenderer):
        raise TypeError("the demo model has a chat template of its own")
    train(model, renderer, lambda rng: rng.choice(tasks.PRETRAINING)(rng), options.steps, options.seed)
    model.half().save_pretrained(model_folder)
    size = sum(file.stat().st_size for file in model_folder.iterdir())
    print(f"{model_folder}: {sum(p.numel() for p in model.parameters()):,} parameters, {size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
