import random
from itertools import product

import numpy as np
import pytest
from scipy.stats import binom

from data.policies import floor, random_maximal_success
from data.sections import LEVEL
from data.tiers import TIERS
from eval.stats.analyses import (
    ACCURACIES,
    coverage,
    crossing,
    expansion,
    floor_adjusted,
    two_by_two,
)
from eval.stats.certificate import certificate
from eval.stats.counts import Counts, fresh_tries, unsolved_by
from eval.stats.estimate import bootstrap_weights
from eval.stats.passk import floor_at, pass_at_k, solved_within


def weights(problems, resamples=1000, seed=1):
    return bootstrap_weights(problems, resamples, np.random.default_rng(seed))


def test_the_floor_of_each_problem_averages_to_that_of_the_policies():
    problems = [TIERS["dense"].sample(random.Random(i)) for i in range(12)]
    chance = [random_maximal_success(p) for p in problems]
    exact = floor(problems, (1, 4, 16))["random_maximal"]
    assert np.allclose(floor_at(chance, [1, 4, 16]).mean(axis=0), list(exact.values()))
    assert np.allclose(floor_at(chance, 4), floor_at(chance, [4])[:, 0])


def test_floor_adjustment_gives_back_the_share_of_skill():
    floors = np.random.default_rng(2).uniform(0, 0.6, size=(300, 2))
    skill = np.array([0.25, 0.0])
    curve = floors + (1 - floors) * skill
    solves, guesses = floor_adjusted(curve, floors, weights(300), LEVEL)
    assert solves.value == pytest.approx(0.25)
    assert guesses.value == pytest.approx(0)
    # On these each problem has just that skill, so resampling problems changes nothing.
    assert solves.low <= 0.25 <= solves.high


def test_floor_adjusted_intervals_cover_the_truth_about_95_times_in_100():
    rng = np.random.default_rng(4)
    problems, n, repetitions, k = 200, 16, 1000, 4
    guess = rng.beta(1, 8, size=(problems, repetitions))
    skill = rng.beta(0.5, 3, size=guess.shape)
    p = 1 - (1 - skill) * (1 - guess)  # a try succeeds by skill or else by a guess
    curve = solved_within(n, rng.binomial(n, p), k)
    found = floor_adjusted(curve, 1 - (1 - guess) ** k, weights(problems), LEVEL)
    # Independent of the guess, so skill's own pass@k is what is left.
    truth = 1 - np.prod([(3 + j) / (3.5 + j) for j in range(k)])
    covered = np.mean([e.low <= truth <= e.high for e in found])
    assert 0.93 <= covered <= 0.97


def test_nothing_is_said_where_guessing_leaves_no_room():
    floors = np.stack([np.full(20, share) for share in (0.5, 0.7, 1 - 1e-9, 1)], axis=1)
    fine, *none = floor_adjusted(np.full((20, 4), 0.25), floors, weights(20), LEVEL)
    assert fine.value == -0.5
    assert fine.low >= -1
    assert none == [None] * 3


def test_the_crossing_equals_a_slow_bootstrap():
    rng = np.random.default_rng(6)
    n, ks = 16, np.arange(1, 17)
    base = pass_at_k(n, rng.binomial(n, rng.beta(1, 4, 60)), ks)
    tuned = pass_at_k(n, np.where(rng.random(60) < 0.5, rng.binomial(n, 0.7, 60), 0), ks)
    drawn = weights(60, 403)
    found = crossing(base, tuned, drawn, LEVEL)
    slow = []
    for row in drawn[:, :-1]:
        curves = zip(row @ base, row @ tuned, strict=True)
        slow.append(next((k for k, (b, t) in enumerate(curves, 1) if b >= t - 1e-4), n + 1))
    slow.sort()
    assert found["beyond"] == np.mean(np.array(slow) > n)
    assert found["low"] == slow[int(np.ceil(0.025 * 403)) - 1]
    high = slow[int(np.ceil(0.975 * 403)) - 1]
    assert found["high"] == (None if high > n else high)
    assert found["k"] == next(k for k in ks if base[:, k - 1].mean() >= tuned[:, k - 1].mean())


@pytest.mark.parametrize(
    ("base", "tuned", "beyond"),
    [(0.0, 0.0, None), (0.2, 0.4, 1.0)],
    ids=["neither arm ever succeeds", "the samples end before it"],
)
def test_a_crossing_that_was_not_seen_is_not_made_up(base, tuned, beyond):
    curves = (np.full((10, 4), rate) for rate in (base, tuned))
    found = crossing(*curves, weights(10), LEVEL)
    assert found == {"k": None, "low": None, "high": None, "n": 4, "beyond": beyond}


def test_crossing_intervals_hold_the_true_crossing_about_95_times_in_100():
    rng = np.random.default_rng(7)
    n, problems, ks = 64, 150, np.arange(1, 65)
    # The tuned arm solves 40 % of the problems at once and no others; the base all, slowly.
    truth = int(np.argmax(1 - 0.95**ks >= 0.4)) + 1
    held = []
    for i in range(300):
        base = pass_at_k(n, rng.binomial(n, 0.05, problems), ks)
        tuned = pass_at_k(n, np.where(rng.random(problems) < 0.4, n, 0), ks)
        found = crossing(base, tuned, weights(problems, 400, i), LEVEL)
        held.append(found["low"] <= truth <= (found["high"] or n + 1))
    # Whole k make the interval a little wide.
    assert 0.92 <= np.mean(held) <= 0.99


def test_coverage_is_the_share_of_problems_at_or_above_an_accuracy():
    shares = coverage(10, np.array([0, 1, 5, 10]), weights(4), LEVEL)
    found = dict(zip(ACCURACIES, shares, strict=True))
    assert [found[least].value for least in (0.1, 0.5, 1.0)] == [0.75, 0.5, 0.25]


def test_mcnemar_equals_enumerating_every_outcome():
    base = np.array([1, 1, 1, 0, 0, 0, 0, 0, 1, 0], bool)
    tuned = np.array([1, 0, 1, 1, 1, 1, 1, 0, 1, 1], bool)
    found = two_by_two(base, tuned)
    p = found.pop("p")
    assert found == {"both": 3, "only_base": 1, "only_tuned": 5, "neither": 1}
    outcomes = [sum(flips) for flips in product([0, 1], repeat=6)]
    assert p == pytest.approx(np.mean([abs(x - 3) >= 2 for x in outcomes]))
    assert two_by_two(base, base)["p"] == 1


def test_equal_models_expand_and_shrink_by_nothing_about_95_times_in_100():
    held, rng = [], np.random.default_rng(9)
    for i in range(300):
        p = rng.beta(0.3, 5, 150)
        arms = [
            Counts(16, rng.binomial(16, p), np.full(150, 32), rng.binomial(32, p)) for _ in range(2)
        ]
        found = expansion(*arms, weights(150, 400, i), rng, LEVEL)
        share, among = found["share"], found["difference"]["value"]
        held.append(share["low"] <= 0 <= share["high"])
        assert found["tries"] == 32
        assert share["value"] * 150 == pytest.approx(among * found["unsolved"])
    assert 0.93 <= np.mean(held) <= 0.97


def test_expansion_asks_only_what_was_unsolved():
    base = Counts(4, [0, 0, 2], [8, 8, 0], [0, 1, 0])
    tuned = Counts(4, [4, 0, 4], [8, 8, 0], [8, 0, 0])
    found = expansion(base, tuned, weights(3), np.random.default_rng(11), LEVEL)
    assert (found["unsolved"], found["problems"]) == (2, 3)
    assert (found["tuned"]["value"], found["reference"]["value"]) == (0.5, 0.5)
    base = Counts(4, [1, 1, 2], 0, [0, 0, 0])
    solved = expansion(base, tuned, weights(3), np.random.default_rng(11), LEVEL)
    assert (solved["unsolved"], solved["tuned"], solved["share"]["value"]) == (0, None, 0)


def test_a_problem_left_unsolved_must_have_been_asked_again():
    base = Counts(4, [0, 0, 2], [8, 0, 0], [0, 0, 0])
    for arm in (base, Counts(4, [0, 1, 2])):
        with pytest.raises(ValueError, match="was not asked again"):
            fresh_tries([arm], unsolved_by([base]))


@pytest.mark.parametrize(("missed", "fresh", "lift"), [(320, 256, 16), (128, 64, 16), (200, 50, 4)])
def test_a_certificate_is_the_least_number_that_chance_keeps_below_its_bound(missed, fresh, lift):
    chances = np.array([0.0, 0.03, 0.2])
    found = certificate(missed, fresh, lift, 0.01, chances)
    p = np.linspace(0, 0.2, 20_001)
    for g, x in zip(chances, found, strict=True):
        tuned = 1 - (1 - p) ** lift * (1 - g)

        def worst(successes, tuned=tuned):
            return ((1 - p) ** missed * binom.sf(successes - 1, fresh, tuned)).max()

        assert worst(x) <= 0.0102  # the grid of p that it searches is a little coarser
        assert worst(x - 1) > 0.0098
    assert (np.diff(found) > 0).all()


def test_too_few_samples_give_no_certificate():
    assert certificate(8, 4, 16, 0.01) == 5
