"""Rules: one constraint in three forms side by side.

A rule is its sentence for the prompt, its CP-SAT constraint, and its plain check that names what
was violated. Property tests pin the two forms of judgement to each other.

To add a rule, write a class here and list it in ``KINDS``: recipes, tiers, JSON, prompts, the
solver and the verifier find it there. The tests then ask for a third definition of it, in
``tests/test_rules.py``, and for one schedule that breaks it, in ``tests/test_mutations.py``.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from itertools import combinations, pairwise
from typing import Any, ClassVar

from data.clock import MINUTE
from data.common.errors import UserError
from data.cpsat import DayModel
from data.event import Event


@dataclass(frozen=True)
class Rule:
    """Base of all rules; a subclass gives ``kind`` and the three forms.

    Fields are text, whole numbers, or tuples of them; lists are taken as tuples.

    Attributes:
        kind: its name in JSON and in recipes.
        hereditary: whether every part of a schedule that keeps the rule keeps it too, so that a
            schedule which breaks it cannot be mended by adding events.
    """

    kind: ClassVar[str]
    hereditary: ClassVar[bool] = True

    def __post_init__(self) -> None:
        for field in fields(self):
            object.__setattr__(self, field.name, _as_tuple(getattr(self, field.name)))

    @classmethod
    def sample(cls, events: Sequence[Event], rng: random.Random) -> Rule | None:
        """Draw the rule for the events of a day; None where it cannot be said of them."""
        raise NotImplementedError

    def sentence(self) -> str | None:
        """The rule as the prompt says it, or None where the prompt's task says it already."""
        raise NotImplementedError

    def constrain(self, day: DayModel) -> None:
        """Add the rule to a CP-SAT model."""
        raise NotImplementedError

    def violations(self, schedule: Sequence[Event]) -> Iterator[str]:
        """Name each way in which ``schedule`` (in the order answered) breaks the rule."""
        raise NotImplementedError

    def names(self) -> tuple[str, ...]:
        """The events that the rule speaks of."""
        return ()

    def check(self) -> None:
        """Raise UserError where the fields make no sense."""

    def to_json(self) -> dict[str, Any]:
        return {"rule": self.kind, **asdict(self)}

    def canonical(self, anonymous: Mapping[str, list[int]]) -> list[Any]:
        """The rule without event names, for the problem's fingerprint.

        Args:
            anonymous: what stands for each event: its times and whether it has priority.
        """

        def plain(value: Any) -> Any:
            if isinstance(value, tuple):
                return sorted(map(plain, value), key=json.dumps)
            return anonymous[value] if value in self.names() else value

        return [self.kind, *(plain(getattr(self, field.name)) for field in fields(self))]


def _as_tuple(value: Any) -> Any:
    return tuple(map(_as_tuple, value)) if isinstance(value, list | tuple) else value


@dataclass(frozen=True)
class NotEmpty(Rule):
    """A schedule has at least one event."""

    kind: ClassVar[str] = "not_empty"
    hereditary: ClassVar[bool] = False

    def sentence(self) -> str | None:
        return None

    def constrain(self, day: DayModel) -> None:
        day.model.add_bool_or(day.chosen)

    def violations(self, schedule: Sequence[Event]) -> Iterator[str]:
        if not schedule:
            yield "empty"


@dataclass(frozen=True)
class Chronological(Rule):
    """Events are listed in the order of their starts."""

    kind: ClassVar[str] = "chronological"

    def sentence(self) -> str | None:
        return "List the chosen events in order of start."

    def constrain(self, day: DayModel) -> None:
        # Any set of events can be listed in order, so only a given answer can break this rule.
        if not day.position:
            return
        for i, j in combinations(range(len(day.events)), 2):
            if day.events[i].start != day.events[j].start:
                first, second = (i, j) if day.events[i].start < day.events[j].start else (j, i)
                day.model.add(day.position[first] < day.position[second]).only_enforce_if(
                    day.chosen[i], day.chosen[j]
                )

    def violations(self, schedule: Sequence[Event]) -> Iterator[str]:
        for before, after in pairwise(schedule):
            if after.start < before.start:
                yield f"not_chronological: {before.name} / {after.name}"


@dataclass(frozen=True)
class NoOverlap(Rule):
    """No two events share a minute; one may start when another ends."""

    kind: ClassVar[str] = "no_overlap"

    def sentence(self) -> str | None:
        return "No two chosen events overlap; one may start at the minute another ends."

    def constrain(self, day: DayModel) -> None:
        # Events that share a minute form a clique, and every maximal clique of an interval graph
        # is the set of events running at some start. At most one of each clique: the strongest
        # form of the rule, which presolve settles without search.
        for event in day.events:
            running = [
                chosen for other, chosen in day.choices if other.start <= event.start < other.end
            ]
            if len(running) > 1:
                day.model.add_at_most_one(running)

    def violations(self, schedule: Sequence[Event]) -> Iterator[str]:
        for a, b in combinations(schedule, 2):
            # An event listed twice is a duplicate, not an overlap with itself.
            if a.name != b.name and a.overlaps(b):
                yield f"overlap: {a.name} / {b.name}"


#: What holds in every problem.
BASE_RULES: tuple[Rule, ...] = (NotEmpty(), Chronological(), NoOverlap())


class ForbidsPairs(Rule):
    """Base of rules that forbid two events to stand in one schedule."""

    def clashes(self, first: Event, second: Event) -> bool:
        """Whether two events, in order of time, must not both be chosen."""
        raise NotImplementedError

    def constrain(self, day: DayModel) -> None:
        for (a, a_chosen), (b, b_chosen) in combinations(day.choices, 2):
            if self.clashes(*sorted((a, b))):
                day.model.add_at_most_one(a_chosen, b_chosen)

    def violations(self, schedule: Sequence[Event]) -> Iterator[str]:
        for a, b in combinations(schedule, 2):
            first, second = sorted((a, b))
            if a.name != b.name and self.clashes(first, second):
                yield f"{self.kind}: {first.name} / {second.name}"


@dataclass(frozen=True)
class Gap(ForbidsPairs):
    """So many minutes between the end of a chosen event and the start of any later one."""

    kind: ClassVar[str] = "gap"
    minutes: int

    @classmethod
    def sample(cls, events: Sequence[Event], rng: random.Random) -> Rule | None:
        return cls(rng.choice((15, 30)))

    def sentence(self) -> str | None:
        return f"Leave at least {self.minutes} minutes between one chosen event and the next."

    def clashes(self, first: Event, second: Event) -> bool:
        # Events that overlap are another rule's matter.
        return 0 <= second.start - first.end < self.minutes

    def check(self) -> None:
        need(self, self.minutes > 0, "minutes", "above 0")


@dataclass(frozen=True)
class Travel(ForbidsPairs):
    """So many minutes between a chosen event and a later one at the other of two places.

    Events at neither place need no travel.
    """

    kind: ClassVar[str] = "travel"
    here: tuple[str, ...]
    there: tuple[str, ...]
    minutes: int

    @classmethod
    def sample(cls, events: Sequence[Event], rng: random.Random) -> Rule | None:
        if len(events) < 2:
            return None
        names = rng.sample([e.name for e in events], min(4, len(events)))
        half = len(names) // 2
        return cls(tuple(names[:half]), tuple(names[half:]), rng.choice((30, 45, 60)))

    def sentence(self) -> str | None:
        return (
            f"Going between the place of {spoken(self.here)} and the place of "
            f"{spoken(self.there)} takes {self.minutes} minutes."
        )

    def clashes(self, first: Event, second: Event) -> bool:
        apart = (first.name in self.here and second.name in self.there) or (
            first.name in self.there and second.name in self.here
        )
        return apart and 0 <= second.start - first.end < self.minutes

    def names(self) -> tuple[str, ...]:
        return (*self.here, *self.there)

    def canonical(self, anonymous: Mapping[str, list[int]]) -> list[Any]:
        kind, here, there, minutes = super().canonical(anonymous)
        return [kind, *sorted((here, there)), minutes]  # there and back take equally long

    def check(self) -> None:
        need(self, bool(self.here), "here", "one event or more")
        need(self, bool(self.there), "there", "one event or more")
        need(self, not set(self.here) & set(self.there), "there", "without events of here")
        need(self, self.minutes > 0, "minutes", "above 0")


@dataclass(frozen=True)
class Before(ForbidsPairs):
    """If both are chosen, one event ends by the start of the other."""

    kind: ClassVar[str] = "before"
    first: str
    then: str

    @classmethod
    def sample(cls, events: Sequence[Event], rng: random.Random) -> Rule | None:
        if len(events) < 2:
            return None
        first, then = rng.sample([e.name for e in events], 2)
        return cls(first, then)

    def sentence(self) -> str | None:
        return f"If both are chosen, {self.first} comes before {self.then}."

    def clashes(self, first: Event, second: Event) -> bool:
        # Two different events, so that of each name there is one.
        times = {first.name: first, second.name: second}
        return times.keys() == {self.first, self.then} and (
            times[self.first].end > times[self.then].start
        )

    def violations(self, schedule: Sequence[Event]) -> Iterator[str]:
        for _ in super().violations(schedule):
            yield f"before: {self.first} / {self.then}"

    def names(self) -> tuple[str, ...]:
        return (self.first, self.then)

    def check(self) -> None:
        need(self, self.first != self.then, "then", "another event than first")


@dataclass(frozen=True)
class OfGroup(Rule):
    """Base of rules about a ``group`` of events, two or three where it is drawn."""

    group: tuple[str, ...]

    @classmethod
    def sample(cls, events: Sequence[Event], rng: random.Random) -> Rule | None:
        if len(events) < 3:
            return None
        return cls(tuple(rng.sample([e.name for e in events], rng.randint(2, 3))))

    def names(self) -> tuple[str, ...]:
        return self.group


@dataclass(frozen=True)
class AtMostOne(OfGroup):
    """At most one event of a group."""

    kind: ClassVar[str] = "at_most_one"

    def sentence(self) -> str | None:
        return f"Choose at most one of {spoken(self.group)}."

    def constrain(self, day: DayModel) -> None:
        day.model.add_at_most_one(day.chosen_of(self.group))

    def violations(self, schedule: Sequence[Event]) -> Iterator[str]:
        found = sorted({e.name for e in schedule} & set(self.group))
        if len(found) > 1:
            yield f"at_most_one: {' / '.join(found)}"

    def check(self) -> None:
        need(self, len(set(self.group)) > 1, "group", "two different events or more")


@dataclass(frozen=True)
class AtLeastOne(OfGroup):
    """At least one event of a group."""

    kind: ClassVar[str] = "at_least_one"
    hereditary: ClassVar[bool] = False

    def sentence(self) -> str | None:
        return f"Choose at least one of {spoken(self.group)}."

    def constrain(self, day: DayModel) -> None:
        day.model.add_bool_or(day.chosen_of(self.group))

    def violations(self, schedule: Sequence[Event]) -> Iterator[str]:
        if not {e.name for e in schedule} & set(self.group):
            yield f"at_least_one: {' / '.join(self.group)}"

    def check(self) -> None:
        need(self, bool(self.group), "group", "one event or more")


@dataclass(frozen=True)
class MustInclude(Rule):
    """One event that every schedule has."""

    kind: ClassVar[str] = "must_include"
    hereditary: ClassVar[bool] = False
    event: str

    @classmethod
    def sample(cls, events: Sequence[Event], rng: random.Random) -> Rule | None:
        return cls(rng.choice(events).name)

    def sentence(self) -> str | None:
        return f"Choose {self.event}."

    def constrain(self, day: DayModel) -> None:
        day.model.add_bool_or(day.chosen_of((self.event,)))

    def violations(self, schedule: Sequence[Event]) -> Iterator[str]:
        if self.event not in {e.name for e in schedule}:
            yield f"must_include: {self.event}"

    def names(self) -> tuple[str, ...]:
        return (self.event,)


@dataclass(frozen=True)
class AtMost(Rule):
    """At most so many events."""

    kind: ClassVar[str] = "at_most"
    count: int

    @classmethod
    def sample(cls, events: Sequence[Event], rng: random.Random) -> Rule | None:
        return cls(rng.randint(2, 4))

    def sentence(self) -> str | None:
        return f"Choose at most {self.count} events."

    def constrain(self, day: DayModel) -> None:
        day.model.add(sum(day.chosen) <= self.count)

    def violations(self, schedule: Sequence[Event]) -> Iterator[str]:
        if len(schedule) > self.count:
            yield f"at_most: {len(schedule)} of {self.count}"

    def check(self) -> None:
        need(self, self.count > 0, "count", "above 0")


@dataclass(frozen=True)
class Budget(Rule):
    """So many minutes at most, all chosen events together, unweighted."""

    kind: ClassVar[str] = "budget"
    minutes: int

    @classmethod
    def sample(cls, events: Sequence[Event], rng: random.Random) -> Rule | None:
        return cls(rng.randrange(180, 361, 15))

    def sentence(self) -> str | None:
        return f"The chosen events take at most {self.minutes} minutes together."

    def constrain(self, day: DayModel) -> None:
        taken = sum(event.duration * chosen for event, chosen in day.choices)
        day.model.add(taken <= self.minutes)

    def violations(self, schedule: Sequence[Event]) -> Iterator[str]:
        # An altered event may end before it starts: it takes no time, and gives none.
        taken = sum(max(0, event.duration) for event in schedule)
        if taken > self.minutes:
            yield f"budget: {taken} of {self.minutes} minutes"

    def check(self) -> None:
        need(self, self.minutes > 0, "minutes", "above 0")


@dataclass(frozen=True)
class Break(Rule):
    """So many minutes in a row, inside a window, in which nothing happens."""

    kind: ClassVar[str] = "break"
    minutes: int
    start: str
    end: str

    @classmethod
    def sample(cls, events: Sequence[Event], rng: random.Random) -> Rule | None:
        opens = rng.choice((11, 12, 13))
        return cls(rng.choice((30, 45, 60)), f"{opens}:00", f"{opens + 2}:00")

    def sentence(self) -> str | None:
        return f"Keep {self.minutes} minutes in a row free between {self.start} and {self.end}."

    def _breaks(self, events: Sequence[Event]) -> list[tuple[int, int]]:
        """Every (start, end) that an earliest possible break may have: it begins with the window
        or with the end of an event."""
        opening, closing = MINUTE[self.start], MINUTE[self.end]
        starts = {opening, *(e.end for e in events if opening < e.end)}
        return [(s, s + self.minutes) for s in sorted(starts) if s + self.minutes <= closing]

    def constrain(self, day: DayModel) -> None:
        taken = []
        for start, end in self._breaks(day.events):
            here = day.model.new_bool_var("")
            taken.append(here)
            for event, chosen in day.choices:
                if event.start < end and start < event.end:
                    day.model.add_implication(here, ~chosen)
        day.model.add_bool_or(taken)

    def violations(self, schedule: Sequence[Event]) -> Iterator[str]:
        for start, end in self._breaks(schedule):
            if not any(event.start < end and start < event.end for event in schedule):
                return
        yield f"break: {self.minutes} minutes between {self.start} and {self.end}"

    def check(self) -> None:
        need(self, self.minutes > 0, "minutes", "above 0")
        for key in ("start", "end"):
            need(self, getattr(self, key) in MINUTE, key, "a time between 00:00 and 23:59")
        room = MINUTE[self.end] - MINUTE[self.start]
        need(self, room >= self.minutes, "end", f"at least {self.minutes} minutes after start")


def spoken(names: Sequence[str]) -> str:
    """``A``, ``A and B``, ``A, B and C``."""
    *most, last = names
    return f"{', '.join(most)} and {last}" if most else last


def need(rule: Rule, condition: bool, key: str, what: str) -> None:
    """Raise UserError unless a field of a rule is what it must be."""
    if not condition:
        raise UserError(f"rule {rule.kind!r}: {key} must be {what}, not {getattr(rule, key)!r}")


#: Every rule by its kind, in the order in which a problem lists them.
KINDS: dict[str, type[Rule]] = {
    cls.kind: cls
    for cls in (
        NotEmpty, Chronological, NoOverlap,
        Gap, Travel, Before, AtMostOne, AtLeastOne, MustInclude, AtMost, Budget, Break,
    )
}  # fmt: skip
#: Those that a tier can draw: all but the base rules.
DRAWN_KINDS = tuple(KINDS)[len(BASE_RULES) :]

_TYPES = {
    "int": ("a whole number", lambda v: type(v) is int),
    "str": ("text", lambda v: isinstance(v, str)),
    "tuple[str, ...]": (
        "a list of texts",
        lambda v: isinstance(v, tuple) and all(isinstance(x, str) for x in v),
    ),
}


def rule_from_json(record: Any) -> Rule:
    """``{"rule": kind, …}`` to a Rule; UserError names an unknown kind or a wrong field."""
    if not isinstance(record, dict) or str(record.get("rule")) not in KINDS:
        raise UserError(f'a rule must be {{"rule": one of {", ".join(KINDS)}}}, not {record!r:.80}')
    values = {key: value for key, value in record.items() if key != "rule"}
    cls = KINDS[record["rule"]]
    names = [field.name for field in fields(cls)]
    if set(values) != set(names):
        takes = ", ".join(names) or "no fields"
        raise UserError(f"rule {cls.kind!r} takes {takes}, not {', '.join(values) or 'none'}")
    rule = cls(**values)
    for field in fields(rule):
        what, fits = _TYPES[str(field.type)]
        need(rule, fits(getattr(rule, field.name)), field.name, what)
    rule.check()
    return rule
