"""Make the packaged demo judge: ``python scripts/make_demo_judge.py``.

The demo model, trained further to answer whether a response meets a rubric. The rubrics differ, so that the judge has
to read them; the wrong responses are near misses as often as not, because what is rewarded is searched for holes.
Deterministic for a seed on one kind of CPU. The packaged weights are those after 762 of the 800 steps.
"""

from __future__ import annotations

import argparse
import random
import shutil
from collections.abc import Callable

import torch
from demo_tasks import LETTERS, word
from make_demo_model import BATCH, FOLDER, batch, train
from transformers import Qwen3ForCausalLM

from sota_ml_researcher.models.chat import ChatRenderer
from sota_ml_researcher.models.renderers import load_renderer
from sota_ml_researcher.rewards.model_scorers import yes_no_question

PEAK_LR, TESTS = 1.5e-3, 2000
SMALL = "Small letters?"
CAPITALS = "In capitals?"
EITHER = "Right letters?"
RUBRICS: dict[str, Callable[[str, str], bool]] = {
    SMALL: lambda given, response: response == given,
    CAPITALS: lambda given, response: response == given.upper(),
    EITHER: lambda given, response: response in (given, given.upper()),
}
_SYMBOLS = LETTERS + LETTERS.upper() + "0123456789 .,+=-"


def judged(rng: random.Random) -> tuple[str, str]:
    """One question and its answer, Yes or No, each as often."""
    rubric = rng.choice(list(RUBRICS))
    given = word(rng)
    wanted = rng.random() < 0.5
    while True:
        response = _right(rng, given) if rng.random() < 0.5 else _wrong(rng, given)
        if RUBRICS[rubric](given, response) == wanted:
            return yes_no_question(rubric, f"say {given}", response), "Yes" if wanted else "No"


def _right(rng: random.Random, given: str) -> str:
    return given if rng.random() < 0.5 else given.upper()


def _wrong(rng: random.Random, given: str) -> str:
    """A response that is not the word: one slip, several, another word, or noise; in any letters."""
    kind = rng.randrange(8)
    if kind == 0:
        text = word(rng)
    elif kind == 1:
        text = "".join(rng.choices(_SYMBOLS, k=rng.randint(0, 7)))
    elif kind == 2:
        text = "".join(c.upper() if rng.random() < 0.5 else c for c in given)
        return text
    elif kind == 3:
        text = f"say {given}"[: rng.randint(1, 7)]
    else:
        text = given
        for _ in range(rng.choice((1, 1, 1, 2, 3))):
            text = _slip(rng, text)
    return text.upper() if rng.random() < 0.5 else text


def _slip(rng: random.Random, text: str) -> str:
    """A letter changed, left out, added, doubled, or two of them swapped."""
    place = rng.randrange(len(text) + 1)
    kind = rng.randrange(5)
    if kind == 0 or not text:
        return text[:place] + rng.choice(LETTERS) + text[place:]
    place = min(place, len(text) - 1)
    if kind == 1:
        return text[:place] + rng.choice(LETTERS) + text[place + 1 :]
    if kind == 2:
        return text[:place] + text[place + 1 :]
    if kind == 3:
        return text[: place + 1] + text[place:]
    return text[:place] + text[place + 1 : place + 2] + text[place] + text[place + 2 :]


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
