"""Arms over training seeds: what is counted, and how sure it is."""

import json
import random

import numpy as np
import pytest
from problems import tier_problems
from running import refusal_of
from scripted import solving

from data.policies import random_maximal
from data.prompts import answer
from eval import compare
from eval.answers.judge import score_rows
from eval.answers.sampling import sample_arm
from eval.compare import RATES, arm_table, compare_tier, comparison_sheets
from eval.stats.estimate import bootstrap_weights

ANSWERS = 6


@pytest.fixture(scope="module")
def answered():
    """Problems, and for each six answers: random ones, everything, and text that is no answer."""
    rng = random.Random(5)
    asked, samples = [], []
    for i, problem in enumerate(tier_problems("dense", 20)):
        asked.append({"id": f"p{i}", "problem": problem})
        texts = [answer(random_maximal(problem, rng), None) for _ in range(ANSWERS - 2)]
        texts += [answer(problem.events, "Take everything."), "no answer"]
        samples += [{"id": f"p{i}", "completion": text} for text in texts]
    verdicts = score_rows({row["id"]: row["problem"] for row in asked}, samples)
    return asked, [{**row, **one} for row, one in zip(samples, verdicts, strict=True)]


def test_an_arms_table_holds_the_shares_of_its_answers(answered):
    asked, answers = answered
    table = arm_table(asked, answers)
    statuses = [row["status"] for row in answers]
    rates = dict(zip(RATES, table.mean(axis=0), strict=True))
    assert rates["optimal"] == pytest.approx(statuses.count("optimal") / len(statuses))
    assert rates["valid"] == pytest.approx((ANSWERS - 2) / ANSWERS)
    assert rates["overlaps"] == pytest.approx(1 / ANSWERS)
    alone = np.mean([row["completion"].count("<event>") == 1 for row in answers])
    assert rates["single"] == pytest.approx(alone)
    solved = {row["id"] for row in answers if row["status"] == "optimal"}
    assert rates["solved"] == pytest.approx(len(solved) / len(asked))


def tables(*optimal):
    """One table [seeds, problems, rates] whose optimal shares are given by seed."""
    found = np.zeros((len(optimal), 40, len(RATES)))
    rng = np.random.default_rng(3)
    for seed, share in enumerate(optimal):
        found[seed, :, 0] = np.clip(share + rng.normal(0, 0.02, 40), 0, 1)
    return found


def compared():
    arms = {"base": tables(0.1), "a": tables(0.30, 0.32, 0.31), "b": tables(0.1, 0.5, 0.3)}
    weights = bootstrap_weights(40, 1_000, np.random.default_rng(1))
    return compare_tier(arms, [("a", "base"), ("b", "base"), ("a", "b")], weights)


def arms_compared(recipe):
    compare.run(recipe, force=False)
    found = json.loads((recipe.run.folder / "eval/compare/compare.json").read_text())
    return found["tiers"]["dense"]["arms"]


def test_answers_that_were_not_judged_are_not_compared_by_older_verdicts(world):
    world.scripts |= {"base": solving(0.1), "grpo": solving(0.5)}
    recipe = world.evaluated({"grpo": {"trainer": "grpo"}})
    assert arms_compared(recipe)["grpo"]["seeds"] == 1
    world.scripts["grpo"] = solving(0.0)
    sample_arm(recipe, "grpo", force=True)
    refusal_of(lambda: compare.run(recipe, force=False), "not judged yet, or has changed")


def test_arms_are_compared_as_far_as_they_are_sampled(world, capsys):
    world.scripts |= {"base": solving(0.1), "grpo": solving(0.5)}
    recipe = world.recipe({name: {"trainer": "grpo"} for name in ("grpo", "later")})
    refusal_of(lambda: compare.run(recipe, force=False), "make data arms eval")
    world.train(recipe, "grpo")
    world.evaluate(recipe)
    assert list(arms_compared(recipe)) == ["base", "grpo"]
    assert "later is left out" in capsys.readouterr().out


def test_seeds_that_disagree_widen_the_interval():
    found = compared()["arms"]
    width = {name: arm["optimal"]["high"] - arm["optimal"]["low"] for name, arm in found.items()}
    assert width["b"] > 5 * width["a"]
    assert [arm["seeds"] for arm in found.values()] == [1, 3, 3]


def test_a_difference_is_taken_seed_by_seed_and_problem_by_problem():
    a, b, between = compared()["differences"]
    assert a["optimal"]["value"] == pytest.approx(0.21, abs=0.01)
    assert a["optimal"]["low"] > 0
    assert b["optimal"]["low"] < 0 < b["optimal"]["high"]
    assert (between["arm"], between["reference"]) == ("a", "b")


def test_the_tables_name_every_arm_and_difference():
    summary = {"level": 0.95, "resamples": 1_000, "samples": 8, "tiers": {"dense": compared()}}
    arms, differences = comparison_sheets(summary)
    assert [row[0] for row in arms.rows] == ["base", "a", "b"]
    assert [row[0] for row in differences.rows] == ["a - base", "b - base", "a - b"]
