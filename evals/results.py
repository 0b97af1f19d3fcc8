"""What an evaluation concludes, as it stands in ``metrics.json``, ``judges.json`` and ``verdict.json``.

A field that was not measured is left out of the file: `write_record` writes the fields that were set, and a file of an
earlier version lacks those that came later.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict

from ..core.files import write_atomically
from .controls import ControlResult
from .evidence import TUNED
from .statistics.estimates import Interval

if TYPE_CHECKING:
    from .statistics.hypothesis_tests import SignTest

SCHEMA_VERSION = 1
BETTER, WORSE, SAME, NONE = "better", "worse", "not distinguishable", "no verdict"


class Record(BaseModel):
    """A part of a result file."""

    model_config = ConfigDict(frozen=True)


class LengthAdjustedRate(Record):
    """The win rate at equal length (see `statistics.comparison_models.length_adjusted`)."""

    rate: float
    interval: Interval | None
    slope_log_odds_per_sd: float
    slope_p_value: float | None
    mean_difference_chars: float


class CategoryMean(Record):
    """The mean effect among the prompts of one category."""

    category: str
    n: int
    mean: float
    interval: Interval | None


class JudgeMean(Record):
    """The mean effect by one of several judges."""

    judge: str
    n: int
    mean: float
    interval: Interval | None


class CorrectedShare(Record):
    """The share of decided pairs that the tuned arm won, raw and corrected for the judge's errors, with interval."""

    rate: float
    raw: float
    low: float
    high: float
    level: float
    method: str

    @property
    def interval(self) -> Interval:
        """The interval of ``rate``."""
        return Interval(self.low, self.high, self.level, self.method)


class HumanAgreement(Record):
    """The judges against people.

    Attributes:
        labels: People's labels on prompts of this evaluation, ties among them.
        labels_for_tuned: Labels that name the tuned arm.
        labels_for_baseline: Labels that name the baseline.
        labelled: Pairs that people and judges both decided; the rates below are shares of these.
        agreement: Share on which they agree; None without any.
        true_positive_rate: Of those people gave to the tuned arm, the share that the judges gave it too.
        true_negative_rate: The same for the baseline.
        corrected_share_of_decided: Without labels on both sides, or with agreement no better than chance, None.
    """

    labels: int = 0
    labels_for_tuned: int = 0
    labels_for_baseline: int = 0
    labelled: int
    agreement: float | None
    true_positive_rate: float | None
    true_negative_rate: float | None
    corrected_share_of_decided: CorrectedShare | None


class ArmComparison(Record):
    """One arm against the baseline.

    Attributes:
        arm: The arm.
        against: The arm it is compared with.
        scored: Prompts with a score.
        p_value: Two-sided, of no difference, by the test that ``interval`` inverts.
        p_value_holm: The larger of it and ``sign_test_p_value``, corrected for the number of arms (Holm).
        mean: The win rate (ties count half), or the mean difference of scores from 0 to 1; None without scores.
        standard_error: Of the mean, clustered where prompts have clusters.
        deviation: Standard deviation of the scores.
        independent_units: Clusters, or prompts without clusters.
        interval: Of the mean (see `statistics.intervals.mean_interval`); its method is named in it.
        wins: Prompts won.
        ties: Prompts tied.
        losses: Prompts lost.
        sign_test_p_value: Exact sign test, of whole clusters where there are any; None when no pair was decided.
        length: The rate at equal length; None in absolute mode and where it cannot be fitted.
        categories: The effect by category.
        by_judge: The effect by judge.
        human: Agreement with people's labels, for the tuned arm.
        verdict: ``better``, ``worse``, ``not distinguishable`` or ``no verdict``.
    """

    arm: str
    against: str
    scored: int
    p_value: float | None
    p_value_holm: float | None = None
    mean: float | None
    standard_error: float | None = None
    deviation: float | None
    independent_units: int | None = None
    interval: Interval | None
    wins: int
    ties: int
    losses: int
    sign_test_p_value: float | None = None
    length: LengthAdjustedRate | None
    categories: Sequence[CategoryMean] = ()
    by_judge: Sequence[JudgeMean] = ()
    human: HumanAgreement | None = None
    verdict: str = NONE


class JudgeQuality(Record):
    """One judge's work: its calls, what it left unscored, and how its verdicts depend on the order."""

    name: str
    models: Sequence[str]
    calls: int
    repaired: int
    unscored: int
    asked: int
    pairs_in_both_orders: int
    consistency: float | None
    flips: int
    first_preferred: int
    second_preferred: int


class MissingCount(Record):
    """Judgments without a verdict, of those asked for."""

    missing: int
    asked: int


class Unscored(Record):
    """Missing judgments by the arm shown first, their reasons, and the p-value that all arms miss equally often."""

    by_arm: Mapping[str, MissingCount]
    reasons: Mapping[str, int]
    unequal_p_value: float | None


class Strength(Record):
    """An arm's Bradley-Terry strength in log-odds, centred at zero."""

    log_odds: float
    interval: Interval | None


class JudgingFacts(Record):
    """How the judges were asked (``judges.json``).

    Attributes:
        judges: For each its name and settings.
        prompt_hash: Hash of wording, rubric and schema.
        judge_system_prompt: The part of the prompt that all questions share; not repeated in ``metrics.json``.
        spent_usd: What the judges cost; None where no price is known.
        judging_s: Seconds from the first question to the last verdict.
    """

    judges: Sequence[Mapping[str, Any]]
    prompt_hash: str
    judge_system_prompt: str = ""
    spent_usd: float | None
    judging_s: float | None = None


class EvalResult(Record):
    """Everything in ``metrics.json``.

    Attributes:
        schema_version: Of the file.
        mode: Whether answers were compared or scored one by one.
        arms: The models by arm.
        prompts: Prompts used.
        clusters: Distinct clusters, or None where prompts have none.
        verdict: The tuned arm's.
        no_verdict_because: What forbids a verdict, or None.
        comparisons: Each arm against the baseline.
        judges: How each judge worked.
        judge_agreement_alpha: Krippendorff's alpha between judges; None for one judge and in absolute mode.
        unscored: Missing judgments.
        criteria: For each criterion the mean score of each arm, on the criterion's own scale.
        bradley_terry: Strengths of three and more arms.
        mean_answer_chars: Mean length of an answer by arm.
        warnings: What to be careful about.
        controls: The judges' calibration checks.
        run: How the judges were asked.
    """

    schema_version: int
    mode: Literal["pairwise", "absolute"]
    arms: Mapping[str, str]
    prompts: int
    clusters: int | None
    verdict: str
    no_verdict_because: str | None
    comparisons: Sequence[ArmComparison]
    judges: Sequence[JudgeQuality]
    judge_agreement_alpha: float | None
    unscored: Unscored
    criteria: Mapping[str, Mapping[str, float]]
    bradley_terry: Mapping[str, Strength] | None
    mean_answer_chars: Mapping[str, float]
    warnings: Sequence[str] = ()
    controls: Sequence[ControlResult] = ()
    run: JudgingFacts | None = None

    @property
    def main(self) -> ArmComparison:
        """The tuned arm against the baseline."""
        return next(c for c in self.comparisons if c.arm == TUNED)


class Verdict(Record):
    """``verdict.json``: the conclusion in short, and where the rest lies."""

    verdict: str
    verdict_text: str
    mean: float | None
    interval: Interval | None
    report: str
    inspect_log: str


def side_of(interval: Interval | None, null: float) -> str | None:
    """``better`` or ``worse`` where the interval leaves ``null`` out on that side, else None."""
    if interval is None:
        return None
    return BETTER if interval.low > null else WORSE if interval.high < null else None


def verdict_of(interval: Interval | None, test: SignTest, null: float, *, holm_p: float | None = None) -> str:
    """The one rule for a verdict: the interval and the exact sign test must both name the same side.

    Args:
        interval: Of the mean effect.
        test: The exact sign test of the effects.
        null: The effect of no difference.
        holm_p: The larger p-value of the two, corrected for several comparisons, where there are several.
    """
    side, p = side_of(interval, null), test.p_value if holm_p is None else holm_p
    if interval is None or side is None or p is None or p >= 1 - interval.level:
        return SAME
    return side if side == (BETTER if test.wins > test.losses else WORSE) else SAME


def record_json(record: Record) -> str:
    """A record as the JSON of its file: the fields that were set."""
    return json.dumps(record.model_dump(exclude_unset=True), indent=2, ensure_ascii=False) + "\n"


def write_record(path: Path, record: Record) -> None:
    """Write a record to its file.

    Raises:
        StorageError: If it cannot be written.
    """
    write_atomically(path, record_json(record))
