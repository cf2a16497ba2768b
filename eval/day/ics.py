"""One day of an iCalendar file (RFC 5545), as Google Calendar, Outlook and Apple write them.

``icalendar`` reads each event by itself, so that a broken one does not take the others with it;
``recurring_ical_events`` follows recurrences, and the occurrences that were moved, changed or
cancelled. What becomes of an event:

* Times are those of one zone: the one asked for, else the calendar's ``X-WR-TIMEZONE``, else the
  zone that most events name, else UTC. Floating times are taken as they stand.
* Events that take no hours from the others are left out: all-day and free ones
  (``TRANSP:TRANSPARENT``, Outlook's free and working elsewhere), cancelled ones, those without
  length.
* Events over midnight are left out, not clipped. Their worth is that of the whole, and who takes
  the part of this day takes the other one with it. One that ends at midnight is of this day alone.
* Events during which the clocks change are left out: their length on the clock is not their length.
* ``PRIORITY`` 1 to 4, which RFC 5545 calls high, marks a priority. Seconds are cut off.

Whatever is left out is named in a sentence: a broken alarm, to-do, zone or property too, without
the event that it belongs to, unless that is its times.
"""

from __future__ import annotations

import re
import warnings
import zoneinfo
from collections import Counter, defaultdict
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, date, datetime, time, timedelta, tzinfo

from dateutil.rrule import rrulestr
from icalendar import Calendar, Component, Event, vRecur
from icalendar.timezone import tzp
from recurring_ical_events import CalendarQuery, EventAdapter

from data.common.errors import UserError, require
from data.common.fields import nearest
from data.event import Event as DayEvent
from eval.day.entry import Entry, cleaned, listed

#: Days on either side that are searched where the day asked for has no events, and dates named.
_AROUND, _NAMED = timedelta(days=60), 5
_ONE_DAY = timedelta(days=1)
#: Years of events; Apple dates birthdays without a year to 1604.
_YEARS = range(1600, 2200)
#: Frequencies of the rules that are followed.
_FREQUENCIES = ("DAILY", "WEEKLY", "MONTHLY", "YEARLY")
#: Errors that the libraries raise for values and structures that make no sense.
_NONSENSE = (
    *(ValueError, TypeError, LookupError, AttributeError, AssertionError),
    *(OverflowError, RecursionError, OSError),
)
_UNREADABLE = "as it cannot be read"
_IN_LINES = re.MULTILINE | re.DOTALL | re.IGNORECASE
_BLOCKS = {
    kind: re.compile(rf"^BEGIN:{kind}\s*$.*?^END:{kind}\s*$", _IN_LINES)
    for kind in ("VTIMEZONE", "VALARM", "VTODO", "VFREEBUSY", "VJOURNAL", "VEVENT")
}
#: Parts of a calendar that are no events, as they are named where they are broken.
_PARTS = {
    "VTIMEZONE": "a time zone", "VALARM": "an alarm", "VTODO": "a to-do",
    "VFREEBUSY": "free/busy times", "VJOURNAL": "a journal entry",
}  # fmt: skip
#: Properties without which an event cannot be placed.
_TIMES = {"DTSTART", "DTEND", "DURATION", "RRULE", "RDATE", "EXDATE", "RECURRENCE-ID"}
#: Outlook's words for times that are free.
_BUSY = {"FREE": "free", "WORKINGELSEWHERE": "working elsewhere"}
#: A date property whose zone has colons and lacks quotes; one whose offset stands behind the time.
_TIME_LINE = rf"^({'|'.join(_TIMES)})([^:\"\n]*?)"
_UNQUOTED = re.compile(
    rf'{_TIME_LINE};TZID=([^";\n]*:[^";\n]*)(?=(?:;[^:\n]*)?:[\dTZ,/PWDHMS]+\s*$)', re.MULTILINE
)
_BEHIND = re.compile(
    rf"{_TIME_LINE}(?:;TZID=[^:;\n]*)?:(\d{{8}}T\d{{6}})([+-]\d\d:?\d\d)\s*$", re.MULTILINE
)
#: Zones that are spelt as an offset from UTC.
_OFFSET = re.compile(r"(?:UTC|GMT)?\s?([+-])(\d\d?):?([0-5]\d)?|Z|tzone://Microsoft/Utc", re.I)
_LABEL = re.compile(r'TZID="([^"\n]*)"|TZID=([^":;\n]*)|^X-WR-TIMEZONE[^:\n]*:(.*)$', re.MULTILINE)

#: Why events are left out: to each reason their names.
LeftOut = defaultdict[str, dict[str, None]]
#: The events of one UID: one with its recurrences, moved and cancelled occurrences.
Series = Sequence[Event]


def read_calendar(
    text: str, source: str, day: date | None = None, zone_name: str | None = None
) -> tuple[list[Entry], list[str]]:
    """The events of one day, and a sentence for all that was chosen or left out.

    Args:
        day: None for the first day that has events.
        zone_name: of the zone whose clock is read; None for the calendar's own.

    Raises:
        UserError: when the file is broken, the zone unknown, or the day has no events; then the
            nearest dates with some are named.
    """
    if day is not None and day.year not in _YEARS:
        raise UserError(f"DATE= (--date) {day} is not between {_YEARS[0]} and {_YEARS[-1]}")
    if not text.rstrip().upper().endswith("END:VCALENDAR"):
        raise UserError(f"{source} is a broken calendar (its end is missing); export it again")
    left_out: LeftOut = defaultdict(dict)
    text = _BEHIND.sub(r'\1\2;TZID="\4":\3', text)
    text = _UNQUOTED.sub(r'\1\2;TZID="\3"', text)
    series = _all_series(text, left_out, zone_name)
    require(series or left_out, f"{source} is a calendar without events")
    zone, notes = _zone(text, [event for one in series for event in one], zone_name)
    first = _first_date(series, zone)
    if day is None and first:
        day = first
        notes.insert(0, f"Asked is {day:%A}, {day}, the first day with events.")
    entries = [entry for _, entry in _between(series, day, day, zone, left_out)] if day else []
    lost = [f"Left out, {why}: {listed(list(names))}." for why, names in left_out.items()]
    if entries:
        return entries, notes + lost
    none = f"{source} has no events that can be asked"
    if day and first:
        near = _dates(series, day - _AROUND, day + _AROUND, zone) or [first]
        near = [other for other in near if other.year in _YEARS]
        near = sorted(sorted(near, key=lambda other: abs(other - day))[:_NAMED])
        none += f" on {day}; the nearest dates with some are {', '.join(map(str, near))}"
    raise UserError(" ".join([f"{none}.", *lost]).rstrip("."))


def plan_calendar(plan: Sequence[DayEvent], midnight: datetime) -> bytes:
    """A schedule of the day that begins at ``midnight`` as an iCalendar file; in UTC, if that has a
    zone, else on any clock."""
    calendar = Calendar()
    calendar.add("prodid", "-//Slotwise//make try//EN")
    calendar.add("version", "2.0")
    for number, chosen in enumerate(plan):
        uid = f"{midnight:%Y%m%d}-{chosen.start}-{number}@slotwise"
        minutes = (divmod(minute, 60) for minute in (chosen.start, chosen.end))
        moments = (midnight.replace(hour=hour, minute=minute) for hour, minute in minutes)
        start, end = (one.astimezone(UTC) if one.tzinfo else one for one in moments)
        calendar.add_component(Event.new(uid=uid, summary=chosen.name, start=start, end=end))
    return calendar.to_ical()


# --- reading ---------------------------------------------------------------------------------


def _all_series(text: str, left_out: LeftOut, zone_name: str | None) -> list[Series]:
    """The events of a file, those of one UID together; its zones are known to ``tzp`` then, and
    all that are spelt as an offset."""
    tzp.use_default()  # forgets the zones of calendars read before
    for kind, what in _PARTS.items():
        for block in _BLOCKS[kind].findall(text):
            try:  # a zone may be known by its name all the same
                Component.from_ical(block)
            except _NONSENSE:
                left_out[_UNREADABLE][f"{what} {_summary(block)}".rstrip()] = None
    for label in {zone_name or "", *("".join(groups).strip() for groups in _LABEL.findall(text))}:
        if (offset := _OFFSET.fullmatch(label)) and not _zone_named(label):
            _fix_zone(label, offset)
    together: defaultdict[str, list[Event]] = defaultdict(list)
    for number, block in enumerate(_BLOCKS["VEVENT"].findall(text)):
        try:
            event = _event(_BLOCKS["VALARM"].sub("", block))
        except _NONSENSE:
            left_out[_UNREADABLE][_summary(block)] = None
            continue
        for key, _ in event.errors:
            left_out[_UNREADABLE][f"{key or 'a line'} of {cleaned(_name(event))}"] = None
        together[str(event.get("UID", number))].append(event)
    return list(together.values())


def _summary(block: str) -> str:
    """The name that a part of the file has."""
    name = re.search(r"^SUMMARY[^:\n]*:(.*)$", block, re.MULTILINE)
    return name[1] if name else ""


def _fix_zone(label: str, offset: re.Match[str]) -> None:
    """Make a zone of constant offset known by this label."""
    spelt = f"{offset[1] or '+'}{int(offset[2] or 0):02}{offset[3] or '00'}"
    block = (
        f"BEGIN:VTIMEZONE\nTZID:{label}\nBEGIN:STANDARD\nDTSTART:16010101T000000\n"
        f"TZOFFSETFROM:{spelt}\nTZOFFSETTO:{spelt}\nEND:STANDARD\nEND:VTIMEZONE"
    )
    with suppress(*_NONSENSE):  # 99 hours
        Component.from_ical(block)


def _event(block: str) -> Event:
    """A VEVENT whose times and rules can be followed, or one of ``_NONSENSE``."""
    with warnings.catch_warnings():
        # Zones that are guessed from a longer name; the notes name the zone.
        warnings.simplefilter("ignore")
        event = Event.from_ical(block)
    assert isinstance(event, Event)
    broken = {key for key, _ in event.errors}
    if broken & _TIMES:
        raise ValueError(event)
    for key in broken - {None}:
        event.pop(key, None)
    start, end = _span(event)
    if end < start or not {start.year, end.year} <= set(_YEARS) or "EXRULE" in event:
        raise ValueError(event)
    rules = event.pop("RRULE", [])
    for rule in rules if isinstance(rules, list) else [rules]:
        if rule["FREQ"][0].upper() not in _FREQUENCIES or min(rule.get("INTERVAL", [1])) < 1:
            raise ValueError(rule)
        if "UNTIL" in rule and isinstance(start, datetime):
            rule["UNTIL"] = [_last(until, start) for until in rule["UNTIL"]]
        if _comes_true(rule, start):
            event.add("RRULE", rule)
    return event


def _comes_true(rule: vRecur, start: date) -> bool:
    """Whether a rule has any occurrence; a 30 February has none.

    dateutil seeks a date that never comes until the year 9999, which takes a minute. Dates and
    weekdays repeat every 400 years, so the search may begin as late as that.
    """
    bare = vRecur({key: value for key, value in rule.items() if key not in ("UNTIL", "COUNT")})
    year = 9999 - (9999 - start.year) % 400
    late = datetime(year if year < 9900 else year - 400, start.month, start.day)
    return next(iter(rrulestr(bare.to_ical().decode(), dtstart=late)), None) is not None


def _last(until: date, start: datetime) -> datetime:
    """An UNTIL as RFC 5545 wants it: in UTC, if the start has a zone; a date holds to its end."""
    last = until if isinstance(until, datetime) else datetime.combine(until, time(23, 59, 59))
    if start.tzinfo and not last.tzinfo:
        last = last.replace(tzinfo=start.tzinfo).astimezone(UTC)
    return last


def _zone(text: str, events: Sequence[Event], name: str | None) -> tuple[tzinfo, list[str]]:
    """The zone whose clock is read, and sentences about zones.

    Raises:
        UserError: when no zone is called ``name``.
    """
    if name is not None and not _zone_named(name):
        near = nearest(name, sorted(zoneinfo.available_timezones()))
        raise UserError(f"--timezone: {name!r} is no time zone such as Europe/Berlin{near}")
    own = re.search(r"^X-WR-TIMEZONE[^:\n]*:(.*)$", text, re.MULTILINE)
    starts = [(_span(event)[0], event["DTSTART"].params.get("TZID")) for event in events]
    times = [(start.tzinfo, label) for start, label in starts if isinstance(start, datetime)]
    known = Counter(label for zone, label in times if zone and label).most_common(1)
    labels = [name or "", own[1].strip() if own else "", *(label for label, _ in known), "UTC"]
    label, zone = next((label, zone) for label in labels if (zone := _zone_named(label)))
    notes = [f"Times are those of {cleaned(label)}."] if any(zone for zone, _ in times) else []
    unknown = dict.fromkeys(label for zone, label in times if label and not zone)
    notes += [
        f"Time zone {cleaned(one)} is unknown; its times stand as they are." for one in unknown
    ]
    return zone, notes


def _zone_named(name: str) -> tzinfo | None:
    try:
        return tzp.timezone(name) if name else None
    except (OSError, ValueError):  # the name of a folder, or no name at all
        return None


# --- what takes place ------------------------------------------------------------------------


def _between(
    series: Sequence[Series], low: date, high: date, zone: tzinfo, left_out: LeftOut
) -> list[tuple[date, Entry]]:
    """The date and event of all that can be asked from ``low`` to ``high``."""
    span = datetime.combine(low, time(), zone), datetime.combine(high, time.max, zone)
    askable: list[tuple[date, Entry]] = []
    for events in series:
        alone = Calendar()
        alone.subcomponents = list(events)
        try:
            placed = [_placed(event, zone) for event in CalendarQuery(alone).between(*span)]
        except _NONSENSE:
            left_out[_UNREADABLE][_name(events[0])] = None
            continue
        for occurrence in placed:
            if isinstance(occurrence, str):
                left_out[occurrence][_name(events[0])] = None
            else:
                askable.append(occurrence)
    return askable


def _dates(series: Sequence[Series], low: date, high: date, zone: tzinfo) -> list[date]:
    """Dates on which there is something to ask."""
    return sorted({when for when, _ in _between(series, low, high, zone, defaultdict(dict))})


def _first_date(series: Sequence[Series], zone: tzinfo) -> date | None:
    """The first of all such dates, that of an event's start or soon after."""
    begins = (_span(event)[0] for events in series for event in events)
    starts = {one.date() if isinstance(one, datetime) else one for one in begins}
    searched = date.min
    for start in sorted(starts):
        if start + _AROUND / 2 > searched:
            searched = start + _AROUND
            if dates := _dates(series, start - _ONE_DAY, searched, zone):
                return dates[0]
    return None


def _placed(event: Event, zone: tzinfo) -> tuple[date, Entry] | str:
    """An occurrence with its date on the clock of ``zone``, or why it cannot be asked."""
    begin, stop = _span(event)
    if str(event.get("STATUS")).upper() == "CANCELLED":
        return "cancelled"
    if str(event.get("TRANSP")).upper() == "TRANSPARENT":
        return "free"
    if reason := _BUSY.get(str(event.get("X-MICROSOFT-CDO-BUSYSTATUS")).upper()):
        return reason
    if not (isinstance(begin, datetime) and isinstance(stop, datetime)):
        return "all-day"
    exact = [moment.astimezone(UTC) if moment.tzinfo else moment for moment in (begin, stop)]
    local = [moment.astimezone(zone) if moment.tzinfo else moment for moment in exact]
    start, end = (moment.replace(tzinfo=None, fold=0) for moment in local)
    changes = end - start != exact[1] - exact[0]
    start, end = (moment.replace(second=0, microsecond=0) for moment in (start, end))
    midnight = datetime.combine(start, time())
    if start == midnight and end.time() == time() and end > start:
        return "all-day"
    if end > midnight + _ONE_DAY:
        return "over midnight"
    if changes:
        return "while the clocks change"
    if start == end:
        return "without length"
    first, last = ((moment - midnight) // timedelta(minutes=1) for moment in (start, end))
    high = 1 <= event.get("PRIORITY", 0) <= 4
    categories = tuple(map(str, event.categories))
    begins = midnight.replace(tzinfo=zone if begin.tzinfo else None)
    return start.date(), Entry(_name(event), first, last, high, categories, begins)


def _span(event: Event) -> tuple[date, date]:
    """Start and end; DTEND holds, also where there is a DURATION beside it."""
    adapter = EventAdapter(event)
    return adapter.raw_start, adapter.raw_end


def _name(event: Event) -> str:
    return str(event.get("SUMMARY", ""))
