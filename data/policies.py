"""Blind policies: what a schedule costs that nobody thought about. Their scores are the floor.

Random policies have exact success probabilities here, so a tier's floor at k tries needs no
simulation: a problem solved with probability p per try is solved within k with 1 - (1 - p)^k.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from functools import cache

from data.problem import Event, Problem, Schedule
from data.solver import by_end

FLOOR_KS = (1, 4, 16, 64, 256)


def insert_in_order(order: Sequence[Event]) -> Schedule:
    """Take events in this order wherever they still fit."""
    taken: list[Event] = []
    for event in order:
        if not any(event.overlaps(other) for other in taken):
            taken.append(event)
    return tuple(sorted(taken))


def greedy_by_start(problem: Problem) -> Schedule:
    """The event that starts first, then the next that fits."""
    return insert_in_order(sorted(problem.events))


def greedy_by_duration(problem: Problem) -> Schedule:
    """The longest event first."""
    return insert_in_order(sorted(problem.events, key=lambda e: (-e.duration, e)))


def greedy_by_value(problem: Problem) -> Schedule:
    """The event of greatest weighted minutes first."""
    return insert_in_order(sorted(problem.events, key=lambda e: (-problem.value[e.name], e)))


GREEDY: dict[str, Callable[[Problem], Schedule]] = {
    "greedy_by_start": greedy_by_start,
    "greedy_by_duration": greedy_by_duration,
    "greedy_by_value": greedy_by_value,
}


def random_maximal(problem: Problem, rng: random.Random) -> Schedule:
    """Events in random order, each taken if it fits: nothing can be added to the result."""
    return insert_in_order(rng.sample(problem.events, len(problem.events)))


def random_feasible(problem: Problem, rng: random.Random) -> Schedule:
    """One of all non-empty feasible schedules, each equally likely."""
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

    Optimal schedules are counted with the same recursion, over (value, ways) pairs.
    """
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
    value = problem.value

    @cache
    def solve(group: tuple[Event, ...]) -> tuple[int, float]:
        """(optimum, probability of reaching it) of events sorted by start."""
        optimum, probability = 0, 1.0
        for part in _connected(group):
            part_optimum, part_probability = solve_connected(part)
            optimum += part_optimum
            probability *= part_probability
        return optimum, probability

    @cache
    def solve_connected(part: tuple[Event, ...]) -> tuple[int, float]:
        outcomes = []
        for first in part:
            rest_optimum, probability = solve(tuple(e for e in part if not e.overlaps(first)))
            outcomes.append((value[first.name] + rest_optimum, probability))
        optimum = max(total for total, _ in outcomes)
        return optimum, sum(p for total, p in outcomes if total == optimum) / len(part)

    return solve(tuple(sorted(problem.events)))[1]


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
        **{
            name: float(problem.objective(policy(problem)) == problem.optimum)
            for name, policy in GREEDY.items()
        },
    }


def floor(problems: Sequence[Problem], ks: Sequence[int] = FLOOR_KS) -> dict[str, dict[int, float]]:
    """Share of ``problems`` that each blind policy solves within k tries, exactly, for each k."""
    chances = [success_probability(problem) for problem in problems]
    return {
        policy: {k: sum(1 - (1 - c[policy]) ** k for c in chances) / len(chances) for k in ks}
        for policy in chances[0]
    }
