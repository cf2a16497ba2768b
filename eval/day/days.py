"""Reads the day that a user asks about: typed lines, JSON, or a calendar (``eval.day.ics``).

What it holds is told by its content, not by its file's name:

* lines, ``Standup 09:00-09:30 !``: a name and two times, in either order, ``!`` for a priority.
  Also read: ``9-9:30``, ``9.00 to 9.30``, ``1-2pm``, ``- Standup (09:00 - 09:30)`` as prompts have
  it. Blank lines and those that begin with ``#`` are passed over.
* JSON: a list of ``{"name", "start", "end", "priority"}``; a problem of ours (``data.problem``),
  alone or as a row of a run's data, whose ``"events"`` may be written as in such a list; or a row
  of the published layout. Of several lines of JSON one row is taken.
* an iCalendar file, of which one day is taken.

Problem names must differ and hold no ``<``, ``>`` or line break. A name that does not fit is
changed, and that is said: angle brackets become ``‹`` and ``›`` (so no name can spell a tag or a
token of a chat template), line breaks and control characters a blank, the second Standup is called
``Standup (2)``. An end at 24:00 becomes 23:59. In a problem alone nothing is changed, since its
rules and priorities name its events: such a name, two that are equal, and 24:00 are refused there.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import date
from typing import Any

from data.clock import DAY
from data.common.errors import UserError
from data.event import Event, Schedule
from data.problem import Problem
from data.published import check_row, problem_of
from data.recipe import nearest
from data.rules import BASE_RULES
from data.solver import UnprovenError, optimal_schedule

#: Characters of a name; longer ones are cut.
MOST_NAME = 80
#: Names that a sentence lists.
_LISTED = 5
#: Deterministic time for the proof of one day (``DayModel.solve``), about half a minute at most.
_EFFORT = 30.0
#: Categories of characters that no line of a prompt can hold.
_UNFIT = ("Cc", "Cs", "Zl", "Zp")
#: The invisible characters that words and emoji need; others reorder or hide what is beside them.
JOINERS = "\u200c\u200d"
#: Characters of a typed line; a longer one is no event.
_LONGEST = 1_000
_TIME = r"(?P<hour{0}>\d{{1,2}})(?:[:.h](?P<minute{0}>\d{{2}}))?\s*(?P<half{0}>[ap]m)?"
_SPAN = rf"{_TIME.format('')}\s*(?:-|–|—|\bto\b|\buntil\b)\s*{_TIME.format(2)}"
_FORMS = tuple(
    re.compile(form, re.IGNORECASE | re.ASCII)
    for form in (
        rf"(?P<name>.*?\S)[,;:]?[\s,;(]+{_SPAN}\)?",
        rf"\(?{_SPAN}\)?:?[\s,;]+(?P<name>.*\S)",
    )
)
_CLOCK_TIME = re.compile(_TIME.format(""), re.IGNORECASE | re.ASCII)
_KEYS = ("name", "start", "end", "priority")


@dataclass(frozen=True)
class Entry:
    """An event as it was given: any name, minutes since midnight, ``start < end``.

    ``categories`` are those of a calendar event; a user may name one to mark priorities.
    """

    name: str
    start: int
    end: int
    priority: bool = False
    categories: tuple[str, ...] = ()


@dataclass(frozen=True)
class Day:
    """What is asked: the problem, and a sentence for whatever is not as it was given."""

    problem: Problem
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Wanted:
    """What the user chose of a day.

    Attributes:
        priorities: names of events, or categories of a calendar, whatever their case.
        date: of a calendar; None for the first day with events.
        zone: name of the time zone that a calendar is read in; None for its own.
        row: the ``id`` of one row of several lines of JSON; None for the first.
    """

    priorities: tuple[str, ...] = ()
    date: date | None = None
    zone: str | None = None
    row: str | None = None

    def check(self, source: str, calendar: bool = False, rows: bool = False) -> None:
        """Raise UserError where something is chosen that ``source`` has no choice of."""
        for value, flag, there, what in (
            (self.date, "--date", calendar, "a calendar"),
            (self.zone, "--timezone", calendar, "a calendar"),
            (self.row, "--id", rows, "rows of JSON"),
        ):
            if value is not None and not there:
                raise UserError(f"{flag} chooses from {what}, and {source} is none")


def read_day(content: bytes, source: str, wanted: Wanted) -> Day:
    """Read a day from the content of a file, called ``source`` in messages.

    Raises:
        UserError: one sentence, when it cannot be read or holds no event that can be asked.
    """
    text = _decoded(content, source)
    opening = text.lstrip()[:15].upper()
    if opening.startswith("BEGIN:"):
        from eval.day.ics import read_calendar

        wanted.check(source, calendar=True)
        entries, notes = read_calendar(text, source, wanted.date, wanted.zone)
        return day_of(entries, source, wanted.priorities, notes)
    if opening.startswith(("[", "{")):
        wanted.check(source, rows=True)
        return _from_json(text, source, wanted)
    wanted.check(source)
    entries = [
        entry
        for number, line in enumerate(text.splitlines(), 1)
        if (entry := entry_of(line, f"{source}:{number}"))
    ]
    return day_of(entries, source, wanted.priorities)


def _decoded(content: bytes, source: str) -> str:
    """Text in UTF-8, or in UTF-16 with its mark. Other encodings cannot be told apart, and a wrong
    guess would garble names."""
    marked = content[:2] in (b"\xff\xfe", b"\xfe\xff")
    try:
        return content.decode("utf-16" if marked else "utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        encoding = "UTF-16" if marked else "UTF-8"
        raise UserError(f"{source}:{line} is not {encoding} text; save it as UTF-8") from None


def entry_of(line: str, where: str) -> Entry | None:
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
    found = next(filter(None, (form.fullmatch(text[:_LONGEST]) for form in _FORMS)), None)
    if found is None or len(text) > _LONGEST:
        raise UserError(
            f"{where}: {line.strip()[:80]!r} is not an event; write NAME HH:MM-HH:MM, and ! behind "
            "it for a priority"
        )
    start = _minute(found["hour"], found["minute"], found["half"], where)
    end = _minute(found["hour2"], found["minute2"], found["half2"], where)
    if found["half2"] and not found["half"] and int(found["hour"]) <= 12:
        # In "1-2pm" the afternoon is meant twice, in "11-1pm" once.
        same = _minute(found["hour"], found["minute"], found["half2"], where)
        start = same if same < end else start
    return _entry(found["name"], start, end, priority, where)


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


def _entry(name: str, start: int, end: int, priority: bool, where: str) -> Entry:
    if end <= start:
        raise UserError(
            f"{where}: {name[:80]!r} does not end after its start; an event over midnight is no "
            "part of one day"
        )
    return Entry(name, start, end, priority)


def _from_json(text: str, source: str, wanted: Wanted) -> Day:
    value, notes = _json(text, source, wanted)
    if isinstance(value, dict) and isinstance(value.get("problem"), dict):
        value = value["problem"]
    if isinstance(value, dict) and "priority_events" in value:
        check_row(source, value)
        problem = _named(source, problem_of, value)
    elif isinstance(value, dict):
        # A missing optimum is proven, so any number may stand for it until then.
        given = {"priorities": [], "rules": [rule.to_json() for rule in BASE_RULES], **value}
        given |= _as_ours(given, source)
        known = given.get("optimum")
        given["optimum"] = 1 if known is None else known
        problem = _named(source, Problem.from_json, given)
        problem = replace(problem, optimum=known)
    else:
        entries = [_json_entry(item, f"{source}, event {i}") for i, item in enumerate(value, 1)]
        return day_of(entries, source, wanted.priorities, notes)
    for event in problem.events:
        if any(unicodedata.category(c) in _UNFIT for c in event.name):
            raise UserError(f"{source}: the name {event.name[:80]!r} holds control characters")
    marked = dict.fromkeys(problem.priorities)
    marked |= dict.fromkeys(_chosen(wanted.priorities, {e.name: (e.name,) for e in problem.events}))
    if len(marked) > len(problem.priorities):
        problem = replace(problem, priorities=tuple(marked), optimum=None)
    return Day(problem, tuple(notes))


def _as_ours(given: dict[str, Any], source: str) -> dict[str, Any]:
    """Events that are written out, as those of a list are, in the form of a problem of ours: by
    their start, their priorities among the problem's. Nothing where none is."""
    events, marked = given.get("events"), given["priorities"]
    if not isinstance(events, list) or not any(isinstance(item, dict) for item in events):
        return {}
    entries = [_json_entry(item, f"{source}, event {i}") for i, item in enumerate(events, 1)]
    entries.sort(key=lambda entry: entry.start)
    if isinstance(marked, list):
        more = (e.name for e in entries if e.priority and e.name not in marked)
        marked = [*marked, *dict.fromkeys(more)]
    times = ((f"{t // 60:02d}:{t % 60:02d}" for t in (e.start, e.end)) for e in entries)
    return {
        "events": [[e.name, *span] for e, span in zip(entries, times, strict=True)],
        "priorities": marked,
    }


def _named(source: str, read: Any, value: Any) -> Problem:
    """``read(value)``, the source named where it fails."""
    try:
        return read(value)
    except UserError as error:
        raise UserError(f"{source}: {error}") from None


def _json(text: str, source: str, wanted: Wanted) -> tuple[Any, list[str]]:
    """A JSON value; of several lines of JSON the row with that ``id``, or the first."""
    try:
        rows = [json.loads(text)]
    except (ValueError, RecursionError) as error:
        rows = _rows(text, source, str(error))
    if wanted.row is None:
        first = f"{source} has {len(rows)} rows; the first is asked, --id chooses another."
        return rows[0], [first] if len(rows) > 1 else []
    names = [str(found.get("id", "")) if isinstance(found, dict) else "" for found in rows]
    if names == [""]:
        wanted.check(source)
    if wanted.row not in names:
        raise UserError(
            f"{source} has no row with the id {wanted.row!r}{nearest(wanted.row, names)}"
        )
    return rows[names.index(wanted.row)], []


def _rows(text: str, source: str, reason: str) -> list[Any]:
    """The values of lines of JSON; ``reason`` says why the text is not one value."""
    rows: list[Any] = []
    for number, line in enumerate(text.splitlines(), 1):
        try:
            rows += [json.loads(line)] if line.strip() else []
        except (ValueError, RecursionError):
            where = f"{source}:{number}" if rows else source
            raise UserError(f"{where} is not valid JSON ({reason})") from None
    return rows


def _json_entry(item: Any, where: str) -> Entry:
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
    if not isinstance(item.get("priority", False), bool):
        raise UserError(f'{where}: "priority" must be true or false')
    minutes = []
    for key in ("start", "end"):
        found = _CLOCK_TIME.fullmatch(item[key].strip())
        if found is None:
            raise UserError(f'{where}: "{key}" is {item[key][:80]!r}, not a time such as 09:30')
        minutes.append(_minute(*found.groups(), where))
    return _entry(item["name"], *minutes, item.get("priority", False), where)


def day_of(
    entries: Sequence[Entry], source: str, priorities: Iterable[str] = (), notes: Sequence[str] = ()
) -> Day:
    """Entries as a Day, its events by their start, each with a name of its own.

    Raises:
        UserError: when there is none, or a priority names no event and no category.
    """
    notes = list(notes)
    late = [e.name for e in entries if e.end == DAY]
    if late:
        # The clock has no 24:00, and an event that ends there shares its last minute with none.
        notes.append(f"Ends at 24:00, asked as 23:59: {listed(late)}.")
        entries = [replace(e, end=min(e.end, DAY - 1)) for e in entries if e.start < DAY - 1]
    if not entries:
        raise UserError(f"{source} has no events; write one a line as NAME HH:MM-HH:MM")
    entries = sorted(entries, key=lambda entry: entry.start)
    names = _own_names([entry.name for entry in entries])
    changed = [
        name
        for entry, name in zip(entries, names, strict=True)
        if " ".join(entry.name.split()) != name
    ]
    if changed:
        notes.append(f"Names changed to be asked: {listed(changed)}.")
    known = {n: (e.name, n, *e.categories) for e, n in zip(entries, names, strict=True)}
    marked = set(_chosen(priorities, known))
    problem = Problem(
        tuple(Event(e.start, e.end, name) for e, name in zip(entries, names, strict=True)),
        tuple(n for e, n in zip(entries, names, strict=True) if e.priority or n in marked),
    )
    problem.check()
    return Day(problem, tuple(notes))


def _chosen(words: Iterable[str], known: dict[str, tuple[str, ...]]) -> list[str]:
    """The names of ``known`` that a word means, each of which goes by several words."""
    found = []
    for word in words:
        meant = [
            name
            for name, called in known.items()
            if word.strip().casefold() in (" ".join(other.split()).casefold() for other in called)
        ]
        if not meant:
            near = nearest(word, [other for called in known.values() for other in called])
            raise UserError(f"--priorities: {word!r} is no event or category of this day{near}")
        found += meant
    return found


def cleaned(name: str) -> str:
    """A name as a prompt can hold it: one line, no tags, no control characters, not blank."""
    text = name.replace("<", "‹").replace(">", "›")
    kinds = ((c, unicodedata.category(c)) for c in text)
    text = "".join(
        " " if kind in _UNFIT else c for c, kind in kinds if kind != "Cf" or c in JOINERS
    )
    text = " ".join(text.split())
    return (text if len(text) <= MOST_NAME else text[: MOST_NAME - 1].rstrip() + "…") or "Untitled"


def _own_names(names: Sequence[str]) -> list[str]:
    """The names cleaned, and numbered where that leaves two alike."""
    plain = [cleaned(name) for name in names]
    taken, found = set(plain), dict[str, None]()
    for name in plain:
        own, number = name, 1
        while own in found or (number > 1 and own in taken):
            number += 1
            own = f"{name} ({number})"
        found[own] = None
    return list(found)


def listed(names: Sequence[str]) -> str:
    """The first few of many names."""
    said = ", ".join(cleaned(name) for name in names[:_LISTED])
    return said + (f" and {len(names) - _LISTED} more" if len(names) > _LISTED else "")


def prove_day(problem: Problem, source: str) -> tuple[Problem, Schedule]:
    """The problem with its proven optimum, and an optimal schedule.

    Raises:
        UserError: when no schedule keeps the rules, the proof takes too long, or the problem came
            with another optimum.
    """
    try:
        best = optimal_schedule(problem, _EFFORT)
    except UnprovenError:
        raise UserError(f"{source}: the optimum of this day is too hard to prove") from None
    optimum = None if best is None else problem.objective(best)
    if not best or not optimum:
        raise UserError(f"{source}: no schedule keeps the rules of this day")
    if problem.optimum not in (None, optimum):
        raise UserError(f'{source}: "optimum" is {problem.optimum}, the proven one {optimum}')
    return problem.proven(optimum), best
