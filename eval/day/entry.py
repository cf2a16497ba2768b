"""Entry: an event as a user gave it, typed or in JSON, and names that a prompt can hold."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from data.clock import DAY
from data.common.errors import UserError
from data.common.fields import dataclass_from

#: Characters of a name; longer ones are cut.
_MOST_NAME = 80
#: Names that a sentence lists.
_LISTED = 5
#: Categories of characters that no line of a prompt can hold.
_UNFIT = ("Cc", "Cs", "Zl", "Zp")
#: The invisible characters that words and emoji need; others reorder or hide what is beside them.
JOINERS = "\u200c\u200d"
#: Characters of a typed line; a longer one is no event.
_LONGEST_LINE = 1_000
_TIME = r"(\d{1,2}(?:[:.h]\d{2})?)"
_LINE = re.compile(
    rf"(.*?\S)[,;:]?[\s,;(]+{_TIME}\s*(?:-|–|—|\bto\b)\s*{_TIME}\)?", re.IGNORECASE | re.ASCII
)


@dataclass(frozen=True)
class Entry:
    """An event as it was given: any name, minutes since midnight, ``start < end <= DAY``.

    ``categories`` are those of a calendar event; a user may name one to mark priorities.
    ``midnight`` begins its day on the calendar's clock; None of one that is typed.
    """

    name: str
    start: int
    end: int
    priority: bool = False
    categories: tuple[str, ...] = ()
    midnight: datetime | None = field(default=None, compare=False)


def typed_entry(line: str, where: str) -> Entry | None:
    """A typed line as an Entry; None for a blank line or a comment.

    Raises:
        UserError: naming ``where``, when it has no name and two times.
    """
    text = line.strip()
    if not text or text.startswith("#"):
        return None
    text = re.sub(r"^[-*•]\s+", "", text)
    priority = text.startswith("!") or text.endswith("!")
    text = text.strip("! \t")
    match = _LINE.fullmatch(text) if len(text) <= _LONGEST_LINE else None
    if match is None:
        raise UserError(
            f"{where}: {line.strip()[:80]!r} is not an event; write NAME HH:MM-HH:MM, and ! behind "
            "it for a priority"
        )
    start, end = _minute(match[2], where), _minute(match[3], where)
    return _checked_entry(match[1], start, end, priority, where)


@dataclass(frozen=True)
class _Item:
    """An event of a JSON list."""

    name: str
    start: str
    end: str
    priority: bool = False


def json_entry(item: Any, source: str, number: int) -> Entry:
    """Item ``number`` of a JSON list as an Entry: an object with ``name``, ``start``, ``end`` and
    perhaps ``priority``, or a list of the first three.

    Raises:
        UserError: naming ``source`` and ``number``, when it is neither.
    """
    if isinstance(item, list) and len(item) == 3:
        item = dict(zip(("name", "start", "end"), item, strict=True))
    given = dataclass_from(_Item, item, source, f"event {number}.")
    where = f"{source}, event {number}"
    start, end = (_minute(text.strip(), where) for text in (given.start, given.end))
    return _checked_entry(given.name, start, end, given.priority, where)


def _minute(text: str, where: str) -> int:
    """A time as minutes since midnight; 24:00 is the day's end."""
    match = re.fullmatch(r"(\d{1,2})(?:[:.h](\d{2}))?", text, re.ASCII)
    hours, minutes = (int(part or 0) for part in match.groups()) if match else (DAY, 0)
    if minutes > 59 or hours * 60 + minutes > DAY:
        raise UserError(f"{where}: {text[:80]!r} is not a time such as 09:30, up to 24:00")
    return hours * 60 + minutes


def _checked_entry(name: str, start: int, end: int, priority: bool, where: str) -> Entry:
    if end <= start:
        raise UserError(
            f"{where}: {name[:80]!r} does not end after its start; an event over midnight is not "
            "part of one day"
        )
    return Entry(name, start, end, priority)


def cleaned(name: str) -> str:
    """A name as a prompt can hold it: one line, no tags, no control characters, not blank."""
    text = name.replace("<", "‹").replace(">", "›")
    kinds = ((c, unicodedata.category(c)) for c in text)
    text = "".join(
        " " if kind in _UNFIT else c for c, kind in kinds if kind != "Cf" or c in JOINERS
    )
    text = " ".join(text.split())
    return (
        text if len(text) <= _MOST_NAME else text[: _MOST_NAME - 1].rstrip() + "…"
    ) or "Untitled"


def listed(names: Sequence[str]) -> str:
    """The first few of many names."""
    said = ", ".join(cleaned(name) for name in names[:_LISTED])
    return said + (f" and {len(names) - _LISTED} more" if len(names) > _LISTED else "")
