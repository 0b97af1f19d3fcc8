"""What each of the training runs behind ``tests/analysis/logs`` is drawn with, and its rows: functions of its name."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import demo_tasks

FIRST_HELD_OUT = 1000
# Rates that train the demo model well, by method.
GOOD_RATE = {"sft": 6e-4, "lora": 3e-3, "dpo": 2e-4, "rl": 1.5e-4}
RATE_FAULTS = {
    "lr_x10": 10.0,
    "lr_x30": 30.0,
    "lr_x100": 100.0,
    "lr_d10": 0.1,
    "lr_d30": 1 / 30,
    "lr_d100": 0.01,
    "lr_d1000": 0.001,
}
# For each method its faults.
FAULTS: Mapping[str, tuple[str, ...]] = {
    "sft": (
        *RATE_FAULTS,
        *("labels_shuffled", "labels_shuffled_halfway", "other_data", "harder_data", "duplicates", "tiny_data"),
        *("nan_filtered", "nan_raw", "mask_end_only", "mask_everything", "mask_empty"),
    ),
    "lora": ("lr_x10", "lr_x30", "lr_x100", "lr_d10", "lr_d100", "lr_d1000", "labels_shuffled", "tiny_data"),
    "dpo": (
        *("lr_x30", "lr_x100", "lr_d100", "lr_d1000", "labels_random", "labels_swapped_halfway", "tiny_data"),
        *("wrong_reference", "nan_filtered", "duplicates"),
    ),
    "rl": ("lr_x30", "lr_x100", "lr_d100", "lr_d1000", "reward_zero", "reward_random", "nan_filtered"),
}
HEALTHY: Mapping[str, int] = {"sft": 24, "lora": 18, "dpo": 16, "rl": 5}


@dataclass(frozen=True)
class Spec:
    """One run to make: how it is trained, what is wrong with it ("healthy": nothing), and what it was drawn with."""

    source: str
    method: str
    fault: str
    seed: int

    @property
    def name(self) -> str:
        """The folder of its log."""
        return f"{self.source}-{self.method}-{self.fault}-{self.seed}"


@dataclass(frozen=True)
class Settings:
    """What a run was drawn with."""

    task: str
    rows: int
    steps: int
    batch: int
    rate: float
    schedule: str
    warmup: float
    log_every: int
    eval_every: int
    epochs: float
    rank: int


def _sorted(rng: random.Random) -> tuple[str, str]:
    given = demo_tasks.word(rng, 2, 5)
    return f"sort {given}", "".join(sorted(given))


def _next_letters(rng: random.Random) -> tuple[str, str]:
    given = demo_tasks.word(rng, 2, 6)
    return f"next {given}", "".join(chr((ord(c) - 96) % 26 + 97) for c in given)


def _ends(rng: random.Random) -> tuple[str, str]:
    given = demo_tasks.word(rng, 3, 6)
    return f"ends {given}", given[0] + given[-1]


def _swap_halves(rng: random.Random) -> tuple[str, str]:
    given = demo_tasks.word(rng, 4, 6)
    return f"halves {given}", given[len(given) // 2 :] + given[: len(given) // 2]


def _small(row: tuple[str, str]) -> tuple[str, str]:
    return row[0], row[1].lower()


TASKS: Mapping[str, Callable[[random.Random], tuple[str, str]]] = {
    "reverse": demo_tasks.reverse,
    "sort": _sorted,
    "next": _next_letters,
    "ends": _ends,
    "halves": _swap_halves,
    "say": lambda rng: _small(demo_tasks.say(rng)),
}
SFT_TASKS = ("reverse", "reverse", "sort", "ends", "halves")
Pair = tuple[str, str]


def pairs_of(task: str, rng: random.Random, count: int) -> list[Pair]:
    """Prompts and answers of a task."""
    return [TASKS[task](rng) for _ in range(count)]


def shuffled_answers(rows: Sequence[Pair], rng: random.Random) -> list[Pair]:
    """The same prompts, each with the answer of another."""
    answers = [answer for _, answer in rows]
    rng.shuffle(answers)
    return [(prompt, answer) for (prompt, _), answer in zip(rows, answers, strict=True)]


def draw(spec: Spec) -> tuple[Settings, random.Random]:
    """The settings of a run, and the generator its rows are drawn with."""
    rng = random.Random(spec.name)
    method = spec.method
    task = {"dpo": "say", "rl": "say"}.get(method) or rng.choice(SFT_TASKS)
    low, high = {"sft": (60, 120), "lora": (60, 100), "dpo": (60, 90), "rl": (40, 60)}[method]
    steps = rng.randint(low, high)
    if method in ("sft", "lora") and rng.random() < 0.06:
        steps = rng.randint(200, 400)
    batch = {"dpo": 6, "rl": 8}.get(method) or rng.choice((6, 8, 12))
    epochs = rng.choice((1, 1, 1, 2, 3))
    rate = GOOD_RATE[method] * 10 ** rng.uniform(-0.2, 0.2) * RATE_FAULTS.get(spec.fault, 1.0)
    every = rng.choice((0, max(2, steps // 12), max(2, steps // 12), max(1, steps // 40)))
    if spec.fault == "tiny_data":
        every, epochs = max(2, steps // rng.choice((12, 20))), 0
    settings = Settings(
        task=task,
        rows=40 if spec.fault == "tiny_data" else max(batch, round(steps * batch / epochs)),
        steps=steps,
        batch=batch,
        rate=rate,
        schedule=rng.choice(("linear", "cosine", "cosine", "constant", "constant_with_warmup", "cosine_with_restarts")),
        warmup=rng.choice((0.0, 0.03, 0.05, 0.1)),
        log_every=rng.choice((1, 1, 1, 2, 5)) if method != "rl" else 1,
        eval_every=every if method != "rl" else 0,
        epochs=epochs,
        rank=rng.choice((8, 16, 32)),
    )
    return settings, rng


def sft_rows(spec: Spec, s: Settings, rng: random.Random) -> tuple[list[Pair], bool]:
    """Training rows, and whether their order must be kept (a fault begins in the middle)."""
    rows = pairs_of(s.task, rng, s.rows)
    total = s.steps * s.batch
    if spec.fault == "labels_shuffled":
        return shuffled_answers(rows, rng), False
    if spec.fault == "duplicates":
        return (rows[: rng.randint(4, 12)] * total)[: s.rows], False
    if spec.fault in ("labels_shuffled_halfway", "other_data", "harder_data"):
        at = int(total * rng.uniform(0.4, 0.65))
        rows = pairs_of(s.task, rng, total)
        if spec.fault == "labels_shuffled_halfway":
            return rows[:at] + shuffled_answers(rows[at:], rng), True
        if spec.fault == "other_data":
            other = rng.choice([t for t in SFT_TASKS if t != s.task])
            return rows[:at] + pairs_of(other, rng, total - at), True
        noise = [(prompt, demo_tasks.word(rng, 4, 6)) for prompt, _ in rows[at:]]
        return rows[:at] + noise, True
    return rows, False


def say_pairs(rng: random.Random, count: int) -> list[dict[str, str]]:
    """Preferences without a surface mark in half of the runs: the task is which of two answers repeats the word."""
    rows: list[dict[str, str]] = []
    for _ in range(count):
        given = demo_tasks.word(rng, 3, 6)
        wrong = demo_tasks.word(rng, 3, 6)
        rows.append({"prompt": f"say {given}", "chosen": given[::-1], "rejected": wrong})
    return rows


def case_pairs(rng: random.Random, count: int) -> list[dict[str, str]]:
    """Preferences with a mark on the surface: small letters are better."""
    words = [demo_tasks.word(rng, 3, 6) for _ in range(count)]
    return [{"prompt": f"say {w}", "chosen": w, "rejected": w.upper()} for w in words]


def swapped(row: Mapping[str, str]) -> dict[str, str]:
    """The pair with its answers changed over."""
    return {"prompt": row["prompt"], "chosen": row["rejected"], "rejected": row["chosen"]}


def dpo_rows(spec: Spec, s: Settings, rng: random.Random) -> tuple[list[dict[str, str]], bool]:
    """Pairs, and whether their order must be kept."""
    make = case_pairs if spec.seed % 2 else say_pairs
    rows = make(rng, s.rows)
    if spec.fault == "labels_random":
        return [row if rng.random() < 0.5 else swapped(row) for row in rows], False
    if spec.fault == "duplicates":
        return (rows[: rng.randint(3, 8)] * s.rows)[: s.rows], False
    if spec.fault == "labels_swapped_halfway":
        total = s.steps * s.batch
        at = int(total * rng.uniform(0.4, 0.6))
        rows = make(rng, total)
        return rows[:at] + [swapped(row) for row in rows[at:]], True
    return rows, False
