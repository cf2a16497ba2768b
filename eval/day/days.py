"""Reads the day that a user asks about: typed lines, JSON, or a calendar (``eval.day.ics``).

Its content decides which of these it is, not the file's name:

* lines, ``Standup 09:00-09:30 !``: a name and two times, ``!`` for a priority. Also read:
  ``9-9:30``, ``9.00 to 9.30``, ``- Standup (09:00 - 09:30)`` as prompts have it. Blank lines and
  those that begin with ``#`` are passed over.
* JSON: a list of ``{"name", "start", "end", "priority"}``, or a problem of ours
  (``data.problem``), alone or as a row of a run's data.
* an iCalendar file, or a zip of some as Google exports it, of which one day is taken.

Problem names must differ and hold no ``<``, ``>`` or line break. A name that does not fit is
changed, and a note says so: angle brackets become ``‹`` and ``›`` (so no name can spell a tag or a
token of a chat template), line breaks and control characters a blank, the second Standup becomes
``Standup (2)``. An end at 24:00 becomes 23:59. A problem of ours is taken as it is.
"""

from __future__ import annotations

import re
import struct
import zlib
from codecs import BOM_UTF8
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from datetime import date, datetime
from io import BytesIO
from lzma import LZMAError
from zipfile import BadZipFile, ZipFile

from data.clock import DAY, MINUTE
from data.common.errors import UserError, require
from data.common.fields import nearest
from data.common.files import decoded
from data.event import Event, Schedule
from data.problem import Problem
from data.rules import DRAWN_KINDS, KINDS, Rule, rule_from_json
from data.solver import UnprovenError, optimal_schedule
from eval.day.entry import Entry, cleaned, json_entry, listed, typed_entry
from eval.day.ics import read_calendar

#: Deterministic time for the proof of one day (``DayModel.solve``), about half a minute at most.
_EFFORT = 30.0
#: Bytes of the calendars in a zip.
_MOST_UNZIPPED = 100_000_000
#: Errors of zipfile and its decompressors for files that are broken or locked.
_BROKEN_ZIP = (
    *(BadZipFile, zlib.error, LZMAError, struct.error, EOFError),
    *(RuntimeError, OSError, ValueError, LookupError),
)


@dataclass(frozen=True)
class Day:
    """The problem that is asked, a sentence for whatever is not as it was given, and when a
    calendar's day begins."""

    problem: Problem
    notes: tuple[str, ...] = ()
    midnight: datetime | None = None


def read_day(
    content: bytes,
    source: str,
    priorities: Sequence[str] = (),
    date: date | None = None,
    zone: str | None = None,
) -> Day:
    """Read a day from the content of a file, called ``source`` in messages.

    Args:
        priorities: names of events, or categories of a calendar, whatever their case.
        date: of a calendar; None for the first day with events.
        zone: name of the time zone that a calendar is read in; None for its own.

    Raises:
        UserError: one sentence, when it cannot be read or holds no event that can be asked.
    """
    if content.startswith(b"PK\x03\x04"):
        content = _unzipped(content, source)
    if b"BEGIN:" in content:  # a calendar's lines may be folded in the middle of a letter
        content = re.sub(rb"\r?\n[ \t]", b"", content)
    text = _decoded(content, source)
    if text.lstrip().startswith("BEGIN:"):
        entries, notes = read_calendar(text, source, date, zone)
        return day_of(entries, source, priorities, notes)
    if date or zone:
        raise UserError(
            f"DATE= (--date) and --timezone choose from a calendar, and {source} is none"
        )
    if text.lstrip().startswith(("[", "{")):
        return _day_of_json(text, source, priorities)
    typed = (typed_entry(line, f"{source}:{n}") for n, line in enumerate(text.splitlines(), 1))
    return day_of([entry for entry in typed if entry], source, priorities)


def _unzipped(content: bytes, source: str) -> bytes:
    """All calendars of a zip, as Google exports them, one behind the other."""
    try:
        with ZipFile(BytesIO(content)) as archive:
            files = [one for one in archive.infolist() if one.filename.lower().endswith(".ics")]
            require(files, f"{source} is a zip without a calendar (.ics) in it")
            large = sum(one.file_size for one in files) > _MOST_UNZIPPED
            require(
                not large, f"{source} holds too much for a calendar; unzip it and name one file"
            )
            return b"\n".join(archive.read(one).removeprefix(BOM_UTF8) for one in files)
    except _BROKEN_ZIP as error:
        raise UserError(
            f"{source} is a broken or locked zip ({error}); unzip it and name a file"
        ) from None


def _decoded(content: bytes, source: str) -> str:
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise UserError(f"{source}:{line} is not UTF-8 text; save it as UTF-8") from None


def _day_of_json(text: str, source: str, priorities: Sequence[str]) -> Day:
    value = decoded(text, source)
    if isinstance(value, list):
        entries = [json_entry(item, source, i) for i, item in enumerate(value, 1)]
        return day_of(entries, source, priorities)
    try:
        problem = Problem.from_json(value.get("problem", value))
    except UserError as error:
        raise UserError(f"{source}: {error}") from None
    chosen = _meant(priorities, {event.name: (event.name,) for event in problem.events})
    marked = tuple(dict.fromkeys([*problem.priorities, *chosen]))
    return Day(replace(problem, priorities=marked))


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
    require(entries, f"{source} has no events; write one a line as NAME HH:MM-HH:MM")
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
    return Day(problem, tuple(notes), entries[0].midnight)


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


def with_rules(problem: Problem, spoken: Iterable[str]) -> Problem:
    """The problem with further rules, each as ``kind values``: ``at_most 4``, ``break 12:00-13:00``
    (or ``break 60 12:00-14:00``), ``before Standup, Lunch``, ``travel Gym, Pool / Office / 30``.

    Raises:
        UserError: naming the rule, where it has no such form or names no event of the day.
    """
    own = {name.casefold(): name for name in problem.by_name}
    rules = [_rule(text.strip(), own) for text in spoken if text.strip()]
    problem = replace(problem, rules=(*problem.rules, *rules))
    problem.check()
    return problem


def _rule(text: str, own: Mapping[str, str]) -> Rule:
    """A rule in words; ``own`` has the names of events by their small letters."""
    kind, _, rest = text.partition(" ")
    require(
        kind in DRAWN_KINDS,
        f"RULE= (--rule) {text!r:.80} is not KIND VALUES, as at_most 4, with one of "
        f"{', '.join(DRAWN_KINDS)}{nearest(kind, DRAWN_KINDS)}",
    )
    types = {field.name: str(field.type) for field in fields(KINDS[kind])}
    between = "/" if len(types) > 1 and "EventNames" in types.values() else ","
    if not {"EventName", "EventNames"} & set(types.values()):
        rest, between = " ".join(re.sub(r"(?<=\d) ?[-–] ?(?=\d)", " ", rest).split()), " "
    values = [part.strip() for part in rest.split(between)] if len(types) > 1 else [rest.strip()]
    if kind == "break" and len(values) == 2 and set(values) <= set(MINUTE):
        values.insert(0, str(MINUTE[values[1]] - MINUTE[values[0]]))
    form = " ".join(f" {between} ".join(types).upper().split())
    require(len(values) == len(types), f"RULE= (--rule) {text!r:.80}: write {kind} {form}")

    def named(name: str) -> str:
        return own.get(name.strip().casefold(), name.strip())

    read: dict[str, Callable[[str], object]] = {
        "int": lambda value: int(value) if re.fullmatch(r"-?[0-9]{1,9}", value) else value,
        "EventName": named,
        "EventNames": lambda value: [named(name) for name in value.split(",")],
    }
    given = {k: read.get(t, str)(v) for (k, t), v in zip(types.items(), values, strict=True)}
    return rule_from_json({"rule": kind, **given})


def left_out(problem: Problem, plan: Schedule) -> Iterator[tuple[Event, str]]:
    """Every event that is not in an optimal plan, and why it cannot be added to it."""
    for event in problem.events:
        if event in plan:
            continue
        others = [other.name for other in plan if other.overlaps(event)]
        rule = problem.obstacle(plan, event)
        said = rule.sentence() if rule else None
        yield event, f"overlaps {', '.join(others)}" if others else f"would break: {said}"


def prove_day(problem: Problem, source: str) -> tuple[Problem, Schedule]:
    """The problem with its proven optimum, and an optimal schedule.

    Raises:
        UserError: when no schedule keeps the rules, or the proof takes too long.
    """
    try:
        best = optimal_schedule(problem, _EFFORT)
    except UnprovenError:
        raise UserError(f"{source}: the optimum of this day is too hard to prove") from None
    if not best:
        raise UserError(f"{source}: no schedule keeps the rules of this day")
    return problem.proven(problem.objective(best)), best
