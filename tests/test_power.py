import numpy as np
import pytest

from data.sections import Margins
from eval.calibrate import calibrate_case
from eval.stats.cases import STRENGTHS, KnownCase, StudySize, new_skill
from eval.stats.conclusion import Conclusion
from eval.stats.estimate import bootstrap_weights, mean_interval
from eval.stats.power import SPREAD, detectable


@pytest.mark.parametrize("size", [StudySize(150, 64, 256), StudySize(400, 64, 256)])
def test_a_new_skill_of_the_least_share_is_found_about_as_often_as_stated(size):
    margins = Margins(resamples=500)
    guess = size.guesses(np.random.default_rng(1))
    share = detectable(**vars(size) | {"guess": guess}, margins=margins).new

    def power(share):
        new = KnownCase(f"new on {share}", new_skill(share), (Conclusion.NEW,))
        return [calibrate_case(new, one, size, 100, margins, 1).right for one in STRENGTHS]

    # It assumes a base that misses half; others miss fewer, and then less is taken off.
    assert min(power(share)) >= 0.75
    assert np.mean(power(0.6 * share)) <= 0.75


def test_more_problems_and_samples_detect_less():
    margins = Margins()
    few, many = detectable(100, 64, 256, margins), detectable(400, 64, 256, margins)
    assert many.gain < few.gain
    assert many.new < few.new
    assert many.narrowed < few.narrowed
    assert detectable(100, 64, 1024, margins).rate < few.rate


@pytest.mark.parametrize("problems", [30, 60, 200])
def test_a_gain_of_the_least_size_is_found_about_as_often_as_stated(problems):
    rng = np.random.default_rng(1)
    gain = detectable(problems, 64, 256, Margins()).gain
    drawn = np.clip(rng.normal(gain, SPREAD, size=(problems, 1000)), -1, 1)
    found = mean_interval(drawn, bootstrap_weights(problems, 1000, rng), bounds=(-1.0, 1.0))
    assert 0.72 <= np.mean([one.low > 0 for one in found]) <= 0.85


@pytest.mark.parametrize("guess", [0.0, 0.03, 0.1])
def test_what_is_said_to_be_needed_is_enough_and_half_of_it_is_not(guess):
    margins = Margins()
    found = detectable(60, 16, 64, margins, guess)
    problems, samples, fresh = found.needed
    assert detectable(problems, samples, fresh, margins, guess).new <= found.share
    for size in ((problems // 2, samples, fresh), (problems, samples // 2, fresh // 2)):
        assert (detectable(*size, margins, guess).new or 1) > found.share
    assert f"{problems:,} problems x {samples:,} + {fresh:,} samples" in found.sentence


@pytest.mark.parametrize("guess", [0.23, 0.49])
def test_where_guessing_does_too_much_no_number_of_samples_is_named(guess):
    found = detectable(50, 16, 64, Margins(), guess)
    assert found.needed is None
    assert "Elicited takes 59 problems or more" in found.sentence


def test_what_too_few_samples_cannot_detect_is_said():
    nothing, gain_alone = (detectable(50, samples, 8, Margins()) for samples in (4, 8))
    assert not nothing.possible
    assert "even a perfect solver" in nothing.sentence
    assert gain_alone.new is None
    assert "too few to see a new skill" in gain_alone.sentence
