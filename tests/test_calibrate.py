import json
import sys

import numpy as np
import pytest

from data.common.errors import UserError
from eval import calibrate
from eval.calibrate import STRENGTHS, Scenario, Size, base_chances, cell, scenarios, sharpened
from eval.stats.conclusion import Conclusion, Margins
from eval.stats.estimate import bootstrap_indices
from eval.stats.evidence import Arms, conclude

MARGINS = Margins(resamples=300)
SMALL = Size(120, 32, 256)


def named(start):
    return next(s for s in scenarios(MARGINS) if s.name.startswith(start))


def test_sharpening_gives_in_one_try_what_many_gave():
    assert sharpened(np.array([0.0, 0.1, 1.0]), 4) == pytest.approx([0, 1 - 0.9**4, 1])


def test_base_models_have_the_share_of_hopeless_problems_that_their_weights_leave():
    chances = base_chances("weak", (50, 400), np.random.default_rng(1))
    assert (chances == 0).mean() == pytest.approx(0.5, abs=0.02)
    assert chances[chances > 0].mean() == pytest.approx(0.5 / 8.5, rel=0.05)
    assert (base_chances("long tail", (5, 40), np.random.default_rng(2)) > 0).all()


@pytest.mark.parametrize("strength", STRENGTHS)
@pytest.mark.parametrize(
    "what", ["identical", "sharpened 16 times", "sharpened 16 times, at", "sharpened, keeps"]
)
def test_nothing_new_is_hardly_ever_called_a_new_capability(what, strength):
    found = cell(named(what), strength, SMALL, 60, MARGINS, 1)
    assert found.false_new <= 0.05
    assert sum(found.counts.values()) == 60


def test_a_really_new_skill_is_found_and_not_called_elicited():
    found = cell(named("new on 20 %"), "middle", SMALL, 60, MARGINS, 1)
    assert found.right >= 0.8
    assert found.false_elicited <= 0.05
    assert found.false_new is None


@pytest.mark.parametrize("what", ["narrowed", "format only, none", "distilled", "distilled, then"])
def test_what_training_did_is_named(what):
    assert cell(named(what), "middle", SMALL, 60, MARGINS, 1).right >= 0.8


def test_a_cell_is_the_same_again_and_another_with_another_seed():
    def drawn(seed):
        return cell(named("new on 5 %"), "middle", SMALL, 60, MARGINS, seed)

    assert drawn(1) == drawn(1)
    assert drawn(1).counts != drawn(2).counts


def test_all_repetitions_at_once_are_judged_as_one_by_one():
    rng = np.random.default_rng(3)
    guess = np.full(60, 0.03)
    base = base_chances("middle", (12, 60), rng)
    truth = named("new on 20 %").truth(base, guess, rng)
    arms = calibrate.sampled(truth, guess, Size(60, 32, 128), rng)
    together = calibrate.conclusions(arms, MARGINS, bootstrap_indices(60, 300, rng))
    apart = []
    for i in range(12):
        one = {
            name: type(arm)(arm.n, arm.c[i], arm.fresh_n[i], arm.fresh_c[i])
            for name, arm in vars(arms).items()
            if name != "guess" and arm is not None
        }
        apart.append(conclude({"t": Arms(**one, guess=guess)}, MARGINS, i).overall.conclusion)
    # The resamples differ, so a conclusion on the edge may.
    assert sum(a == b for a, b in zip(together, apart, strict=True)) >= 10


def run_main(monkeypatch, tmp_path, *arguments):
    monkeypatch.setattr(
        sys, "argv", ["calibrate", "--out", str(tmp_path), "--resamples", "200", *arguments]
    )
    calibrate.main()


@pytest.fixture
def _small(monkeypatch):
    monkeypatch.setattr(calibrate, "SIZES", (SMALL,))
    monkeypatch.setattr(calibrate, "PROBLEMS", (50,))
    monkeypatch.setattr(calibrate, "STRENGTHS", {"strong": STRENGTHS["strong"]})


@pytest.mark.usefixtures("_small")
def test_the_report_holds_every_cell_and_the_problems_that_an_effect_takes(
    monkeypatch, tmp_path, capsys
):
    monkeypatch.setattr(calibrate, "scenarios", lambda margins: (named("sharpened 4 times"),))
    run_main(monkeypatch, tmp_path, "--repetitions", "20")
    report = json.loads((tmp_path / "report.json").read_text())
    assert [c["scenario"] for c in report["cells"]] == ["sharpened 4 times"]
    assert report["cells"][0]["counts"]["elicited"] == 20
    assert set(report["problems_needed"]) == {"5%", "10%", "20%"}
    assert report["failures"] == []
    shown = capsys.readouterr().out
    assert "all within bounds" in shown
    assert "Said beforehand: 120 problems" in shown


@pytest.mark.usefixtures("_small")
def test_a_bound_that_does_not_hold_ends_with_1(monkeypatch, tmp_path):
    wrong = Scenario("wrong", named("sharpened 4 times").truth, (Conclusion.NEW,))
    monkeypatch.setattr(calibrate, "scenarios", lambda margins: (wrong,))
    with pytest.raises(SystemExit) as stop:
        run_main(monkeypatch, tmp_path, "--repetitions", "20")
    assert stop.value.code == 1
    failures = json.loads((tmp_path / "report.json").read_text())["failures"]
    assert any("false 'elicited' 100.0%" in failure for failure in failures)
    assert any("right 0.0%" in failure for failure in failures)


@pytest.mark.parametrize("flag", ["--repetitions", "--resamples"])
def test_too_few_draws_are_refused(monkeypatch, tmp_path, flag):
    with pytest.raises(UserError, match=f"{flag} must be"):
        run_main(monkeypatch, tmp_path, flag, "3")
