"""Intervals and tests: against scipy, against counting everything, and under a null that holds."""

from itertools import permutations, product

import numpy as np
import pytest
import xarray as xr
from scipy.stats import binomtest, mannwhitneyu, spearmanr, ttest_1samp
from scipy.stats import t as student_t

from selattn_lib.evaluation.scores import ious
from selattn_lib.evaluation.statistics import (
    Difference,
    Interval,
    agreement,
    area_under_roc,
    band,
    direction,
    effect_size,
    format_correlation,
    format_p,
    mean_interval,
    paired_difference,
    percentile,
    plateau,
    rank_agreement,
    rank_correlation,
    roc,
    share_interval,
    statement,
)
from selattn_lib.maps.head_maps import HeadMaps
from selattn_lib.maps.relevance import HeadRelevance


def test_intervals_and_differences_print_as_in_every_table():
    assert str(Interval(0.78, 0.7281, 0.8239)) == "0.780 [0.728, 0.824]"
    assert f"{Difference(0.05, 0.031, 0.069, 0.0031)}" == "+0.050 [+0.031, +0.069], p = 0.003"
    assert str(Difference(-0.05, -0.07, 0.001, 0.00195)) == "-0.050 [-0.070, +0.001], p = 0.002"


def test_p_is_never_printed_as_0():
    assert [format_p(p) for p in (1, 0.0499, 0.001, 0.00099, 1 / 16385)] == [
        "p = 1.000",
        "p = 0.050",
        "p = 0.001",
        "p < 0.001",
        "p < 0.001",
    ]


def test_p_at_its_lowest_is_said_and_what_cannot_be_known_is_no_number():
    assert str(Difference(0.05, 0.03, 0.07, 2 / 2**6, 6)).endswith("p = 0.031 (the lowest possible)")
    assert str(Difference(0.05, 0.03, 0.07, 4 / 2**6, 6)).endswith("p = 0.062")
    assert str(Difference(0.05, 0.03, 0.07, 2 / 2**14, 14)).endswith("p < 0.001")
    assert str(Interval(0.78, np.nan, np.nan)) == "0.780 (no interval)"
    assert str(Interval(0.78, 0.78, 0.78)) == "0.780 (all alike)"
    assert str(Interval(np.nan, np.nan, np.nan)) == "no value"
    assert format_correlation(*rank_correlation([1, 2, 3], [1, 1, 1])) == "none (all values of one list are equal)"


def test_one_group_has_no_interval():
    mean, low, high = mean_interval([0.25, 0.75], ["a", "a"])
    assert mean == 0.5 and np.isnan([low, high]).all()
    alone = paired_difference([0.3, 0.5], [0.1, 0.1], ["a", "a"])
    assert str(alone) == "+0.300, too few to tell" and direction(alone) == 0
    assert np.isnan(share_interval([1, 0], ["a", "a"])[1:]).all() and np.isnan(share_interval([0.5])[1:]).all()


@pytest.mark.parametrize("groups", [2, 4, 5, 8])
def test_the_interval_of_a_difference_over_fewer_than_five_groups_is_not_shown(groups):
    base, lead = np.linspace(0.4, 0.6, groups), np.linspace(0.1, 0.2, groups)
    said = str(paired_difference(base + lead, base, np.arange(groups)))
    assert said.startswith("+0.150, too few to tell" if groups < 5 else "+0.150 [+0.")


def test_the_interval_is_scipys_t_interval_of_equal_groups():
    values = np.random.default_rng(0).normal(0.7, 0.1, (10, 6))
    interval = ttest_1samp(values.mean(axis=1), 0).confidence_interval()
    expected = [values.mean(), interval.low, interval.high]
    np.testing.assert_allclose(mean_interval(values.ravel(), np.repeat(np.arange(10), 6)), expected)
    np.testing.assert_allclose(mean_interval(values.mean(axis=1)), expected)


def test_groups_of_unequal_size_count_by_their_images():
    values, groups = np.array([1.0, 2, 3, 6, 5, 1]), np.array(list("abbccc"))
    residuals = [1 - 3, 5 - 2 * 3, 12 - 3 * 3]  # the mean is 3
    error = np.sqrt(3 / 2 * np.square(residuals).sum()) / 6
    expected = 3 + error * student_t.ppf([0.025, 0.975], 2)
    np.testing.assert_allclose(mean_interval(values, groups), [3, *expected])


def simulated(n: int, images: int = 10) -> tuple[xr.DataArray, float]:
    """(image, k): n experiments on ten prompts that differ, and the true mean."""
    rng = np.random.default_rng(0)
    values = 0.7 + rng.normal(0, 0.1, (10, 1, n)) + rng.normal(0, 0.1, (10, images, n))
    coords = {"k": np.arange(n), "subject": ("image", np.repeat(np.arange(10), images))}
    return xr.DataArray(values.reshape(-1, n), coords, ("image", "k")), 0.7


def coverage(low: np.ndarray, high: np.ndarray, truth: float) -> float:
    return float(((low < truth) & (truth < high)).mean())


def test_the_interval_covers_95_percent_where_a_percentile_bootstrap_covers_89():
    values, truth = simulated(2000)
    _, low, high = band(values).T
    assert 0.935 < coverage(low, high, truth) < 0.965
    of_prompts = values.groupby("subject").mean().transpose("subject", "k").values
    drawn = np.random.default_rng(1).multinomial(10, np.full(10, 0.1), size=1000) / 10
    assert 0.87 < coverage(*np.quantile(drawn @ of_prompts, [0.025, 0.975], axis=0), truth) < 0.91


def test_the_noise_of_a_ranking_widens_the_interval_until_it_covers():
    """Each experiment has a ranking that is off, its scores with it; rankings drawn anew are as far off again."""
    values, truth = simulated(2000, images=2)
    rng = np.random.default_rng(2)
    off = rng.normal(0, 0.05, 2000)
    redrawn = np.concatenate([off[None], off + rng.normal(0, 0.05, (50, 2000))])
    redrawn = xr.DataArray(redrawn[None], {"k": values.k}, ("image", "ranking", "k"))
    blind, seeing = band(values + off), band(values + off, redrawn)
    assert coverage(*blind.T[1:], truth) < 0.87
    assert 0.935 < coverage(*seeing.T[1:], truth) < 0.98
    one = (values + off)[:, 7].values
    of_rankings = one[:, None] + redrawn.values[0, :, 7] - off[7]
    np.testing.assert_allclose(mean_interval(of_rankings, values.subject), seeing[7])
    assert paired_difference(of_rankings, np.zeros(20), values.subject)[:3] == pytest.approx(seeing[7])
    assert paired_difference(of_rankings, of_rankings - 0.1, values.subject).low == pytest.approx(0.1)


def test_scores_of_resampled_rankings_widen_the_interval_of_the_top_heads_and_not_of_all():
    """One head sees the object and another half of it; which of them has more votes hangs on the images."""
    squares = np.zeros((4, 8, 8), bool)
    squares[:, 2:6, 2:6] = True
    squares[3, 5] = False
    half = squares & (np.arange(8) < 4)
    maps = HeadMaps.from_grids([([0, 1], np.stack([squares, half], 1)[:, None])], ["bear"], (8, 8))
    maps = maps.with_pictures(np.zeros((4, 8, 8, 3), np.uint8), truth=squares)
    votes = xr.DataArray([[[9, 5]], [[9, 5]], [[5, 9]]], {"concept": ["Animals"]}, ("image", "concept", "head"))
    sure = votes.isel(image=[0, 0, 0])
    sets = [{"top": HeadRelevance.from_counts(v).top_sets("Animals", 1), "all": "all"} for v in (votes, sure)]
    scores, of_sure = (ious(maps, named, [0.6]).isel(threshold=0) for named in sets)
    assert scores.dims == ("image", "set", "ranking") and scores.sizes["ranking"] == 51
    noise = scores.sel(set="top").mean("image")[1:].std(ddof=1)
    assert 0.15 < noise < 0.3, "0.5 in a quarter of the draws"
    blind, seeing = (mean_interval(s.sel(set="top")) for s in (of_sure, scores))
    assert blind.mean == seeing.mean
    expected = np.hypot(blind.high - blind.mean, student_t.ppf(0.975, 3) * noise)
    assert seeing.high - seeing.mean == pytest.approx(float(expected))
    every = scores.sel(set="all")
    assert mean_interval(every) == pytest.approx(mean_interval(every.isel(ranking=0)))


def test_noise_between_two_k_is_interpolated():
    curves = xr.DataArray(np.zeros((4, 3)), {"k": [1, 2, 3]}, ("image", "k"))
    means = np.array([[0.0, 0], [0.1, 0], [-0.1, 0]])  # at k of 1 and 3
    redrawn = xr.DataArray(means[None], {"k": [1, 3]}, ("image", "ranking", "k"))
    high = band(curves, redrawn)[:, 2]
    np.testing.assert_allclose(high, student_t.ppf(0.975, 3) * np.array([0.1, 0.05, 0]) * np.sqrt(2))


def test_the_interval_of_many_single_images_is_the_normal_one():
    values = np.random.default_rng(0).normal(0.7, 0.1, 400)
    mean, low, high = mean_interval(values)
    assert mean == pytest.approx(values.mean())
    half_width = 1.96 * values.std() / 20
    assert low == pytest.approx(mean - half_width, abs=2e-4)
    assert high == pytest.approx(mean + half_width, abs=2e-4)


def test_groups_widen_the_interval():
    rng = np.random.default_rng(0)
    groups = np.repeat([f"photo of a {i}" for i in range(10)], 10)
    values = np.repeat(rng.normal(0.7, 0.1, 10), 10) + rng.normal(0, 0.01, 100)
    alone, together = mean_interval(values), mean_interval(values, groups)
    assert together.mean == alone.mean
    assert together.high - together.low > 2 * (alone.high - alone.low)
    constant = mean_interval([0.5] * 6, [1, 1, 1, 2, 2, 3])
    assert constant == pytest.approx((0.5, 0.5, 0.5))


def test_paired_difference():
    rng = np.random.default_rng(0)
    b = rng.random(40)
    better = paired_difference(b + 0.05 + rng.normal(0, 0.01, 40), b)
    assert better.low < 0.05 < better.high and better.low > 0.04 and better.p < 0.01
    alike = paired_difference(b + rng.normal(0, 0.1, 40), b)
    assert alike.low < 0 < alike.high and alike.p > 0.05
    assert paired_difference(b, b).p == 1


def test_few_groups_cannot_be_very_significant():
    b = np.random.default_rng(0).random(30)
    difference = paired_difference(b + 0.05, b, np.repeat([1, 2, 3], 10))
    assert difference.p == 2 / 2**3
    assert paired_difference(b + 0.05, b, np.ones(30)).p == 1, "one group can show nothing"


def test_ten_equal_signs_are_two_of_1024_patterns():
    b = np.random.default_rng(0).random(10)
    for seed in range(3):
        assert paired_difference(b + 0.05, b, seed=seed).p == 2 / 1024


def test_the_sign_flip_test_is_the_share_of_all_patterns():
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(8), [1, 2, 3, 1, 2, 3, 4, 4])
    for shift in (0, 0.2, 0.5):
        differences = rng.normal(shift, 1, 20).round(1)  # with patterns of equal sums
        sums = np.array([differences[groups == group].sum() for group in range(8)])
        patterns = np.array(list(product([-1, 1], repeat=8)))
        expected = np.mean(np.abs(patterns @ sums) >= abs(sums.sum()) - 1e-9)
        assert paired_difference(differences, np.zeros(20), groups).p == pytest.approx(expected)


def test_a_mean_of_0_is_0_however_it_is_rounded():
    differences = np.array([0.3, -0.1, -0.2, 0.1, 0.7, -0.8])
    assert differences.sum() != 0, "by rounding"
    assert paired_difference(differences, np.zeros(6)).p == 1


def test_many_groups_are_flipped_at_random_and_the_observed_pattern_counts():
    b = np.random.default_rng(0).random(40)
    assert paired_difference(b + 0.05, b, flips=999).p == 1 / 1000
    alike = b + np.random.default_rng(1).normal(0, 0.1, 40)
    assert paired_difference(alike, b).p == pytest.approx(paired_difference(alike, b, seed=1).p, abs=0.02)


def test_p_is_uniform_where_nothing_differs():
    rng = np.random.default_rng(0)
    ps = [paired_difference(rng.normal(0, 1, 20), np.zeros(20), flips=200).p for _ in range(200)]
    assert 0.02 < np.mean(np.array(ps) < 0.1) < 0.2


def test_values_that_make_no_sense():
    with pytest.raises(ValueError, match="one finite number an image"):
        mean_interval([0.1, np.nan])
    with pytest.raises(ValueError, match="groups has shape"):
        mean_interval([0.1, 0.2], ["a"])


def test_a_band_is_the_mean_and_its_interval_at_each_k():
    rng = np.random.default_rng(0)
    subjects = np.repeat(["bear", "cat", "cow", "dog"], 5)
    values = np.repeat(rng.random((4, 3)), 5, axis=0) + rng.normal(0, 0.01, (20, 3))
    curves = xr.DataArray(values, dims=("image", "k"), coords={"k": [1, 2, 3], "subject": ("image", subjects)})
    drawn = band(curves)
    np.testing.assert_allclose(drawn, [mean_interval(values[:, k], subjects) for k in range(3)])
    alone = band(curves.drop_vars("subject"))
    np.testing.assert_allclose(alone[:, 0], values.mean(axis=0))
    assert (np.diff(drawn[:, 1:]) > 1.5 * np.diff(alone[:, 1:])).all(), "images of one subject are alike"


@pytest.fixture
def surface() -> xr.DataArray:
    rng = np.random.default_rng(0)
    mean = np.array([[0.3, 0.5, 0.4], [0.35, 0.7, 0.69], [0.2, 0.3, 0.1]])
    values = mean + rng.normal(0, 0.05, (24, 1, 1)) + rng.normal(0, 0.04, (24, 3, 3))
    return xr.DataArray(values, {"k": [10, 20, 30], "threshold": [0.1, 0.2, 0.3]}, ("image", "k", "threshold"))


def test_the_plateau_is_where_a_paired_difference_to_the_highest_reaches_0(surface):
    groups = np.repeat(np.arange(12), 2)
    flat = plateau(surface, groups)
    assert flat.dims == ("k", "threshold")
    best = surface.stack(cell=("k", "threshold"))
    highest = best[:, int(best.mean("image").values.argmax())]
    for k in (10, 20, 30):
        for t in (0.1, 0.2, 0.3):
            expected = paired_difference(surface.sel(k=k, threshold=t), highest, groups).high >= 0
            assert bool(flat.sel(k=k, threshold=t)) == expected
    assert flat.values.tolist() == [[False] * 3, [False, True, True], [False] * 3]
    assert plateau(surface, np.zeros(24)).all(), "one group tells nothing apart"


def test_agreement_is_scipys_and_grows_with_the_number_of_images():
    rng = np.random.default_rng(0)
    strength = rng.random((3, 40))
    counts = xr.DataArray(
        rng.poisson(3 * strength, (24, 3, 40)), {"concept": ["a", "b", "c"]}, ("image", "concept", "head")
    )
    table = agreement(counts, [1, 12], top=10, draws=4, seed=5)
    assert table.dims == ("size", "draw", "concept", "statistic")
    drawn = np.random.default_rng([5, 12, 2]).permutation(24)
    one, two = (counts.values[part].sum(axis=0) for part in (drawn[:12], drawn[12:]))
    tops = [HeadRelevance(xr.DataArray(side, {"concept": ["a", "b", "c"]}, ("concept", "head"))) for side in (one, two)]
    for i, concept in enumerate("abc"):
        of_draw = table.sel(size=12, concept=concept)[2]
        assert of_draw.sel(statistic="correlation") == pytest.approx(spearmanr(one[i], two[i]).statistic)
        assert (
            of_draw.sel(statistic="shared") == len(set(tops[0].top(concept, 10)) & set(tops[1].top(concept, 10))) / 10
        )
    assert (table.sel(size=12) > table.sel(size=1)).mean() > 0.8
    counts[:, 1] = 0
    assert np.isnan(agreement(counts, [3], draws=1).sel(concept="b")).all()
    with pytest.raises(ValueError, match="from 1 to 12"):
        agreement(counts, [13])


def test_percentile_counts_the_value_itself():
    assert percentile(3, [1, 2, 3, 4]) == (50, 3 / 5)
    assert percentile(9, np.arange(8)) == (100, 1 / 9)


def test_effect_size_is_of_the_groups_means():
    a, groups = np.array([1.0, 3, 4, 6]), np.array(["x", "x", "y", "y"])
    assert effect_size(a, np.zeros(4), groups) == pytest.approx(3.5 / np.std([2, 5], ddof=1))
    assert effect_size(a, np.zeros(4)) == pytest.approx(a.mean() / a.std(ddof=1))
    assert np.isnan(effect_size(a, a))


def test_rank_correlation_is_spearmans_with_a_permutation_test():
    rng = np.random.default_rng(0)
    x, y = rng.random(9), rng.integers(0, 4, 9)
    assert rank_correlation(x, y)[0] == pytest.approx(spearmanr(x, y).statistic)
    rho, p = rank_correlation(np.arange(5), np.arange(5))
    assert rho == pytest.approx(1) and p == 2 / 120
    assert np.isnan(rank_correlation(x, np.ones(9))).all()


def test_rank_correlation_counts_all_orders_of_few_things():
    x, y = np.array([1.0, 2, 3, 4, 5, 6]), np.array([2.0, 1, 4, 4, 3, 6])
    observed = abs(spearmanr(x, y).statistic)
    expected = np.mean([abs(spearmanr(x, order).statistic) >= observed - 1e-9 for order in permutations(y)])
    assert rank_correlation(x, y)[1] == pytest.approx(expected)


def test_rank_correlation_draws_orders_of_many_things():
    rng = np.random.default_rng(0)
    x = rng.random(30)
    assert rank_correlation(x, x, draws=999)[1] == 1 / 1000
    unrelated = rng.random(30)
    p = rank_correlation(x, unrelated)[1]
    assert p == pytest.approx(spearmanr(x, unrelated).pvalue, abs=0.02)


def test_a_statement_follows_the_interval():
    assert statement("A", "B", Difference(0.05, 0.031, 0.069, 0.003)) == (
        "A beats B (+0.050 [+0.031, +0.069], p = 0.003)"
    )
    assert statement("A", "B", Difference(-0.05, -0.069, -0.031, 0.003)).startswith("A trails B (-0.050")
    assert statement("A", "B", Difference(0.01, -0.01, 0.03, 0.4)).startswith(
        "there is no clear difference between A and B (+0.010"
    )
    few_groups = Difference(0.02, 0.01, 0.03, 0.13)
    assert direction(few_groups) == 0
    for groups in (1, 5):
        unclear = few_groups._replace(groups=groups)
        assert statement("A", "B", unclear).startswith("there are too few words to compare A with B (+0.020")
    enough = Difference(0.02, 0.01, 0.03, 2 / 2**6, 6)
    assert statement("A", "B", enough).startswith("A beats B")
    same = paired_difference([0.5, 0.6], [0.5, 0.6])
    assert str(same) == "no difference" and statement("A", "B", same) == "A and B score the same"


def test_roc_of_every_threshold():
    scores, labels = np.array([0.9, 0.8, 0.8, 0.3, 0.1]), np.array([True, False, True, True, False])
    false, true = roc(scores, labels)
    for s in np.unique(scores):
        point = [(scores[~labels] >= s).mean(), (scores[labels] >= s).mean()]
        assert np.isclose(np.stack([false, true], 1), point).all(axis=1).any()
    assert (false[0], true[0], false[-1], true[-1]) == (0, 0, 1, 1) and len(false) == 5


def test_area_is_that_under_the_curve_and_mann_whitneys():
    rng = np.random.default_rng(0)
    labels = rng.random(60) < 0.4
    scores = np.round(labels * 0.7 + rng.normal(0, 1, 60), 1)  # with ties
    area = area_under_roc(scores, labels)
    u = mannwhitneyu(scores[labels], scores[~labels]).statistic
    assert area.mean == pytest.approx(u / (labels.sum() * (~labels).sum()))
    false, true = roc(scores, labels)
    assert area.mean == pytest.approx(np.trapezoid(true, false))
    assert 0.05 < area.mean - area.low < 0.25 and area == area_under_roc(scores, labels)


def test_the_areas_interval_is_that_of_drawing_by_hand():
    rng = np.random.default_rng(0)
    labels, scores = np.arange(30) % 3 == 0, rng.integers(0, 6, 30).astype(float) + np.arange(30) % 3
    drawing, areas = np.random.default_rng(7), []
    for _ in range(200):
        drawn = drawing.choice(30, 30)
        one, other = scores[drawn][labels[drawn]], scores[drawn][~labels[drawn]]
        areas.append(mannwhitneyu(one, other).statistic / (len(one) * len(other)))
    area = area_under_roc(scores, labels, seed=7, draws=200)
    np.testing.assert_allclose(area[1:], np.quantile(areas, [0.025, 0.975]))


def test_only_pairs_of_one_stratum_count():
    """Within each word the detector is right; between the words it is not."""
    scores = np.array([1, 2, 11, 12, 5], float)
    labels = np.array([False, True, False, True, True])
    words = np.array(["a", "a", "b", "b", "c"])
    assert area_under_roc(scores, labels, words).mean == 1 > area_under_roc(scores, labels).mean
    assert np.isnan(area_under_roc(scores[:2], labels[:2], ["a", "b"])).all()
    assert np.isnan(roc(scores, np.ones(5, bool))[0]).all()
    with pytest.raises(ValueError, match="one each"):
        roc(scores, labels.astype(float))


def test_rank_agreement_is_spearmans_and_the_heads_in_common():
    rng = np.random.default_rng(0)
    first, second = rng.poisson(3, (2, 40))
    rho, shared = rank_agreement(first, second, top=10)
    assert rho == pytest.approx(spearmanr(first, second).statistic)
    leading = [set(sorted(range(40), key=lambda head: (-votes[head], head))[:10]) for votes in (first, second)]
    assert shared == len(leading[0] & leading[1]) / 10
    assert rank_agreement(first, first) == (pytest.approx(1), 1) and np.isnan(rank_agreement(first, np.zeros(40))).all()


def test_the_interval_of_a_share_is_wilsons_and_wider_by_the_noise_of_rankings() -> None:
    for right, total in ((0, 5), (3, 20), (20, 20)):
        ends = binomtest(right, total).proportion_ci(method="wilson")
        share = share_interval(np.arange(total) < right)
        np.testing.assert_allclose(share, (right / total, ends.low, ends.high), atol=1e-12)
    one, other = np.arange(20) < 6, np.arange(20) < 14
    alone, redrawn = share_interval(one), share_interval(np.stack([one, one, other], axis=1))
    assert redrawn.mean == alone.mean and redrawn.low < alone.low and redrawn.high > alone.high


def test_the_interval_of_a_share_over_groups_is_that_of_as_many_draws_as_have_its_error():
    rng = np.random.default_rng(0)
    p_of_group = np.clip(rng.normal(0.9, 0.1, 40), 0, 1)
    groups = np.repeat(np.arange(40), 25)
    right = rng.random(1000) < p_of_group[groups]
    shares = right.reshape(40, 25).mean(1)
    by_group, of_shares, alone = share_interval(right, groups), share_interval(shares), share_interval(right)
    np.testing.assert_allclose(by_group, of_shares)
    assert by_group.high - by_group.low > 1.3 * (alone.high - alone.low), "images of a group are alike"
    low, high = mean_interval(shares)[1:]
    np.testing.assert_allclose(by_group[1:], [low, high], atol=0.01)
    assert share_interval([1.0, 1.0, 0.75, 1.0]).high <= 1 < mean_interval([1.0, 1.0, 0.75, 1.0]).high
    assert tuple(share_interval(np.ones(80), np.repeat(range(40), 2))) == tuple(share_interval(np.ones(40)))
