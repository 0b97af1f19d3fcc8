"""From evidence to results: every number of ``metrics.json``."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from statistics import fmean

import numpy as np

from ..doctrine.rules import number
from ..judges.prompt import EvalItem
from .cautions import cautions
from .evidence import BASELINE, TUNED, Evidence
from .human_check import against_people, refuted_by_people
from .results import (
    NONE,
    SCHEMA_VERSION,
    ArmComparison,
    CategoryMean,
    EvalResult,
    JudgeMean,
    JudgeQuality,
    LengthAdjustedRate,
    Strength,
    Unscored,
    verdict_of,
)
from .scoring import (
    criterion_scores,
    item_effects,
    judge_quality,
    missing_by_arm,
    missing_reasons,
    over_judges,
    pair_scores,
)
from .statistics.agreement import krippendorff_alpha
from .statistics.comparison_models import PairScore, bradley_terry, bradley_terry_intervals, length_adjusted
from .statistics.estimates import MeanEstimate
from .statistics.hypothesis_tests import SignTest, equal_rates_test, holm, sign_test
from .statistics.intervals import cluster_labels, mean_interval, mean_p_value, scale_of


def compute_results(evidence: Evidence) -> EvalResult:
    """All numbers, the verdict, and what to be careful about."""
    judges = [judge_quality(evidence.judgments, name) for name in evidence.config.judge_model]
    by_arm = missing_by_arm(evidence.judgments)
    unequal = equal_rates_test([(c.missing, c.asked - c.missing) for c in by_arm.values()])
    unscored = Unscored(by_arm=by_arm, reasons=missing_reasons(evidence.judgments), unequal_p_value=unequal)
    others = [arm for arm in evidence.answers if arm != BASELINE]
    comparisons = _with_verdicts([_comparison(evidence, arm) for arm in others], evidence.null)
    obstacle = _obstacle(judges, unscored) or _refutation(comparisons)
    if obstacle:
        comparisons = [c.model_copy(update={"verdict": NONE}) for c in comparisons]
    result = EvalResult(
        schema_version=SCHEMA_VERSION,
        mode=evidence.config.mode,
        arms=evidence.config.arms,
        prompts=len(evidence.items),
        clusters=len({i.cluster for i in evidence.items} - {None}) or None,
        verdict=next(c.verdict for c in comparisons if c.arm == TUNED),
        no_verdict_because=obstacle,
        comparisons=comparisons,
        judges=judges,
        judge_agreement_alpha=_agreement(evidence),
        unscored=unscored,
        criteria=criterion_scores(evidence.judgments, list(evidence.answers), evidence.rubric),
        bradley_terry=_strengths(evidence) if len(evidence.answers) > 2 and evidence.pairwise else None,
        mean_answer_chars={arm: fmean(len(r.text) for r in rs) for arm, rs in evidence.answers.items()},
    )
    return result.model_copy(update={"warnings": cautions(evidence, result)})


def _comparison(evidence: Evidence, arm: str) -> ArmComparison:
    """One arm against the baseline, not yet corrected for the number of arms and without its verdict."""
    effects = item_effects(evidence, arm)
    scored = [item for item in evidence.items if item.id in effects]
    if not scored:
        return ArmComparison(
            arm=arm,
            against=BASELINE,
            scored=0,
            p_value=None,
            mean=None,
            deviation=None,
            interval=None,
            wins=0,
            ties=0,
            losses=0,
            length=None,
        )
    values = [effects[item.id] for item in scored]
    estimate = _mean(evidence, list(zip(scored, values, strict=True)))
    signs = sign_test([v - evidence.null for v in values], clusters=_clusters(scored))
    return ArmComparison(
        arm=arm,
        against=BASELINE,
        scored=len(scored),
        p_value=mean_p_value(estimate, evidence.null),
        mean=estimate.mean,
        standard_error=estimate.standard_error,
        deviation=estimate.deviation,
        independent_units=estimate.units,
        interval=estimate.interval,
        wins=signs.wins,
        ties=signs.ties,
        losses=signs.losses,
        sign_test_p_value=signs.p_value,
        length=_length(evidence, arm, scored, values) if evidence.pairwise else None,
        categories=_categories(evidence, scored, values),
        by_judge=_by_judge(evidence, arm) if evidence.pairwise else [],
        human=against_people(effects, evidence.human) if arm == TUNED and evidence.human else None,
    )


def _with_verdicts(comparisons: Sequence[ArmComparison], null: float) -> list[ArmComparison]:
    """The comparisons with a verdict each, corrected by Holm where there are several."""
    tested = {
        c.arm: max(c.p_value, c.sign_test_p_value)
        for c in comparisons
        if c.p_value is not None and c.sign_test_p_value is not None
    }
    adjusted = dict(zip(tested, holm(list(tested.values())), strict=True)) if len(comparisons) > 1 else {}
    return [
        c.model_copy(
            update={
                "p_value_holm": adjusted.get(c.arm),
                "verdict": verdict_of(
                    c.interval,
                    SignTest(c.wins, c.losses, c.ties, c.sign_test_p_value),
                    null,
                    holm_p=adjusted.get(c.arm),
                ),
            }
        )
        for c in comparisons
    ]


def _obstacle(judges: Sequence[JudgeQuality], unscored: Unscored) -> str | None:
    """What forbids a verdict: too many missing judgments, or more of them for one arm than for another."""
    limit = number("judge.unscored.limit")
    for judge in judges:
        if judge.unscored > limit * judge.asked:
            missing = f"{judge.unscored} of {judge.asked} judgements of {judge.name} are missing"
            return f"{missing}, above {limit:.0%} (judge.unscored.limit)"
    unequal = unscored.unequal_p_value
    if unequal is not None and unequal < number("judge.unscored.unequal"):
        shares = ", ".join(f"{arm} {c.missing} of {c.asked}" for arm, c in unscored.by_arm.items())
        return f"missing judgements fall unequally on the arms: {shares} (judge.unscored.unequal)"
    return None


def _refutation(comparisons: Sequence[ArmComparison]) -> str | None:
    """What people's labels say against the judges, and with them against every verdict."""
    main = next(c for c in comparisons if c.arm == TUNED)
    return None if main.human is None else refuted_by_people(main.human, main.verdict)


def _agreement(evidence: Evidence) -> float | None:
    """Krippendorff's alpha over the judges' winners, order by order."""
    if len(evidence.config.judge_model) < 2 or not evidence.pairwise:
        return None
    by_question: dict[tuple[str, str, str | None], list[str | None]] = defaultdict(list)
    for j in evidence.judgments:
        if j.kind == "pair":
            by_question[j.item, j.first, j.second].append(j.verdict)
    return krippendorff_alpha(list(by_question.values()))


def _strengths(evidence: Evidence) -> dict[str, Strength] | None:
    """Bradley-Terry strengths of all arms; draws of their bootstrap follow the config's seed."""
    rng = np.random.default_rng(evidence.config.seed)
    arms = list(evidence.answers)
    by_item: dict[str, list[PairScore]] = defaultdict(list)
    for index, second in enumerate(arms):
        for first in arms[index + 1 :]:
            scores = over_judges(pair_scores(evidence.judgments, first, second, evidence.orders))
            for item, score in scores.items():
                by_item[item].append(PairScore(first, second, score))
    scored = [item for item in evidence.items if item.id in by_item]
    pairs = [by_item[item.id] for item in scored]
    strengths = bradley_terry([c for p in pairs for c in p], prior=0.5)
    if strengths is None:
        return None
    intervals = bradley_terry_intervals(pairs, rng, clusters=_clusters(scored)) or {}
    return {arm: Strength(log_odds=s, interval=intervals.get(arm)) for arm, s in strengths.items()}


def _length(
    evidence: Evidence, arm: str, scored: Sequence[EvalItem], values: Sequence[float]
) -> LengthAdjustedRate | None:
    place = {item.id: index for index, item in enumerate(evidence.items)}
    mine, theirs = evidence.answers[arm], evidence.answers[BASELINE]
    differences = [float(len(mine[place[i.id]].text) - len(theirs[place[i.id]].text)) for i in scored]
    adjusted = length_adjusted(values, differences, clusters=_clusters(scored))
    if adjusted is None:
        return None
    return LengthAdjustedRate(
        rate=adjusted.rate,
        interval=adjusted.interval,
        slope_log_odds_per_sd=adjusted.slope,
        slope_p_value=adjusted.slope_p_value,
        mean_difference_chars=fmean(differences),
    )


def _mean(evidence: Evidence, scored: Sequence[tuple[EvalItem, float]]) -> MeanEstimate:
    """The mean effect: win rates lie on the scale of 0 to 1, differences of scores on that of -1 to 1."""
    values = [value for _, value in scored]
    bounds = (0.0, 1.0) if evidence.pairwise else scale_of(values, -1.0, 1.0)
    return mean_interval(values, clusters=_clusters([item for item, _ in scored]), bounds=bounds)


def _categories(evidence: Evidence, scored: Sequence[EvalItem], values: Sequence[float]) -> list[CategoryMean]:
    by_name: dict[str, list[tuple[EvalItem, float]]] = defaultdict(list)
    for item, value in zip(scored, values, strict=True):
        if item.category is not None:
            by_name[item.category].append((item, value))
    estimates = {name: _mean(evidence, rows) for name, rows in sorted(by_name.items())}
    return [CategoryMean(category=k, n=e.n, mean=e.mean, interval=e.interval) for k, e in estimates.items()]


def _by_judge(evidence: Evidence, arm: str) -> list[JudgeMean]:
    means: list[JudgeMean] = []
    by_judge = pair_scores(evidence.judgments, arm, BASELINE, evidence.orders)
    # In the order of the config, whoever answered first.
    for judge in sorted(by_judge, key=evidence.config.judge_model.index):
        scored = [(item, s) for item in evidence.items if (s := by_judge[judge].get(item.id)) is not None]
        if scored:
            estimate = _mean(evidence, scored)
            means.append(JudgeMean(judge=judge, n=estimate.n, mean=estimate.mean, interval=estimate.interval))
    return means


def _clusters(items: Sequence[EvalItem]) -> list[str] | None:
    return cluster_labels({item.id: item.cluster for item in items})
