"""Problem: the record that flows through every stage, and its JSON form."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import Any

from data.common.errors import require
from data.common.fields import nearest
from data.common.files import decoded
from data.event import Event, event_from_json
from data.rules import BASE_RULES, Rule, rule_from_json

PRIORITY_WEIGHT = 2


@dataclass(frozen=True)
class Problem:
    """Events, priorities and rules of one day, and the proven optimum in weighted minutes.

    ``optimum`` is 0 between drawing and proof only; a problem read from a file has one.
    """

    events: tuple[Event, ...]
    priorities: tuple[str, ...]
    rules: tuple[Rule, ...] = BASE_RULES
    optimum: int = 0

    @cached_property
    def by_name(self) -> dict[str, Event]:
        return {event.name: event for event in self.events}

    @cached_property
    def value(self) -> dict[str, int]:
        """Weighted minutes of each event by name: priorities count twice."""
        priorities = frozenset(self.priorities)
        return {
            e.name: e.duration * (PRIORITY_WEIGHT if e.name in priorities else 1)
            for e in self.events
        }

    def objective(self, schedule: Sequence[Event]) -> int:
        """Weighted minutes of ``schedule``, whose events must be events of this problem."""
        return sum(self.value[event.name] for event in schedule)

    def is_feasible(self, schedule: Sequence[Event]) -> bool:
        """Whether ``schedule``, of this problem's events, breaks no rule."""
        return not any(next(rule.violations(schedule), None) for rule in self.rules)

    def is_optimal(self, schedule: Sequence[Event]) -> bool:
        """Whether ``schedule``, of this problem's events, is as good as the proven optimum."""
        return self.is_feasible(schedule) and self.objective(schedule) == self.optimum

    def obstacle(self, taken: Sequence[Event], event: Event) -> Rule | None:
        """The first rule that forbids ``event`` beside ``taken``, even if more events are added."""
        together = sorted((*taken, event))
        for rule in self.rules:
            if rule.hereditary and next(rule.violations(together), None):
                return rule
        return None

    def proven(self, optimum: int) -> Problem:
        return replace(self, optimum=optimum)

    @cached_property
    def fingerprint(self) -> str:
        """Hash of the problem without its names or their order.

        Equal for problems that differ only in how events are called or listed.
        """
        anonymous = {e.name: [e.start, e.end, e.name in self.priorities] for e in self.events}
        shape = sorted(anonymous.values())
        rules = sorted((rule.canonical(anonymous) for rule in self.rules), key=json.dumps)
        return hashlib.sha256(json.dumps([shape, rules]).encode()).hexdigest()[:16]

    @cached_property
    def text(self) -> str:
        """The JSON string that a dataset column holds, since Arrow would pad ragged structs."""
        return json.dumps(self.to_json())

    def to_json(self) -> dict[str, object]:
        return {
            "events": [event.to_json() for event in self.events],
            "priorities": list(self.priorities),
            "rules": [rule.to_json() for rule in self.rules],
            "optimum": self.optimum or None,
        }

    @classmethod
    def from_json(cls, record: Any) -> Problem:
        """Build and check a problem from its JSON form.

        Raises:
            UserError: naming the key, when a field is missing, of the wrong type or breaks a rule.
        """
        require(
            isinstance(record, dict),
            f"a problem must be a JSON object, not {type(record).__name__}",
        )
        for key in ("events", "priorities", "rules"):
            require(isinstance(record.get(key), list), f'a problem needs "{key}", a JSON list')
        optimum: Any = record.get("optimum")
        require(
            type(optimum) is int and optimum > 0,
            'a problem needs "optimum", a whole number of weighted minutes above 0',
        )
        events = tuple(event_from_json(item) for item in record["events"])
        rules = tuple(rule_from_json(item) for item in record["rules"])
        problem = cls(events, tuple(record["priorities"]), rules, optimum)
        problem.check()
        return problem

    def check(self) -> None:
        """Raise UserError when names repeat, or a priority or a rule names no event of the day."""
        require(self.events, '"events" is empty')
        require(len(self.by_name) == len(self.events), "two events have the same name")
        for name in self.priorities:
            known = isinstance(name, str) and name in self.by_name
            require(known, f"priority {name!r} is not one of the events")
        require(len(set(self.priorities)) == len(self.priorities), "a priority is listed twice")
        for rule in self.rules:
            for name in rule.names():
                require(
                    name in self.by_name,
                    f"rule {rule.kind!r} names {name!r}, not one of the events"
                    f"{nearest(name, self.by_name)}",
                )


@lru_cache(maxsize=4096)
def problem_from_text(text: str) -> Problem:
    """A Problem from its ``text``, UserError where it is none; cached, since a group shares it."""
    return Problem.from_json(decoded(text, "a problem"))
