"""Event and Schedule: minutes since midnight inside, ``HH:MM`` in JSON, prompts and completions."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from data.clock import CLOCK, MINUTE
from data.common.errors import require
from data.common.fields import is_text


@dataclass(frozen=True, slots=True, order=True)
class Event:
    """One event, in minutes since midnight; ``start < end`` except in a wrong answer."""

    start: int
    end: int
    name: str

    @property
    def duration(self) -> int:
        """Length in minutes."""
        return self.end - self.start

    def overlaps(self, other: Event) -> bool:
        """Whether two events share a minute; touching ones do not."""
        return self.start < other.end and other.start < self.end

    def to_json(self) -> list[str]:
        return [self.name, CLOCK[self.start], CLOCK[self.end]]


#: Events in the order of an answer, not yet judged.
Schedule = tuple[Event, ...]


def event_from_json(item: Any) -> Event:
    """An Event from ``[name, "HH:MM", "HH:MM"]``; UserError says what is wrong with it."""
    require(
        isinstance(item, list) and len(item) == 3 and all(isinstance(x, str) for x in item),
        f'an event must be ["name", "HH:MM", "HH:MM"], not {json.dumps(item)[:80]}',
    )
    name, start, end = item
    for text in (start, end):
        require(text in MINUTE, f"{text!r} is not a time between 00:00 and 23:59 (event {name!r})")
    require(
        name and name == name.strip() and not set(name) & set("<>\n\r") and is_text(name),
        f"event name {name!r} is blank, or has <, >, a line break, outer blanks or half an emoji",
    )
    require(
        MINUTE[start] < MINUTE[end], f"event {name!r} ends at {end}, not after its start at {start}"
    )
    return Event(MINUTE[start], MINUTE[end], name)
