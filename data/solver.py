"""The CP-SAT model of a problem: its proven optimum, and whether it admits a schedule.

Problems whose rules are only the base rules are weighted interval scheduling, which a dynamic
programme solves exactly (Kleinberg & Tardos, *Algorithm Design*, section 6.1) about a hundred times
faster; it is the fast path where a proof by CP-SAT is not asked for, and a second witness in tests.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Sequence
from functools import cached_property

from ortools.sat.python import cp_model

from data.problem import Event, Problem, Schedule
from data.rules import BASE_RULES


class DayModel:
    """CP-SAT model of one problem: ``chosen[i]`` says whether ``events[i]`` is in the schedule.

    With ``ordered``, ``position[i]`` is the event's place in the answer, so that rules about the
    order of an answer can be stated; proving an optimum needs none.
    """

    def __init__(self, problem: Problem, ordered: bool = False) -> None:
        self.problem = problem
        self.events = problem.events
        self.model = cp_model.CpModel()
        self.chosen = [self.model.new_bool_var("") for _ in self.events]
        self.position = (
            [self.model.new_int_var(0, len(self.events), "") for _ in self.events]
            if ordered
            else None
        )
        for rule in problem.rules:
            rule.constrain(self)

    def chosen_of(self, names: Sequence[str]) -> list[cp_model.IntVar]:
        """The variables of these events."""
        return [c for e, c in zip(self.events, self.chosen, strict=True) if e.name in names]

    @cached_property
    def weighted_minutes(self) -> cp_model.LinearExpr:
        value = self.problem.value
        return cp_model.LinearExpr.weighted_sum(self.chosen, [value[e.name] for e in self.events])

    def solve(self, effort: float | None = None) -> tuple[int, cp_model.CpSolver]:
        """Solve with one worker and a fixed seed: the same model, the same answer, anywhere.

        ``effort`` limits CP-SAT's deterministic time, which counts work instead of seconds.
        """
        solver = cp_model.CpSolver()
        solver.parameters.num_workers = 1
        solver.parameters.random_seed = 0
        # It would leave Ctrl-C to end this process at once from here on, unheard by Python.
        solver.parameters.catch_sigint_signal = False
        # These models are settled by presolve or a handful of conflicts; probing, symmetry
        # detection and a linear relaxation cost more than they save.
        solver.parameters.cp_model_probing_level = 0
        solver.parameters.symmetry_level = 0
        solver.parameters.linearization_level = 0
        if effort is not None:
            solver.parameters.max_deterministic_time = effort
        return solver.solve(self.model), solver


class UnprovenError(Exception):
    """CP-SAT reached its limit before it had proven an optimum."""


def prove(problem: Problem, effort: float | None = None) -> Schedule | None:
    """The schedule of greatest weighted minutes, proven OPTIMAL by CP-SAT, in order of start.

    Returns None when no schedule keeps the rules.

    Raises:
        UnprovenError: when ``effort`` (see ``DayModel.solve``) did not suffice.
    """
    day = DayModel(problem)
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
    day = DayModel(problem, ordered=True)
    times_listed = Counter(event.name for event in schedule)
    position = {event.name: i for i, event in enumerate(schedule)}
    for i, event in enumerate(day.events):
        # A 0/1 variable that should be 2 makes the model infeasible: a duplicate.
        day.model.add(day.chosen[i] == times_listed[event.name])
        day.model.add(day.position[i] == position.get(event.name, len(day.events)))
    if problem.optimum is not None:
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


def optimal_schedule(problem: Problem, effort: float | None = None) -> Schedule | None:
    """An optimal schedule, the fastest way, the same one always; None when there is none.

    Raises:
        UnprovenError: see ``prove``.
    """
    return interval_optimum(problem) if is_interval_problem(problem) else prove(problem, effort)
