"""Blind policies: what a schedule costs that nobody thought about. Their scores are the floor.

Random policies have exact success probabilities here, so a tier's floor at k tries needs no
simulation: a problem solved with probability p per try is solved within k with 1 - (1 - p)^k.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from functools import cache, lru_cache
from typing import Any

from data.event import Event, Schedule
from data.problem import Problem
from data.solver import by_end, is_interval_problem

FLOOR_KS = (1, 4, 16, 64, 256)

#: Share of problems that each policy solves within k tries, by policy and k.
PolicyFloors = dict[str, dict[int, float]]

#: A tier is guessable where a random maximal schedule is optimal on more than this share of its
#: problems within the evaluation's largest k: there pass@k says little about a model.
GUESSABLE = 0.5


def insert_in_order(problem: Problem, order: Sequence[Event]) -> Schedule:
    """Take events in this order wherever they still fit."""
    taken: list[Event] = []
    for event in order:
        if problem.obstacle(taken, event) is None:
            taken.append(event)
    return tuple(sorted(taken))


def _greedy(problem: Problem, key: Callable[[Event], Any]) -> Schedule:
    """Events by ``key``, those first that a rule demands, alone or with others."""
    demanded = {name for rule in problem.rules if not rule.hereditary for name in rule.names()}
    return insert_in_order(
        problem, sorted(problem.events, key=lambda e: (e.name not in demanded, key(e)))
    )


def greedy_by_start(problem: Problem) -> Schedule:
    """The event that starts first, then the next that fits."""
    return _greedy(problem, lambda e: e)


def greedy_by_duration(problem: Problem) -> Schedule:
    """The longest event first."""
    return _greedy(problem, lambda e: (-e.duration, e))


def greedy_by_value(problem: Problem) -> Schedule:
    """The event of greatest weighted minutes first."""
    return _greedy(problem, lambda e: (-problem.value[e.name], e))


def greedy_by_end(problem: Problem) -> Schedule:
    """The event that ends first, then the next that fits: the most events, whatever their worth."""
    return _greedy(problem, lambda e: (e.end, e))


GREEDY: dict[str, Callable[[Problem], Schedule]] = {
    "greedy_by_start": greedy_by_start,
    "greedy_by_duration": greedy_by_duration,
    "greedy_by_value": greedy_by_value,
}
#: Policies that an answer may follow instead of looking for the optimum. ``GREEDY`` has one less,
#: since tiers are drawn by it, and another one would change their problems.
SHORTCUTS = {**GREEDY, "greedy_by_end": greedy_by_end}


def shortcuts(problem: Problem) -> dict[str, Schedule]:
    """The schedule of each of ``SHORTCUTS``; empty where one is optimal: whoever has that schedule
    may as well have looked for the optimum."""
    taken = {name: take(problem) for name, take in SHORTCUTS.items()}
    return {} if any(map(problem.is_optimal, taken.values())) else taken


def random_maximal(problem: Problem, rng: random.Random) -> Schedule:
    """Events in random order, each taken if it fits: nothing can be added to the result.

    Tried again until what some rules demand is in it, which takes no longer than luck: an order
    that begins with a feasible schedule succeeds.
    """
    while True:
        schedule = insert_in_order(problem, rng.sample(problem.events, len(problem.events)))
        if problem.is_feasible(schedule):
            return schedule


@lru_cache(maxsize=256)
def feasible_schedules(problem: Problem) -> tuple[Schedule, ...]:
    """Every feasible schedule, for problems of a dozen events or so; a tree search that adds
    events in order of start and turns back where a hereditary rule breaks."""
    events = sorted(problem.events)
    found: list[Schedule] = []

    def extend(taken: Schedule, at: int) -> None:
        if problem.is_feasible(taken):
            found.append(taken)
        for i in range(at, len(events)):
            if problem.obstacle(taken, events[i]) is None:
                extend((*taken, events[i]), i + 1)

    extend((), 0)
    return tuple(found)


def random_feasible(problem: Problem, rng: random.Random) -> Schedule:
    """One of all feasible schedules, each equally likely."""
    if not is_interval_problem(problem):
        return rng.choice(feasible_schedules(problem))
    events, before, count = _count_feasible(problem)
    pick = rng.randrange(1, count[-1])  # number 0 is the empty schedule
    taken, i = [], len(events)
    while i:
        if pick < count[i - 1]:  # the first count[i - 1] schedules leave event i out
            i -= 1
        else:
            pick -= count[i - 1]
            taken.append(events[i - 1])
            i = before[i - 1]
    return tuple(reversed(taken))


def _count_feasible(problem: Problem) -> tuple[list[Event], list[int], list[int]]:
    """Events by end, how many end by each one's start, and the number of feasible schedules
    (the empty one too) of each prefix: ``count(i) = count(i - 1) + count(p(i))``."""
    events, before = by_end(problem)
    count = [1]
    for i in range(len(events)):
        count.append(count[i] + count[before[i]])
    return events, before, count


def random_feasible_success(problem: Problem) -> float:
    """Probability that ``random_feasible`` is optimal: optimal schedules over feasible ones.

    Optimal schedules are counted with the same recursion, over (value, ways) pairs, or one by one
    where further rules hold.
    """
    if not is_interval_problem(problem):
        objectives = [problem.objective(s) for s in feasible_schedules(problem)]
        return objectives.count(max(objectives)) / len(objectives)
    events, before, count = _count_feasible(problem)
    best: list[tuple[int, int]] = [(0, 1)]
    for i, event in enumerate(events):
        without = best[i]
        value, ways = best[before[i]]
        with_it = (value + problem.value[event.name], ways)
        if without[0] == with_it[0]:
            best.append((without[0], without[1] + with_it[1]))
        else:
            best.append(max(without, with_it))
    return best[-1][1] / (count[-1] - 1)


def random_maximal_success(problem: Problem) -> float:
    """Probability that ``random_maximal`` is optimal, exactly.

    The first event taken is uniform among those left; it removes what overlaps it. Groups of events
    that share no minute are independent, so their probabilities multiply:
    ``P(G) = 1/|G| sum over e in G with value(e) + opt(G - N[e]) = opt(G) of P(G - N[e])``.
    """
    if not is_interval_problem(problem):
        return _random_maximal_success_by_sets(problem)
    value = problem.value

    @cache
    def solve(group: tuple[Event, ...]) -> tuple[int, float]:
        """(optimum, probability of reaching it) of events sorted by start."""
        parts = list(map(solve_connected, _connected(group)))
        return sum(optimum for optimum, _ in parts), math.prod(p for _, p in parts)

    @cache
    def solve_connected(part: tuple[Event, ...]) -> tuple[int, float]:
        outcomes = []
        for first in part:
            rest_optimum, probability = solve(tuple(e for e in part if not e.overlaps(first)))
            outcomes.append((value[first.name] + rest_optimum, probability))
        optimum = max(total for total, _ in outcomes)
        return optimum, sum(p for total, p in outcomes if total == optimum) / len(part)

    return solve(tuple(sorted(problem.events)))[1]


def _random_maximal_success_by_sets(problem: Problem) -> float:
    """The same under any rules: from each set of events taken, the next is uniform among those
    that can still join. P(optimal) / P(feasible), since infeasible ends are tried again."""
    optimum = max(problem.objective(schedule) for schedule in feasible_schedules(problem))

    @cache
    def ends(taken: Schedule) -> tuple[float, float]:
        """(P(feasible), P(optimal)) of where random insertion ends from here."""
        joining = [
            e for e in problem.events if e not in taken and problem.obstacle(taken, e) is None
        ]
        if not joining:
            feasible = problem.is_feasible(taken)
            return float(feasible), float(feasible and problem.objective(taken) == optimum)
        after = [ends(tuple(sorted((*taken, event)))) for event in joining]
        return sum(f for f, _ in after) / len(after), sum(o for _, o in after) / len(after)

    feasible, optimal = ends(())
    return optimal / feasible


def _connected(group: Sequence[Event]) -> list[tuple[Event, ...]]:
    """Split events sorted by start into groups that share no minute with each other."""
    parts: list[list[Event]] = []
    end = -1
    for event in group:
        if event.start >= end:
            parts.append([])
        parts[-1].append(event)
        end = max(end, event.end)
    return [tuple(part) for part in parts]


def success_probability(problem: Problem) -> dict[str, float]:
    """Each blind policy's probability of the optimum in one try; greedy ones have 0 or 1."""
    return {
        "random_feasible": random_feasible_success(problem),
        "random_maximal": random_maximal_success(problem),
        **{name: float(problem.is_optimal(take(problem))) for name, take in GREEDY.items()},
    }


def floor(problems: Sequence[Problem], ks: Sequence[int] = FLOOR_KS) -> PolicyFloors:
    """Share of ``problems`` that each blind policy solves within k tries, exactly, for each k."""
    chances = [success_probability(problem) for problem in problems]
    return {
        policy: {k: sum(1 - (1 - c[policy]) ** k for c in chances) / len(chances) for k in ks}
        for policy in chances[0]
    }
