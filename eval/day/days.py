"""Reads the day that a user asks about: typed lines, JSON, or a calendar (``eval.day.ics``).

Its content decides which of these it is, not the file's name:

* lines, ``Standup 09:00-09:30 !``: a name and two times, in either order, ``!`` for a priority.
  Also read: ``9-9:30``, ``9.00 to 9.30``, ``1-2pm``, ``- Standup (09:00 - 09:30)`` as prompts have
  it. Blank lines and those that begin with ``#`` are passed over.
* JSON: a list of ``{"name", "start", "end", "priority"}``; a problem of ours (``data.problem``),
  alone or as a row of a run's data, whose ``"events"`` may be written as in such a list; or a row
  of the published layout. Of several lines of JSON one row is taken.
* an iCalendar file, of which one day is taken.

Problem names must differ and hold no ``<``, ``>`` or line break. A name that does not fit is
changed, and a note says so: angle brackets become ``‹`` and ``›`` (so no name can spell a tag or a
token of a chat template), line breaks and control characters a blank, the second Standup becomes
``Standup (2)``. An end at 24:00 becomes 23:59. In a problem nothing is changed, since its rules and
priorities name its events: such a name, two that are equal, and 24:00 are refused there.
"""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import date
from typing import Any

from data.clock import DAY
from data.common.errors import UserError
from data.common.fields import nearest
from data.event import Event, Schedule
from data.problem import Problem
from data.published import check_row, problem_of
from data.rules import BASE_RULES
from data.solver import UnprovenError, optimal_schedule
from eval.day.entry import UNFIT, Entry, cleaned, json_entry, listed, typed_entry
from eval.day.ics import read_calendar

#: Deterministic time for the proof of one day (``DayModel.solve``), about half a minute at most.
_EFFORT = 30.0


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
        wanted.check(source, calendar=True)
        entries, notes = read_calendar(text, source, wanted.date, wanted.zone)
        return day_of(entries, source, wanted.priorities, notes)
    if opening.startswith(("[", "{")):
        wanted.check(source, rows=True)
        return _day_of_json(text, source, wanted)
    wanted.check(source)
    typed = (typed_entry(line, f"{source}:{n}") for n, line in enumerate(text.splitlines(), 1))
    return day_of([entry for entry in typed if entry], source, wanted.priorities)


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


# --- JSON ------------------------------------------------------------------------------------


def _day_of_json(text: str, source: str, wanted: Wanted) -> Day:
    rows = _json_rows(text, source)
    value, notes = rows[0], []
    if wanted.row is not None:
        value = _row_named(wanted, rows, source)
    elif len(rows) > 1:
        notes = [f"{source} has {len(rows)} rows; the first is asked, --id chooses another."]
    if isinstance(value, list):
        entries = [json_entry(item, f"{source}, event {i}") for i, item in enumerate(value, 1)]
        return day_of(entries, source, wanted.priorities, notes)
    problem = _json_problem(value, source)
    for event in problem.events:
        if any(unicodedata.category(c) in UNFIT for c in event.name):
            raise UserError(f"{source}: the name {event.name[:80]!r} holds control characters")
    chosen = _meant(wanted.priorities, {event.name: (event.name,) for event in problem.events})
    marked = tuple(dict.fromkeys([*problem.priorities, *chosen]))
    if marked != problem.priorities:
        problem = replace(problem, priorities=marked, optimum=0)
    return Day(problem, tuple(notes))


def _json_rows(text: str, source: str) -> list[Any]:
    """One JSON value, or those of several lines."""
    try:
        return [json.loads(text)]
    except (ValueError, RecursionError) as error:
        reason = str(error)
    rows: list[Any] = []
    for number, line in enumerate(text.splitlines(), 1):
        try:
            rows += [json.loads(line)] if line.strip() else []
        except (ValueError, RecursionError):
            where = f"{source}:{number}" if rows else source
            raise UserError(f"{where} is not valid JSON ({reason})") from None
    return rows


def _row_named(wanted: Wanted, rows: Sequence[Any], source: str) -> Any:
    names = [str(row.get("id", "")) if isinstance(row, dict) else "" for row in rows]
    if names == [""]:
        wanted.check(source)
    if wanted.row not in names:
        near = nearest(str(wanted.row), names)
        raise UserError(f"{source} has no row with the id {wanted.row!r}{near}")
    return rows[names.index(wanted.row)]


def _json_problem(value: dict[str, Any], source: str) -> Problem:
    """A problem of ours, alone or in a row of a run's data, or a row of the published layout."""
    if isinstance(value.get("problem"), dict):
        value = value["problem"]
    read: Callable[[Any], Problem] = problem_of
    known = None
    if "priority_events" in value:
        check_row(source, value)
    else:
        read, known = Problem.from_json, value.get("optimum")
        value = {"priorities": [], "rules": [rule.to_json() for rule in BASE_RULES], **value}
        # A missing optimum is proven later; any number may stand for it until then.
        value |= {**_written_out(value, source), "optimum": 1 if known is None else known}
    try:
        problem = read(value)
    except UserError as error:
        raise UserError(f"{source}: {error}") from None
    return problem if read is problem_of else replace(problem, optimum=known or 0)


def _written_out(given: dict[str, Any], source: str) -> dict[str, Any]:
    """Events that are objects, as in a list, brought into the form of a problem: by their start,
    their priorities among the problem's. Empty where none is an object."""
    events, marked = given.get("events"), given["priorities"]
    if not isinstance(events, list) or not any(isinstance(item, dict) for item in events):
        return {}
    entries = [json_entry(item, f"{source}, event {i}") for i, item in enumerate(events, 1)]
    entries.sort(key=lambda entry: entry.start)
    if isinstance(marked, list):
        more = (e.name for e in entries if e.priority and e.name not in marked)
        marked = [*marked, *dict.fromkeys(more)]
    times = ([f"{t // 60:02d}:{t % 60:02d}" for t in (e.start, e.end)] for e in entries)
    written = [[e.name, *span] for e, span in zip(entries, times, strict=True)]
    return {"events": written, "priorities": marked}


# --- the problem -----------------------------------------------------------------------------


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
    named = list(zip(_own_names([e.name for e in entries]), entries, strict=True))
    changed = [name for name, e in named if " ".join(e.name.split()) != name]
    if changed:
        notes.append(f"Names changed to be asked: {listed(changed)}.")
    marked = _meant(priorities, {name: (e.name, name, *e.categories) for name, e in named})
    problem = Problem(
        tuple(Event(e.start, e.end, name) for name, e in named),
        tuple(name for name, e in named if e.priority or name in marked),
    )
    problem.check()
    return Day(problem, tuple(notes))


def _meant(words: Iterable[str], known: dict[str, tuple[str, ...]]) -> list[str]:
    """The names of ``known`` that the words mean, each of which goes by several words."""
    chosen: list[str] = []
    for word in words:
        meant = [
            name
            for name, called in known.items()
            if word.strip().casefold() in (" ".join(other.split()).casefold() for other in called)
        ]
        if not meant:
            near = nearest(word, [other for called in known.values() for other in called])
            raise UserError(f"--priorities: {word!r} is no event or category of this day{near}")
        chosen += meant
    return chosen


def _own_names(names: Sequence[str]) -> list[str]:
    """The names cleaned, and numbered where that leaves two alike."""
    plain = [cleaned(name) for name in names]
    taken, own = set(plain), dict[str, None]()
    for name in plain:
        candidate, number = name, 1
        while candidate in own or (number > 1 and candidate in taken):
            number += 1
            candidate = f"{name} ({number})"
        own[candidate] = None
    return list(own)


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
    if problem.optimum not in (0, optimum):
        raise UserError(f'{source}: "optimum" is {problem.optimum}, the proven one {optimum}')
    return problem.proven(optimum), best
