"""Rows of many kinds in which nothing is wrong, though much in them looks like what checks look for."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from typing import Any

_NOUNS = (
    "river bridge market lantern harbour violin orchard glacier compass library engine window ladder garden".split()
)
_VERBS = "crosses repairs paints describes measures follows carries opens watches studies borrows cleans".split()
_PLACES = "Oslo Kyoto Lima Ghent Porto Accra Quito Perth Turin Hanoi Cork Basel".split()
_NAMES = "Ada Bruno Chidi Dana Emil Farah Goran Hana Ivo Jaya Kofi Lena".split()
_DE = (
    "Der Fluss ist im Frühling sehr breit und das Wasser wird nicht warm. Die Leute gehen mit dem Hund auf die Brücke."
)


def _sentence(rng: random.Random) -> str:
    name, verb, noun, place = (rng.choice(words) for words in (_NAMES, _VERBS, _NOUNS, _PLACES))
    number, other = rng.randint(2, 990), rng.choice(_NOUNS)
    form = rng.choice(
        [
            "{name} {verb} the {noun} of {place} for {number} days.",
            "In {place} there are {number} kinds of {noun}, and {name} {verb} the oldest of them.",
            "The {noun} near the {other} was built by {name} in {number} AD!",
            "Why does {name} think that the {noun} in {place} is older than the {other}?",
        ]
    )
    return form.format(name=name, verb=verb, noun=noun, place=place, number=number, other=other)


def _prose(rng: random.Random) -> tuple[str, str]:
    return f"Tell me about {rng.choice(_PLACES)}: {_sentence(rng)}", " ".join(
        _sentence(rng) for _ in range(rng.randint(2, 9))
    )


def _code(rng: random.Random) -> tuple[str, str]:
    noun = rng.choice(_NOUNS)
    body = (
        f'def {noun}_{rng.randint(0, 9999)}(name, output):\n    return f"Hello {{name}}: {{output}}" + str({{"a": 1}})'
    )
    return (
        f"Write a Python function about {noun}, case {rng.randint(0, 9999)}.",
        f"Here it is:\n\n```python\n{body}\n```",
    )


def _math(rng: random.Random) -> tuple[str, str]:
    a, b = rng.randint(100, 99999), rng.randint(2, 999)
    steps = rf"We have ${a} \cdot {b} = {a * b}$ and $\frac{{{a}}}{{{b}}}$, so {a}*{b} = <<{a}*{b}={a * b}>>{a * b}."
    return f"What is {a} times {b}, and what is the answer modulo 7?", f"{steps}\n#### {a * b % 7}"


def _list(rng: random.Random) -> tuple[str, str]:
    items = "\n".join(f"- {rng.choice(_VERBS)} the {rng.choice(_NOUNS)} before you go to {p}" for p in _PLACES[:5])
    return (
        f"List five things to do with a {rng.choice(_NOUNS)} in {rng.randint(1900, 2030)}.",
        f"### Answer:\n\n{items}",
    )


def _letter(rng: random.Random) -> tuple[str, str]:
    body = " ".join(_sentence(rng) for _ in range(4))
    return (
        f"Write a letter to {rng.choice(_NAMES)} about the {rng.choice(_NOUNS)}, draft {rng.randint(0, 9999)}.",
        f"Dear [Name],\n\n{body} Write to me at someone@example.com or call 555-0134.\n\nKind regards,\n[Your Name]",
    )


def _json(rng: random.Random) -> tuple[str, str]:
    value = {"name": rng.choice(_NAMES), "values": [rng.randint(0, 10**6) for _ in range(4)], "note": _sentence(rng)}
    return f"Give me a record as JSON: {_sentence(rng)}", json.dumps(value)


def _label(rng: random.Random) -> tuple[str, str]:
    return f"Is this positive or negative? Answer: positive or negative.\n{_sentence(rng)}", rng.choice(
        ["positive", "negative"]
    )


def _numbers(rng: random.Random) -> tuple[str, str]:
    version = ".".join(str(rng.randint(0, 99)) for _ in range(3)) + f".{rng.randint(100, 250)}"
    said = (
        f"Version {version} of 2023-04-{rng.randint(10, 30)} listens on 192.168.0.{rng.randint(1, 254)}:8080; "
        f"ISBN 978-3-16-148410-0, order {rng.randint(10**15, 10**16 - 1)}, pi is 3.14159265358979, "
        f"{rng.randint(1, 9)},000,000,000 people, 2020-2021, 10 20 30 40 50 60 70."
    )
    return f"Summarise release {rng.randint(0, 10**6)} of the {rng.choice(_NOUNS)}.", said


def _dialogue(rng: random.Random) -> tuple[str, str]:
    return (
        f"Write a dialogue in {rng.choice(_PLACES)} about {rng.randint(2, 99)} ducks.",
        f"User: {_sentence(rng)}\nAgent: {_sentence(rng)}\n\n“Well,” she said — “it’s <b>fine</b>.”",
    )


def _german(rng: random.Random) -> tuple[str, str]:
    return (
        f"Übersetze ins Deutsche, Satz {rng.randint(0, 9999)}: {_sentence(rng)}",
        f"{_DE} {rng.choice(_NAMES)} kennt {rng.randint(2, 999)} davon.",
    )


_KINDS: list[Callable[[random.Random], tuple[str, str]]] = [
    *(_prose,) * 4, _code, _math, _list, _letter, _json, _label, _numbers, _dialogue, _german
]  # fmt: skip


def sound_rows(count: int, seed: int) -> list[dict[str, Any]]:
    """Rows of all kinds, shuffled, no two of them alike."""
    rng = random.Random(seed)
    rows: dict[str, dict[str, Any]] = {}
    while len(rows) < count:
        prompt, completion = rng.choice(_KINDS)(rng)
        rows.setdefault(prompt, {"prompt": prompt, "completion": completion})
    return list(rows.values())
