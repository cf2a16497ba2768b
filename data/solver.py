"""The CP-SAT model of a problem: its proven optimum, and whether it admits a schedule.

Problems whose rules are only the base rules are weighted interval scheduling, which a dynamic
programme solves exactly (Kleinberg & Tardos, *Algorithm Design*, section 6.1) about a hundred times
faster; it is the fast path where a proof by CP-SAT is not asked for, and a second witness in tests.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from ortools.sat.python import cp_model

from data.cpsat import DayModel
from data.event import Event, Schedule
from data.problem import Problem
from data.rules import BASE_RULES


def day_model(problem: Problem, ordered: bool = False) -> DayModel:
    """The CP-SAT model of a problem; see ``DayModel`` for ``ordered``."""
    day = DayModel(problem.events, problem.value, ordered)
    for rule in problem.rules:
        rule.constrain(day)
    return day


class UnprovenError(Exception):
    """CP-SAT reached its limit before it had proven an optimum."""


def prove(problem: Problem, effort: float | None = None) -> Schedule | None:
    """The schedule of greatest weighted minutes, proven OPTIMAL by CP-SAT, in order of start.

    Returns None when no schedule keeps the rules.

    Raises:
        UnprovenError: when ``effort`` (see ``DayModel.solve``) did not suffice.
    """
    day = day_model(problem)
    day.model.maximize(day.weighted_minutes)
    status, solver = day.solve(effort)
    if status == cp_model.INFEASIBLE:
        return None
    if status != cp_model.OPTIMAL:
        raise UnprovenError(f"CP-SAT ended as {solver.status_name(status)}, without a proof")
    best = [e for e, c in zip(day.events, day.chosen, strict=True) if solver.boolean_value(c)]
    return tuple(sorted(best))


def admits(problem: Problem, schedule: Sequence[Event]) -> bool:
    """Whether the CP-SAT model of ``problem`` with this very answer fixed in it is feasible, and
    no better than the proven optimum."""
    if any(problem.by_name.get(event.name) != event for event in schedule):
        return False  # an unknown event, or other times: the model has no variable for it
    day = day_model(problem, ordered=True)
    times_listed = Counter(event.name for event in schedule)
    position = {event.name: i for i, event in enumerate(schedule)}
    for i, event in enumerate(day.events):
        # A 0/1 variable that should be 2 makes the model infeasible: a duplicate.
        day.model.add(day.chosen[i] == times_listed[event.name])
        day.model.add(day.position[i] == position.get(event.name, len(day.events)))
    if problem.optimum:
        day.model.add(day.weighted_minutes <= problem.optimum)
    status, _ = day.solve()
    return status == cp_model.OPTIMAL


def is_interval_problem(problem: Problem) -> bool:
    """Whether the dynamic programme applies: nothing but the base rules."""
    return set(problem.rules) == set(BASE_RULES)


def by_end(problem: Problem) -> tuple[list[Event], list[int]]:
    """Events by their end, and for each how many end by its start."""
    events = sorted(problem.events, key=lambda e: (e.end, e.start, e.name))
    ends = [event.end for event in events]
    return events, [bisect_right(ends, event.start) for event in events]


def interval_optimum(problem: Problem) -> Schedule:
    """The optimum of an interval problem by dynamic programming, O(n log n).

    ``best(i) = max(best(i - 1), value(i) + best(p(i)))`` over events by end, where ``p(i)`` is the
    number of events that end by the start of event i. Of equal schedules the one without the later
    event is returned, so the answer is unique.
    """
    events, before = by_end(problem)
    best = [0]
    for i, event in enumerate(events):
        best.append(max(best[i], problem.value[event.name] + best[before[i]]))
    chosen, i = [], len(events)
    while i:
        if best[i] == best[i - 1]:
            i -= 1
        else:
            chosen.append(events[i - 1])
            i = before[i - 1]
    return tuple(reversed(chosen))


def relaxed_optimum(problem: Problem) -> Schedule:
    """The optimum of a problem without its further rules."""
    return interval_optimum(replace(problem, rules=BASE_RULES))


def optimal_schedule(problem: Problem, effort: float | None = None) -> Schedule | None:
    """An optimal schedule, found the fastest way and always the same one; None without any.

    Raises:
        UnprovenError: see ``prove``.
    """
    return interval_optimum(problem) if is_interval_problem(problem) else prove(problem, effort)
