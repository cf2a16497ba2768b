"""Rules: one constraint in three forms side by side.

A rule is its sentence for the prompt, its CP-SAT constraint, and its plain check that names what
was violated. Property tests pin the two judgements to each other. To add one: docs/extending.md.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from itertools import combinations, pairwise
from typing import Any, ClassVar

from data.clock import MINUTE
from data.common.errors import require
from data.common.fields import Limit, at_least, dataclass_from, setting
from data.cpsat import DayModel
from data.event import Event

#: Types of fields that name events, by which ``Rule.names`` finds them.
EventName = str
EventNames = tuple[str, ...]
#: Limits of a time of day and of a number.
TIME = Limit(MINUTE.__contains__, "a time between 00:00 and 23:59")
COUNT = at_least(1)


@dataclass(frozen=True)
class Rule:
    """Base of all rules; a subclass gives ``kind`` and the three forms.

    Its fields are read like a recipe's (``data.common.fields``).

    Attributes:
        kind: its name in JSON and in recipes.
        wording: its sentence, with fields in braces; None where the prompt's task says it already.
        hereditary: whether every part of a schedule that keeps the rule keeps it too, so that a
            schedule which breaks it cannot be mended by adding events.
    """

    kind: ClassVar[str]
    wording: ClassVar[str | None]
    hereditary: ClassVar[bool] = True

    @classmethod
    def sample(cls, events: Sequence[Event], rng: random.Random) -> Rule | None:
        """Draw the rule for the events of a day; None where it cannot be said of them."""
        raise NotImplementedError

    def sentence(self) -> str | None:
        """The rule as the prompt says it: its ``wording`` with the fields filled in."""
        said = {key: spoken(v) if isinstance(v, tuple) else v for key, v in vars(self).items()}
        return self.wording and self.wording.format(**said)

    def constrain(self, day: DayModel) -> None:
        """Add the rule to a CP-SAT model."""
        raise NotImplementedError

    def violations(self, schedule: Sequence[Event]) -> Iterator[str]:
        """Name each way in which ``schedule`` (in the order answered) breaks the rule."""
        raise NotImplementedError

    def check(self) -> None:
        """Raise UserError where the fields do not go together."""

    def need(self, condition: bool, key: str, what: str) -> None:
        """Raise UserError unless a field is what it must be."""
        value = getattr(self, key)
        require(condition, f"rule {self.kind!r}: {key} must be {what}, not {value!r}")

    def names(self) -> EventNames:
        """The events that the rule speaks of."""
        named: EventNames = ()
        for field in fields(self):
            value = getattr(self, field.name)
            if field.type in ("EventName", "EventNames"):
                named += value if isinstance(value, tuple) else (value,)
        return named

    def to_json(self) -> dict[str, object]:
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


# --- the base rules --------------------------------------------------------------------------


@dataclass(frozen=True)
class NotEmpty(Rule):
    """A schedule has at least one event."""

    kind = "not_empty"
    wording = None
    hereditary = False

    def constrain(self, day: DayModel) -> None:
        day.model.add_bool_or(day.chosen)

    def violations(self, schedule: Sequence[Event]) -> Iterator[str]:
        if not schedule:
            yield "empty"


@dataclass(frozen=True)
class Chronological(Rule):
    """Events are listed in the order of their starts."""

    kind = "chronological"
    wording = "List the chosen events in order of start."

    def constrain(self, day: DayModel) -> None:
        # There are positions only where an answer is judged: any events can be listed in order.
        placed = zip(day.events, day.chosen, day.position, strict=False)
        for (a, a_chosen, first), (b, b_chosen, second) in combinations(sorted(placed), 2):
            if a.start < b.start:
                day.model.add(first < second).only_enforce_if(a_chosen, b_chosen)

    def violations(self, schedule: Sequence[Event]) -> Iterator[str]:
        for before, after in pairwise(schedule):
            if after.start < before.start:
                yield f"not_chronological: {before.name} / {after.name}"


@dataclass(frozen=True)
class NoOverlap(Rule):
    """No two events share a minute; one may start when another ends."""

    kind = "no_overlap"
    wording = "No two chosen events overlap; one may start at the minute another ends."

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


#: The rules of every problem.
BASE_RULES: tuple[Rule, ...] = (NotEmpty(), Chronological(), NoOverlap())


# --- further rules ---------------------------------------------------------------------------


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

    kind = "gap"
    wording = "Leave at least {minutes} minutes between one chosen event and the next."
    minutes: int = setting(COUNT)

    @classmethod
    def sample(cls, events: Sequence[Event], rng: random.Random) -> Rule | None:
        return cls(rng.choice((15, 30)))

    def clashes(self, first: Event, second: Event) -> bool:
        # Events that overlap are another rule's matter.
        return 0 <= second.start - first.end < self.minutes


@dataclass(frozen=True)
class Travel(ForbidsPairs):
    """So many minutes between a chosen event and a later one at the other of two places.

    Events at neither place need no travel, and may be attended on the way.
    """

    kind = "travel"
    wording = (
        "Going between the place of {here} and the place of {there} takes {minutes} minutes; "
        "events at neither place may lie within them."
    )
    here: EventNames
    there: EventNames
    minutes: int = setting(COUNT)

    @classmethod
    def sample(cls, events: Sequence[Event], rng: random.Random) -> Rule | None:
        if len(events) < 2:
            return None
        names = rng.sample([e.name for e in events], min(4, len(events)))
        half = len(names) // 2
        return cls(tuple(names[:half]), tuple(names[half:]), rng.choice((30, 45, 60)))

    def clashes(self, first: Event, second: Event) -> bool:
        apart = (first.name in self.here and second.name in self.there) or (
            first.name in self.there and second.name in self.here
        )
        return apart and 0 <= second.start - first.end < self.minutes

    def canonical(self, anonymous: Mapping[str, list[int]]) -> list[Any]:
        kind, here, there, minutes = super().canonical(anonymous)
        return [kind, *sorted((here, there)), minutes]  # there and back take equally long

    def check(self) -> None:
        for key in ("here", "there"):
            self.need(bool(getattr(self, key)), key, "one event or more")
        self.need(not set(self.here) & set(self.there), "there", "without events of here")


@dataclass(frozen=True)
class Before(ForbidsPairs):
    """If both are chosen, one event ends by the start of the other."""

    kind = "before"
    wording = "If both are chosen, {first} comes before {then}."
    first: EventName
    then: EventName

    @classmethod
    def sample(cls, events: Sequence[Event], rng: random.Random) -> Rule | None:
        return cls(*rng.sample([e.name for e in events], 2)) if len(events) > 1 else None

    def clashes(self, first: Event, second: Event) -> bool:
        events = {first.name: first, second.name: second}
        return events.keys() == {self.first, self.then} and (
            events[self.first].end > events[self.then].start
        )

    def violations(self, schedule: Sequence[Event]) -> Iterator[str]:
        for _ in super().violations(schedule):
            yield f"before: {self.first} / {self.then}"

    def check(self) -> None:
        self.need(self.first != self.then, "then", "another event than first")


@dataclass(frozen=True)
class OfGroup(Rule):
    """Base of rules about a ``group`` of events, two or three where it is drawn."""

    group: EventNames

    @classmethod
    def sample(cls, events: Sequence[Event], rng: random.Random) -> Rule | None:
        if len(events) < 3:
            return None
        return cls(tuple(rng.sample([e.name for e in events], rng.randint(2, 3))))

    def chosen_in(self, schedule: Sequence[Event]) -> list[str]:
        """The names of the group in a schedule."""
        return sorted({e.name for e in schedule} & set(self.group))


@dataclass(frozen=True)
class AtMostOne(OfGroup):
    """At most one event of a group."""

    kind = "at_most_one"
    wording = "Choose at most one of {group}."

    def constrain(self, day: DayModel) -> None:
        day.model.add_at_most_one(day.chosen_of(self.group))

    def violations(self, schedule: Sequence[Event]) -> Iterator[str]:
        chosen = self.chosen_in(schedule)
        if len(chosen) > 1:
            yield f"at_most_one: {' / '.join(chosen)}"

    def check(self) -> None:
        self.need(len(set(self.group)) > 1, "group", "two different events or more")


@dataclass(frozen=True)
class AtLeastOne(OfGroup):
    """At least one event of a group."""

    kind = "at_least_one"
    wording = "Choose at least one of {group}."
    hereditary = False

    def constrain(self, day: DayModel) -> None:
        day.model.add_bool_or(day.chosen_of(self.group))

    def violations(self, schedule: Sequence[Event]) -> Iterator[str]:
        if not self.chosen_in(schedule):
            yield f"at_least_one: {' / '.join(self.group)}"

    def check(self) -> None:
        self.need(bool(self.group), "group", "one event or more")


@dataclass(frozen=True)
class MustInclude(Rule):
    """One event that every schedule has."""

    kind = "must_include"
    wording = "Choose {event}."
    hereditary = False
    event: EventName

    @classmethod
    def sample(cls, events: Sequence[Event], rng: random.Random) -> Rule | None:
        return cls(rng.choice(events).name)

    def constrain(self, day: DayModel) -> None:
        day.model.add_bool_or(day.chosen_of((self.event,)))

    def violations(self, schedule: Sequence[Event]) -> Iterator[str]:
        if self.event not in {e.name for e in schedule}:
            yield f"must_include: {self.event}"


@dataclass(frozen=True)
class AtMost(Rule):
    """At most so many events."""

    kind = "at_most"
    wording = "Choose at most {count} events."
    count: int = setting(COUNT)

    @classmethod
    def sample(cls, events: Sequence[Event], rng: random.Random) -> Rule | None:
        return cls(rng.randint(2, 4))

    def constrain(self, day: DayModel) -> None:
        day.model.add(sum(day.chosen) <= self.count)

    def violations(self, schedule: Sequence[Event]) -> Iterator[str]:
        if len(schedule) > self.count:
            yield f"at_most: {len(schedule)} of {self.count}"


@dataclass(frozen=True)
class Budget(Rule):
    """So many minutes at most, all chosen events together, unweighted."""

    kind = "budget"
    wording = "The chosen events take at most {minutes} minutes together."
    minutes: int = setting(COUNT)

    @classmethod
    def sample(cls, events: Sequence[Event], rng: random.Random) -> Rule | None:
        return cls(rng.randrange(180, 361, 15))

    def constrain(self, day: DayModel) -> None:
        day.model.add(sum(e.duration * chosen for e, chosen in day.choices) <= self.minutes)

    def violations(self, schedule: Sequence[Event]) -> Iterator[str]:
        # An altered event may end before it starts: it takes no time, and gives none.
        taken = sum(max(0, event.duration) for event in schedule)
        if taken > self.minutes:
            yield f"budget: {taken} of {self.minutes} minutes"


@dataclass(frozen=True)
class Break(Rule):
    """So many minutes in a row, inside a window, in which nothing happens."""

    kind = "break"
    wording = "Keep {minutes} minutes in a row free between {start} and {end}."
    minutes: int = setting(COUNT)
    start: str = setting(TIME)
    end: str = setting(TIME)

    @classmethod
    def sample(cls, events: Sequence[Event], rng: random.Random) -> Rule | None:
        opens = rng.choice((11, 12, 13))
        return cls(rng.choice((30, 45, 60)), f"{opens}:00", f"{opens + 2}:00")

    def _breaks(self, events: Sequence[Event]) -> list[Event]:
        """Every earliest possible break: it begins with the window or at the end of an event."""
        opening, closing = MINUTE[self.start], MINUTE[self.end]
        starts = {opening, *(e.end for e in events if opening < e.end)}
        breaks = (Event(start, start + self.minutes, "") for start in sorted(starts))
        return [one for one in breaks if one.end <= closing]

    def constrain(self, day: DayModel) -> None:
        taken = []
        for free in self._breaks(day.events):
            here = day.model.new_bool_var("")
            taken.append(here)
            for event, chosen in day.choices:
                if event.overlaps(free):
                    day.model.add_implication(here, ~chosen)
        day.model.add_bool_or(taken)

    def violations(self, schedule: Sequence[Event]) -> Iterator[str]:
        breaks = self._breaks(schedule)
        if all(any(event.overlaps(free) for event in schedule) for free in breaks):
            yield f"break: {self.minutes} minutes between {self.start} and {self.end}"

    def check(self) -> None:
        room = MINUTE[self.end] - MINUTE[self.start]
        self.need(room >= self.minutes, "end", f"at least {self.minutes} minutes after start")


def spoken(names: Sequence[str]) -> str:
    """``A``, ``A and B``, ``A, B and C``."""
    *most, last = names
    return f"{', '.join(most)} and {last}" if most else last


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


def rule_from_json(record: Any) -> Rule:
    """``{"rule": kind, …}`` to a Rule; UserError names an unknown kind or a wrong field."""
    require(
        isinstance(record, dict) and str(record.get("rule")) in KINDS,
        f'a rule must be {{"rule": one of {", ".join(KINDS)}}}, not {record!r:.80}',
    )
    values = {key: value for key, value in record.items() if key != "rule"}
    rule = dataclass_from(KINDS[record["rule"]], values, f"rule {record['rule']!r}")
    rule.check()
    return rule
