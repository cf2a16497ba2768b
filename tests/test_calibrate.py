import json
from dataclasses import replace

import numpy as np
import pytest

from data.sections import Margins
from eval import calibrate
from eval.calibrate import calibrate_case, concluded_by_repetition
from eval.stats.cases import (
    STRENGTHS,
    KnownCase,
    StudySize,
    base_chances,
    drawn_counts,
    known_cases,
)
from eval.stats.conclusion import Conclusion
from eval.stats.counts import Counts
from eval.stats.estimate import bootstrap_weights
from eval.stats.evidence import Arms, conclude

MARGINS = Margins(resamples=300)
SMALL = StudySize(120, 32, 256)


def named(start):
    return next(case for case in known_cases(MARGINS) if case.name.startswith(start))


def test_base_models_have_the_share_of_hopeless_problems_that_their_weights_leave():
    chances = base_chances("weak", (50, 400), np.random.default_rng(1))
    assert (chances == 0).mean() == pytest.approx(0.5, abs=0.02)
    assert chances[chances > 0].mean() == pytest.approx(0.5 / 8.5, rel=0.05)
    assert (base_chances("long tail", (5, 40), np.random.default_rng(2)) > 0).all()


def test_cases_sharpen_as_much_as_the_margins_allow():
    cases = {case.name: case.training for case in known_cases(replace(MARGINS, lift=4))}
    p = np.full((1, 50), 0.1)
    worst = cases["sharpened 4 times, at worst"](p, 0 * p, np.random.default_rng(1))
    assert worst["grpo"] == pytest.approx(1 - (1 - worst["base"]) ** 4)
    uneven = cases["sharpened unevenly"](p, 0 * p, np.random.default_rng(1))
    assert (uneven["grpo"] <= 1 - 0.9**4).all()


NOTHING_NEW = (
    "identical", "sharpened 16 times", "sharpened 16 times, at", "sharpened, keeps",
    "a lower temperature", "a lower temperature, unasked", "form, unasked",
)  # fmt: skip


@pytest.mark.parametrize("strength", STRENGTHS)
@pytest.mark.parametrize("what", NOTHING_NEW)
def test_nothing_new_is_hardly_ever_called_a_new_capability(what, strength):
    found = calibrate_case(named(what), strength, SMALL, 60, MARGINS, 1)
    assert found.false_new <= 0.05
    assert (found.false_elicited or 0) <= 0.05
    assert sum(found.counts.values()) == 60


def test_a_really_new_skill_is_found_and_not_called_elicited():
    found = calibrate_case(named("new on 20 %"), "middle", SMALL, 60, MARGINS, 1)
    assert found.right >= 0.8
    assert found.false_elicited <= 0.05
    assert found.false_new is None


def test_all_repetitions_at_once_are_concluded_on_as_one_by_one():
    rng = np.random.default_rng(3)
    guess = np.full(60, 0.03)
    chances = named("new on 20 %").training(base_chances("middle", (12, 60), rng), guess, rng)
    arms = drawn_counts(chances, guess, StudySize(60, 32, 128), rng)
    together = concluded_by_repetition(arms, MARGINS, bootstrap_weights(60, 300, rng))
    apart = []
    for i in range(12):
        one = {
            name: Counts(arm.n, arm.c[i], arm.fresh_n[i], arm.fresh_c[i])
            for name, arm in vars(arms).items()
            if isinstance(arm, Counts)
        }
        apart.append(conclude({"t": Arms(**one, guess=guess)}, MARGINS, i).overall.conclusion)
    # The resamples differ, so a conclusion on the edge may.
    assert sum(a == b for a, b in zip(together, apart, strict=True)) >= 10


@pytest.mark.parametrize(
    ("right", "code", "failures"),
    [(Conclusion.ELICITED, 0, 0), (Conclusion.NEW, 1, 2)],  # false 'elicited', too little power
)
def test_the_report_holds_every_case_and_what_is_out_of_bounds(
    run_command, monkeypatch, tmp_path, right, code, failures
):
    case = KnownCase("four times", named("sharpened 4 times").training, (right,))
    monkeypatch.setattr(calibrate, "STUDY_SIZES", (SMALL,))
    monkeypatch.setattr(calibrate, "STRENGTHS", {"strong": STRENGTHS["strong"]})
    monkeypatch.setattr(calibrate, "known_cases", lambda margins: (case,))
    assert run_command("eval.calibrate", "--out", tmp_path, "--repetitions", 20)[1] == code
    report = json.loads((tmp_path / "report.json").read_text())
    [cell] = report["cells"]
    assert (cell["scenario"], cell["counts"]["elicited"]) == ("four times", 20)
    assert len(report["failures"]) == failures


def test_no_repetitions_are_refused(mistake_of):
    said = mistake_of("eval.calibrate", "--repetitions", 0)
    assert said == "--repetitions must be 1 or more, not 0"
