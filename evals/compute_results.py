"""From evidence to results: every number of ``metrics.json``."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from statistics import fmean

import numpy as np

from ..doctrine.rules import number
from ..judges.prompt import EvalItem
from .evidence import BASELINE, TUNED, Evidence
from .results import (
    BETTER,
    NONE,
    SAME,
    SCHEMA_VERSION,
    WORSE,
    ArmComparison,
    CategoryMean,
    CorrectedShare,
    EvalResult,
    HumanAgreement,
    JudgeMean,
    JudgeQuality,
    LengthAdjustedRate,
    Strength,
    Unscored,
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
from .statistics.agreement import judge_accuracy, krippendorff_alpha, rogan_gladen
from .statistics.comparison_models import PairScore, bradley_terry, bradley_terry_intervals, length_adjusted
from .statistics.estimates import MeanEstimate
from .statistics.hypothesis_tests import equal_rates_test, holm, sign_test
from .statistics.intervals import (
    bootstrap_interval,
    cluster_labels,
    degenerate_interval,
    mean_interval,
    mean_p_value,
    wilson_interval,
)


def compute_results(evidence: Evidence) -> EvalResult:
    """All numbers, the verdict, and what to be careful about. Draws of the bootstrap follow the config's seed."""
    rng = np.random.default_rng(evidence.config.seed)
    judges = [judge_quality(evidence.judgments, name) for name in evidence.config.judge_model]
    by_arm = missing_by_arm(evidence.judgments)
    unequal = equal_rates_test([(c.missing, c.asked - c.missing) for c in by_arm.values()])
    unscored = Unscored(by_arm=by_arm, reasons=missing_reasons(evidence.judgments), unequal_p_value=unequal)
    obstacle = _obstacle(judges, unscored)
    others = [arm for arm in evidence.answers if arm != BASELINE]
    comparisons = _with_verdicts([_comparison(evidence, arm, rng) for arm in others], evidence.null, obstacle)
    result = EvalResult(
        schema_version=SCHEMA_VERSION,
        mode=evidence.config.mode,
        arms=evidence.config.arms,
        prompts=len(evidence.items),
        clusters=len({i.cluster for i in evidence.items}) if _clusters(evidence.items) else None,
        verdict=next(c.verdict for c in comparisons if c.arm == TUNED),
        no_verdict_because=obstacle,
        comparisons=comparisons,
        judges=judges,
        judge_agreement_alpha=_agreement(evidence),
        unscored=unscored,
        criteria=criterion_scores(evidence.judgments, list(evidence.answers), evidence.rubric),
        bradley_terry=_strengths(evidence, rng) if len(evidence.answers) > 2 and evidence.pairwise else None,
        mean_answer_chars={arm: fmean(len(r.text) for r in rs) for arm, rs in evidence.answers.items()},
    )
    return result.model_copy(update={"warnings": _warnings(evidence, result)})


def _comparison(evidence: Evidence, arm: str, rng: np.random.Generator) -> ArmComparison:
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
    clusters = _clusters(scored)
    estimate = mean_interval(values, clusters=clusters)
    signs = sign_test([v - evidence.null for v in values])
    lowest = 0.0 if evidence.pairwise else -1.0
    draws = evidence.config.bootstrap_draws
    return ArmComparison(
        arm=arm,
        against=BASELINE,
        scored=len(scored),
        p_value=mean_p_value(estimate, evidence.null),
        mean=estimate.mean,
        standard_error=estimate.standard_error,
        deviation=estimate.deviation,
        independent_units=estimate.units,
        interval=estimate.interval or degenerate_interval(values, low=lowest, high=1.0, units=estimate.units),
        bootstrap_interval=bootstrap_interval(values, rng, clusters=clusters, draws=draws),
        wins=signs.wins,
        ties=signs.ties,
        losses=signs.losses,
        win_share_wilson=wilson_interval(signs.wins, len(values)),
        sign_test_p_value=signs.p_value,
        length=_length(evidence, arm, scored, values) if evidence.pairwise else None,
        categories=_categories(scored, values),
        by_judge=_by_judge(evidence, arm) if evidence.pairwise else [],
        human=_against_people(effects, evidence.human) if arm == TUNED and evidence.human else None,
    )


def _with_verdicts(comparisons: Sequence[ArmComparison], null: float, obstacle: str | None) -> list[ArmComparison]:
    """The comparisons with Holm's correction over the arms, and a verdict each."""
    tested = [(c.arm, c.p_value) for c in comparisons if c.p_value is not None]
    adjusted = dict(zip((arm for arm, _ in tested), holm([p for _, p in tested]), strict=True))
    several = len(comparisons) > 1
    return [
        c.model_copy(
            update={
                "p_value_holm": (p := adjusted.get(c.arm)),
                "verdict": NONE if obstacle else _verdict(c, null, p if several else None),
            }
        )
        for c in comparisons
    ]


def _verdict(comparison: ArmComparison, null: float, corrected_p: float | None) -> str:
    interval = comparison.interval
    if interval is None or (corrected_p is not None and corrected_p >= 1 - interval.level):
        return SAME
    return BETTER if interval.low > null else WORSE if interval.high < null else SAME


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


def _agreement(evidence: Evidence) -> float | None:
    """Krippendorff's alpha over the judges' winners, order by order."""
    if len(evidence.config.judge_model) < 2 or not evidence.pairwise:
        return None
    by_question: dict[tuple[str, str, str | None], list[str | None]] = defaultdict(list)
    for j in evidence.judgments:
        if j.kind == "pair":
            by_question[j.item, j.first, j.second].append(j.verdict)
    return krippendorff_alpha(list(by_question.values()))


def _strengths(evidence: Evidence, rng: np.random.Generator) -> dict[str, Strength] | None:
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


def _mean_of(scored: Sequence[tuple[EvalItem, float]]) -> MeanEstimate:
    return mean_interval([value for _, value in scored], clusters=_clusters([item for item, _ in scored]))


def _categories(scored: Sequence[EvalItem], values: Sequence[float]) -> list[CategoryMean]:
    by_name: dict[str, list[tuple[EvalItem, float]]] = defaultdict(list)
    for item, value in zip(scored, values, strict=True):
        if item.category is not None:
            by_name[item.category].append((item, value))
    estimates = {name: _mean_of(rows) for name, rows in sorted(by_name.items())}
    return [CategoryMean(category=k, n=e.n, mean=e.mean, interval=e.interval) for k, e in estimates.items()]


def _by_judge(evidence: Evidence, arm: str) -> list[JudgeMean]:
    means: list[JudgeMean] = []
    by_judge = pair_scores(evidence.judgments, arm, BASELINE, evidence.orders)
    # In the order of the config, whoever answered first.
    for judge in sorted(by_judge, key=evidence.config.judge_model.index):
        scored = [(item, s) for item in evidence.items if (s := by_judge[judge].get(item.id)) is not None]
        if scored:
            estimate = _mean_of(scored)
            means.append(JudgeMean(judge=judge, n=estimate.n, mean=estimate.mean, interval=estimate.interval))
    return means


def _against_people(effects: Mapping[str, float], labels: Mapping[str, str]) -> HumanAgreement | None:
    """The judges against people on the items both decided; None without any. ``effects`` are the tuned arm's scores."""
    decided = [item for item in effects if effects[item] != 0.5]
    both = [item for item in decided if labels.get(item) in {TUNED, BASELINE}]
    if not both:
        return None
    accuracy = judge_accuracy([effects[i] > 0.5 for i in both], [labels[i] == TUNED for i in both])
    corrected = rogan_gladen(sum(effects[i] > 0.5 for i in decided), len(decided), accuracy)
    share = corrected and CorrectedShare(rate=corrected.rate, raw=corrected.raw, **asdict(corrected.interval))
    return HumanAgreement(
        labelled=len(both),
        agreement=sum((effects[i] > 0.5) == (labels[i] == TUNED) for i in both) / len(both),
        true_positive_rate=accuracy.true_positive_rate,
        true_negative_rate=accuracy.true_negative_rate,
        corrected_share_of_decided=share,
    )


def _warnings(evidence: Evidence, result: EvalResult) -> list[str]:
    warnings: list[str] = []
    main = result.main
    if len(evidence.items) < 2:
        warnings.append("one prompt has no interval: nothing can be concluded")
    for judge in result.judges:
        rate = judge.consistency
        if rate is not None and rate < 2 / 3:
            warnings.append(f"{judge.name} gave the same verdict in both orders in only {rate:.0%} of the pairs")
    warnings += _length_warnings(main)
    p, interval = main.sign_test_p_value, main.interval
    if main.verdict in {BETTER, WORSE} and interval and p is not None and p > 1 - interval.level:
        warnings.append(f"the exact sign test does not agree with the interval (p {p:.2g})")
    if not evidence.config.position_debias:
        warnings.append("each pair was asked in one order only: a preference for a place adds noise")
    sizes = Counter(i.cluster for i in evidence.items if i.cluster is not None)
    units = main.independent_units
    if sizes and units is not None and units < 10:
        warnings.append(f"only {units} clusters: the interval rests on few independent units")
    empty = {arm: sum(not r.text.strip() for r in rs) for arm, rs in evidence.answers.items()}
    return warnings + [f"{count} answers of {arm} are empty" for arm, count in empty.items() if count]


def _length_warnings(main: ArmComparison) -> list[str]:
    length = main.length
    if length is None or length.interval is None or main.mean is None:
        return []
    flipped = (length.interval.low > 0.5) != (main.interval is not None and main.interval.low > 0.5)
    if abs(length.rate - main.mean) <= number("judge.length_gap") and not flipped:
        return []
    return [
        f"at equal length the win rate is {length.rate:.3f} ({length.interval.low:.3f} to "
        f"{length.interval.high:.3f}), not {main.mean:.3f}: length is part of the result"
    ]


def _clusters(items: Sequence[EvalItem]) -> list[str] | None:
    return cluster_labels({item.id: item.cluster for item in items})
