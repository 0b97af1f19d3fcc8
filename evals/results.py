"""What an evaluation found: every number of ``metrics.json``. Heavy: numpy, scipy, statsmodels."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any, cast

import numpy as np

from ..doctrine.rules import rule
from ..judges.journal import Judgment
from ..judges.prompt import EvalItem
from ..judges.rubric import Rubric
from .human_labels import against_people
from .judge_config import JudgeEvalConfig
from .responses import Response
from .scoring import absolute_scores, consistency, criterion_scores, missing, over_judges, pair_scores
from .statistics.agreement import krippendorff_alpha
from .statistics.comparison_models import Comparison, bradley_terry, bradley_terry_intervals, length_adjusted
from .statistics.hypothesis_tests import equal_rates_test, holm, sign_test
from .statistics.intervals import (
    Interval,
    alike_interval,
    bootstrap_interval,
    mean_interval,
    mean_p_value,
    wilson_interval,
)

SCHEMA_VERSION = 1
BASELINE, TUNED = "baseline", "tuned"
BETTER, WORSE, SAME, NONE = "better", "worse", "not distinguishable", "no verdict"


@dataclass(frozen=True, slots=True)
class Evidence:
    """All that was gathered: settings, prompts, answers by arm, judgements."""

    config: JudgeEvalConfig
    rubric: Rubric
    items: Sequence[EvalItem]
    answers: Mapping[str, Sequence[Response]]
    judgments: Sequence[Judgment]
    human: Mapping[str, str]

    @property
    def orders(self) -> int:
        """In how many orders each pair was asked."""
        return 2 if self.config.position_debias else 1

    @property
    def pairwise(self) -> bool:
        """Whether answers were compared (or scored one by one)."""
        return self.config.mode == "pairwise"

    @property
    def null(self) -> float:
        """The effect of no difference: half the pairs won, or a difference of 0."""
        return 0.5 if self.pairwise else 0.0


def conclude(evidence: Evidence) -> dict[str, Any]:
    """All numbers, the verdict, and what to be careful about."""
    rng = np.random.default_rng(evidence.config.seed)
    others = [arm for arm in evidence.answers if arm != BASELINE]
    comparisons = [_comparison(evidence, arm, rng) for arm in others]
    tested = [c for c in comparisons if c["p_value"] is not None]
    for c, adjusted in zip(tested, holm([c["p_value"] for c in tested]), strict=True):
        c["p_value_holm"] = adjusted
    lost = missing(evidence.judgments)
    unequal = equal_rates_test([(m, asked - m) for m, asked in lost.by_arm.values()])
    obstacle = _obstacle(lost.by_judge, lost.by_arm, unequal)
    for c in comparisons:
        c["verdict"] = NONE if obstacle else _verdict(c, evidence.null, several=len(comparisons) > 1)
    main = next(c for c in comparisons if c["arm"] == TUNED)
    result: dict[str, Any] = {
        "schema_version": SCHEMA_VERSION,
        "mode": evidence.config.mode,
        "arms": evidence.config.arms,
        "prompts": len(evidence.items),
        "clusters": len({i.cluster for i in evidence.items}) if _clusters(evidence.items) else None,
        "verdict": main["verdict"],
        "no_verdict_because": obstacle,
        "comparisons": comparisons,
        "judges": [_judge(evidence, name, lost.by_judge) for name in evidence.config.judge_model],
        "judge_agreement_alpha": _agreement(evidence),
        "unscored": {
            "by_arm": {a: {"missing": m, "asked": n} for a, (m, n) in lost.by_arm.items()},
            "reasons": dict(lost.reasons),
            "unequal_p_value": unequal,
        },
        "criteria": criterion_scores(evidence.judgments, list(evidence.answers), evidence.rubric),
        "bradley_terry": _strengths(evidence, rng) if len(evidence.answers) > 2 and evidence.pairwise else None,
        "mean_answer_chars": {arm: fmean(len(r.text) for r in rs) for arm, rs in evidence.answers.items()},
    }
    result["warnings"] = _warnings(evidence, result)
    return result


def item_effects(evidence: Evidence, arm: str) -> dict[str, float]:
    """For each scored item the effect of ``arm`` against the baseline: its score, or the difference of scores."""
    if evidence.pairwise:
        return over_judges(pair_scores(evidence.judgments, arm, BASELINE, evidence.orders))
    mine, theirs = (absolute_scores(evidence.judgments, a, evidence.rubric) for a in (arm, BASELINE))
    differences = {judge: _differences(mine[judge], theirs.get(judge, {})) for judge in mine}
    return over_judges(differences)


def _comparison(evidence: Evidence, arm: str, rng: np.random.Generator) -> dict[str, Any]:
    effects = item_effects(evidence, arm)
    scored = [item for item in evidence.items if item.id in effects]
    found: dict[str, Any] = {
        "arm": arm,
        "against": BASELINE,
        "scored": len(scored),
        "p_value": None,
        "p_value_holm": None,
    }
    if not scored:
        return found | {
            "mean": None,
            "interval": None,
            "wins": 0,
            "ties": 0,
            "losses": 0,
            "length": None,
            "deviation": None,
        }
    values = [effects[item.id] for item in scored]
    clusters = _clusters(scored)
    estimate = mean_interval(values, clusters=clusters)
    signs = sign_test([v - evidence.null for v in values])
    lowest = 0.0 if evidence.pairwise else -1.0
    interval = estimate.interval or alike_interval(values, low=lowest, high=1.0, units=estimate.units)
    draws = evidence.config.bootstrap_draws
    wins = wilson_interval(signs.wins, len(values))
    return found | {
        "mean": estimate.mean,
        "standard_error": estimate.standard_error,
        "deviation": estimate.deviation,
        "independent_units": estimate.units,
        "interval": _shown(interval),
        "bootstrap_interval": _shown(bootstrap_interval(values, rng, clusters=clusters, draws=draws)),
        "p_value": mean_p_value(estimate, evidence.null),
        "wins": signs.wins,
        "ties": signs.ties,
        "losses": signs.losses,
        "win_share_wilson": _shown(wins),
        "sign_test_p_value": signs.p_value,
        "length": _length(evidence, arm, scored, values) if evidence.pairwise else None,
        "categories": _categories(scored, values),
        "by_judge": _by_judge(evidence, arm),
        "human": against_people(effects, evidence.human, arm) if arm == TUNED and evidence.human else None,
    }


def _verdict(comparison: Mapping[str, Any], null: float, *, several: bool) -> str:
    interval = comparison["interval"]
    if interval is None:
        return SAME
    adjusted = comparison["p_value_holm"]
    if several and adjusted is not None and adjusted >= 1 - interval["level"]:
        return SAME
    return BETTER if interval["low"] > null else WORSE if interval["high"] < null else SAME


def _obstacle(
    by_judge: Mapping[str, tuple[int, int]], by_arm: Mapping[str, tuple[int, int]], unequal: float | None
) -> str | None:
    limit = float(cast("float", rule("judge.unscored.limit").value))
    for judge, (lost, asked) in by_judge.items():
        if lost > limit * asked:
            return f"{lost} of {asked} judgements of {judge} are missing, above {limit:.0%} (judge.unscored.limit)"
    if unequal is not None and unequal < float(cast("float", rule("judge.unscored.unequal").value)):
        shares = ", ".join(f"{arm} {lost} of {asked}" for arm, (lost, asked) in by_arm.items())
        return f"missing judgements fall unequally on the arms: {shares} (judge.unscored.unequal)"
    return None


def _judge(evidence: Evidence, name: str, lost: Mapping[str, tuple[int, int]]) -> dict[str, Any]:
    mine = [j for j in evidence.judgments if j.judge == name]
    order = consistency(mine, name)
    gone, asked = lost.get(name, (0, 0))
    return {
        "name": name,
        "models": sorted({j.model for j in mine if j.model}),
        "calls": sum(j.attempts for j in mine),
        "repaired": sum(j.attempts > 1 and j.unscored is None for j in mine),
        "unscored": gone,
        "asked": asked,
        "pairs_in_both_orders": order.pairs,
        "consistency": order.rate,
        "flips": order.flips,
        "first_preferred": order.first_wins,
        "second_preferred": order.second_wins,
    }


def _agreement(evidence: Evidence) -> float | None:
    """Krippendorff's alpha over the judges' winners, order by order."""
    if len(evidence.config.judge_model) < 2 or not evidence.pairwise:
        return None
    by_question: dict[tuple[str, str, str | None], list[str | None]] = defaultdict(list)
    for j in evidence.judgments:
        if j.kind == "pair":
            by_question[j.item, j.first, j.second].append(j.verdict)
    return krippendorff_alpha(list(by_question.values()))


def _strengths(evidence: Evidence, rng: np.random.Generator) -> dict[str, Any] | None:
    arms = list(evidence.answers)
    by_item: dict[str, list[Comparison]] = defaultdict(list)
    for index, second in enumerate(arms):
        for first in arms[index + 1 :]:
            scores = over_judges(pair_scores(evidence.judgments, first, second, evidence.orders))
            for item, score in scores.items():
                by_item[item].append(Comparison(first, second, score))
    scored = [item for item in evidence.items if item.id in by_item]
    pairs = [by_item[item.id] for item in scored]
    strengths = bradley_terry([c for p in pairs for c in p], prior=0.5)
    if strengths is None:
        return None
    intervals = bradley_terry_intervals(pairs, rng, clusters=_clusters(scored)) or {}
    return {a: {"log_odds": s, "interval": _shown(intervals.get(a))} for a, s in strengths.items()}


def _length(evidence: Evidence, arm: str, scored: Sequence[EvalItem], values: Sequence[float]) -> dict[str, Any] | None:
    place = {item.id: index for index, item in enumerate(evidence.items)}
    mine, theirs = evidence.answers[arm], evidence.answers[BASELINE]
    differences = [float(len(mine[place[i.id]].text) - len(theirs[place[i.id]].text)) for i in scored]
    found = length_adjusted(values, differences, clusters=_clusters(scored))
    if found is None:
        return None
    return {
        "rate": found.rate,
        "interval": _shown(found.interval),
        "slope_log_odds_per_sd": found.slope,
        "slope_p_value": found.slope_p_value,
        "mean_difference_chars": fmean(differences),
    }


def _categories(scored: Sequence[EvalItem], values: Sequence[float]) -> list[dict[str, Any]]:
    by_name: dict[str, list[tuple[EvalItem, float]]] = defaultdict(list)
    for item, value in zip(scored, values, strict=True):
        if item.category is not None:
            by_name[item.category].append((item, value))
    found: list[dict[str, Any]] = []
    for name, rows in sorted(by_name.items()):
        estimate = mean_interval([v for _, v in rows], clusters=_clusters([i for i, _ in rows]))
        found.append({"category": name, "n": len(rows), "mean": estimate.mean, "interval": _shown(estimate.interval)})
    return found


def _by_judge(evidence: Evidence, arm: str) -> list[dict[str, Any]]:
    if not evidence.pairwise:
        return []
    found: list[dict[str, Any]] = []
    by_judge = pair_scores(evidence.judgments, arm, BASELINE, evidence.orders)
    # In the order of the config, whoever answered first.
    for judge in sorted(by_judge, key=evidence.config.judge_model.index):
        scores = by_judge[judge]
        scored = [item for item in evidence.items if scores.get(item.id) is not None]
        if not scored:
            continue
        estimate = mean_interval([cast("float", scores[i.id]) for i in scored], clusters=_clusters(scored))
        found.append({"judge": judge, "n": len(scored), "mean": estimate.mean, "interval": _shown(estimate.interval)})
    return found


def _warnings(evidence: Evidence, result: Mapping[str, Any]) -> list[str]:
    found: list[str] = []
    main = next(c for c in result["comparisons"] if c["arm"] == TUNED)
    if len(evidence.items) < 2:
        found.append("one prompt has no interval: nothing can be concluded")
    for judge in result["judges"]:
        rate = judge["consistency"]
        if rate is not None and rate < 2 / 3:
            found.append(f"{judge['name']} gave the same verdict in both orders in only {rate:.0%} of the pairs")
    found += _length_warnings(main, evidence)
    p, interval = main.get("sign_test_p_value"), main["interval"]
    if main["verdict"] in {BETTER, WORSE} and interval and p is not None and p > 1 - interval["level"]:
        found.append(f"the exact sign test does not agree with the interval (p {p:.2g})")
    if not evidence.config.position_debias:
        found.append("each pair was asked in one order only: a preference for a place adds noise")
    sizes = Counter(i.cluster for i in evidence.items if i.cluster is not None)
    if sizes and main.get("independent_units", 99) < 10:
        found.append(f"only {main['independent_units']} clusters: the interval rests on few independent units")
    empty = {arm: sum(not r.text.strip() for r in rs) for arm, rs in evidence.answers.items()}
    found += [f"{count} answers of {arm} are empty" for arm, count in empty.items() if count]
    return found


def _length_warnings(main: Mapping[str, Any], evidence: Evidence) -> list[str]:
    length = main["length"]
    if not length or not length["interval"] or main["mean"] is None:
        return []
    gap = length["rate"] - main["mean"]
    flipped = (length["interval"]["low"] > 0.5) != (main["interval"] is not None and main["interval"]["low"] > 0.5)
    if abs(gap) <= float(cast("float", rule("judge.length_gap").value)) and not flipped:
        return []
    return [
        f"at equal length the win rate is {length['rate']:.3f} ({length['interval']['low']:.3f} to "
        f"{length['interval']['high']:.3f}), not {main['mean']:.3f}: length is part of the result"
    ]


def _differences(mine: Mapping[str, float | None], theirs: Mapping[str, float | None]) -> dict[str, float | None]:
    pairs = {item: (score, theirs.get(item)) for item, score in mine.items()}
    return {item: None if a is None or b is None else a - b for item, (a, b) in pairs.items()}


def _clusters(items: Sequence[EvalItem]) -> list[str] | None:
    if all(item.cluster is None for item in items):
        return None
    return [f"c:{item.cluster}" if item.cluster is not None else f"i:{item.id}" for item in items]


def _shown(interval: Interval | None) -> dict[str, Any] | None:
    return None if interval is None else dict(interval._asdict())
