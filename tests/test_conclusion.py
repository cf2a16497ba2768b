import json
import time
from dataclasses import asdict, replace

import numpy as np
import pytest

from data.sections import Margins
from eval.stats.certificate import tries_for
from eval.stats.conclusion import Conclusion, Evidence, SampleBudget, decide
from eval.stats.counts import Counts
from eval.stats.estimate import Estimate
from eval.stats.evidence import Arms, conclude, holm
from eval.stats.summary import tally

P, N, M = 200, 64, 256
MARGINS = Margins(resamples=1000)
NEW, ELICITED, NARROWED = Conclusion.NEW, Conclusion.ELICITED, Conclusion.NARROWED
DISTILLED, FORMAT, OPEN = Conclusion.DISTILLED, Conclusion.FORMAT, Conclusion.INCONCLUSIVE


def arms(guess=None, asked=True, seed=1, n=N, m=M, **chances):
    """Counts drawn from chances of success a try, [problems] or [seeds, problems]."""
    rng = np.random.default_rng(seed)
    first = {name: rng.binomial(n, p) for name, p in chances.items()}
    unsolved = first["base"] == 0
    if "base_best" in first:
        unsolved &= first["base_best"] == 0
    fresh = np.where(unsolved, m, 0)
    counts = {
        name: Counts(n, first[name], fresh, rng.binomial(fresh, p))
        if asked
        else Counts(n, first[name])
        for name, p in chances.items()
    }
    return Arms(**counts, guess=guess)


def base(problems=P, seed=2):
    rng = np.random.default_rng(seed)
    return np.where(rng.random(problems) < 0.3, 0, rng.beta(0.7, 5, problems))


def lifted(p, times):
    return 1 - (1 - p) ** times


def with_skill(p, share=0.15, chance=0.4):
    return np.where(np.arange(len(p)) < share * len(p), chance, p)


def without(p, share=0.15):
    return with_skill(p, share, 0.0)


def concluded(**keywords):
    return conclude({"tier": arms(**keywords)}, MARGINS).overall


def test_a_sharpened_model_was_elicited():
    found = concluded(base=base(), grpo=lifted(base(), 6))
    assert found.conclusion == ELICITED
    assert "base reaches within 320 samples" in found.reason
    assert found.estimates["beyond base"].high < 0.05


def test_a_model_that_lost_what_it_rarely_solved_narrowed():
    tuned = np.where(base() < 0.1, 0, lifted(base(), 16))
    found = concluded(base=base(), grpo=tuned)
    assert found.conclusion == NARROWED
    assert "at k = 64 it loses" in found.reason


def test_a_skill_that_the_base_never_shows_is_new_and_never_called_impossible_for_it():
    found = concluded(base=without(base()), grpo=with_skill(lifted(base(), 4)))
    assert found.conclusion == NEW
    assert "not reachable for base within 320 samples" in found.reason
    assert "impossible" not in found.reason
    assert found.estimates["control"].value == 0
    assert found.estimates["certified"].value == pytest.approx(0.15, abs=0.01)


def test_a_new_skill_is_seen_though_more_was_lost_elsewhere():
    tuned = with_skill(np.zeros(P))
    found = concluded(base=without(base()), grpo=tuned)
    assert found.conclusion == NEW
    assert any("also lost" in note for note in found.notes)


def test_a_skill_of_the_base_at_its_best_is_not_new():
    skilled = with_skill(lifted(base(), 4))
    found = concluded(base=without(base()), base_best=with_skill(base()), grpo=skilled)
    assert found.conclusion == ELICITED


def test_a_skill_of_the_sft_start_was_distilled():
    start = with_skill(lifted(base(), 2))
    alike = concluded(base=without(base()), sft=start, grpo=start)
    sharpened = concluded(base=without(base()), sft=start, grpo=lifted(start, 3))
    assert alike.conclusion == sharpened.conclusion == DISTILLED
    assert "not beyond its SFT start" in sharpened.reason


def test_a_gain_at_k_1_that_its_sft_start_has_too_was_distilled():
    start = lifted(base(), 4)
    found = concluded(base=base(), sft=start, grpo=start)
    assert found.conclusion == DISTILLED
    assert "nothing of weight over its SFT start" in found.reason


def test_what_training_for_the_form_alone_brings_too_is_format_only():
    skill = base()
    found = concluded(base=0.2 * skill, format_only=skill, grpo=skill)
    assert found.conclusion == FORMAT
    never_in_form = concluded(base=0 * skill, base_best=0.9 * skill, format_only=skill, grpo=skill)
    assert never_in_form.conclusion == FORMAT


def test_no_change_is_inconclusive_and_says_that_there_is_nothing_to_explain():
    found = concluded(base=base(), grpo=base())
    assert found.conclusion == OPEN
    assert "nothing to explain" in found.reason
    behind = concluded(base=base(), grpo=base() / 4)
    assert behind.conclusion == OPEN
    assert "falls behind" in behind.reason


def test_too_few_problems_are_inconclusive():
    p = base(12)
    assert concluded(base=p, grpo=lifted(p, 3)).conclusion == OPEN


def test_without_confirmation_samples_neither_new_nor_elicited_can_be_said():
    for tuned in (lifted(base(), 6), with_skill(lifted(base(), 4))):
        found = concluded(base=without(base()), grpo=tuned, asked=False)
        assert found.conclusion == OPEN
        assert "no confirmation samples" in found.reason


def test_few_confirmation_samples_say_that_they_are_too_few():
    found = concluded(base=without(base()), grpo=with_skill(lifted(base(), 4)), n=8, m=4)
    assert found.conclusion == OPEN
    assert any("too few to tell" in note for note in found.notes)


def test_a_base_that_solved_everything_needs_no_confirmation():
    found = concluded(base=np.full(P, 0.3), grpo=np.full(P, 0.6))
    assert found.conclusion == ELICITED
    assert found.budget.reach == N


def test_guessing_is_no_new_capability():
    guess = np.full(P, 0.2)
    every_try = concluded(base=np.zeros(P), grpo=guess, guess=guess)
    assert every_try.conclusion != NEW
    kept = np.where(np.random.default_rng(3).random(P) < guess, 1.0, 0.0)
    assert concluded(base=np.zeros(P), grpo=kept, guess=guess).conclusion != NEW
    # Were they not guesses, this would be a new skill on a fifth of the problems.
    assert concluded(base=np.zeros(P), grpo=kept).conclusion == NEW


def test_tries_are_limited_to_where_guessing_leaves_room():
    margins = Margins()
    assert tries_for(256, 256, np.zeros(3), margins) == 16
    assert tries_for(256, 5, np.zeros(3), margins) == 5
    assert tries_for(256, 256, np.full(3, 0.2), margins) == 3  # 1 - 0.8^3 = 0.488, ^4 = 0.59
    assert tries_for(4, 4, np.full(3, 0.9), margins) == 1


def test_one_lucky_training_seed_of_three_is_not_called_new():
    p = without(base())
    skilled, plain = with_skill(lifted(p, 4)), lifted(p, 4)
    lucky = concluded(base=p, grpo=np.stack([skilled, plain, plain]))
    assert lucky.conclusion != NEW
    assert lucky.seeds == 3
    assert concluded(base=p, grpo=np.stack([skilled] * 3)).conclusion == NEW


def test_tiers_are_corrected_for_and_one_with_a_new_skill_is_enough():
    p = base()
    plain = arms(base=p, grpo=lifted(p, 6))
    skilled = arms(base=without(p, 0.1), grpo=with_skill(lifted(p, 6), 0.1), seed=4)
    found = conclude({"a": plain, "b": plain, "new": skilled}, MARGINS)
    assert [found.tiers[name].conclusion for name in "ab"] == [ELICITED, ELICITED]
    assert found.tiers["new"].conclusion == NEW
    assert found.overall.conclusion == NEW
    assert found.sentence.startswith("New capability: on new:")
    assert found.overall.problems == 3 * P
    assert min(one.tested_at for one in found.tiers.values()) == pytest.approx(0.025 / 4)


def test_what_only_holds_before_the_correction_is_inconclusive():
    p = base()
    # Just enough at the level itself: low end a little above the margin.
    few = arms(base=without(p, 0.05), grpo=with_skill(lifted(p, 6), 0.05), seed=5)
    alone = conclude({"few": few}, MARGINS)
    tiers = {"few": few, **{name: arms(base=p, grpo=lifted(p, 6)) for name in "abcdefgh"}}
    corrected = conclude(tiers, MARGINS)
    assert alone.overall.conclusion == NEW
    assert corrected.tiers["few"].conclusion == OPEN
    assert "after the correction" in corrected.tiers["few"].reason
    plain = conclude(tiers, replace(MARGINS, correction="none"))
    assert plain.tiers["few"].conclusion == NEW


def test_holm_equals_the_textbook_on_random_p_values():
    rng = np.random.default_rng(6)
    for _ in range(300):
        h = int(rng.integers(2, 7))
        p = rng.uniform(0, 0.04, size=h)
        depths = {
            str(i): max([d for d in range(1, h + 1) if p[i] <= 0.025 / d], default=0)
            for i in range(h)
        }
        rejected, order = set(), np.argsort(p)
        for rank, i in enumerate(order):
            if p[i] > 0.025 / (h - rank):
                break
            rejected.add(str(i))
        assert {name for name, (yes, _) in holm(depths).items() if yes} == rejected


BUDGET = SampleBudget(64, 16, 320, 256, 47, 0.1, 0.3)
CLEAR, NONE, UNSURE = (0.10, 0.20), (-0.01, 0.01), (-0.02, 0.10)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, ELICITED),
        ({"large k": (-0.20, -0.06)}, NARROWED),
        ({"large k": (-0.04, -0.01)}, ELICITED),
        ({"large k": (-0.20, 0.05)}, ELICITED),
        ({"perhaps beyond base": (0.0, 0.05)}, OPEN),
        ({"gain over sft": NONE}, DISTILLED),
        ({"gain over sft": UNSURE}, OPEN),
        ({"gain over format_only": NONE}, FORMAT),
        ({"gain over format_only": NONE, "gain over sft": NONE}, FORMAT),
        ({"gain over format_only": UNSURE, "gain over sft": NONE}, OPEN),
        ({"gain over base": NONE}, OPEN),
        ({"gain over base": (0.001, 0.029)}, OPEN),
        ({"gain over base": (0.001, 0.03)}, ELICITED),
        ({"gain over base": UNSURE}, OPEN),
        ({f"beyond {x}": CLEAR for x in ("base", "sft", "format_only")}, NEW),
        ({f"beyond {x}": (0.02, 0.2) for x in ("base", "sft", "format_only")}, ELICITED),
        ({"beyond base": CLEAR, "beyond format_only": CLEAR}, DISTILLED),
        ({"beyond base": CLEAR, "beyond sft": CLEAR}, FORMAT),
        ({"beyond base": CLEAR, "beyond sft": CLEAR, "beyond format_only": UNSURE}, OPEN),
        # Beyond the base, yet hardly more than beyond the SFT start: it explains nothing.
        (
            {"beyond base": (0.03, 0.06), "beyond sft": (0.0, 0.04), "beyond format_only": CLEAR},
            OPEN,
        ),
    ],
)
def test_each_line_of_the_criterion_decides(changes, expected):
    ends = {
        "gain over base": CLEAR,
        "gain over sft": CLEAR,
        "gain over format_only": CLEAR,
        "large k": (-0.02, 0.02),
        "beyond base": NONE,
        "beyond sft": NONE,
        "beyond format_only": NONE,
        "perhaps beyond base": (0.0, 0.02),
    } | changes
    estimates = {name: Estimate(sum(e) / 2, *e, 100) for name, e in ends.items()}
    margins = Margins()
    evidence = Evidence(estimates, BUDGET)
    decision = decide(evidence, margins, evidence.shows_new(margins))
    assert decision.conclusion == expected, decision.reason
    assert "impossible" not in decision.reason


@pytest.mark.parametrize(("tries", "says"), [(1, "1 try"), (4, "4 tries")])
def test_what_was_elicited_is_said_with_its_number_of_tries(tries, says):
    estimates = {
        "gain over base": Estimate(0.2, 0.1, 0.3, 9),
        "large k": Estimate(0.0, -0.01, 0.01, 9),
        "perhaps beyond base": Estimate(0.0, 0.0, 0.012, 9),
    }
    evidence = Evidence(estimates, replace(BUDGET, tries=tries))
    assert f"within {says} base" in decide(evidence, Margins(), new=False).reason


def test_counts_that_do_not_fit_each_other_are_refused():
    some = Counts(4, [0, 1], 8, [0, 0])
    with pytest.raises(ValueError, match="same problems"):
        Arms(some, Counts(4, [0, 1, 2], 8, [0, 0, 0]))
    with pytest.raises(ValueError, match="all arms have confirmation samples or none"):
        Arms(some, Counts(4, [0, 1]))
    with pytest.raises(ValueError, match="one chance a problem"):
        Arms(some, some, guess=[0.1])
    with pytest.raises(ValueError, match="at least one tier"):
        conclude({}, MARGINS)
    uneven = Counts(4, [0, 0], [8, 4], [0, 0])
    with pytest.raises(ValueError, match="equally many"):
        conclude({"t": Arms(Counts(4, [0, 0], 8, [0, 0]), uneven)}, MARGINS)


def test_a_conclusion_is_json_that_holds_every_number_and_is_the_same_again():
    tier = arms(base=base(), grpo=lifted(base(), 6))
    one, again = (conclude({"t": tier}, MARGINS, seed=3) for _ in range(2))
    assert one.sentence.startswith("Elicited: GRPO gains")
    written = json.dumps(asdict(one.overall), allow_nan=False)
    assert written == json.dumps(asdict(again.overall))
    found = json.loads(written)
    assert found["conclusion"] == "elicited"
    assert set(found["estimates"]["beyond base"]) == {"value", "low", "high", "n"}


def test_a_million_verdict_rows_become_a_conclusion_in_seconds():
    problems, n, m = 1000, 100, 150
    rng = np.random.default_rng(7)
    p = np.repeat([0.0, 0.2], problems // 2)
    tiers = {f"p{i}": "tier" for i in range(problems)}

    def counted(chance, samples):
        rows = (
            {"id": f"p{i}", "status": s, "violations": [], "ratio": 0.5}
            for i in range(problems)
            for s in np.where(rng.random(samples) < chance[i], "optimal", "infeasible").tolist()
        )
        found = tally(rows, tiers)
        return found.samples, found.optimal

    start = time.perf_counter()
    drawn = [
        Counts(*counted(chance, n), *counted(chance, m))
        for chance in (p, p, lifted(p, 4), np.maximum(p, 0.5))
    ]
    found = conclude(
        {"tier": Arms(drawn[0], drawn[3], base_best=drawn[1], sft=drawn[2])}, Margins()
    )
    assert found.overall.conclusion == NEW
    assert time.perf_counter() - start < 60
