"""What on the surface of the answers tells the judge's verdicts by itself: their length, or one word or mark.

A judge that looks at such a thing alone gives confident verdicts; so does an honest one where the better answers happen
to carry it. The verdicts cannot tell the two apart, so a reader is told. Programs that compare with references are not
asked.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence

from .statistics.comparison_models import SEPARATED, rank_agreement
from .statistics.hypothesis_tests import sign_test

# A word without its case, or one run of marks ("**", "!", "```"); digits carry the content.
_TOKEN = re.compile(r"[^\W\d_]+|[^\w\s]+")
_LEAST_PAIRS = 10
_NAMED = 5
_CHANCE = 0.001  # that some word of the answers tells as many winners by luck


def surface_cues(effects: Sequence[float], pairs: Sequence[tuple[str, str]]) -> list[str]:
    """Sentences about what alone tells nearly all winners; empty where nothing does.

    Args:
        effects: Each item's effect, above zero where the first answer won, shape [n].
        pairs: The two answers to each item.
    """
    length = _length(effects, [len(first) - len(second) for first, second in pairs])
    return [sentence for sentence in (length, _word(effects, pairs)) if sentence is not None]


def _length(effects: Sequence[float], differences: Sequence[int]) -> str | None:
    told = rank_agreement(effects, differences)
    if told is None:
        return None
    which = "longer" if told > 0 else "shorter"
    return (
        f"length alone tells {abs(told):.0%} of the verdicts, the {which} answer wins: this may be the judge's taste "
        "for length and not quality (judge.length_bias)"
    )


def _word(effects: Sequence[float], pairs: Sequence[tuple[str, str]]) -> str | None:
    decided = [(effect > 0, *pair) for effect, pair in zip(effects, pairs, strict=True) if effect != 0]
    wins, apart = Counter[str](), Counter[str]()
    for first_won, first, second in decided:
        mine, theirs = _tokens(first), _tokens(second)
        apart.update(mine ^ theirs)
        wins.update((mine - theirs) if first_won else (theirs - mine))
    least = max(_LEAST_PAIRS, len(decided) / 2)
    common = [word for word, count in apart.items() if count >= least]
    told = [(max(wins[w], apart[w] - wins[w]), w) for w in common]
    told = [
        (count, w)
        for count, w in told
        if count >= SEPARATED * apart[w] and _lucky(count, apart[w]) * len(common) < _CHANCE
    ]
    if not told:
        return None
    most = max(count for count, _ in told)
    count, word = next(found for found in sorted(told) if found[0] == most)
    has = "with" if wins[word] == count else "without"
    alike = sorted(w for c, w in told if c == most and apart[w] == apart[word] and (wins[w] == c) == (has == "with"))
    named = ", ".join(f"'{w[:20]}'" for w in alike[:_NAMED]) + (" and others" if len(alike) > _NAMED else "")
    return (
        f"the answer {has} {named} wins {count} of the {apart[word]} pairs that differ in it: this may be the "
        "judge's taste for a style or a name and not quality"
    )


def _lucky(count: int, pairs: int) -> float:
    p_value = sign_test([1.0] * count + [-1.0] * (pairs - count)).p_value
    assert p_value is not None
    return p_value


def _tokens(text: str) -> set[str]:
    found: Iterable[str] = _TOKEN.findall(text.casefold())
    return set(found)
