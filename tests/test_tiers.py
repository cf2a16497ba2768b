"""Tiers: what each is made of, and what an impossible one says."""

import random
from collections import Counter
from contextlib import suppress
from dataclasses import replace
from itertools import combinations

import pytest
from problems import brute_force, minutes, tier_problems
from running import BLOG, needs_blog, refusal_of, within

from data.clock import MINUTE
from data.event import Event
from data.names import EVENT_NAMES
from data.policies import GREEDY, GUESSABLE, floor
from data.problem import Problem
from data.published import read_published
from data.rules import BASE_RULES, DRAWN_KINDS, KINDS
from data.solver import UnprovenError, prove
from data.tiers import EFFORT, TIERS, Tier

COUNT = 1500


def further(problem: Problem) -> list[str]:
    """Kinds of the rules beyond the base rules."""
    assert problem.rules[: len(BASE_RULES)] == BASE_RULES
    return [rule.kind for rule in problem.rules[len(BASE_RULES) :]]


def some(count: int = 30, **attributes: object) -> list[Problem]:
    """Problems of a small tier with these attributes that have a schedule, with their optimum."""
    tier = Tier(**{"events": (5, 8), "window": ("09:00", "14:00"), **attributes})
    tier.validate("tier 'mine'")
    drawn = [tier.sample(random.Random(seed)) for seed in range(count)]
    return [p.proven(brute_force(p)[0]) for p in drawn if brute_force(p)[2]]


def pairs(problem: Problem) -> int:
    """How many pairs of events overlap."""
    return sum(bool(minutes(a) & minutes(b)) for a, b in combinations(problem.events, 2))


@pytest.mark.parametrize("tier", TIERS)
def test_every_named_tier_is_valid_and_yields_sound_problems(tier):
    spec = TIERS[tier]
    spec.validate(tier)
    opening, closing = (MINUTE[t] for t in spec.window)
    shortest, longest, step = spec.durations
    for problem in tier_problems(tier, 300):
        kinds = further(problem)
        assert spec.rules[0] <= len(kinds) <= spec.rules[1]
        # Each once, in an order that does not depend on the draw.
        assert kinds == [kind for kind in KINDS if kind in kinds]
        assert set(kinds) <= set(spec.kinds or DRAWN_KINDS)
        assert list(problem.events) == sorted(problem.events)
        assert spec.events[0] <= len(problem.events) <= spec.events[1]
        assert problem.priorities, "at least one event has priority"
        for event in problem.events:
            assert opening <= event.start < event.end <= closing < 24 * 60
            assert event.start % spec.grid == 0
            assert event.duration in range(shortest, longest + 1, step)
            assert event.name in EVENT_NAMES


def test_the_same_stream_gives_the_same_problem_and_the_global_one_is_left_alone():
    state = random.getstate()
    for tier in TIERS.values():
        assert tier.sample(random.Random(1)) == tier.sample(random.Random(1))
    assert random.getstate() == state


def test_blog_is_the_published_distribution_and_dense_twice_as_crowded():
    problems = tier_problems("blog", COUNT)
    sizes = Counter(len(p.events) for p in problems)
    assert set(sizes) == {4, 5, 6, 7, 8}
    assert all(0.16 < n / COUNT < 0.24 for n in sizes.values())
    durations = Counter(e.duration for p in problems for e in p.events)
    assert set(durations) == set(range(15, 121, 15))
    total = sum(durations.values())
    assert all(0.1 < n / total < 0.15 for n in durations.values())
    assert 0.22 < sum(len(p.priorities) for p in problems) / total < 0.28
    assert 0.22 < sum(map(pairs, problems)) / total < 0.29
    assert 0.38 < floor(problems, ks=(1,))["random_maximal"][1] < 0.50
    dense = tier_problems("dense", 300)
    assert sum(map(pairs, dense)) / sum(len(p.events) for p in dense) > 2 * 0.25


@needs_blog
def test_blog_is_as_crowded_and_as_easy_to_guess_as_the_published_rows():
    published = [problem for problem, _ in read_published(str(BLOG / "train.jsonl"))[0]]
    ours = tier_problems("blog", COUNT)

    def per_event(problems) -> float:
        return sum(map(pairs, problems)) / sum(len(p.events) for p in problems)

    assert per_event(ours) == pytest.approx(per_event(published), abs=0.03)
    theirs, floors = floor(published, ks=(1, 4)), floor(ours, ks=(1, 4))
    for policy in ("random_feasible", "random_maximal"):
        for k in (1, 4):
            assert floors[policy][k] == pytest.approx(theirs[policy][k], abs=0.05)


def test_crowded_cannot_be_guessed_within_the_tries_that_solve_dense():
    by_k = floor(tier_problems("crowded", 60), ks=(1, 64))["random_maximal"]
    assert by_k[1] < 0.02
    assert by_k[64] < GUESSABLE
    assert floor(tier_problems("dense", 60), ks=(64,))["random_maximal"][64] > GUESSABLE


@pytest.mark.parametrize(("tier", "count"), [("trap", 500), ("rules", 200)])
def test_every_greedy_policy_misses_the_optimum_in(tier, count):
    for problem in tier_problems(tier, count):
        assert not any(problem.is_optimal(policy(problem)) for policy in GREEDY.values())


@pytest.mark.parametrize("tier", ["rules", "gap", "at_most"])
def test_what_would_be_best_without_the_further_rules_breaks_one_in(tier):
    for problem in tier_problems(tier, 100):
        assert brute_force(replace(problem, rules=BASE_RULES))[0] > problem.optimum


def test_every_kind_of_rule_stands_in_the_rules_tier_about_equally_often():
    problems = tier_problems("rules", 300)
    met = Counter(kind for problem in problems for kind in further(problem))
    assert set(met) == set(DRAWN_KINDS)
    # Rules that bind more often are kept more often.
    assert min(met.values()) > 300 * 4 / len(DRAWN_KINDS) / 2


def test_cp_sat_proves_rules_problems_of_12_events_within_50_ms():
    """95 of 100; what cannot be proven within the effort is none of them."""
    tier, rng = replace(TIERS["rules"], events=(12, 12)), random.Random(3)
    proven = 0
    for _ in range(100):
        with suppress(UnprovenError):
            problem = tier.sample(rng)
            proven += within(0.05, lambda problem=problem: prove(problem, EFFORT))
    assert proven >= 95


def test_there_are_as_many_rules_of_the_kinds_asked_for():
    assert {len(further(problem)) for problem in some(rules=(2, 4))} == {2, 3, 4}
    found = {tuple(further(p)) for p in some(rules=(1, 2), kinds=("budget", "gap"))}
    assert found == {("gap",), ("budget",), ("gap", "budget")}


def test_an_overlapping_event_overlaps_just_one():
    # The last to be placed overlaps one other; before it, all are clear of each other.
    tier = Tier(events=(6, 6), overlap=(0.17, 0.17))
    assert {pairs(tier.sample(random.Random(seed))) for seed in range(50)} == {1}


@pytest.mark.parametrize(
    ("key", "values"),
    [
        ("events", [(0, 3), (5, 4), (4, len(EVENT_NAMES) + 1)]),
        ("window", [("09:00", "10:00"), ("17:00", "09:00")]),
        ("durations", [(0, 120, 15), (60, 30, 15), (15, 120, 0)]),
        ("overlap", [(0.5, 0.2), (-0.1, 0.2), (0.2, 1.1)]),
        ("priorities", [(0.5, 0.2), (0.2, 2)]),
        ("rules", [(-1, 2), (2, 1), (0, len(DRAWN_KINDS) + 1)]),
        ("kinds", [("gap", "gap")]),
        ("binding", [True]),
    ],
)
def test_a_senseless_value_is_named_with_its_tier_and_key(key, values):
    for value in values:
        tier = replace(TIERS["blog"], **{key: value})
        text = refusal_of(lambda tier=tier: tier.validate("tier 'mine'"))
        assert text.startswith(f"tier 'mine': {key} ")
        assert text.endswith(f"not {value!r}")


@pytest.mark.parametrize(
    ("key", "attributes"),
    [
        ("window", {"window": ("09:00", "24:00")}),
        ("grid", {"grid": 0}),
        ("kinds", {"kinds": ("gap", "gaap")}),
        ("rules", {"rules": (2, 2), "kinds": ("gap",)}),
        ("events", {"rules": (0, 1), "events": (4, 17)}),
        ("events", {"greedy_fails": True, "events": (2, 2)}),
        # No start on the grid.
        ("window", {"window": ("09:01", "09:31"), "grid": 60, "durations": (30, 30, 15)}),
    ],
)
def test_what_no_tier_can_have_or_not_together_is_refused(key, attributes):
    refusal_of(lambda: Tier(**attributes).validate("tier 'mine'"), f"tier 'mine': {key} ")


@pytest.mark.parametrize(
    "tier",
    [
        # The rule can never cost anything.
        Tier(events=(1, 1), rules=(1, 1), kinds=("must_include",), binding=True),
        Tier(events=(1, 1), overlap=(0.2, 0.4)),  # one event has none to overlap
        # Eight hours of events, clear of each other, in one hour.
        Tier(events=(8, 8), window=("09:00", "10:00"), durations=(60, 60, 1), overlap=(0, 0.2)),
        # Every greedy policy finds the optimum of events that are clear of each other.
        Tier(events=(3, 3), window=("09:00", "17:00"), overlap=(0, 0), greedy_fails=True),
    ],
)
def test_a_tier_without_any_problem_gives_up_with_a_sentence(tier, monkeypatch):
    monkeypatch.setattr("data.tiers.ATTEMPTS", 200)
    tier.validate("tier 'mine'")
    refusal_of(lambda: tier.sample(random.Random(1)), "200 draws")


def test_an_event_may_fill_the_window_and_no_share_means_no_priority_and_no_overlap():
    hour = Tier(events=(1, 1), window=("09:00", "10:00"), grid=60, durations=(60, 60, 1))
    hour.validate("tier 'mine'")
    [event] = hour.sample(random.Random(1)).events
    assert event == Event(540, 600, event.name)
    problems = some(overlap=(0, 0), priorities=(0, 0), window=("00:00", "23:59"))
    assert not any(p.priorities or pairs(p) for p in problems)
