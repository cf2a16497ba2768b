"""Blind policies: feasible, as random as they say, and with exact floors."""

import random
from collections import Counter
from dataclasses import replace
from itertools import permutations
from math import comb, sqrt

import pytest
from answers import kinds
from problems import (
    brute_force,
    day,
    feasible_schedules,
    minutes,
    random_problem,
    rule_problems,
    tier_problems,
)

from data import policies
from data.event import Event
from data.policies import (
    FLOOR_KS,
    GREEDY,
    floor,
    greedy_by_duration,
    greedy_by_start,
    greedy_by_value,
    insert_in_order,
    random_feasible,
    random_feasible_success,
    random_maximal,
    random_maximal_success,
    success_probability,
)
from data.problem import Problem
from data.rules import BASE_RULES, AtLeastOne, AtMost, Break, Gap, MustInclude, NoOverlap
from rewards.verify import violations

RANDOM = {"random_feasible": random_feasible, "random_maximal": random_maximal}


def with_rules(problem: Problem, *rules) -> Problem:
    return replace(problem, rules=(*BASE_RULES, *rules), optimum=0)


def some_problems(count: int, seed: int, most: int) -> list[Problem]:
    rng = random.Random(seed)
    problems = [random_problem(rng, most) for _ in range(count)]
    return [problem.proven(brute_force(problem)[0]) for problem in problems]


def names(schedule) -> str:
    return " ".join(event.name for event in schedule)


def test_overlap_is_a_minute_shared():
    rng = random.Random(1)
    for problem in (random_problem(rng) for _ in range(200)):
        for a in problem.events:
            for b in problem.events:
                assert a.overlaps(b) == bool(minutes(a) & minutes(b))
    assert not Event(0, 5, "a").overlaps(Event(5, 10, "b"))


def test_random_policies_keep_every_rule_and_greedy_ones_those_that_can_be_broken_by_adding():
    rng = random.Random(2)
    for problem in (*some_problems(300, 2, most=9), *rule_problems(150, most=8)):
        for policy in RANDOM.values():
            assert not violations(problem, policy(problem, rng))
        hereditary = {rule.kind for rule in problem.rules if rule.hereditary}
        for policy in GREEDY.values():
            broken = kinds(violations(problem, policy(problem)))
            assert broken <= {rule.kind for rule in problem.rules} - hereditary


def test_nothing_can_be_added_to_a_maximal_schedule():
    rng = random.Random(3)
    for problem in some_problems(200, 3, most=9):
        for schedule in (random_maximal(problem, rng), *(g(problem) for g in GREEDY.values())):
            for event in problem.events:
                assert any(minutes(event) & minutes(other) for other in schedule)
    for problem in rule_problems(100, most=8, seed=1):
        feasible = set(feasible_schedules(problem))
        schedule = random_maximal(problem, rng)
        for event in set(problem.events) - set(schedule):
            assert tuple(sorted((*schedule, event))) not in feasible


def test_greedy_policies_take_first_what_they_are_named_for():
    problem = day()
    assert names(greedy_by_start(problem)) == "Art Drill Echo Chess"
    assert names(greedy_by_duration(problem)) == "Band Chess"
    assert names(greedy_by_value(problem)) == "Band Chess"
    short = Problem((Event(0, 50, "Long"), Event(10, 40, "Priority")), ("Priority",))
    assert names(greedy_by_start(short)) == "Long"
    assert names(greedy_by_duration(short)) == "Long"
    assert names(greedy_by_value(short)) == "Priority"


def test_greedy_policies_begin_with_what_a_rule_demands():
    wanted = with_rules(day(), AtLeastOne(("Drill", "Echo")))
    assert names(greedy_by_value(wanted)) == "Art Drill Echo Chess"
    early = with_rules(day(), MustInclude("Art"))
    assert names(greedy_by_duration(early)) == "Art Drill Echo Chess"
    # By start, Art would be first and Band impossible.
    assert names(greedy_by_start(with_rules(day(), MustInclude("Band")))) == "Band Chess"


def test_an_event_fits_where_no_rule_forbids_it_whatever_comes_later():
    art, band, drill, echo, chess = day().events
    assert insert_in_order(day(), (band, art, drill, chess, echo)) == (band, chess)
    assert insert_in_order(day(), (chess, echo, drill, art)) == (art, drill, echo, chess)
    problem = with_rules(day(), Gap(30), AtMost(2), MustInclude("Chess"))
    assert insert_in_order(problem, (drill, art, echo, chess, band)) == (drill, chess)
    assert problem.obstacle((art,), drill) == Gap(30)
    assert problem.obstacle((art,), band) == NoOverlap()
    assert problem.obstacle((), art) is None, "what Chess demands may still come"
    assert problem.obstacle((art, echo), Event(800, 830, "Later")) == AtMost(2)


@pytest.mark.parametrize(
    "problem", [day(), with_rules(day(), Gap(15), MustInclude("Chess"))], ids=["base", "further"]
)
def test_random_feasible_is_uniform(problem):
    schedules = list(feasible_schedules(problem))
    rng = random.Random(4)
    drawn = Counter(random_feasible(problem, rng) for _ in range(200 * len(schedules)))
    assert set(drawn) == set(schedules)
    chi_square = sum((n - 200) ** 2 / 200 for n in drawn.values())
    # The mean of chi-square is its degrees of freedom, its variance twice that.
    freedom = len(schedules) - 1
    assert chi_square < freedom + 4 * sqrt(2 * freedom)


def test_feasible_schedules_are_those_of_brute_force_each_once():
    rng = random.Random(15)
    plain = [random_problem(rng) for _ in range(100)]
    for problem in (*plain, *rule_problems(150, most=9, seed=2)):
        found = policies.feasible_schedules(problem)
        assert sorted(found) == sorted(feasible_schedules(problem))
    impossible = with_rules(day(), Break(60, "09:30", "11:00"), MustInclude("Band"))
    assert policies.feasible_schedules(impossible) == ()


def test_the_chance_of_random_feasible_is_the_share_of_optimal_schedules():
    for problem in (*some_problems(300, 6, most=9), *rule_problems(150, most=8, seed=3)):
        _, optimal, feasible = brute_force(problem)
        assert random_feasible_success(problem) == pytest.approx(optimal / feasible, rel=1e-12)


def test_the_chance_of_random_maximal_is_that_over_all_orders_that_end_well():
    for problem in (*some_problems(60, 7, most=6), *rule_problems(60, most=6, seed=4)):
        feasible = set(feasible_schedules(problem))
        ends = [insert_in_order(problem, order) for order in permutations(problem.events)]
        well = [problem.objective(schedule) for schedule in ends if schedule in feasible]
        assert random_maximal_success(problem) == pytest.approx(
            well.count(problem.optimum) / len(well), rel=1e-9
        )


@pytest.mark.parametrize("tier", ["dense", "crowded", "rules"])
def test_exact_chances_are_those_of_simulation(tier):
    rng = random.Random(8)
    tries = 2000
    for problem in tier_problems(tier, 6):
        exact = success_probability(problem)
        for name, policy in RANDOM.items():
            optimal = sum(problem.is_optimal(policy(problem, rng)) for _ in range(tries))
            p = exact[name]
            assert abs(optimal / tries - p) <= 4.5 * sqrt(p * (1 - p) / tries) + 1e-9


def test_a_day_without_overlaps_is_solved_by_every_maximal_policy_and_equal_optima_both_count():
    events = tuple(Event(60 * i, 60 * (i + 1), f"E{i}") for i in range(10))
    chances = success_probability(Problem(events, ("E3",), optimum=660))
    assert chances.pop("random_feasible") == pytest.approx(1 / 1023)
    assert set(chances.values()) == {1.0}
    tied = Problem((Event(0, 30, "A"), Event(10, 40, "B")), (), optimum=30)
    assert random_feasible_success(tied) == random_maximal_success(tied) == 1


def test_a_floor_is_the_mean_over_problems_of_success_within_k():
    problems = tier_problems("blog", 40)
    floors = floor(problems)
    assert set(floors) == {*RANDOM, *GREEDY}
    assert all(tuple(by_k) == FLOOR_KS for by_k in floors.values())
    assert all(len(set(floors[name].values())) == 1 for name in GREEDY), "nothing to gain by tries"
    chances = [success_probability(p)["random_maximal"] for p in problems]
    for k, value in floor(problems, ks=(1, 3))["random_maximal"].items():
        # Success within k, said the long way: some of k tries succeed.
        within = [
            sum(comb(k, i) * p**i * (1 - p) ** (k - i) for i in range(1, k + 1)) for p in chances
        ]
        assert value == pytest.approx(sum(within) / len(problems))
