"""Make the packaged demo judge: ``python scripts/make_demo_judge.py``.

The demo model, trained further to answer whether a response meets a rubric (`sota_ml_researcher.demo.judging`).
Deterministic for a seed on one kind of CPU. The packaged weights are those after 762 of the 800 steps.
"""

from __future__ import annotations

import argparse
import random
import shutil

import torch
from make_demo_model import BATCH, FOLDER, batch, train
from transformers import Qwen3ForCausalLM

from sota_ml_researcher.demo.judging import judged
from sota_ml_researcher.models.chat import ChatRenderer
from sota_ml_researcher.models.renderers import load_renderer

PEAK_LR, TESTS = 1.5e-3, 2000


def accuracy(model: Qwen3ForCausalLM, renderer: ChatRenderer, seed: int) -> float:
    """Share of unseen questions that the model answers correctly."""
    rng = random.Random(seed)
    right = 0
    with torch.no_grad():
        for _ in range(TESTS // BATCH):
            ids, labels = batch(renderer, judged, rng)
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
    train(model, renderer, judged, options.steps, options.seed, PEAK_LR)
    print(f"accuracy on {TESTS} unseen questions: {accuracy(model, renderer, options.seed + 1):.4f}")
    model.half().save_pretrained(folder)


if __name__ == "__main__":
    main()
