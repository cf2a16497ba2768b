from itertools import combinations

import numpy as np
import pytest
from scipy.special import betaln
from scipy.stats import bootstrap, hypergeom

from eval.stats.estimate import (
    bootstrap_indices,
    crossed_interval,
    mean_interval,
    paired_difference,
    ratio_interval,
    resampled_means,
)
from eval.stats.passk import ks_for, overtaking_k, pass_at_k


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


def test_resampled_means_equal_gathering_every_row():
    rng = np.random.default_rng(2)
    values, indices = rng.random((30, 3)), bootstrap_indices(30, 1200, rng)
    assert np.allclose(resampled_means(values, indices), values[indices].mean(axis=1))


def test_the_interval_agrees_with_scipys_bca_bootstrap():
    rng = np.random.default_rng(3)
    values, resamples = rng.beta(0.3, 3, size=120), 100_000
    # Both are random: at this many resamples a limit's standard deviation is about 0.0001, so the
    # tolerance is wide of chance, yet the plain percentile interval, 0.002 off, would fail.
    [ours] = mean_interval(values[:, None], bootstrap_indices(120, resamples, rng))
    theirs = bootstrap((values,), np.mean, n_resamples=resamples, method="BCa", batch=2000, rng=rng)
    assert ours.value == pytest.approx(values.mean())
    assert ours.low == pytest.approx(theirs.confidence_interval.low, abs=0.001)
    assert ours.high == pytest.approx(theirs.confidence_interval.high, abs=0.001)


@pytest.mark.parametrize(("a", "b"), [(0.3, 3.0), (0.5, 0.5), (2.0, 20.0)])
def test_95_percent_intervals_of_pass_at_k_cover_the_truth_about_95_times_in_100(a, b):
    problems, n, ks, repetitions = 200, 16, np.array([1, 4, 16]), 1500
    rng = np.random.default_rng(4)
    accuracy = rng.beta(a, b, size=repetitions * problems)
    curves = pass_at_k(n, rng.binomial(n, accuracy), ks).reshape(repetitions, problems, len(ks))
    values = curves.transpose(1, 0, 2).reshape(problems, -1)
    truth = np.tile(1 - np.exp(betaln(a, b + ks) - betaln(a, b)), repetitions)
    found = mean_interval(values, bootstrap_indices(problems, 2000, rng))
    covered = [e.low <= t <= e.high for e, t in zip(found, truth, strict=True)]
    for coverage in np.reshape(covered, (repetitions, len(ks))).mean(axis=0):
        assert 0.93 <= coverage <= 0.97


def test_95_percent_intervals_of_a_paired_difference_cover_it_about_95_times_in_100():
    problems, n, repetitions = 200, 8, 2000
    rng = np.random.default_rng(5)
    base = rng.beta(0.5, 2, size=(problems, repetitions))
    tuned = base**0.5  # better on every problem, and hard where the base finds it hard
    truth = np.exp(betaln(1.0, 2) - betaln(0.5, 2)) - 0.5 / 2.5
    found = paired_difference(
        rng.binomial(n, tuned) / n,
        rng.binomial(n, base) / n,
        bootstrap_indices(problems, 2000, rng),
    )
    assert 0.93 <= np.mean([e.low <= truth <= e.high for e in found]) <= 0.97


def test_a_ratio_of_means_agrees_with_scipys_bca_bootstrap():
    rng = np.random.default_rng(9)
    b = rng.beta(2, 2, size=80)
    a = b * rng.beta(0.5, 1.5, size=80)
    [ours] = ratio_interval(a[:, None], b[:, None], bootstrap_indices(80, 50_000, rng))
    theirs = bootstrap(
        (a, b),
        lambda x, y, axis=-1: x.mean(axis=axis) / y.mean(axis=axis),
        n_resamples=50_000,
        paired=True,
        method="BCa",
        batch=2000,
        rng=rng,
    ).confidence_interval
    assert ours.value == pytest.approx(a.mean() / b.mean())
    assert ours.low == pytest.approx(theirs.low, abs=0.002)
    assert ours.high == pytest.approx(theirs.high, abs=0.002)


@pytest.mark.parametrize(("seeds", "spread"), [(3, 0.1), (3, 0.02), (5, 0.05), (2, 0.1)])
def test_intervals_crossed_with_training_seeds_cover_the_truth_about_95_times_in_100(seeds, spread):
    problems, n, repetitions = 100, 16, 2000
    rng = np.random.default_rng(11)
    of_seed = rng.normal(0, spread, size=(seeds, 1, repetitions))
    of_problem = rng.normal(0.5, 0.1, size=(1, problems, repetitions))
    p = np.clip(of_seed + of_problem, 0, 1)
    values = rng.binomial(n, p) / n
    indices = bootstrap_indices(problems, 1000, rng)
    found = crossed_interval(values, indices, bounds=(0.0, 1.0))
    assert 0.93 <= np.mean([e.low <= 0.5 <= e.high for e in found]) <= 0.97
    problems_only = mean_interval(values.mean(axis=0), indices)
    assert np.mean([e.low <= 0.5 <= e.high for e in problems_only]) < 0.92


def test_with_one_seed_a_crossed_interval_is_that_of_the_problems():
    rng = np.random.default_rng(12)
    values, indices = rng.random((1, 40, 2)) - 0.5, bootstrap_indices(40, 500, rng)
    assert crossed_interval(values, indices) == mean_interval(values[0], indices, bounds=(-1, 1))


def test_problems_that_all_agree_do_not_make_an_interval_of_width_zero():
    indices = bootstrap_indices(100, 500, np.random.default_rng(7))
    limit = 1 - 0.025 ** (1 / 100)  # Clopper and Pearson's upper limit for 0 of 100
    nothing, everything = mean_interval(np.tile([0.0, 1.0], (100, 1)), indices)
    assert (nothing.low, nothing.high) == (0, pytest.approx(limit))
    assert (everything.low, everything.high) == (pytest.approx(1 - limit), 1)
    [same] = paired_difference(np.zeros((100, 1)), np.zeros((100, 1)), indices)
    assert (same.low, same.high) == (pytest.approx(-limit), pytest.approx(limit))


def test_the_overtaking_k_is_the_first_at_which_the_curves_meet():
    assert overtaking_k([0.1, 0.3, 0.5], [0.2, 0.3, 0.4]) == 2
    assert overtaking_k([0.1, 0.2], [0.2, 0.3]) is None
    assert overtaking_k([0.2], [0.1]) == 1
