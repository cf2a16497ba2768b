"""Do valid answers follow a shortcut? Of scripted arms it is known which."""

import json

import pytest
from problems import day, tier_problems

from data.policies import SHORTCUTS, greedy_by_end, greedy_by_start, shortcuts
from data.prompts import schedule_xml
from eval.answers.shortcuts import KINDS, RANDOM, shortcut_shares
from eval.show.report_sheets import report_sheets
from rewards.verify import verify

PROBLEMS = {f"p{i}": problem for i, problem in enumerate(tier_problems("busy", 12))}


def row(name, schedule, problem):
    text = schedule if isinstance(schedule, str) else schedule_xml(schedule)
    verdict = verify(problem, text).to_json()
    return {"id": name, "sample": 0, "completion": text, "finish_reason": "stop", **verdict}


def test_a_problem_that_a_shortcut_solves_shows_nothing():
    assert day().is_optimal(greedy_by_start(day()))
    assert shortcuts(day()) == {}
    answers = {"arm": [row("day", greedy_by_start(day()), day())]}
    assert shortcut_shares({"day": day()}, {"day": "blog"}, answers, 1, 100) == {}


@pytest.mark.parametrize("policy", SHORTCUTS)
def test_answers_that_follow_one_policy_are_reported_so(policy):
    follow = SHORTCUTS[policy]
    answers = [row(name, follow(problem), problem) for name, problem in PROBLEMS.items()]
    broken = [row(name, problem.events, problem) for name, problem in PROBLEMS.items()]
    found = shortcut_shares(
        PROBLEMS, dict.fromkeys(PROBLEMS, "busy"), {"arm": [*answers, *broken]}, 1, 100
    )
    hard = {name for name, problem in PROBLEMS.items() if shortcuts(problem)}
    assert found["busy"]["problems"] == len(hard) >= 10
    shares = {kind: of["value"] for kind, of in found["busy"]["agree"]["arm"].items()}
    alike = {
        other: sum(follow(PROBLEMS[name]) == take(PROBLEMS[name]) for name in hard) / len(hard)
        for other, take in SHORTCUTS.items()
    }
    assert shares == pytest.approx({"optimal": 0, **alike, "any": 1})
    assert shares[policy] == 1
    of_random = found["busy"]["agree"][RANDOM]
    assert of_random["any"]["value"] < 0.2, "events at random seldom agree on 20 of them"
    assert all(of["low"] <= of["value"] <= of["high"] for of in of_random.values())


def test_an_evaluation_says_of_every_arm_whether_it_looks_for_the_optimum(world):
    world.scripts["base"] = lambda row, way, rng: schedule_xml(greedy_by_end(row["problem"]))
    world.scripts["sft"] = lambda row, way, rng: "no answer"
    world.scripts["grpo"] = lambda row, way, rng: row["gold"]
    arms = {"sft": {"trainer": "sft"}, "grpo": {"trainer": "grpo", "start": "sft"}}
    tiers = {"dense": {"train": 4, "val": 2, "test": 5}, "trap": {"train": 1, "test": 20}}
    recipe = world.evaluated(arms, data={"main": "dense", "tiers": tiers})
    report = json.loads(recipe.run.report.read_text())
    agree = report["shortcuts"]["trap"]["agree"]
    assert list(agree) == ["base", "sft", "grpo", RANDOM]
    assert agree["base"]["greedy_by_end"]["value"] == agree["base"]["any"]["value"] == 1
    assert agree["grpo"]["optimal"]["value"] == 1
    assert set(agree["sft"].values()) == {None}, "without a valid answer there is no share"
    assert agree["base"]["optimal"]["n"] == report["shortcuts"]["trap"]["problems"] <= 20
    [sheet] = [one for one in report_sheets(report) if one.title.startswith("trap: do valid")]
    assert len(sheet.rows) == len(KINDS)
