"""Tiers: named, validated distributions of problems.

A tier samples events; whether a sample is kept, and its optimum, is decided by the generator
(``data.make``). ``dense`` and ``trap`` live on a 15-minute grid, as calendars do; ``blog`` starts
at any minute, as the published problems do.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from data.errors import UserError
from data.names import EVENT_NAMES
from data.policies import GREEDY
from data.problem import MINUTE, Event, Problem
from data.solver import interval_optimum

#: How often a whole problem is drawn for a tier, and a start for one event, before giving up.
ATTEMPTS = 10_000
PLACEMENTS = 100


@dataclass(frozen=True)
class Tier:
    """A distribution of problems.

    Attributes:
        events: fewest and most events.
        window: earliest start and latest end of the day, ``HH:MM``.
        grid: starts are multiples of this many minutes.
        durations: shortest, longest and step, in minutes.
        overlap: least and greatest share of events that are placed to overlap just one other, the
            rest being placed clear of all; None places every event anywhere.
        priorities: least and greatest share of events with priority.
        greedy_fails: keep only problems on which every greedy policy misses the optimum.
    """

    events: tuple[int, int] = (4, 8)
    window: tuple[str, str] = ("00:00", "23:59")
    grid: int = 15
    durations: tuple[int, int, int] = (15, 120, 15)
    overlap: tuple[float, float] | None = None
    priorities: tuple[float, float] = (0.2, 0.4)
    greedy_fails: bool = False

    def validate(self, name: str) -> None:
        """Raise UserError where the tier cannot produce a problem, or a value makes no sense."""

        def need(condition: bool, key: str, what: str) -> None:
            if not condition:
                raise UserError(f"tier {name!r}: {key} {what}, not {getattr(self, key)!r}")

        low, high = self.events
        need(1 <= low <= high, "events", "must be [fewest, most], 1 or more")
        need(high <= len(EVENT_NAMES), "events", f"may be at most {len(EVENT_NAMES)}, one per name")
        need(all(t in MINUTE for t in self.window), "window", "must be two HH:MM times")
        shortest, longest, step = self.durations
        sound = 1 <= shortest <= longest and step >= 1
        need(sound, "durations", "must be [shortest, longest, step]")
        need(self.grid >= 1, "grid", "must be 1 minute or more")
        for key in ("overlap", "priorities"):
            shares = getattr(self, key)
            if shares is not None:
                need(
                    0 <= shares[0] <= shares[1] <= 1,
                    key,
                    "must be [least, greatest], shares 0 to 1",
                )
        opening, closing = (MINUTE[t] for t in self.window)
        first = self._first_start(opening)
        need(first + longest <= closing, "window", f"must hold an event of {longest} minutes")
        if self.greedy_fails:
            need(high >= 3, "events", "must be 3 or more for greedy policies to fail")

    def sample(self, rng: random.Random) -> Problem:
        """Draw one problem, its optimum not yet proven.

        Raises:
            UserError: when 10,000 draws did not yield one that the tier accepts.
        """
        for _ in range(ATTEMPTS):
            events = self._sample_events(rng)
            if events is None:
                continue
            count = _share_of(len(events), self.priorities, rng)
            priorities = [e.name for e in sorted(rng.sample(events, count))]
            problem = Problem(tuple(sorted(events)), tuple(priorities))
            if not self.greedy_fails or _every_greedy_fails(problem):
                return problem
        raise UserError(f"no problem in {ATTEMPTS} draws; widen its window or ask for fewer events")

    def _first_start(self, opening: int) -> int:
        """The first minute of the grid in the window."""
        return -(-opening // self.grid) * self.grid

    def _sample_events(self, rng: random.Random) -> list[Event] | None:
        """Draw events one by one; None when one found no place."""
        opening, closing = (MINUTE[t] for t in self.window)
        first = self._first_start(opening)
        names = rng.sample(EVENT_NAMES, rng.randint(*self.events))
        clear = len(names)
        if self.overlap is not None:
            clear -= _share_of(len(names), self.overlap, rng)
        events: list[Event] = []
        for i, name in enumerate(names):
            shortest, longest, step = self.durations
            duration = rng.randrange(shortest, longest + 1, step)
            for _ in range(PLACEMENTS):
                start = rng.randrange(first, closing - duration + 1, self.grid)
                event = Event(start, start + duration, name)
                clashes = sum(event.overlaps(other) for other in events)
                if self.overlap is None or clashes == (0 if i < clear else 1):
                    events.append(event)
                    break
            else:
                return None
        return events


def _share_of(count: int, share: tuple[float, float], rng: random.Random) -> int:
    """A whole number between two shares of ``count``: 1 or more unless both shares are 0."""
    least = max(1, int(share[0] * count)) if share[1] else 0
    return rng.randint(least, max(least, int(share[1] * count)))


def _every_greedy_fails(problem: Problem) -> bool:
    optimum = problem.objective(interval_optimum(problem))
    return all(problem.objective(policy(problem)) < optimum for policy in GREEDY.values())


#: The tiers by name; a recipe may change any attribute of one.
TIERS: dict[str, Tier] = {
    # The published distribution, anakin87/events-scheduling.
    "blog": Tier(events=(4, 8), grid=1, overlap=(0.2, 0.4)),
    "dense": Tier(events=(8, 10), window=("09:00", "17:00")),
    "trap": Tier(events=(6, 9), window=("09:00", "17:00"), greedy_fails=True),
}
