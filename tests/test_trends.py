"""One signal over time: levels, few points, and trends apart from noise."""

import numpy as np
import pytest

from pipeline.health.trends import BINS, SOME, Series, constant, falls, gained, rises, thirds


def series(values, each=1):
    made = Series()
    for place, value in enumerate(values):
        made.add(place * each, value)
    return made


def test_a_long_signal_is_seen_whole_in_few_points():
    made = series(range(100_000))
    whole = made.whole()
    assert BINS // 2 <= len(whole) < BINS
    steps = np.diff(whole)
    assert np.allclose(steps, steps[0])
    assert (made.count, made.start(SOME)) == (100_000, 2)


@pytest.mark.parametrize("rows", [1, 5, 64, 5000])
@pytest.mark.parametrize("back", [0, 3, 64, 4999])
def test_going_back_forgets_all_that_came_after(rows, back):
    made, short = series(range(rows)), series(range(min(rows, back)))
    made.rewind(back)
    assert (made.count, made.whole(), made.last()) == (short.count, short.whole(), short.last())
    made.add(back, -1.0)
    assert made.last(1) == [-1.0]


def test_values_of_some_steps_ago_and_between_steps():
    made = series(range(100), each=10)
    assert (made.ago(100, 3), made.ago(10, 3)) == (90, None)
    few = series([1, 2, 3, 4], each=10)
    assert (few.between(5, 25), few.between(21, 24)) == (2.5, 3)


def test_trends_are_distinguished_from_noise_and_rounding():
    rng = np.random.default_rng(1)
    up = rng.normal(0, 1, 40) + np.linspace(0, 4, 40)
    assert rises(up) < 0.001 < 0.999 < falls(up)
    assert rises([1.0] * 9) == falls([1.0] * 9) == 1
    assert thirds([1, 2, 3, 4, 5, 60]) == (1.5, 32.5)
    assert constant([0.5, 0.5 + 1e-9])
    assert not constant([0.5, 0.501])


def test_a_single_wild_value_changes_no_trend():
    up = [float(i) for i in range(30)]
    up[29] = -1e9
    assert rises(up) < 0.001
    assert 25 < gained(up) < 35


def test_the_most_gained_covers_the_truth_as_often_as_its_level_says():
    rng = np.random.default_rng(2)
    covered = [gained(rng.normal(0, 1, 30) + np.linspace(0, 1, 30)) >= 1 for _ in range(200)]
    assert 0.93 <= np.mean(covered) <= 1
