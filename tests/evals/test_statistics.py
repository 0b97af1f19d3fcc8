import math
import time

import numpy as np
import pytest
from same_model import not_distinguishable
from scipy import stats

from sota_ml_researcher.evals.statistics.agreement import judge_accuracy, krippendorff_alpha, rogan_gladen
from sota_ml_researcher.evals.statistics.comparison_models import (
    PairScore,
    bradley_terry,
    bradley_terry_intervals,
    length_adjusted,
)
from sota_ml_researcher.evals.statistics.hypothesis_tests import equal_rates_test, holm, mcnemar_test, sign_test
from sota_ml_researcher.evals.statistics.intervals import (
    bootstrap_interval,
    mean_interval,
    paired_interval,
    wilson_interval,
)
from sota_ml_researcher.evals.statistics.power import items_needed, minimal_detectable_effect


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def test_the_mean_of_four_scores_by_hand() -> None:
    # 1, 1, 0.5, 0: mean 0.625, squares of residuals .140625 + .140625 + .015625 + .390625 = .6875, / 3 = .229167
    found = mean_interval([1, 1, 0.5, 0])
    assert found.mean == 0.625
    assert found.deviation == pytest.approx(math.sqrt(0.6875 / 3), abs=1e-12)
    assert found.standard_error == pytest.approx(math.sqrt(0.6875 / 3) / 2, abs=1e-12)
    assert found.interval is not None
    # Student's 97.5% point at 3 degrees of freedom is 3.182446
    assert found.interval.high - found.mean == pytest.approx(3.182446 * math.sqrt(0.6875 / 3) / 2, rel=1e-6)


def test_clustered_errors_by_hand_and_against_statsmodels() -> None:
    # clusters {1, 1} and {0.5, 0}: residual sums .75 and -.75, 2 x .5625 = 1.125, x 2 / 1 = 2.25, root 1.5, / 4
    found = mean_interval([1, 1, 0.5, 0], clusters=["a", "a", "b", "b"])
    assert found.standard_error == pytest.approx(1.5 / 4, abs=1e-12)
    assert (found.n, found.units) == (4, 2)

    import statsmodels.api as sm

    values, groups = rng().normal(size=200), rng(1).integers(0, 23, 200)
    fitted = sm.OLS(values, np.ones(200)).fit(cov_type="cluster", cov_kwds={"groups": groups, "use_correction": False})
    ours = mean_interval(values, clusters=groups.tolist())
    units = len(set(groups))
    assert ours.standard_error == pytest.approx(fitted.bse[0] * math.sqrt(units / (units - 1)), rel=1e-10)


def test_one_item_a_cluster_is_no_clustering() -> None:
    values = rng().normal(size=50)
    plain, clustered = mean_interval(values), mean_interval(values, clusters=list(range(50)))
    assert plain == clustered
    by_scipy = stats.ttest_1samp(values, 0).confidence_interval()
    assert plain.interval is not None
    assert (plain.interval.low, plain.interval.high) == pytest.approx((by_scipy.low, by_scipy.high), rel=1e-10)


def test_paired_differences_are_the_paired_t_test() -> None:
    a, b = rng().normal(size=30), rng(1).normal(size=30)
    by_scipy = stats.ttest_rel(a, b).confidence_interval()
    found = paired_interval(a.tolist(), b.tolist()).interval
    assert found is not None
    assert (found.low, found.high) == pytest.approx((by_scipy.low, by_scipy.high), rel=1e-10)


def test_what_is_undefined_is_none() -> None:
    assert mean_interval([1.0]).standard_error is None
    assert mean_interval([1.0, 0.0], clusters=["a", "a"]).interval is None
    assert mean_interval([0.5, 0.5, 0.5]).interval is None
    assert bootstrap_interval([0.5], rng()) is None
    assert bootstrap_interval([0.5, 0.5], rng()) is None
    assert wilson_interval(0, 0) is None
    assert sign_test([0, 0]).p_value is None
    assert minimal_detectable_effect(1, 0.5) is None
    assert krippendorff_alpha([["A", None], ["B", None]]) is None
    assert krippendorff_alpha([["A", "A"], ["A", "A"]]) is None
    assert length_adjusted([1.0] * 20, list(range(20))) is None
    assert length_adjusted([1.0, 0.0] * 10, [3] * 20) is None
    assert equal_rates_test([(0, 5), (0, 5)]) is None


@pytest.mark.parametrize("values", [[], [math.nan, 1.0], [[1.0], [2.0]]])
def test_values_that_are_no_scores_are_refused(values: list[float]) -> None:
    with pytest.raises(ValueError, match=r"(item|finite)"):
        mean_interval(values)


def test_labels_and_pairs_must_match() -> None:
    with pytest.raises(ValueError, match="2 cluster labels for 3 items"):
        mean_interval([1, 2, 3], clusters=["a", "b"])
    with pytest.raises(ValueError, match="cannot be paired"):
        paired_interval([1.0], [1.0, 2.0])
    with pytest.raises(ValueError, match="3 successes of 2"):
        wilson_interval(3, 2)


def test_the_bootstrap_of_normal_data_has_students_width_and_draws_whole_clusters() -> None:
    values = rng().normal(size=40)
    t, boot = mean_interval(values).interval, bootstrap_interval(values, rng(1), draws=20_000)
    assert t is not None and boot is not None
    assert boot.high - boot.low == pytest.approx(t.high - t.low, rel=0.05)
    repeated = np.repeat(values, 5)  # five equal items a cluster hold no more than one
    clusters = np.repeat(np.arange(40), 5).tolist()
    clustered = bootstrap_interval(repeated, rng(1), clusters=clusters, draws=20_000)
    assert clustered is not None
    assert (clustered.low, clustered.high) == pytest.approx((boot.low, boot.high), rel=1e-9)


def test_the_bootstrap_repeats_itself_for_one_seed() -> None:
    values = rng().normal(size=40)
    assert bootstrap_interval(values, rng(3)) == bootstrap_interval(values, rng(3))
    assert bootstrap_interval(values, rng(3)) != bootstrap_interval(values, rng(4))


def test_wilson_by_hand_and_against_statsmodels() -> None:
    # 124 of 200: p = .62, z^2 = 3.841459; centre (.62 + .0096036) / 1.0192073; the doctrine says 55.1% to 68.4%
    found = wilson_interval(124, 200)
    assert found is not None
    assert (round(found.low, 3), round(found.high, 3)) == (0.551, 0.684)

    from statsmodels.stats.proportion import proportion_confint

    for k, n in [(0, 5), (5, 5), (3, 7), (999, 1000)]:
        found = wilson_interval(k, n)
        assert found is not None
        assert (found.low, found.high) == pytest.approx(proportion_confint(k, n, method="wilson"), abs=1e-12)


def test_the_sign_test_by_hand() -> None:
    # 7 wins, 1 loss: P(at most 1 of 8) = (1 + 8) / 256, twice is 18 / 256
    found = sign_test([1, 1, 0.5, 0.5, 1, 1, 1, -1, 0, 0])
    assert found == (7, 1, 2, pytest.approx(18 / 256, abs=1e-12))


def test_mcnemar_against_statsmodels() -> None:
    from statsmodels.stats.contingency_tables import mcnemar

    first = [True] * 40 + [False] * 60
    second = [True] * 30 + [False] * 10 + [True] * 22 + [False] * 38
    found = mcnemar_test(first, second)
    assert (found.wins, found.losses) == (10, 22)
    assert found.p_value == pytest.approx(mcnemar([[30, 10], [22, 38]], exact=True).pvalue, abs=1e-12)


def test_holm_by_hand_and_against_statsmodels() -> None:
    # .01 x 4, .02 x 3, .03 x 2 = .06 (equal to the one before), .5
    assert holm([0.02, 0.01, 0.5, 0.03]) == pytest.approx([0.06, 0.04, 0.5, 0.06])

    from statsmodels.stats.multitest import multipletests

    p = rng().uniform(size=20).tolist()
    assert holm(p) == pytest.approx(multipletests(p, method="holm")[1].tolist(), abs=1e-12)


def test_unequal_missing_rates_are_found() -> None:
    assert equal_rates_test([(10, 90), (0, 100)]) == pytest.approx(
        stats.fisher_exact([[10, 90], [0, 100]]).pvalue, rel=1e-12
    )
    assert equal_rates_test([(3, 97), (3, 97), (3, 97)]) == pytest.approx(1.0)


def test_bradley_terry_of_two_is_the_log_odds_of_the_win_rate() -> None:
    # 3 of 4 won: s1 - s2 = ln 3
    games = [PairScore("a", "b", 1.0)] * 3 + [PairScore("a", "b", 0.0)]
    found = bradley_terry(games)
    assert found is not None
    assert found["a"] - found["b"] == pytest.approx(math.log(3), abs=1e-8)
    assert found["a"] + found["b"] == pytest.approx(0, abs=1e-12)


def test_bradley_terry_of_three_against_a_logistic_regression() -> None:
    import statsmodels.api as sm

    names, truth, generator = ["a", "b", "c"], [0.6, 0.0, -0.6], rng()
    games: list[PairScore] = []
    for i, j in [(0, 1), (0, 2), (1, 2)]:
        p = 1 / (1 + math.exp(truth[j] - truth[i]))
        scores = generator.choice([1.0, 0.5, 0.0], size=300, p=[p * 0.8, 0.2, (1 - p) * 0.8])
        games += [PairScore(names[i], names[j], float(s)) for s in scores]
    design = [[(g.first == n) - (g.second == n) for n in ("a", "b")] for g in games]
    fitted = sm.GLM([g.score for g in games], np.array(design, dtype=float), family=sm.families.Binomial()).fit()
    found = bradley_terry(games)
    assert found is not None
    assert [found["a"] - found["c"], found["b"] - found["c"]] == pytest.approx(fitted.params.tolist(), abs=1e-6)
    items = [games[k::300] for k in range(300)]
    intervals = bradley_terry_intervals(items, rng(1), draws=200)
    assert intervals is not None
    assert all(intervals[n].low < found[n] < intervals[n].high for n in names)


def test_bradley_terry_is_undefined_where_one_model_always_won() -> None:
    games = [PairScore("a", "b", 1.0), PairScore("b", "c", 1.0), PairScore("c", "b", 1.0)]
    assert bradley_terry(games) is None
    assert bradley_terry(games, prior=0.5) is not None


def test_a_win_rate_that_is_all_length_is_one_half_at_equal_length() -> None:
    generator = rng()
    d = generator.normal(1.0, 1.0, 4000)
    p = 1 / (1 + np.exp(-1.5 * d))
    y = (generator.uniform(size=4000) < p).astype(float)
    found = length_adjusted(y.tolist(), d.tolist())
    assert found is not None and found.interval is not None and found.slope_p_value is not None
    assert found.raw > 0.7
    assert found.interval.low < 0.5 < found.interval.high
    assert found.slope == pytest.approx(1.5 * d.std(), rel=0.1)
    assert found.slope_p_value < 1e-6


def test_the_length_model_is_the_logistic_regression_of_statsmodels() -> None:
    import statsmodels.api as sm

    generator = rng(5)
    d, y = generator.normal(size=300), generator.integers(0, 2, 300).astype(float)
    fitted = sm.Logit(y, np.column_stack([np.ones(300), d / d.std()])).fit(disp=0)
    found = length_adjusted(y.tolist(), d.tolist())
    assert found is not None
    assert found.rate == pytest.approx(1 / (1 + math.exp(-fitted.params[0])), abs=1e-8)


def test_perfectly_separated_lengths_have_no_adjusted_rate() -> None:
    d = [float(k) for k in range(-10, 10)]
    assert length_adjusted([float(x >= 0) for x in d], d) is None


def test_krippendorffs_own_example() -> None:
    # Krippendorff 2011, section C: four observers, twelve units, nominal alpha 0.743
    rows = [
        "1 1 . 1", "2 2 3 2", "3 3 3 3", "3 3 3 3", "2 2 2 2", "1 2 3 4",
        "4 4 4 4", "1 1 2 1", "2 2 2 2", ". 5 5 5", ". . 1 1", ". 3 . .",
    ]  # fmt: skip
    ratings = [[None if r == "." else r for r in row.split()] for row in rows]
    assert krippendorff_alpha(ratings) == pytest.approx(0.743, abs=5e-4)


def test_krippendorff_by_hand() -> None:
    # three items, AA AB BB: n = 6, three A and three B; observed 2 / 1, expected (36 - 18) / 5 = 3.6
    assert krippendorff_alpha([["A", "A"], ["A", "B"], ["B", "B"]]) == pytest.approx(1 - 2 / 3.6, abs=1e-12)


def test_rogan_gladen_by_hand() -> None:
    accuracy = judge_accuracy([True] * 9 + [False] + [False] * 8 + [True] * 2, [True] * 10 + [False] * 10)
    assert accuracy == (0.9, 0.8, 10, 10)
    found = rogan_gladen(60, 100, accuracy)
    assert found is not None
    assert found.rate == pytest.approx((0.6 + 0.8 - 1) / 0.7, abs=1e-12)
    assert found.interval.low < found.rate < found.interval.high
    assert rogan_gladen(60, 100, judge_accuracy([True, False], [False, True])) is None
    assert rogan_gladen(60, 100, judge_accuracy([True], [True])) is None


def test_the_planned_number_is_the_doctrines() -> None:
    # (1.96 + 0.8416)^2 x .25 / .1^2 = 196.2
    assert items_needed(0.1, 0.5) == 197
    assert minimal_detectable_effect(197, 0.5) == pytest.approx(0.1, abs=5e-4)
    assert items_needed(0.1, 0.5, design_effect=2.0) == 393
    with pytest.raises(ValueError, match="above 0"):
        items_needed(0.0, 0.5)


def test_a_planned_study_has_the_power_it_was_planned_for() -> None:
    n, shift, generator = items_needed(0.1, 0.5), 0.1, rng()
    hits = 0
    for _ in range(2000):
        interval = mean_interval((generator.uniform(size=n) < 0.5 + shift).astype(float)).interval
        hits += interval is not None and interval.low > 0.5
    assert hits / 2000 == pytest.approx(0.8, abs=0.03)


def test_ten_thousand_items_with_two_thousand_draws_take_under_three_seconds() -> None:
    generator = rng()
    scores = generator.choice([0, 0.5, 1], size=10_000)
    clusters = generator.integers(0, 4000, 10_000).tolist()
    began = time.process_time()
    mean_interval(scores, clusters=clusters)
    bootstrap_interval(scores, generator, clusters=clusters, draws=2000)
    bootstrap_interval(scores, generator, draws=2000)
    length_adjusted(scores.tolist(), generator.normal(size=10_000).tolist(), clusters=clusters)
    sign_test((scores - 0.5).tolist())
    assert time.process_time() - began < 3


def coverage(n: int, size: int, ties: float, repeats: int, seed: int, *, bootstrap: bool) -> float:
    """Share of intervals that hold the true mean, for scores 0, 1/2, 1 whose chance to win varies by cluster."""
    generator = rng(seed)
    hits = 0
    for _ in range(repeats):
        chance = np.repeat(generator.beta(5, 4, n // size), size)  # true mean 5 / 9
        won = (generator.uniform(size=n) < chance).astype(float)
        tied = generator.uniform(size=n) < ties
        scores = np.where(tied, 0.5, won)
        truth = ties * 0.5 + (1 - ties) * 5 / 9
        clusters = np.repeat(np.arange(n // size), size).tolist() if size > 1 else None
        interval = (
            bootstrap_interval(scores, generator, clusters=clusters, draws=2000)
            if bootstrap
            else mean_interval(scores, clusters=clusters).interval
        )
        hits += interval is not None and interval.low <= truth <= interval.high
    return hits / repeats


CASES = [(n, size, ties) for n in (50, 200, 1000) for size in (1, 5) for ties in (0.0, 0.3)]


@pytest.mark.parametrize(("size", "ties"), [(1, 0.0), (5, 0.3)])
def test_intervals_cover_in_a_quick_simulation(size: int, ties: float) -> None:
    # 2,000 repeats: a standard error of half a point
    assert coverage(200, size, ties, 2000, 1, bootstrap=False) == pytest.approx(0.95, abs=0.02)


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("bootstrap", [False, True])
@pytest.mark.parametrize(("n", "size", "ties"), CASES)
def test_intervals_cover_95_percent_within_one(n: int, size: int, ties: float, bootstrap: bool) -> None:
    repeats = 4000 if bootstrap else 20_000  # a standard error of 0.34 and 0.15 points
    assert coverage(n, size, ties, repeats, 11, bootstrap=bootstrap) == pytest.approx(0.95, abs=0.01)


@pytest.mark.parametrize("cluster_size", [1, 5])
def test_a_model_against_itself_is_seldom_told_apart_in_a_quick_simulation(cluster_size: int) -> None:
    # 100 repeats at 95%: fewer than 88 in one run of four hundred
    assert not_distinguishable(100, 100, seed=5, cluster_size=cluster_size) >= 88


@pytest.mark.slow
@pytest.mark.parametrize(("prompts", "cluster_size"), [(50, 1), (200, 1), (200, 5)])
def test_a_model_against_itself_is_not_distinguishable_in_94_of_100(prompts: int, cluster_size: int) -> None:
    repeats = 2000  # a standard error of half a point
    assert not_distinguishable(repeats, prompts, seed=6, cluster_size=cluster_size) >= 0.94 * repeats


@pytest.mark.slow
def test_the_corrected_rate_covers_the_true_one() -> None:
    generator, hits, repeats, truth = rng(2), 0, 4000, 0.6
    for _ in range(repeats):
        real = generator.uniform(size=200) < truth
        judged = np.where(real, generator.uniform(size=200) < 0.85, generator.uniform(size=200) < 0.25)
        labels = np.repeat([True, False], 40)
        judged_labelled = np.where(labels, generator.uniform(size=80) < 0.85, generator.uniform(size=80) < 0.25)
        found = rogan_gladen(int(judged.sum()), 200, judge_accuracy(judged_labelled.tolist(), labels.tolist()))
        hits += found is not None and found.interval.low <= truth <= found.interval.high
    assert hits / repeats == pytest.approx(0.95, abs=0.015)
