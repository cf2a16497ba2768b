from itertools import combinations

import numpy as np
import pytest
from scipy.optimize import brentq
from scipy.special import betaln
from scipy.stats import binom, hypergeom

from eval.stats.estimate import (
    bootstrap_weights,
    crossed_interval,
    mean_interval,
    paired_difference,
    ratio_interval,
    resampled_means,
)
from eval.stats.passk import best_of_k, ks_for, overtaking_k, pass_at_k


def test_pass_at_k_equals_the_share_of_all_subsets_that_hold_a_success():
    for n in range(1, 8):
        for c in range(n + 1):
            for k in range(1, n + 1):
                subsets = list(combinations([True] * c + [False] * (n - c), k))
                share = sum(map(any, subsets)) / len(subsets)
                assert pass_at_k(n, [c], k)[0] == pytest.approx(share, abs=1e-12)


def test_samples_may_differ_by_problem_and_all_k_come_at_once():
    n, c, ks = np.array([8, 12, 8, 256]), np.array([0, 3, 8, 17]), [1, 2, 8]
    matrix = pass_at_k(n, c, ks)
    for column, k in enumerate(ks):
        assert np.allclose(matrix[:, column], 1 - hypergeom.pmf(0, n, c, k), atol=1e-10)
        assert np.array_equal(matrix[:, column], pass_at_k(n, c, k))


def test_best_of_k_is_the_share_of_all_subsets_whose_best_ranked_is_right():
    right = np.random.default_rng(3).random((4, 6)) < 0.4
    found = best_of_k(right, np.arange(1, 7))
    for i, answers in enumerate(right):
        for k in range(1, 7):
            tops = [subset[0] for subset in combinations(answers, k)]
            assert found[i, k - 1] == pytest.approx(np.mean(tops))


@pytest.mark.parametrize(
    ("n", "c", "k"), [([8, 4], [1, 1], 5), (8, [1], 0), (8, [9], 1), (8, [-1], 1), (8, [], 1)]
)
def test_a_k_or_a_count_that_cannot_be_is_refused(n, c, k):
    with pytest.raises(ValueError, match=r"must be|at least one"):
        pass_at_k(n, np.array(c, dtype=int), k)


@pytest.mark.parametrize(
    ("n", "ks"), [(100, (1, 2, 4, 8, 16, 100)), (64, (1, 2, 4, 8, 16, 64)), (7, (1, 7)), (1, (1,))]
)
def test_ks_are_powers_of_two_up_to_a_quarter_and_n(n, ks):
    assert ks_for(n) == ks


def test_resampled_means_are_weighted_ones_of_the_problems_that_were_seen():
    rng = np.random.default_rng(2)
    values, weights = rng.random((30, 3)), bootstrap_weights(30, 1200, rng)
    slow = [np.average(values, axis=0, weights=row[:-1]) for row in weights]
    assert np.allclose(resampled_means(values, weights), slow)


@pytest.mark.parametrize(("successes", "n"), [(0, 50), (1, 50), (3, 10), (5, 10), (50, 50)])
def test_limits_of_a_yes_or_no_are_the_exact_ones(successes, n):
    """Mid-P limits of Clopper and Pearson, by their definition."""

    def upper(k):
        return brentq(lambda p: binom.cdf(k - 1, n, p) + binom.pmf(k, n, p) / 2 - 0.025, 0, 1)

    high = upper(successes) if successes < n else 1.0
    low = 1 - upper(n - successes) if successes else 0.0
    values = (np.arange(n) < successes).astype(float)[:, None]
    [found] = mean_interval(values, bootstrap_weights(n, 100_000, np.random.default_rng(3)))
    assert (found.low, found.high) == (pytest.approx(low, abs=3e-3), pytest.approx(high, abs=3e-3))


def test_one_failed_sample_of_thousands_hardly_moves_an_interval_and_more_is_never_less():
    weights = bootstrap_weights(50, 10_000, np.random.default_rng(7))
    all_right = np.ones((50, 1))
    nearly = all_right.copy()
    nearly[0] = 63 / 64
    [whole], [almost] = mean_interval(all_right, weights), mean_interval(nearly, weights)
    assert (whole.low, whole.high) == (pytest.approx(0.05 ** (1 / 50), abs=2e-3), 1)
    assert almost.low == pytest.approx(whole.low, abs=1e-3)
    assert almost.high > 0.999
    some = np.random.default_rng(8).beta(0.2, 2, (50, 1))
    for bounds in ((0.0, 1.0), (-1.0, 1.0)):
        limits = []
        for share in np.linspace(0, 1, 9):  # from a column of zeros to a mixed one
            [estimate] = mean_interval(share * some, weights, bounds=bounds)
            limits.append([estimate.low, estimate.value, estimate.high])
        assert (np.diff(limits, axis=0) >= 0).all()


#: Chances of success a try, drawn for one problem each, and what pass@1 then is: near 0, near 1,
#: a few problems that are solved among many that are not, and yes or no.
POPULATIONS = {
    "near 0": (lambda rng, shape: rng.beta(0.2, 8, shape), 0.2 / 8.2),
    "near 1": (lambda rng, shape: rng.beta(8, 0.2, shape), 8 / 8.2),
    "few": (lambda rng, shape: np.where(rng.random(shape) < 0.06, 0.7, 0), 0.042),
    "mixed": (lambda rng, shape: rng.beta(0.5, 0.7, shape), 0.5 / 1.2),
    "yes or no": (lambda rng, shape: 1.0 * (rng.random(shape) < 0.15), 0.15),
}


@pytest.mark.parametrize("problems", [10, 20, 50, 200])
@pytest.mark.parametrize("population", POPULATIONS)
def test_95_percent_intervals_cover_that_often_at_any_number_of_problems(population, problems):
    rng, repetitions = np.random.default_rng(4), 1000
    draw, truth = POPULATIONS[population]
    values = rng.binomial(16, draw(rng, (problems, repetitions))) / 16
    found = mean_interval(values, bootstrap_weights(problems, 1000, rng))
    assert np.mean([e.low <= truth <= e.high for e in found]) >= 0.93
    width = np.mean([e.high - e.low for e in found])
    # It must fall back on the widest interval that so many answers of yes or no can have.
    assert width <= 4.2 * np.sqrt(truth * (1 - truth) / problems) + 2 / problems


def test_95_percent_intervals_of_a_paired_difference_cover_it_about_95_times_in_100():
    problems, n, repetitions = 200, 8, 1000
    rng = np.random.default_rng(5)
    base = rng.beta(0.5, 2, size=(problems, repetitions))
    tuned = base**0.5  # better on every problem, and hard where the base finds it hard
    truth = np.exp(betaln(1.0, 2) - betaln(0.5, 2)) - 0.5 / 2.5
    found = paired_difference(
        rng.binomial(n, tuned) / n,
        rng.binomial(n, base) / n,
        bootstrap_weights(problems, 2000, rng),
    )
    assert 0.93 <= np.mean([e.low <= truth <= e.high for e in found]) <= 0.98


def test_a_ratio_that_rests_on_one_problem_says_little():
    part, whole = np.zeros((50, 1)), np.zeros((50, 2))
    part[0] = whole[0, 0] = 1
    only, none = ratio_interval(
        np.tile(part, 2), whole, bootstrap_weights(50, 10_000, np.random.default_rng(9))
    )
    assert none is None
    assert (only.value, only.high, only.low) == (1, 1, pytest.approx(0.05, abs=0.01))


@pytest.mark.parametrize(("seeds", "spread"), [(3, 0.1), (3, 0.02), (5, 0.05), (2, 0.1)])
def test_intervals_crossed_with_training_seeds_cover_the_truth_about_95_times_in_100(seeds, spread):
    problems, n, repetitions = 100, 16, 2000
    rng = np.random.default_rng(11)
    of_seed = rng.normal(0, spread, size=(seeds, 1, repetitions))
    of_problem = rng.normal(0.5, 0.1, size=(1, problems, repetitions))
    p = np.clip(of_seed + of_problem, 0, 1)
    values = rng.binomial(n, p) / n
    weights = bootstrap_weights(problems, 1000, rng)
    found = crossed_interval(values, weights, bounds=(0.0, 1.0))
    assert 0.93 <= np.mean([e.low <= 0.5 <= e.high for e in found]) <= 0.97
    problems_only = mean_interval(values.mean(axis=0), weights)
    assert np.mean([e.low <= 0.5 <= e.high for e in problems_only]) < 0.92


def test_with_one_seed_a_crossed_interval_is_that_of_the_problems():
    rng = np.random.default_rng(12)
    values, weights = rng.random((1, 40, 2)) - 0.5, bootstrap_weights(40, 500, rng)
    assert crossed_interval(values, weights) == mean_interval(values[0], weights, bounds=(-1, 1))


def test_the_overtaking_k_is_the_first_at_which_the_curves_meet():
    assert overtaking_k([0.1, 0.3, 0.5], [0.2, 0.3, 0.4]) == 2
    assert overtaking_k([0.1, 0.2], [0.2, 0.3]) is None
    assert overtaking_k([0.2], [0.1]) == 1
    assert overtaking_k([0, 0], [0, 0]) is None
