from dataclasses import replace

import numpy as np
import pytest

from data.sections import Margins
from eval.stats.cases import at_temperature
from eval.stats.conclusion import Conclusion, Evidence, SampleBudget, decide
from eval.stats.counts import Counts
from eval.stats.estimate import Estimate
from eval.stats.evidence import Arms, conclude, holm
from eval.stats.power import detectable

P, N, M = 200, 64, 256
MARGINS = Margins(resamples=1000)
NEW, ELICITED, NARROWED = Conclusion.NEW, Conclusion.ELICITED, Conclusion.NARROWED
DISTILLED, FORMAT, OPEN = Conclusion.DISTILLED, Conclusion.FORMAT, Conclusion.INCONCLUSIVE
WORSE = Conclusion.WORSE


def arms(guess=0.0, seed=1, n=N, m=M, controls=True, formed=None, **chances):
    """Counts drawn from chances of success a try, [problems] or [seeds, problems]; ``formed`` is
    the share of the base's answers in form. ``controls``: what no chance is given of is the base.
    """
    rng = np.random.default_rng(seed)
    if controls:
        chances = {"base_best": chances["base"], "format_only": chances["base"]} | chances
    first = {name: rng.binomial(n, p) for name, p in chances.items()}
    unsolved = first["base"] == 0
    if "base_best" in first:
        unsolved &= first["base_best"] == 0
    fresh = np.where(unsolved, m, 0)
    counts = {
        name: Counts(n, first[name], fresh, rng.binomial(fresh, p)) for name, p in chances.items()
    }
    if formed is not None:
        for name in {"base", "base_best"} & counts.keys():
            in_form = rng.binomial(n + fresh, formed)
            counts[name].formed = np.maximum(in_form, counts[name].c + counts[name].fresh_c)
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


B, SKILL, GUESS = base(), lifted(base(), 4), np.full(P, 0.2)
COOL, COOLER, SEEN = (at_temperature(t, (P,), seed=8) for t in (0.3, 0.4, 1.0))
KEPT_GUESS = np.where(np.random.default_rng(3).random(P) < GUESS, 1.0, 0.0)
TAUGHT = with_skill(lifted(B, 2))
CASES = {
    "sharpened": (ELICITED, {"base": B, "grpo": lifted(B, 6)}),
    "lost what it rarely solved": (
        NARROWED, {"base": B, "grpo": np.where(B < 0.1, 0, lifted(B, 16))},
    ),
    "a skill that the base never shows": (NEW, {"base": without(B), "grpo": with_skill(SKILL)}),
    "a new skill, all else lost": (NEW, {"base": without(B), "grpo": with_skill(np.zeros(P))}),
    "a skill of the base at its best": (
        ELICITED, {"base": without(B), "base_best": with_skill(B), "grpo": with_skill(SKILL)},
    ),
    "a skill of the SFT start": (DISTILLED, {"base": without(B), "sft": TAUGHT, "grpo": TAUGHT}),
    "a skill of the SFT start, sharpened": (
        DISTILLED, {"base": without(B), "sft": TAUGHT, "grpo": lifted(TAUGHT, 3)},
    ),
    "a gain at k = 1 of the SFT start": (DISTILLED, {"base": B, "sft": SKILL, "grpo": SKILL}),
    "a gain by form": (FORMAT, {"base": 0.2 * B, "format_only": B, "grpo": B}),
    "a gain by form, none before": (
        FORMAT, {"base": 0 * B, "base_best": 0.9 * B, "format_only": B, "grpo": B},
    ),
    "no change": (OPEN, {"base": B, "grpo": B}),
    "worse": (WORSE, {"base": B, "grpo": B / 4}),
    "ahead of base, behind the SFT start": (
        WORSE, {"base": B, "sft": lifted(B, 10), "grpo": lifted(B, 2)},
    ),
    "worse than the start, which explains the new": (
        WORSE, {"base": without(B), "sft": lifted(TAUGHT, 4), "grpo": TAUGHT / 2},
    ),
    "no success, and fewer than by guessing": (
        OPEN, {"base": np.zeros(P), "sft": np.zeros(P), "grpo": np.full(P, 0.07), "guess": 0.12},
    ),
    "few successes, still fewer than by guessing": (
        OPEN, {"base": np.full(P, 0.02), "grpo": np.full(P, 0.09), "guess": 0.12},
    ),
    "a weak skill where guessing does as well": (
        OPEN, {"base": without(B, 0.25), "grpo": with_skill(SKILL, 0.25, 0.1), "guess": 0.12},
    ),
    "half the answers in form, and no arm for it": (
        FORMAT, {"base": B / 2, "base_best": B / 2, "grpo": B, "controls": False, "formed": 0.5},
    ),
    "hardly an answer in form, and no arm for it": (
        FORMAT, {"base": B / 100, "base_best": B / 100, "grpo": B, "controls": False,
                 "formed": 0.01},
    ),
    "answers in form all along, and no arm for it": (
        NEW, {"base": without(B), "base_best": without(B), "grpo": with_skill(SKILL),
              "controls": False, "formed": 0.95},
    ),
    "too few problems": (OPEN, {"base": B[:12], "grpo": lifted(B[:12], 3)}),
    "a base that solved everything": (
        ELICITED, {"base": np.full(P, 0.3), "grpo": np.full(P, 0.6)},
    ),
    "guesses kept to": (OPEN, {"base": np.zeros(P), "grpo": KEPT_GUESS, "guess": GUESS}),
    "were they not guesses": (NEW, {"base": np.zeros(P), "grpo": KEPT_GUESS}),
    "one lucky training seed of three": (
        OPEN, {"base": without(B), "grpo": np.stack([with_skill(SKILL), SKILL, SKILL])},
    ),
    "a lower temperature, which the base at its best has too": (
        ELICITED, {"base": SEEN, "grpo": COOL, "base_best": COOLER},
    ),
    "three training seeds": (NEW, {"base": without(B), "grpo": np.stack([with_skill(SKILL)] * 3)}),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_what_training_did_is_concluded(case):
    expected, counts = CASES[case]
    found = concluded(**counts)
    assert found.conclusion == expected, found.reason
    assert "impossible" not in found.reason


@pytest.mark.parametrize(
    ("counts", "named"),
    [
        ({"base": SEEN, "grpo": COOL, "format_only": SEEN}, ["base_best"]),
        ({"base": SEEN, "grpo": COOL}, ["base_best", "format_only"]),
        ({"base": B / 100, "base_best": B / 100, "grpo": B}, ["format_only"]),
        # In form nearly always, but not on what is new.
        (
            {"base": without(B), "base_best": without(B), "grpo": with_skill(SKILL),
             "formed": with_skill(np.full(P, 0.95), chance=0.01)},
            ["format_only"],
        ),
        ({"base": without(B), "grpo": with_skill(SKILL), "formed": 0.9}, ["base_best"]),
    ],
)  # fmt: skip
def test_without_a_control_nothing_is_new_and_the_control_is_named(counts, named):
    found = concluded(controls=False, **counts)
    assert found.conclusion == OPEN
    assert not found.new
    keys = [key for key in ("base_best", "format_only") if f"conclusion.{key}" in found.reason]
    assert keys == named, found.reason


def test_a_new_skill_beside_a_collapse_is_said_with_it():
    found = concluded(base=without(np.full(P, 0.6)), grpo=with_skill(np.full(P, 0.03), 0.15, 0.9))
    assert found.conclusion == NEW
    assert "yet it falls behind base at k = 1 (-" in found.reason


@pytest.mark.parametrize("every", [500, 800, 1200])
def test_rare_successes_made_common_are_not_called_new(every):
    found = concluded(base=with_skill(B, 0.35, 1 / every), grpo=with_skill(SKILL, 0.35, 0.4))
    assert found.conclusion == OPEN
    assert f"not reachable within {N + M} samples" in found.reason
    assert "rare successes made common cannot be told from a new skill" in found.reason


def test_successes_too_rare_to_be_seen_are_new_only_up_to_the_lift_that_is_said():
    found = concluded(base=with_skill(B, 0.3, 1e-5), grpo=with_skill(SKILL, 0.3, 0.6))
    assert found.conclusion == NEW
    assert f"sharpening base up to {MARGINS.lift} times over" in found.reason
    assert "cannot be told from a new skill" in found.reason


@pytest.mark.parametrize("problems", [30, 50, 71, 80, 150, 300])
def test_a_problem_more_that_only_the_tuned_arm_solves_never_makes_it_more_elicited(problems):
    """Ranks of the conclusion as more and more problems are beyond the base: never back again."""
    ranks = {ELICITED: 0, OPEN: 1, NEW: 2}
    found = []
    for beyond in range(0, problems, max(1, problems // 12)):
        new = np.arange(problems) < beyond
        unsolved = np.where(new, M, 0)
        base = Counts(N, np.where(new, 0, 12), unsolved, 0 * unsolved)
        grpo = Counts(N, np.full(problems, 29), unsolved, np.where(new, 100, 0))
        tiers = {"t": Arms(base, grpo, base_best=base, format_only=base)}
        found.append(ranks[conclude(tiers, MARGINS).overall.conclusion])
    assert found == sorted(found)
    assert found[0] == (0 if problems >= detectable(problems, N, M, MARGINS).elicited else 1)
    assert found[-1] == 2


def test_a_tier_that_got_worse_is_named_beside_what_is_new_on_another():
    skilled = arms(base=without(B), grpo=with_skill(SKILL))
    found = conclude({"new": skilled, "lost": arms(base=B, grpo=B / 5, seed=6)}, MARGINS)
    assert found.overall.conclusion == NEW
    assert found.sentence.endswith("; on lost it is worse.")


def test_a_base_that_misses_too_little_leaves_nothing_to_be_new_and_that_is_noted():
    found = concluded(base=np.full(P, 0.3), grpo=np.full(P, 0.9))
    assert "even a perfect solver" in found.notes[-1]


def test_reach_that_guessing_has_too_is_noted_of_all_problems_by_their_number():
    guessed = arms(base=B, grpo=lifted(B, 6), guess=0.02)
    half = arms(base=B[: P // 2], grpo=lifted(B, 6)[: P // 2])
    found = conclude({"guessed": guessed, "half": half}, MARGINS)
    reach = 1 - 0.98 ** (N + M)
    assert found.tiers["guessed"].budget.guessed_reach == pytest.approx(reach)
    assert found.tiers["half"].budget.guessed_reach == 0
    assert found.overall.budget.guessed_reach == pytest.approx(reach * 2 / 3)
    assert found.overall.conclusion == ELICITED
    assert f"{reach * 2 / 3:.1%} within {N + M} tries too" in found.overall.notes[0]


def test_a_new_skill_is_measured_beside_its_control_and_losses_are_noted():
    _, counts = CASES["a new skill, all else lost"]
    found = concluded(**counts)
    assert found.estimates["control"].value == 0
    assert found.estimates["certified"].value == pytest.approx(0.15, abs=0.01)
    assert f"within {N + M} samples" in found.reason
    assert found.notes[0].startswith(f"it also lost at k = {N}")


def test_few_confirmation_samples_say_that_they_are_too_few():
    found = concluded(base=without(B), grpo=with_skill(SKILL), n=8, m=4)
    assert found.conclusion == OPEN
    assert found.notes[-1].startswith("12 samples of the base and 4 confirmation samples")


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
    beside = conclude({"few": few}, MARGINS, judged=9)
    assert beside.overall.conclusion == OPEN
    assert beside.overall.estimates == alone.overall.estimates
    plain = conclude(tiers, replace(MARGINS, correction="none"), judged=9)
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


BUDGET = SampleBudget(64, 16, 320, 256, 47, 0.1, 0.3, 0.6)
CLEAR, NONE, UNSURE = (0.10, 0.20), (-0.01, 0.01), (-0.02, 0.10)
BEYOND = {f"beyond {x}": CLEAR for x in ("base", "sft", "format_only")}


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
        ({"gain over base": (-0.09, -0.01)}, WORSE),
        ({"gain over sft": (-0.09, -0.01)}, WORSE),
        ({"gain over form": NONE}, FORMAT),
        ({"gain over form": UNSURE}, OPEN),
        ({"over guessing": UNSURE}, OPEN),
        ({"gain over base": NONE}, OPEN),
        ({"gain over base": (0.001, 0.029)}, OPEN),
        ({"gain over base": (0.001, 0.03)}, ELICITED),
        ({"gain over base": UNSURE}, OPEN),
        (BEYOND, NEW),
        (BEYOND | {"gain over base": (-0.5, -0.4)}, NEW),
        (BEYOND | {"beyond form": NONE}, OPEN),
        (BEYOND | {"made common": (0.02, 0.1)}, OPEN),
        (dict.fromkeys(BEYOND, (0.02, 0.2)), ELICITED),
        ({"beyond base": CLEAR, "beyond format_only": CLEAR}, DISTILLED),
        ({"beyond base": CLEAR, "beyond sft": CLEAR}, FORMAT),
        ({"beyond base": CLEAR, "beyond sft": CLEAR, "beyond format_only": UNSURE}, OPEN),
        # Beyond the base, yet hardly more than beyond the SFT start: it explains nothing.
        (BEYOND | {"beyond base": (0.03, 0.06), "beyond sft": (0.0, 0.04)}, OPEN),
    ],
)
def test_each_line_of_the_criterion_decides(changes, expected):
    ends = {
        "gain over base": CLEAR,
        "gain over sft": CLEAR,
        "gain over format_only": CLEAR,
        "over guessing": CLEAR,
        "made common": (0.0, 0.02),
        "missed": CLEAR,
        "large k": (-0.02, 0.02),
        "beyond base": NONE,
        "beyond sft": NONE,
        "beyond format_only": NONE,
        "perhaps beyond base": (0.0, 0.02),
    } | changes
    estimates = {name: Estimate(sum(e) / 2, *e, 100) for name, e in ends.items()}
    margins = Margins()
    evidence = Evidence(estimates, BUDGET)
    conclusion, reason = decide(evidence, margins, evidence.shows_new(margins))
    assert conclusion == expected, reason
