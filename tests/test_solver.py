"""CP-SAT, the dynamic programme and brute force: three witnesses of one optimum."""

import multiprocessing
import random
import signal
import sys
from itertools import islice

import pytest
from problems import (
    brute_force,
    day,
    drawn_with_rules,
    feasible_schedules,
    random_problem,
    rule_problems,
    tier_problems,
    weighted,
)

from data.event import Event
from data.problem import Problem
from data.rules import BASE_RULES, Break, Gap, MustInclude
from data.solver import (
    UnprovenError,
    admits,
    interval_optimum,
    is_interval_problem,
    optimal_schedule,
    prove,
)
from data.tiers import TIERS
from rewards.verify import violations


def test_cp_sat_the_dynamic_programme_and_brute_force_agree():
    rng = random.Random(2)
    plain = (random_problem(rng, most=9) for _ in range(2000))
    impossible = 0
    for problem in (*plain, *islice(drawn_with_rules(9, seed=7), 500)):
        optimum, _, feasible = brute_force(problem)
        for schedule in (prove(problem), optimal_schedule(problem)):
            assert (schedule is None) == (not feasible), problem
            if schedule is not None:
                assert not violations(problem, schedule), problem
                assert sum(weighted(problem, event) for event in schedule) == optimum, problem
        impossible += not feasible
    assert 5 < impossible < 250


@pytest.mark.parametrize("tier", TIERS)
def test_they_agree_on_problems_of_each_tier_and_say_the_same_again(tier):
    for problem in tier_problems(tier, 15):
        for solve in (prove, optimal_schedule):
            best = solve(problem)
            assert best == solve(problem)
            assert not violations(problem, best)
            assert problem.objective(best) == problem.optimum == brute_force(problem)[0]


def test_a_priority_of_half_the_length_is_worth_as_much():
    long, short = Event(540, 600, "Long"), Event(550, 580, "Short")
    assert interval_optimum(Problem((long, short), ("Short",))) == (short,)  # 60 each: the earlier
    longer = Event(540, 601, "Longer")
    assert prove(Problem((longer, short), ("Short",))) == (longer,)


def test_the_dynamic_programme_does_not_depend_on_the_order_of_events():
    rng = random.Random(3)
    for _ in range(200):
        problem = random_problem(rng)
        events = tuple(rng.sample(problem.events, len(problem.events)))
        assert interval_optimum(Problem(events, problem.priorities)) == interval_optimum(problem)


def test_a_problem_without_any_schedule_has_no_optimum():
    further = MustInclude("Band"), Break(60, "09:30", "11:00")
    no_room = Problem(day().events, (), (*BASE_RULES, *further))
    assert prove(no_room) is optimal_schedule(no_room) is None
    assert brute_force(no_room) == (0, 0, 0)


def test_a_proof_that_takes_more_effort_than_allowed_is_not_given():
    for problem in tier_problems("rules", 10):
        for solve in (prove, optimal_schedule):
            with pytest.raises(UnprovenError, match="CP-SAT ended as UNKNOWN, without a proof"):
                solve(problem, 1e-9)
        assert prove(problem) == prove(problem, 1)
    assert optimal_schedule(day(), 0) == interval_optimum(day()), "no proof is needed"


def test_the_dynamic_programme_is_for_the_base_rules_only():
    for rules in (BASE_RULES, BASE_RULES[::-1]):
        assert is_interval_problem(Problem(day().events, (), rules))
    for rules in ((*BASE_RULES, Gap(15)), BASE_RULES[:2], ()):
        assert not is_interval_problem(Problem(day().events, (), rules))


def test_exactly_the_feasible_schedules_are_admitted():
    rng = random.Random(4)
    plain = [random_problem(rng, most=5) for _ in range(40)]
    for problem in (*plain, *rule_problems(40, most=5, seed=6)):
        feasible = set(feasible_schedules(problem))
        for bits in range(1 << len(problem.events)):
            chosen = sorted(e for i, e in enumerate(problem.events) if bits >> i & 1)
            assert admits(problem, chosen) == (tuple(chosen) in feasible)


def test_what_beats_the_optimum_and_unknown_altered_or_repeated_events_are_not_admitted():
    problem = day()
    art, band, *_ = problem.events
    gold = prove(problem)
    assert admits(problem, gold)
    assert not admits(problem.proven(179), gold)
    assert admits(problem, (art,))
    renamed, moved = Event(art.start, art.end, "Yoga"), Event(art.start, band.end, "Art")
    for answer in ((art, art), (art,) * 20, (renamed,), (moved,), ()):
        assert not admits(problem, answer)


def prove_and_hear_ctrl_c() -> None:
    prove(day())
    try:
        signal.raise_signal(signal.SIGINT)
    except KeyboardInterrupt:
        sys.exit(7)


def test_a_proof_leaves_ctrl_c_to_python():
    process = multiprocessing.get_context("fork").Process(target=prove_and_hear_ctrl_c)
    process.start()
    process.join()
    assert process.exitcode == 7
