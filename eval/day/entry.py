"""Entry: an event as a user gave it, typed or in JSON, and names that a prompt can hold."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from data.clock import DAY
from data.common.errors import UserError
from data.common.fields import nearest

#: Characters of a name; longer ones are cut.
MOST_NAME = 80
#: Names that a sentence lists.
_LISTED = 5
#: Categories of characters that no line of a prompt can hold.
UNFIT = ("Cc", "Cs", "Zl", "Zp")
#: The invisible characters that words and emoji need; others reorder or hide what is beside them.
JOINERS = "\u200c\u200d"
#: Characters of a typed line; a longer one is no event.
_LONGEST_LINE = 1_000
_TIME = r"(?P<hour{0}>\d{{1,2}})(?:[:.h](?P<minute{0}>\d{{2}}))?\s*(?P<half{0}>[ap]m)?"
_SPAN = rf"{_TIME.format('')}\s*(?:-|–|—|\bto\b|\buntil\b)\s*{_TIME.format(2)}"
_FORMS = tuple(
    re.compile(form, re.IGNORECASE | re.ASCII)
    for form in (
        rf"(?P<name>.*?\S)[,;:]?[\s,;(]+{_SPAN}\)?",
        rf"\(?{_SPAN}\)?:?[\s,;]+(?P<name>.*\S)",
    )
)
_ONE_TIME = re.compile(_TIME.format(""), re.IGNORECASE | re.ASCII)
_KEYS = ("name", "start", "end", "priority")


@dataclass(frozen=True)
class Entry:
    """An event as it was given: any name, minutes since midnight, ``start < end <= DAY``.

    ``categories`` are those of a calendar event; a user may name one to mark priorities.
    """

    name: str
    start: int
    end: int
    priority: bool = False
    categories: tuple[str, ...] = ()


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
    match = next(filter(None, (form.fullmatch(text[:_LONGEST_LINE]) for form in _FORMS)), None)
    if match is None or len(text) > _LONGEST_LINE:
        raise UserError(
            f"{where}: {line.strip()[:80]!r} is not an event; write NAME HH:MM-HH:MM, and ! behind "
            "it for a priority"
        )
    start = _minute(match["hour"], match["minute"], match["half"], where)
    end = _minute(match["hour2"], match["minute2"], match["half2"], where)
    if match["half2"] and not match["half"] and int(match["hour"]) <= 12:
        # "1-2pm" is twice in the afternoon, "11-1pm" once.
        same = _minute(match["hour"], match["minute"], match["half2"], where)
        start = same if same < end else start
    return _checked_entry(match["name"], start, end, priority, where)


def json_entry(item: Any, where: str) -> Entry:
    """An item of a JSON list as an Entry: an object with ``name``, ``start``, ``end`` and perhaps
    ``priority``, or a list of the first three.

    Raises:
        UserError: naming ``where``, when it is neither.
    """
    if isinstance(item, list) and len(item) == 3:
        item = dict(zip(_KEYS, item, strict=False))
    if not isinstance(item, dict):
        raise UserError(f'{where} must be {{"name", "start", "end", "priority"}}')
    for key in item:
        if key not in _KEYS:
            raise UserError(f"{where}: unknown key {key!r}{nearest(key, _KEYS)}")
    for key in _KEYS[:3]:
        if not isinstance(item.get(key), str):
            raise UserError(f'{where} needs "{key}", a text')
    priority = item.get("priority", False)
    if not isinstance(priority, bool):
        raise UserError(f'{where}: "priority" must be true or false')
    minutes = []
    for key in ("start", "end"):
        match = _ONE_TIME.fullmatch(item[key].strip())
        if match is None:
            raise UserError(f'{where}: "{key}" is {item[key][:80]!r}, not a time such as 09:30')
        minutes.append(_minute(match["hour"], match["minute"], match["half"], where))
    start, end = minutes
    return _checked_entry(item["name"], start, end, priority, where)


def _minute(hour: str, minute: str | None, half: str | None, where: str) -> int:
    """A time as minutes since midnight; 24:00 is the day's end."""
    hours, minutes = int(hour), int(minute or 0)
    if half and 1 <= hours <= 12:
        hours = hours % 12 + (12 if half.lower() == "pm" else 0)
    elif half:
        hours = 99
    if minutes > 59 or hours * 60 + minutes > DAY:
        said = f"{hour}{f':{minute}' if minute else ''}{half or ''}"
        raise UserError(f"{where}: {said!r} is not a time between 00:00 and 24:00")
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
    text = "".join(" " if kind in UNFIT else c for c, kind in kinds if kind != "Cf" or c in JOINERS)
    text = " ".join(text.split())
    return (text if len(text) <= MOST_NAME else text[: MOST_NAME - 1].rstrip() + "…") or "Untitled"


def listed(names: Sequence[str]) -> str:
    """The first few of many names."""
    said = ", ".join(cleaned(name) for name in names[:_LISTED])
    return said + (f" and {len(names) - _LISTED} more" if len(names) > _LISTED else "")
