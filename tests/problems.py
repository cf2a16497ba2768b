"""Small problems, and the third witness of their optimum: brute force by definitions of overlap,
value and rules that are not those of the code under test."""

import random
from collections.abc import Callable, Iterator
from functools import cache
from itertools import islice

from data.clock import MINUTE
from data.event import Event, Schedule
from data.problem import Problem
from data.rules import (
    BASE_RULES,
    AtLeastOne,
    AtMost,
    AtMostOne,
    Before,
    Break,
    Budget,
    Gap,
    MustInclude,
    Rule,
    Travel,
)
from data.solver import optimal_schedule
from data.tiers import TIERS, Tier


def day() -> Problem:
    """Four touching events are optimal (180), Band and Chess feasible (150)."""
    events = (
        Event(540, 600, "Art"),
        Event(570, 660, "Band"),
        Event(600, 630, "Drill"),
        Event(630, 660, "Echo"),
        Event(660, 690, "Chess"),
    )
    return Problem(events, ("Chess",), optimum=180)


def random_problem(
    rng: random.Random, most: int = 8, rules: tuple[Rule, ...] = BASE_RULES
) -> Problem:
    """1 to ``most`` events in two crowded hours: many touch, coincide or hold each other."""
    events = []
    for i in range(rng.randint(1, most)):
        start = 480 + 5 * rng.randrange(18)
        events.append(Event(start, start + 5 * rng.randint(1, 8), f"E{i}"))
    priorities = rng.sample([e.name for e in events], rng.randint(0, len(events)))
    return Problem(tuple(events), tuple(priorities), rules)


def drawn_with_rules(most: int, seed: int) -> Iterator[Problem]:
    """Without end: crowded mornings of 3 to ``most`` events with 1 to 5 further rules, which not
    every one has a schedule for."""
    rng = random.Random(f"rules {seed}")
    tier = Tier(events=(3, most), window=("09:00", "13:00"), durations=(15, 90, 15), rules=(1, 5))
    while True:
        yield tier.sample(rng)


def rule_problems(count: int, most: int, seed: int = 0) -> list[Problem]:
    """Those that have a schedule, with their optimum by brute force."""
    sound = (problem for problem in drawn_with_rules(most, seed) if brute_force(problem)[2])
    return [problem.proven(brute_force(problem)[0]) for problem in islice(sound, count)]


#: An optimal schedule, found once.
gold_of = cache(optimal_schedule)


def _proven(tier: str, seed: int) -> Iterator[Problem]:
    rng = random.Random(f"{tier} {seed}")
    while True:
        problem = TIERS[tier].sample(rng)
        best = optimal_schedule(problem)
        if best is not None:
            yield problem.proven(problem.objective(best))


@cache
def _drawn(tier: str, seed: int) -> tuple[list[Problem], Iterator[Problem]]:
    """Those that were asked for so far, and all further ones."""
    return [], _proven(tier, seed)


def tier_problems(tier: str, count: int, seed: int = 0) -> tuple[Problem, ...]:
    """The first problems of a tier that have a schedule, each with its optimum."""
    found, further = _drawn(tier, seed)
    found.extend(islice(further, max(0, count - len(found))))
    return tuple(found[:count])


def minutes(event: Event) -> int:
    """The minutes an event takes, as bits: two events overlap where these meet. A definition of
    its own, so that an error in the code's comparisons of times cannot hide."""
    return _span(event.start, event.end)


def _span(start: int, end: int) -> int:
    return (1 << end) - (1 << start)


#: Each further rule's demand on a schedule (events of the day, each once), said in minutes: a
#: definition of its own, since a rule's plain check and its constraint share what they compare.
KEPT: dict[type[Rule], Callable[[Rule, Schedule], bool]] = {
    Gap: lambda rule, chosen: (
        not any(_span(a.end, a.end + rule.minutes) & 1 << b.start for a in chosen for b in chosen)
    ),
    Travel: lambda rule, chosen: (
        not any(
            _span(a.end, a.end + rule.minutes) & 1 << b.start
            for a in chosen
            for b in chosen
            if (a.name in rule.here and b.name in rule.there)
            or (a.name in rule.there and b.name in rule.here)
        )
    ),
    Before: lambda rule, chosen: all(
        range(first.start, first.end)[-1] < then.start
        for first in chosen
        for then in chosen
        if (first.name, then.name) == (rule.first, rule.then)
    ),
    AtMostOne: lambda rule, chosen: sum(e.name in rule.group for e in chosen) in (0, 1),
    AtLeastOne: lambda rule, chosen: any(e.name in rule.group for e in chosen),
    MustInclude: lambda rule, chosen: rule.event in [e.name for e in chosen],
    AtMost: lambda rule, chosen: not chosen[rule.count :],
    Budget: lambda rule, chosen: sum(minutes(e).bit_count() for e in chosen) <= rule.minutes,
    Break: lambda rule, chosen: any(
        not any(_span(start, start + rule.minutes) & minutes(e) for e in chosen)
        for start in range(MINUTE[rule.start], MINUTE[rule.end] - rule.minutes + 1)
    ),
}


def kept(problem: Problem, schedule: Schedule) -> bool:
    """Whether a schedule keeps the problem's further rules, not by way of the code under test."""
    return all(KEPT[type(r)](r, schedule) for r in problem.rules if r not in BASE_RULES)


def weighted(problem: Problem, event: Event) -> int:
    """Weighted minutes, not by way of the code under test."""
    return (event.end - event.start) * (2 if event.name in problem.priorities else 1)


def feasible_schedules(problem: Problem) -> Iterator[Schedule]:
    """Every feasible schedule but the empty one, each once, by brute force."""

    def extend(taken: Schedule, busy: int, left: tuple[Event, ...]) -> Iterator[Schedule]:
        for i, event in enumerate(left):
            if not busy & minutes(event):
                longer = (*taken, event)
                if kept(problem, longer):
                    yield longer
                yield from extend(longer, busy | minutes(event), left[i + 1 :])

    return extend((), 0, tuple(sorted(problem.events)))


@cache
def brute_force(problem: Problem) -> tuple[int, int, int]:
    """(optimum, schedules that reach it, feasible schedules); (0, 0, 0) where there is none."""
    values = [sum(weighted(problem, e) for e in s) for s in feasible_schedules(problem)]
    best = max(values, default=0)
    return best, values.count(best), len(values)
