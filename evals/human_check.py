"""The judges against people's labels: how far they agree, the win rate that this leaves, and whether it is refuted."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict

from .evidence import BASELINE, TUNED
from .results import BETTER, WORSE, CorrectedShare, HumanAgreement
from .statistics.agreement import judge_accuracy, rogan_gladen
from .statistics.hypothesis_tests import sign_test


def against_people(effects: Mapping[str, float], labels: Mapping[str, str]) -> HumanAgreement:
    """The judges against people on the items that both decided.

    Args:
        effects: The tuned arm's score by item, 0 to 1.
        labels: People's winner by item: ``tuned``, ``baseline`` or ``tie``.
    """
    decided = [item for item in effects if effects[item] != 0.5]
    both = [item for item in decided if labels.get(item) in {TUNED, BASELINE}]
    accuracy = judge_accuracy([effects[i] > 0.5 for i in both], [labels[i] == TUNED for i in both])
    corrected = rogan_gladen(sum(effects[i] > 0.5 for i in decided), len(decided), accuracy)
    share = corrected and CorrectedShare(rate=corrected.rate, raw=corrected.raw, **asdict(corrected.interval))
    winners = list(labels.values())
    return HumanAgreement(
        labels=len(labels),
        labels_for_tuned=winners.count(TUNED),
        labels_for_baseline=winners.count(BASELINE),
        labelled=len(both),
        agreement=sum((effects[i] > 0.5) == (labels[i] == TUNED) for i in both) / len(both) if both else None,
        true_positive_rate=accuracy.true_positive_rate,
        true_negative_rate=accuracy.true_negative_rate,
        corrected_share_of_decided=share,
    )


def refuted_by_people(human: HumanAgreement, verdict: str) -> str | None:
    """Why people's labels take the verdict away; None where they bear it out, or there is none to take.

    The share of decided pairs corrected for the judge's errors must lie on the verdict's side of one half, with its
    interval. Where it cannot be computed (labels for one arm alone, or a judge that agrees no better than chance), the
    labels must show the same by themselves, by the exact sign test.
    """
    if verdict not in {BETTER, WORSE}:
        return None
    share = human.corrected_share_of_decided
    if share is not None:
        if share.low > 0.5 if verdict == BETTER else share.high < 0.5:
            return None
        where = "covers one half" if share.low <= 0.5 <= share.high else "says the opposite"
        return (
            f"{_agreement(human)}; corrected for the judge's errors the tuned arm wins {share.rate:.3f} of the decided "
            f"pairs, and the interval, {share.low:.3f} to {share.high:.3f}, {where}: label more prompts, or use "
            "another judge"
        )
    if not human.labelled:
        return (
            f"people and judge both decided none of the {human.labels} labelled pairs, so nothing bears the judge out: "
            "label more prompts"
        )
    if borne_out_by_labels(human, verdict):
        return None
    if human.true_positive_rate is None or human.true_negative_rate is None:
        side = TUNED if human.true_negative_rate is None else BASELINE
        return (
            f"{_agreement(human)}, where every label names the {side} arm: label more prompts, some that people give "
            "to the other arm"
        )
    return f"{_agreement(human)}, which is no better than chance (judge.agreement): use another judge or rubric"


def borne_out_by_labels(human: HumanAgreement, verdict: str) -> bool:
    """Whether people's labels alone show the verdict's winner, at p < 0.05 of the exact sign test."""
    ahead, behind = human.labels_for_tuned, human.labels_for_baseline
    if verdict == WORSE:
        ahead, behind = behind, ahead
    p_value = sign_test([1.0] * ahead + [-1.0] * behind).p_value
    return ahead > behind and p_value is not None and p_value < 0.05


def _agreement(human: HumanAgreement) -> str:
    return f"people's labels do not bear the judge out: it agrees with {human.agreement:.0%} of {human.labelled}"
