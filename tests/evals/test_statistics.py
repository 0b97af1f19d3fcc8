import math

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
    rank_agreement,
)
from sota_ml_researcher.evals.statistics.hypothesis_tests import equal_rates_test, holm, sign_test
from sota_ml_researcher.evals.statistics.intervals import mean_interval, mean_p_value, scale_of, wilson_interval
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


def test_what_is_undefined_is_none() -> None:
    assert mean_interval([1.0]).standard_error is None
    assert mean_interval([1.0, 0.0], clusters=["a", "a"]).interval is None
    assert mean_interval([0.5, 0.5, 0.5]).interval is None
    assert mean_interval([1.0], bounds=(0, 1)).interval is None
    assert mean_interval([1.0, 1.0], clusters=["a", "a"], bounds=(0, 1)).interval is None
    assert wilson_interval(0, 0) is None
    assert sign_test([0, 0]).p_value is None
    assert minimal_detectable_effect(1, 0.5) is None
    assert krippendorff_alpha([["A", None], ["B", None]]) is None
    assert krippendorff_alpha([["A", "A"], ["A", "A"]]) is None
    assert length_adjusted([1.0, 0.0] * 10, [3] * 20) is None
    assert length_adjusted([1.0, 0.0] * 4, list(range(8))) is None
    assert length_adjusted([1.0, 0.0] * 10, list(range(20)), clusters=["a", "b"] * 10) is None
    assert equal_rates_test([(0, 5), (0, 5)]) is None


@pytest.mark.parametrize("values", [[], [math.nan, 1.0], [[1.0], [2.0]]])
def test_values_that_are_no_scores_are_refused(values: list[float]) -> None:
    with pytest.raises(ValueError, match=r"(item|finite)"):
        mean_interval(values)


def test_labels_and_pairs_must_match() -> None:
    with pytest.raises(ValueError, match="2 cluster labels for 3 items"):
        mean_interval([1, 2, 3], clusters=["a", "b"])
    with pytest.raises(ValueError, match="off the scale of 0 to 1"):
        mean_interval([0.5, 1.5], bounds=(0, 1))
    with pytest.raises(ValueError, match="3 successes of 2"):
        wilson_interval(3, 2)


def test_a_win_rate_without_ties_has_wilsons_interval() -> None:
    found = mean_interval([1.0] * 124 + [0.0] * 76, bounds=(0, 1)).interval
    wilson = wilson_interval(124, 200)
    assert found is not None and wilson is not None
    assert (found.low, found.high) == pytest.approx((wilson.low, wilson.high), abs=1e-12)
    assert found.method == "Wilson"


def test_ties_and_clusters_change_the_effective_size_by_hand() -> None:
    # 8 wins, 8 losses, 4 ties: smoothed mean 1/2, square (8 + 1 + 1/2) / 21 = .452381, variance .202381 of .25
    tied = mean_interval([1.0] * 8 + [0.0] * 8 + [0.5] * 4, bounds=(0, 1))
    assert tied.effective_n == pytest.approx(20 * 0.25 / (9.5 / 21 - 0.25), rel=1e-12)
    # clusters of 5 that agree entirely are worth one item each
    whole = mean_interval([1.0] * 50 + [0.0] * 50, clusters=[n // 5 for n in range(100)], bounds=(0, 1))
    assert whole.effective_n == pytest.approx(20, rel=1e-12)
    assert whole.interval is not None and whole.interval.method == "Wilson, clustered"


def test_one_item_a_cluster_is_no_clustering_on_a_scale_either() -> None:
    values = rng().choice([0, 0.5, 1], 40)
    assert mean_interval(values, bounds=(0, 1)) == mean_interval(values, clusters=list(range(40)), bounds=(0, 1))


@pytest.mark.parametrize("clustered", [False, True])
def test_the_p_value_is_that_of_the_interval(clustered: bool) -> None:
    values = rng().choice([0, 0.5, 1], 60, p=[0.3, 0.2, 0.5])
    clusters = [n // 3 for n in range(60)] if clustered else None
    for bounds in ((0.0, 1.0), None):
        estimate = mean_interval(values, clusters=clusters, bounds=bounds)
        assert estimate.interval is not None
        for end in (estimate.interval.low, estimate.interval.high):
            assert mean_p_value(estimate, end) == pytest.approx(0.05, abs=1e-9)


def test_scores_that_are_all_alike_have_wilsons_bound_for_what_was_missed() -> None:
    # 3.841459 / (20 + 3.841459) = .161125: so many others may have been missed, all of them wins or all losses
    ties = mean_interval([0.5] * 20, bounds=(0, 1))
    assert ties.interval is not None
    assert (ties.interval.low, ties.interval.high) == pytest.approx((0.5 - 0.0805626, 0.5 + 0.0805626), abs=1e-6)
    assert mean_p_value(ties, ties.interval.high) == pytest.approx(0.05, abs=1e-9)
    assert mean_p_value(ties, 0.5) == 1.0
    wins, wilson = mean_interval([1.0] * 20, bounds=(0, 1)).interval, wilson_interval(20, 20)
    assert wins is not None and wilson is not None
    assert (wins.low, wins.high) == pytest.approx((wilson.low, wilson.high), abs=1e-12)


def test_a_scale_limits_scores_only_where_one_lies_at_its_end() -> None:
    assert scale_of([0.0, 0.4], 0, 1) == (0, 1)
    assert scale_of([0.2, 0.4], 0, 1) is None
    assert scale_of([0.4, 0.4], 0, 1) == (0, 1)
    assert scale_of([1.0, 1.4], 0, 1) is None


@pytest.mark.parametrize(("wins", "n"), [(20, 20), (19, 20), (0, 7), (1, 7), (6, 7), (2, 2)])
def test_a_win_rates_interval_never_leaves_the_scale(wins: int, n: int) -> None:
    for clusters in (None, [k // 2 for k in range(n)]):
        found = mean_interval([1.0] * wins + [0.0] * (n - wins), clusters=clusters, bounds=(0, 1)).interval
        assert found is None or 0 <= found.low <= wins / n <= found.high <= 1


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


def test_the_sign_test_of_grades_is_statsmodels_mcnemar() -> None:
    from statsmodels.stats.contingency_tables import mcnemar

    found = sign_test([0] * 68 + [1] * 10 + [-1] * 22)
    assert (found.wins, found.losses) == (10, 22)
    assert found.p_value == pytest.approx(mcnemar([[30, 10], [22, 38]], exact=True).pvalue, abs=1e-12)


def test_the_sign_test_flips_whole_clusters() -> None:
    # sums 3, 2, -1: of the 8 signs |sum| reaches 4 for +++ 6, ++- 4 and their opposites
    assert sign_test([1] * 5 + [-1], clusters=list("aaabbc")).p_value == pytest.approx(4 / 8)
    assert sign_test([1] * 10, clusters=["a"] * 10).p_value == 1.0
    signs = rng().choice([-1, 0, 1], 50).tolist()
    alone = sign_test(signs, clusters=list(range(50)))
    assert alone == sign_test(signs)
    halves = sign_test(signs + signs, clusters=[*range(50), *range(50)])
    assert halves.p_value == pytest.approx(alone.p_value, abs=1e-12)


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
    d, y = generator.normal(size=3000), generator.integers(0, 2, 3000).astype(float)
    fitted = sm.GLM(y, np.column_stack([np.ones(3000), d / d.std()]), family=sm.families.Binomial()).fit(
        cov_type="cluster", cov_kwds={"groups": np.arange(3000) // 4}
    )
    found = length_adjusted(y.tolist(), d.tolist(), clusters=(np.arange(3000) // 4).tolist())
    assert found is not None
    # Firth's penalty is of the order 1 / n
    assert found.rate == pytest.approx(1 / (1 + math.exp(-fitted.params[0])), abs=1e-4)
    half = stats.t.ppf(0.975, 749) * fitted.bse[0]
    assert found.interval.low == pytest.approx(1 / (1 + math.exp(-fitted.params[0] + half)), abs=1e-4)


def test_firths_fit_is_that_of_the_package_firthmodels() -> None:
    from sota_ml_researcher.evals.statistics.comparison_models import _fit_firth

    # intercept and slope by firthmodels 0.8.2: separated data, and data that are not
    mixed = [-3, -2, -1.5, -1, -0.5, 0, 0.3, 0.7, 1, 1.2, 2, 2.5]
    for x, y, wanted in [
        (list(range(8)), [0, 0, 0, 0, 1, 1, 1, 1], [-3.61455, 1.03273]),
        (mixed, [0, 0, 0, 1, 0, 0, 1, 0, 1, 1, 1, 1], [-0.00517, 0.92193]),
    ]:
        params, _ = _fit_firth(np.array(y, dtype=float), np.column_stack([np.ones(len(x)), x]))
        assert params.tolist() == pytest.approx(wanted, abs=1e-4)


def test_a_length_that_decides_alone_has_a_rate_that_says_little() -> None:
    d = rng(3).normal(80, 100, 120)
    found = length_adjusted((d > 0).astype(float).tolist(), d.tolist())
    assert found is not None and found.raw > 0.7
    assert found.interval.low < 0.5 < found.interval.high
    assert rank_agreement((d > 0) - 0.5, d.tolist()) == 1.0


@pytest.mark.parametrize("exceptions", [0.0, 0.01, 0.03, 0.06])
def test_near_separation_is_seen_and_noise_is_not(exceptions: float) -> None:
    generator = rng(7)
    d = generator.normal(50, 100, 120)
    longest = np.where(generator.uniform(size=120) < exceptions, -1, 1) * np.sign(d)
    told = rank_agreement(longest, d.tolist())
    assert told is not None and told > 0.9
    shortest = rank_agreement(-longest, d.tolist())
    assert shortest is not None and shortest < -0.9
    over_200 = rank_agreement(np.sign(d - 120), d.tolist())
    assert over_200 == 1.0
    assert rank_agreement(generator.choice([-1, 1], 120), d.tolist()) is None
    assert rank_agreement(np.sign(d[:9]), d[:9].tolist()) is None


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
    # n solves 2.8016 x .5 / sqrt(n) + 2 x .5 / n = .1
    assert items_needed(0.1, 0.5) == 216
    assert minimal_detectable_effect(216, 0.5) == pytest.approx(0.1, abs=5e-4)
    with pytest.raises(ValueError, match="above 0"):
        items_needed(0.0, 0.5)


@pytest.mark.parametrize("n", [20, 30, 50, 80, 120, 200, 300, 800])
def test_a_planned_effect_is_found_in_80_percent_by_the_exact_test(n: int) -> None:
    effect = minimal_detectable_effect(n, 0.5)
    assert effect is not None
    found = [k for k in range(n + 1) if k > n / 2 and stats.binomtest(k, n).pvalue < 0.05]
    assert 0.8 <= stats.binom.sf(found[0] - 1, n, min(1.0, 0.5 + effect)) < 0.97


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
