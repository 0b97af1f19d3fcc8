"""What the demo judge is trained on: a rubric, a prompt, a response, and whether the rubric is met.

Pure functions of a seed. The rubrics differ, so that the judge has to read them; the wrong responses are near misses as
often as not, because what is rewarded is searched for holes.
"""

from __future__ import annotations

import random
from collections.abc import Callable

from ..rewards.model_scorers import yes_no_question
from .tasks import LETTERS, word

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
