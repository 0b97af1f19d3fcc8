"""Few prompts, one cluster, nothing but ties, odd labels: each gets a clear answer and no verdict it cannot bear."""

from dataclasses import replace

import pytest
from planted_judges import Planted, gather, likes_tuned, tie

from sota_ml_researcher.evals.compute_results import compute_results
from sota_ml_researcher.evals.evidence import Evidence
from sota_ml_researcher.evals.results import EvalResult, verdict_of
from sota_ml_researcher.evals.statistics.hypothesis_tests import SignTest, sign_test
from sota_ml_researcher.evals.statistics.intervals import mean_interval
from sota_ml_researcher.evals.verdict_text import verdict_text

ALWAYS_TUNED = Planted(likes_tuned, truth=1.0)


def result_with(labels: dict[str, str], prompts: int = 60) -> EvalResult:
    return compute_results(replace(gather(ALWAYS_TUNED, prompts=prompts, seed=0), human=labels))


def in_clusters(evidence: Evidence, size: int) -> Evidence:
    return replace(evidence, items=[replace(item, cluster=str(n // size)) for n, item in enumerate(evidence.items)])


def half_and_half(tuned: int, baseline: int) -> dict[str, str]:
    return {str(n): "tuned" if n < tuned else "baseline" for n in range(tuned + baseline)}


@pytest.mark.parametrize("prompts", range(1, 8))
def test_one_to_seven_prompts_that_tuned_wins(prompts: int) -> None:
    result = compute_results(gather(ALWAYS_TUNED, prompts=prompts, seed=0))
    assert result.verdict == ("better" if prompts >= 6 else "not distinguishable")
    text = verdict_text(result)
    assert "None" not in text and "nan" not in text
    if prompts == 1:
        assert "Careful: one prompt has no interval: nothing can be concluded." in text
    elif prompts < 6:
        wins = f"not even {prompts} wins of {prompts} can be told from chance"
        assert f"Careful: only {prompts} prompts: {wins}, 6 could." in text


def test_nothing_but_ties_is_no_difference_with_a_bound() -> None:
    result = compute_results(gather(Planted(tie), prompts=50, seed=0))
    assert result.verdict == "not distinguishable"
    assert result.main.interval is not None
    assert result.main.interval.low < 0.5 < result.main.interval.high
    assert "0 won, 50 tied, 0 lost; no pair was decided." in verdict_text(result)


def test_one_cluster_can_show_nothing_and_five_hardly_more() -> None:
    evidence = gather(ALWAYS_TUNED, prompts=20, seed=0)
    one = compute_results(in_clusters(evidence, 20))
    assert (one.verdict, one.main.interval) == ("not distinguishable", None)
    assert "Careful: all prompts are one cluster: nothing can be concluded." in verdict_text(one)
    five = compute_results(in_clusters(evidence, 4))
    assert five.verdict == "not distinguishable"
    assert five.main.sign_test_p_value == pytest.approx(2 / 2**5)
    assert "only 5 clusters: not even 5 wins of 5 can be told from chance" in verdict_text(five)
    ten = compute_results(in_clusters(evidence, 2))
    assert ten.verdict == "better"


def test_three_labels_are_too_few_to_bear_a_judge_out() -> None:
    for labels in (half_and_half(2, 1), half_and_half(3, 0)):
        result = result_with(labels)
        assert result.verdict == "no verdict"
        assert "people's labels do not bear the judge out" in (result.no_verdict_because or "")
        assert "label more prompts" in verdict_text(result) or "another judge" in verdict_text(result)


def test_labels_that_are_all_alike_count_as_what_they_say() -> None:
    agreeing = result_with(half_and_half(30, 0))
    assert agreeing.verdict == "better"
    assert "the labels bear the verdict out, and are too one-sided to show the judge's errors" in agreeing.warnings
    opposed = result_with(half_and_half(0, 30))
    assert opposed.verdict == "no verdict"
    assert "every label names the baseline arm" in (opposed.no_verdict_because or "")
    tied = result_with({str(n): "tie" for n in range(30)})
    assert tied.verdict == "no verdict"
    assert "decided none of the 30 labelled pairs" in (tied.no_verdict_because or "")


def test_a_verdict_needs_both_the_interval_and_the_exact_test() -> None:
    # 9 of 11: Wilson 0.523 to 0.949, exact p 0.065
    values = [1.0] * 9 + [0.0] * 2
    interval = mean_interval(values, bounds=(0, 1)).interval
    assert interval is not None and interval.low > 0.5
    assert verdict_of(interval, sign_test([v - 0.5 for v in values]), 0.5) == "not distinguishable"
    # and the same side: many small wins against few large losses
    assert verdict_of(interval, SignTest(2, 30, 0, 1e-6), 0.5) == "not distinguishable"
    assert verdict_of(interval, SignTest(30, 2, 0, 1e-6), 0.5) == "better"
    assert verdict_of(interval, SignTest(30, 2, 0, 1e-6), 0.5, holm_p=0.06) == "not distinguishable"
    assert verdict_of(None, SignTest(30, 2, 0, 1e-6), 0.5) == "not distinguishable"


def test_a_long_verdict_loses_whole_lines_and_never_a_warning() -> None:
    result = result_with(half_and_half(30, 0))
    many = dict.fromkeys(result.arms, "m" * 200)
    judges = [result.judges[0].model_copy(update={"name": f"openai:{'j' * 60}-{n}"}) for n in range(40)]
    text = verdict_text(result.model_copy(update={"arms": many, "judges": judges}))
    assert len(text.encode()) <= 2048
    assert all(f"Careful: {warning}." in text for warning in result.warnings)
    assert text.endswith("The rest is in metrics.json.\n")
