"""Measure the statistics of judge evaluations and rewrite what docs/judge-eval.md and the doctrine say of them.

Run it from the repository root after a change to evals/statistics or to a verdict, it takes about two minutes:
``python scripts/make_judge_tables.py``. ``--check`` writes nothing and fails where the files say something else.
"""

import argparse
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from sota_ml_researcher.doctrine.rules import integer, number
from sota_ml_researcher.evals.controls import check_pairs
from sota_ml_researcher.evals.statistics.hypothesis_tests import sign_test
from sota_ml_researcher.evals.statistics.intervals import (
    cluster_inflation,
    effective_size,
    mean_interval,
    wilson_ends,
    wilson_interval,
)
from sota_ml_researcher.evals.statistics.power import items_needed

ROOT = Path(__file__).parents[1]
BEGIN, END = "<!-- table: made by scripts/make_judge_tables.py -->", "<!-- end of table -->"
SIZES = (20, 50, 200)
RATES = (0.02, 0.05, 0.1, 0.2, 0.35, 0.5, 0.65, 0.8, 0.9, 0.95, 0.98)
WANTED, LOW, HIGH = 0.95, 0.935, 0.965
Scores = NDArray[np.float64]


class Kind(NamedTuple):
    """A kind of test set: the share of ties, prompts per cluster, and their correlation."""

    name: str
    ties: float
    size: int
    correlation: float


KINDS = (
    Kind("no ties", 0.0, 1, 0.0),
    Kind("30% ties", 0.3, 1, 0.0),
    Kind("60% ties", 0.6, 1, 0.0),
    Kind("clusters of 5", 0.0, 5, 0.2),
    Kind("clusters of 5, alike", 0.0, 5, 0.5),
    Kind("clusters of 5, 30% ties", 0.3, 5, 0.2),
)


def scores(kind: Kind, n: int, rate: float, repeats: int, rng: np.random.Generator) -> tuple[Scores, float]:
    """Simulated evaluations, shape [repeats, n], and their true mean.

    The chance to win is one for a cluster, beta-distributed with mean ``rate`` and the kind's correlation.
    """
    chance: Any = rate
    if kind.size > 1:
        total = 1 / kind.correlation - 1
        drawn = rng.beta(rate * total, (1 - rate) * total, (repeats, n // kind.size))
        chance = np.repeat(drawn, kind.size, axis=1)
    won = (rng.random((repeats, n)) < chance).astype(float)
    tied = rng.random((repeats, n)) < kind.ties
    return np.where(tied, 0.5, won), 0.5 * kind.ties + (1 - kind.ties) * rate


def intervals(x: Scores, size: int) -> tuple[Scores, Scores]:
    """The 95% intervals of all evaluations at once, by the functions that `mean_interval` uses for one."""
    n = x.shape[1]
    units, mean, variance = n // size, x.mean(axis=1), x.var(axis=1)
    law = stats.norm if size == 1 else stats.t(units - 1)
    quantile = float(law.ppf(0.975))
    inflation: Any = 1.0
    if size > 1:
        sums = (x - mean[:, None]).reshape(len(x), units, size).sum(axis=2)
        error = (sums**2).sum(axis=1) * units / (units - 1) / n**2
        inflation = cluster_inflation(error, variance, np.full(units, size))
    low, high = wilson_ends(mean, effective_size(n, mean, (x**2).mean(axis=1), inflation), quantile)
    alike = x.min(axis=1) == x.max(axis=1)
    missed = quantile**2 / (units + quantile**2)
    return np.where(alike, mean * (1 - missed), low), np.where(alike, mean + missed * (1 - mean), high)


def coverage(kind: Kind, n: int, rate: float, repeats: int, seed: int) -> float:
    """The share of intervals that hold the true mean; enumerated for independent prompts without ties.

    Raises:
        AssertionError: If an interval leaves 0 to 1, or is not what `mean_interval` gives.
    """
    if kind.size == 1 and kind.ties == 0:
        wins = np.arange(n + 1)
        low, high = intervals((np.arange(n) < wins[:, None]).astype(float), 1)
        return float(stats.binom.pmf(wins, n, rate)[(low <= rate) & (rate <= high)].sum())
    x, truth = scores(kind, n, rate, repeats, np.random.default_rng(seed))
    low, high = intervals(x, kind.size)
    assert low.min() >= 0 and high.max() <= 1
    clusters = [k // kind.size for k in range(n)] if kind.size > 1 else None
    for row in range(5):
        one = mean_interval(x[row], clusters=clusters, bounds=(0, 1)).interval
        assert one is not None and np.allclose((one.low, one.high), (low[row], high[row]), atol=1e-9)
    return float(((low <= truth + 1e-12) & (truth - 1e-12 <= high)).mean())


def nearest_possible(n: int, rate: float) -> float:
    """Of n independent wins and losses: the coverage nearest to 95% that any interval made from their number can have.

    Such an interval holds ``rate`` for the numbers of wins from some a to some b.
    """
    below = stats.binom.cdf(np.arange(-1, n + 1), n, rate)
    possible = below[None, :] - below[:, None]
    return float(possible.flat[np.abs(possible - WANTED).argmin()])


def coverage_table(repeats: int) -> Iterator[str]:
    """The lines of the table of coverage, in percent."""
    yield f"| n | scores | {' | '.join(f'{rate:g}' for rate in RATES)} |"
    yield "|" + "---|" * (len(RATES) + 2)
    for n in SIZES:
        for index, kind in enumerate(KINDS):
            row = [coverage(kind, n, rate, repeats, 100 * index + k) for k, rate in enumerate(RATES)]
            yield f"| {n} | {kind.name} | {' | '.join(_cell(c, kind, n, r) for c, r in zip(row, RATES, strict=True))} |"


def _cell(found: float, kind: Kind, n: int, rate: float) -> str:
    text = f"{100 * found:.1f}"
    if LOW <= found <= HIGH:
        return text
    if kind.size == 1 and kind.ties == 0 and not LOW <= nearest_possible(n, rate) <= HIGH:
        return f"{text} (+)"
    return f"**{text}**" if found < LOW else f"{text} (c)"


def false_verdicts() -> float:
    """The largest chance of a verdict at a true win rate of one half, over 1 to 200 prompts without ties."""
    return max(_verdict_chance(n, 0.5) for n in range(1, 201))


def _verdict_chance(n: int, rate: float) -> float:
    chance = 0.0
    for k in range(n + 1):
        interval = mean_interval([1.0] * k + [0.0] * (n - k), bounds=(0, 1)).interval
        p = sign_test([1.0] * k + [-1.0] * (n - k)).p_value
        if interval is not None and p is not None and p < 0.05 and not interval.low <= 0.5 <= interval.high:
            chance += float(stats.binom.pmf(k, n, rate))
    return chance


def lean_found(share: float) -> float:
    """The chance that the control finds a judge that takes one place in ``share`` of equal answers, enumerated."""
    size = integer("judge.control.size")
    found = [bool(check_pairs("judge", [1.0], ["A"] * k + ["B"] * (size - k)).problems) for k in range(size + 1)]
    return float(sum(stats.binom.pmf(k, size, share) for k in range(size + 1) if found[k]))


def verdict_table(repeats: int) -> Iterator[str]:
    """The lines of the table of verdicts."""
    from planted_judges import PLANTED, evaluate, is_wrong, names_the_cause
    from same_model import not_distinguishable

    yield "| what | measured | wanted |"
    yield "|---|---|---|"
    shares = [
        f"{100 * not_distinguishable(repeats, n, seed=1, cluster_size=size) / repeats:.1f}%"
        for n, size in ((50, 1), (200, 1), (200, 5))
    ]
    yield (
        f"| a model against itself, from judgements to the verdict, {repeats:,} evaluations each of 50 prompts, 200, "
        f"and 200 in clusters of 5 | {', '.join(shares)} *not distinguishable* | 94% |"
    )
    yield (
        "| a verdict at a true win rate of one half, 1 to 200 prompts without ties, enumerated | at most "
        f"{100 * false_verdicts():.1f}% | 5% |"
    )
    results = [(planted, evaluate(planted, seed=seed)) for planted in PLANTED.values() for seed in range(5)]
    wrong = [(planted, result) for planted, result in results if is_wrong(planted, result)]
    silent = sum(not names_the_cause(planted, result) for planted, result in wrong)
    yield (
        f"| {len(PLANTED)} planted judges (`tests/support/planted_judges.py`), 5 evaluations each | {len(wrong)} of "
        f"{len(results)} verdicts wrong, {silent} of them without a *Careful* that names the cause | 0 |"
    )


def page_text(repeats: int) -> str:
    """What stands between the two marks."""
    coverages = "\n".join(coverage_table(10 * repeats))
    return f"""{BEGIN}

{chr(10).join(verdict_table(repeats))}

Share of 95% intervals that hold the true win rate, by the win rate among decided pairs: enumerated for independent
prompts without ties, else {10 * repeats:,} simulated evaluations per cell. No interval left 0 to 1. Prompts of a
cluster have a correlation of 0.2, "alike" of 0.5.

{coverages}

(+): no interval made from a whole number of wins comes within 93.5 to 96.5% here. (c): wider than need be; whole
numbers allow few intervals, and four or ten clusters, or a handful of losses, do not say how alike a cluster is, so
that the interval takes the worse case. Bold: below 93.5%.

{END}"""


class Note(NamedTuple):
    """What a field of a rule says."""

    rule: str
    field: str
    text: str


def doctrine_notes() -> list[Note]:
    """The fields of doctrine/rules.yaml that say something measured or computed here."""
    needed = {effect: items_needed(effect, 0.5) for effect in (0.1, 0.05)}
    wilson = wilson_interval(124, 200)
    assert wilson is not None
    found = " and ".join(f"{100 * _verdict_chance(n, 0.5 + effect):.0f}%" for effect, n in needed.items())
    return [
        Note(
            "judge.samples",
            "claim",
            f"{needed[0.1]} prompts show a 60% win rate with 80% power, {needed[0.05]} a 55% one.",
        ),
        Note("judge.samples", "value", str(needed[0.1])),
        Note(
            "judge.samples",
            "note",
            '"Computed: n solves 2.80 x 0.5 / sqrt(n) + 1/n = p - 0.5, the last term for the steps of the exact test; '
            f'the enumerated chance of a verdict is {found}."',
        ),
        Note(
            "judge.control.size",
            "note",
            "A judge that always chooses the same place is found with certainty, one that does so in nine of ten with "
            f"{100 * lean_found(0.9):.0f}% (p < {number('judge.control.lean'):g}).",
        ),
        Note(
            "stats.wilson",
            "note",
            f"124 of 200 (62%) is {100 * wilson.low:.1f}% to {100 * wilson.high:.1f}%. The normal interval is too "
            "short below a few hundred items.",
        ),
    ]


def with_notes(rules: str) -> str:
    """The rules with these fields as measured."""
    for rule, field, text in doctrine_notes():
        pattern = rf"(?m)^({re.escape(rule)}:\n(?:  .*\n)*?  {field}: ).*$"
        rules, count = re.subn(pattern, lambda found, text=text: found[1] + text, rules)
        assert count == 1, rule
    return rules


def with_prompts_needed(page: str) -> str:
    """The page's table of how many prompts a win rate needs."""

    def row(found: re.Match[str]) -> str:
        return f"| {found[1]}% | {items_needed(int(found[1]) / 100 - 0.5, 0.5):,} |"

    return re.sub(r"(?m)^\| (\d\d)% \| [\d,]+ \|$", row, page)


def main() -> int:
    """Measure, and rewrite or check the files."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=2000, help="evaluations of a model against itself")
    parser.add_argument("--check", action="store_true")
    options = parser.parse_args()
    sys.path.insert(0, str(ROOT / "tests" / "support"))

    def page(text: str) -> str:
        return re.sub(f"{re.escape(BEGIN)}.*?{re.escape(END)}", lambda _: page_text(options.repeats), text, flags=re.S)

    rewritten: dict[Path, Callable[[str], str]] = {
        ROOT / "docs" / "judge-eval.md": page,
        ROOT / "doctrine" / "rules.yaml": with_notes,
        ROOT / "doctrine" / "judge_evaluation.md": with_prompts_needed,
    }
    stale: list[Path] = []
    for path, rewrite in rewritten.items():
        text = path.read_text(encoding="utf-8")
        made = rewrite(text)
        stale += [path] if made != text else []
        if not options.check:
            path.write_text(made, encoding="utf-8")
    if options.check and stale:
        print("not what is measured:", *stale, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
