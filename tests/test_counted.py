"""Who is asked again, and what is concluded from the counts: counts that are made by hand."""

import numpy as np
import pytest
from problems import tier_problems

from data.sections import Margins
from eval.answers.counted import Solved, to_ask_again
from eval.answers.roles import JudgedArm
from eval.elicitation import conclusions_on
from eval.stats.counts import Counts

N, FRESH = 8, 32
MARGINS = Margins(lift=2, resamples=200)


def solved_of(tiers, **solved):
    """Counts of problems of these tiers, and of each arm how often it solved each."""
    rows = [{"id": f"p{i}", "tier": tier} for i, tier in enumerate(tiers)]
    return Solved(rows, {arm: Counts(N, c) for arm, c in solved.items()})


def case_of(name="grpo", members=("grpo",), tiers=("dense",), start=None, best=None, forms=()):
    return JudgedArm(name, members, tiers, start, best, forms)


def test_what_every_base_left_unsolved_all_are_asked_again():
    solved = solved_of(
        ["dense"] * 4, base=[0, 0, 3, 1], best=[0, 2, 0, 1], sft=[8] * 4, grpo=[8] * 4, form=[8] * 4
    )
    case = case_of(start="sft", best="best", forms=("form",))
    assert to_ask_again([case], solved) == {
        "base": [0, 1],  # 1 for expansion and shrinkage, which are against the base alone
        "best": [0],
        "sft": [0],
        "form": [0],
        "grpo": [0, 1],
    }


def test_what_a_judged_arm_left_unsolved_it_and_the_base_are_asked_again_and_nobody_else():
    solved = solved_of(
        ["dense"] * 4,
        base=[5, 5, 5, 0],
        sft=[0, 0, 0, 1],
        **{"grpo.1": [0, 5, 5, 5], "grpo.2": [5, 0, 5, 5]},
    )
    wanted = to_ask_again([case_of(members=("grpo.1", "grpo.2"), start="sft")], solved)
    assert wanted == {"base": [0, 1, 3], "sft": [3], "grpo.1": [0, 3], "grpo.2": [1, 3]}


def test_an_arm_is_asked_again_on_its_own_tiers_alone_and_cases_add_up():
    tiers = ["dense", "trap", "dense", "trap"]
    solved = solved_of(tiers, base=[0, 0, 4, 4], sft=[4, 4, 4, 0], grpo=[4, 4, 0, 0])
    of_grpo = case_of(tiers=("dense",), start="sft")
    of_sft = case_of(name="sft", members=("sft",), tiers=("trap",))
    assert to_ask_again([of_grpo], solved) == {"base": [0, 2], "sft": [0], "grpo": [0, 2]}
    both = {"base": [0, 1, 2, 3], "sft": [0, 1, 3], "grpo": [0, 2]}
    assert to_ask_again([of_grpo, of_sft], solved) == both
    assert to_ask_again([of_sft, of_grpo], solved) == both


@pytest.fixture(scope="module")
def problems():
    """Twice twenty test rows."""
    return [
        {"id": f"{tier}-{i}", "tier": tier, "problem": problem}
        for tier in ("dense", "trap")
        for i, problem in enumerate(tier_problems(tier, 20))
    ]


def drawn(rows, case, seed, **chances):
    """What real stages count, of arms that are right with these chances a try."""
    rng = np.random.default_rng(seed)
    counts = {arm: Counts(N, rng.binomial(N, p)) for arm, p in chances.items()}
    for arm, places in to_ask_again([case], Solved(rows, counts)).items():
        n = np.zeros(len(rows), int)
        n[places] = FRESH
        counts[arm] = counts[arm].with_fresh(Counts(n, rng.binomial(n, chances[arm])))
    return Solved(rows, counts)


@pytest.fixture(scope="module")
def skill(problems):
    """Chances of a base: of three problems in ten none."""
    rng = np.random.default_rng(9)
    return np.where(rng.random(len(problems)) < 0.3, 0.0, rng.beta(0.7, 4, len(problems)))


@pytest.mark.parametrize("members", [("grpo",), ("grpo.1", "grpo.2", "grpo.3")])
def test_base_against_itself_is_never_new(problems, skill, members):
    case = case_of(members=members, tiers=("dense", "trap"), start="sft", best="best")
    chances = dict.fromkeys(("base", "best", "sft", *members), skill)
    for seed in range(15):
        found = conclusions_on(case, drawn(problems, case, seed, **chances), MARGINS, 0)
        assert (found.overall.conclusion, found.overall.seeds) == ("inconclusive", len(members))
        assert "new capability" not in {tier.conclusion for tier in found.tiers.values()}


def test_a_skill_that_no_base_has_is_new_and_one_that_the_start_has_is_not(problems, skill):
    skilled = np.where(skill == 0, 0.95, np.minimum(1, 2 * skill))
    case = case_of(tiers=("dense", "trap"), start="sft", best="best", forms=("form",))
    for start, expected in ((skill, "new capability"), (skilled, "distilled")):
        rivals = {"best": skill, "sft": start, "form": skill}
        solved = drawn(problems, case, 1, base=skill, **rivals, grpo=skilled)
        margins = Margins(lift=2, resamples=200, reach=0.1)  # for so few problems
        assert conclusions_on(case, solved, margins, 0).overall.conclusion == expected
