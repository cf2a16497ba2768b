"""CP-SAT, the dynamic programme and brute force: three witnesses of one optimum."""

import os
import random
import subprocess
import sys
from itertools import islice
from pathlib import Path

import pytest
from conftest import (
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
from data.rules import BASE_RULES, Break, Chronological, Gap, MustInclude, NoOverlap, NotEmpty, Rule
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
def test_they_agree_on_problems_of_each_tier(tier):
    for problem in tier_problems(tier, 15):
        for best in (prove(problem), optimal_schedule(problem)):
            assert not violations(problem, best)
            assert problem.objective(best) == problem.optimum == brute_force(problem)[0]


def test_touching_events_are_all_chosen_and_one_event_is_its_own_optimum():
    gold = tuple(e for e in day().events if e.name != "Band")
    assert prove(day()) == interval_optimum(day()) == gold
    alone = Problem((Event(0, 1439, "All day"),), ())
    assert prove(alone) == interval_optimum(alone) == alone.events


def test_a_priority_of_half_the_length_is_worth_as_much():
    long, short = Event(540, 600, "Long"), Event(550, 580, "Short")
    assert interval_optimum(Problem((long, short), ("Short",))) == (short,)  # 60 each: the earlier
    longer = Event(540, 601, "Longer")
    assert prove(Problem((longer, short), ("Short",))) == (longer,)


@pytest.mark.parametrize("tier", TIERS)
def test_the_same_problem_has_the_same_proven_schedule_again(tier):
    for problem in tier_problems(tier, 20):
        assert prove(problem) == prove(problem)
        assert optimal_schedule(problem) == optimal_schedule(problem)


def test_the_dynamic_programme_does_not_depend_on_the_order_of_events():
    rng = random.Random(3)
    for _ in range(200):
        problem = random_problem(rng)
        events = tuple(rng.sample(problem.events, len(problem.events)))
        assert interval_optimum(Problem(events, problem.priorities)) == interval_optimum(problem)


class Nothing(Rule):
    """No event may be chosen: with NotEmpty, a problem without any schedule."""

    kind = "nothing"

    def constrain(self, day) -> None:
        day.model.add(sum(day.chosen) == 0)


def test_a_problem_without_any_schedule_has_no_optimum():
    assert prove(Problem(day().events, (), (*BASE_RULES, Nothing()))) is None
    further = MustInclude("Band"), Break(60, "09:30", "11:00")
    no_room = Problem(day().events, (), (*BASE_RULES, *further))
    assert optimal_schedule(no_room) is None
    assert brute_force(no_room) == (0, 0, 0)


def test_a_proof_that_takes_more_effort_than_allowed_is_not_given():
    for problem in tier_problems("rules", 10):
        for effort in (0, 1e-9):
            with pytest.raises(UnprovenError, match="CP-SAT ended as UNKNOWN, without a proof"):
                prove(problem, effort)
            with pytest.raises(UnprovenError):
                optimal_schedule(problem, effort)


def test_the_effort_allowed_changes_no_answer_and_the_dynamic_programme_needs_none():
    for problem in tier_problems("rules", 10):
        assert prove(problem) == prove(problem, 1) == prove(problem, 10)
    assert optimal_schedule(day(), 0) == interval_optimum(day())


def test_the_dynamic_programme_is_for_the_base_rules_only():
    events = day().events
    assert is_interval_problem(Problem(events, ()))
    assert is_interval_problem(Problem(events, (), (NoOverlap(), NotEmpty(), Chronological())))
    assert not is_interval_problem(Problem(events, (), (*BASE_RULES, Nothing())))
    assert not is_interval_problem(Problem(events, (), (*BASE_RULES, Gap(15))))
    assert not is_interval_problem(Problem(events, (), BASE_RULES[:2]))
    assert not is_interval_problem(Problem(events, (), ()))


def test_exactly_the_feasible_schedules_are_admitted():
    rng = random.Random(4)
    plain = [random_problem(rng, most=5) for _ in range(40)]
    for problem in (*plain, *rule_problems(40, most=5, seed=6)):
        feasible = set(feasible_schedules(problem))
        for bits in range(1 << len(problem.events)):
            chosen = sorted(e for i, e in enumerate(problem.events) if bits >> i & 1)
            assert admits(problem, chosen) == (tuple(chosen) in feasible)


def test_what_beats_the_optimum_is_not_admitted():
    problem = day()
    gold = prove(problem)
    assert admits(problem, gold)
    assert not admits(problem.proven(179), gold)


def test_unknown_altered_and_repeated_events_are_not_admitted():
    problem = day()
    art, band, *_ = problem.events
    assert admits(problem, (art,))
    assert not admits(problem, (art, art))
    assert not admits(problem, (art,) * 20)
    assert not admits(problem, (Event(art.start, art.end, "Yoga"),))
    assert not admits(problem, (Event(art.start, band.end, "Art"),))
    assert not admits(problem, ())


def test_a_proof_leaves_ctrl_c_to_python():
    program = (
        "import signal\n"
        "from conftest import day\n"
        "from data.solver import prove\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "prove(day())\n"
        "try:\n    signal.raise_signal(signal.SIGINT)\n"
        "except KeyboardInterrupt:\n    print('heard')\n"
    )
    root = Path(__file__).parents[1]
    environment = {**os.environ, "PYTHONPATH": f"{root}{os.pathsep}{root / 'tests'}"}
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (0, "heard\n")
