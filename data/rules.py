"""Rules: one constraint in three forms side by side.

A rule is its sentence for the prompt, its CP-SAT constraint, and its plain check that names what
was violated. The two forms of judgement are pinned to each other by property tests. To add a rule,
add a class here: ``rule_from_json`` finds it by its ``kind``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations, pairwise
from typing import TYPE_CHECKING, Any, ClassVar

from data.errors import UserError

if TYPE_CHECKING:
    from data.problem import Event, Problem
    from data.solver import DayModel


@dataclass(frozen=True)
class Rule:
    """Base of all rules; a subclass gives ``kind`` and the three forms."""

    kind: ClassVar[str]

    def sentence(self) -> str | None:
        """The rule as the prompt says it, or None where the prompt's task says it already."""
        raise NotImplementedError

    def constrain(self, day: DayModel) -> None:
        """Add the rule to a CP-SAT model."""
        raise NotImplementedError

    def violations(self, schedule: Sequence[Event]) -> Iterator[str]:
        """Name each way in which ``schedule`` (in the order answered) breaks the rule."""
        raise NotImplementedError

    def to_json(self) -> dict[str, Any]:
        return {"rule": self.kind, **asdict(self)}

    def canonical(self, problem: Problem) -> list[Any]:
        """The rule without event names, for the problem's fingerprint."""
        return [self.kind]


@dataclass(frozen=True)
class NotEmpty(Rule):
    """A schedule has at least one event."""

    kind: ClassVar[str] = "not_empty"

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
        if day.position is None:
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
                chosen
                for other, chosen in zip(day.events, day.chosen, strict=True)
                if other.start <= event.start < other.end
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

_KINDS = {cls.kind: cls for cls in Rule.__subclasses__()}


def rule_from_json(record: Any) -> Rule:
    """``{"rule": kind, …}`` to a Rule; UserError names an unknown kind or field."""
    if not isinstance(record, dict) or str(record.get("rule")) not in _KINDS:
        raise UserError(
            f'a rule must be {{"rule": one of {", ".join(_KINDS)}}}, not {record!r:.80}'
        )
    fields = {key: value for key, value in record.items() if key != "rule"}
    try:
        return _KINDS[record["rule"]](**fields)
    except TypeError:
        raise UserError(f"rule {record['rule']!r} does not take {', '.join(fields)}") from None
