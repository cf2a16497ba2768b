"""The CP-SAT model of a problem: its proven optimum, and whether it admits a schedule.

Problems whose rules are only the base rules, and gaps, are weighted interval scheduling, which a
dynamic programme solves exactly (Kleinberg & Tardos, *Algorithm Design*, section 6.1) about a
hundred times faster; it is the fast path where a proof by CP-SAT is not asked for, and a second
witness in tests.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

from ortools.sat.python import cp_model

from data.cpsat import DayModel
from data.event import Event, Schedule
from data.problem import Problem
from data.rules import BASE_RULES, Gap


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
    return tuple(sorted(event for event, c in day.choices if solver.boolean_value(c)))


def admits(problem: Problem, schedule: Sequence[Event]) -> bool:
    """Whether this very answer is feasible in the CP-SAT model, and no better than the optimum."""
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
    """Whether nothing but the base rules holds."""
    return set(problem.rules) == set(BASE_RULES)


def by_end(problem: Problem) -> tuple[list[Event], list[int]]:
    """Events by their end, and for each how many end by its start."""
    events = sorted(problem.events, key=lambda e: (e.end, e.start, e.name))
    ends = [event.end for event in events]
    return events, [bisect_right(ends, event.start) for event in events]


class Step(NamedTuple):
    """One event of the dynamic programme from the last event of the day to the first.

    Attributes:
        value: its weighted minutes.
        earliest: the minute from which on another may follow it.
        after: greatest weighted minutes of what may follow it, 0 where nothing may.
        after_head: the first event of that, or None.
        total: ``value`` and ``after`` together.
        best: greatest weighted minutes from this event on, with it or without.
        head: first event of a schedule that reaches ``best``.
    """

    event: Event
    value: int
    earliest: int
    after: int
    after_head: Event | None
    total: int
    best: int
    head: Event


def has_base_rules(problem: Problem) -> bool:
    """Whether all base rules hold, as the dynamic programme takes for granted."""
    return set(BASE_RULES) <= set(problem.rules)


def is_computable(problem: Problem) -> bool:
    """Whether ``backward_steps`` finds the optimum: base rules, and gaps between events."""
    further = set(problem.rules) - set(BASE_RULES)
    return has_base_rules(problem) and all(isinstance(rule, Gap) for rule in further)


def backward_steps(problem: Problem, raised: Mapping[str, int] | None = None) -> list[Step]:
    """Weighted interval scheduling from the last event in order of start to the first.

    ``best(i) = max(best(i + 1), value(i) + best(next(i)))``, where ``next(i)`` is the first event
    that starts no earlier than event i ends, and a gap later where a rule asks for one. Of equal
    schedules the one without the earlier event stays.

    Args:
        raised: minutes added to an event's total, by its name; see ``eval.answers.interventions``.
    """
    pause = max((rule.minutes for rule in problem.rules if isinstance(rule, Gap)), default=0)
    events = sorted(problem.events)
    starts = [event.start for event in events]
    steps: list[Step] = []
    for event in reversed(events):
        earliest = event.end + pause
        following = bisect_left(starts, earliest)
        rest = steps[len(events) - 1 - following] if following < len(events) else None
        after, after_head = (rest.best, rest.head) if rest else (0, None)
        value = problem.value[event.name]
        total = value + after + (raised or {}).get(event.name, 0)
        best, head = total, event
        if steps and steps[-1].best >= total:
            best, head = steps[-1].best, steps[-1].head
        steps.append(Step(event, value, earliest, after, after_head, total, best, head))
    return steps


def walk(steps: Sequence[Step]) -> Schedule:
    """The optimal schedule that ``backward_steps`` lead to: from head to head."""
    by_event = {step.event: step for step in steps}
    schedule: list[Event] = []
    event: Event | None = steps[-1].head
    while event is not None:
        schedule.append(event)
        event = by_event[event].after_head
    return tuple(schedule)


def interval_optimum(problem: Problem) -> Schedule:
    """The optimum of a problem that ``is_computable``, by dynamic programming, O(n log n)."""
    return walk(backward_steps(problem))


def relaxed_optimum(problem: Problem) -> Schedule:
    """The optimum of a problem without its further rules."""
    return interval_optimum(replace(problem, rules=BASE_RULES))


def optimal_schedule(problem: Problem, effort: float | None = None) -> Schedule | None:
    """An optimal schedule, found the fastest way and always the same one; None without any.

    Raises:
        UnprovenError: see ``prove``.
    """
    return interval_optimum(problem) if is_computable(problem) else prove(problem, effort)
