"""Make the packaged demo judge: ``python scripts/make_demo_judge.py``.

The demo model, trained further to answer whether a response meets a rubric (`sota_ml_researcher.demo.judging`).
Deterministic for a seed on one kind of CPU. The packaged weights are those after 762 of the 800 steps.
"""

from __future__ import annotations

import argparse
import random
import shutil
import time

import torch
from make_demo_model import FOLDER
from torch.nn.functional import cross_entropy
from transformers import Qwen3ForCausalLM

from sota_ml_researcher.demo import tasks
from sota_ml_researcher.demo.judging import judged
from sota_ml_researcher.training.rendering import ChatRenderer, load_renderer

BATCH, PEAK_LR, WARMUP, TESTS = 64, 1.5e-3, 50, 2000


def batch(renderer: ChatRenderer, rng: random.Random, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Input ids and labels (-100 where there is no loss), both [B, T]."""
    rendered = renderer.render_many([tasks.messages(*judged(rng))["messages"] for _ in range(size)])
    longest = max(len(r.tokens) for r in rendered)
    ids = torch.zeros(size, longest, dtype=torch.long)
    labels = torch.full((size, longest), -100)
    for i, row in enumerate(rendered):
        tokens = torch.tensor(row.tokens)
        ids[i, : len(tokens)] = tokens
        labels[i, : len(tokens)] = torch.where(torch.tensor(row.weights, dtype=torch.bool), tokens, -100)
    return ids, labels


def train(model: Qwen3ForCausalLM, renderer: ChatRenderer, steps: int, seed: int) -> None:
    """AdamW with warm-up and cosine decay."""
    rng = random.Random(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=PEAK_LR, betas=(0.9, 0.95), weight_decay=0.01)
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps, eta_min=PEAK_LR / 20)
    began = time.monotonic()
    for step in range(steps):
        ids, labels = batch(renderer, rng, BATCH)
        logits = model(input_ids=ids).logits[:, :-1]
        loss = cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = decay.get_last_lr()[0] * min(1.0, (step + 1) / WARMUP)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        decay.step()
        if step % 100 == 0 or step == steps - 1:
            print(f"step {step}: loss {loss.item():.4f}, {time.monotonic() - began:.0f} s", flush=True)


def accuracy(model: Qwen3ForCausalLM, renderer: ChatRenderer, seed: int) -> float:
    """Share of unseen questions answered rightly."""
    rng = random.Random(seed)
    right = 0
    with torch.no_grad():
        for _ in range(TESTS // BATCH):
            ids, labels = batch(renderer, rng, BATCH)
            said = model(input_ids=ids).logits[:, :-1].argmax(-1)
            wanted = labels[:, 1:]
            first = (wanted != -100).float().argmax(-1, keepdim=True)
            right += int((said.gather(1, first) == wanted.gather(1, first)).sum())
    return right / (TESTS // BATCH * BATCH)


def main() -> None:
    """Write ``demo/judge``."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=800)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    folder = FOLDER / "judge"
    shutil.copytree(FOLDER / "model", folder, dirs_exist_ok=True)
    torch.manual_seed(options.seed)
    model = Qwen3ForCausalLM.from_pretrained(FOLDER / "model", dtype=torch.float32)
    renderer = load_renderer(str(folder))
    train(model, renderer, options.steps, options.seed)
    print(f"accuracy on {TESTS} unseen questions: {accuracy(model, renderer, options.seed + 1):.4f}")
    model.half().save_pretrained(folder)


if __name__ == "__main__":
    main()
