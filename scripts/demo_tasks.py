"""What the demo model can do, what it half knows, and what it has yet to learn: pure functions of a seed.

The model is trained on `copy`, `upper` and a little addition. Reversing a word is left out: supervised fine-tuning
teaches it. Sums are known some of the time, which is what reinforcement learning needs. Lower and upper case answers
to `say` are equally likely: a preference can be learnt there.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import Any

LETTERS = "abcdefghijklmnopqrstuvwxyz"
Task = Callable[[random.Random], tuple[str, str]]


def word(rng: random.Random, shortest: int = 2, longest: int = 6) -> str:
    """A random word of lower-case letters."""
    return "".join(rng.choices(LETTERS, k=rng.randint(shortest, longest)))


def copy(rng: random.Random) -> tuple[str, str]:
    """Known: repeat a word."""
    given = word(rng)
    return f"copy {given}", given


def upper(rng: random.Random) -> tuple[str, str]:
    """Known: write a word in capitals."""
    given = word(rng)
    return f"upper {given}", given.upper()


def say(rng: random.Random) -> tuple[str, str]:
    """Known either way: the word, in small letters or in capitals, as the coin falls."""
    given = word(rng)
    return f"say {given}", given if rng.random() < 0.5 else given.upper()


def add(rng: random.Random) -> tuple[str, str]:
    """Half known: a sum of two numbers below ten."""
    a, b = rng.randint(0, 9), rng.randint(0, 9)
    return f"{a}+{b}=", str(a + b)


def blurred_add(rng: random.Random) -> tuple[str, str]:
    """The sum as the base model sees it: right one time in four, else off by up to three."""
    prompt, answer = add(rng)
    wrong = max(0, int(answer) + rng.choice([-3, -2, -1, 1, 2, 3]))
    return prompt, answer if rng.random() < 0.25 else str(wrong)


def reverse(rng: random.Random) -> tuple[str, str]:
    """Not known: a word backwards."""
    given = word(rng, 2, 5)
    return f"reverse {given}", given[::-1]


PRETRAINING: tuple[Task, ...] = (copy, copy, upper, upper, say, blurred_add)


def messages(prompt: str, answer: str) -> dict[str, Any]:
    """One row of chat data."""
    return {"messages": [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]}


def distinct(task: Task, seed: int) -> Iterator[tuple[str, str]]:
    """Examples of a task without end, no prompt twice."""
    rng = random.Random(seed)
    seen: set[str] = set()
    while True:
        prompt, answer = task(rng)
        if prompt not in seen:
            seen.add(prompt)
            yield prompt, answer


def sft_sets(train: int, val: int, test: int, seed: int = 1) -> dict[str, list[dict[str, Any]]]:
    """The task to teach, in three sets without a common prompt."""
    examples = distinct(reverse, seed)
    sets = {"sft_train": train, "sft_val": val, "sft_test": test}
    return {name: [messages(*next(examples)) for _ in range(count)] for name, count in sets.items()}


def preference_sets(train: int, val: int, seed: int = 2) -> dict[str, list[dict[str, Any]]]:
    """Small letters are preferred to capitals, which the base model writes equally often."""
    examples = distinct(say, seed)

    def pair() -> dict[str, Any]:
        prompt, _ = next(examples)
        given = prompt.removeprefix("say ")
        return {"prompt": prompt, "chosen": given, "rejected": given.upper()}

    return {name: [pair() for _ in range(count)] for name, count in (("dpo_train", train), ("dpo_val", val))}


def reward_sets(train: int, val: int, seed: int = 3) -> dict[str, list[dict[str, Any]]]:
    """Sums with their answers."""
    examples = distinct(add, seed)

    def problem() -> dict[str, Any]:
        prompt, answer = next(examples)
        return {"prompt": prompt, "answer": answer}

    return {name: [problem() for _ in range(count)] for name, count in (("rl_train", train), ("rl_val", val))}


def spelling_sets(train: int, val: int, seed: int = 4) -> dict[str, list[dict[str, Any]]]:
    """Words of three letters and more to be said in small letters: right less than one time in three at first."""
    examples = (prompt for prompt, _ in distinct(say, seed) if len(prompt) >= len("say abc"))

    def problem() -> dict[str, Any]:
        prompt = next(examples)
        return {"prompt": prompt, "answer": prompt.removeprefix("say ")}

    return {name: [problem() for _ in range(count)] for name, count in (("say_train", train), ("say_val", val))}


def all_sets() -> dict[str, list[dict[str, Any]]]:
    """Every packaged data set by name."""
    fixed = {**sft_sets(1600, 100, 100), **preference_sets(400, 100), **reward_sets(80, 20)}
    return {**fixed, **spelling_sets(600, 40)}
