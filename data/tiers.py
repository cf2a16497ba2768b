"""Tiers: named, validated distributions of problems.

A tier samples events; whether a sample is kept, and its optimum, is decided by the generator
(``data.make``). ``dense`` and ``trap`` live on a 15-minute grid, as calendars do; ``blog`` starts
at any minute, as the published problems do.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, replace

from data.clock import MINUTE
from data.common.errors import UserError, require
from data.common.fields import at_least, check_limits, one_of, setting
from data.event import Event
from data.names import EVENT_NAMES
from data.policies import GREEDY
from data.problem import Problem
from data.rules import BASE_RULES, DRAWN_KINDS, KINDS, TIME, Rule
from data.solver import optimal_schedule, relaxed_optimum

#: How often a whole problem is drawn for a tier, and a start for one event, before giving up.
ATTEMPTS = 10_000
#: CP-SAT's deterministic time for one proof, about 50 ms on one core.
EFFORT = 0.05
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
        rules: fewest and most rules beyond the base rules, each of another kind.
        kinds: the kinds they are drawn from; none named means all that can be drawn.
        binding: keep only problems whose rules cost something: any optimum without them breaks one.
    """

    events: tuple[int, int] = (4, 8)
    window: tuple[str, str] = setting(TIME, ("00:00", "23:59"))
    grid: int = setting(at_least(1), 15)
    durations: tuple[int, int, int] = (15, 120, 15)
    overlap: tuple[float, float] | None = None
    priorities: tuple[float, float] = (0.2, 0.4)
    greedy_fails: bool = False
    rules: tuple[int, int] = (0, 0)
    kinds: tuple[str, ...] = setting(one_of(*DRAWN_KINDS), ())
    binding: bool = False

    def validate(self, source: str) -> None:
        """Raise UserError where the tier cannot produce a problem, or a value makes no sense.

        Args:
            source: the tier, as messages name it.
        """

        def need(condition: bool, key: str, what: str) -> None:
            require(condition, f"{source}: {key} {what}, not {getattr(self, key)!r}")

        check_limits(self, f"{source}: ")
        kinds = len(self.kinds or DRAWN_KINDS)
        for key, least, most in (
            ("events", 1, len(EVENT_NAMES)), ("rules", 0, kinds),
            ("overlap", 0, 1), ("priorities", 0, 1),
        ):  # fmt: skip
            low, high = getattr(self, key) or (least, most)
            within = least <= low <= high <= most
            need(within, key, f"must be [least, greatest], from {least} to {most}")
        shortest, longest, step = self.durations
        sound = 1 <= shortest <= longest and step >= 1
        need(sound, "durations", "must be [shortest, longest, step]")
        fits = self._first_start + longest <= MINUTE[self.window[1]]
        need(fits, "window", f"must hold an event of {longest} minutes")
        need(len(set(self.kinds)) == len(self.kinds), "kinds", "must be different")
        need(not self.binding or self.rules[0] > 0, "binding", "needs rules")
        if self.rules[1]:
            # Floors and random schedules are found by listing every feasible schedule.
            need(self.events[1] <= 16, "events", "may be at most 16 with further rules")
        if self.greedy_fails:
            need(self.events[1] >= 3, "events", "must be 3 or more for greedy policies to fail")

    def sample(self, rng: random.Random) -> Problem:
        """Draw one problem, not yet proven; UserError where none of ``ATTEMPTS`` is accepted."""
        for _ in range(ATTEMPTS):
            events = self._sample_events(rng)
            if events is None:
                continue
            count = _share_of(len(events), self.priorities, rng)
            priorities = [e.name for e in sorted(rng.sample(events, count))]
            problem = Problem(tuple(sorted(events)), tuple(priorities))
            if self.rules[1]:
                problem = replace(problem, rules=(*BASE_RULES, *self._sample_rules(problem, rng)))
            if self._accepts(problem):
                return problem
        raise UserError(f"no problem in {ATTEMPTS} draws; widen its window or ask for fewer events")

    def _sample_rules(self, problem: Problem, rng: random.Random) -> list[Rule]:
        """Rules of different kinds, in the order in which ``data.rules`` has them."""
        kinds = rng.sample(self.kinds or DRAWN_KINDS, rng.randint(*self.rules))
        drawn = (
            KINDS[kind].sample(problem.events, rng) for kind in sorted(kinds, key=list(KINDS).index)
        )
        return [rule for rule in drawn if rule is not None]

    def _accepts(self, problem: Problem) -> bool:
        """Whether a draw is what the tier asks for."""
        if not (self.greedy_fails or self.binding):
            return True
        best = optimal_schedule(problem, EFFORT)
        if best is None:
            return False
        optimum = problem.objective(best)
        if self.binding and problem.objective(relaxed_optimum(problem)) == optimum:
            return False
        proven = problem.proven(optimum)
        solved = any(proven.is_optimal(policy(problem)) for policy in GREEDY.values())
        return not (self.greedy_fails and solved)

    @property
    def _first_start(self) -> int:
        """The first minute of the grid in the window."""
        return -(-MINUTE[self.window[0]] // self.grid) * self.grid

    def _sample_events(self, rng: random.Random) -> list[Event] | None:
        """Draw events one by one; None when one found no place."""
        first, closing = self._first_start, MINUTE[self.window[1]]
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


#: The tiers by name; a recipe may change any attribute of one.
TIERS: dict[str, Tier] = {
    # The published distribution, anakin87/events-scheduling.
    "blog": Tier(events=(4, 8), grid=1, overlap=(0.2, 0.4)),
    "dense": Tier(events=(8, 10), window=("09:00", "17:00")),
    "trap": Tier(events=(6, 9), window=("09:00", "17:00"), greedy_fails=True),
    # Greedy policies fail, and guessing finds few of the optima with 16 tries.
    "busy": Tier(events=(20, 20), window=("08:00", "20:00"), greedy_fails=True),
    # Four events more than the embedded base has ever seen.
    "longer": Tier(events=(24, 24), window=("08:00", "20:00"), greedy_fails=True),
    # Too many ways for guessing, with 256 tries too.
    "crowded": Tier(events=(32, 32), window=("08:00", "18:00")),
    # Needs a solver: no dynamic programme over intervals sees these rules.
    "rules": Tier(
        events=(10, 12), window=("09:00", "18:00"), greedy_fails=True, rules=(3, 5), binding=True
    ),
    # One further rule, for asking whether a model has the skill that it takes.
    "gap": Tier(
        events=(7, 9), window=("09:00", "17:00"), rules=(1, 1), kinds=("gap",), binding=True
    ),
    "at_most": Tier(
        events=(7, 9), window=("09:00", "17:00"), rules=(1, 1), kinds=("at_most",), binding=True
    ),
}
