"""Roles: who is judged against whom, and what is said where someone is missing."""

import pytest
from running import RECIPES

from data.recipe import load_recipe
from eval.answers.roles import JudgedArm, beforehand, cases

SEEDS = [1, 2]
ARMS = {
    "best": {"trainer": "none", "tune": {"temperature": [0.5, 1.0]}},
    "sft": {"trainer": "sft"},
    "grpo": {"trainer": "grpo", "start": "sft", "seeds": SEEDS},
    "form": {"trainer": "grpo", "start": "sft", "seeds": SEEDS},
}
ROLES = {"base_best": "best", "format_only": "form"}
EVERYONE = ("base", "best", "sft", "grpo.1", "grpo.2", "form.1", "form.2")
TIERS_ASKED = {"dense": {"train": 4, "val": 1, "test": 3}, "trap": {"train": 4, "test": 2}}


@pytest.fixture
def recipe(world):
    return world.recipe(ARMS, ROLES, data={"main": "dense", "tiers": TIERS_ASKED})


def test_a_judged_arm_has_its_members_its_start_and_the_rivals_of_the_recipe(recipe):
    [case] = cases(recipe, EVERYONE)
    forms = ("form.1", "form.2")
    assert case == JudgedArm("grpo", ("grpo.1", "grpo.2"), ("dense", "trap"), "sft", "best", forms)
    assert case.bases == ("base", "best")
    assert sorted(case.everyone) == sorted(EVERYONE)


@pytest.mark.parametrize("missing", EVERYONE)
def test_without_a_rival_an_arm_is_judged_and_without_any_other_it_is_not(recipe, capsys, missing):
    judged = cases(recipe, [name for name in EVERYONE if name != missing])
    entry = missing.partition(".")[0]
    if entry in ROLES.values():
        [case] = judged
        assert entry not in {name.partition(".")[0] for name in case.everyone}
        assert capsys.readouterr().out.startswith(f"eval: {entry} was not sampled")
    else:
        assert judged == []
        assert f"no conclusion on grpo: {missing} not sampled" in capsys.readouterr().out


def test_each_judged_arm_is_judged_on_its_own_tiers_in_the_order_of_the_recipe(world, capsys):
    tiers = {**TIERS_ASKED, "blog": {"train": 2}}
    arms = {
        "all": {"trainer": "grpo"},
        "trapped": {"trainer": "grpo", "tiers": ["trap"]},
        "unasked": {"trainer": "grpo", "tiers": ["blog"]},
    }
    named = {"arms": ["trapped", "unasked", "all"]}
    recipe = world.recipe(arms, named, data={"main": "dense", "tiers": tiers})
    found = {case.name: case.tiers for case in cases(recipe, ["base", *arms])}
    assert list(found.items()) == [("trapped", ("trap",)), ("all", ("dense", "trap"))]
    assert "no conclusion on unasked" in capsys.readouterr().out


def test_the_experiments_recipes_have_a_case_for_each_arm_that_they_judge():
    elicitation = load_recipe(RECIPES / "elicitation.yaml")
    found = {case.name: case for case in cases(elicitation, ["base", *elicitation.all_arms])}
    assert list(found) == ["grpo", "grpo-only", "random", "rejection-sft", "teacher"]
    assert found["grpo"].members == ("grpo.1", "grpo.2", "grpo.3")
    assert [case.start for case in found.values()] == ["sft", None, "sft", None, None]
    assert {case.bases for case in found.values()} == {("base", "base-best")}
    assert {case.format_only for case in found.values()} == {("format-only",)}

    skills = load_recipe(RECIPES / "skills.yaml")
    found = cases(skills, ["base", *skills.all_arms])
    by_tier = {tier: [c.name for c in found if c.tiers == (tier,)] for tier in ("gap", "at_most")}
    assert by_tier == {"gap": ["sft-gap", "grpo-gap"], "at_most": ["sft-at_most", "grpo-at_most"]}
    assert all(len(case.members) == 3 and case.start is None for case in found)


def test_what_can_be_detected_is_said_of_each_judged_tier_before_anything_is_asked(recipe):
    dense, trap = beforehand(recipe, EVERYONE)
    *_, unasked = beforehand(recipe, [name for name in EVERYONE if name != "best"])
    assert "cannot come out as a new capability" in unasked
    assert dense.startswith("dense: 3 problems x 8 samples are ")
    assert trap.startswith("trap: 2 problems x 8 samples")
